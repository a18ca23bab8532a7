//! Prepared transactions outlive sessions, and relays.

use outbox_relay::capture::CaptureKind;

use crate::support::scan::{records, records_from};
use crate::support::scene::{Scene, clean};
use crate::support::writers::{set_up, use_case};

both_captures!(
    90,
    a_transaction_prepared_before_a_relay_was_killed_is_published_whole_by_the_next_one
);

async fn a_transaction_prepared_before_a_relay_was_killed_is_published_whole_by_the_next_one(
    capture: CaptureKind,
) {
    let scene = Scene::of(capture).await;
    set_up(&scene.database, 3).await;
    let (brokers, gid) = (&scene.relay.brokers, &scene.database.name);
    let [prepared, others] = [1, 2].map(|key| format!("{}{key}", scene.prefix));
    let relay = scene.relay.start().await;
    let client = scene.database.connect().await;
    let call = use_case("prepared", &scene.prefix, 1, 3, false);
    let prepare = format!("begin; {call}; prepare transaction '{gid}'");
    client.batch_execute(&prepare).await.unwrap();
    scene.commit("before", 2, 2).await;
    records_from(brokers, &others, 2).await;
    relay.kill9().await;
    scene.commit("meanwhile", 2, 2).await;
    let relay = scene.relay.start().await;
    scene.commit("after", 2, 2).await;
    records_from(brokers, &others, 6).await;
    assert!(records(brokers, &prepared).await.is_empty());
    let commit = format!("commit prepared '{gid}'");
    client.batch_execute(&commit).await.unwrap();
    records_from(brokers, &prepared, 3).await;
    relay.terminate().await;
    clean(&scene.check().await, 4);
}
