//! The live consumer: `read_committed`, from the beginning, for the whole run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::brokers::PARTITIONS;
use crate::order::Order;
use crate::stage::epoch_ms;

const POLL: Duration = Duration::from_millis(100);

/// What it has seen so far.
#[derive(Debug)]
pub struct Watch {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    order: Order,
    events: u64,
    /// When the newest event was inserted.
    newest_ms: i64,
    last_at: Instant,
    longest_silence: Duration,
}

impl Watch {
    /// Starts it in a thread of its own; it ends by `stop`.
    pub fn start(brokers: &str, topics: &[String], stop: CancellationToken) -> Arc<Self> {
        let watch = Arc::new(Self {
            state: Mutex::new(State {
                order: Order::default(),
                events: 0,
                newest_ms: 0,
                last_at: Instant::now(),
                longest_silence: Duration::ZERO,
            }),
        });
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "outbox-relay-soak")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("reconnect.backoff.max.ms", "500")
            .set_log_level(RDKafkaLogLevel::Emerg)
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        for topic in topics {
            for partition in 0..PARTITIONS {
                list.add_partition_offset(topic, partition, Offset::Beginning)
                    .expect("an offset");
            }
        }
        consumer.assign(&list).expect("an assignment");
        let watching = Arc::clone(&watch);
        std::thread::spawn(move || {
            while !stop.is_cancelled() {
                // Errors are the faults of this run; the client gets over them.
                if let Some(Ok(message)) = consumer.poll(POLL) {
                    watching.take(&message);
                }
            }
        });
        watch
    }

    fn take(&self, message: &BorrowedMessage<'_>) {
        let key = String::from_utf8_lossy(message.key().unwrap_or_default());
        // One that has no version breaks the order.
        let version = version(message).unwrap_or(0);
        let mut state = self.lock();
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        if !state.order.take(topic, partition, offset, &key, version) {
            return;
        }
        let now = Instant::now();
        state.events += 1;
        state.newest_ms = state
            .newest_ms
            .max(message.timestamp().to_millis().unwrap_or(0));
        if state.events > 1 {
            state.longest_silence = state.longest_silence.max(now - state.last_at);
        }
        state.last_at = now;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of events.
    pub fn events(&self) -> u64 {
        self.lock().events
    }

    /// The longest time without an event between two of them.
    pub fn longest_silence(&self) -> Duration {
        self.lock().longest_silence
    }

    /// Breaks in the order of a key: how many, and the first ones.
    pub fn violations(&self) -> (u64, Vec<String>) {
        let state = self.lock();
        let (count, described) = state.order.violations();
        (count, described.to_vec())
    }

    /// Waits for the first event that is inserted from now on; answers how long that took, or nothing if it lasted
    /// longer than `limit`.
    pub async fn recovery(&self, limit: Duration) -> Option<Duration> {
        let (from, from_ms) = (Instant::now(), epoch_ms());
        while self.lock().newest_ms < from_ms {
            if from.elapsed() > limit {
                return None;
            }
            sleep(Duration::from_millis(5)).await;
        }
        Some(from.elapsed())
    }
}

/// The writers put it into the events' own headers.
fn version(message: &BorrowedMessage<'_>) -> Option<u64> {
    let headers = message.headers()?;
    let value = headers.iter().find(|each| each.key == "version")?.value?;
    str::from_utf8(value).ok()?.parse().ok()
}
