//! `/status`: what the page shows, as JSON. Pure.

use serde::Serialize;
use tokio::time::Instant;

use super::board::{About, Seen};
use super::health::{Health, Reach};
use super::history::History;
use crate::metrics::{Quantiles, State, Turn};
use crate::sampler::{Lag, Parked, SlotState, Writer};

/// A relay, as it is now. Ages are in seconds; what is not known is null.
#[derive(Serialize)]
pub struct Status {
    name: String,
    instance: String,
    version: &'static str,
    capture: &'static str,
    table: String,
    sink: &'static str,
    /// `starting`, `standby`, `active`, `waiting_for_postgres` or `waiting_for_kafka`.
    state: &'static str,
    state_age_seconds: f64,
    turn_age_seconds: f64,
    live: bool,
    ready: bool,
    /// Why it is not live or not ready.
    why: Option<String>,
    /// Whether any relay of the name holds the lease, and which one published last.
    lease_held: Option<bool>,
    active_instance: Option<String>,
    position: Option<String>,
    acknowledged_age_seconds: Option<f64>,
    lag: Option<Lag>,
    wal_lag_bytes: Option<u64>,
    events_per_second: Option<f64>,
    latency: Option<Quantiles>,
    published: Totals,
    last_fault: Option<LastFault>,
    postgres: Reached,
    kafka: Reached,
    oldest_writer: Option<Writer>,
    slot: Option<SlotState>,
    parked: Option<Parked>,
    sample_age_seconds: Option<f64>,
    history: History,
}

/// What this process published.
#[derive(Serialize)]
struct Totals {
    transactions: u64,
    events: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct LastFault {
    text: String,
    age_seconds: f64,
}

#[derive(Serialize)]
struct Reached {
    answers: Option<bool>,
    why: Option<String>,
}

impl From<&Reach> for Reached {
    fn from(reach: &Reach) -> Self {
        Self {
            answers: reach.as_ref().map(Result::is_ok),
            why: reach.as_ref().and_then(|it| it.as_ref().err().cloned()),
        }
    }
}

/// Puts it together.
#[must_use]
pub fn status(
    about: &About,
    (health, turn): (Health, Turn),
    totals: [u64; 3],
    now_ms: Option<i64>,
    seen: Seen,
) -> Status {
    let age = |since: Instant| since.elapsed().as_secs_f64();
    let sample = seen.sample.as_ref().map(|(_, sample)| sample);
    let registration = sample.and_then(|it| it.registration.as_ref());
    let is_active = turn.state == State::Active;
    let stored = registration.map(|it| &it.position);
    let position = turn.position.as_ref().filter(|_| is_active).or(stored);
    let acknowledged = registration.map(|it| it.acknowledged_at_ms);
    let [transactions, events, bytes] = totals;
    Status {
        name: about.name.clone(),
        instance: about.instance.clone(),
        version: env!("CARGO_PKG_VERSION"),
        capture: about.capture,
        table: about.table.clone(),
        sink: about.sink,
        state: turn.state.name(),
        state_age_seconds: age(turn.since),
        turn_age_seconds: age(turn.at),
        live: health.live.is_ok(),
        ready: health.ready.is_ok(),
        why: health.live.and(health.ready).err(),
        lease_held: sample.map(|it| it.lease_held),
        active_instance: match is_active {
            true => Some(about.instance.clone()),
            false => registration.map(|it| it.instance.clone()),
        },
        position: position.map(ToString::to_string),
        acknowledged_age_seconds: now_ms
            .zip(acknowledged)
            .map(|(now, at)| (now - at).max(0) as f64 / 1000.0),
        lag: sample.and_then(|it| it.lag),
        wal_lag_bytes: sample.and_then(|it| it.wal_lag_bytes),
        events_per_second: seen.events_per_second,
        latency: seen.latency,
        published: Totals {
            transactions,
            events,
            bytes,
        },
        last_fault: turn.fault.map(|(at, text)| LastFault {
            text,
            age_seconds: age(at),
        }),
        postgres: (&seen.postgres).into(),
        kafka: (&seen.kafka).into(),
        oldest_writer: sample.and_then(|it| it.oldest_writer.clone()),
        slot: sample.and_then(|it| it.slot.clone()),
        parked: sample.and_then(|it| it.parked),
        sample_age_seconds: seen.sample.as_ref().map(|(at, _)| age(*at)),
        history: seen.history,
    }
}
