//! Topics that are deleted or widened under a running relay.
//!
//! A deleted topic takes its records with it, and the offsets of the one that is made anew begin again at 0. The ledger
//! check can't judge that: what was in the old one counts as lost, and position records of both lives claim the same
//! offsets. So those tests compare values.

use super::verify::verify;
use crate::support::process::{RelayOf, RelayProcess};
use crate::support::scan::{position_gaps, records, records_from};
use crate::support::scene::{Scene, clean};
use crate::support::servers::TestDatabase;
use crate::support::topic::Hand;
use crate::support::writers::{Load, Writers};
use crate::support::{unique, until, within};

/// A relay that has published "1" to a topic of one partition.
struct Deletion {
    database: TestDatabase,
    topic: String,
    hand: Hand,
    relay: RelayOf,
}

impl Deletion {
    async fn of(settings: &[&str]) -> (Self, RelayProcess) {
        let database = TestDatabase::new().await;
        let mut relay = RelayOf::new(&unique("relay"), &database).await;
        relay.more.clear();
        let relay = relay.with(settings);
        let (topic, hand) = (unique("topic"), Hand::at(&relay.brokers));
        hand.create(&topic, 1, &[]).await;
        let running = relay.start().await;
        let scene = Self {
            database,
            topic,
            hand,
            relay,
        };
        scene.publish("1").await;
        scene.shows(&["1"]).await;
        (scene, running)
    }

    async fn publish(&self, value: &str) {
        let publish = "select outbox.publish($1, 'k', $2::text)";
        let client = self.database.connect().await;
        client
            .execute(publish, &[&self.topic, &value])
            .await
            .unwrap();
    }

    /// Waits until the topic has so many records, which are these.
    async fn shows(&self, values: &[&str]) {
        let found = records_from(&self.relay.brokers, &self.topic, values.len()).await;
        let found: Vec<_> = found
            .into_iter()
            .map(|record| record.value.unwrap())
            .collect();
        assert_eq!(
            found,
            values
                .iter()
                .map(|value| value.as_bytes())
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_deleted_topic_stops_the_relay_by_name_and_once_made_again_it_goes_on_from_its_position() {
    within(120, async {
        let (scene, running) = Deletion::of(&[]).await;
        scene.hand.delete(&scene.topic).await;
        scene.publish("2").await;
        running.says("does not exist").await;
        let log = running.log();
        assert!(log.contains(&format!("topic {}", scene.topic)), "{log}");
        assert_eq!(running.ended().await.code(), Some(4));
        // It is not created silently, and not skipped by the next start.
        let running = scene.relay.start().await;
        assert_eq!(running.ended().await.code(), Some(4));
        scene.hand.create(&scene.topic, 1, &[]).await;
        scene.publish("3").await;
        let running = scene.relay.start().await;
        scene.shows(&["2", "3"]).await;
        running.terminate().await;
        // "1" is lost indeed; torn is what it can't judge, the offset that was claimed in both lives of the topic.
        assert_eq!(verify(&scene.relay).await.counts(), [1, 0, 1, 0, 0]);
        let (_, gaps) = position_gaps(&scene.relay.brokers, &scene.relay.name).await;
        assert!(gaps.is_empty(), "{gaps:?}");
    });
}

#[test]
fn a_deleted_topic_is_made_again_where_that_is_allowed() {
    within(120, async {
        let (scene, running) = Deletion::of(&["--create-topics", "true"]).await;
        scene.hand.delete(&scene.topic).await;
        scene.publish("2").await;
        running.says("creating the topic").await;
        scene.shows(&["2"]).await;
        running.terminate().await;
        let (_, gaps) = position_gaps(&scene.relay.brokers, &scene.relay.name).await;
        assert!(gaps.is_empty(), "{gaps:?}");
    });
}

#[test]
fn a_position_topic_that_is_deleted_under_a_running_relay_is_no_first_start() {
    within(120, async {
        let (scene, running) = Deletion::of(&[]).await;
        let positions = format!("outbox-relay.position.{}", scene.relay.name);
        scene.hand.delete(&positions).await;
        scene.publish("2").await;
        running.says("has no position in Kafka").await;
        assert_eq!(running.ended().await.code(), Some(3));
        // The topic is there again, empty; that is no position either.
        let running = scene.relay.start().await;
        running.says("has no position in Kafka").await;
        assert_eq!(running.ended().await.code(), Some(3));
        assert_eq!(records(&scene.relay.brokers, &scene.topic).await.len(), 1);
    });
}

#[test]
fn partitions_are_added_under_a_running_relay() {
    within(120, async {
        let mut scene = Scene::new().await;
        // The client looks for new partitions each five minutes.
        let often = "topic.metadata.refresh.interval.ms=200";
        scene.relay = scene.relay.with(&["--kafka-property", often]);
        let hand = Hand::at(&scene.relay.brokers);
        let topics: Vec<String> = (0..3).map(|i| format!("{}{i}", scene.prefix)).collect();
        for topic in &topics {
            hand.create(topic, 1, &[]).await;
        }
        let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
        let relay = scene.relay.start().await;
        writers.more(200).await;
        for topic in &topics {
            hand.widen(topic, 4).await;
        }
        until("the new partitions are written to", 60, async || {
            let found = records(&scene.relay.brokers, &topics[0]).await;
            (1..4).all(|partition| found.iter().any(|record| record.partition == partition))
        })
        .await;
        writers.more(200).await;
        writers.stop().await;
        relay.terminate().await;
        clean(&scene.check().await, 400);
    });
}
