//! Which transactions a place in the WAL stands for: a snapshot, and the transactions beyond it. Pure.
//!
//! The list would grow for ever, so now and then a new snapshot takes its place: once all WAL up to a place behind the
//! snapshot was handed out, all that it sees was. What it does not see and was handed out stays in the list. (A commit can
//! be streamed before it is visible: while it waits for a synchronous standby.)

use super::shell::Present;
use crate::position::{Snapshot, Streamed, Xid, Xids};

/// Runs of transaction ids that a position holds, about 10 bytes each; a Kafka record is 1 MB at most by default.
const RUNS_STORED_MAX: usize = 20_000;
/// Runs that are held in memory, about 40 bytes each.
const RUNS_HELD_MAX: usize = 200_000;

/// What was handed out.
#[derive(Debug)]
pub(super) struct Published {
    seen: Snapshot,
    beyond: Xids,
    /// The list has all ids from here on; 1: all of them.
    listed_from: Xid,
}

impl Published {
    /// `next_xid`: from here on no id was given out yet.
    pub fn resumed(seen: Snapshot, streamed: &Streamed, next_xid: Xid) -> Self {
        Self {
            seen,
            listed_from: streamed.beyond.as_ref().map_or(next_xid, |_| 1),
            beyond: streamed.beyond.clone().unwrap_or_default(),
        }
    }

    pub fn add(&mut self, xid: Xid) {
        self.beyond.insert(xid);
        if self.beyond.runs() > RUNS_HELD_MAX {
            self.beyond = Xids::default();
            self.listed_from = Xid::MAX;
        }
    }

    /// Whether a new snapshot would make the list shorter.
    pub fn has_list(&self) -> bool {
        self.beyond.runs() > 0 || self.listed_from > 1
    }

    /// A snapshot was asked for: if the list was given up, it begins again here.
    pub fn asked(&mut self, present: &Present) {
        if self.listed_from == Xid::MAX {
            self.listed_from = present.snapshot.xmax();
        }
    }

    /// All that `present` sees was handed out.
    pub fn rebase(&mut self, present: &Present) {
        let now = &present.snapshot;
        // All that it does not see is in the list, if it was handed out.
        if now.xmin() >= self.listed_from {
            self.listed_from = 1;
        }
        // Above the highest transaction whose commit is known to be durable, ids may be given out again after a crash.
        let highest = self.beyond.last_seen_by(now).max(present.highest);
        self.seen = now.trimmed(&self.seen, highest);
        self.beyond = self.beyond.beyond(&self.seen);
    }

    /// As a position holds it.
    pub fn stored(&self) -> (Snapshot, Option<Xids>) {
        let is_whole = self.listed_from == 1 && self.beyond.runs() <= RUNS_STORED_MAX;
        (self.seen.clone(), is_whole.then(|| self.beyond.clone()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn present(snapshot: &str) -> Present {
        Present {
            snapshot: snapshot.parse().unwrap(),
            highest: None,
            written: 0.into(),
        }
    }

    fn streamed(beyond: Option<&[Xid]>) -> Streamed {
        Streamed {
            lsn: 1.into(),
            published: 1.into(),
            beyond: beyond.map(|xids| xids.iter().copied().collect()),
        }
    }

    #[test]
    fn a_snapshot_takes_the_place_of_the_list_but_for_what_it_does_not_see() {
        let seen = "10:10:".parse().unwrap();
        let mut published = Published::resumed(seen, &streamed(Some(&[12])), 13);
        [14, 15, 20].into_iter().for_each(|xid| published.add(xid));
        published.rebase(&present("15:18:15"));
        let (seen, beyond) = published.stored();
        // 15 was streamed before it was visible; above 14 nothing that the snapshot sees is known to be durable.
        assert_eq!(seen.to_string(), "15:15:");
        assert_eq!(beyond.unwrap().to_string(), "15,20");
    }

    #[test]
    fn a_list_that_was_given_up_is_whole_again_when_all_that_is_open_began_later() {
        let seen: Snapshot = "10:10:".parse().unwrap();
        let mut published = Published::resumed(seen, &streamed(None), 100);
        published.add(105);
        published.rebase(&present("99:107:99"));
        assert_eq!(published.stored().1, None);
        published.add(108);
        published.rebase(&present("100:108:100"));
        let (seen, beyond) = published.stored();
        assert_eq!(seen.to_string(), "100:106:100");
        assert_eq!(beyond.unwrap().to_string(), "108");
    }

    #[test]
    fn a_list_that_grows_too_long_is_given_up_and_begins_again() {
        let mut published = Published::resumed(Snapshot::empty(), &streamed(Some(&[])), 2);
        let too_many = RUNS_HELD_MAX as Xid + 1;
        for i in 1..=RUNS_STORED_MAX as Xid + 1 {
            published.add(2 * i);
        }
        assert_eq!(published.stored().1, None, "too many for a position");
        for i in RUNS_STORED_MAX as Xid + 2..=too_many {
            published.add(2 * i);
        }
        let now = format!("{0}:{0}:", 2 * too_many + 2);
        published.asked(&present(&now));
        published.rebase(&Present {
            highest: Some(2 * too_many),
            ..present(&now)
        });
        let (seen, beyond) = published.stored();
        assert!(seen.sees(2 * too_many) && beyond.is_some_and(|xids| xids.runs() == 0));
    }

    proptest! {
        /// Transactions 1..n commit in some order, with snapshots in between; whatever is rebased when, the position covers
        /// exactly what was handed out, of what can have rows.
        #[test]
        fn a_position_covers_exactly_what_was_handed_out(
            (order, aborted) in (3usize..40).prop_flat_map(|n| (
                Just((1..=n as Xid).collect::<Vec<_>>()).prop_shuffle(),
                proptest::collection::hash_set(1..=n as Xid, 0..n),
            )),
            asks in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6), lag in 0usize..6,
        ) {
            let asks: Vec<usize> = asks.iter().map(|at| at.index(order.len())).collect();
            let mut published = Published::resumed(Snapshot::empty(), &streamed(Some(&[])), 1);
            let mut pending: Vec<(usize, Present)> = Vec::new();
            for end in 0..order.len() {
                let done = &order[..end];
                if asks.contains(&end) && pending.is_empty() {
                    // Ids are given out in order, so all below the greatest that ended have begun.
                    let xmax = done.iter().max().map_or(1, |xid| xid + 1);
                    let open: Vec<String> = (1..xmax).filter(|x| !done.contains(x)).map(|x| x.to_string()).collect();
                    let xmin = open.first().cloned().unwrap_or(xmax.to_string());
                    let now = present(&format!("{xmin}:{xmax}:{}", open.join(",")));
                    published.asked(&now);
                    pending.push((end + lag, now));
                }
                if !aborted.contains(&order[end]) {
                    published.add(order[end]);
                }
                pending.retain(|(due, now)| {
                    let wait = end + 1 < *due;
                    if !wait { published.rebase(now); }
                    wait
                });
                let (seen, beyond) = published.stored();
                let beyond = beyond.unwrap();
                for xid in (1..=order.len() as Xid).filter(|xid| !aborted.contains(xid)) {
                    let covered = seen.sees(xid) || beyond.contains(xid);
                    prop_assert_eq!(covered, order[..=end].contains(&xid), "{} after {}", xid, end);
                }
            }
        }
    }
}
