//! A Kafka cluster: the transaction coordinator with protocol version 1, and partitions with their logs.
//!
//! Version 1: all transactions of a producer have one epoch. `EndTxn` ends whatever transaction of that epoch is open when
//! it arrives; the answer comes when the end is decided, before the markers are written.

pub mod network;
pub mod producer;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use outbox_relay::position::Lsn;
use outbox_relay::sink::kafka::record::PositionRecord;
use tokio::time::Instant;
use uuid::Uuid;

use crate::scenario::Scenario;

/// Number of a partition: of all topics together.
pub type Partition = usize;
/// The one of the position topic.
pub const POSITIONS: Partition = 0;
/// Batches of which a partition remembers the sequence numbers.
const BATCHES_REMEMBERED: usize = 5;

/// What a record holds.
#[derive(Clone, Debug)]
pub enum Content {
    Event {
        id: Uuid,
        key: String,
        tx_id: Arc<str>,
        tx_index: u32,
        tx_count: u32,
    },
    Position(Box<PositionRecord>),
}

/// A record, with who wrote it.
#[derive(Clone, Debug)]
pub struct Written {
    pub content: Content,
    /// The lease term in which its producer was made.
    pub term: u64,
    pub instance: Arc<str>,
}

enum Entry {
    Record(Written),
    /// Outside of any transaction; no relay does that, but for a mutation.
    Plain(Written),
    Marker {
        commit: bool,
    },
}

/// A log with what its leader knows of the producer.
#[derive(Default)]
struct Log {
    entries: Vec<Entry>,
    epoch: i64,
    next_sequence: u64,
    /// First sequence number, records and first offset of the last batches.
    batches: VecDeque<(u64, u64, i64)>,
    /// First offset of the open transaction.
    open: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    Ongoing,
    Prepared { commit: bool },
    Complete { commit: bool },
}

/// A request to the cluster.
#[derive(Clone, Debug)]
pub enum Request {
    InitProducerId,
    AddPartition {
        epoch: i64,
        partition: Partition,
    },
    Produce {
        epoch: i64,
        partition: Partition,
        sequence: u64,
        records: Vec<Written>,
    },
    EndTxn {
        epoch: i64,
        commit: bool,
    },
    /// The end of the position topic, for all and for read_committed.
    Ends,
    LastPosition,
    Plain(Box<Written>),
}

/// Its answer.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Epoch(i64),
    FirstOffset(i64),
    Ends {
        high: i64,
        stable: i64,
    },
    Position(Option<Box<PositionRecord>>),
    /// `CONCURRENT_TRANSACTIONS`: markers are still being written.
    Concurrent,
    /// `INVALID_PRODUCER_EPOCH`, `PRODUCER_FENCED`.
    Fenced,
    /// `INVALID_TXN_STATE`.
    InvalidState,
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`.
    OutOfOrder,
}

/// The cluster.
pub struct Kafka {
    pub up: bool,
    pub life: u64,
    transaction_timeout: Duration,
    epoch: i64,
    state: State,
    partitions: BTreeSet<Partition>,
    began: Instant,
    logs: Vec<Log>,
}

/// A record that a read_committed consumer gets.
pub struct Visible<'a> {
    pub partition: Partition,
    pub offset: i64,
    pub written: &'a Written,
}

impl Kafka {
    pub fn new(scenario: &Scenario) -> Self {
        let partitions = 1 + scenario.topics * scenario.partitions;
        Self {
            up: true,
            life: 1,
            transaction_timeout: Duration::from_millis(scenario.transaction_timeout_ms.into()),
            epoch: -1,
            state: State::Empty,
            partitions: BTreeSet::new(),
            began: Instant::now(),
            logs: (0..partitions).map(|_| Log::default()).collect(),
        }
    }

    /// Carries out a request.
    pub fn apply(&mut self, request: Request) -> Answer {
        match request {
            Request::InitProducerId => self.init_producer_id(),
            Request::AddPartition { epoch, partition } => self.add_partition(epoch, partition),
            Request::Produce {
                epoch,
                partition,
                sequence,
                records,
            } => self.produce(epoch, partition, sequence, records),
            Request::EndTxn { epoch, commit } => self.end(epoch, commit),
            Request::Ends => {
                let log = &self.logs[POSITIONS];
                let high = log.entries.len() as i64;
                let stable = log.open.unwrap_or(high);
                Answer::Ends { high, stable }
            }
            Request::LastPosition => {
                let last = self.positions().pop();
                Answer::Position(last.map(|(_, record)| Box::new(record.clone())))
            }
            Request::Plain(written) => {
                self.logs[POSITIONS].entries.push(Entry::Plain(*written));
                Answer::Done
            }
        }
    }

    fn init_producer_id(&mut self) -> Answer {
        match self.state {
            State::Ongoing => {
                self.fence();
                Answer::Concurrent
            }
            State::Prepared { .. } => Answer::Concurrent,
            State::Empty | State::Complete { .. } => {
                self.epoch += 1;
                self.state = State::Empty;
                Answer::Epoch(self.epoch)
            }
        }
    }

    /// The coordinator aborts the open transaction with an epoch of its own.
    fn fence(&mut self) {
        self.epoch += 1;
        self.state = State::Prepared { commit: false };
    }

    fn add_partition(&mut self, epoch: i64, partition: Partition) -> Answer {
        if epoch != self.epoch {
            return Answer::Fenced;
        }
        match self.state {
            State::Prepared { .. } => return Answer::Concurrent,
            State::Ongoing => {}
            State::Empty | State::Complete { .. } => {
                self.partitions.clear();
                self.state = State::Ongoing;
                self.began = Instant::now();
            }
        }
        self.partitions.insert(partition);
        Answer::Done
    }

    fn produce(
        &mut self,
        epoch: i64,
        partition: Partition,
        sequence: u64,
        records: Vec<Written>,
    ) -> Answer {
        let registered = epoch == self.epoch
            && self.state == State::Ongoing
            && self.partitions.contains(&partition);
        let log = &mut self.logs[partition];
        if epoch < log.epoch {
            return Answer::Fenced;
        }
        let count = records.len() as u64;
        if epoch == log.epoch {
            let known = |batch: &&(u64, u64, i64)| (batch.0, batch.1) == (sequence, count);
            if let Some((_, _, offset)) = log.batches.iter().find(known) {
                return Answer::FirstOffset(*offset);
            }
        }
        let expected = match epoch == log.epoch {
            true => log.next_sequence,
            false => 0,
        };
        if sequence != expected {
            return Answer::OutOfOrder;
        }
        // The leader asks the coordinator before the first record of a transaction (KIP-890, for old clients too).
        if log.open.is_none() && !registered {
            return Answer::InvalidState;
        }
        log.append(epoch, sequence, records)
    }

    fn end(&mut self, epoch: i64, commit: bool) -> Answer {
        if epoch != self.epoch {
            return Answer::Fenced;
        }
        match self.state {
            State::Ongoing => {
                self.state = State::Prepared { commit };
                Answer::Done
            }
            State::Prepared { commit: decided } if decided == commit => Answer::Concurrent,
            State::Complete { commit: decided } if decided == commit => Answer::Done,
            _ => Answer::InvalidState,
        }
    }

    // ---- what the coordinator does by itself

    /// The transaction that has an end but not all of its markers: the next partition to get one.
    pub fn next_marker(&self) -> Option<Option<Partition>> {
        matches!(self.state, State::Prepared { .. }).then(|| self.partitions.first().copied())
    }

    pub fn write_marker(&mut self, partition: Partition) {
        if let State::Prepared { commit } = self.state {
            self.logs[partition].mark(self.epoch, commit);
            self.partitions.remove(&partition);
        }
    }

    pub fn complete(&mut self) {
        if let State::Prepared { commit } = self.state {
            self.state = State::Complete { commit };
        }
    }

    /// Aborts a transaction that is open for too long; true if it did.
    pub fn time_out(&mut self) -> bool {
        let late = self.state == State::Ongoing && self.began.elapsed() > self.transaction_timeout;
        if late {
            self.fence();
        }
        late
    }

    // ---- what consumers see

    /// All records that are visible to read_committed.
    pub fn visible(&self) -> Vec<Visible<'_>> {
        let logs = self.logs.iter().enumerate();
        logs.flat_map(|(partition, log)| {
            let visible = log.visible().into_iter();
            visible.map(move |(offset, written)| Visible {
                partition,
                offset,
                written,
            })
        })
        .collect()
    }

    /// The place in the WAL up to which events are stored: visible, or sure to become so.
    pub fn stored_place(&self) -> Option<Lsn> {
        let is_decided = self.state == State::Prepared { commit: true };
        let log = &self.logs[POSITIONS];
        let decided = match log.entries.last() {
            Some(Entry::Record(written)) if is_decided => match &written.content {
                Content::Position(record) => Some(&**record),
                Content::Event { .. } => None,
            },
            _ => None,
        };
        let stored = decided.or_else(|| self.positions().pop().map(|(_, record)| record))?;
        Some(stored.position.streamed.as_ref()?.lsn)
    }

    /// All visible position records, in order.
    pub fn positions(&self) -> Vec<(i64, &PositionRecord)> {
        let visible = self.logs[POSITIONS].visible();
        let records = visible
            .into_iter()
            .filter_map(|(offset, written)| match &written.content {
                Content::Position(record) => Some((offset, &**record)),
                Content::Event { .. } => None,
            });
        records.collect()
    }
}

impl Log {
    fn append(&mut self, epoch: i64, sequence: u64, records: Vec<Written>) -> Answer {
        let (count, offset) = (records.len() as u64, self.entries.len() as i64);
        self.meet(epoch);
        self.next_sequence = sequence + count;
        self.batches.push_back((sequence, count, offset));
        if self.batches.len() > BATCHES_REMEMBERED {
            self.batches.pop_front();
        }
        self.open.get_or_insert(offset);
        self.entries.extend(records.into_iter().map(Entry::Record));
        Answer::FirstOffset(offset)
    }

    fn mark(&mut self, epoch: i64, commit: bool) {
        self.meet(epoch);
        self.entries.push(Entry::Marker { commit });
        self.open = None;
    }

    /// A new epoch counts its sequence numbers anew.
    fn meet(&mut self, epoch: i64) {
        if epoch > self.epoch {
            self.batches.clear();
            (self.epoch, self.next_sequence) = (epoch, 0);
        }
    }

    /// Offsets and records that read_committed gets.
    fn visible(&self) -> Vec<(i64, &Written)> {
        let stable = self.open.unwrap_or(self.entries.len() as i64);
        let (mut visible, mut undecided) = (Vec::new(), Vec::new());
        for (offset, entry) in (0..stable).zip(&self.entries) {
            match entry {
                Entry::Record(written) => undecided.push((offset, written)),
                Entry::Plain(written) => visible.push((offset, written)),
                Entry::Marker { commit: true } => visible.append(&mut undecided),
                Entry::Marker { commit: false } => undecided.clear(),
            }
        }
        visible.sort_by_key(|(offset, _)| *offset);
        visible
    }
}
