//! What a relay does and did, for whoever looks: counters, histograms, and where its loop is.
//!
//! The loop and the sink tell; telling costs a few atomic additions and a lock that nobody holds for long, and never
//! waits. Without a listener nobody reads it.
//!
//! Latency is measured by the *database's* clock, which made the times of the rows: the sampler reads it, and between two
//! reads the monotonic clock of this process carries it on. So no clock of ours is compared with one of theirs, and
//! nothing here reads the wall clock.

mod registry;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::time::Instant;

pub use self::registry::{FaultLabels, RecycleLabels};
pub use self::window::Quantiles;
use self::window::Window;
use crate::event::Passed;
use crate::fault::{Fault, Server};
use crate::position::Position;

/// What a relay is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not been anything else yet.
    Starting,
    /// Another relay of its name holds the lease.
    StandBy,
    /// It publishes.
    Active,
    /// This server is away; it tries again.
    Waiting(Server),
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Starting,
        Self::StandBy,
        Self::Active,
        Self::Waiting(Server::Postgres),
        Self::Waiting(Server::Kafka),
    ];

    /// What metrics call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::StandBy => "standby",
            Self::Active => "active",
            Self::Waiting(Server::Postgres) => "waiting_for_postgres",
            Self::Waiting(Server::Kafka) => "waiting_for_kafka",
        }
    }
}

/// Where the loop is, at one moment.
#[derive(Clone, Debug)]
pub struct Turn {
    /// What it is doing.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// When it made its last step.
    pub at: Instant,
    /// Where it stands; none before it was active.
    pub position: Option<Position>,
    /// When the transaction that it published last was committed, by the database's clock.
    pub published_until_ms: Option<i64>,
    /// The last fault.
    pub fault: Option<(Instant, String)>,
}

/// A batch that became visible.
pub struct Done {
    /// Database transactions.
    pub transactions: u64,
    /// Events in them.
    pub events: u64,
    /// From the beginning of its Kafka transaction to its end.
    pub took: Duration,
    /// What went through.
    pub passed: Passed,
    /// The position after it.
    pub after: Position,
}

/// The metrics of one relay. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transactions: Counter,
    events: Counter,
    bytes: Counter,
    batch_events: Histogram,
    kafka_transaction_seconds: Histogram,
    latency_seconds: Histogram,
    recycles: Family<RecycleLabels, Counter>,
    faults: Family<FaultLabels, Counter>,
    turn: Mutex<Turn>,
    /// The database's clock: its time at an instant of ours.
    clock: Mutex<Option<(Instant, i64)>>,
    latencies: Mutex<Window>,
}

impl Default for Metrics {
    fn default() -> Self {
        let now = Instant::now();
        // From a millisecond to a minute.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 17));
        // From 0 on, so that the first one is an increase.
        let (recycles, faults) = (Family::default(), Family::default());
        for labels in RecycleLabels::ALL {
            let _: &Counter = &recycles.get_or_create(&labels);
        }
        for labels in FaultLabels::SURVIVED {
            let _: &Counter = &faults.get_or_create(&labels);
        }
        Self(Arc::new(Inner {
            transactions: Counter::default(),
            events: Counter::default(),
            bytes: Counter::default(),
            batch_events: Histogram::new(exponential_buckets(1.0, 4.0, 11)),
            kafka_transaction_seconds: seconds(),
            latency_seconds: seconds(),
            recycles,
            faults,
            turn: Mutex::new(Turn {
                state: State::Starting,
                since: now,
                at: now,
                position: None,
                published_until_ms: None,
                fault: None,
            }),
            clock: Mutex::default(),
            latencies: Mutex::default(),
        }))
    }
}

impl Metrics {
    /// The loop, or the sink on its behalf, made a step.
    pub fn turned(&self) {
        locked(&self.0.turn).at = Instant::now();
    }

    /// The relay is something else from now on.
    pub fn entered(&self, state: State) {
        let mut turn = locked(&self.0.turn);
        let now = Instant::now();
        (turn.state, turn.since, turn.at) = (state, now, now);
    }

    /// The loop goes on from here.
    pub fn stands_at(&self, position: &Position) {
        locked(&self.0.turn).position = Some(position.clone());
    }

    /// A batch became visible. Latency is observed once for each of its database transactions.
    pub fn published(&self, done: Done) {
        let inner = &self.0;
        let Passed {
            bytes,
            committed_at_ms,
        } = done.passed;
        if done.events > 0 {
            inner.transactions.inc_by(done.transactions);
            inner.events.inc_by(done.events);
            inner.bytes.inc_by(bytes);
            inner.batch_events.observe(done.events as f64);
            let took = done.took.as_secs_f64();
            inner.kafka_transaction_seconds.observe(took);
            self.became_visible(&committed_at_ms);
        }
        let mut turn = locked(&inner.turn);
        (turn.position, turn.at) = (Some(done.after), Instant::now());
        if let Some(last) = committed_at_ms.last() {
            turn.published_until_ms = Some(*last);
        }
    }

    fn became_visible(&self, committed_at_ms: &[i64]) {
        let Some(now_ms) = self.now_ms() else { return };
        let mut recent = locked(&self.0.latencies);
        for at in committed_at_ms {
            let latency_ms = now_ms.saturating_sub(*at).max(0).unsigned_abs();
            self.0.latency_seconds.observe(latency_ms as f64 / 1000.0);
            recent.add(latency_ms);
        }
    }

    /// The relay met a fault, and gets over it or ends.
    pub fn met(&self, fault: &Fault) {
        let labels = FaultLabels::of(fault);
        self.0.faults.get_or_create(&labels).inc();
        let mut turn = locked(&self.0.turn);
        turn.at = Instant::now();
        turn.fault = Some((turn.at, fault.to_string()));
    }

    /// The relay met a transaction that can't be published, and parks it.
    pub fn set_aside(&self) {
        self.0.faults.get_or_create(&FaultLabels::PARKED).inc();
        self.turned();
    }

    /// The Kafka producer was made anew after a commit.
    pub fn recycled(&self, reason: &'static str) {
        let labels = RecycleLabels { reason };
        self.0.recycles.get_or_create(&labels).inc();
    }

    /// The database's clock showed this at that moment, in milliseconds since 1970 UTC.
    pub fn set_clock(&self, at: Instant, now_ms: i64) {
        *locked(&self.0.clock) = Some((at, now_ms));
    }

    /// The time by the database's clock, once that is known.
    #[must_use]
    pub fn now_ms(&self) -> Option<i64> {
        let (at, then_ms) = (*locked(&self.0.clock))?;
        let since = i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
        Some(then_ms.saturating_add(since))
    }

    /// Where the loop is.
    #[must_use]
    pub fn turn(&self) -> Turn {
        locked(&self.0.turn).clone()
    }

    /// Database transactions, events and bytes that were published so far.
    #[must_use]
    pub fn totals(&self) -> [u64; 3] {
        let inner = &self.0;
        [&inner.transactions, &inner.events, &inner.bytes].map(Counter::get)
    }

    /// Latencies since the last call.
    #[must_use]
    pub fn take_latencies(&self) -> Option<Quantiles> {
        locked(&self.0.latencies).take()
    }
}

fn locked<T>(cell: &Mutex<T>) -> MutexGuard<'_, T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Snapshot};

    fn done(events: u64, committed_at_ms: Vec<i64>) -> Done {
        let origin = Origin::of_test("table");
        Done {
            transactions: committed_at_ms.len() as u64,
            events,
            took: Duration::from_millis(3),
            passed: Passed {
                bytes: 10 * events,
                committed_at_ms,
            },
            after: Position::at(origin, Snapshot::empty()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn latency_is_told_by_the_databases_clock_and_not_before_that_is_known() {
        let metrics = Metrics::default();
        metrics.published(done(2, vec![1_000, 2_000]));
        assert_eq!(metrics.take_latencies(), None);
        metrics.set_clock(Instant::now(), 5_000);
        tokio::time::advance(Duration::from_millis(500)).await;
        // The last one by a clock that goes before.
        metrics.published(done(3, vec![4_500, 5_250, 9_999]));
        let quantiles = metrics.take_latencies().unwrap();
        assert_eq!((quantiles.p50_ms, quantiles.count), (250, 3));
        assert_eq!(metrics.take_latencies(), None, "they are taken once");
        assert_eq!(metrics.totals(), [5, 5, 50]);
        assert_eq!(metrics.turn().published_until_ms, Some(9_999));
    }

    #[tokio::test(start_paused = true)]
    async fn a_position_without_events_counts_as_no_batch() {
        let metrics = Metrics::default();
        metrics.published(done(0, Vec::new()));
        assert_eq!(metrics.totals(), [0, 0, 0]);
        assert!(metrics.turn().position.is_some());
    }
}
