//! I4: transactions are whole, and the relay's own account agrees.

use std::collections::HashMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::check::{Check, Claim};
use super::report::{Offender, Report};

impl Check<'_> {
    /// I4, the database's transactions.
    pub(super) fn judge_transactions(&self, report: &mut Report) {
        let due = |transaction: &usize| self.ledger.transactions[*transaction].due;
        for transaction in (0..self.ledger.transactions.len()).filter(due) {
            let events = self.ledger.events_of(transaction);
            // One of which nothing is seen is lost and no more.
            let Some(first) = events.clone().find(|event| !self.first[*event].is_none()) else {
                continue;
            };
            if let Some((event, what)) = self.tear(events, first) {
                report.torn.add(|| {
                    let seen = Some(&self.first[event]).filter(|seen| !seen.is_none());
                    self.offender(event, seen, what)
                });
            }
        }
    }

    /// The first event that shows that a transaction is not whole. `first` is its first event that was seen.
    pub(super) fn tear(&self, events: Range<usize>, first: usize) -> Option<(usize, String)> {
        let count = events.len();
        let reference = &self.first[first];
        let home = self.position_of(reference);
        events.clone().find_map(|event| {
            let seen = &self.first[event];
            if seen.is_none() && self.may_be_gone(event) {
                return None;
            }
            if seen.is_none() {
                let visible = events
                    .clone()
                    .filter(|event| !self.first[*event].is_none())
                    .count();
                return Some((
                    event,
                    format!(
                        "{visible} of the transaction's {count} events are seen, this one is not"
                    ),
                ));
            }
            let position = self.position_of(seen);
            let (said, retained) = (seen.tx_count as usize, self.ledger.retained);
            let what = if position.is_none() && !(retained && home.is_none()) {
                "no position record claims this record".to_owned()
            } else if position != home {
                let (here, there) = (
                    self.kafka_transaction(position),
                    self.kafka_transaction(home),
                );
                format!(
                    "published in {here}, but {} of the same transaction in {there}",
                    self.ledger.events[first].id
                )
            } else if said < count || (said > count && !retained) {
                format!(
                    "says tx-count {}, but the transaction has {count} events",
                    seen.tx_count
                )
            } else if seen.tx_id != reference.tx_id {
                format!(
                    "its tx-id differs from that of {} of the same transaction",
                    self.ledger.events[first].id
                )
            } else {
                return None;
            };
            Some((event, what))
        })
    }

    /// I4, the relay's own account: each position record counts what is visible in its ranges, and no two claim the same
    /// offsets. A Kafka transaction counts once. `lost` are the events missing in each topic: so many records may be
    /// missing from its ranges without a further report, because the loss has been reported.
    pub(super) fn judge_claims(&self, report: &mut Report, mut lost: HashMap<Arc<str>, u64>) {
        let mut wrong = vec![false; self.positions.len()];
        for (index, claim) in self.claims.iter().enumerate() {
            let topic = &self.partitions.names[claim.partition as usize].0;
            let most = claim.found + claim.found_extra;
            let missing = claim.count.saturating_sub(most);
            let excused = match lost.get_mut(topic) {
                Some(left) if missing <= *left => {
                    *left -= missing;
                    true
                }
                _ => missing == 0,
            };
            let previous = index.checked_sub(1).map(|previous| &self.claims[previous]);
            let overlaps = previous.filter(|previous| {
                previous.partition == claim.partition && claim.first_offset <= previous.last_offset
            });
            let gone = self.limits.get(topic).is_some_and(|limits| {
                let partition = self.partitions.names[claim.partition as usize].1.0;
                let start = limits.log_starts.get(&partition);
                limits.compacted || start.is_some_and(|start| claim.first_offset < *start)
            });
            let what = if let Some(previous) = overlaps {
                format!(
                    "claims offsets that {} claims too",
                    self.kafka_transaction(Some(previous.position))
                )
            } else if (!excused && !gone) || claim.count < claim.found {
                format!(
                    "counts {} records up to offset {}, visible are {most}",
                    claim.count, claim.last_offset
                )
            } else {
                continue;
            };
            if !mem::replace(&mut wrong[claim.position as usize], true) {
                report.torn.add(|| self.claim_offender(claim, &what));
            }
        }
    }

    pub(super) fn claim_offender(&self, claim: &Claim, what: &str) -> Offender {
        let (topic, partition) = &self.partitions.names[claim.partition as usize];
        Offender {
            event: None,
            transaction: None,
            topic: Some(topic.to_string()),
            partition: Some(partition.0),
            offset: Some(claim.first_offset),
            what: format!("{} {what}", self.kafka_transaction(Some(claim.position))),
        }
    }

    /// Whether the topic of an event may have lost records to compaction or retention. Whether this one did, is judged as
    /// loss, not as a tear.
    fn may_be_gone(&self, event: usize) -> bool {
        let key = self.ledger.events[event].key as usize;
        self.limits.contains_key(&self.ledger.keys.names[key].0)
    }
}
