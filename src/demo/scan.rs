//! The `read_committed` consumers: one that watches while the story is played, one that judges at the end.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fault::{Fault, Server};
use crate::ledger::{Check, Ledger, PositionRecord, PublishedRange, Report, SeenRecord};

/// How long a broker may take for an answer about topics.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for one record, so that a thread notices soon that it is to stop.
const POLL: Duration = Duration::from_millis(200);
/// How long a scan goes on without a new record before it gives up on the broker.
const SILENCE_MAX: Duration = Duration::from_secs(60);

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

fn away(error: &KafkaError) -> Fault {
    Fault::Unavailable(Server::Kafka, error.to_string())
}

/// librdkafka reports the end of a partition, and a broker that is away for a moment, as errors. Neither is one here, and
/// they would fall between the lines of the progress.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!("librdkafka: {facility} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

type QuietConsumer = BaseConsumer<Quiet>;

fn consumer(brokers: &str) -> Result<QuietConsumer, Fault> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        // Needed to make a consumer; without subscription and commits no group comes of it.
        .set("group.id", "outbox-relay-demo")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set_log_level(RDKafkaLogLevel::Critical)
        .create_with_context(Quiet)
        .map_err(|error| away(&error))
}

/// All partitions of a topic from the beginning; empty if there is no such topic yet.
fn partitions(consumer: &QuietConsumer, topic: &str) -> Result<TopicPartitionList, Fault> {
    let metadata = consumer
        .fetch_metadata(Some(topic), METADATA_TIMEOUT)
        .map_err(|error| away(&error))?;
    let mut list = TopicPartitionList::new();
    for found in metadata
        .topics()
        .iter()
        .filter(|found| found.name() == topic)
    {
        for partition in found.partitions() {
            list.add_partition_offset(topic, partition.id(), Offset::Beginning)
                .map_err(|error| away(&error))?;
        }
    }
    Ok(list)
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
    let consumer = consumer(brokers)?;
    let mut next_look = Instant::now();
    while !stop.is_cancelled() {
        if !awaited.is_empty() && Instant::now() >= next_look {
            next_look = Instant::now() + POLL;
            let mut missing = Vec::new();
            for topic in awaited {
                let found = partitions(&consumer, &topic)?;
                if found.count() == 0 {
                    missing.push(topic);
                } else {
                    consumer
                        .incremental_assign(&found)
                        .map_err(|error| away(&error))?;
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

/// Reads the topics and the relay's position topic from the beginning and compares them with the ledger. Blocks.
///
/// # Errors
/// When the broker does not answer.
pub fn judge(
    brokers: &str,
    topics: &[String],
    position_topic: &str,
    ledger: &Ledger,
) -> Result<Report, Fault> {
    let mut check = ledger.check();
    read(brokers, position_topic, |message| {
        check.position(&position(message)?);
        Ok(())
    })?;
    for topic in topics {
        read(brokers, topic, |message| {
            feed(&mut check, message);
            Ok(())
        })?;
    }
    Ok(check.finish())
}

/// Feeds all records of a topic that a `read_committed` consumer sees. One topic at a time, because librdkafka's word
/// that a partition has ended does not name the topic.
pub fn read(
    brokers: &str,
    topic: &str,
    mut feed: impl FnMut(&BorrowedMessage<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let consumer = consumer(brokers)?;
    let all = partitions(&consumer, topic)?;
    let mut open: HashSet<i32> = all.elements().iter().map(|each| each.partition()).collect();
    consumer.assign(&all).map_err(|error| away(&error))?;
    let mut last = Instant::now();
    while !open.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                feed(&message)?;
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => tracing::debug!("while reading {topic}: {error}"),
            None => {}
        }
        if last.elapsed() > SILENCE_MAX {
            let why = format!("topic {topic} could not be read to its end");
            return Err(Fault::Unavailable(Server::Kafka, why));
        }
    }
    Ok(())
}

/// A record whose id or key is missing can't have been committed: it is fed as it is, and found to be a phantom.
fn feed(check: &mut Check<'_>, message: &BorrowedMessage<'_>) {
    let header = |name| header(message, name);
    let number = |name| {
        header(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(u32::MAX)
    };
    check.record(SeenRecord {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        id: header("id")
            .and_then(|text| Uuid::parse_str(text).ok())
            .unwrap_or_default(),
        key: message
            .key()
            .and_then(|key| str::from_utf8(key).ok())
            .unwrap_or_default(),
        tx_id: header("tx-id").unwrap_or_default(),
        tx_index: number("tx-index"),
        tx_count: number("tx-count"),
    });
}

fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let headers = message.headers()?;
    let value = headers.iter().find(|header| header.key == name)?.value?;
    str::from_utf8(value).ok()
}

/// The part of the relay's position record that says which records it published.
#[derive(Deserialize)]
struct Published {
    kafka_transaction: u64,
    partitions: BTreeMap<String, BTreeMap<i32, (i64, i64, u64)>>,
}

fn position(message: &BorrowedMessage<'_>) -> Result<PositionRecord, Fault> {
    published(message.offset(), message.payload().unwrap_or_default())
}

fn published(offset: i64, value: &[u8]) -> Result<PositionRecord, Fault> {
    let record: Published = serde_json::from_slice(value).map_err(|error| {
        Fault::Defect(format!(
            "the position record at offset {offset} can't be read: {error}"
        ))
    })?;
    let ranges =
        record
            .partitions
            .into_iter()
            .flat_map(|(topic, partitions)| {
                partitions.into_iter().map(
                    move |(partition, (first_offset, last_offset, count))| PublishedRange {
                        topic: topic.clone(),
                        partition,
                        first_offset,
                        last_offset,
                        count,
                    },
                )
            });
    let partitions = ranges.collect();
    Ok(PositionRecord {
        offset,
        kafka_transaction: record.kafka_transaction,
        partitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_record_is_read_as_the_relay_writes_it() {
        let value = br#"{"format":1,"position":{"seen":"1:1:"},"kafka_transaction":9,"instance":"a","records":3,
            "partitions":{"t":{"0":[5,7,2],"2":[1,1,1]}}}"#;
        let record = published(4, value).unwrap();
        assert_eq!((record.offset, record.kafka_transaction), (4, 9));
        let range = |partition, first_offset, last_offset, count| PublishedRange {
            topic: "t".into(),
            partition,
            first_offset,
            last_offset,
            count,
        };
        assert_eq!(record.partitions, [range(0, 5, 7, 2), range(2, 1, 1, 1)]);
    }

    #[test]
    fn an_unreadable_position_record_is_an_error() {
        assert!(published(4, b"").is_err());
        assert!(published(4, br#"{"kafka_transaction":9}"#).is_err());
    }
}
