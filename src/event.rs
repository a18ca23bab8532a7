//! What flows: events, slices of transactions, and batches of whole transactions.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Number of events in the whole transaction, header `tx-count`; 0: this is a letter about it, and none of its events.
    pub tx_count: u64,
    /// Index of the first event of this slice inside its transaction, from 0, header `tx-index`.
    pub first_index: u64,
    /// The events, by `seq`.
    pub events: Vec<Event>,
}

impl Slice {
    /// Whether it tells the dead-letter topic of a transaction.
    #[must_use]
    pub fn is_letter(&self) -> bool {
        self.tx_count == 0
    }
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
    knows_commits: bool,
    passed: Arc<Mutex<Passed>>,
}

/// What went through a batch, for metrics: complete when the batch is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Of payloads and keys.
    pub bytes: u64,
    /// When each transaction was committed, milliseconds since 1970 UTC by the database's clock; where the capture can't
    /// know that, when its last event occurred.
    pub committed_at_ms: Vec<i64>,
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
            knows_commits: false,
            passed: Arc::default(),
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
            knows_commits: false,
            passed: Arc::default(),
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

    /// What is in memory of it, and when each of its transactions was committed, where the capture knows that.
    #[must_use]
    pub fn into_slices(self) -> (VecDeque<Slice>, Option<Vec<i64>>) {
        let times = std::mem::take(&mut locked(&self.passed).committed_at_ms);
        (self.ready, self.knows_commits.then_some(times))
    }

    /// Header `tx-id` of the first transaction; takes nothing.
    ///
    /// # Errors
    /// As those of [`next`](Self::next).
    pub async fn first_tx_id(&mut self) -> Result<Option<Arc<str>>, Fault> {
        if self.ready.is_empty()
            && let Some(first) = self.take().await?
        {
            self.ready.push_front(first);
        }
        Ok(self.ready.front().map(|slice| Arc::clone(&slice.tx_id)))
    }

    /// The capture knows when its transactions were committed, milliseconds since 1970 UTC.
    #[must_use]
    pub fn committed_at_ms(mut self, times: Vec<i64>) -> Self {
        self.knows_commits = true;
        locked(&self.passed).committed_at_ms = times;
        self
    }

    /// Counts what goes through, also while somebody else takes the slices.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.passed))
    }

    /// The next slice, or `None` when the batch is complete.
    ///
    /// # Errors
    /// Only a streaming batch can fail: its database went away, or rows of it were deleted meanwhile.
    pub async fn next(&mut self) -> Result<Option<Slice>, Fault> {
        let slice = self.take().await?;
        if let Some(slice) = &slice {
            locked(&self.passed).add(slice, self.knows_commits);
        }
        Ok(slice)
    }

    async fn take(&mut self) -> Result<Option<Slice>, Fault> {
        match (self.ready.pop_front(), &mut self.rest) {
            (Some(slice), _) => Ok(Some(slice)),
            (None, Some(rest)) => rest.next().await,
            (None, None) => Ok(None),
        }
    }
}

impl Passed {
    fn add(&mut self, slice: &Slice, knows_commits: bool) {
        let size = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let sizes = slice
            .events
            .iter()
            .map(|it| size(&it.payload) + size(&it.key));
        self.bytes += sizes.sum::<u64>();
        let is_last = slice.first_index + slice.events.len() as u64 == slice.tx_count;
        if let Some(last) = slice.events.last().filter(|_| is_last && !knows_commits) {
            self.committed_at_ms.push(last.occurred_at_ms);
        }
    }
}

/// See [`Batch::meter`].
pub struct Meter(Arc<Mutex<Passed>>);

impl Meter {
    /// What went through so far.
    #[must_use]
    pub fn read(self) -> Passed {
        std::mem::take(&mut *locked(&self.0))
    }
}

fn locked(passed: &Mutex<Passed>) -> std::sync::MutexGuard<'_, Passed> {
    passed.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Snapshot};

    fn slice(first_index: u64, times: &[i64], tx_count: u64) -> Slice {
        let event = |occurred_at_ms: &i64| Event {
            seq: 1,
            id: Uuid::nil(),
            topic: "t".into(),
            key: Some(Bytes::from_static(b"k")),
            event_type: None,
            payload: Some(Bytes::from_static(b"1234")),
            headers: Vec::new(),
            occurred_at_ms: *occurred_at_ms,
        };
        Slice {
            tx_id: "1-1-1".into(),
            tx_count,
            first_index,
            events: times.iter().map(event).collect(),
        }
    }

    fn batch() -> Batch {
        let origin = Origin::of_test("table");
        let slices = vec![slice(0, &[1, 2], 3), slice(2, &[3], 3), slice(0, &[9], 1)];
        Batch::of(slices, Position::at(origin, Snapshot::empty()), true)
    }

    async fn passed(mut batch: Batch) -> Passed {
        let meter = batch.meter();
        // Looking at the first takes nothing.
        assert!(batch.first_tx_id().await.unwrap().is_some());
        while batch.next().await.unwrap().is_some() {}
        meter.read()
    }

    #[tokio::test]
    async fn what_passes_is_metered_once_for_each_transaction() {
        let last_events = Passed {
            bytes: 20,
            committed_at_ms: vec![3, 9],
        };
        assert_eq!(passed(batch()).await, last_events);
        let known = passed(batch().committed_at_ms(vec![5, 10])).await;
        assert_eq!(known.committed_at_ms, [5, 10]);
    }
}
