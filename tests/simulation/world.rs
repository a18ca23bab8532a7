//! What all parts of one run share: the seed's random numbers, the clock, the servers, the trace.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::kafka::Kafka;
use crate::postgres::Postgres;
use crate::scenario::Scenario;

/// A handle to the world of one run; clones are the same world.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    scenario: Scenario,
    started: Instant,
    random: Mutex<fastrand::Rng>,
    postgres: Mutex<Postgres>,
    kafka: Mutex<Kafka>,
    calm: Mutex<bool>,
    /// When the last frame arrives of those that were sent.
    last_arrival: Mutex<Instant>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    trace: Option<Mutex<Vec<String>>>,
}

/// Locks; one thread runs the world, so nobody waits and nothing is half done.
fn locked<T>(cell: &Mutex<T>) -> MutexGuard<'_, T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world before its first moment.
    pub fn new(scenario: Scenario, traced: bool) -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            random: Mutex::new(fastrand::Rng::with_seed(scenario.seed ^ 0x5eed)),
            postgres: Mutex::new(Postgres::new(&scenario)),
            kafka: Mutex::new(Kafka::new(&scenario)),
            calm: Mutex::new(false),
            last_arrival: Mutex::new(Instant::now()),
            counts: Mutex::default(),
            trace: traced.then(Mutex::default),
            scenario,
        }))
    }

    pub fn scenario(&self) -> &Scenario {
        &self.0.scenario
    }

    pub fn postgres(&self) -> MutexGuard<'_, Postgres> {
        locked(&self.0.postgres)
    }

    pub fn kafka(&self) -> MutexGuard<'_, Kafka> {
        locked(&self.0.kafka)
    }

    /// Virtual time since the run began.
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// True with this probability.
    pub fn chance(&self, probability: f64) -> bool {
        locked(&self.0.random).f64() < probability
    }

    pub fn number(&self, range: RangeInclusive<u64>) -> u64 {
        locked(&self.0.random).u64(range)
    }

    /// A time in milliseconds.
    pub fn time(&self, range_ms: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.number(range_ms))
    }

    pub fn shuffle<T>(&self, items: &mut [T]) {
        locked(&self.0.random).shuffle(items);
    }

    pub async fn pass(&self, range_ms: RangeInclusive<u64>) {
        sleep(self.time(range_ms)).await;
    }

    /// From here on no new fault begins.
    /// Whether a transaction can't be published at the moment.
    pub fn is_poisoned(&self, tx_id: &str) -> bool {
        let poisoned = self.scenario().poisoned;
        if poisoned == 0.0 || self.is_calm() {
            return false;
        }
        // The same for all who ask.
        let seed = tx_id.bytes().fold(self.scenario().seed, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let is_poisoned = fastrand::Rng::with_seed(seed).f64() < poisoned;
        if is_poisoned {
            self.count("Kafka: a transaction can't be published");
        }
        is_poisoned
    }

    pub fn calm_down(&self) {
        *locked(&self.0.calm) = true;
    }

    pub fn is_calm(&self) -> bool {
        *locked(&self.0.calm)
    }

    /// True with this probability as long as faults may happen.
    pub fn trouble(&self, probability: f64) -> bool {
        !self.is_calm() && self.chance(probability)
    }

    /// The time that a frame needs to arrive.
    pub async fn travel(&self, time: Duration) {
        let arrival = Instant::now() + time;
        {
            let mut last = locked(&self.0.last_arrival);
            *last = arrival.max(*last);
        }
        sleep_until(arrival).await;
    }

    /// Until the frames that are under way now have arrived, however late.
    pub async fn frames_arrive(&self) {
        let last = *locked(&self.0.last_arrival);
        sleep_until(last).await;
    }

    /// Counts something that happened, for the summary.
    pub fn count(&self, what: &'static str) {
        *locked(&self.0.counts).entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.0.counts).clone()
    }

    /// A line of the trace; built only where one is kept.
    pub fn tell<T: Display>(&self, line: impl FnOnce() -> T) {
        if let Some(trace) = &self.0.trace {
            let at = self.elapsed().as_millis();
            locked(trace).push(format!("{at:>6} ms  {}", line()));
        }
    }

    pub fn trace(&self) -> Vec<String> {
        self.0
            .trace
            .as_ref()
            .map(|lines| locked(lines).clone())
            .unwrap_or_default()
    }

    /// The partition of a key, as the producer's partitioner chooses it.
    pub fn partition_of(&self, topic: &str, key: &str) -> usize {
        let topic: usize = topic.trim_start_matches("topic-").parse().unwrap_or(0);
        let key: usize = key.parse().unwrap_or(0);
        let partitions = self.scenario().partitions as usize;
        1 + topic * partitions + key / (self.scenario().topics as usize) % partitions
    }

    /// Topic and number of a partition of events.
    pub fn partition_name(&self, partition: usize) -> (String, i32) {
        let partitions = self.scenario().partitions as usize;
        let (topic, number) = ((partition - 1) / partitions, (partition - 1) % partitions);
        (format!("topic-{topic}"), number as i32)
    }

    /// Starts a task that belongs to the world, not to a process: nothing that happens to a relay stops it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }
}
