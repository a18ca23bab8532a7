//! `outbox-relay verify`: clean beside a running relay, and finds what was done to the topics behind the relay's back.

use std::time::Duration;

use outbox_relay::capture::CaptureKind;
use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

use crate::support::process::{RelayOf, binary};
use crate::support::scan::{Record, records};
use crate::support::scene::Scene;
use crate::support::servers::TestDatabase;
use crate::support::topic::Hand;
use crate::support::writers::{Load, Writers};
use crate::support::{unique, until, within};

/// A database with a relay that published into a topic of one partition, in one Kafka transaction: three keys, five
/// transactions of one event and one of two.
struct Published {
    scene: Scene,
    topic: String,
    hand: Hand,
}

impl Published {
    async fn of(capture: CaptureKind) -> Self {
        Self::with(capture, &[]).await
    }

    /// The topic with these settings.
    async fn with(capture: CaptureKind, settings: &[(&str, &str)]) -> Self {
        let mut scene = Scene::of(capture).await;
        // Else the stream's first transaction may go alone.
        scene.relay = scene.relay.with(&["--linger-ms", "300"]);
        let published = Self {
            topic: unique("topic"),
            hand: Hand::at(&scene.relay.brokers),
            scene,
        };
        (published.hand.create(&published.topic, 1, settings)).await;
        for keys in [&["a"][..], &["b"], &["a"], &["b", "c"], &["c"], &["a"]] {
            published.publish(keys).await;
        }
        published.scene.relay.catch_up().await;
        published
    }

    async fn publish(&self, keys: &[&str]) {
        let call = |key: &&str| {
            format!(
                "select outbox.publish('{}', '{key}', 'v'::text);",
                self.topic
            )
        };
        let calls: String = keys.iter().map(call).collect();
        let client = self.scene.database.connect().await;
        client
            .batch_execute(&format!("begin; {calls} commit"))
            .await
            .unwrap();
    }

    async fn records(&self) -> Vec<Record> {
        records(&self.scene.relay.brokers, &self.topic).await
    }

    /// Puts other records into the place of those in the topic. In one transaction, so that offsets stay what they were.
    async fn replace(&self, records: &[Record]) {
        self.hand.delete(&self.topic).await;
        self.hand.create(&self.topic, 1, &[]).await;
        let producer = self.hand.producer(Some(&unique("hand")));
        self.hand.transaction(&producer, &self.topic, records, true);
    }

    async fn verify(&self) -> Found {
        verify(&self.scene.relay).await
    }
}

/// What verify says.
#[derive(Debug)]
pub struct Found {
    code: Option<i32>,
    json: Value,
}

impl Found {
    /// Lost, doubled, torn, out of order, phantoms.
    pub fn counts(&self) -> [u64; 5] {
        ["lost", "doubled", "torn", "out_of_order", "phantoms"]
            .map(|kind| self.json[kind]["count"].as_u64().unwrap())
    }

    fn is_clean(&self) -> bool {
        assert_eq!(self.json["clean"] == true, self.code == Some(0), "{self:?}");
        self.code == Some(0)
    }

    fn first(&self, kind: &str, field: &str) -> String {
        let value = &self.json[kind]["first"][0][field];
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    }
}

async fn output(relay: &RelayOf, more: &[&str]) -> std::process::Output {
    Command::new(binary())
        .args(["verify", "--name", &relay.name])
        .args(["--database-url", &relay.database_url])
        .args(["--kafka-brokers", &relay.brokers])
        .args(more)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

pub async fn verify(relay: &RelayOf) -> Found {
    let output = output(relay, &["--json"]).await;
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    Found {
        code: output.status.code(),
        json,
    }
}

fn header<'r>(record: &'r mut Record, name: &str) -> &'r mut String {
    let found = record.headers.iter_mut().find(|(key, _)| key == name);
    found.unwrap().1.as_mut().unwrap()
}

both_captures!(120, a_clean_system_is_clean_and_what_waits_is_not_lost);

async fn a_clean_system_is_clean_and_what_waits_is_not_lost(capture: CaptureKind) {
    let published = Published::of(capture).await;
    let found = published.verify().await;
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.json["events"], 7);
    assert_eq!(found.json["records"], 7);
    published.publish(&["a", "b"]).await;
    let found = published.verify().await;
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.json["unjudged"]["not_yet_published"], 2);
    let output = output(&published.scene.relay, &[]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("phantoms") && text.contains("not judged: 2"),
        "{text}"
    );
    published.scene.drop_slots().await;
}

both_captures!(120, a_record_that_was_deleted_from_the_topic_is_lost);

async fn a_record_that_was_deleted_from_the_topic_is_lost(capture: CaptureKind) {
    let published = Published::of(capture).await;
    let mut records = published.records().await;
    published.replace(&records).await;
    let found = published.verify().await;
    assert!(found.is_clean(), "the copy is as good: {found:?}");
    // Another producer's record takes its place, so that all others stay where they were.
    let id = std::mem::take(header(&mut records[2], "id"));
    records[2].headers.clear();
    published.replace(&records).await;
    let found = published.verify().await;
    assert_eq!(
        (found.counts(), found.is_clean()),
        ([1, 0, 0, 0, 0], false),
        "{found:?}"
    );
    assert_eq!(found.first("lost", "event"), id);
    assert_eq!(found.json["records_unjudged"]["of_others"], 1);
    published.scene.drop_slots().await;
}

both_captures!(120, a_record_that_was_produced_twice_by_hand_is_doubled);

async fn a_record_that_was_produced_twice_by_hand_is_doubled(capture: CaptureKind) {
    let published = Published::of(capture).await;
    let mut again = published.records().await.swap_remove(1);
    published
        .hand
        .write(&published.topic, std::slice::from_ref(&again));
    let found = published.verify().await;
    assert_eq!(
        (found.counts(), found.is_clean()),
        ([0, 1, 0, 0, 0], false),
        "{found:?}"
    );
    assert_eq!(found.first("doubled", "event"), *header(&mut again, "id"));
    assert_eq!(found.first("doubled", "offset"), "8");
    published.scene.drop_slots().await;
}

both_captures!(120, a_replayed_record_is_not_doubled);

async fn a_replayed_record_is_not_doubled(capture: CaptureKind) {
    let published = Published::of(capture).await;
    let mut again = published.records().await.swap_remove(1);
    again.headers.push(("replay".into(), Some("1".into())));
    published.hand.write(&published.topic, &[again]);
    let found = published.verify().await;
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.json["records_unjudged"]["replayed"], 1);
    published.scene.drop_slots().await;
}

/// Inside one Kafka transaction only the table capture's order can be told from the rows.
#[test]
fn a_swapped_order_is_found() {
    within(120, async {
        let published = Published::of(CaptureKind::Table).await;
        let mut records = published.records().await;
        // The first two transactions of key a.
        records.swap(0, 2);
        published.replace(&records).await;
        let found = published.verify().await;
        assert_eq!(
            (found.counts(), found.is_clean()),
            ([0, 0, 0, 1, 0], false),
            "{found:?}"
        );
    });
}

both_captures!(120, phantoms_are_found_and_records_of_deleted_rows_are_none);

async fn phantoms_are_found_and_records_of_deleted_rows_are_none(capture: CaptureKind) {
    let published = Published::of(capture).await;
    let client = published.scene.database.connect().await;
    let records = published.records().await;
    client.batch_execute("begin").await.unwrap();
    let row = client
        .query_one("select pg_current_xact_id()::text", &[])
        .await
        .unwrap();
    let rolled_back: String = row.get(0);
    client.batch_execute("rollback").await.unwrap();
    let mut phantoms = [records[0].clone(), records[0].clone()];
    let tx_id = header(&mut phantoms[1], "tx-id");
    *tx_id = format!("{}-{rolled_back}", tx_id.rsplit_once('-').unwrap().0);
    for phantom in &mut phantoms {
        *header(phantom, "id") = Uuid::new_v4().to_string();
    }
    published.hand.write(&published.topic, &phantoms);
    let found = published.verify().await;
    assert_eq!(
        (found.counts(), found.is_clean()),
        ([0, 0, 0, 0, 2], false),
        "{found:?}"
    );
    // Where a row of the transaction is gone, nobody can say that it was not the record's.
    let delete = "delete from outbox.events where seq = 1";
    client.batch_execute(delete).await.unwrap();
    let found = published.verify().await;
    assert_eq!(found.counts(), [0, 0, 0, 0, 1], "{found:?}");
    assert!(found.first("phantoms", "what").contains("aborted"));
    assert_eq!(found.json["records_unjudged"]["rows_gone"], 2);
    published.scene.drop_slots().await;
}

both_captures!(120, what_lies_below_the_log_start_offset_is_not_judged);

async fn what_lies_below_the_log_start_offset_is_not_judged(capture: CaptureKind) {
    let published = Published::of(capture).await;
    published.hand.delete_before(&published.topic, 0, 3).await;
    let found = published.verify().await;
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.json["unjudged"]["perhaps_below_log_start"], 3);
    published.scene.drop_slots().await;
}

both_captures!(120, loss_is_not_judged_in_a_compacted_topic);

async fn loss_is_not_judged_in_a_compacted_topic(capture: CaptureKind) {
    let published = Published::with(capture, &[("cleanup.policy", "compact")]).await;
    published.publish(&["a"]).await;
    published.scene.relay.catch_up().await;
    let mut records = published.records().await;
    records.truncate(6);
    published.hand.delete(&published.topic).await;
    let compact = [("cleanup.policy", "compact")];
    published.hand.create(&published.topic, 1, &compact).await;
    published.hand.write(&published.topic, &records);
    let found = published.verify().await;
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.json["unjudged"]["perhaps_compacted"], 2);
    published.scene.drop_slots().await;
}

both_captures!(120, rows_from_before_the_first_start_are_not_lost);

async fn rows_from_before_the_first_start_are_not_lost(capture: CaptureKind) {
    let mut published = Published::of(capture).await;
    let client = published.scene.database.connect().await;
    client
        .batch_execute("delete from outbox.relay")
        .await
        .unwrap();
    published.scene.drop_slots().await;
    published.scene.relay.name = unique("relay");
    published.scene.make_slot().await;
    published.topic = unique("topic");
    published.hand.create(&published.topic, 1, &[]).await;
    published.publish(&["a"]).await;
    published
        .scene
        .relay
        .more
        .extend(["--start".into(), "now".into()]);
    published.scene.relay.catch_up().await;
    assert_eq!(published.records().await.len(), 0);
    published.publish(&["a", "b"]).await;
    published.scene.relay.catch_up().await;
    assert_eq!(published.records().await.len(), 2);
    let found = published.verify().await;
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.json["unjudged"]["not_yet_published"], 1);
    published.scene.drop_slots().await;
}

both_captures!(
    180,
    beside_a_running_relay_and_its_writers_there_is_no_false_alarm
);

async fn beside_a_running_relay_and_its_writers_there_is_no_false_alarm(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (database, relay) = (&scene.database, &scene.relay);
    let running = relay.start().await;
    let load = Load {
        pause: Duration::from_millis(5),
        ..Load::default()
    };
    let positions = format!("outbox-relay.position.{}", relay.name);
    until("a position", 60, async || {
        !records(&relay.brokers, &positions).await.is_empty()
    })
    .await;
    let writers = Writers::start(database, &format!("{}-", relay.name), load).await;
    let client = database.connect().await;
    let mut events = 0;
    for round in 0..6 {
        writers.more(300).await;
        let found = verify(relay).await;
        assert!(found.is_clean(), "round {round}: {found:?}");
        let now = found.json["events"].as_u64().unwrap();
        assert!(now > events || round > 3, "{found:?}");
        events = now;
        if round == 3 {
            // Deletes what the README says may be deleted.
            let delete = "delete from outbox.events e using outbox.relay r where r.served_table = 'outbox.events'
                and pg_visible_in_snapshot(e.xid, (r.position ->> 'seen')::pg_snapshot)";
            client.batch_execute(delete).await.unwrap();
        }
    }
    writers.stop().await;
    running.terminate().await;
    let found = verify(relay).await;
    assert!(found.is_clean(), "{found:?}");
    scene.drop_slots().await;
}

#[test]
fn without_a_position_it_refuses_and_without_a_name_it_says_so() {
    within(60, async {
        let relay = RelayOf::new(&unique("relay"), &TestDatabase::new().await).await;
        let refused = output(&relay, &[]).await;
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        let no_name = Command::new(binary()).arg("verify").output().await.unwrap();
        assert_eq!(no_name.status.code(), Some(2), "{no_name:?}");
    });
}
