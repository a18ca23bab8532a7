//! Captures: where committed transactions come from.

pub(crate) mod columns;
mod either;
pub mod registry;
pub(crate) mod route;
pub mod table;
pub mod wal;
mod window;

use std::time::Duration;

pub use self::columns::Columns;
pub use self::either::{CaptureKind, Either};
pub use self::window::BatchLimits;
use crate::event::Batch;
use crate::fault::Fault;
use crate::position::Position;

/// Settings of a capture, whichever it is.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// Name of the relay, for `outbox.relay`.
    pub name: String,
    /// Host, process and a random part, for `outbox.relay.lease_holder`.
    pub instance: String,
    /// Whether the relay is registered in `outbox.relay`. A dry run into memory is not: it keeps no position.
    pub registers: bool,
    /// `schema.table`.
    pub table: String,
    /// Its columns.
    pub columns: Columns,
    /// Topic of rows without one; `{aggregate_type}` stands for the row's.
    pub route: String,
    /// Limits of a batch.
    pub batch: BatchLimits,
    /// How long the first transaction of a batch waits for others to join it; more of them share the cost of one Kafka
    /// transaction.
    pub linger: Duration,
    /// Table capture: time between two looks, when there was something.
    pub poll_min: Duration,
    /// Time between two looks, when there was nothing for long; the WAL capture waits as long for something to come.
    pub poll_max: Duration,
    /// WAL capture: name of its replication slot, and of its publication.
    pub slot: String,
}

/// Where a relay starts that has never run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// All rows that are in the table.
    Beginning,
    /// Only what commits from here on, for a table that another relay has served so far.
    Now,
}

/// The source seam. One suite in `tests/contracts` runs against every implementation.
///
/// * Batches hold whole transactions, in order; each comes with the position that stands after it.
/// * Nothing is handed out before it is durable in PostgreSQL; what was rolled back never appears.
/// * The same transactions may be handed out again after a restart; the position decides.
/// * Dropping the future of any method loses nothing: the next call starts from the position that it is given.
#[allow(
    async_fn_in_trait,
    reason = "the relay runs its captures in one task; no caller needs Send"
)]
pub trait Capture {
    /// May connect, while the sink is being opened. Reads nothing: what holds before the older relay is fenced may not hold
    /// after.
    async fn prepare(&mut self) {}

    /// The position at which a relay begins that never ran here.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the name is registered already: then a position must exist, and losing it is no first start.
    async fn genesis(&mut self, start: Start) -> Result<Position, Fault>;

    /// What was committed after `after`. Waits a short while (`poll_ms_max`) for something to come; `None` means that
    /// nothing is there.
    ///
    /// # Errors
    /// [`Fault::Position`] if `after` can't be resumed from here; [`Fault::Unavailable`] if the server is away.
    async fn next(&mut self, after: &Position) -> Result<Option<Batch>, Fault>;

    /// All up to `position` is published: registers the relay in `outbox.relay`, and lets retention know. Monotonic and
    /// idempotent. A copy and a guard: the truth is the sink's position.
    ///
    /// # Errors
    /// [`Fault::Refused`] if another name serves this table.
    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault>;

    /// From now on a batch holds so many transactions at most, within the limits that were set.
    fn limit(&mut self, transactions_max: u64);

    /// Lets go of the server; the next call connects anew. A capture that is not read must not stay connected: a server
    /// that shuts down waits for each replication stream to say that it has all.
    fn close(&mut self);
}
