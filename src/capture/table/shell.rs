//! What the table capture asks of a database: the seam between its decisions and its IO.

use std::future::Future;

use crate::capture::registry::Registration;
use crate::capture::window::Planned;
use crate::event::Event;
use crate::fault::Fault;
use crate::position::{Origin, Position, Snapshot, Xid};

/// What one look at the table answers; all of it belongs to one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What is visible.
    pub snapshot: Snapshot,
    /// The end of WAL after the snapshot was taken, for [`Shell::is_flushed`].
    pub written: String,
    /// The highest transaction above the position of which a row is visible.
    pub highest: Option<Xid>,
    /// Rows of transactions are visible that were in progress at the position.
    pub late: bool,
}

impl Opened {
    /// Whether there is anything after the position.
    #[must_use]
    pub fn found(&self) -> bool {
        self.highest.is_some() || self.late
    }
}

/// One reading connection to a database, and what else the capture needs of it. A simulator implements it too.
///
/// Each method is one round trip: an event waits for each of them. Dropping its future leaves the connection usable: what
/// was begun is over after [`Shell::rollback`]. After an error the capture calls [`Shell::disconnect`].
#[allow(
    async_fn_in_trait,
    reason = "driven by the capture, which runs in the relay's one task"
)]
pub trait Shell {
    /// Where a large transaction streams from.
    type Pages: Pages + 'static;

    /// Whether there is a connection that is not known to be broken.
    fn is_connected(&self) -> bool;

    /// Connects, and finds out whether the table can be read; several round trips.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the table is missing or of a shape that can't be read; [`Fault::Unavailable`] if the server
    /// is away or a standby.
    async fn connect(&mut self) -> Result<Origin, Fault>;

    /// Opens a connection that `connect` will find. Asks nothing on it.
    async fn prepare(&mut self) {}

    /// Throws the connection away, in whatever state it is.
    fn disconnect(&mut self);

    /// The registrations of this name and of this table.
    ///
    /// # Errors
    /// As all below: [`Fault::Unavailable`] if the server is away, [`Fault::Refused`] if a person must act.
    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault>;

    /// The position that was acknowledged last, as this server has it.
    async fn acknowledged(&mut self) -> Result<Option<Position>, Fault>;

    /// A row's transaction that this server has not reached: the row came from another cluster.
    async fn foreign(&mut self) -> Result<Option<Xid>, Fault>;

    /// The present snapshot; touches no table.
    async fn snapshot(&mut self) -> Result<Snapshot, Fault>;

    /// Begins a transaction that keeps one snapshot, and looks at what is there after `seen`.
    async fn open(&mut self, seen: &Snapshot) -> Result<Opened, Fault>;

    /// Opens the plan: the transactions that `seen` has not seen and `until` has, above `last_seq`, by `max(seq)`. Answers
    /// the first `count` of them; fewer if there are no more.
    async fn plan(
        &mut self,
        seen: &Snapshot,
        until: &Snapshot,
        last_seq: i64,
        count: u64,
    ) -> Result<Vec<Planned>, Fault>;

    /// The next `count` transactions of the plan; fewer at its end.
    async fn planned(&mut self, count: u64) -> Result<Vec<Planned>, Fault>;

    /// The rows of these transactions, in any order. The transaction ends with it if they are the `last` of the plan.
    async fn rows(&mut self, xids: &[Xid], last: bool) -> Result<Vec<(Xid, Event)>, Fault>;

    /// Ends the transaction, and the plan with it.
    async fn rollback(&mut self) -> Result<(), Fault>;

    /// Whether all WAL up to `written` is flushed.
    async fn is_flushed(&mut self, written: &str) -> Result<bool, Fault>;

    /// Has WAL flushed now. On a connection of its own: this one may be inside a read-only transaction.
    async fn nudge(&mut self) -> Result<(), Fault>;

    /// A source of pages of what was planned at `origin`, on a connection of its own: the plan may go on meanwhile.
    fn pages(&self, origin: &Origin) -> Self::Pages;

    /// Writes `position` to `outbox.relay` and `outbox.marks`, on a connection of its own; two round trips.
    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault>;
}

/// The rows of one transaction, a page at a time.
pub trait Pages: Send {
    /// The next rows of `xid` above `after_seq`, by `seq`, `events` at most. Committed rows stay as they are, so no
    /// snapshot is held between pages.
    ///
    /// # Errors
    /// As those of [`Shell`], and [`Fault::Position`] if this is not where the transaction was planned: a standby that was
    /// promoted meanwhile may have given the same id to another transaction.
    fn page(
        &mut self,
        xid: Xid,
        after_seq: i64,
        events: u64,
    ) -> impl Future<Output = Result<Vec<Event>, Fault>> + Send;
}
