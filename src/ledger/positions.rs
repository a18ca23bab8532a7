//! I7 and I8: the position only ever grows, and one producer publishes at a time.

use super::check::{Check, Position};
use super::report::{Offender, Report};

impl Check<'_> {
    /// Both are judged from one position record to the next, by offset.
    pub(super) fn judge_positions(&self, report: &mut Report) {
        let mut positions: Vec<&Position> = self.positions.iter().collect();
        positions.sort_by_key(|position| position.offset);
        let mut succeeded = vec![false; self.instances.len()];
        for pair in positions.windows(2) {
            let (before, here) = (pair[0], pair[1]);
            if let Some(what) = went_back(before, here) {
                report.went_back.add(|| offender(here, what));
            }
            succeeded[before.instance as usize] |= before.instance != here.instance;
            // A producer that was succeeded never publishes again: the next one of its process has another name.
            if succeeded[here.instance as usize] {
                let (old, new) = (self.instance_of(here), self.instance_of(before));
                let what =
                    format!("written by {old} after it was succeeded; before it wrote {new}");
                report.interleaved.add(|| offender(here, what));
            }
        }
    }

    fn instance_of(&self, position: &Position) -> &str {
        &self.instances[position.instance as usize]
    }
}

fn went_back(before: &Position, here: &Position) -> Option<String> {
    if here.kafka_transaction <= before.kafka_transaction {
        return Some(format!(
            "its Kafka transaction {} comes after {} at offset {}",
            here.kafka_transaction, before.kafka_transaction, before.offset
        ));
    }
    (!before.position.precedes(&here.position)).then(|| {
        format!(
            "its position {} comes after {} at offset {}",
            here.position, before.position, before.offset
        )
    })
}

fn offender(position: &Position, what: String) -> Offender {
    Offender {
        event: None,
        transaction: None,
        topic: Some("the position topic".to_owned()),
        partition: Some(0),
        offset: Some(position.offset),
        what,
    }
}
