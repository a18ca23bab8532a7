//! Three brokers: leaders move, coordinators move, and there may be too few copies to write.

use std::time::Duration;

use outbox_relay::capture::CaptureKind;
use tokio::time::sleep;

use crate::support::cluster::{coordinator_of, leader_of, need_copies};
use crate::support::scene::{Scene, clean};
use crate::support::servers::own_kafka_cluster;
use crate::support::writers::{Load, Writers};

/// Longer than a broker's session, which is 3 s: then others take over what it led.
const ABSENCE: Duration = Duration::from_secs(4);

both_captures!(
    180,
    brokers_of_three_are_killed_and_too_few_copies_are_in_sync
);

async fn brokers_of_three_are_killed_and_too_few_copies_are_in_sync(capture: CaptureKind) {
    let mut kafka = own_kafka_cluster().await;
    let mut scene = Scene::of(capture).await;
    scene.relay.brokers = kafka.brokers().to_owned();
    let brokers = &scene.relay.brokers;
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    let relay = scene.relay.start().await;
    relay.says("active").await;
    writers.more(100).await;

    let coordinator = coordinator_of(brokers, &scene.relay.name).await.unwrap();
    kafka.kill9(coordinator).await.unwrap();
    sleep(ABSENCE).await;
    writers.more(50).await;
    kafka.start(coordinator).await.unwrap();

    let topics: Vec<_> = (0..3).map(|i| format!("{}{i}", scene.prefix)).collect();
    let leader = leader_of(brokers, &topics[0], 0).await.unwrap();
    kafka.kill9(leader).await.unwrap();
    sleep(ABSENCE).await;
    writers.more(50).await;
    // Each write needs three copies, and there are two.
    need_copies(brokers, &topics, 3).await.unwrap();
    sleep(ABSENCE).await;
    need_copies(brokers, &topics, 2).await.unwrap();
    writers.more(50).await;
    // The controllers have no quorum either.
    let other = kafka.numbers().find(|it| *it != leader).unwrap();
    kafka.sigstop(other).await.unwrap();
    sleep(ABSENCE).await;
    kafka.sigcont(other).await.unwrap();
    kafka.start(leader).await.unwrap();
    writers.more(50).await;

    writers.stop().await;
    relay.terminate().await;
    clean(&scene.check().await, 300);
}
