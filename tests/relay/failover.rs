//! An asynchronous standby of PostgreSQL is promoted.

use std::process::Output;

use outbox_relay::config::CaptureKind;
use outbox_relay::servers::Postgres;
use tokio::process::Command;

use crate::support::process::{RelayOf, binary};
use crate::support::scan::{records, records_from};
use crate::support::scene::{Scene, clean};
use crate::support::servers::{TestDatabase, own_postgres_with_standby, promote};
use crate::support::within;
use crate::support::writers::{Load, Writers, set_up};

/// The same relay on the promoted standby.
fn moved(scene: Scene, standby: &Postgres) -> Scene {
    let database = scene.database.moved_to(standby);
    let relay = RelayOf {
        database_url: database.url.clone(),
        ..scene.relay
    };
    Scene {
        database,
        relay,
        ..scene
    }
}

async fn refuses(relay: &RelayOf, because: &str) {
    let relay = relay.start().await;
    relay.says(because).await;
    assert_eq!(relay.ended().await.code(), Some(3));
}

async fn adopt(relay: &RelayOf, more: &[&str]) -> (Output, String) {
    let output = Command::new(binary())
        .args(["adopt", "--name", &relay.name])
        .args(["--database-url", &relay.database_url])
        .args(["--kafka-brokers", &relay.brokers])
        .args(more)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output, said)
}

#[test]
fn after_a_clean_switch_over_the_relay_waits_for_adopt_and_loses_nothing() {
    within(180, async {
        let [mut primary, standby] = own_postgres_with_standby().await;
        let scene = Scene::on(TestDatabase::on(&primary).await, CaptureKind::Table).await;
        let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
        let relay = scene.relay.start().await;
        relay.says("active").await;
        writers.more(100).await;
        // A backlog moves along.
        relay.kill9().await;
        writers.more(50).await;
        writers.stop().await;
        // An orderly stop sends all WAL to the standby first.
        primary.stop_fast().await.unwrap();
        promote(&standby).await;
        let scene = moved(scene, &standby);
        scene.commit("promoted", 1, 2).await;
        refuses(&scene.relay, "made on timeline 1, this is timeline 2").await;
        let (dry, said) = adopt(&scene.relay, &[]).await;
        assert!(
            dry.status.success() && said.contains("timeline: 1 becomes 2"),
            "{said}"
        );
        refuses(&scene.relay, "made on timeline 1, this is timeline 2").await;
        let (applied, said) = adopt(&scene.relay, &["--apply"]).await;
        assert!(applied.status.success(), "{said}");
        clean(&scene.check().await, 150);
    });
}

#[test]
fn after_a_lossy_failover_the_relay_refuses_and_adopt_too_while_it_can_tell() {
    within(180, async {
        let [mut primary, mut standby] = own_postgres_with_standby().await;
        let scene = Scene::on(TestDatabase::on(&primary).await, CaptureKind::Table).await;
        set_up(&scene.database, 3).await;
        let relay = scene.relay.start().await;
        scene.commit("both", 1, 1).await;
        scene.database.moved_to(&standby).has("ledger", 1).await;
        standby.stop_fast().await.unwrap();
        for i in 0..5 {
            scene.commit(&format!("lost{i}"), 1, 1).await;
        }
        let topic = format!("{}1", scene.prefix);
        records_from(&scene.relay.brokers, &topic, 6).await;
        relay.terminate().await;
        primary.kill9().await.unwrap();
        standby.start().await.unwrap();
        promote(&standby).await;
        let scene = moved(scene, &standby);
        refuses(&scene.relay, "made on timeline 1, this is timeline 2").await;
        let (refused, said) = adopt(&scene.relay, &["--apply"]).await;
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(said.contains("the server went back"), "{said}");
        // Once others have used up the lost ids, only a person can tell; the relay still refuses.
        for i in 0..20 {
            scene.commit(&format!("new{i}"), 1, 1).await;
        }
        refuses(&scene.relay, "made on timeline 1, this is timeline 2").await;
        assert_eq!(records(&scene.relay.brokers, &topic).await.len(), 6);
    });
}
