//! Privileges in Kafka that are revoked under a running relay, and given back.

use outbox_relay::capture::CaptureKind;

use crate::support::acl::{Resource, give_back, revoke_write};
use crate::support::process::RelayProcess;
use crate::support::scene::{Scene, clean};
use crate::support::servers::own_kafka;
use crate::support::writers::{Load, Writers};

/// It stops with this exit code, and its last line names what is missing.
async fn stops(mut relay: RelayProcess, code: i32, named: &str) {
    assert_eq!(relay.wait().await.code(), Some(code));
    let log = relay.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(named), "{named}: {log}");
}

both_captures!(
    180,
    a_revoked_privilege_stops_the_relay_by_name_and_given_back_it_goes_on
);

async fn a_revoked_privilege_stops_the_relay_by_name_and_given_back_it_goes_on(
    capture: CaptureKind,
) {
    let kafka = own_kafka().await;
    let mut scene = Scene::of(capture).await;
    scene.relay.brokers = kafka.brokers().to_owned();
    scene.relay = scene.relay.with(&["--on-fault", "halt"]);
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    let name = &scene.relay.name;
    let (topic, positions) = (
        format!("{}1", scene.prefix),
        format!("outbox-relay.position.{name}"),
    );
    let transactional_id = format!("outbox-relay.{name}");
    let id = "Write and Describe on its transactional id";
    for (resource, name, code, named) in [
        (Resource::Topic, &topic, 4, &*topic),
        (Resource::Topic, &positions, 3, &positions),
        (Resource::TransactionalId, &transactional_id, 3, id),
    ] {
        let relay = scene.relay.start().await;
        relay.says("active").await;
        writers.more(100).await;
        revoke_write(kafka.brokers(), resource, name).await;
        stops(relay, code, named).await;
        // The next start does not get by without it either, and notices in the middle of a transaction.
        scene
            .commit(&format!("large{code}{named}"), 1, 10_000)
            .await;
        stops(scene.relay.start().await, code, named).await;
        give_back(kafka.brokers(), resource, name).await;
    }
    writers.stop().await;
    clean(&scene.check().await, 300);
}
