//! Reads topics as a `read_committed` consumer sees them, from the beginning to where they end when the reading begins,
//! and feeds a [`Check`](crate::ledger::Check). Everything here blocks.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;
use uuid::Uuid;

use crate::fault::{Fault, Server};
use crate::ledger::{Ledger, PositionRecord, PublishedRange, Report, SeenRecord};
use crate::sink::kafka::KafkaSettings;
use crate::sink::kafka::record;

/// How long a broker may take for an answer about topics.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for one record, so that a thread notices soon that it is to stop.
pub(crate) const POLL: Duration = Duration::from_millis(200);
/// How long a scan goes on without a new record before it gives up on the broker.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at whether a transaction has ended.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How to reach the brokers.
#[derive(Clone)]
pub struct Brokers(ClientConfig);

impl From<&str> for Brokers {
    fn from(addresses: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", addresses);
        Self(config)
    }
}

impl From<&String> for Brokers {
    fn from(addresses: &String) -> Self {
        Self::from(addresses.as_str())
    }
}

impl From<&KafkaSettings> for Brokers {
    fn from(settings: &KafkaSettings) -> Self {
        Self(settings.client_config())
    }
}

impl Brokers {
    pub(crate) fn consumer(&self) -> Result<QuietConsumer, Fault> {
        self.isolated("read_committed")
    }

    /// One of a group, `read_committed`. It commits what it is told to store.
    pub(crate) fn in_group(&self, group: &str) -> Result<QuietConsumer, Fault> {
        let mut config = self.0.clone();
        config
            .set("group.id", group)
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set_log_level(RDKafkaLogLevel::Critical);
        QuietConsumer::from_config_and_context(&config, Quiet).map_err(|error| away(&error))
    }

    fn isolated(&self, level: &str) -> Result<QuietConsumer, Fault> {
        let mut config = self.0.clone();
        config
            // Needed to make a consumer; without subscription and commits no group comes of it.
            .set("group.id", "outbox-relay-scan")
            .set("enable.auto.commit", "false")
            .set("isolation.level", level)
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set_log_level(RDKafkaLogLevel::Critical);
        QuietConsumer::from_config_and_context(&config, Quiet).map_err(|error| away(&error))
    }
}

pub(crate) fn away(error: &KafkaError) -> Fault {
    match error {
        // Never its text: it quotes the value, which may be a password.
        KafkaError::ClientConfig(_, _, key, _) => Fault::Setting(format!(
            "Kafka property {key}: unknown to librdkafka, or its value is not valid"
        )),
        error => Fault::Unavailable(Server::Kafka, error.to_string()),
    }
}

/// librdkafka reports the end of a partition, and a broker that is away for a moment, as errors. Neither is one here, and
/// they would fall between the lines of the progress.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!("librdkafka: {facility} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

pub(crate) type QuietConsumer = BaseConsumer<Quiet>;

/// The partitions of a topic; none if there is no such topic.
pub(crate) fn partitions(consumer: &QuietConsumer, topic: &str) -> Result<Vec<i32>, Fault> {
    let metadata = consumer
        .fetch_metadata(Some(topic), METADATA_TIMEOUT)
        .map_err(|error| away(&error))?;
    let found = metadata
        .topics()
        .iter()
        .filter(|found| found.name() == topic);
    Ok(found
        .flat_map(|found| found.partitions().iter().map(|partition| partition.id()))
        .collect())
}

/// What there is to read of a partition: offsets from `first` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The log start offset.
    pub first: i64,
    /// The last stable offset: all transactions below it have ended.
    pub end: i64,
}

/// The partitions of a topic with what there is to read of them at one moment.
pub type Extents = BTreeMap<i32, Extent>;

/// Number of offsets in them. A transaction marker has one too, so there are somewhat fewer records.
#[must_use]
pub fn offsets_of(extents: &Extents) -> u64 {
    extents
        .values()
        .map(|extent| extent.end.abs_diff(extent.first.min(extent.end)))
        .sum()
}

/// A consumer that reads one topic after the other.
pub struct Scan {
    consumer: QuietConsumer,
    /// Sees records of open transactions; asked for offsets only.
    uncommitted: QuietConsumer,
}

impl Scan {
    /// Connects at the first question.
    ///
    /// # Errors
    /// [`Fault::Setting`] if a property of the client is not valid.
    pub fn of(brokers: impl Into<Brokers>) -> Result<Self, Fault> {
        let brokers = brokers.into();
        Ok(Self {
            consumer: brokers.consumer()?,
            uncommitted: brokers.isolated("read_uncommitted")?,
        })
    }

    /// Whether there are records at or behind `end` in a transaction that has not ended.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn goes_on(&self, topic: &str, partition: i32, end: i64) -> Result<bool, Fault> {
        Ok(end < self.high_watermark(topic, partition)?)
    }

    fn high_watermark(&self, topic: &str, partition: i32) -> Result<i64, Fault> {
        let (_, high) = self
            .uncommitted
            .fetch_watermarks(topic, partition, METADATA_TIMEOUT)
            .map_err(|error| away(&error))?;
        Ok(high)
    }

    /// Where the topic begins and ends now; empty if there is no such topic.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn extents(&self, topic: &str) -> Result<Extents, Fault> {
        let mut extents = Extents::new();
        for partition in partitions(&self.consumer, topic)? {
            let (first, end) = self
                .consumer
                .fetch_watermarks(topic, partition, METADATA_TIMEOUT)
                .map_err(|error| away(&error))?;
            extents.insert(partition, Extent { first, end });
        }
        Ok(extents)
    }

    /// The same, once all that was written before the call has been decided. A commit is acknowledged when it is decided;
    /// its markers follow, partition by partition (KIP-98), and until then a `read_committed` consumer does not see it.
    ///
    /// # Errors
    /// When the broker does not answer, or a transaction stays open.
    pub fn decided_extents(&self, topic: &str) -> Result<Extents, Fault> {
        let until = Instant::now() + SILENCE_MAX;
        let mut written = self.extents(topic)?;
        for (partition, extent) in &mut written {
            extent.end = self.high_watermark(topic, *partition)?;
        }
        loop {
            let extents = self.extents(topic)?;
            let open = |(partition, extent): (&i32, &Extent)| {
                let end = extents.get(partition).map(|now| now.end);
                end.is_some_and(|end| end < extent.end)
            };
            if !written.iter().any(open) {
                return Ok(extents);
            }
            if Instant::now() > until {
                let why = format!("a transaction stays open in topic {topic}");
                return Err(Fault::Unavailable(Server::Kafka, why));
            }
            pause(LOOK_EVERY);
        }
    }

    /// Feeds the visible records inside the extents, and says by how many offsets it came further. Records that
    /// retention deletes meanwhile are not fed. One topic at a time, because librdkafka's word that a partition has ended
    /// does not name the topic.
    ///
    /// # Errors
    /// When the broker does not answer, and what `feed` answers.
    pub fn read(
        &self,
        topic: &str,
        extents: &Extents,
        mut further: impl FnMut(u64),
        mut feed: impl FnMut(&BorrowedMessage<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut open = extents.clone();
        open.retain(|_, extent| extent.first < extent.end);
        self.assign(topic, &open)?;
        let mut last = Instant::now();
        while !open.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    let partition = message.partition();
                    let Some(rest) = open.get_mut(&partition) else {
                        continue;
                    };
                    // The end itself may be the offset of a marker, or of a record that was aborted: those never come.
                    // A record behind it says as well that the partition is done.
                    let next = (message.offset() + 1).min(rest.end);
                    further(next.abs_diff(rest.first));
                    rest.first = next;
                    let done = rest.first == rest.end;
                    if message.offset() < rest.end {
                        feed(&message)?;
                    }
                    if done {
                        self.close(topic, &mut open, partition, &mut further)?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.close(topic, &mut open, partition, &mut further)?;
                }
                Some(Err(KafkaError::MessageConsumption(
                    code @ (RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition),
                ))) => {
                    return Err(Fault::Refused(format!(
                        "topic {topic} can't be read: {code}"
                    )));
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

    fn assign(&self, topic: &str, open: &Extents) -> Result<(), Fault> {
        let mut list = TopicPartitionList::new();
        for (partition, extent) in open {
            list.add_partition_offset(topic, *partition, Offset::Offset(extent.first))
                .map_err(|error| away(&error))?;
        }
        self.consumer.assign(&list).map_err(|error| away(&error))
    }

    /// A partition is read to its end: what comes behind it is not fetched.
    fn close(
        &self,
        topic: &str,
        open: &mut Extents,
        partition: i32,
        further: &mut impl FnMut(u64),
    ) -> Result<(), Fault> {
        if let Some(rest) = open.remove(&partition) {
            further(rest.end.abs_diff(rest.first));
            let mut done = TopicPartitionList::new();
            done.add_partition(topic, partition);
            // Not paused: a pause would outlive the assignment, and the topic may be read again.
            self.consumer
                .incremental_unassign(&done)
                .map_err(|error| away(&error))?;
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a scan runs in a blocking thread"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Feeds all visible records of what was written to a topic before the call.
///
/// # Errors
/// When the broker does not answer, and what `feed` answers.
pub fn read(
    brokers: impl Into<Brokers>,
    topic: &str,
    feed: impl FnMut(&BorrowedMessage<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let scan = Scan::of(brokers)?;
    scan.read(topic, &scan.decided_extents(topic)?, |_| (), feed)
}

/// Reads the topics and the relay's position topic from the beginning and compares them with the ledger.
///
/// # Errors
/// When the broker does not answer, or a position record can't be read.
pub fn judge(
    brokers: impl Into<Brokers>,
    topics: &[String],
    position_topic: &str,
    ledger: &Ledger,
) -> Result<Report, Fault> {
    let scan = Scan::of(brokers)?;
    let mut check = ledger.check();
    scan.read(
        position_topic,
        &scan.decided_extents(position_topic)?,
        |_| (),
        |message| {
            check.position(&position(message)?);
            Ok(())
        },
    )?;
    for topic in topics {
        scan.read(
            topic,
            &scan.decided_extents(topic)?,
            |_| (),
            |message| {
                check.record(seen(message));
                Ok(())
            },
        )?;
    }
    Ok(check.finish())
}

/// A record whose id or key is missing can't have been committed: it is fed as it is, and found to be a phantom.
pub(crate) fn seen<'m>(message: &'m BorrowedMessage<'_>) -> SeenRecord<'m> {
    let header = |name| header(message, name);
    let number = |name| {
        header(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(u32::MAX)
    };
    SeenRecord {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        id: header(record::ID)
            .and_then(|text| Uuid::parse_str(text).ok())
            .unwrap_or_default(),
        key: message
            .key()
            .and_then(|key| str::from_utf8(key).ok())
            .unwrap_or_default(),
        tx_id: header(record::TX_ID).unwrap_or_default(),
        tx_index: number(record::TX_INDEX),
        tx_count: number(record::TX_COUNT),
    }
}

/// The first header of this name, if it is text.
pub(crate) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let headers = message.headers()?;
    let value = headers.iter().find(|header| header.key == name)?.value?;
    str::from_utf8(value).ok()
}

/// A record of the position topic.
pub(crate) fn position(message: &BorrowedMessage<'_>) -> Result<PositionRecord, Fault> {
    let record = record::PositionRecord::decode(message.payload().unwrap_or_default())?;
    Ok(published(message.offset(), record))
}

fn published(offset: i64, record: record::PositionRecord) -> PositionRecord {
    let ranges = record.partitions.into_iter().flat_map(|(topic, ranges)| {
        ranges
            .into_iter()
            .map(
                move |(partition, [first_offset, last_offset, count])| PublishedRange {
                    topic: topic.clone(),
                    partition,
                    first_offset,
                    last_offset,
                    count: count.unsigned_abs(),
                },
            )
    });
    PositionRecord {
        offset,
        kafka_transaction: record.kafka_transaction,
        instance: record.instance,
        position: record.position,
        partitions: ranges.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_record_is_taken_as_the_relay_writes_it() {
        let value = br#"{"format":1,"position":{"system_id":"7","timeline":1,"database_oid":5,
            "table":"outbox.events","capture":"table","seen":"1:1:"},"kafka_transaction":9,"instance":"a",
            "records":3,"partitions":{"t":{"0":[5,7,2],"2":[1,1,1]}}}"#;
        let record = published(4, record::PositionRecord::decode(value).unwrap());
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
    fn offsets_are_counted() {
        let extents = [
            (0, Extent { first: 5, end: 9 }),
            (1, Extent { first: 3, end: 3 }),
        ];
        assert_eq!(offsets_of(&extents.into()), 4);
    }
}
