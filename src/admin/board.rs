//! What is known at the moment, and the two tasks that keep it fresh.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::health::{Health, Reach, health};
use super::history::{History, Point};
use super::{PAUSE_MAX, PROBE_EVERY, SAMPLE_EVERY};
use crate::fault::Fault;
use crate::metrics::{Metrics, Quantiles, State, Turn};
use crate::sampler::{Lag, Rate, Sample, Sampler};
use crate::sink::kafka::probe::Probe;

/// Which relay this is.
#[derive(Clone, Debug)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its process.
    pub instance: String,
    /// How it finds what was committed.
    pub capture: &'static str,
    /// The outbox table.
    pub table: String,
    /// Where events go.
    pub sink: &'static str,
    /// After so long without a step of the loop it is stalled.
    pub stalled: Duration,
}

/// What is known, for all who ask.
pub struct Board {
    /// Which relay this is.
    pub about: About,
    /// What its loop tells.
    pub metrics: Metrics,
    seen: Mutex<Seen>,
}

/// What was seen of the servers.
#[derive(Clone, Default)]
pub struct Seen {
    /// The last sample, and when it was taken.
    pub sample: Option<(Instant, Sample)>,
    /// Whether PostgreSQL answers.
    pub postgres: Reach,
    /// Whether Kafka does.
    pub kafka: Reach,
    /// Events a second.
    pub events_per_second: Option<f64>,
    /// Latencies of the last second in which something was published.
    pub latency: Option<Quantiles>,
    /// The last minutes.
    pub history: History,
    /// When its last point was added.
    looked: Option<Instant>,
}

impl Board {
    /// Nothing is known yet. A sink without brokers has none to ask for.
    pub fn new(about: About, metrics: Metrics, has_kafka: bool) -> Self {
        let seen = Seen {
            kafka: (!has_kafka).then_some(Ok(())),
            ..Seen::default()
        };
        Self {
            about,
            metrics,
            seen: Mutex::new(seen),
        }
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// What probes are told, and what that follows from.
    pub fn health(&self) -> (Health, Turn) {
        let turn = self.metrics.turn();
        let seen = self.lock();
        let (silent, stalled) = (turn.at.elapsed(), self.about.stalled);
        let health = health(&turn, silent, stalled, &seen.postgres, &seen.kafka);
        (health, turn)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at PostgreSQL for ever.
    pub async fn sample(&self, mut sampler: Sampler) {
        let (mut rate, mut published) = (Rate::default(), (Instant::now(), 0));
        loop {
            let turn = self.metrics.turn();
            let is_active = turn.state == State::Active;
            let began = Instant::now();
            let ahead = turn.position.as_ref().filter(|_| is_active);
            let sample = sampler.sample(ahead).await;
            let pause = pause(began.elapsed(), sample.is_ok());
            if let Ok(sample) = &sample {
                self.metrics.set_clock(sample.at, sample.now_ms);
            }
            let [_, events, _] = self.metrics.totals();
            let own = (events - published.1) as f64 / published.0.elapsed().as_secs_f64();
            published = (Instant::now(), events);
            let registration = sample.as_ref().ok().and_then(|it| it.registration.as_ref());
            let now_ms = sample.as_ref().map_or(0, |it| it.now_ms);
            let outside = rate.of(registration, now_ms);
            let events_per_second = if is_active { Some(own) } else { outside };
            self.saw(sample, &turn, events_per_second);
            sleep(pause).await;
        }
    }

    fn saw(&self, sample: Result<Sample, Fault>, turn: &Turn, events_per_second: Option<f64>) {
        let latency = self.metrics.take_latencies();
        let now_ms = self.metrics.now_ms();
        let mut seen = self.lock();
        seen.events_per_second = events_per_second;
        let mut point = Point {
            events_per_second,
            latency_p50_ms: latency.map(|it| it.p50_ms),
            latency_p99_ms: latency.map(|it| it.p99_ms),
            ..Point::default()
        };
        seen.latency = latency.or(seen.latency);
        match sample {
            Ok(mut sample) => {
                sample.lag = sample.lag.map(|lag| at_least_as_old(lag, turn, now_ms));
                point.lag_events = sample.lag.map(|lag| lag.events);
                point.lag_seconds = sample.lag.and_then(|lag| lag.seconds);
                point.parked_transactions = sample.parked.map(|parked| parked.transactions);
                seen.postgres = Some(Ok(()));
                seen.sample = Some((Instant::now(), sample));
            }
            Err(fault @ Fault::Unavailable(..)) => seen.postgres = Some(Err(fault.to_string())),
            Err(fault) => {
                seen.postgres = Some(Ok(()));
                tracing::debug!("the sampler can't tell: {fault}");
            }
        }
        let now = Instant::now();
        let since = seen.looked.replace(now);
        let since = since.map_or(Duration::ZERO, |since| now - since);
        seen.history.add(since, point);
    }

    /// Asks Kafka for ever.
    pub async fn probe(&self, probe: Probe) {
        loop {
            let answer = probe.ask().await.map_err(|fault| fault.to_string());
            self.lock().kafka = Some(answer);
            sleep(PROBE_EVERY).await;
        }
    }
}

/// So that looking takes a twentieth of the time at most, whatever a look costs, but a server that is back is seen soon.
fn pause(took: Duration, answered: bool) -> Duration {
    match answered {
        true => (took * 19).clamp(SAMPLE_EVERY.saturating_sub(took), PAUSE_MAX),
        false => SAMPLE_EVERY,
    }
}

/// A count that ended at its limit saw the newest rows only. What was published last is older than all that is left, so the
/// oldest of these is about as old.
fn at_least_as_old(lag: Lag, turn: &Turn, now_ms: Option<i64>) -> Lag {
    let until = turn.published_until_ms.filter(|_| lag.at_least);
    let Some((until, now)) = until.zip(now_ms) else {
        return lag;
    };
    let age = now.saturating_sub(until).max(0) as f64 / 1000.0;
    Lag {
        seconds: lag.seconds.map(|seconds| seconds.max(age)),
        ..lag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_take_long_are_taken_less_often() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(2), true), ms(998));
        assert_eq!(pause(ms(100), true), ms(1_900));
        assert_eq!(pause(ms(5_000), true), PAUSE_MAX);
        assert_eq!(pause(ms(6_000), false), SAMPLE_EVERY);
    }
}
