//! The relays of one name: one that always runs, and a second one now and then.
//!
//! They are started again only after what was done to them here. One that ends by itself breaks an invariant.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::time::{sleep, timeout};

use crate::support::process::{RelayOf, RelayProcess};

/// drain-ms, and time for a machine with few cores.
const END_MAX: Duration = Duration::from_secs(25);
/// "Stopped, but a server did not answer within drain-ms": allowed, where servers are killed.
const DRAIN_DEADLINE: i32 = 5;
/// For the first line of the log of a new process.
const BEGIN_MAX: Duration = Duration::from_secs(10);
const LOG_LINES: usize = 15;
const MAIN: usize = 0;
const SECOND: usize = 1;

/// What went against an invariant, and what was seen of it.
pub type Violations = Arc<Mutex<Vec<(&'static str, String)>>>;

/// Both relays.
pub struct Fleet {
    relay: RelayOf,
    slots: [AsyncMutex<Slot>; 2],
    violations: Violations,
    peak_rss_kb: AtomicU64,
    /// Held while a second relay is wanted.
    second: AsyncMutex<()>,
}

struct Slot {
    log: PathBuf,
    process: Option<RelayProcess>,
}

impl Fleet {
    /// Starts the first relay. The logs are in `folder`, one for each of the two.
    pub fn start(relay: RelayOf, folder: &std::path::Path, violations: Violations) -> Self {
        let slot = |number: usize| Slot {
            log: folder.join(format!("relay-{number}.log")),
            process: None,
        };
        let mut main = slot(MAIN);
        main.process = Some(relay.start_with_log(&main.log));
        Self {
            relay,
            slots: [AsyncMutex::new(main), AsyncMutex::new(slot(SECOND))],
            violations,
            peak_rss_kb: AtomicU64::new(0),
            second: AsyncMutex::new(()),
        }
    }

    /// Looks after both until it is dropped.
    pub async fn look_after(&self) {
        loop {
            for slot in &self.slots {
                let mut slot = slot.lock().await;
                self.look(&mut slot);
                if let Some(process) = &slot.process {
                    let kb = process.peak_rss_kb().unwrap_or(0);
                    self.peak_rss_kb.fetch_max(kb, Ordering::Relaxed);
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// I12: it may end only when it was told to.
    fn look(&self, slot: &mut Slot) {
        let Some(status) = slot.process.as_mut().and_then(RelayProcess::has_ended) else {
            return;
        };
        self.violation(slot, &format!("a relay ended by itself ({status})"));
        slot.process = Some(self.relay.start_with_log(&slot.log));
    }

    fn violation(&self, slot: &Slot, what: &str) {
        let text = format!("{what}; the end of its log:\n{}", tail(&slot.log));
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(("I12", text));
    }

    /// One of those that run.
    async fn any(&self) -> (usize, MutexGuard<'_, Slot>) {
        if fastrand::bool() {
            let slot = self.slots[SECOND].lock().await;
            if slot.process.is_some() {
                return (SECOND, slot);
            }
        }
        (MAIN, self.slots[MAIN].lock().await)
    }

    /// SIGKILL to one, and a new start at once.
    pub async fn kill9(&self) {
        let (_, mut slot) = self.any().await;
        self.kill_slot(&mut slot).await;
        slot.process = Some(self.relay.start_with_log(&slot.log));
    }

    /// The same, and again while the new one starts.
    pub async fn kill9_twice(&self, after: Duration) {
        let (_, mut slot) = self.any().await;
        for _ in 0..2 {
            self.kill_slot(&mut slot).await;
            slot.process = Some(self.relay.start_with_log(&slot.log));
            sleep(after).await;
        }
    }

    /// SIGTERM to one, and a new start when it has ended.
    pub async fn terminate(&self) {
        let (_, mut slot) = self.any().await;
        self.terminate_slot(&mut slot).await;
        slot.process = Some(self.relay.start_with_log(&slot.log));
    }

    /// SIGSTOP and SIGCONT to one, unless it is killed meanwhile.
    pub async fn pause(&self, time: Duration) {
        let (index, mut slot) = self.any().await;
        self.look(&mut slot);
        let Some(process) = &slot.process else { return };
        let pid = process.pid();
        process.signal(Signal::SIGSTOP);
        drop(slot);
        sleep(time).await;
        let mut slot = self.slots[index].lock().await;
        self.look(&mut slot);
        if let Some(process) = slot.process.as_ref().filter(|it| it.pid() == pid) {
            process.signal(Signal::SIGCONT);
        }
    }

    /// A second relay for a while.
    pub async fn second(&self, time: Duration, killed: bool) {
        let _one_at_a_time = self.second.lock().await;
        {
            let mut slot = self.slots[SECOND].lock().await;
            slot.process = Some(self.relay.start_with_log(&slot.log));
        }
        sleep(time).await;
        let mut slot = self.slots[SECOND].lock().await;
        if killed {
            self.kill_slot(&mut slot).await;
        } else {
            self.terminate_slot(&mut slot).await;
        }
    }

    async fn kill_slot(&self, slot: &mut Slot) {
        self.look(slot);
        if let Some(process) = slot.process.take() {
            process.kill9().await;
        }
    }

    async fn terminate_slot(&self, slot: &mut Slot) {
        self.look(slot);
        let Some(process) = slot.process.take() else {
            return;
        };
        // It may stand still by another fault.
        process.signal(Signal::SIGCONT);
        let _ = timeout(BEGIN_MAX, process.begins()).await;
        process.signal(Signal::SIGTERM);
        process.signal(Signal::SIGCONT);
        let pid = process.pid();
        match timeout(END_MAX, process.ended()).await {
            Ok(status) if status.success() || status.code() == Some(DRAIN_DEADLINE) => {}
            Ok(status) => self.violation(slot, &format!("SIGTERM ended with {status}")),
            // Dropped, it is killed.
            Err(_) => {
                crate::support::servers::own().release(pid);
                let seconds = END_MAX.as_secs();
                self.violation(slot, &format!("not ended {seconds} s after SIGTERM"));
            }
        }
    }

    /// Ends both, then runs one until all is published; I6 if that lasts longer than `limit`.
    pub async fn finish(&self, limit: Duration) {
        for slot in &self.slots {
            self.terminate_slot(&mut *slot.lock().await).await;
        }
        let slot = self.slots[MAIN].lock().await;
        let last = self.relay.clone().with(&["--until-caught-up"]);
        let process = last.start_with_log(&slot.log);
        match timeout(limit, process.ended()).await {
            Ok(status) if status.success() => {}
            Ok(status) => self.violation(&slot, &format!("catching up ended with {status}")),
            Err(_) => self.violation(&slot, "I6: the lag does not return to 0"),
        }
    }

    /// The most memory that one relay ever had.
    pub fn peak_rss_kb(&self) -> u64 {
        self.peak_rss_kb.load(Ordering::Relaxed)
    }
}

fn tail(log: &std::path::Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
