//! Judges a run: what was committed in PostgreSQL against what a `read_committed` consumer sees in Kafka.
//!
//! It knows neither a database nor a broker. The caller writes down the transactions that committed in a [`Ledger`],
//! opens a [`Check`], feeds it the relay's position records and every record of a scan from the beginning, and gets a
//! [`Report`] on seven invariants:
//!
//! | | invariant | counted in the report |
//! |---|---|---|
//! | I1 | every committed event is seen | `lost`, events |
//! | I2 | no event is seen twice | `doubled`, extra sightings |
//! | I3 | a key's versions and a transaction's indexes only ever grow inside a partition | `out_of_order`, events |
//! | I4 | a transaction is seen whole, inside one Kafka transaction, and the relay's position says so | `torn`, transactions |
//! | I5 | nothing is seen that was not committed | `phantoms`, records |
//! | I7 | the position only ever grows, and so does the number of the Kafka transaction | `went_back`, position records |
//! | I8 | after the first position record of a producer there is none of an earlier one | `interleaved`, position records |
//!
//! **One fault, one kind.** Of a doubled event only one sighting is judged further, so a repetition is not out of order
//! as well. A phantom belongs to no transaction, so it tears none. A transaction of which nothing is seen is lost, not
//! torn; one that is seen in part is both. An event seen under another topic or key than the committed ones is a
//! phantom there and lost where it should be, because that is what the consumers of the two topics see.
//!
//! **Any order of feeding.** Offsets decide the order, not the order of the calls: position records and records may
//! come interleaved and partition by partition. Nothing is judged before [`Check::finish`].
//!
//! **Memory**: ten million events in five million transactions, all seen, took 1.3 GB at the peak (measured by
//! `memory_of_ten_million_events`). It grows with the
//! events and transactions, the distinct keys and the position records, not with what the records carry.
//!
//! Not judged: the order of a key whose records lie in several partitions (Kafka promises none; partitions may be
//! added while the relay runs) is judged in each partition for itself.

mod check;
mod committed;
mod lost;
mod order;
mod positions;
mod report;
#[cfg(test)]
mod tests;
mod whole;

pub use check::{Check, PositionRecord, PublishedRange, SeenRecord};
pub use committed::{CommittedEvent, Ledger};
pub use report::{Offender, Report, Unjudged, Violations};

/// How many offenders of each kind a [`Report`] describes; it counts all of them.
pub const OFFENDERS_MAX: usize = 10;
