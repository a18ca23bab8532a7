//! Each defence switched off, at the seam: what the decisions are told is falsified, the decisions stay as they are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outbox_relay::capture::registry::Registration;
use outbox_relay::capture::table::Planned;
use outbox_relay::capture::table::shell::{Opened, Shell as TableShell};
use outbox_relay::capture::wal::shell as wal;
use outbox_relay::capture::wal::shell::Sent;
use outbox_relay::event::{Event, Slice};
use outbox_relay::fault::Fault;
use outbox_relay::position::{Lsn, Origin, Position, Snapshot, Xid};
use outbox_relay::sink::kafka::Proof;
use outbox_relay::sink::kafka::machine::{Committed, Signal};
use outbox_relay::sink::kafka::producer::Shell as ProducerShell;
use outbox_relay::sink::kafka::record::{Partitions, PositionRecord};

use crate::kafka::producer::Producer;
use crate::postgres::pgoutput::{commit, end_of};
use crate::postgres::shell::drained;
use crate::postgres::stream::SimulatedStream;
use crate::postgres::wal::WalShell;

/// A defence that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Every commit that answers OK looks clean.
    NoRecycling,
    /// A failed transaction is aborted and its producer used on, instead of being dropped.
    AbortAndGoOn,
    /// The position is written beside the Kafka transaction.
    PositionOutside,
    /// The position record is written before the events.
    PositionFirst,
    /// The position is read before older producers are fenced.
    PositionBeforeFence,
    /// The lease is proven before `InitTransactions` only. Missed where the holder's machine is suspended between the two:
    /// its clock stood still, so only a round trip tells it of its successor, after which it must not write.
    NoProofAfterInit,
    /// The position is the end of a snapshot, without what was in progress (`xid > last`, `seq > last`).
    NoInProgress,
    /// The position claims all that the snapshot saw. On one server the flush wait hides it: the record with which a
    /// transaction ended is flushed, so its id is never given out again. A standby that lacks the end of the log gives it
    /// out again, and where nothing published is missing there, the position must go on without a loss.
    NoTrimming,
    /// What is visible counts as durable.
    NoFlushWait,
    /// A window's transactions come by transaction id.
    OrderByXid,
    /// The slot is told what was sent, before it is published.
    AcknowledgeEarly,
    /// What the slot sends again is not recognized by its place.
    NoSkip,
    /// Commits are streamed before they are flushed.
    UnflushedStream,
    /// A row of `outbox.parked` counts before a position has passed it.
    PendingCounts,
    /// What a record settles is forgotten.
    NoSettled,
    /// Rows are deleted once they are committed, not once they are published.
    DeleteCommitted,
    /// Rows are deleted up to the end of the snapshot of a mark, also those of transactions that were in progress.
    DeleteBelowXmax,
}

impl Mutation {
    pub const ALL: [Self; 17] = [
        Self::NoRecycling,
        Self::AbortAndGoOn,
        Self::PositionOutside,
        Self::PositionFirst,
        Self::PositionBeforeFence,
        Self::NoProofAfterInit,
        Self::NoInProgress,
        Self::NoTrimming,
        Self::NoFlushWait,
        Self::OrderByXid,
        Self::AcknowledgeEarly,
        Self::NoSkip,
        Self::UnflushedStream,
        Self::PendingCounts,
        Self::NoSettled,
        Self::DeleteCommitted,
        Self::DeleteBelowXmax,
    ];
}

/// A table shell that lies.
pub struct MutatedTable<S> {
    inner: S,
    mutation: Mutation,
    by_xid: VecDeque<Planned>,
}

impl<S> MutatedTable<S> {
    pub fn new(inner: S, mutation: Mutation) -> Self {
        Self {
            inner,
            mutation,
            by_xid: VecDeque::new(),
        }
    }
}

impl<S: TableShell> TableShell for MutatedTable<S> {
    type Pages = S::Pages;

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    async fn connect(&mut self) -> Result<Origin, Fault> {
        self.inner.connect().await
    }

    fn disconnect(&mut self) {
        self.inner.disconnect();
    }

    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault> {
        self.inner.registrations().await
    }

    async fn acknowledged(&mut self) -> Result<Option<Position>, Fault> {
        self.inner.acknowledged().await
    }

    async fn foreign(&mut self) -> Result<Option<Xid>, Fault> {
        self.inner.foreign().await
    }

    async fn rollback(&mut self) -> Result<(), Fault> {
        self.inner.rollback().await
    }

    async fn snapshot(&mut self) -> Result<Snapshot, Fault> {
        self.inner.snapshot().await
    }

    async fn open(&mut self, seen: &Snapshot) -> Result<Opened, Fault> {
        let mut opened = self.inner.open(seen).await?;
        match self.mutation {
            Mutation::NoTrimming => opened.highest = opened.snapshot.xmax().checked_sub(1),
            Mutation::NoInProgress => {
                let xmax = opened.snapshot.xmax();
                opened.snapshot = format!("{xmax}:{xmax}:").parse().expect("a snapshot");
            }
            _ => {}
        }
        Ok(opened)
    }

    async fn plan(
        &mut self,
        seen: &Snapshot,
        until: &Snapshot,
        last_seq: i64,
        count: u64,
    ) -> Result<Vec<Planned>, Fault> {
        if self.mutation != Mutation::OrderByXid {
            return self.inner.plan(seen, until, last_seq, count).await;
        }
        let mut all = self.inner.plan(seen, until, last_seq, u64::MAX).await?;
        all.sort_by_key(|planned| planned.xid);
        self.by_xid = all.into();
        self.planned(count).await
    }

    async fn planned(&mut self, count: u64) -> Result<Vec<Planned>, Fault> {
        match self.mutation {
            Mutation::OrderByXid => Ok(drained(&mut self.by_xid, count)),
            _ => self.inner.planned(count).await,
        }
    }

    async fn rows(&mut self, xids: &[Xid], last: bool) -> Result<Vec<(Xid, Event)>, Fault> {
        self.inner.rows(xids, last).await
    }

    async fn is_flushed(&mut self, written: &str) -> Result<bool, Fault> {
        match self.mutation {
            Mutation::NoFlushWait => Ok(true),
            _ => self.inner.is_flushed(written).await,
        }
    }

    async fn nudge(&mut self) -> Result<(), Fault> {
        self.inner.nudge().await
    }

    fn pages(&self, origin: &Origin) -> S::Pages {
        self.inner.pages(origin)
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        self.inner.acknowledge(position).await
    }
}

/// A WAL shell that lies.
pub struct MutatedWal {
    inner: WalShell,
    mutation: Mutation,
}

impl MutatedWal {
    pub fn new(inner: WalShell, mutation: Mutation) -> Self {
        Self { inner, mutation }
    }
}

impl wal::Shell for MutatedWal {
    type Stream = MutatedStream;

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    async fn connect(&mut self) -> Result<wal::Here, Fault> {
        self.inner.connect().await
    }

    fn disconnect(&mut self) {
        self.inner.disconnect();
    }

    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault> {
        self.inner.registrations().await
    }

    async fn present(&mut self) -> Result<wal::Present, Fault> {
        self.inner.present().await
    }

    async fn left(&mut self, origin: &Origin) -> Result<Vec<(u32, Lsn)>, Fault> {
        self.inner.left(origin).await
    }

    async fn let_go(&mut self) -> Result<(), Fault> {
        self.inner.let_go().await
    }

    async fn slot_made(&mut self) -> Result<Option<wal::SlotMade>, Fault> {
        self.inner.slot_made().await
    }

    async fn stream(&mut self, origin: &Origin, from: Lsn) -> Result<MutatedStream, Fault> {
        // The server itself skips up to where it is told to begin, or to where the slot stands.
        let begin = match self.mutation {
            Mutation::NoSkip => Lsn::from(0),
            _ => from,
        };
        let mut inner = self.inner.stream(origin, begin).await?;
        inner.unflushed = self.mutation == Mutation::UnflushedStream;
        let mutation = self.mutation;
        Ok(MutatedStream {
            inner,
            mutation,
            from,
        })
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        self.inner.acknowledge(position).await
    }
}

/// Its stream.
pub struct MutatedStream {
    inner: SimulatedStream,
    mutation: Mutation,
    from: Lsn,
}

impl wal::Stream for MutatedStream {
    async fn next(&mut self) -> Result<Sent, Fault> {
        let sent = self.inner.next().await?;
        let Sent::Message(message) = &sent else {
            return Ok(sent);
        };
        match (self.mutation, end_of(message)) {
            (Mutation::AcknowledgeEarly, Some(end)) => {
                self.inner.feedback().send_replace(end);
                Ok(sent)
            }
            (Mutation::NoSkip, Some(end)) if end <= self.from => {
                let beyond = u64::from(self.from) + 1;
                Ok(Sent::Message(commit(beyond.into())))
            }
            _ => Ok(sent),
        }
    }

    fn feedback(&self) -> wal::Feedback {
        self.inner.feedback()
    }
}

/// A producer shell that lies.
pub struct MutatedProducer {
    inner: Producer,
    mutation: Mutation,
    kept: bool,
    read_before: Option<Option<PositionRecord>>,
    held_back: Vec<Slice>,
    initialized: Arc<AtomicBool>,
}

impl MutatedProducer {
    pub fn new(inner: Producer, mutation: Mutation) -> Self {
        Self {
            inner,
            mutation,
            kept: false,
            read_before: None,
            held_back: Vec::new(),
            initialized: Arc::default(),
        }
    }
}

impl ProducerShell for MutatedProducer {
    async fn create(&mut self) -> Result<(), Fault> {
        if self.kept {
            return Ok(());
        }
        self.inner.create().await
    }

    async fn init_transactions(&mut self) -> Result<(), Fault> {
        if std::mem::take(&mut self.kept) {
            return Ok(());
        }
        if self.mutation == Mutation::PositionBeforeFence {
            self.read_before = Some(self.inner.read_position(false).await?);
        }
        self.inner.init_transactions().await?;
        self.initialized.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn read_position(&mut self, check_topic: bool) -> Result<Option<PositionRecord>, Fault> {
        match self.read_before.take() {
            Some(before) => Ok(before),
            None => self.inner.read_position(check_topic).await,
        }
    }

    async fn begin(&mut self) -> Result<(), Fault> {
        self.held_back.clear();
        self.inner.begin().await
    }

    async fn produce(&mut self, slices: Vec<Slice>) -> Result<(), Fault> {
        if self.mutation == Mutation::PositionFirst {
            self.held_back.extend(slices);
            return Ok(());
        }
        self.inner.produce(slices).await
    }

    async fn flush(&mut self) -> Result<Partitions, Fault> {
        self.inner.flush().await
    }

    async fn produce_position(&mut self, record: &PositionRecord) -> Result<(), Fault> {
        match self.mutation {
            Mutation::PositionOutside => self.inner.plain(record).await,
            Mutation::PositionFirst => {
                self.inner.produce_position(record).await?;
                self.inner.flush().await?;
                self.inner
                    .produce(std::mem::take(&mut self.held_back))
                    .await
            }
            _ => self.inner.produce_position(record).await,
        }
    }

    async fn commit(&mut self) -> Result<Committed, Fault> {
        let committed = self.inner.commit().await?;
        match self.mutation {
            Mutation::NoRecycling => Ok(Committed {
                signals: vec![Signal::EndTxnOk],
                elapsed_ms: 0,
            }),
            _ => Ok(committed),
        }
    }

    async fn drop_producer(&mut self) {
        if self.mutation == Mutation::AbortAndGoOn && self.inner.end(false).await.is_ok() {
            self.kept = true;
            return;
        }
        self.inner.drop_producer().await;
    }
}

/// The proof of the lease, left out after `InitTransactions` if the mutation says so.
pub struct MutatedProof<P> {
    inner: P,
    mutation: Mutation,
    initialized: Arc<AtomicBool>,
}

impl<P> MutatedProof<P> {
    pub fn new(inner: P, producer: &MutatedProducer) -> Self {
        Self {
            inner,
            mutation: producer.mutation,
            initialized: Arc::clone(&producer.initialized),
        }
    }
}

impl<P: Proof> Proof for MutatedProof<P> {
    async fn prove(&self) -> Result<(), Fault> {
        let after = self.initialized.swap(false, Ordering::Relaxed);
        if after && self.mutation == Mutation::NoProofAfterInit {
            return Ok(());
        }
        self.inner.prove().await
    }
}
