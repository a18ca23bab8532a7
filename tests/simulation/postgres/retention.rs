//! Retention: the production decision over the simulated table. Every acknowledged position is a mark, and each of them is old
//! enough.

use std::collections::HashSet;

use outbox_relay::capture::CaptureKind;
use outbox_relay::position::{Position, Snapshot, Xid};
use outbox_relay::retention::Old;
use uuid::Uuid;

use super::shell::origin;
use super::{Postgres, Record, Row};
use crate::mutations::Mutation;

/// Marks that are kept.
const MARKS_MAX: usize = 100;

/// `outbox.marks`, and what was deleted.
#[derive(Default)]
pub struct Retained {
    marks: Vec<Position>,
    deleted: HashSet<Uuid>,
}

impl Retained {
    pub fn mark(&mut self, position: &Position) {
        if self.marks.len() == MARKS_MAX {
            self.marks.remove(0);
        }
        self.marks.push(position.clone());
    }

    pub fn delete(&mut self, rows: &[Uuid]) {
        self.deleted.extend(rows);
    }

    pub fn is_deleted(&self, row: &Row) -> bool {
        self.deleted.contains(&row.id)
    }
}

impl Postgres {
    /// How many marks there are.
    pub fn marks(&self) -> usize {
        self.retained.marks.len()
    }

    /// Deletes what may go by this mark; answers how many rows went.
    pub fn retain(&mut self, mark: usize, mutation: Mutation) -> usize {
        let (Some(position), Some(acknowledged)) =
            (self.retained.marks.get(mark), &self.registered)
        else {
            return 0;
        };
        let old = Old {
            at: String::new(),
            position: position.clone(),
            acknowledged: acknowledged.clone(),
        };
        let (unsettled, next_xid) = (self.parked.unsettled(), self.next_xid);
        let here = origin(self, CaptureKind::Table);
        let Ok(may_go) = old.may_go(&here, next_xid, &unsettled) else {
            return 0;
        };
        let may_go = match mutation {
            Mutation::DeleteCommitted => self.snapshot(),
            Mutation::DeleteBelowXmax => below(may_go.xmax()),
            _ => may_go,
        };
        let gone: Vec<Uuid> = self.visible(&may_go).map(|row| row.id).collect();
        let count = gone.len();
        self.retained.delete(&gone);
        // Behind the position in the log: who has this has that too.
        self.wal.push(Record::Deleted(gone));
        self.flush(self.wal.len());
        count
    }
}

fn below(xmax: Xid) -> Snapshot {
    format!("{xmax}:{xmax}:").parse().expect("a snapshot")
}
