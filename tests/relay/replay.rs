//! `outbox-relay replay`: marked, whole, in order, only what was published, and without harm to the relay.

use std::process::Output;

use outbox_relay::capture::CaptureKind;
use serde_json::Value;
use tokio::process::Command;

use crate::support::process::{RelayOf, binary};
use crate::support::scan::{Record, records};
use crate::support::scene::Scene;
use crate::support::topic::Hand;
use crate::support::{unique, until};

async fn run(command: &str, relay: &RelayOf, more: &[&str]) -> Output {
    let mut process = Command::new(binary());
    process
        .args([
            command,
            "--name",
            &relay.name,
            "--capture",
            relay.capture.name(),
        ])
        .args(["--database-url", &relay.database_url])
        .args(["--kafka-brokers", &relay.brokers])
        .args(["--create-topics", "true"])
        .args(more)
        .kill_on_drop(true);
    process.output().await.expect("the binary")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn json(command: &str, relay: &RelayOf, more: &[&str]) -> Value {
    let more = [more, &["--json"]].concat();
    serde_json::from_str(&said(&run(command, relay, &more).await)).expect("JSON")
}

fn header<'r>(record: &'r Record, name: &str) -> Option<&'r str> {
    let mut headers = record.headers.iter();
    headers.find(|(known, _)| known == name)?.1.as_deref()
}

fn values(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| {
        String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
    };
    records.iter().map(text).collect()
}

async fn transaction(scene: &Scene, topic: &str, keys_and_values: &[(&str, &str)], end: &str) {
    let calls: String = (keys_and_values.iter())
        .map(|(key, value)| format!("select outbox.publish('{topic}', '{key}', '{value}'::text);"))
        .collect();
    let client = scene.database.connect().await;
    client
        .batch_execute(&format!("begin; {calls} {end}"))
        .await
        .expect("a transaction");
}

both_captures!(120, a_topic_that_takes_small_batches_alone_gets_them);

async fn a_topic_that_takes_small_batches_alone_gets_them(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (relay, topic, small) = (&scene.relay, unique("topic"), unique("small"));
    let hand = Hand::at(&relay.brokers);
    hand.create(&topic, 1, &[]).await;
    hand.create(&small, 1, &[("max.message.bytes", "2000")])
        .await;
    let value = "x".repeat(300);
    transaction(&scene, &topic, &[("k", value.as_str()); 50], "commit").await;
    relay.catch_up().await;
    let to = ["--topic", &topic, "--to-topic", &small, "--apply"];
    assert_eq!(json("replay", relay, &to).await["applied"], true);
    assert_eq!(records(&relay.brokers, &small).await.len(), 50);
    scene.drop_slots().await;
}

both_captures!(120, what_was_published_is_published_again_marked_and_whole);

async fn what_was_published_is_published_again_marked_and_whole(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (relay, topic) = (&scene.relay, unique("topic"));
    Hand::at(&relay.brokers).create(&topic, 1, &[]).await;
    transaction(&scene, &topic, &[("a", "1"), ("b", "2")], "commit").await;
    transaction(&scene, &topic, &[("a", "never")], "rollback").await;
    transaction(&scene, &topic, &[("a", "3")], "commit").await;
    relay.catch_up().await;
    // Committed, and not published.
    transaction(&scene, &topic, &[("a", "4")], "commit").await;

    let dry = said(&run("replay", relay, &["--topic", &topic]).await);
    for line in [
        "3 events of 2 transactions",
        "left out: 1 events",
        "nothing was published",
    ] {
        assert!(dry.contains(line), "{dry}");
    }
    assert_eq!(records(&relay.brokers, &topic).await.len(), 3);

    let process = relay.start().await;
    process.says("active").await;
    until("the relay follows", 30, async || {
        records(&relay.brokers, &topic).await.len() == 4
    })
    .await;
    let done = json("replay", relay, &["--topic", &topic, "--apply"]).await;
    assert_eq!(
        (&done["events"], &done["applied"]),
        (&4.into(), &true.into()),
        "{done}"
    );
    let all = records(&relay.brokers, &topic).await;
    assert_eq!(values(&all), ["1", "2", "3", "4", "1", "2", "3", "4"]);
    for (first, again) in all[..4].iter().zip(&all[4..]) {
        for name in ["id", "tx-id", "tx-index", "tx-count"] {
            assert_eq!(header(first, name), header(again, name), "{name}");
        }
        assert_eq!(header(first, "replay"), None);
        assert_eq!(header(again, "replay"), done["replay"].as_str());
    }
    // The relay was not fenced, and nothing of this is a repetition.
    transaction(&scene, &topic, &[("a", "5")], "commit").await;
    until("the relay goes on", 30, async || {
        records(&relay.brokers, &topic).await.len() == 9
    })
    .await;
    assert!(!process.log().contains("anew"), "{}", process.log());
    process.terminate().await;
    let verified = json("verify", relay, &[]).await;
    assert_eq!(verified["clean"], true, "{verified}");
    assert_eq!(verified["records_unjudged"]["replayed"], 4, "{verified}");
    scene.drop_slots().await;
}

both_captures!(120, one_transaction_a_key_an_event_or_a_time_is_selected);

async fn one_transaction_a_key_an_event_or_a_time_is_selected(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (relay, topic) = (&scene.relay, unique("topic"));
    Hand::at(&relay.brokers).create(&topic, 1, &[]).await;
    transaction(&scene, &topic, &[("a", "1"), ("b", "2")], "commit").await;
    transaction(&scene, &topic, &[("b", "3")], "commit").await;
    relay.catch_up().await;
    let published = records(&relay.brokers, &topic).await;
    let (tx_id, id) = (
        header(&published[0], "tx-id").unwrap(),
        header(&published[2], "id").unwrap(),
    );
    let client = scene.database.connect().await;
    let between = "select max(occurred_at)::text from outbox.events where convert_from(payload, 'UTF8') = '3'";
    let third: String = client.query_one(between, &[]).await.unwrap().get(0);
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--tx-id", tx_id], &["1", "2"]),
        (&["--topic", &topic, "--key", "b"], &["2", "3"]),
        (&["--id", id], &["3"]),
        (&["--since", &third], &["3"]),
        (&["--until", &third], &["1", "2"]),
    ];
    for (select, expected) in cases {
        let other = unique("other");
        let more = [
            select,
            &["--to-topic", &other, "--topic-partitions", "1", "--apply"],
        ]
        .concat();
        let done = json("replay", relay, &more).await;
        assert_eq!(done["topics"][&other], expected.len(), "{select:?} {done}");
        assert_eq!(
            values(&records(&relay.brokers, &other).await),
            expected,
            "{select:?}"
        );
    }
    assert_eq!(records(&relay.brokers, &topic).await.len(), 3);
    for wrong in [&[][..], &["--since", "noonish"], &["--tx-id", "1-1-1"]] {
        let output = run("replay", relay, wrong).await;
        assert_eq!(output.status.code(), Some(2), "{wrong:?} {output:?}");
    }
    scene.drop_slots().await;
}

both_captures!(120, what_is_parked_was_not_published_and_is_left_out);

async fn what_is_parked_was_not_published_and_is_left_out(capture: CaptureKind) {
    let mut scene = Scene::of(capture).await;
    scene.relay.more = vec!["--on-fault".into(), "park".into()];
    let topics = [unique("topic"), unique("missing")];
    Hand::at(&scene.relay.brokers)
        .create(&topics[0], 1, &[])
        .await;
    transaction(&scene, &topics[1], &[("a", "parked")], "commit").await;
    transaction(&scene, &topics[0], &[("b", "1")], "commit").await;
    scene.relay.catch_up().await;
    let found = json("replay", &scene.relay, &["--since", "epoch"]).await;
    let counts = (&found["events"], &found["not_published"]);
    assert_eq!(counts, (&1.into(), &1.into()), "{found}");
    scene.drop_slots().await;
}
