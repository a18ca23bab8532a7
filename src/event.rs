//! What flows: events, slices of transactions, and batches of whole transactions.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::fault::Fault;
use crate::position::Position;

/// One row of the outbox table, as it will be published.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Order of insertion in the table.
    pub seq: i64,
    /// Event id, header `id`.
    pub id: Uuid,
    /// Topic, already routed: the row's own, or the template filled with its aggregate type.
    pub topic: Arc<str>,
    /// Record key, byte for byte; `None` spreads records over the partitions.
    pub key: Option<Bytes>,
    /// Header `type`.
    pub event_type: Option<String>,
    /// Record value, byte for byte; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The row's own headers, in the row's order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Record timestamp, milliseconds since 1970 UTC.
    pub occurred_at_ms: i64,
}

impl Event {
    /// Bytes that the event brings to a batch: its payload and key and a flat part for the rest.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const REST: usize = 128;
        REST + self.payload.as_ref().map_or(0, Bytes::len) + self.key.as_ref().map_or(0, Bytes::len)
    }
}

/// Consecutive events of one database transaction: all of it, or a part of one that is too large to hold in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// `<system identifier>-<timeline>-<xid8>`, header `tx-id`.
    pub tx_id: Arc<str>,
    /// Number of events in the whole transaction, header `tx-count`.
    pub tx_count: u64,
    /// Index of the first event of this slice inside its transaction, from 0, header `tx-index`.
    pub first_index: u64,
    /// The events, by `seq`.
    pub events: Vec<Event>,
}

/// Where the slices of a batch come from that is too large for memory.
pub trait SliceSource: Send {
    /// The next slice, or `None` when the batch is complete.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Slice>, Fault>> + Send + '_>>;
}

/// Whole transactions in order, with the position that stands after them.
///
/// A handle that streams: the sink takes slices until there are none, so that a transaction that is larger than the
/// memory limits still goes into one Kafka transaction.
pub struct Batch {
    /// Where the capture stands when all of this batch is published.
    pub after: Position,
    /// Database transactions in this batch.
    pub transactions: u64,
    /// Events in this batch.
    pub events: u64,
    /// True when this batch completes all that was committed before the capture was opened.
    pub catches_up: bool,
    ready: VecDeque<Slice>,
    rest: Option<Box<dyn SliceSource>>,
}

impl Batch {
    /// A batch that is in memory as a whole: one slice for each transaction.
    #[must_use]
    pub fn of(slices: Vec<Slice>, after: Position, catches_up: bool) -> Self {
        Self {
            after,
            transactions: slices.len() as u64,
            events: slices.iter().map(|slice| slice.events.len() as u64).sum(),
            catches_up,
            ready: slices.into(),
            rest: None,
        }
    }

    /// One transaction of `events` events that streams from `rest`.
    #[must_use]
    pub fn streaming(
        rest: Box<dyn SliceSource>,
        events: u64,
        after: Position,
        catches_up: bool,
    ) -> Self {
        Self {
            after,
            transactions: 1,
            events,
            catches_up,
            ready: VecDeque::new(),
            rest: Some(rest),
        }
    }

    /// A position without events: the first record of a relay's life.
    #[must_use]
    pub fn genesis(at: Position) -> Self {
        Self::of(Vec::new(), at, false)
    }

    /// Whether it is in memory.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// What is in memory of it.
    pub fn into_slices(self) -> impl Iterator<Item = Slice> {
        self.ready.into_iter()
    }

    /// Header `tx-id` of the first transaction; takes nothing.
    ///
    /// # Errors
    /// As those of [`next`](Self::next).
    pub async fn first_tx_id(&mut self) -> Result<Option<Arc<str>>, Fault> {
        if self.ready.is_empty()
            && let Some(first) = self.next().await?
        {
            self.ready.push_front(first);
        }
        Ok(self.ready.front().map(|slice| Arc::clone(&slice.tx_id)))
    }

    /// The next slice, or `None` when the batch is complete.
    ///
    /// # Errors
    /// Only a streaming batch can fail: its database went away, or rows of it were deleted meanwhile.
    pub async fn next(&mut self) -> Result<Option<Slice>, Fault> {
        match (self.ready.pop_front(), &mut self.rest) {
            (Some(slice), _) => Ok(Some(slice)),
            (None, Some(rest)) => rest.next().await,
            (None, None) => Ok(None),
        }
    }
}
