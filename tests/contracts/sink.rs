//! The contract of `Sink`, against the memory and Kafka.

use std::sync::Arc;

use outbox_relay::event::{Batch, Event, Slice};
use outbox_relay::fault::Fault;
use outbox_relay::position::{Origin, Position, Snapshot};
use outbox_relay::sink::Sink;
use outbox_relay::sink::kafka::{KafkaSettings, KafkaSink, Proof, last_position};
use outbox_relay::sink::memory::{MemorySink, MemoryStore};
use uuid::Uuid;

use crate::support::scan::{Record, records};
use crate::support::servers::shared;
use crate::support::{unique, within};

/// The lease is not what this suite is about.
struct Held;

impl Proof for Held {
    async fn prove(&self) -> Result<(), Fault> {
        Ok(())
    }
}

fn position(xmax: u64) -> Position {
    let origin = Origin {
        system_id: "7".into(),
        timeline: 1,
        database_oid: 5,
        table: "outbox.events".into(),
        capture: "table".into(),
    };
    Position::at(
        origin,
        format!("{xmax}:{xmax}:").parse::<Snapshot>().unwrap(),
    )
}

fn transaction(topic: &str, number: u64, events: u64) -> Slice {
    let event = |i: u64| Event {
        seq: i64::try_from(number * 100 + i).unwrap(),
        id: Uuid::new_v4(),
        topic: Arc::from(topic),
        key: Some("k".into()),
        event_type: Some("Happened".into()),
        payload: Some(format!("{number}/{i}").into()),
        headers: vec![
            ("traceparent".into(), Some("00".into())),
            ("none".into(), None),
            ("type".into(), Some("mine".into())),
        ],
        occurred_at_ms: 1_700_000_000_123,
    };
    Slice {
        tx_id: format!("7-1-{number}").into(),
        tx_count: events,
        first_index: 0,
        events: (0..events).map(event).collect(),
    }
}

/// What the suite needs to know of an implementation.
trait Bench {
    type Sink: Sink;
    async fn instance(&self) -> Self::Sink;
    fn topic(&self) -> &str;
    /// Values of all visible records, in order.
    async fn visible(&self) -> Vec<String>;
}

struct Memory(MemoryStore);

impl Bench for Memory {
    type Sink = MemorySink;
    async fn instance(&self) -> MemorySink {
        MemorySink::new(self.0.clone())
    }
    fn topic(&self) -> &str {
        "t"
    }
    async fn visible(&self) -> Vec<String> {
        self.0
            .records()
            .iter()
            .map(|record| {
                String::from_utf8_lossy(record.event.payload.as_deref().unwrap()).into_owned()
            })
            .collect()
    }
}

struct Kafka {
    name: String,
    topic: String,
}

impl Kafka {
    fn new() -> Self {
        Self {
            name: unique("sink"),
            topic: unique("topic"),
        }
    }

    async fn settings(&self) -> KafkaSettings {
        KafkaSettings {
            create_topics: true,
            topic_partitions: 1,
            ..KafkaSettings::new(
                shared().await.kafka.brokers().to_owned(),
                self.name.clone(),
                "test".into(),
            )
        }
    }

    async fn records(&self) -> Vec<Record> {
        records(shared().await.kafka.brokers(), &self.topic).await
    }
}

impl Bench for Kafka {
    type Sink = KafkaSink<Held>;
    async fn instance(&self) -> Self::Sink {
        KafkaSink::new(self.settings().await, Held).unwrap()
    }
    fn topic(&self) -> &str {
        &self.topic
    }
    async fn visible(&self) -> Vec<String> {
        self.records()
            .await
            .into_iter()
            .map(|record| String::from_utf8(record.value.unwrap()).unwrap())
            .collect()
    }
}

async fn publishes_batch_and_position_together(bench: &impl Bench) {
    let mut sink = bench.instance().await;
    assert_eq!(sink.open().await.unwrap(), None);
    sink.publish(Batch::genesis(position(1))).await.unwrap();
    let two = vec![
        transaction(bench.topic(), 1, 2),
        transaction(bench.topic(), 2, 1),
    ];
    sink.publish(Batch::of(two, position(3), false))
        .await
        .unwrap();
    assert_eq!(bench.visible().await, ["1/0", "1/1", "2/0"]);
    sink.close().await;
    assert_eq!(
        bench.instance().await.open().await.unwrap(),
        Some(position(3))
    );
}

async fn a_newer_instance_fences_the_older_one(bench: &impl Bench) {
    let (mut old, mut new) = (bench.instance().await, bench.instance().await);
    old.open().await.unwrap();
    old.publish(Batch::of(
        vec![transaction(bench.topic(), 1, 1)],
        position(2),
        false,
    ))
    .await
    .unwrap();
    assert_eq!(new.open().await.unwrap(), Some(position(2)));
    old.publish(Batch::of(
        vec![transaction(bench.topic(), 8, 1)],
        position(9),
        false,
    ))
    .await
    .unwrap_err();
    new.publish(Batch::of(
        vec![transaction(bench.topic(), 2, 1)],
        position(3),
        false,
    ))
    .await
    .unwrap();
    assert_eq!(bench.visible().await, ["1/0", "2/0"]);
}

async fn a_failing_batch_leaves_nothing(bench: &impl Bench) {
    struct Fails(u8, Slice);
    impl outbox_relay::event::SliceSource for Fails {
        fn next(
            &mut self,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Option<Slice>, Fault>> + Send + '_>>
        {
            self.0 += 1;
            let slice = self.1.clone();
            Box::pin(async move {
                if self.0 < 3 {
                    Ok(Some(slice))
                } else {
                    Err(Fault::Refused("rows are gone".into()))
                }
            })
        }
    }
    let mut sink = bench.instance().await;
    sink.open().await.unwrap();
    sink.publish(Batch::of(
        vec![transaction(bench.topic(), 1, 1)],
        position(2),
        false,
    ))
    .await
    .unwrap();
    let fails = Batch::streaming(
        Box::new(Fails(0, transaction(bench.topic(), 2, 1))),
        2,
        position(3),
        false,
    );
    assert!(
        sink.publish(fails)
            .await
            .unwrap_err()
            .to_string()
            .contains("rows are gone")
    );
    assert_eq!(sink.open().await.unwrap(), Some(position(2)));
    sink.publish(Batch::of(
        vec![transaction(bench.topic(), 3, 1)],
        position(4),
        false,
    ))
    .await
    .unwrap();
    assert_eq!(bench.visible().await, ["1/0", "3/0"]);
}

async fn a_cancelled_publish_is_whole_or_nothing(bench: &impl Bench) {
    let mut sink = bench.instance().await;
    let mut stands = sink.open().await.unwrap().map_or(1, |p| p.seen.xmax());
    for round in 1..12u64 {
        let batch = Batch::of(
            vec![transaction(bench.topic(), round, 3)],
            position(stands + 1),
            false,
        );
        let _ = tokio::time::timeout(
            std::time::Duration::from_millis(round * 3),
            sink.publish(batch),
        )
        .await;
        let now = sink.open().await.unwrap().map_or(1, |p| p.seen.xmax());
        assert!(now == stands || now == stands + 1);
        let whole = bench
            .visible()
            .await
            .iter()
            .filter(|value| value.starts_with(&format!("{round}/")))
            .count();
        assert_eq!(
            whole,
            if now > stands { 3 } else { 0 },
            "position and events must agree"
        );
        stands = now;
    }
}

macro_rules! contract {
    ($($name:ident),+) => {
        mod memory { $( #[test] fn $name() { super::within(30, super::$name(&super::Memory(Default::default()))) } )+ }
        mod kafka { $( #[test] fn $name() { super::within(120, super::$name(&super::Kafka::new())) } )+ }
    };
}

contract!(
    publishes_batch_and_position_together,
    a_newer_instance_fences_the_older_one,
    a_failing_batch_leaves_nothing,
    a_cancelled_publish_is_whole_or_nothing
);

#[test]
fn records_carry_key_headers_and_timestamp() {
    within(60, async {
        let bench = Kafka::new();
        let mut sink = bench.instance().await;
        sink.open().await.unwrap();
        let slice = transaction(&bench.topic, 1, 2);
        let id = slice.events[1].id.to_string();
        sink.publish(Batch::of(vec![slice], position(2), false))
            .await
            .unwrap();
        let record = bench.records().await.remove(1);
        assert_eq!(
            (record.key.as_deref(), record.timestamp_ms),
            (Some(&b"k"[..]), 1_700_000_000_123)
        );
        let headers: Vec<(&str, Option<&str>)> = record
            .headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_deref()))
            .collect();
        assert_eq!(
            headers,
            [
                ("id", Some(id.as_str())),
                ("type", Some("Happened")),
                ("tx-id", Some("7-1-1")),
                ("tx-index", Some("1")),
                ("tx-count", Some("2")),
                ("traceparent", Some("00")),
                ("none", None),
            ]
        );
    });
}

#[test]
fn a_missing_topic_is_a_clear_fault_unless_topics_are_made() {
    within(60, async {
        let bench = Kafka::new();
        let settings = KafkaSettings {
            create_topics: false,
            ..bench.settings().await
        };
        let mut sink = KafkaSink::new(settings, Held).unwrap();
        sink.open().await.unwrap();
        let fault = sink
            .publish(Batch::of(
                vec![transaction(&bench.topic, 1, 1)],
                position(2),
                false,
            ))
            .await
            .unwrap_err();
        assert!(
            matches!(fault, Fault::Unpublishable { .. })
                && fault.to_string().contains(&bench.topic),
            "{fault}"
        );
    });
}

#[test]
fn the_last_position_is_read_without_fencing_anybody_or_making_anything() {
    within(60, async {
        let bench = Kafka::new();
        let settings = KafkaSettings {
            create_topics: false,
            ..bench.settings().await
        };
        assert_eq!(last_position(&settings).await.unwrap(), None);
        // The topic that it looked for is still missing: events can't be published to it.
        let other = KafkaSettings {
            name: unique("other"),
            ..settings.clone()
        };
        let mut other = KafkaSink::new(other, Held).unwrap();
        other.open().await.unwrap();
        let to_it = vec![transaction(
            &format!("outbox-relay.position.{}", bench.name),
            1,
            1,
        )];
        let fault = other.publish(Batch::of(to_it, position(2), false)).await;
        assert!(
            matches!(&fault, Err(Fault::Unpublishable { why, .. }) if why.contains("does not exist")),
            "{fault:?}"
        );
        let mut sink = KafkaSink::new(settings.clone(), Held).unwrap();
        sink.open().await.unwrap();
        for xmax in 2..5 {
            sink.publish(Batch::genesis(position(xmax))).await.unwrap();
            let last = last_position(&settings).await.unwrap();
            assert_eq!(last, Some(position(xmax)));
        }
    });
}

#[test]
fn a_position_topic_that_would_forget_is_refused_unless_told_not_to_check() {
    within(60, async {
        let bench = Kafka::new();
        let settings = bench.settings().await;
        // Made with the broker's defaults, as topics of events are: cleanup.policy is delete.
        let position_topic = format!("outbox-relay.position.{}", bench.name);
        let maker = KafkaSettings {
            name: unique("maker"),
            ..settings.clone()
        };
        let mut maker = KafkaSink::new(maker, Held).unwrap();
        maker.open().await.unwrap();
        let one = vec![transaction(&position_topic, 1, 1)];
        maker
            .publish(Batch::of(one, position(2), false))
            .await
            .unwrap();
        let mut sink = KafkaSink::new(settings.clone(), Held).unwrap();
        let fault = sink.open().await.unwrap_err();
        assert!(matches!(fault, Fault::Refused(_)), "{fault}");
        assert!(fault.to_string().contains("cleanup.policy"), "{fault}");
        // Not checked, so it is read; the record in it has another key and is nobody's position.
        let unchecked = KafkaSettings {
            check_position_topic: false,
            ..settings
        };
        let mut unchecked = KafkaSink::new(unchecked, Held).unwrap();
        assert_eq!(unchecked.open().await.unwrap(), None);
    });
}

#[test]
fn a_record_too_large_is_a_clear_fault() {
    within(60, async {
        let bench = Kafka::new();
        let mut sink = bench.instance().await;
        sink.open().await.unwrap();
        let mut slice = transaction(&bench.topic, 1, 1);
        slice.events[0].payload = Some(vec![b'x'; 3 << 20].into());
        let fault = sink
            .publish(Batch::of(vec![slice], position(2), false))
            .await
            .unwrap_err();
        assert!(matches!(fault, Fault::Unpublishable { .. }), "{fault}");
        assert_eq!(sink.open().await.unwrap(), None);
    });
}
