//! What a check found.

use std::fmt;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::OFFENDERS_MAX;

/// What a [`Check`](super::Check) found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Transactions in the ledger.
    pub transactions: u64,
    /// Events in the ledger.
    pub events: u64,
    /// Records that were fed, violating ones included.
    pub records: u64,
    /// I1: committed events that were never seen.
    pub lost: Violations,
    /// I2: sightings of an event beyond its first.
    pub doubled: Violations,
    /// I4: transactions that are not whole, and Kafka transactions whose position record does not fit what is visible.
    pub torn: Violations,
    /// I3: events that stand behind a later one of their key, or of their transaction in the same partition.
    pub out_of_order: Violations,
    /// I5: records of events that were never committed, or committed for another topic or key.
    pub phantoms: Violations,
    /// I7: position records that claim less than the one before.
    pub went_back: Violations,
    /// I8: position records of a producer after another one had published.
    pub interleaved: Violations,
    /// Events that are not seen, and may be missing rightly.
    pub unjudged: Unjudged,
}

/// Events that are not seen, and of which it can't be said that they are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unjudged {
    /// Their turn may not have come yet.
    pub not_yet_published: u64,
    /// Their topic is compacted.
    pub perhaps_compacted: u64,
    /// They may lie below the log start offset of their partition.
    pub perhaps_below_log_start: u64,
}

impl Report {
    /// Whether every invariant holds. True for an empty ledger and an empty scan too: look at `events` as well.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.invariants()
            .iter()
            .all(|(_, violations)| violations.count == 0)
    }

    pub(super) fn invariants(&self) -> [(&'static str, &Violations); 7] {
        [
            ("I1 lost", &self.lost),
            ("I2 doubled", &self.doubled),
            ("I3 out of order", &self.out_of_order),
            ("I4 torn", &self.torn),
            ("I5 phantoms", &self.phantoms),
            ("I7 went back", &self.went_back),
            ("I8 interleaved", &self.interleaved),
        ]
    }
}

impl fmt::Display for Report {
    /// A table of counts, then the offenders if there are any. Ends without a line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = [
            ("transactions", self.transactions),
            ("events", self.events),
            ("records seen", self.records),
        ];
        let found = self
            .invariants()
            .map(|(name, violations)| (name, violations.count));
        for (name, count) in inputs.into_iter().chain(found) {
            writeln!(f, "{name:<15}  {count:>12}")?;
        }
        write!(
            f,
            "{:<15}  {:>12}",
            "verdict",
            if self.is_clean() {
                "clean"
            } else {
                "NOT CLEAN"
            }
        )?;
        for (name, violations) in self
            .invariants()
            .into_iter()
            .filter(|(_, violations)| violations.count > 0)
        {
            write!(f, "\n\n{name}: {}", violations.count)?;
            for offender in &violations.first {
                write!(f, "\n  {offender}")?;
            }
            let untold = violations.count - violations.first.len() as u64;
            if untold > 0 {
                write!(f, "\n  and {untold} more")?;
            }
        }
        Ok(())
    }
}

/// The violations of one invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// All of them.
    pub count: u64,
    /// The first [`OFFENDERS_MAX`], described.
    pub first: Vec<Offender>,
}

impl Violations {
    /// Counts one; describes it only while there is room, because a bad run may have millions.
    pub(super) fn add(&mut self, describe: impl FnOnce() -> Offender) {
        self.count += 1;
        if self.first.len() < OFFENDERS_MAX {
            self.first.push(describe());
        }
    }
}

/// One violation, with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// The event's id; absent when a position record is at fault.
    #[serde(serialize_with = "serialize_id")]
    pub event: Option<Uuid>,
    /// The ledger's name of its transaction; absent for a phantom that is not in the ledger.
    pub transaction: Option<String>,
    /// The topic where it was seen, or should have been.
    pub topic: Option<String>,
    /// The partition where it was seen.
    pub partition: Option<i32>,
    /// The offset where it was seen; for a position record the first offset of the range at fault.
    pub offset: Option<i64>,
    /// What is wrong with it.
    pub what: String,
}

/// Written out here so that `uuid` needs no further feature for one field.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn serialize_id<S: Serializer>(id: &Option<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Offender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(event) = &self.event {
            write!(f, "event {event} ")?;
        }
        if let Some(transaction) = &self.transaction {
            write!(f, "of transaction {transaction} ")?;
        }
        if let Some(topic) = &self.topic {
            write!(f, "{topic}")?;
        }
        if let (Some(partition), Some(offset)) = (self.partition, self.offset) {
            write!(f, "/{partition}@{offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}
