//! The relay inside the test, for what the binary has no setting for: a short socket timeout, another shell of the sink.

use std::future::Future;
use std::sync::Arc;

use outbox_relay::capture::Either;
use outbox_relay::config::Settings;
use outbox_relay::lease::AdvisoryLease;
use outbox_relay::relay::{Relay, RelaySettings};
use outbox_relay::sink::kafka::KafkaSink;
use outbox_relay::sink::kafka::machine::Machine;
use outbox_relay::sink::kafka::producer::{Shell, ThreadShell};
use tokio_util::sync::CancellationToken;

use super::process::RelayOf;

/// A request without an answer fails after this. The binary waits 10 s.
pub const SOCKET_TIMEOUT_MS: u32 = 1_000;

/// Runs the relay beside `script`, with `shell` around the producer's, and drains it when the script has ended.
pub async fn beside<S: Shell, T>(
    relay: &RelayOf,
    shell: impl FnOnce(ThreadShell) -> S,
    script: impl Future<Output = T>,
) -> T {
    let settings = settings(relay);
    let lease = AdvisoryLease::new(
        settings.database.clone(),
        &settings.name,
        settings.lease_time,
    );
    let machine = Machine::new(settings.kafka.instance.clone(), SOCKET_TIMEOUT_MS);
    let shell = shell(ThreadShell::new(Arc::new(settings.kafka.clone())));
    let sink = KafkaSink::with_shell(machine, lease.clone(), shell);
    let how = RelaySettings {
        start: settings.start,
        until_caught_up: false,
    };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let script = async {
        let outcome = script.await;
        stopped.cancel();
        outcome
    };
    let capture = Either::new(settings.capture, settings.outbox, &settings.database);
    let capture = capture.expect("a capture");
    let relay = Relay::new(capture, sink, lease, how, stop);
    let (end, outcome) = tokio::join!(relay.run(), script);
    end.expect("the relay gets over it");
    outcome
}

fn settings(relay: &RelayOf) -> Settings {
    let mut settings = relay.options().settle().expect("settings");
    settings.kafka.socket_timeout_ms = SOCKET_TIMEOUT_MS;
    settings
}
