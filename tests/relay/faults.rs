//! Faults under writers. Each test ends with the ledger check: nothing lost, doubled, torn, out of order or made up.

use std::time::Duration;

use nix::sys::signal::Signal;
use outbox_relay::capture::CaptureKind;
use outbox_relay::servers::PostgresVersion;
use tokio::time::sleep;

use crate::support::process::{RelayOf, RelayProcess};
use crate::support::scene::{Scene, clean};
use crate::support::servers::{TestDatabase, own_kafka, own_postgres};
use crate::support::until;
use crate::support::writers::{Load, Writers, set_up};

both_captures!(
    180,
    two_hundred_writers_with_inversions_savepoints_prepared_and_a_long_transaction
);

async fn two_hundred_writers_with_inversions_savepoints_prepared_and_a_long_transaction(
    capture: CaptureKind,
) {
    let scene = Scene::of(capture).await;
    let load = Load {
        writers: 200,
        pause: Duration::from_millis(300),
        ..Load::default()
    };
    let writers = Writers::start(&scene.database, &scene.prefix, load).await;
    // One transaction across everything; it must delay nobody, and come whole at the end.
    let long = scene.database.connect().await;
    let key = "insert into aggregate (id) values (1000); begin; select use_case('long', $P, array[1000], 3, true, false)";
    long.batch_execute(&key.replace("$P", &format!("'{}'", scene.prefix)))
        .await
        .unwrap();
    let relay = scene.relay.start().await;
    writers.more(3_000).await;
    until(
        "events published while a transaction stays open",
        30,
        async || scene.acknowledged("true", &[]).await > 1_000,
    )
    .await;
    writers.stop().await;
    long.batch_execute("commit").await.unwrap();
    relay.terminate().await;
    clean(&scene.check().await, 2_000);
}

both_captures!(240, thirty_kills_of_the_relay);

async fn thirty_kills_of_the_relay(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    for _ in 0..30 {
        let relay = scene.relay.start().await;
        relay.says("active").await;
        sleep(Duration::from_millis(fastrand::u64(0..900))).await;
        relay.kill9().await;
    }
    writers.stop().await;
    clean(&scene.check().await, 700);
}

both_captures!(240, the_broker_is_killed_and_comes_back);

async fn the_broker_is_killed_and_comes_back(capture: CaptureKind) {
    let mut kafka = own_kafka().await;
    let mut scene = Scene::of(capture).await;
    scene.relay.brokers = kafka.brokers().to_owned();
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    let relay = scene.relay.start().await;
    writers.more(300).await;
    for _ in 0..2 {
        kafka.kill9(1).await.unwrap();
        writers.more(100).await;
        kafka.start(1).await.unwrap();
        writers.more(300).await;
    }
    writers.stop().await;
    scene.caught_up().await;
    relay.terminate().await;
    clean(&scene.check().await, 700);
}

both_captures!(180, postgresql_is_restarted);

async fn postgresql_is_restarted(capture: CaptureKind) {
    let mut postgres = own_postgres(PostgresVersion::V17, &[]).await;
    let scene = Scene::on(TestDatabase::on(&postgres).await, capture).await;
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    let relay = scene.relay.start().await;
    for round in 1..=2 {
        writers.more(300).await;
        postgres.stop_fast().await.unwrap();
        until("it says so each time", 60, async || {
            relay.log().matches("PostgreSQL is not available").count() >= round
        })
        .await;
        postgres.start().await.unwrap();
    }
    writers.more(300).await;
    writers.stop().await;
    relay.terminate().await;
    clean(&scene.check().await, 600);
}

both_captures!(120, a_relay_that_waits_for_kafka_lets_postgresql_shut_down);

/// A server that shuts down waits for what it has sent to be confirmed, for as long as the stream is there.
async fn a_relay_that_waits_for_kafka_lets_postgresql_shut_down(capture: CaptureKind) {
    let mut kafka = own_kafka().await;
    let mut postgres = own_postgres(PostgresVersion::V17, &[]).await;
    let mut scene = Scene::on(TestDatabase::on(&postgres).await, capture).await;
    scene.relay.brokers = kafka.brokers().to_owned();
    // Not lost by a machine that is busy: then it would wait for Kafka without a stream.
    scene.relay = scene.relay.with(&["--lease-ms", "10000"]);
    set_up(&scene.database, 1).await;
    scene.commit("before", 1, 1).await;
    let relay = scene.relay.start().await;
    until("all is published", 30, async || {
        scene.acknowledged("true", &[]).await == 1
    })
    .await;
    kafka.kill9(1).await.unwrap();
    scene.commit("after", 1, 3).await;
    relay.says("publishing takes long").await;
    postgres.stop_fast().await.unwrap();
    postgres.start().await.unwrap();
    kafka.start(1).await.unwrap();
    scene.caught_up().await;
    relay.terminate().await;
    clean(&scene.check().await, 2);
}

both_captures!(
    240,
    postgresql_is_killed_under_asynchronous_commits_and_gives_xids_out_again
);

async fn postgresql_is_killed_under_asynchronous_commits_and_gives_xids_out_again(
    capture: CaptureKind,
) {
    // The WAL writer is lazy, so that a crash loses much of what was visible.
    let mut postgres = own_postgres(PostgresVersion::V17, &[("wal_writer_delay", "2s")]).await;
    let scene = Scene::on(TestDatabase::on(&postgres).await, capture).await;
    let load = Load {
        asynchronous_percent: 100,
        prepared: false,
        ..Load::default()
    };
    let writers = Writers::start(&scene.database, &scene.prefix, load).await;
    let relay = scene.relay.start().await;
    for _ in 0..6 {
        writers.more(200).await;
        // Rollbacks just before the crash: their ids come again.
        let client = scene.database.connect().await;
        for _ in 0..20 {
            let _ = client
                .batch_execute("begin; select outbox.publish('never', 'k', 'no'); rollback")
                .await;
        }
        postgres.kill9().await.unwrap();
        postgres.start().await.unwrap();
    }
    writers.more(200).await;
    writers.stop().await;
    relay.terminate().await;
    // What a crash took away is not in the ledger; most of what came after the last one is.
    clean(&scene.check().await, 100);
}

both_captures!(
    180,
    a_stopped_relay_is_succeeded_and_comes_back_to_power_only_after_its_successor
);

async fn a_stopped_relay_is_succeeded_and_comes_back_to_power_only_after_its_successor(
    capture: CaptureKind,
) {
    let scene = Scene::of(capture).await;
    let writers = Writers::start(&scene.database, &scene.prefix, Load::default()).await;
    let first = scene.relay.start().await;
    first.says("active").await;
    writers.more(100).await;
    let second = scene.relay.start().await;
    second.says("standing by").await;
    first.signal(Signal::SIGSTOP);
    second.says("active").await;
    writers.more(100).await;
    first.signal(Signal::SIGCONT);
    first.says("standing by").await;
    writers.more(300).await;
    let times_active = |relay: &RelayProcess| relay.log().matches("active:").count();
    assert!(times_active(&first) == 1, "no ping-pong: {}", first.log());
    assert!(
        times_active(&second) <= 2,
        "fenced at most once: {}",
        second.log()
    );
    // The same process publishes again, which the check must not take for two writers.
    second.kill9().await;
    until("the first is active again", 60, async || {
        times_active(&first) == 2
    })
    .await;
    writers.more(50).await;
    writers.stop().await;
    first.terminate().await;
    clean(&scene.check().await, 400);
}

both_captures!(180, two_services_on_one_server_and_one_kafka_do_not_meet);

async fn two_services_on_one_server_and_one_kafka_do_not_meet(capture: CaptureKind) {
    let (one, two) = (Scene::of(capture).await, Scene::of(capture).await);
    let writers = [
        Writers::start(&one.database, &one.prefix, Load::default()).await,
        Writers::start(&two.database, &two.prefix, Load::default()).await,
    ];
    let relays = [one.relay.start().await, two.relay.start().await];
    for writers in writers {
        writers.more(200).await;
        writers.stop().await;
    }
    for relay in relays {
        relay.terminate().await;
    }
    // Some of those that the writers count touch no events.
    clean(&one.check().await, 150);
    clean(&two.check().await, 150);
    // The name of one on the database of the other.
    let crossed = RelayOf {
        database_url: two.database.url.clone(),
        ..one.relay.clone()
    }
    .with(&["--until-caught-up"]);
    let relay = crossed.start().await;
    relay.says("is served by another relay").await;
    assert_eq!(relay.ended().await.code(), Some(3));
}

both_captures!(120, kafka_is_away_at_the_start);

async fn kafka_is_away_at_the_start(capture: CaptureKind) {
    let mut kafka = own_kafka().await;
    let mut scene = Scene::of(capture).await;
    scene.relay.brokers = kafka.brokers().to_owned();
    set_up(&scene.database, 1).await;
    scene.commit("before", 1, 1).await;
    kafka.kill9(1).await.unwrap();
    let relay = scene.relay.start().await;
    relay.says("Kafka is not available").await;
    kafka.start(1).await.unwrap();
    relay.says("active").await;
    relay.terminate().await;
    clean(&scene.check().await, 1);
}
