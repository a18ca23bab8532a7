//! The position topic: made, checked and read. Its records are [`PositionRecord`]s.
//!
//! Everything here blocks; it runs in the producer's thread.

use std::ops::Range;
use std::time::Duration;

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::fault::{Fault, Server};
use crate::sink::kafka::KafkaSettings;
use crate::sink::kafka::classify::{At, fault_of, of_code};
use crate::sink::kafka::producer::creation_fault;
use crate::sink::kafka::record::PositionRecord;
use crate::sink::kafka::topic::{Admin, LOOK_EVERY, Quiet, pause};

/// Brokers that hold a copy, where there are as many.
const REPLICATION_FACTOR_MAX: usize = 3;
/// How far from the end the last record is looked for at first: some records, each with its commit marker, and what
/// aborted transactions left.
const TAIL_RECORDS: i64 = 100;

/// Name of the position topic of a relay.
#[must_use]
pub fn topic_of(name: &str) -> String {
    format!("outbox-relay.position.{name}")
}

/// A consumer of one relay's position topic.
pub(super) fn consumer(
    settings: &KafkaSettings,
    isolation: &str,
) -> Result<BaseConsumer<Quiet>, Fault> {
    let mut config = settings.client_config();
    config
        // Only because the client wants one to assign partitions; nothing is ever committed to it.
        .set("group.id", format!("outbox-relay.{}", settings.name))
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        // The end of the topic is told only after this time.
        .set("fetch.wait.max.ms", "5");
    BaseConsumer::from_config_and_context(&config, Quiet)
        .map_err(|error| creation_fault(settings, error))
}

/// The clients that find and read the last position. They connect from the moment on in which they are made.
pub(super) struct Readers {
    /// One that has once asked for a missing topic takes it for missing a while longer, so this one does nothing else.
    asker: BaseConsumer<Quiet>,
    committed: BaseConsumer<Quiet>,
    uncommitted: BaseConsumer<Quiet>,
}

impl Readers {
    pub fn new(settings: &KafkaSettings) -> Result<Self, Fault> {
        Ok(Self {
            asker: consumer(settings, "read_committed")?,
            committed: consumer(settings, "read_committed")?,
            uncommitted: consumer(settings, "read_uncommitted")?,
        })
    }
}

/// What the brokers say about the topic; nothing in it where it is absent.
fn metadata_of(
    topic: &str,
    consumer: &BaseConsumer<Quiet>,
    timeout: Duration,
) -> Result<Metadata, Fault> {
    let at = At::PositionTopic(topic);
    let metadata = consumer
        .fetch_metadata(Some(topic), timeout)
        .map_err(|error| fault_of(&error, at, None))?;
    let error = metadata.topics().first().and_then(MetadataTopic::error);
    match error.map(RDKafkaErrorCode::from) {
        None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Ok(metadata)
        }
        Some(code) => Err(of_code(code, at, code.to_string())),
    }
}

fn found(metadata: &Metadata) -> Option<&MetadataTopic> {
    let first = metadata.topics().first();
    first.filter(|topic| topic.error().is_none())
}

/// A position topic that was there.
pub(super) struct Found {
    partitions: usize,
    replicas: usize,
}

/// What is known of the position topic; `None`: it was absent, and is made.
pub(super) fn find_or_create(
    topic: &str,
    readers: &Readers,
    admin: &Admin<'_>,
) -> Result<Option<Found>, Fault> {
    let metadata = metadata_of(topic, &readers.asker, admin.timeout)?;
    let Some(found) = found(&metadata) else {
        create(topic, metadata.brokers().len(), admin)?;
        return Ok(None);
    };
    let partitions = found.partitions();
    let replicas = partitions.iter().map(|it| it.replicas().len()).min();
    Ok(Some(Found {
        partitions: partitions.len(),
        replicas: replicas.unwrap_or(0),
    }))
}

impl Found {
    /// Refuses a topic in which a record can be lost.
    pub fn check(&self, topic: &str, admin: &Admin<'_>) -> Result<(), Fault> {
        let [policy, in_sync] = admin.settings(topic, ["cleanup.policy", "min.insync.replicas"])?;
        check(
            topic,
            self.partitions,
            self.replicas,
            policy.as_deref(),
            in_sync.as_deref(),
        )
    }
}

fn create(topic: &str, brokers: usize, admin: &Admin<'_>) -> Result<(), Fault> {
    let replicas = brokers.clamp(1, REPLICATION_FACTOR_MAX);
    let factor = i32::try_from(replicas).unwrap_or(1);
    let mut wanted = NewTopic::new(topic, 1, TopicReplication::Fixed(factor))
        .set("cleanup.policy", "compact")
        // Only closed segments are compacted: short ones keep the topic short.
        .set("segment.ms", "600000")
        .set("segment.bytes", "8388608")
        .set("min.cleanable.dirty.ratio", "0.1")
        // The records say which Kafka transaction brought which offsets; a check that comes within the hour finds them.
        .set("min.compaction.lag.ms", "3600000");
    if replicas == REPLICATION_FACTOR_MAX {
        wanted = wanted.set("min.insync.replicas", "2");
    }
    tracing::info!(topic, replicas, "creating the position topic");
    admin.create(&wanted, At::PositionTopic(topic))
}

/// The rules, each with its reason.
///
/// # Errors
/// [`Fault::Refused`] with the rule that does not hold.
pub fn check(
    topic: &str,
    partitions: usize,
    replicas: usize,
    policy: Option<&str>,
    in_sync: Option<&str>,
) -> Result<(), Fault> {
    let refuse = |wrong: String| Err(Fault::Refused(format!("position topic {topic}: {wrong}")));
    if partitions != 1 {
        // "The last record" means nothing over several partitions.
        return refuse(format!(
            "it has {partitions} partitions; it must have exactly 1"
        ));
    }
    if policy != Some("compact") {
        // `delete` would forget the position of a relay that is idle for longer than the retention.
        let policy = policy.unwrap_or("unknown");
        return refuse(format!(
            "cleanup.policy is {policy}; it must be exactly compact"
        ));
    }
    let enough = in_sync
        .and_then(|text| text.parse::<u32>().ok())
        .is_some_and(|count| count >= 2);
    if replicas >= REPLICATION_FACTOR_MAX && !enough {
        // With 1 a record that one broker holds counts as written, and goes with that broker.
        let in_sync = in_sync.unwrap_or("unknown");
        return refuse(format!(
            "min.insync.replicas is {in_sync} with {replicas} replicas; it must be at least 2"
        ));
    }
    Ok(())
}

/// Reads the last committed position record.
///
/// First the end of the log, seen with the eyes of read_uncommitted; then, once read_committed sees as far, the last
/// record below it. Anything that does not come in time is an error: "empty" would make the relay start over.
pub(super) fn read(
    topic: &str,
    Readers {
        committed,
        uncommitted,
        ..
    }: &Readers,
    key: &str,
    timeout: Duration,
) -> Result<Option<PositionRecord>, Fault> {
    let until = Instant::now() + timeout;
    let (low, high) = ends(topic, uncommitted, until)?;
    while ends(topic, committed, until)?.1 < high {
        if Instant::now() >= until {
            return Err(late(
                topic,
                "an open transaction in it does not end; if that lasts longer than transaction-timeout-ms, the broker left it \
                 hanging: see the README, \"A transaction that hangs\"",
            ));
        }
        pause(LOOK_EVERY);
    }
    last(topic, committed, key, low..high, until)
}

/// First and next offset. A topic that was made a moment ago may have no leader yet.
fn ends(topic: &str, consumer: &BaseConsumer<Quiet>, until: Instant) -> Result<(i64, i64), Fault> {
    use RDKafkaErrorCode::{LeaderNotAvailable, NotLeaderForPartition};
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match consumer.fetch_watermarks(topic, 0, left.max(LOOK_EVERY)) {
            Ok(ends) => return Ok(ends),
            Err(error)
                if Instant::now() < until
                    && matches!(
                        error.rdkafka_error_code(),
                        Some(LeaderNotAvailable | NotLeaderForPartition)
                    ) =>
            {
                pause(LOOK_EVERY);
            }
            Err(error) => return Err(fault_of(&error, At::PositionTopic(topic), None)),
        }
    }
}

/// The last committed position record of a relay that may be running: nobody is fenced, nothing is made, and what an open
/// transaction holds is not seen. `None` also where there is no topic.
pub(super) fn peek(settings: &KafkaSettings) -> Result<Option<PositionRecord>, Fault> {
    let (topic, time) = (topic_of(&settings.name), settings.request_time() * 2);
    let until = Instant::now() + time;
    let consumer = consumer(settings, "read_committed")?;
    if found(&metadata_of(&topic, &consumer, time)?).is_none() {
        return Ok(None);
    }
    let (low, high) = ends(&topic, &consumer, until)?;
    last(&topic, &consumer, &settings.name, low..high, until)
}

/// The last record in these offsets; looks at ever more of them from the end.
fn last(
    topic: &str,
    committed: &BaseConsumer<Quiet>,
    key: &str,
    offsets: Range<i64>,
    until: Instant,
) -> Result<Option<PositionRecord>, Fault> {
    let (low, high) = (offsets.start, offsets.end);
    let mut tail = TAIL_RECORDS;
    loop {
        let start = high.saturating_sub(tail).max(low);
        if start == high {
            return Ok(None);
        }
        let found = scan(topic, committed, start, key, until)?;
        if found.is_some() || start == low {
            return found
                .map(|value| PositionRecord::decode(&value))
                .transpose();
        }
        tail = tail.saturating_mul(2);
    }
}

/// The value of the last record from `start` to the end.
fn scan(
    topic: &str,
    consumer: &BaseConsumer<Quiet>,
    start: i64,
    key: &str,
    until: Instant,
) -> Result<Option<Vec<u8>>, Fault> {
    let fault = |error: KafkaError| fault_of(&error, At::PositionTopic(topic), None);
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(topic, 0, Offset::Offset(start))
        .map_err(fault)?;
    consumer.assign(&assignment).map_err(fault)?;
    let mut last = None;
    loop {
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(late(topic, "reading it takes too long"));
        }
        match consumer.poll(rest) {
            Some(Ok(message)) if message.key() == Some(key.as_bytes()) => {
                last = Some(message.payload().unwrap_or_default().to_vec());
            }
            // The consumer takes part in no group; what a broker says about groups does not matter here.
            Some(
                Ok(_)
                | Err(KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed)),
            )
            | None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            // A broker of several may be away; the client goes on by itself, within our time.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
            ))) => {}
            Some(Err(error)) => return Err(fault(error)),
        }
    }
}

fn late(topic: &str, why: &str) -> Fault {
    Fault::Unavailable(Server::Kafka, format!("position topic {topic}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_may_lose_the_position_is_refused_with_what_would_be_right() {
        let ok = |partitions, replicas, policy, in_sync| {
            check("p", partitions, replicas, policy, in_sync)
        };
        assert!(ok(1, 1, Some("compact"), Some("1")).is_ok());
        assert!(ok(1, 2, Some("compact"), Some("1")).is_ok());
        assert!(ok(1, 3, Some("compact"), Some("2")).is_ok());
        for (result, remedy) in [
            (ok(2, 1, Some("compact"), Some("1")), "exactly 1"),
            (
                ok(1, 1, Some("compact,delete"), Some("1")),
                "exactly compact",
            ),
            (ok(1, 1, None, Some("1")), "exactly compact"),
            (ok(1, 3, Some("compact"), Some("1")), "at least 2"),
            (ok(1, 5, Some("compact"), None), "at least 2"),
        ] {
            let fault = result.unwrap_err();
            assert!(
                matches!(&fault, Fault::Refused(text) if text.contains(remedy)),
                "{fault}"
            );
        }
    }
}
