//! The replication slot, and what its walsender decodes: committed transactions in the order of their commit records.
//!
//! It outlives a promotion, as a failover slot does (PostgreSQL 17 and newer).

use outbox_relay::position::{Lsn, Xid};

use super::{Postgres, Record, Row};

/// The slot. Places are indexes into the log.
pub struct Slot {
    confirmed: usize,
    /// What is on disk of it. It is not written at each confirmation, so a crash brings an older place back.
    saved: usize,
    /// The stream that has the slot; each one has a number of its own.
    holder: Option<u64>,
    streams: u64,
    /// It was told a place that the sink had not stored.
    pub ahead: Option<String>,
}

/// A transaction as it is streamed.
pub struct Decoded {
    pub xid: Xid,
    /// That outlived its savepoints, in the order of their insertion.
    pub rows: Vec<Row>,
    /// The end of its commit record.
    pub end: usize,
}

impl Slot {
    pub fn made_at(place: usize) -> Self {
        Self {
            confirmed: place,
            saved: place,
            holder: None,
            streams: 0,
            ahead: None,
        }
    }

    /// Takes it from whoever has it; the number of the stream.
    pub fn take(&mut self) -> u64 {
        self.streams += 1;
        self.holder = Some(self.streams);
        self.streams
    }

    pub fn is_taken(&self) -> bool {
        self.holder.is_some()
    }

    pub fn is_of(&self, stream: u64) -> bool {
        self.holder == Some(stream)
    }

    pub fn leave(&mut self, stream: u64) {
        self.holder.take_if(|holder| *holder == stream);
    }

    pub fn confirmed(&self) -> usize {
        self.confirmed
    }

    /// It need not keep what lies below; whether that is news.
    pub fn confirm(&mut self, place: usize) -> bool {
        let news = place > self.confirmed;
        self.confirmed = place.max(self.confirmed);
        news
    }

    pub fn save(&mut self) {
        self.saved = self.confirmed;
    }

    /// After a crash, or on a standby that has the log up to `end`.
    pub fn restore(&mut self, end: usize) {
        self.saved = self.saved.min(end);
        (self.confirmed, self.holder) = (self.saved, None);
    }
}

impl Postgres {
    /// The LSN of a place.
    pub fn lsn(&self, place: usize) -> Lsn {
        (place as u64 * self.record_bytes).into()
    }

    /// The place of an LSN.
    pub fn place(&self, lsn: Lsn) -> usize {
        (u64::from(lsn) / self.record_bytes) as usize
    }

    /// The first transaction that committed after one place and up to another. From here on a position may speak of it.
    pub fn decode(&mut self, after: usize, until: usize) -> Option<Decoded> {
        let committed = |(at, record): (usize, &Record)| match record {
            Record::Commit(xid, rows) => Some((at + 1, *xid, rows.clone())),
            _ => None,
        };
        let log = self.wal.iter().enumerate().take(until).skip(after);
        let (end, xid, alive) = { log }.find_map(committed)?;
        self.spoken_of = self.spoken_of.max(end);
        let of_it = |row: &&Row| row.xid == xid && alive.contains(&row.seq);
        let rows = self.rows.iter().filter(of_it).cloned().collect();
        Some(Decoded { xid, rows, end })
    }

    /// The timelines before the present one, each with the place where it was left.
    pub fn timelines_left(&self) -> Vec<(u32, Lsn)> {
        let records = self.wal.iter().enumerate();
        let left = records.filter_map(|(at, record)| match record {
            Record::Timeline(next) => Some((next - 1, self.lsn(at))),
            _ => None,
        });
        left.collect()
    }

    /// Transactions with rows, each with the end of its commit record, in the order of these.
    pub fn commits(&self) -> impl Iterator<Item = (Xid, &[i64], Lsn)> {
        let records = self.wal.iter().enumerate();
        records.filter_map(|(at, record)| match record {
            Record::Commit(xid, rows) if !rows.is_empty() => {
                Some((*xid, rows.as_slice(), self.lsn(at + 1)))
            }
            _ => None,
        })
    }
}
