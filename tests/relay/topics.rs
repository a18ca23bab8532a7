//! Topics that are deleted or widened under a running relay.
//!
//! A deleted topic takes its records with it, and the offsets of the one that is made anew begin again at 0. The ledger
//! check can't judge that: what was in the old one counts as lost, and position records of both lives claim the same
//! offsets. So those tests compare values.

use outbox_relay::capture::CaptureKind;

use super::verify::verify;
use crate::support::process::RelayProcess;
use crate::support::scan::{position_gaps, records, records_from};
use crate::support::scene::{Scene, clean};
use crate::support::topic::Hand;
use crate::support::writers::{Load, Writers};
use crate::support::{unique, until};

/// A relay that has published "1" to a topic of one partition.
struct Deletion {
    scene: Scene,
    topic: String,
    hand: Hand,
}

impl Deletion {
    async fn of(capture: CaptureKind, settings: &[&str]) -> (Self, RelayProcess) {
        let mut scene = Scene::of(capture).await;
        scene.relay.more.clear();
        scene.relay = scene.relay.with(settings);
        let (topic, hand) = (unique("topic"), Hand::at(&scene.relay.brokers));
        hand.create(&topic, 1, &[]).await;
        let running = scene.relay.start().await;
        let scene = Self { scene, topic, hand };
        scene.publish("1").await;
        scene.shows(&["1"]).await;
        (scene, running)
    }

    async fn publish(&self, value: &str) {
        let publish = "select outbox.publish($1, 'k', $2::text)";
        let client = self.scene.database.connect().await;
        client
            .execute(publish, &[&self.topic, &value])
            .await
            .unwrap();
    }

    /// Waits until the topic has so many records, which are these.
    async fn shows(&self, values: &[&str]) {
        let found = records_from(&self.scene.relay.brokers, &self.topic, values.len()).await;
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

both_captures!(
    120,
    a_deleted_topic_stops_the_relay_by_name_and_once_made_again_it_goes_on_from_its_position
);

async fn a_deleted_topic_stops_the_relay_by_name_and_once_made_again_it_goes_on_from_its_position(
    capture: CaptureKind,
) {
    let (deletion, running) = Deletion::of(capture, &["--on-fault", "halt"]).await;
    deletion.hand.delete(&deletion.topic).await;
    deletion.publish("2").await;
    running.says("does not exist").await;
    let log = running.log();
    assert!(log.contains(&format!("topic {}", deletion.topic)), "{log}");
    assert_eq!(running.ended().await.code(), Some(4));
    // It is not created silently, and not skipped by the next start.
    let running = deletion.scene.relay.start().await;
    assert_eq!(running.ended().await.code(), Some(4));
    deletion.hand.create(&deletion.topic, 1, &[]).await;
    deletion.publish("3").await;
    let running = deletion.scene.relay.start().await;
    deletion.shows(&["2", "3"]).await;
    running.terminate().await;
    // "1" is lost indeed; torn is what it can't judge, the offset that was claimed in both lives of the topic.
    assert_eq!(
        verify(&deletion.scene.relay).await.counts(),
        [1, 0, 1, 0, 0]
    );
    let (_, gaps) = position_gaps(&deletion.scene.relay.brokers, &deletion.scene.relay.name).await;
    assert!(gaps.is_empty(), "{gaps:?}");
    deletion.scene.drop_slots().await;
}

both_captures!(120, a_deleted_topic_is_made_again_where_that_is_allowed);

async fn a_deleted_topic_is_made_again_where_that_is_allowed(capture: CaptureKind) {
    let (deletion, running) = Deletion::of(capture, &["--create-topics", "true"]).await;
    deletion.hand.delete(&deletion.topic).await;
    deletion.publish("2").await;
    running.says("creating the topic").await;
    deletion.shows(&["2"]).await;
    running.terminate().await;
    let (_, gaps) = position_gaps(&deletion.scene.relay.brokers, &deletion.scene.relay.name).await;
    assert!(gaps.is_empty(), "{gaps:?}");
    deletion.scene.drop_slots().await;
}

both_captures!(
    120,
    a_position_topic_that_is_deleted_under_a_running_relay_is_no_first_start
);

async fn a_position_topic_that_is_deleted_under_a_running_relay_is_no_first_start(
    capture: CaptureKind,
) {
    let (deletion, running) = Deletion::of(capture, &[]).await;
    let positions = format!("outbox-relay.position.{}", deletion.scene.relay.name);
    deletion.hand.delete(&positions).await;
    deletion.publish("2").await;
    running.says("has no position in Kafka").await;
    assert_eq!(running.ended().await.code(), Some(3));
    // The topic is there again, empty; that is no position either.
    let running = deletion.scene.relay.start().await;
    running.says("has no position in Kafka").await;
    assert_eq!(running.ended().await.code(), Some(3));
    assert_eq!(
        records(&deletion.scene.relay.brokers, &deletion.topic)
            .await
            .len(),
        1
    );
    deletion.scene.drop_slots().await;
}

both_captures!(120, partitions_are_added_under_a_running_relay);

async fn partitions_are_added_under_a_running_relay(capture: CaptureKind) {
    let mut scene = Scene::of(capture).await;
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
}
