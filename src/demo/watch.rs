//! The `read_committed` consumer that counts while the story is played.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fault::Fault;
use crate::scan::{Brokers, POLL, QuietConsumer, away, partitions};

/// What the live consumer has seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    state: Mutex<SeenState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SeenState {
    events: u64,
    last: Option<Instant>,
}

impl Seen {
    fn one_more(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = SeenState {
            events: state.events + 1,
            last: Some(Instant::now()),
        };
    }

    /// Number of records, and when the last one came.
    #[must_use]
    pub fn so_far(&self) -> (u64, Option<Instant>) {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.events, state.last)
    }
}

/// Watches the topics in a thread of its own until `stop`; the topics need not be there yet.
pub fn watch(brokers: String, topics: Vec<String>, seen: Arc<Seen>, stop: CancellationToken) {
    tokio::task::spawn_blocking(move || {
        if let Err(fault) = count(&brokers, topics, &seen, &stop) {
            // Only the display depends on it; the scan at the end says what is there.
            tracing::warn!("the live view of the demo stopped: {fault}");
        }
    });
}

fn count(
    brokers: &str,
    mut awaited: Vec<String>,
    seen: &Seen,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let consumer = Brokers::from(brokers).consumer()?;
    let mut next_look = Instant::now();
    while !stop.is_cancelled() {
        if !awaited.is_empty() && Instant::now() >= next_look {
            next_look = Instant::now() + POLL;
            let mut missing = Vec::new();
            for topic in awaited {
                let found = partitions(&consumer, &topic)?;
                if found.is_empty() {
                    missing.push(topic);
                } else {
                    assign(&consumer, &topic, &found)?;
                }
            }
            awaited = missing;
        }
        if let Some(Ok(_)) = consumer.poll(POLL) {
            seen.one_more();
        }
    }
    Ok(())
}

fn assign(consumer: &QuietConsumer, topic: &str, partitions: &[i32]) -> Result<(), Fault> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning)
            .map_err(|error| away(&error))?;
    }
    consumer
        .incremental_assign(&list)
        .map_err(|error| away(&error))
}
