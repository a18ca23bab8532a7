//! Cutting a window into batches, between transactions only. Pure.

use std::collections::{HashMap, VecDeque};

use crate::event::Event;
use crate::position::{Tally, Xid};

/// A transaction of the window, as the plan lists them, by `max(seq)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The writer's transaction.
    pub xid: Xid,
    /// Its `max(seq)`.
    pub last_seq: i64,
    /// Its events.
    pub events: u64,
    /// Its payload bytes.
    pub bytes: u64,
    /// Hashes of its event ids, by exclusive or.
    pub ids: i64,
}

impl Planned {
    /// What it adds to a position.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            events: self.events,
            ids: self.ids,
        }
    }
}

/// Limits of a batch. A transaction that is larger alone is a batch of its own and streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Events in a batch, at most.
    pub events_max: u64,
    /// Payload bytes in a batch, at most.
    pub bytes_max: u64,
    /// Transactions in a batch, at most.
    pub transactions_max: u64,
}

/// What the next batch is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// These transactions, together within the limits.
    Whole(Vec<Planned>),
    /// This one alone exceeds the limits.
    Large(Planned),
}

/// Takes the next batch off `planned`; `None` when it is empty.
pub fn cut(planned: &mut VecDeque<Planned>, limits: BatchLimits) -> Option<Cut> {
    let fits = |events: u64, bytes: u64| events <= limits.events_max && bytes <= limits.bytes_max;
    let first = planned.front()?;
    if !fits(first.events, first.bytes) {
        return planned.pop_front().map(Cut::Large);
    }
    let (mut events, mut bytes) = (0, 0);
    let mut whole = Vec::new();
    while let Some(next) = planned.front()
        && (whole.len() as u64) < limits.transactions_max.max(1)
    {
        events += next.events;
        bytes += next.bytes;
        if !fits(events, bytes) {
            break;
        }
        whole.extend(planned.pop_front());
    }
    Some(Cut::Whole(whole))
}

/// Rows in any order, made into the planned transactions: these by `max(seq)`, rows by `seq`. `None` if rows are missing.
pub fn assemble(whole: &[Planned], rows: Vec<(Xid, Event)>) -> Option<Vec<(Xid, Vec<Event>)>> {
    let mut by_xid: HashMap<Xid, Vec<Event>> = HashMap::with_capacity(whole.len());
    for (xid, event) in rows {
        by_xid.entry(xid).or_default().push(event);
    }
    whole
        .iter()
        .map(|planned| {
            let mut events = by_xid.remove(&planned.xid)?;
            events.sort_unstable_by_key(|event| event.seq);
            (events.len() as u64 == planned.events).then_some((planned.xid, events))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plans() -> impl Strategy<Value = Vec<Planned>> {
        proptest::collection::vec((1u64..30, 0u64..3000), 0..60).prop_map(|sizes| {
            sizes
                .into_iter()
                .enumerate()
                .map(|(i, (events, bytes))| Planned {
                    xid: 100 + i as u64,
                    last_seq: i as i64 * 50,
                    events,
                    bytes,
                    ids: 0,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_transaction_is_in_one_batch_in_order_and_within_the_limits(
            plan in plans(), events_max in 1u64..40, bytes_max in 1u64..5000, transactions_max in 1u64..9,
        ) {
            let limits = BatchLimits { events_max, bytes_max, transactions_max };
            let mut rest: VecDeque<Planned> = plan.clone().into();
            let mut out = Vec::new();
            while let Some(cut) = cut(&mut rest, limits) {
                match cut {
                    Cut::Whole(whole) => {
                        prop_assert!(!whole.is_empty() && whole.len() as u64 <= transactions_max);
                        prop_assert!(whole.iter().map(|p| p.events).sum::<u64>() <= events_max);
                        prop_assert!(whole.iter().map(|p| p.bytes).sum::<u64>() <= bytes_max);
                        out.extend(whole);
                    }
                    Cut::Large(one) => {
                        prop_assert!(one.events > events_max || one.bytes > bytes_max);
                        out.push(one);
                    }
                }
            }
            prop_assert_eq!(out, plan);
        }
    }
}
