//! I1 and I2: nothing is lost, nothing is doubled.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use super::check::{Check, Limits, Sighting};
use super::committed::Event;
use super::report::Report;

impl Check<'_> {
    /// I2. Of several sightings the one that the earliest position record claims is judged further: it is the one that
    /// was published with the rest of its transaction, whichever the scan met first.
    pub(super) fn settle_extra_sightings(&mut self, report: &mut Report) {
        let rank = |check: &Self, seen: &Sighting| {
            (
                check.position_of(seen).unwrap_or(u32::MAX),
                seen.partition,
                seen.offset,
            )
        };
        let mut extra = mem::take(&mut self.extra);
        for (event, sighting) in &mut extra {
            let event = *event as usize;
            if rank(self, sighting) < rank(self, &self.first[event]) {
                mem::swap(sighting, &mut self.first[event]);
            }
            report.doubled.add(|| {
                let first = self.place(&self.first[event]);
                self.offender(
                    event,
                    Some(sighting),
                    format!("seen again here, first at {first}"),
                )
            });
        }
        self.extra = extra;
    }

    /// Counts for each claim the records that lie in it.
    pub(super) fn count_found(&mut self) {
        for seen in 0..self.first.len() {
            let sighting = self.first[seen];
            if let Some(claim) = self.claim_at(sighting.partition, sighting.offset) {
                self.claims[claim].found += 1;
            }
        }
        let extra = self
            .extra
            .iter()
            .map(|(_, sighting)| (sighting.partition, sighting.offset));
        let all: Vec<_> = extra.chain(self.strangers.iter().copied()).collect();
        for (partition, offset) in all {
            if let Some(claim) = self.claim_at(partition, offset) {
                self.claims[claim].found_extra += 1;
            }
        }
    }

    /// I1. Answers the number of lost events of each topic.
    pub(super) fn judge_lost(&self, report: &mut Report) -> HashMap<Arc<str>, u64> {
        let mut lost = HashMap::new();
        let frontiers = self.frontiers();
        for event in (0..self.first.len()).filter(|event| self.first[*event].is_none()) {
            let Event {
                key,
                transaction,
                version,
                ..
            } = &self.ledger.events[event];
            let (topic, key) = &self.ledger.keys.names[*key as usize];
            let limits = self.limits.get(topic);
            let unjudged = if !self.ledger.transactions[*transaction as usize].due {
                Some(&mut report.unjudged.not_yet_published)
            } else if limits.is_some_and(|limits| limits.compacted) {
                Some(&mut report.unjudged.perhaps_compacted)
            } else if frontiers
                .get(&**topic)
                .is_some_and(|first| version <= first)
            {
                Some(&mut report.unjudged.perhaps_below_log_start)
            } else {
                None
            };
            if let Some(count) = unjudged {
                *count += 1;
                continue;
            }
            *lost.entry(Arc::clone(topic)).or_insert(0) += 1;
            report.lost.add(|| {
                self.offender(
                    event,
                    None,
                    format!("committed with key {key:?}, never seen"),
                )
            });
        }
        lost
    }

    /// For each topic with a log start above 0 the version up to which an event may lie below it: that of the first event
    /// that is seen in such a partition, the largest of several, and all if one of them shows nothing.
    fn frontiers(&self) -> HashMap<&str, u64> {
        let mut first: HashMap<(&str, i32), (i64, u64)> = HashMap::new();
        for event in (0..self.first.len()).filter(|event| self.has_a_place(*event)) {
            let seen = &self.first[event];
            let (topic, partition) = &self.partitions.names[seen.partition as usize];
            let start = self
                .limits
                .get(topic)
                .and_then(|limits| limits.log_starts.get(&partition.0));
            if start.is_some_and(|start| seen.offset >= *start) {
                let here = (seen.offset, self.ledger.events[event].version);
                first
                    .entry((topic, partition.0))
                    .and_modify(|first| *first = here.min(*first))
                    .or_insert(here);
            }
        }
        let frontier = |topic: &str, limits: &Limits| {
            let of = |partition: &i32| first.get(&(topic, *partition)).map_or(u64::MAX, |it| it.1);
            limits.log_starts.keys().map(of).max()
        };
        self.limits
            .iter()
            .filter_map(|(topic, limits)| Some((&**topic, frontier(topic, limits)?)))
            .collect()
    }
}
