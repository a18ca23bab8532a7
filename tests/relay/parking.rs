//! A transaction that can't be published steps aside with what shares its keys; all others flow; it comes back in order.

use outbox_relay::capture::CaptureKind;
#[cfg(debug_assertions)]
use outbox_relay::crash_point::PARK_CRASH_POINTS;
use outbox_relay::sink::kafka::position_topic::topic_of;
use serde_json::Value;

use super::verify::verify;
use crate::support::process::RelayProcess;
use crate::support::scan::records;
use crate::support::scene::Scene;
use crate::support::topic::Hand;
use crate::support::{unique, until, within};

/// A relay that makes no topics, a topic that is there, and one that is not.
struct Poison {
    scene: Scene,
    good: String,
    bad: String,
    hand: Hand,
}

impl Poison {
    async fn of(capture: CaptureKind, settings: &[&str]) -> Self {
        let mut scene = Scene::of(capture).await;
        scene.relay.more.clear();
        scene.relay = scene.relay.with(settings);
        let (good, bad) = (unique("good"), unique("bad"));
        let hand = Hand::at(&scene.relay.brokers);
        hand.create(&good, 1, &[]).await;
        Self {
            scene,
            good,
            bad,
            hand,
        }
    }

    /// One transaction: topic, key, value of each event.
    async fn commit(&self, events: &[(&str, &str, &str)]) {
        let call = |(topic, key, value): &(&str, &str, &str)| {
            format!("select outbox.publish('{topic}', '{key}', '{value}'::text);")
        };
        let calls: String = events.iter().map(call).collect();
        let client = self.scene.database.connect().await;
        let all = format!("begin; {calls} commit");
        client.batch_execute(&all).await.unwrap();
    }

    async fn values(&self, topic: &str) -> Vec<String> {
        let found = records(&self.scene.relay.brokers, topic).await;
        let text = |value: Option<Vec<u8>>| String::from_utf8(value.unwrap()).unwrap();
        found.into_iter().map(|record| text(record.value)).collect()
    }

    async fn shows(&self, topic: &str, values: &[&str]) {
        until(&format!("{values:?}"), 30, async || {
            self.values(topic).await == values
        })
        .await;
    }

    async fn parked(&self, arguments: &[&str]) -> std::process::Output {
        let words: Vec<&str> = ["parked"].iter().chain(arguments).copied().collect();
        self.scene.relay.ask(&words).await
    }

    async fn asked(&self, arguments: &[&str]) {
        let output = self.parked(arguments).await;
        assert!(output.status.success(), "{output:?}");
    }

    async fn list(&self) -> Vec<Value> {
        let output = self.parked(&["list", "--json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    async fn states(&self) -> Vec<String> {
        let of = |parked: Value| parked["state"].as_str().unwrap().to_owned();
        self.list().await.into_iter().map(of).collect()
    }

    /// Waits until so many wait: the first of them is parked, all others are held.
    async fn waits(&self, behind: usize) -> i64 {
        let states: Vec<_> = std::iter::once("parked")
            .chain(std::iter::repeat_n("held", behind))
            .collect();
        until(&format!("{states:?}"), 30, async || {
            self.states().await == states
        })
        .await;
        self.list().await[0]["id"].as_i64().unwrap()
    }

    async fn is_clean(&self) {
        let found = verify(&self.scene.relay).await;
        assert_eq!(found.counts(), [0, 0, 0, 0, 0], "{found:?}");
    }

    /// One transaction that can't be published, and one that must wait for it.
    #[cfg(debug_assertions)]
    async fn fill(&self) {
        let (good, bad) = (self.good.as_str(), self.bad.as_str());
        self.commit(&[(bad, "k", "a1"), (good, "x", "a2")]).await;
        self.commit(&[(good, "x", "b")]).await;
    }

    #[cfg(debug_assertions)]
    async fn dies_at(&self, point: &str) {
        let mut relay = self.scene.relay.clone();
        relay.crash_at = Some(format!("{point}:1"));
        let status = relay.start().await.ended().await;
        assert!(!status.success(), "{point}: {status}");
    }

    #[cfg(debug_assertions)]
    async fn comes_back(self, relay: RelayProcess) {
        self.shows(&self.good, &["a2", "b"]).await;
        self.shows(&self.bad, &["a1"]).await;
        until("nothing waits", 10, async || self.list().await.is_empty()).await;
        self.end(relay).await;
    }

    async fn end(self, relay: RelayProcess) {
        relay.terminate().await;
        self.is_clean().await;
        self.scene.drop_slots().await;
    }
}

both_captures!(
    120,
    what_shares_a_key_with_a_parked_transaction_waits_and_all_else_flows
);

async fn what_shares_a_key_with_a_parked_transaction_waits_and_all_else_flows(
    capture: CaptureKind,
) {
    let poison = Poison::of(capture, &[]).await;
    let (good, bad) = (poison.good.as_str(), poison.bad.as_str());
    poison.commit(&[(bad, "k", "a1"), (good, "x", "a2")]).await;
    poison.commit(&[(good, "x", "b")]).await;
    poison.commit(&[(good, "y", "c")]).await;
    poison.commit(&[(good, "x", "d"), (good, "z", "e")]).await;
    poison.commit(&[(good, "z", "f")]).await;
    poison.commit(&[(good, "q", "g")]).await;
    let relay = poison.scene.relay.start().await;
    poison.shows(good, &["c", "g"]).await;
    let id = poison.waits(3).await;
    poison.is_clean().await;
    // The topic is still not there.
    poison.asked(&["retry", &id.to_string()]).await;
    until("the second try", 30, async || {
        poison.list().await[0]["attempts"] == 2
    })
    .await;
    // What waits survives the process, and goes on to hold others.
    relay.kill9().await;
    poison.commit(&[(good, "z", "h")]).await;
    let relay = poison.scene.relay.start().await;
    poison.waits(4).await;
    poison.hand.create(bad, 1, &[]).await;
    poison.asked(&["retry", "--all"]).await;
    poison
        .shows(good, &["c", "g", "a2", "b", "d", "e", "f", "h"])
        .await;
    poison.shows(bad, &["a1"]).await;
    poison.commit(&[(good, "x", "i")]).await;
    poison
        .shows(good, &["c", "g", "a2", "b", "d", "e", "f", "h", "i"])
        .await;
    until("nothing waits", 10, async || poison.list().await.is_empty()).await;
    let shown = poison.parked(&["show", &id.to_string(), "--json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let history = shown["history"].as_array().unwrap();
    let actions: Vec<_> = history
        .iter()
        .map(|done| done["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["parked", "retry", "failed", "retry", "published"]);
    poison.end(relay).await;
}

both_captures!(120, what_waits_behind_a_discarded_transaction_goes_on);

async fn what_waits_behind_a_discarded_transaction_goes_on(capture: CaptureKind) {
    let poison = Poison::of(capture, &[]).await;
    let (good, bad) = (poison.good.as_str(), poison.bad.as_str());
    poison.commit(&[(bad, "k", "a"), (good, "x", "b")]).await;
    poison.commit(&[(good, "x", "c")]).await;
    let relay = poison.scene.relay.start().await;
    let id = poison.waits(1).await.to_string();
    let wrong = poison.parked(&["discard", "4711", "--reason", "no"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    poison.asked(&["discard", &id, "--reason", "a test"]).await;
    poison.shows(good, &["c"]).await;
    until("nothing waits", 10, async || poison.list().await.is_empty()).await;
    let shown = poison.parked(&["show", &id]).await;
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(
        text.contains("discarded") && text.contains("a test"),
        "{text}"
    );
    poison.end(relay).await;
}

both_captures!(120, a_few_poisoned_transactions_of_a_backlog_are_found);

/// Some don't exist, one is too large for its topic: the broker says so, of the whole batch.
async fn a_few_poisoned_transactions_of_a_backlog_are_found(capture: CaptureKind) {
    let poison = Poison::of(capture, &[]).await;
    let (good, bad, small) = (poison.good.as_str(), poison.bad.as_str(), unique("small"));
    let limit = [("max.message.bytes", "2000")];
    poison.hand.create(&small, 1, &limit).await;
    let (large, mut expected) = ("x".repeat(4_000), Vec::new());
    for i in 0..120 {
        let (key, value) = (format!("k{i}"), format!("v{i}"));
        match i {
            17 | 90 => {
                poison
                    .commit(&[(good, &key, "no"), (bad, &key, "no")])
                    .await
            }
            50 => {
                poison
                    .commit(&[(good, &key, "no"), (&small, &key, &large)])
                    .await
            }
            _ => {
                poison.commit(&[(good, &key, &value)]).await;
                expected.push(value);
            }
        }
    }
    let relay = poison.scene.relay.start().await;
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    poison.shows(good, &expected).await;
    until("three are parked", 10, async || {
        poison.states().await == ["parked"; 3]
    })
    .await;
    let why = poison.list().await[1]["fault"].as_str().unwrap().to_owned();
    assert!(
        why.contains(&small) && why.contains("max.message.bytes"),
        "{why}"
    );
    poison.end(relay).await;
}

both_captures!(
    120,
    a_transaction_that_is_too_large_for_memory_is_parked_and_held
);

async fn a_transaction_that_is_too_large_for_memory_is_parked_and_held(capture: CaptureKind) {
    let poison = Poison::of(capture, &["--batch-events-max", "10"]).await;
    let (good, bad) = (poison.good.as_str(), poison.bad.as_str());
    let numbers: Vec<String> = (0..100).map(|i| i.to_string()).collect();
    let many = |last: &'static str| {
        let mut events: Vec<_> = numbers.iter().map(|i| (good, "x", i.as_str())).collect();
        events.push((last, "y", "last"));
        events
    };
    poison.commit(&[(bad, "y", "first")]).await;
    let events: Vec<_> = many("GOOD")
        .into_iter()
        .map(|(topic, key, value)| (if topic == "GOOD" { bad } else { topic }, key, value))
        .collect();
    // Held by its last event, and once it is tried, unpublishable by it too.
    poison.commit(&events).await;
    poison.commit(&[(good, "x", "after")]).await;
    poison.commit(&[(good, "free", "free")]).await;
    let relay = poison.scene.relay.start().await;
    poison.shows(good, &["free"]).await;
    let id = poison.waits(2).await.to_string();
    poison.asked(&["discard", &id, "--reason", "a test"]).await;
    let id = poison.waits(1).await.to_string();
    poison.hand.create(bad, 1, &[]).await;
    poison.asked(&["retry", &id]).await;
    let mut expected = vec!["free"];
    expected.extend(numbers.iter().map(String::as_str));
    expected.push("after");
    poison.shows(good, &expected).await;
    poison.shows(bad, &["last"]).await;
    poison.end(relay).await;
}

both_captures!(120, at_the_limit_the_relay_stops_by_name);

async fn at_the_limit_the_relay_stops_by_name(capture: CaptureKind) {
    for (limit, named) in [
        (["--parked-events-max", "1"], "parked-events-max (1)"),
        (["--parked-bytes-max", "1"], "parked-bytes-max (1)"),
    ] {
        let poison = Poison::of(capture, &limit).await;
        let bad = poison.bad.as_str();
        poison.commit(&[(bad, "k", "a"), (bad, "l", "b")]).await;
        let relay = poison.scene.relay.start().await;
        relay.says(named).await;
        assert_eq!(relay.ended().await.code(), Some(3));
        poison.scene.drop_slots().await;
    }
    // What is asked for makes room, though what overflows comes first.
    let poison = Poison::of(capture, &["--parked-events-max", "1"]).await;
    poison.commit(&[(&poison.bad, "k", "a")]).await;
    let relay = poison.scene.relay.start().await;
    let id = poison.waits(0).await.to_string();
    poison.commit(&[(&poison.bad, "l", "b")]).await;
    assert_eq!(relay.ended().await.code(), Some(3));
    poison.asked(&["discard", &id, "--reason", "a test"]).await;
    let relay = poison.scene.relay.start().await;
    until("the other one waits", 30, async || {
        let all = poison.list().await;
        all.len() == 1 && all[0]["id"].as_i64().unwrap().to_string() != id
    })
    .await;
    relay.terminate().await;
    poison.scene.drop_slots().await;
}

both_captures!(90, rows_that_are_missing_are_no_first_start);

async fn rows_that_are_missing_are_no_first_start(capture: CaptureKind) {
    let poison = Poison::of(capture, &[]).await;
    poison.commit(&[(&poison.bad, "k", "a")]).await;
    let relay = poison.scene.relay.start().await;
    poison.waits(0).await;
    relay.terminate().await;
    let client = poison.scene.database.connect().await;
    client
        .batch_execute("delete from outbox.parked")
        .await
        .unwrap();
    let relay = poison.scene.relay.start().await;
    relay
        .says("put them back, or run `outbox-relay adopt`")
        .await;
    assert_eq!(relay.ended().await.code(), Some(3));
    let relay = &poison.scene.relay;
    for apply in [&[][..], &["--apply"]] {
        let words = ["adopt", "--capture", capture.name()];
        let words: Vec<&str> = words.iter().chain(apply).copied().collect();
        let adopted = relay.ask(&words).await;
        let said = String::from_utf8_lossy(&adopted.stdout);
        assert!(
            said.contains("parked and held transactions: 1 become 0"),
            "{adopted:?}"
        );
    }
    relay.catch_up().await;
    poison.scene.drop_slots().await;
}

both_captures!(
    120,
    transactions_for_a_topic_that_is_not_there_are_set_aside_together
);

async fn transactions_for_a_topic_that_is_not_there_are_set_aside_together(capture: CaptureKind) {
    let poison = Poison::of(capture, &[]).await;
    for i in 0..100 {
        let (key, other) = (format!("k{i}"), format!("o{i}"));
        poison.commit(&[(&poison.bad, &key, "no")]).await;
        poison.commit(&[(&poison.good, &other, "yes")]).await;
    }
    let relay = poison.scene.relay.start().await;
    poison.shows(&poison.good, &["yes"; 100]).await;
    until("all of them are parked", 30, async || {
        poison.states().await == ["parked"; 100]
    })
    .await;
    let topic = topic_of(&poison.scene.relay.name);
    let positions = records(&poison.scene.relay.brokers, &topic).await;
    let last = positions.last().unwrap().value.clone().unwrap();
    let last: Value = serde_json::from_slice(&last).unwrap();
    let (_, producer) = last["instance"].as_str().unwrap().rsplit_once('#').unwrap();
    let producers: u32 = producer.parse().unwrap();
    assert!(producers < 10, "one try is enough for all: {producers}");
    poison.end(relay).await;
}

both_captures!(90, records_that_fit_are_not_parked_because_they_are_many);

/// A topic's limit is about the batch.
async fn records_that_fit_are_not_parked_because_they_are_many(capture: CaptureKind) {
    let poison = Poison::of(capture, &[]).await;
    let small = unique("small");
    let limit = [("max.message.bytes", "2000")];
    poison.hand.create(&small, 1, &limit).await;
    let value = "x".repeat(300);
    let many: Vec<_> = (0..50)
        .map(|_| (small.as_str(), "k", value.as_str()))
        .collect();
    for _ in 0..3 {
        poison.commit(&many).await;
    }
    let relay = poison.scene.relay.start().await;
    until("all are there", 30, async || {
        poison.values(&small).await.len() == 150
    })
    .await;
    assert!(poison.list().await.is_empty());
    assert_eq!(relay.log().matches("refused a batch").count(), 1);
    poison.end(relay).await;
}

both_captures!(
    120,
    the_dead_letter_topic_is_told_what_is_parked_and_when_it_is_settled
);

async fn the_dead_letter_topic_is_told_what_is_parked_and_when_it_is_settled(capture: CaptureKind) {
    let dead = unique("dead");
    let poison = Poison::of(capture, &["--dead-letter-topic", &dead]).await;
    let (good, bad) = (poison.good.as_str(), poison.bad.as_str());
    poison
        .commit(&[(bad, "k", "payload"), (good, "x", "a2")])
        .await;
    poison.commit(&[(good, "x", "b")]).await;
    poison.commit(&[(good, "y", "c")]).await;
    let relay = poison.scene.relay.start().await;
    relay
        .says(&format!(
            "the dead-letter topic: topic {dead} does not exist"
        ))
        .await;
    assert_eq!(relay.ended().await.code(), Some(3));
    poison.hand.create(&dead, 1, &[]).await;
    #[cfg(debug_assertions)]
    for point in ["park.pending", "park.passed"] {
        poison.dies_at(point).await;
    }
    let relay = poison.scene.relay.start().await;
    poison.shows(good, &["c"]).await;
    let id = poison.waits(1).await;
    let tx_id = poison.list().await[0]["tx_id"].as_str().unwrap().to_owned();
    let letters = records(&poison.scene.relay.brokers, &dead).await;
    let [letter] = &letters[..] else {
        panic!("{letters:?}");
    };
    assert_eq!(letter.key.as_deref(), Some(tx_id.as_bytes()));
    let said: Value = serde_json::from_slice(letter.value.as_ref().unwrap()).unwrap();
    assert_eq!((&said["id"], &said["events"]), (&id.into(), &2.into()));
    assert!(said["fault"].as_str().unwrap().contains(bad), "{said}");
    assert_eq!(said["first_events"][1]["key"], "x");
    assert!(!said.to_string().contains("payload"), "no payloads: {said}");
    poison.hand.create(bad, 1, &[]).await;
    poison.asked(&["retry", "--all"]).await;
    poison.shows(good, &["c", "a2", "b"]).await;
    let letters = records(&poison.scene.relay.brokers, &dead).await;
    assert_eq!((letters.len(), &letters[1].value), (2, &None));
    assert_eq!(letters[1].key, letters[0].key);
    poison.end(relay).await;
}

both_captures!(60, events_that_are_missing_are_refused);

/// Else those that are left would be published as if they were all.
async fn events_that_are_missing_are_refused(capture: CaptureKind) {
    let poison = Poison::of(capture, &[]).await;
    let bad = poison.bad.as_str();
    poison
        .commit(&[(bad, "k", "a"), (bad, "k", "b"), (bad, "k", "c")])
        .await;
    poison.commit(&[(bad, "k", "behind")]).await;
    let relay = poison.scene.relay.start().await;
    let id = poison.waits(1).await.to_string();
    let client = poison.scene.database.connect().await;
    let delete = "delete from outbox.parked_events where index = 1";
    client.batch_execute(delete).await.unwrap();
    poison.hand.create(bad, 1, &[]).await;
    poison.asked(&["retry", &id]).await;
    until("it stays parked", 30, async || {
        let parked = poison.list().await.swap_remove(0);
        parked["attempts"] == 2 && parked["fault"].as_str().unwrap().contains("were deleted")
    })
    .await;
    poison.commit(&[(&poison.good, "x", "flows")]).await;
    poison.shows(&poison.good, &["flows"]).await;
    assert_eq!(poison.values(bad).await, [""; 0], "it still holds");
    poison.asked(&["discard", &id, "--reason", "a test"]).await;
    poison.shows(bad, &["behind"]).await;
    until("nothing waits", 10, async || poison.list().await.is_empty()).await;
    relay.terminate().await;
    poison.scene.drop_slots().await;
}

both_captures!(
    90,
    a_retry_that_fails_again_does_not_stop_a_relay_that_halts
);

/// It would stop at each start, for ever.
async fn a_retry_that_fails_again_does_not_stop_a_relay_that_halts(capture: CaptureKind) {
    let mut poison = Poison::of(capture, &[]).await;
    poison.commit(&[(&poison.bad, "k", "a")]).await;
    let relay = poison.scene.relay.start().await;
    let id = poison.waits(0).await.to_string();
    relay.terminate().await;
    poison.scene.relay = poison.scene.relay.with(&["--on-fault", "halt"]);
    poison.asked(&["retry", &id]).await;
    let relay = poison.scene.relay.start().await;
    until("the second try", 30, async || {
        poison.list().await[0]["attempts"] == 2
    })
    .await;
    poison.commit(&[(&poison.good, "x", "b")]).await;
    poison.shows(&poison.good, &["b"]).await;
    poison.asked(&["discard", &id, "--reason", "a test"]).await;
    until("nothing waits", 10, async || poison.list().await.is_empty()).await;
    // What is new does stop it.
    poison.commit(&[(&poison.bad, "l", "c")]).await;
    assert_eq!(relay.ended().await.code(), Some(4));
    poison.scene.drop_slots().await;
}

#[cfg(debug_assertions)]
#[test]
fn what_is_parked_survives_a_recovery_and_moves() {
    within(240, async {
        let mut poison = Poison::of(CaptureKind::Wal, &[]).await;
        poison.fill().await;
        // The last record alone says that they were passed over.
        poison.dies_at("park.passed").await;
        let done = poison.scene.relay.ask(&["recover", "--apply"]).await;
        assert!(done.status.success(), "{done:?}");
        let relay = poison.scene.relay.start().await;
        let id = poison.waits(1).await.to_string();
        relay.terminate().await;
        for capture in [CaptureKind::Table, CaptureKind::Wal] {
            let to = ["move", "--to", capture.name()];
            let moved = poison.scene.relay.ask(&to).await;
            assert!(moved.status.success(), "{moved:?}");
            poison.scene.relay.capture = capture;
            let relay = poison.scene.relay.start().await;
            relay.says("2 transactions are parked or held").await;
            relay.says("active").await;
            relay.terminate().await;
        }
        poison.hand.create(&poison.bad, 1, &[]).await;
        poison.asked(&["retry", &id]).await;
        let relay = poison.scene.relay.start().await;
        poison.comes_back(relay).await;
    });
}

#[cfg(debug_assertions)]
both_captures!(
    240,
    a_relay_that_dies_while_it_parks_neither_loses_nor_repeats
);

#[cfg(debug_assertions)]
async fn a_relay_that_dies_while_it_parks_neither_loses_nor_repeats(capture: CaptureKind) {
    for point in &PARK_CRASH_POINTS[..4] {
        let poison = Poison::of(capture, &[]).await;
        poison.fill().await;
        poison.dies_at(point).await;
        let relay = poison.scene.relay.start().await;
        let id = poison.waits(1).await.to_string();
        poison.hand.create(&poison.bad, 1, &[]).await;
        poison.asked(&["retry", &id]).await;
        poison.comes_back(relay).await;
    }
}

#[cfg(debug_assertions)]
both_captures!(
    240,
    a_relay_that_dies_while_it_releases_neither_loses_nor_repeats
);

#[cfg(debug_assertions)]
async fn a_relay_that_dies_while_it_releases_neither_loses_nor_repeats(capture: CaptureKind) {
    let behind = PARK_CRASH_POINTS[2..].iter();
    for point in behind.chain(["kafka.flush", "kafka.commit"].iter()) {
        let poison = Poison::of(capture, &[]).await;
        poison.fill().await;
        let relay = poison.scene.relay.start().await;
        let id = poison.waits(1).await.to_string();
        relay.terminate().await;
        poison.hand.create(&poison.bad, 1, &[]).await;
        poison.asked(&["retry", &id]).await;
        poison.dies_at(point).await;
        let relay = poison.scene.relay.start().await;
        poison.comes_back(relay).await;
    }
}
