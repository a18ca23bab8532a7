//! Retention: what was published long enough ago is deleted from the outbox table, beside the loop, on a connection of its own.
//!
//! What was published when is known from `outbox.marks`: a position a minute. A row may go if the newest mark that is older
//! than the retention has seen its transaction. `occurred_at`, `seq` and the age of a row say nothing: a long transaction
//! commits late with old values.
//!
//! Why nothing goes that is still needed:
//!
//! * **Published.** A mark is a copy of a position that was read from, or committed to, Kafka.
//! * **Of this history.** Marks of another cluster, timeline, database or table are not used: transaction ids mean something
//!   else there. After a promotion all that was published is covered by the marks that come.
//! * **Not ahead of the relay.** A mark is used only if the position that *this process* acknowledged last has seen as much.
//!   So where Kafka was set back, nothing goes that must be published again.
//! * **Settled.** What is parked or held stays, though the position has passed it.
//! * **Nobody reads it.** The captures look for what the relay's position has not seen; `move` and `recover` too. The tally
//!   after a promotion counts what came after the last acknowledged position, and no mark is ahead of that. The highest
//!   transaction of which there is a row may fall; then a position claims less.
//!
//! That the lease is held spares double work; none of this rests on it.
//!
//! A plain table loses its rows in small portions. Of a partitioned one each leaf is truncated once all in it may go.
//! `truncate` is not MVCC-safe: a snapshot from before it finds the leaf empty. All that it misses are rows that may go, and
//! nobody looks for those.

mod decide;
mod store;

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

pub use self::decide::{Old, Unusable};
use self::decide::{Step, steps};
use self::store::{Place, Store};
use crate::capture::CaptureSettings;
use crate::database::Database;
use crate::fault::Fault;
use crate::lease::Lease;
use crate::position::Snapshot;

/// Between two looks whether there is a mark to go by.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Rows of one statement: some milliseconds, and a few hundred kilobytes of WAL.
const ROWS_MAX: u32 = 1_000;
/// After a statement comes a pause at least so long, and at least twice as long as the statement took: deleting takes a third
/// of one backend at most.
const PAUSE: Duration = Duration::from_millis(10);
/// A leaf that somebody works in is tried again so often, then with the next look.
const TRIES: u32 = 20;
/// How long published rows stay, and of which table.
#[derive(Clone)]
pub struct RetentionSettings {
    /// They stay so long after they were published.
    pub minutes: i32,
    /// The table.
    pub outbox: CaptureSettings,
    /// Where it is.
    pub database: Database,
}

/// Starts the task; it ends when the handle is dropped.
pub fn start<L>(settings: RetentionSettings, lease: L) -> AbortOnDropHandle<()>
where
    L: Lease + Send + Sync + 'static,
{
    let retention = Retention {
        settings,
        lease,
        store: None,
        done: None,
        told: None,
    };
    AbortOnDropHandle::new(tokio::spawn(retention.run()))
}

struct Retention<L> {
    settings: RetentionSettings,
    lease: L,
    store: Option<Store>,
    /// The mark that was gone by last, to its end, and below what there was nothing left.
    done: Option<(String, Place)>,
    /// What the log was told last, so that it is told once.
    told: Option<String>,
}

/// What went.
#[derive(Default)]
struct Gone {
    rows: u64,
    leaves: u64,
}

impl<L: Lease> Retention<L> {
    async fn run(mut self) {
        loop {
            sleep(LOOK_EVERY).await;
            if self.lease.held().is_err() {
                self.store = None;
                continue;
            }
            match self.pass().await {
                Ok(None) => self.told = None,
                Ok(Some(unusable)) => {
                    self.tell(|| info!("nothing is deleted yet: {unusable}"), &unusable)
                }
                // The loop says so.
                Err(Fault::LeaseLost(_)) => self.store = None,
                Err(fault) => {
                    self.store = None;
                    self.tell(|| warn!("published rows are not deleted: {fault}"), &fault);
                }
            }
        }
    }

    fn tell(&mut self, say: impl FnOnce(), what: &impl ToString) {
        let what = Some(what.to_string());
        if self.told != what {
            say();
            self.told = what;
        }
    }

    /// Deletes what may go by the newest mark that is old enough, if it was not gone by yet.
    async fn pass(&mut self) -> Result<Option<Unusable>, Fault> {
        let RetentionSettings {
            minutes,
            outbox,
            database,
        } = &self.settings;
        let store = match self.store.take() {
            Some(store) => store,
            None => Store::connect(database, outbox).await?,
        };
        let store = self.store.insert(store);
        store.mark().await?;
        let Some(old) = store.old(*minutes).await? else {
            return Ok(None);
        };
        let from = match &self.done {
            Some((at, _)) if *at == old.at => return Ok(None),
            // What was not settled then lies behind it too.
            Some((_, from)) => *from,
            None => Place::default(),
        };
        let unsettled = store.unsettled().await?;
        let may_go = match old.may_go(&store.origin, store.next_xid().await?, &unsettled) {
            Ok(may_go) => may_go,
            Err(unusable) => return Ok(Some(unusable)),
        };
        let (gone, all) = Pass {
            store,
            lease: &self.lease,
            may_go: &may_go,
        }
        .run(from)
        .await?;
        if gone.rows + gone.leaves > 0 {
            info!(
                rows = gone.rows,
                leaves = gone.leaves,
                "deleted what was published before {}",
                old.at
            );
        }
        if all {
            while store.prune(&old.at, ROWS_MAX).await? > 0 {
                sleep(PAUSE).await;
            }
            self.done = Some((old.at, (may_go.xmin(), i64::MIN)));
        }
        Ok(None)
    }
}

/// One way through the table.
struct Pass<'a, L> {
    store: &'a Store,
    lease: &'a L,
    may_go: &'a Snapshot,
}

impl<L: Lease> Pass<'_, L> {
    /// What went, and whether nothing is left to be done.
    async fn run(&self, from: Place) -> Result<(Gone, bool), Fault> {
        let (store, mut gone) = (self.store, Gone::default());
        let names = store.leaves().await?;
        if names.is_empty() {
            gone.rows = self.delete(&store.table, from).await?;
            return Ok((gone, true));
        }
        let mut leaves = Vec::new();
        for name in names {
            leaves.push(store.leaf(name, self.may_go).await?);
        }
        let mut all = true;
        for (leaf, step) in leaves.iter().zip(steps(&leaves)) {
            match step {
                Step::Leave => {}
                Step::Truncate => match self.truncate(&leaf.name).await? {
                    true => gone.leaves += 1,
                    false => all = false,
                },
                Step::Delete => match self.delete(&leaf.name, Place::default()).await? {
                    0 => {}
                    // It may be seen now that another leaf is in the same state.
                    rows => (gone.rows, all) = (gone.rows + rows, false),
                },
            }
        }
        Ok((gone, all))
    }

    async fn delete(&self, table: &str, mut after: Place) -> Result<u64, Fault> {
        let mut rows = 0;
        loop {
            self.lease.held()?;
            let since = Instant::now();
            let deleted = self.store.delete(table, self.may_go, after, ROWS_MAX);
            let Some((last, count)) = deleted.await? else {
                return Ok(rows);
            };
            (after, rows) = (last, rows + count);
            sleep(PAUSE.max(since.elapsed() * 2)).await;
        }
    }

    async fn truncate(&self, leaf: &str) -> Result<bool, Fault> {
        for _ in 0..TRIES {
            self.lease.held()?;
            if self.store.truncate(leaf, self.may_go).await? {
                return Ok(true);
            }
            sleep(PAUSE * 5).await;
        }
        Ok(false)
    }
}
