//! A PostgreSQL server: transactions, row locks, WAL with its flush, crashes, the lease's lock.
//!
//! The durable state is a fold of the WAL up to the place that was flushed; a crash cuts the WAL there and folds it again.
//! So what a crash takes away, and what it gives out again, follows from the log, as in the real server.

pub mod parked;
pub mod pgoutput;
pub mod plan;
pub mod retention;
pub mod session;
pub mod shell;
mod slot;
pub mod stream;
pub mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outbox_relay::position::{Position, Snapshot, Xid};
use tokio::time::Instant;
use uuid::Uuid;

use self::parked::Parked;
use self::plan::RowSize;
use self::retention::Retained;
use self::slot::Slot;
use crate::scenario::Scenario;

/// Identity values that one WAL record makes durable ahead (`SEQ_LOG_VALS`).
const SEQUENCE_LOGGED_AHEAD: i64 = 32;

/// A row of the outbox table. Its key's version is the aggregate's row, which has the same fate.
#[derive(Clone, Debug)]
pub struct Row {
    pub xid: Xid,
    pub seq: i64,
    pub id: Uuid,
    pub key: u64,
    pub version: u64,
    pub bytes: u64,
}

impl Row {
    fn size(&self) -> RowSize {
        RowSize {
            xid: self.xid,
            seq: self.seq,
            bytes: self.bytes,
            // Any hash will do.
            id: self.id.as_u64_pair().1.cast_signed(),
        }
    }
}

/// A WAL record; its place in the log is its LSN.
#[derive(Clone, Debug)]
enum Record {
    Insert(Row),
    /// The rows that outlived its savepoints.
    Commit(Xid, Vec<i64>),
    Abort(Xid),
    AbortPrepared(Xid),
    Prepare(Xid, Vec<i64>),
    /// Identity values up to this one may have been given out.
    Sequence(i64),
    /// This transaction id, or one above it, was reached: a checkpoint, a subtransaction, a message.
    Reached(Xid),
    Timeline(u32),
    Registered(Box<Position>),
    /// By retention.
    Deleted(Vec<Uuid>),
}

/// A transaction in progress.
#[derive(Clone, Debug, Default)]
struct Running {
    prepared: bool,
    locks: BTreeSet<u64>,
    /// Ids of its subtransactions; they end with it.
    last_subxid: Option<Xid>,
}

/// The lease's lock, as the server sees it.
struct Lock {
    session: u64,
    /// The server ends the session then, unless it hears of it before.
    until: Instant,
}

/// The server.
pub struct Postgres {
    pub up: bool,
    /// Connections are those of one life; a restart begins another.
    pub life: u64,
    pub timeline: u32,
    /// The position in `outbox.relay`.
    pub registered: Option<Position>,
    pub slot: Slot,
    pub parked: Parked,
    pub retained: Retained,
    /// Between two places of the log.
    record_bytes: u64,
    wal: Vec<Record>,
    flushed: usize,
    next_xid: Xid,
    latest_completed: Xid,
    running: BTreeMap<Xid, Running>,
    committed: BTreeSet<Xid>,
    /// The end of the last record that made an outcome of which a position may speak: a relay has read rows in a snapshot
    /// that shows it.
    spoken_of: usize,
    rows: Vec<Row>,
    /// Rows by seq that a commit brought; the others of its transaction were undone.
    alive: BTreeSet<i64>,
    sequence: i64,
    sequence_logged: i64,
    lock: Option<Lock>,
    sessions: u64,
    terms: u64,
}

impl Postgres {
    pub fn new(scenario: &Scenario) -> Self {
        let mut server = Self {
            up: true,
            life: 1,
            timeline: 1,
            registered: None,
            slot: Slot::made_at(wal::SLOT_MADE),
            parked: Parked::default(),
            retained: Retained::default(),
            record_bytes: scenario.record_bytes,
            wal: vec![Record::Reached(700)],
            flushed: 1,
            next_xid: 0,
            latest_completed: 0,
            running: BTreeMap::new(),
            committed: BTreeSet::new(),
            spoken_of: 0,
            rows: Vec::new(),
            alive: BTreeSet::new(),
            sequence: 0,
            sequence_logged: 0,
            lock: None,
            sessions: 0,
            terms: 0,
        };
        server.recover();
        server
    }

    // ---- transactions of writers

    pub fn take_xid(&mut self) -> Xid {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.running.insert(xid, Running::default());
        xid
    }

    /// A savepoint takes an id of its own, which no row carries.
    pub fn take_subxid(&mut self, xid: Xid) {
        let sub = self.next_xid;
        self.next_xid += 1;
        self.wal.push(Record::Reached(sub));
        if let Some(running) = self.running.get_mut(&xid) {
            running.last_subxid = Some(sub);
        }
    }

    /// The key's version if the transaction has its lock now; `None` if another one has.
    pub fn try_lock(&mut self, xid: Xid, key: u64) -> Option<u64> {
        let held =
            |(other, running): (&Xid, &Running)| *other != xid && running.locks.contains(&key);
        if self.running.iter().any(held) {
            return None;
        }
        self.running.get_mut(&xid)?.locks.insert(key);
        let alive = |row: &&Row| row.key == key && self.is_alive(row);
        Some(
            self.rows
                .iter()
                .filter(alive)
                .map(|row| row.version)
                .max()
                .unwrap_or(0),
        )
    }

    pub fn insert(&mut self, xid: Xid, id: Uuid, key: u64, version: u64, bytes: u64) -> i64 {
        self.sequence += 1;
        if self.sequence > self.sequence_logged {
            self.sequence_logged = self.sequence + SEQUENCE_LOGGED_AHEAD;
            self.wal.push(Record::Sequence(self.sequence_logged));
        }
        let seq = self.sequence;
        let row = Row {
            xid,
            seq,
            id,
            key,
            version,
            bytes,
        };
        self.wal.push(Record::Insert(row.clone()));
        self.rows.push(row);
        seq
    }

    /// Writes the commit record; answers its end, up to which WAL must be flushed.
    pub fn log_commit(&mut self, xid: Xid, rows: Vec<i64>) -> usize {
        self.wal.push(Record::Commit(xid, rows));
        self.wal.len()
    }

    /// The transaction becomes visible and lets go of its locks.
    pub fn finish_commit(&mut self, xid: Xid, rows: &[i64]) {
        self.alive.extend(rows);
        self.committed.insert(xid);
        self.finish(xid);
    }

    pub fn abort(&mut self, xid: Xid) {
        if self.running.get(&xid).is_some_and(|it| it.prepared) {
            self.wal.push(Record::AbortPrepared(xid));
            self.flush(self.wal.len());
        } else {
            self.wal.push(Record::Abort(xid));
        }
        self.finish(xid);
    }

    pub fn prepare(&mut self, xid: Xid, rows: Vec<i64>) {
        self.wal.push(Record::Prepare(xid, rows));
        self.flush(self.wal.len());
        if let Some(running) = self.running.get_mut(&xid) {
            running.prepared = true;
        }
    }

    fn finish(&mut self, xid: Xid) {
        let sub = self
            .running
            .remove(&xid)
            .and_then(|running| running.last_subxid);
        self.latest_completed = self.latest_completed.max(xid).max(sub.unwrap_or(0));
    }

    /// Prepared transactions that nobody has ended, with their rows.
    pub fn prepared(&self) -> Vec<(Xid, Vec<i64>)> {
        let rows = |xid: Xid| {
            self.wal.iter().rev().find_map(|record| match record {
                Record::Prepare(of, rows) if *of == xid => Some(rows.clone()),
                _ => None,
            })
        };
        let prepared = self.running.iter().filter(|(_, running)| running.prepared);
        prepared
            .map(|(xid, _)| (*xid, rows(*xid).unwrap_or_default()))
            .collect()
    }

    pub fn is_running(&self, xid: Xid) -> bool {
        self.running.contains_key(&xid)
    }

    /// A backend ended: its transaction is rolled back, unless prepared.
    pub fn end_backend(&mut self, xid: Xid) {
        if self
            .running
            .get(&xid)
            .is_some_and(|running| !running.prepared)
        {
            self.abort(xid);
        }
    }

    // ---- what a reader sees

    fn is_alive(&self, row: &Row) -> bool {
        self.committed.contains(&row.xid) && self.alive.contains(&row.seq)
    }

    pub fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let open: Vec<String> = self
            .running
            .keys()
            .filter(|xid| **xid < xmax)
            .map(ToString::to_string)
            .collect();
        let xmin = open.first().cloned().unwrap_or_else(|| xmax.to_string());
        let text = format!("{xmin}:{xmax}:{}", open.join(","));
        text.parse().expect("a snapshot")
    }

    /// The rows that are visible in `snapshot`. One that retention deleted is gone at once: `truncate` is not MVCC-safe.
    pub fn visible(&self, snapshot: &Snapshot) -> impl Iterator<Item = &Row> {
        self.kept_rows().filter(|row| snapshot.sees(row.xid))
    }

    /// The rows that the table holds.
    pub fn kept_rows(&self) -> impl Iterator<Item = &Row> {
        self.present_rows()
            .filter(|row| !self.retained.is_deleted(row))
    }

    pub fn sizes(&self, snapshot: &Snapshot) -> impl Iterator<Item = RowSize> {
        self.visible(snapshot).map(Row::size)
    }

    /// A relay reads rows of a window that ends with `snapshot`. A plain abort makes no outcome: without its record the
    /// transaction is no less undone.
    pub fn hand_out(&mut self, snapshot: &Snapshot) {
        let shown = |record: &Record| match record {
            Record::Commit(xid, _) | Record::AbortPrepared(xid) => snapshot.sees(*xid),
            _ => false,
        };
        let shown = self.wal.iter().rposition(shown);
        self.spoken_of = self.spoken_of.max(shown.map_or(0, |at| at + 1));
    }

    /// All rows that were committed, also those that retention deleted since.
    pub fn present_rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| self.is_alive(row))
    }

    // ---- WAL

    pub fn written(&self) -> usize {
        self.wal.len()
    }

    pub fn flushed(&self) -> usize {
        self.flushed
    }

    pub fn is_flushed(&self, written: usize) -> bool {
        self.flushed >= written
    }

    pub fn flush(&mut self, up_to: usize) {
        self.flushed = self.flushed.max(up_to.min(self.wal.len()));
    }

    pub fn unflushed(&self) -> usize {
        self.wal.len() - self.flushed
    }

    /// A synchronous commit of somebody who inserts nothing.
    pub fn nudge(&mut self) {
        let xid = self.take_xid();
        let end = self.log_commit(xid, Vec::new());
        self.flush(end);
        self.finish_commit(xid, &[]);
    }

    pub fn checkpoint(&mut self) {
        self.wal.push(Record::Reached(self.next_xid - 1));
        self.flush(self.wal.len());
        self.slot.save();
    }

    /// `outbox.relay` gets this position.
    pub fn register(&mut self, position: &Position) {
        self.wal
            .push(Record::Registered(Box::new(position.clone())));
        self.flush(self.wal.len());
        self.registered = Some(position.clone());
        self.retained.mark(position);
    }

    // ---- crashes

    /// Kill -9 of the server: what was not flushed is gone, and so is everybody's session.
    pub fn crash(&mut self) {
        self.up = false;
        self.wal.truncate(self.flushed);
        // A relay that has not seen the flush publishes nothing of it.
        self.spoken_of = self.spoken_of.min(self.flushed);
    }

    pub fn start(&mut self) {
        self.recover();
        self.up = true;
    }

    /// A standby takes over. It may lack the `lacking` last records that were flushed, but none of which a position may
    /// speak: such a loss is a person's to judge.
    pub fn promote(&mut self, lacking: usize) {
        let received = self.flushed.saturating_sub(lacking);
        let spoken_of = self.spoken_of.min(self.flushed);
        self.wal.truncate(received.max(spoken_of).max(1));
        self.flushed = self.wal.len();
        // A standby's copy of the slot is not ahead of its log.
        self.slot.restore(self.wal.len());
        self.wal.push(Record::Timeline(self.timeline + 1));
        self.flush(self.wal.len());
        self.recover();
    }

    fn recover(&mut self) {
        self.life += 1;
        self.lock = None;
        self.slot.restore(self.wal.len());
        self.running.clear();
        self.committed.clear();
        self.alive.clear();
        self.rows.clear();
        self.retained = Retained::default();
        let mut next_xid = 0;
        let mut reached = |xid: Xid| next_xid = next_xid.max(xid + 1);
        for record in &self.wal {
            match record {
                Record::Insert(row) => {
                    reached(row.xid);
                    self.rows.push(row.clone());
                }
                Record::Commit(xid, rows) => {
                    reached(*xid);
                    self.running.remove(xid);
                    self.committed.insert(*xid);
                    self.alive.extend(rows);
                }
                Record::Abort(xid) | Record::AbortPrepared(xid) => {
                    reached(*xid);
                    self.running.remove(xid);
                }
                Record::Prepare(xid, rows) => {
                    reached(*xid);
                    let locks = self
                        .rows
                        .iter()
                        .filter(|row| rows.contains(&row.seq))
                        .map(|row| row.key)
                        .collect();
                    let running = Running {
                        prepared: true,
                        locks,
                        last_subxid: None,
                    };
                    self.running.insert(*xid, running);
                }
                Record::Sequence(logged) => self.sequence_logged = *logged,
                Record::Reached(xid) => reached(*xid),
                Record::Timeline(timeline) => self.timeline = *timeline,
                Record::Registered(position) => {
                    self.registered = Some((**position).clone());
                    self.retained.mark(position);
                }
                Record::Deleted(rows) => self.retained.delete(rows),
            }
        }
        self.sequence = self.sequence_logged;
        self.next_xid = next_xid;
        self.latest_completed = next_xid - 1;
    }

    // ---- the lease

    /// A session of its own.
    pub fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// `pg_try_advisory_lock`: the term, if the session has the lock now.
    pub fn try_lease(&mut self, session: u64, lease_time: Duration) -> Option<u64> {
        let now = Instant::now();
        let held = self
            .lock
            .as_ref()
            .is_some_and(|lock| lock.until > now && lock.session != session);
        if held {
            return None;
        }
        self.lock = Some(Lock {
            session,
            until: now + lease_time,
        });
        self.terms += 1;
        Some(self.terms)
    }

    /// Whether the session lives and has the lock; being asked, it is heard of.
    pub fn ping_lease(&mut self, session: u64, lease_time: Duration) -> bool {
        let now = Instant::now();
        match &mut self.lock {
            Some(lock) if lock.session == session && lock.until > now => {
                lock.until = now + lease_time;
                true
            }
            _ => false,
        }
    }

    /// The session's connection was closed; the server notices at `notices`, if it is not silent for too long before.
    pub fn end_session(&mut self, session: u64, notices: Instant) {
        if let Some(lock) = self.lock.as_mut().filter(|lock| lock.session == session) {
            lock.until = lock.until.min(notices);
        }
    }
}
