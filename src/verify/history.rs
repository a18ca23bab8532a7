//! What was published when: the positions that are still known, in order. Pure, but for reading the marks.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::fault::Fault;
use crate::ledger::PositionRecord;
use crate::position::{Position, Xid};

/// A position of `outbox.marks`.
pub struct Mark {
    position: Position,
    /// The relay may have begun here, so what it covers need not have been published.
    first: bool,
}

/// Reads the marks of a relay.
///
/// # Errors
/// When the database does not answer, or a mark can't be read.
pub async fn marks(client: &Client, name: &str) -> Result<Vec<Mark>, Fault> {
    let rows = client
        .query_typed(
            include_str!("../../sql/verify/marks.sql"),
            &[(&name, Type::TEXT)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let position = serde_json::from_str(row.try_get(0)?).map_err(|error| {
                Fault::Refused(format!("a position in outbox.marks can't be read: {error}"))
            })?;
            Ok(Mark {
                position,
                first: row.try_get(1)?,
            })
        })
        .collect()
}

/// A known position, and what is known of the step to it.
struct Known<'p> {
    position: &'p Position,
    /// Number of its Kafka transaction, if the position topic still has it.
    kafka_transaction: Option<u64>,
    first: bool,
}

/// The known positions, each covering the one before.
pub struct History<'p> {
    known: Vec<Known<'p>>,
}

/// When a transaction was published: smaller is earlier, equal is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The first known position that covers it.
    step: usize,
    /// Its `max(seq)`, where the step was one Kafka transaction of the table capture: inside one it decides.
    last_seq: i64,
}

impl<'p> History<'p> {
    /// Marks are copies of position records that may be compacted away meanwhile.
    pub fn new(marks: &'p [Mark], positions: &'p [PositionRecord]) -> Self {
        let mut marks = marks.iter().peekable();
        let mut known: Vec<Known<'p>> = Vec::new();
        // A position that goes back is reported by the check; here it would make no order. One that can't name all that it
        // covers says less than the one before.
        let mut add = |next: Known<'p>| match known.last() {
            Some(last) if !last.position.precedes(next.position) => {}
            _ if !next.position.names_all() => {}
            _ => known.push(next),
        };
        for record in positions {
            while let Some(mark) = marks.next_if(|mark| mark.position.precedes(&record.position)) {
                if !record.position.precedes(&mark.position) {
                    add(Known {
                        position: &mark.position,
                        kafka_transaction: None,
                        first: mark.first,
                    });
                }
            }
            add(Known {
                position: &record.position,
                kafka_transaction: Some(record.kafka_transaction),
                first: record.kafka_transaction == 1,
            });
        }
        Self { known }
    }

    /// When a transaction was published.
    pub fn published(&self, xid: Xid, last_seq: i64) -> Published {
        let covers = |known: &Known<'_>| known.position.covers(xid, last_seq);
        let step = self.known.partition_point(|known| !covers(known));
        Published {
            step,
            last_seq: if self.is_exact(step) { last_seq } else { 0 },
        }
    }

    /// Whether the last position covers it, and it is not from before the relay's first start.
    pub fn is_due(&self, published: Published) -> bool {
        let from_before = published.step == 0 && self.known.first().is_some_and(|it| it.first);
        published.step < self.known.len() && !from_before
    }

    /// Whether a step is one Kafka transaction, inside which the rows say the order. That of commits they don't.
    fn is_exact(&self, step: usize) -> bool {
        let number = |step: usize| {
            let known = self.known.get(step)?;
            known
                .kafka_transaction
                .filter(|_| known.position.streamed.is_none())
        };
        let before = step.checked_sub(1).and_then(number);
        before.is_some_and(|before| number(step) == Some(before + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Window};

    fn position(seen: &str) -> Position {
        let origin = Origin::of_test("table");
        Position::at(origin, seen.parse().unwrap())
    }

    fn record(kafka_transaction: u64, position: Position) -> PositionRecord {
        PositionRecord {
            offset: i64::try_from(kafka_transaction).unwrap(),
            kafka_transaction,
            instance: "a".into(),
            position,
            partitions: Vec::new(),
        }
    }

    fn mark(seen: &str, first: bool) -> Mark {
        Mark {
            position: position(seen),
            first,
        }
    }

    #[test]
    fn a_late_commit_was_published_late_whatever_its_xid() {
        let records = [
            record(1, position("1:1:")),
            record(2, position("10:20:10")),
            record(3, position("30:30:")),
        ];
        let history = History::new(&[], &records);
        let (late, early) = (history.published(10, 5), history.published(19, 90));
        assert!(early < late && history.is_due(early) && history.is_due(late));
        assert!(!history.is_due(history.published(30, 99)));
    }

    #[test]
    fn inside_one_kafka_transaction_the_last_seq_decides() {
        let records = [record(4, position("10:10:")), record(5, position("20:20:"))];
        let history = History::new(&[], &records);
        assert!(history.published(12, 3) < history.published(11, 7));
        // Kafka transactions in between are forgotten.
        let records = [record(4, position("10:10:")), record(6, position("20:20:"))];
        let history = History::new(&[], &records);
        assert_eq!(history.published(12, 3), history.published(11, 7));
    }

    #[test]
    fn inside_one_kafka_transaction_rows_do_not_tell_the_order_of_commits() {
        let streamed = |lsn: u64, beyond: Option<&[Xid]>| {
            let beyond = beyond.map(|xids| xids.iter().copied().collect());
            Position::at_lsn(
                position("1:1:").origin,
                lsn.into(),
                "10:10:".parse().unwrap(),
                beyond,
            )
        };
        let records = [
            record(4, streamed(1, Some(&[]))),
            record(5, streamed(2, Some(&[12, 11]))),
            record(6, streamed(3, None)),
            record(7, streamed(4, Some(&[11, 12, 14, 15]))),
        ];
        let history = History::new(&[], &records);
        assert_eq!(history.published(12, 3), history.published(11, 7));
        assert!(history.published(12, 3) < history.published(14, 1));
        assert!(history.is_due(history.published(15, 8)));
        assert!(!history.is_due(history.published(16, 9)));
    }

    #[test]
    fn marks_tell_the_order_of_what_the_position_topic_forgot() {
        let marks = [
            mark("10:10:", true),
            mark("20:20:", false),
            mark("30:30:", false),
        ];
        let records = [
            record(90, position("30:30:")),
            record(91, position("40:40:")),
        ];
        let history = History::new(&marks, &records);
        assert!(history.published(15, 9) < history.published(25, 1));
        assert_eq!(history.published(25, 9), history.published(28, 1));
        assert!(history.published(35, 2) < history.published(31, 4));
        // The relay began at the first mark.
        assert!(!history.is_due(history.published(9, 1)));
        assert!(history.is_due(history.published(10, 2)));
    }

    #[test]
    fn the_middle_of_a_window_is_a_position_too() {
        let mut middle = position("10:10:");
        middle.window = Some(Window {
            until: "30:30:".parse().unwrap(),
            last_seq: 50,
        });
        let records = [
            record(1, position("10:10:")),
            record(2, middle),
            record(3, position("30:30:")),
        ];
        let history = History::new(&[], &records);
        assert!(history.published(20, 50) < history.published(11, 51));
    }
}
