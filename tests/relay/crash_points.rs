//! The relay dies at each of its named points, some passes long, under writers; then the ledger is checked.

use std::os::unix::process::ExitStatusExt;

use futures_util::{StreamExt, stream};
use nix::sys::signal::Signal;
use outbox_relay::capture::CaptureKind;
use outbox_relay::crash_point::CRASH_POINTS;
use tokio::process::Command;

use crate::support::process::binary;
use crate::support::scene::{Scene, clean};
use crate::support::within;
use crate::support::writers::{Load, Writers};

/// Scenes at a time: they wait for the servers more than they work.
const AT_ONCE: usize = 4;

/// Points that a process passes only once; most others come again with each batch.
const ONCE: [&str; 8] = [
    "relay.leased",
    "kafka.create",
    "kafka.init_transactions",
    "kafka.read_position",
    "relay.genesis",
    "relay.drained",
    "kafka.drop_producer",
    "relay.closed",
];

/// Points that lie behind SIGTERM.
const AT_THE_END: [&str; 3] = ["relay.drained", "kafka.drop_producer", "relay.closed"];

/// The first pass of a new relay is the one of its first position, a later one that of a batch.
fn passes(point: &str) -> std::ops::RangeInclusive<u32> {
    match point {
        point if ONCE.contains(&point) => 1..=1,
        // Before and after the epoch is taken.
        "kafka.prove_lease" => 1..=2,
        _ => 1..=3,
    }
}

async fn dies_at(capture: CaptureKind, point: &'static str) {
    let scene = Scene::of(capture).await;
    let load = Load {
        writers: 5,
        ..Load::default()
    };
    let writers = Writers::start(&scene.database, &scene.prefix, load).await;
    for pass in passes(point) {
        let mut armed = scene.relay.clone();
        armed.crash_at = Some(format!("{point}:{pass}"));
        let relay = armed.start().await;
        if AT_THE_END.contains(&point) {
            relay.says("active").await;
            relay.signal(Signal::SIGTERM);
        }
        let status = relay.ended().await;
        assert_eq!(
            status.signal(),
            Some(Signal::SIGKILL as i32),
            "{point}:{pass}: {status}"
        );
    }
    // Some transactions undo all that they did, so fewer have events.
    writers.more(20).await;
    writers.stop().await;
    clean(&scene.check().await, 5);
}

#[test]
fn a_dry_run_of_adopt_sees_the_last_position_beside_an_open_transaction() {
    within(90, async {
        let scene = Scene::new().await;
        scene.relay.catch_up().await;
        let client = scene.database.connect().await;
        let publish = format!("select outbox.publish('{}0', 'k', 'v')", scene.prefix);
        client.batch_execute(&publish).await.unwrap();
        // The second flush is the one of the position record: it lies in the topic, not committed.
        let mut armed = scene.relay.clone();
        armed.crash_at = Some("kafka.flush:2".into());
        let status = armed.start().await.ended().await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
        let adopt = Command::new(binary())
            .args(["adopt", "--name", &armed.name])
            .args(["--database-url", &armed.database_url])
            .args(["--kafka-brokers", &armed.brokers])
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&adopt.stdout);
        assert!(
            adopt.status.success() && said.contains("stands at 1:1:"),
            "{adopt:?}"
        );
    });
}

both_captures!(
    240,
    a_relay_that_dies_at_any_point_loses_nothing_and_repeats_nothing
);

async fn a_relay_that_dies_at_any_point_loses_nothing_and_repeats_nothing(capture: CaptureKind) {
    stream::iter(CRASH_POINTS)
        .map(|point| dies_at(capture, point))
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}
