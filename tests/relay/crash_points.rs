//! The relay dies at each of its named points, some passes long, under writers; then the ledger is checked.

use std::os::unix::process::ExitStatusExt;

use futures_util::{StreamExt, stream};
use nix::sys::signal::Signal;
use outbox_relay::crash_point::CRASH_POINTS;

use super::faults::{Scene, clean};
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

async fn dies_at(point: &'static str) {
    let scene = Scene::new().await;
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
    writers.more(10).await;
    writers.stop().await;
    clean(&scene.check().await, 10);
}

#[test]
fn a_relay_that_dies_at_any_point_loses_nothing_and_repeats_nothing() {
    within(
        240,
        stream::iter(CRASH_POINTS)
            .map(dies_at)
            .buffer_unordered(AT_ONCE)
            .collect::<()>(),
    );
}
