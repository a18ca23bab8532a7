//! What the WAL capture asks of a database: the seam between its decisions and its IO.

use std::future::Future;

use bytes::Bytes;

use super::slot::Slot;
use super::timeline::Left;
use crate::capture::registry::Registration;
use crate::fault::Fault;
use crate::position::{Lsn, Origin, Position, Snapshot, Xid};

/// What was found at a connection.
#[derive(Clone, Debug)]
pub struct Here {
    /// Server, database, table.
    pub origin: Origin,
    /// The next transaction id that the server gives out, or one below it, but above all that were streamed.
    pub next_xid: Xid,
    /// A place in the WAL behind all that was committed before the connection.
    pub committed: Lsn,
    /// The slot; `None`: there is none of this name.
    pub slot: Option<Slot>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// The publication is there, and publishes the table's inserts.
    pub published: bool,
}

/// The present, for a position that must also say which transactions it stands for.
#[derive(Clone, Debug)]
pub struct Present {
    /// What is visible.
    pub snapshot: Snapshot,
    /// The highest transaction of which a row of the table is visible.
    pub highest: Option<Xid>,
    /// A place in the WAL behind all that the snapshot sees.
    pub written: Lsn,
}

/// What is known of the time when the slot was made.
#[derive(Clone, Debug)]
pub struct SlotMade {
    /// All that commits beyond it is streamed.
    pub consistent: Lsn,
    /// The table holds rows that had committed by then.
    pub older_rows: bool,
    /// Exactly what had committed by then, if that is known. All of it is durable: making a slot flushes the WAL.
    pub seen: Option<Snapshot>,
}

/// What a stream brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A message of pgoutput.
    Message(Bytes),
    /// All that committed up to here was sent.
    Reached(Lsn),
}

/// A connection for questions, and what else the capture needs of a database. A simulator implements it too.
///
/// Each method is one round trip, but for [`Shell::connect`] and [`Shell::stream`]. After an error the capture calls
/// [`Shell::disconnect`].
#[allow(
    async_fn_in_trait,
    reason = "driven by the capture, which runs in the relay's one task"
)]
pub trait Shell {
    /// The replication connection.
    type Stream: Stream + 'static;

    /// Whether there is a connection that is not known to be broken.
    fn is_connected(&self) -> bool;

    /// Connects, and finds out what the capture must know before it reads.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the server can't be read from; [`Fault::Unavailable`] if it is away or a standby.
    async fn connect(&mut self) -> Result<Here, Fault>;

    /// Opens a connection that `connect` will find. Asks nothing on it.
    async fn prepare(&mut self) {}

    /// Throws the connection away, in whatever state it is.
    fn disconnect(&mut self);

    /// The registrations of this name and of this table.
    ///
    /// # Errors
    /// As all below: [`Fault::Unavailable`] if the server is away, [`Fault::Refused`] if a person must act.
    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault>;

    /// What is visible now, and where the WAL ends.
    async fn present(&mut self) -> Result<Present, Fault>;

    /// The timelines that led to the one of `origin`. Needs the same privilege as the stream.
    async fn left(&mut self, origin: &Origin) -> Result<Vec<Left>, Fault>;

    /// Has the server write what lets a slot go of old WAL, where we may (`pg_log_standby_snapshot()`, PostgreSQL 16 and
    /// newer): by itself it does so every 15 s, which is much WAL on a busy server.
    async fn let_go(&mut self) -> Result<(), Fault>;

    /// When the slot was made, if we made it.
    async fn slot_made(&mut self) -> Result<Option<SlotMade>, Fault>;

    /// Streams what commits beyond `from`, from the server of `origin` and from no other.
    async fn stream(&mut self, origin: &Origin, from: Lsn) -> Result<Self::Stream, Fault>;

    /// Writes `position` to `outbox.relay` and `outbox.marks`, on a connection of its own; two round trips.
    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault>;
}

/// A replication stream. Dropping it ends it.
pub trait Stream: Send {
    /// What comes next; waits for it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the connection is gone, [`Fault::Refused`] if the slot is.
    fn next(&mut self) -> impl Future<Output = Result<Sent, Fault>> + Send;

    /// A handle that tells the slot what it need not keep.
    fn feedback(&self) -> Feedback;
}

/// Tells the slot how far its WAL is not needed any more; the stream sends it at the next occasion.
pub type Feedback = tokio::sync::watch::Sender<Lsn>;
