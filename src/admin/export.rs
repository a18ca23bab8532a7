//! `/metrics`: the loop's counters, and gauges of what is known at the moment. What is not known is left out.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::board::{Board, Seen};
use super::health::Reach;
use crate::metrics::{State, Turn};
use crate::position::Position;
use crate::sampler::{Parked, Sample, SlotState};

/// All names begin with it.
const PREFIX: &str = "outbox_relay";
const WAL_STATUS: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// The metrics as text, in the OpenMetrics format.
///
/// # Errors
/// None that writing to a string could have.
pub fn text(board: &Arc<Board>) -> Result<String, Error> {
    let labels = [("relay".into(), board.about.name.clone().into())];
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    board.metrics.register(&mut registry);
    registry.register_collector(Box::new(Now(Arc::clone(board))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// The gauges.
struct Now(Arc<Board>);

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Now")
    }
}

impl Collector for Now {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (board, mut gauges) = (&self.0, Gauges(encoder));
        let (health, turn) = board.health();
        let seen = board.seen();
        let about = &board.about;
        gauges.info(&[
            ("version", env!("CARGO_PKG_VERSION")),
            ("instance_id", &about.instance),
            ("capture", about.capture),
            ("sink", about.sink),
            ("table", &about.table),
        ])?;
        let flag = |is: bool| Some(f64::from(u8::from(is)));
        gauges.put(
            "live",
            "1 if /livez says so",
            None,
            flag(health.live.is_ok()),
        )?;
        gauges.put(
            "ready",
            "1 if /readyz says so",
            None,
            flag(health.ready.is_ok()),
        )?;
        gauges.turn(&turn)?;
        gauges.servers(&seen)?;
        if let Some((at, sample)) = &seen.sample {
            let age = Some(at.elapsed().as_secs_f64());
            gauges.put(
                "sample_age",
                "Age of the last look at PostgreSQL",
                SECONDS,
                age,
            )?;
            gauges.sample(sample, board.metrics.now_ms())?;
            if let Some(slot) = &sample.slot {
                gauges.slot(slot)?;
            }
            if let Some(parked) = &sample.parked {
                gauges.parked(parked)?;
            }
            let stored = sample.registration.as_ref().map(|it| &it.position);
            let active = turn
                .position
                .as_ref()
                .filter(|_| turn.state == State::Active);
            if let Some(position) = active.or(stored) {
                gauges.position(position)?;
            }
        }
        Ok(())
    }
}

const SECONDS: Option<&Unit> = Some(&Unit::Seconds);
const BYTES: Option<&Unit> = Some(&Unit::Bytes);

struct Gauges<'a>(DescriptorEncoder<'a>);

impl Gauges<'_> {
    fn put(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: Option<f64>,
    ) -> Result<(), Error> {
        let Some(value) = value else { return Ok(()) };
        let metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    /// One gauge for each of the values that a label may have: 1 for the one that it has.
    fn put_one_of(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'static str>,
        is: &str,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for value in values {
            let gauge = ConstGauge::new(i64::from(value == is));
            gauge.encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }

    fn info(&mut self, labels: &[(&str, &str)]) -> Result<(), Error> {
        let help = "Which relay this is";
        let mut family = self
            .0
            .encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1i64).encode(family.encode_family(&labels)?)
    }

    fn turn(&mut self, turn: &Turn) -> Result<(), Error> {
        let states = State::ALL.map(State::name);
        self.put_one_of(
            "state",
            "1 for what the relay is doing",
            "state",
            states,
            turn.state.name(),
        )?;
        let age = Some(turn.since.elapsed().as_secs_f64());
        self.put("state_age", "Since when it does that", SECONDS, age)?;
        let age = Some(turn.at.elapsed().as_secs_f64());
        self.put("turn_age", "Since the last step of the loop", SECONDS, age)
    }

    fn servers(&mut self, seen: &Seen) -> Result<(), Error> {
        let up = |reach: &Reach| {
            reach
                .as_ref()
                .map(|answer| f64::from(u8::from(answer.is_ok())))
        };
        let postgres = up(&seen.postgres);
        self.put("postgres_up", "1 if PostgreSQL answers", None, postgres)?;
        self.put("kafka_up", "1 if Kafka answers", None, up(&seen.kafka))
    }

    fn sample(&mut self, sample: &Sample, now_ms: Option<i64>) -> Result<(), Error> {
        let held = Some(f64::from(u8::from(sample.lease_held)));
        let help = "1 if any relay of the name holds the lease";
        self.put("lease_held", help, None, held)?;
        if let Some(lag) = &sample.lag {
            let events = Some(lag.events as f64);
            let help = "Committed events that are not published; at most what is counted";
            self.put("lag_events", help, None, events)?;
            let is_least = Some(f64::from(u8::from(lag.at_least)));
            let help = "1 if there may be more than lag_events, and older than lag_seconds";
            self.put("lag_is_at_least", help, None, is_least)?;
            let help = "Age of the oldest committed event that is not published";
            self.put("lag", help, SECONDS, lag.seconds)?;
        }
        let help = "Capture wal: WAL between the position and the end";
        let behind = sample.wal_lag_bytes.map(|bytes| bytes as f64);
        self.put("wal_lag", help, BYTES, behind)?;
        let writer = sample.oldest_writer.as_ref().map(|it| it.seconds);
        let help = "Age of the oldest open transaction that has written, 0 if there is none";
        self.put("oldest_open_writer_age", help, SECONDS, writer)?;
        let acknowledged = sample.registration.as_ref().map(|it| it.acknowledged_at_ms);
        let age = now_ms.zip(acknowledged);
        let age = age.map(|(now, at)| (now - at).max(0) as f64 / 1000.0);
        let help = "Since the position in outbox.relay moved";
        self.put("acknowledged_age", help, SECONDS, age)
    }

    fn slot(&mut self, slot: &SlotState) -> Result<(), Error> {
        let active = Some(f64::from(u8::from(slot.active)));
        let help = "Capture wal: 1 if the replication slot is streamed from";
        self.put("slot_active", help, None, active)?;
        self.put_one_of(
            "slot_wal_status",
            "Capture wal: 1 for the slot's wal_status",
            "wal_status",
            WAL_STATUS,
            &slot.wal_status,
        )?;
        let retained = Some(slot.retained_wal_bytes as f64);
        let help = "Capture wal: WAL that the slot keeps";
        self.put("slot_retained_wal", help, BYTES, retained)?;
        let safe = slot.safe_wal_bytes.map(|bytes| bytes as f64);
        let help = "Capture wal: WAL that may be written before the slot is in danger";
        self.put("slot_safe_wal", help, BYTES, safe)?;
        let inactive = slot.inactive_seconds;
        let help = "Capture wal: since when nobody streams from the slot";
        self.put("slot_inactive", help, SECONDS, inactive)
    }

    fn parked(&mut self, parked: &Parked) -> Result<(), Error> {
        let failed = Some(parked.transactions as f64);
        let help = "Transactions that were set aside because they can't be published";
        self.put("parked_transactions", help, None, failed)?;
        let held = Some(parked.held_transactions as f64);
        let help = "Transactions that wait behind parked ones";
        self.put("held_transactions", help, None, held)?;
        let age = Some(parked.seconds);
        let help = "Since when the oldest parked transaction waits, 0 if there is none";
        self.put("oldest_parked_age", help, SECONDS, age)
    }

    fn position(&mut self, position: &Position) -> Result<(), Error> {
        match &position.streamed {
            Some(streamed) => {
                let at = Some(u64::from(streamed.lsn) as f64);
                let help = "Capture wal: the position, as a place in the WAL";
                self.put("position_wal", help, BYTES, at)
            }
            None => {
                let xmax = Some(position.seen.xmax() as f64);
                let help = "Capture table: the first transaction id beyond the position";
                self.put("position_transaction_id", help, None, xmax)
            }
        }
    }
}
