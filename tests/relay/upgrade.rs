//! A rolling upgrade, and back: two releases of one relay take turns as active and standby, with writers at work.
//!
//! `OUTBOX_RELAY_TEST_PREVIOUS` names the program of the other release; without it, it is this one.

use std::path::PathBuf;

use outbox_relay::capture::CaptureKind;

use crate::support::process::RelayOf;
use crate::support::scene::{Scene, clean};
use crate::support::writers::{Load, Writers};

both_captures!(240, two_releases_take_turns);

async fn two_releases_take_turns(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let this = scene.relay.clone();
    let previous = match std::env::var_os("OUTBOX_RELAY_TEST_PREVIOUS") {
        Some(program) => RelayOf {
            program: PathBuf::from(program),
            ..this.clone()
        },
        None => this.clone(),
    };
    let load = Load {
        writers: 6,
        ..Load::default()
    };
    let writers = Writers::start(&scene.database, &scene.prefix, load).await;
    let mut active = previous.start().await;
    active.says("active").await;
    for turn in 0..6 {
        writers.more(50).await;
        let next = if turn % 2 == 0 { &this } else { &previous };
        let next = next.start().await;
        next.says("standing by").await;
        match turn {
            0..3 => active.terminate().await,
            _ => active.kill9().await,
        }
        next.says("active").await;
        active = next;
    }
    writers.more(50).await;
    writers.stop().await;
    scene.caught_up().await;
    active.terminate().await;
    clean(&scene.check().await, 300);
}
