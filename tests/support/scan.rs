//! What a `read_committed` consumer sees, from the beginning.

use outbox_relay::fault::Fault;
use outbox_relay::ledger::{Ledger, Report};
use outbox_relay::scan::{judge, read};
use rdkafka::Message;
use rdkafka::message::Headers;

use super::until;

/// One visible record.
#[derive(Debug, Clone)]
pub struct Record {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<String>)>,
    pub timestamp_ms: i64,
}

/// All visible records of a topic, by partition and offset; none if there is no such topic.
pub async fn records(brokers: &str, topic: &str) -> Vec<Record> {
    try_records(brokers, topic).await.expect("a scan")
}

/// The same, once there are so many. The topic may be about to be made.
pub async fn records_from(brokers: &str, topic: &str, count: usize) -> Vec<Record> {
    let mut found = Vec::new();
    until("the events are published", 60, async || {
        found = try_records(brokers, topic).await.unwrap_or_default();
        found.len() >= count
    })
    .await;
    found
}

async fn try_records(brokers: &str, topic: &str) -> Result<Vec<Record>, Fault> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let scan = move || {
        let mut records = Vec::new();
        read(&brokers, &topic, |message| {
            let text = |value: Option<&[u8]>| {
                value.map(|value| String::from_utf8_lossy(value).into_owned())
            };
            let headers = message.headers().map(|headers| {
                headers
                    .iter()
                    .map(|h| (h.key.to_owned(), text(h.value)))
                    .collect()
            });
            records.push(Record {
                partition: message.partition(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: headers.unwrap_or_default(),
                timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            });
            Ok(())
        })?;
        Ok(records)
    };
    tokio::task::spawn_blocking(scan).await.expect("a scan")
}

/// Reads the position records of relay `name`: their number, and the places where one does not follow the one before.
/// Two relays that published from the same position would both have given the same number.
pub async fn position_gaps(brokers: &str, name: &str) -> (u64, Vec<String>) {
    let (brokers, topic) = (brokers.to_owned(), format!("outbox-relay.position.{name}"));
    let scan = move || {
        let (mut records, mut gaps) = (0, Vec::new());
        let mut last = PositionRecord::default();
        read(&brokers, &topic, |message| {
            let record: PositionRecord =
                serde_json::from_slice(message.payload().unwrap_or_default())
                    .expect("a position record");
            if record.kafka_transaction != last.kafka_transaction + 1 {
                gaps.push(format!("{record:?} came after {last:?}"));
            }
            records += 1;
            last = record;
            Ok(())
        })
        .expect("a scan");
        (records, gaps)
    };
    tokio::task::spawn_blocking(scan).await.expect("a scan")
}

/// What a position record says of itself.
#[derive(Debug, Default, serde::Deserialize)]
struct PositionRecord {
    kafka_transaction: u64,
    /// Who wrote it; only shown.
    #[allow(dead_code, reason = "shown by Debug")]
    instance: String,
}

/// The ledger against topics `{prefix}0` to `{prefix}2` as relay `name` filled them.
pub async fn check(brokers: &str, prefix: &str, name: &str, ledger: Ledger) -> Report {
    let topics: Vec<String> = (0..3).map(|i| format!("{prefix}{i}")).collect();
    let (brokers, positions) = (brokers.to_owned(), format!("outbox-relay.position.{name}"));
    let scan = move || judge(&brokers, &topics, &positions, &ledger).expect("a scan");
    tokio::task::spawn_blocking(scan).await.expect("a scan")
}
