//! An asynchronous standby of PostgreSQL is promoted.

use std::process::Output;

use outbox_relay::capture::CaptureKind;
use outbox_relay::servers::Postgres;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::support::process::{RelayOf, binary};
use crate::support::scan::{records, records_from};
use crate::support::scene::{Scene, clean};
use crate::support::servers::{
    TestDatabase, keep_slots, own_postgres_with_standby, promote, slots_are_kept,
};
use crate::support::writers::{Load, Writers, finish_prepared, set_up};
use crate::support::{until, within};

/// The same relay on the promoted standby.
pub fn moved(scene: Scene, standby: &Postgres) -> Scene {
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

async fn rows(client: &Client, table: &str) -> i64 {
    let count = format!("select count(*) from {table}");
    client.query_one(&count, &[]).await.unwrap().get(0)
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

both_captures!(180, after_a_clean_switch_over_the_relay_goes_on_by_itself);

async fn after_a_clean_switch_over_the_relay_goes_on_by_itself(capture: CaptureKind) {
    let [mut primary, standby] = own_postgres_with_standby().await;
    keep_slots(&primary, &standby).await;
    let scene = Scene::on(TestDatabase::on(&primary).await, capture).await;
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    let relay = scene.relay.start().await;
    relay.says("active").await;
    writers.more(100).await;
    until("some of it is acknowledged", 20, async || {
        scene.acknowledged("true", &[]).await > 50
    })
    .await;
    if capture == CaptureKind::Wal {
        slots_are_kept(&primary, &standby).await;
    }
    // A backlog moves along.
    relay.kill9().await;
    writers.more(50).await;
    writers.stop().await;
    // An orderly stop sends all WAL to the standby first.
    primary.stop_fast().await.unwrap();
    promote(&standby).await;
    let scene = moved(scene, &standby);
    scene.commit("promoted", 1, 2).await;
    let relay = scene.relay.start().await;
    relay.says("a standby was promoted").await;
    relay.terminate().await;
    clean(&scene.check().await, 150);
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
        refuses(&scene.relay, "the server went back").await;
        let (refused, said) = adopt(&scene.relay, &["--apply"]).await;
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(said.contains("the server went back"), "{said}");
        // Once others have used up the lost ids, only a person can tell; the relay still refuses.
        for i in 0..20 {
            scene.commit(&format!("new{i}"), 1, 1).await;
        }
        refuses(&scene.relay, "made on timeline 1, this is timeline 2").await;
        assert_eq!(records(&scene.relay.brokers, &topic).await.len(), 6);
        let (dry, said) = adopt(&scene.relay, &[]).await;
        assert!(
            dry.status.success() && said.contains("timeline: 1 becomes 2"),
            "{said}"
        );
    });
}

#[test]
fn after_a_lossy_failover_a_relay_of_the_wal_says_that_history_divides() {
    within(180, async {
        let [mut primary, mut standby] = own_postgres_with_standby().await;
        keep_slots(&primary, &standby).await;
        let scene = Scene::on(TestDatabase::on(&primary).await, CaptureKind::Wal).await;
        let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
        let relay = scene.relay.start().await;
        slots_are_kept(&primary, &standby).await;
        writers.stop().await;
        let client = scene.database.connect().await;
        finish_prepared(&client, &scene.database.name).await;
        let on_standby = scene.database.moved_to(&standby);
        on_standby
            .has("ledger", rows(&client, "ledger").await)
            .await;
        standby.stop_fast().await.unwrap();
        for i in 0..5 {
            scene.commit(&format!("lost{i}"), 1, 1).await;
        }
        let committed = rows(&client, "outbox.events").await;
        until("all is published", 30, async || {
            scene.acknowledged("true", &[]).await == committed
        })
        .await;
        relay.terminate().await;
        primary.kill9().await.unwrap();
        standby.start().await.unwrap();
        promote(&standby).await;
        let scene = moved(scene, &standby);
        refuses(&scene.relay, "timeline 1 goes on without it").await;
        // Also when others have taken those places in the WAL.
        for i in 0..50 {
            scene.commit(&format!("new{i}"), 1, 1).await;
        }
        refuses(&scene.relay, "timeline 1 goes on without it").await;
    });
}
