//! I3: order.

use std::mem;

use super::check::Check;
use super::committed::number;
use super::report::Report;

impl Check<'_> {
    /// I3. An event counts once, however many rules it breaks.
    pub(super) fn judge_order(&self, report: &mut Report) {
        let mut stale = vec![false; self.first.len()];
        self.judge_order_of_keys(report, &mut stale);
        self.judge_order_in_transactions(report, &mut stale);
    }

    /// An event is stale when its partition had already shown a later one of its key.
    pub(super) fn judge_order_of_keys(&self, report: &mut Report, stale: &mut [bool]) {
        let lane = |event: usize| (self.ledger.events[event].key, self.first[event].partition);
        let mut seen: Vec<u32> = (0..number(self.first.len()))
            .filter(|event| self.has_a_place(*event as usize))
            .collect();
        seen.sort_unstable_by_key(|event| {
            (lane(*event as usize), self.first[*event as usize].offset)
        });
        let mut newest: Option<usize> = None;
        for event in seen.into_iter().map(|event| event as usize) {
            let Some(before) = newest.filter(|before| lane(*before) == lane(event)) else {
                newest = Some(event);
                continue;
            };
            let (version, shown) = (
                self.ledger.events[event].version,
                self.ledger.events[before].version,
            );
            if version >= shown {
                newest = Some(event);
                continue;
            }
            stale[event] = true;
            report.out_of_order.add(|| {
                let key = &self.ledger.keys.names[self.ledger.events[event].key as usize].1;
                let place = self.place(&self.first[before]);
                let what = format!(
                    "version {version} of key {key:?} comes after version {shown} at {place}"
                );
                self.offender(event, Some(&self.first[event]), what)
            });
        }
    }

    /// Inside a partition a transaction's records keep the order of insertion, and `tx-index` says so.
    pub(super) fn judge_order_in_transactions(&self, report: &mut Report, stale: &mut [bool]) {
        for transaction in 0..self.ledger.transactions.len() {
            let events = self.ledger.events_of(transaction);
            let mut seen: Vec<usize> = events
                .filter(|event| !self.first[*event].is_none())
                .collect();
            seen.sort_unstable_by_key(|event| {
                (self.first[*event].partition, self.first[*event].offset)
            });
            let mut furthest: Option<usize> = None;
            for event in seen {
                let here = &self.first[event];
                let before =
                    furthest.filter(|before| self.first[*before].partition == here.partition);
                match before {
                    Some(before)
                        if event < before || here.tx_index <= self.first[before].tx_index =>
                    {
                        if mem::replace(&mut stale[event], true) {
                            continue;
                        }
                        report.out_of_order.add(|| {
                            let (index, place) =
                                (self.first[before].tx_index, self.place(&self.first[before]));
                            let what = format!(
                                "tx-index {} comes after tx-index {index} at {place}",
                                here.tx_index
                            );
                            self.offender(event, Some(here), what)
                        });
                    }
                    _ => furthest = Some(event),
                }
            }
        }
    }

    /// Whether an event is seen and its version says when it was published. That follows from the last row of its
    /// transaction, so it does not where rows of the transaction were deleted.
    pub(super) fn has_a_place(&self, event: usize) -> bool {
        let seen = &self.first[event];
        let transaction = self.ledger.events[event].transaction as usize;
        let rows = self.ledger.events_of(transaction).len();
        let lost_rows = self.ledger.retained && seen.tx_count as usize > rows;
        let key = &self.ledger.keys.names[self.ledger.events[event].key as usize].1;
        let is_anywhere = self.ledger.transactions[transaction].late && key.is_empty();
        !seen.is_none() && !lost_rows && !is_anywhere
    }
}
