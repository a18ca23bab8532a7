//! Moving between the captures, and recovering from a lost slot, with writers at work and kill -9 at each step.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use nix::sys::signal::Signal;
use outbox_relay::capture::CaptureKind;
use outbox_relay::servers::PostgresVersion;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::support::process::{RelayOf, binary};
use crate::support::scene::{Scene, clean};
use crate::support::servers::{TestDatabase, own_postgres};
use crate::support::writers::{Load, Writers};
use crate::support::{until, within};

async fn command(relay: &RelayOf, words: &[&str], crash_at: Option<&str>) -> Output {
    Command::new(binary())
        .args(words)
        .args(["--name", &relay.name])
        .args(["--database-url", &relay.database_url])
        .args(["--kafka-brokers", &relay.brokers])
        .args(["--create-topics", "true"])
        .envs(crash_at.map(|at| ("OUTBOX_RELAY_CRASH_AT", format!("{at}:1"))))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

/// Dies at each of these points in turn, then comes through. Answers what it says at last.
async fn in_spite_of(relay: &RelayOf, words: &[&str], points: &[&str]) -> String {
    for point in points {
        let output = command(relay, words, Some(point)).await;
        let killed = output.status.signal() == Some(Signal::SIGKILL as i32);
        assert!(killed, "{words:?} at {point}: {output:?}");
    }
    let output = command(relay, words, None).await;
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn few_writers(scene: &Scene) -> Writers {
    let load = Load {
        writers: 6,
        ..Load::default()
    };
    Writers::start(&scene.database, &scene.prefix, load).await
}

async fn slots(client: &Client) -> i64 {
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    client.query_one(slots, &[]).await.unwrap().get(0)
}

/// Emits events without rows, one to a transaction, until that is refused. Answers how many.
async fn emit_until_refused(scene: &Scene) -> u64 {
    let client = scene.database.connect().await;
    for n in 1.. {
        let emit = format!(
            "begin;
             insert into ledger
             select 'emit{n}', 1, outbox.emit('{0}0', 'emitted', 'e', 'Happened', jsonb_build_object('version', {n})), '{0}0', 'emitted', {n};
             commit",
            scene.prefix
        );
        if let Err(error) = client.batch_execute(&emit).await {
            let says = error.as_db_error().unwrap().message();
            assert!(says.contains("needs a relay with capture wal"), "{says}");
            return n - 1;
        }
    }
    unreachable!("it is refused one day")
}

#[test]
fn to_the_wal_and_back_with_writers_and_kills_at_each_step() {
    within(240, async {
        let mut scene = Scene::new().await;
        let client = scene.database.connect().await;
        let writers = few_writers(&scene).await;
        let relay = scene.relay.start().await;
        writers.more(30).await;
        let busy = command(&scene.relay, &["move", "--to", "wal"], None).await;
        let said = String::from_utf8_lossy(&busy.stderr);
        assert!(said.contains("is active; stop it first"), "{said}");
        relay.terminate().await;

        let points = [
            "move.publication",
            "move.slot",
            "move.caught_up",
            "move.stored",
        ];
        let said = in_spite_of(&scene.relay, &["move", "--to", "wal"], &points).await;
        assert!(
            said.contains("start the relay with --capture wal"),
            "{said}"
        );
        let wrong = scene.relay.start().await;
        wrong
            .says("made by capture wal, this relay runs capture table")
            .await;
        assert_eq!(wrong.ended().await.code(), Some(3));
        scene.relay.capture = CaptureKind::Wal;
        let relay = scene.relay.start().await;
        relay.says("active").await;
        let registered = "select exists (select from outbox.relay where capture = 'wal')";
        until("it is registered", 20, async || {
            client.query_one(registered, &[]).await.unwrap().get(0)
        })
        .await;
        let emitted = async {
            let emitted = emit_until_refused(&scene).await;
            assert!(emitted > 0);
        };
        let and_back = async {
            writers.more(50).await;
            relay.kill9().await;
            let points = [
                "move.no_more_emits",
                "move.caught_up",
                "move.stored",
                "move.slot_dropped",
            ];
            in_spite_of(&scene.relay, &["move", "--to", "table"], &points).await
        };
        let ((), said) = tokio::join!(emitted, and_back);
        assert!(
            said.contains("start the relay with --capture table"),
            "{said}"
        );
        assert_eq!(slots(&client).await, 0);
        scene.relay.capture = CaptureKind::Table;
        let relay = scene.relay.start().await;
        writers.more(30).await;
        writers.stop().await;
        relay.terminate().await;
        clean(&scene.check().await, 100);
    });
}

/// The slot is lost while no relay runs and writers go on; then the relay recovers.
async fn recovers(mut scene: Scene, lose: impl AsyncFnOnce(&Client, &str), says: &str) {
    scene.relay.capture = CaptureKind::Wal;
    let client = scene.database.connect().await;
    let slot = scene.relay.options().outbox().unwrap().slot;
    let writers = few_writers(&scene).await;
    let relay = scene.relay.start().await;
    relay.says("active").await;
    writers.more(50).await;
    relay.kill9().await;
    writers.more(30).await;
    let free = format!("select not active from pg_replication_slots where slot_name = '{slot}'");
    until("the slot is free", 20, async || {
        client.query_one(&free, &[]).await.unwrap().get(0)
    })
    .await;
    lose(&client, &slot).await;
    let relay = scene.relay.start().await;
    relay.says(says).await;
    assert_eq!(relay.ended().await.code(), Some(3));

    let dry = in_spite_of(&scene.relay, &["recover"], &[]).await;
    assert!(
        dry.contains("that were not published") && dry.contains("nothing was changed"),
        "{dry}"
    );
    assert!(!dry.contains("holds 0 events"), "{dry}");
    let points = [
        "move.recovering",
        "move.slot_dropped",
        "move.dropped",
        "move.publication",
        "move.slot",
        "move.caught_up",
        "move.stored",
    ];
    let said = in_spite_of(&scene.relay, &["recover", "--apply"], &points).await;
    assert!(
        said.contains("start the relay with --capture wal"),
        "{said}"
    );
    let relay = scene.relay.start().await;
    writers.more(30).await;
    writers.stop().await;
    relay.terminate().await;
    clean(&scene.check().await, 100);
}

#[test]
fn recovery_from_a_slot_that_was_dropped() {
    within(240, async {
        let scene = Scene::of(CaptureKind::Wal).await;
        let lose = async |client: &Client, slot: &str| {
            let drop = format!("select pg_drop_replication_slot('{slot}')");
            client.batch_execute(&drop).await.unwrap();
        };
        recovers(scene, lose, "there is no replication slot").await;
    });
}

#[test]
fn recovery_from_a_slot_that_lost_its_wal() {
    within(240, async {
        let settings = [
            ("max_slot_wal_keep_size", "16MB"),
            ("max_wal_size", "48MB"),
            ("min_wal_size", "32MB"),
        ];
        let postgres = own_postgres(PostgresVersion::V18, &settings).await;
        let database = TestDatabase::on(&postgres).await;
        let scene = Scene::on(database, CaptureKind::Wal).await;
        let lose = async |client: &Client, slot: &str| {
            client
                .batch_execute("create table noise (t text)")
                .await
                .unwrap();
            let lost = format!(
                "select wal_status = 'lost' from pg_replication_slots where slot_name = '{slot}'"
            );
            until("the WAL is gone", 60, async || {
                let noise = "insert into noise select repeat(md5(i::text), 30) from generate_series(1, 30000) i";
                client.batch_execute(noise).await.unwrap();
                client.batch_execute("checkpoint").await.unwrap();
                client.query_one(&lost, &[]).await.unwrap().get(0)
            })
            .await;
        };
        recovers(scene, lose, "is lost").await;
    });
}
