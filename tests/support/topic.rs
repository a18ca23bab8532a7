//! A topic written by hand, past the relay.

use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::BUSY;
use super::scan::Record;

const PATIENCE: Duration = Duration::from_secs(20 * BUSY);

/// Topics and records of one broker, made by hand.
pub struct Hand {
    config: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
}

impl Hand {
    pub fn at(brokers: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        let admin = config.create().expect("an admin client");
        Self { config, admin }
    }

    pub async fn create(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            wanted = wanted.set(key, value);
        }
        let made = self
            .admin
            .create_topics([&wanted], &AdminOptions::new())
            .await;
        made.expect("an answer").remove(0).expect("a topic");
    }

    /// Changes one setting of a topic, and keeps the others.
    pub async fn set(&self, topic: &str, key: &str, value: &str) {
        let resource = ResourceSpecifier::Topic(topic);
        let options = AdminOptions::new();
        let now = self.admin.describe_configs([&resource], &options).await;
        let now = now.expect("an answer").remove(0).expect("settings");
        let own = now
            .entries
            .iter()
            .filter(|it| it.source == ConfigSource::DynamicTopic);
        let own: Vec<_> = own
            .filter(|it| it.name != key)
            .map(|it| (it.name.as_str(), it.value.as_deref().unwrap_or_default()))
            .collect();
        let changed = own.iter().fold(
            AlterConfig::new(resource).set(key, value),
            |all, (key, value)| all.set(key, value),
        );
        let done = self.admin.alter_configs([&changed], &options).await;
        done.expect("an answer").remove(0).expect("altered");
    }

    /// Adds partitions up to this number.
    pub async fn widen(&self, topic: &str, partitions: usize) {
        let wanted = NewPartitions::new(topic, partitions);
        let made = self
            .admin
            .create_partitions([&wanted], &AdminOptions::new())
            .await;
        made.expect("an answer").remove(0).expect("partitions");
    }

    /// Deletes a topic, and waits until it is gone.
    pub async fn delete(&self, topic: &str) {
        let gone = self
            .admin
            .delete_topics(&[topic], &AdminOptions::new())
            .await;
        gone.expect("an answer").remove(0).expect("deleted");
        super::until("the topic is gone", 30, async || {
            let metadata = self.admin.inner().fetch_metadata(None, PATIENCE);
            metadata.is_ok_and(|all| all.topics().iter().all(|found| found.name() != topic))
        })
        .await;
    }

    /// Moves the log start offset, as retention does.
    pub async fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("an offset");
        let deleted = self
            .admin
            .delete_records(&offsets, &AdminOptions::new())
            .await;
        deleted.expect("records deleted");
    }

    /// Writes a record as it is, to its partition of `topic`.
    pub fn write(&self, topic: &str, records: &[Record]) {
        let producer = self.producer(None);
        send(&producer, topic, records);
        producer.flush(PATIENCE).expect("delivery");
    }

    /// A producer, transactional if it has a name.
    pub fn producer(&self, name: Option<&str>) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = self.config.clone();
        if let Some(name) = name {
            config.set("transactional.id", name);
        }
        let producer: ThreadedProducer<_> = config.create().expect("a producer");
        if name.is_some() {
            producer.init_transactions(PATIENCE).expect("transactions");
        }
        producer
    }

    /// Begins a transaction with one record in partition 0, and leaves it open.
    pub fn open_transaction(
        &self,
        producer: &ThreadedProducer<DefaultProducerContext>,
        topic: &str,
    ) {
        producer.begin_transaction().expect("a transaction");
        let record = BaseRecord::<str, str>::to(topic).partition(0).payload("");
        let queued = producer.send(record).map_err(|(error, _)| error);
        queued.expect("a place in the queue");
        producer.flush(PATIENCE).expect("delivery");
    }

    /// Writes the records in a transaction of their own, and commits or aborts it.
    pub fn transaction(
        &self,
        producer: &ThreadedProducer<DefaultProducerContext>,
        topic: &str,
        records: &[Record],
        commit: bool,
    ) {
        producer.begin_transaction().expect("a transaction");
        send(producer, topic, records);
        producer.flush(PATIENCE).expect("delivery");
        match commit {
            true => producer.commit_transaction(PATIENCE).expect("a commit"),
            false => producer.abort_transaction(PATIENCE).expect("an abort"),
        }
    }
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, records: &[Record]) {
    for record in records {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: value.as_deref(),
                })
            });
        let mut wanted = BaseRecord::<[u8], [u8]>::to(topic)
            .partition(record.partition)
            .headers(headers)
            .timestamp(record.timestamp_ms);
        if let Some(key) = &record.key {
            wanted = wanted.key(key);
        }
        if let Some(value) = &record.value {
            wanted = wanted.payload(value);
        }
        producer
            .send(wanted)
            .map_err(|(error, _)| error)
            .expect("a place in the queue");
    }
}
