//! Servers, a database and topics per test, writers with a ledger, relay processes, and the check at the end.

#![allow(dead_code, reason = "the tests and the soak use different parts of it")]

pub mod acl;
pub mod cluster;
pub mod local;
pub mod process;
pub mod proxy;
pub mod scan;
pub mod scene;
pub mod servers;
#[cfg(test)]
pub mod strict;
pub mod topic;
pub mod writers;

use std::future::Future;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_test_writer()
        .try_init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// Limits are those of a quiet machine; a busy one gets so many times as long. They end what hangs, and measure nothing.
pub const BUSY: u64 = 3;

/// Runs a test on the one runtime, for at most `seconds` of a quiet machine.
pub fn within<T>(seconds: u64, test: impl Future<Output = T>) -> T {
    let seconds = seconds * BUSY;
    RUNTIME.block_on(async {
        // Dropped while it panics, so that what a test leaves for a look stays.
        let mut test = pin!(test);
        match tokio::time::timeout(Duration::from_secs(seconds), &mut test).await {
            Ok(end) => end,
            Err(_) => panic!("not done after {seconds} s"),
        }
    })
}

/// Waits until `condition` holds, asking every 20 ms; the limit of the test is the limit.
pub async fn until(what: &str, seconds: u64, mut condition: impl AsyncFnMut() -> bool) {
    let (since, seconds) = (Instant::now(), seconds * BUSY);
    while !condition().await {
        assert!(
            since.elapsed() < Duration::from_secs(seconds),
            "not within {seconds} s: {what}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// A name that no other test of this run and no earlier run has.
pub fn unique(prefix: &str) -> String {
    format!(
        "{prefix}-{}",
        &uuid::Uuid::new_v4().simple().to_string()[..10]
    )
}
