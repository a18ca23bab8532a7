//! What may go, and how. Pure.

use crate::position::{Mismatch, Origin, Position, Snapshot, Xid};

/// How many transactions a statement may list as not to be touched: each row is compared with them.
const OPEN_MAX: usize = 10_000;

/// The newest mark that is older than the retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    /// When it was made, as the server prints it.
    pub at: String,
    /// What was published then.
    pub position: Position,
    /// The position that was acknowledged last, by this process.
    pub acknowledged: Position,
}

/// Why a mark says nothing about the rows that are here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Transaction ids mean something else there.
    #[error("the newest position that is old enough does not belong here: {0}")]
    Elsewhere(#[from] Mismatch),
    /// The relay stands before it: Kafka was set back, and rows may have to be published again.
    #[error(
        "the newest position that is old enough lies behind the one that was acknowledged last"
    )]
    NotReached,
}

impl Old {
    /// The transactions whose rows may go, on a server where `here` is and that will give out `next_xid` next. Not those
    /// that were passed over and are `unsettled`.
    ///
    /// # Errors
    /// Why none may.
    pub fn may_go(
        &self,
        here: &Origin,
        next_xid: Xid,
        unsettled: &[Xid],
    ) -> Result<Snapshot, Unusable> {
        let marked = &self.position;
        let here = Origin {
            capture: marked.origin.capture.clone(),
            ..here.clone()
        };
        here.accepts(marked, next_xid)?;
        let published = published(marked);
        if !published.grows_into(&published_exactly(&self.acknowledged)) {
            return Err(Unusable::NotReached);
        }
        let may_go = published.without(unsettled);
        Ok(match may_go.in_progress().len() <= OPEN_MAX {
            true => may_go,
            // What lies behind the oldest of them goes later.
            false => may_go.below_all_open(),
        })
    }
}

/// What had been published at this position, or a little less: an open window is left out, and so is what the WAL capture
/// published beyond its snapshot, where that is a long list.
fn published(position: &Position) -> Snapshot {
    let exact = published_exactly(position);
    match exact.in_progress().len() <= OPEN_MAX {
        true => exact,
        false => position.seen.clone(),
    }
}

/// In a quiet outbox the snapshot of a position of the WAL stays behind, and what came last is in the list beyond it alone.
fn published_exactly(position: &Position) -> Snapshot {
    let as_table = position.as_table();
    as_table.map_or_else(|| position.seen.clone(), |it| it.seen)
}

/// What a leaf of a partitioned table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// As the server spells it.
    pub name: String,
    /// `seq` of its first and its last row; none: it is empty.
    pub rows: Option<(i64, i64)>,
    /// Whether it holds a row that must stay.
    pub stays: bool,
}

/// What is done with a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing may go, or it goes later with all the rest of the leaf.
    Leave,
    /// All of it may go.
    Truncate,
    /// The ring is too small: rows of the next lap lie among those of the last one, and others will come before these are
    /// old. It would never be truncated, so its rows go one by one.
    Delete,
}

/// A step for each leaf.
#[must_use]
pub fn steps(leaves: &[Leaf]) -> Vec<Step> {
    let step = |leaf: &Leaf| match leaf.rows {
        None => Step::Leave,
        Some(_) if !leaf.stays => Step::Truncate,
        Some((first, last)) => {
            // Rows of one lap follow each other; of two laps, those of the other leaves lie between.
            let between = |other: &Leaf| other.rows.is_some_and(|(it, _)| first < it && it < last);
            match leaves.iter().any(between) {
                true => Step::Delete,
                false => Step::Leave,
            }
        }
    };
    leaves.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::position::Window;

    fn origin(timeline: u32) -> Origin {
        Origin {
            timeline,
            ..Origin::of_test("wal")
        }
    }

    fn at(seen: &str) -> Position {
        Position::at(origin(1), seen.parse().unwrap())
    }

    fn old(position: Position, acknowledged: &str) -> Old {
        Old {
            at: String::new(),
            position,
            acknowledged: at(acknowledged),
        }
    }

    #[test]
    fn what_the_snapshot_of_the_mark_has_seen_may_go_but_for_what_is_not_settled() {
        let old = old(at("10:20:10,15"), "20:30:20");
        let may_go = old.may_go(&origin(1), 30, &[12, 15, 25]).unwrap();
        assert_eq!(may_go.to_string(), "10:20:10,12,15");
    }

    #[test]
    fn a_window_that_was_half_published_stays() {
        let mut position = at("10:10:");
        position.window = Some(Window {
            until: "20:20:".parse().unwrap(),
            last_seq: 7,
        });
        let may_go = old(position, "20:20:").may_go(&origin(1), 30, &[]).unwrap();
        assert_eq!(may_go.to_string(), "10:10:");
    }

    #[test]
    fn what_the_wal_brought_beyond_the_snapshot_may_go_too() {
        let beyond = |xids: Option<&[Xid]>| {
            let xids = xids.map(|xids| xids.iter().copied().collect());
            Position::at_lsn(origin(1), 1.into(), "10:20:10".parse().unwrap(), xids)
        };
        let may_go = |marked: Position, acknowledged: Position| {
            let old = Old {
                acknowledged,
                ..old(marked, "1:1:")
            };
            old.may_go(&origin(1), 90_000, &[]).map(|it| it.to_string())
        };
        let known = beyond(Some(&[22]));
        let exact = Ok("10:23:10,20,21".to_owned());
        assert_eq!(may_go(known.clone(), known.clone()), exact);
        assert_eq!(
            may_go(beyond(None), known.clone()),
            Ok("10:20:10".to_owned())
        );
        assert_eq!(
            may_go(known.clone(), beyond(None)),
            Err(Unusable::NotReached)
        );
        let far = beyond(Some(&[30_000]));
        assert_eq!(may_go(far.clone(), far), Ok("10:20:10".to_owned()));
    }

    #[test]
    fn marks_of_either_capture_count() {
        let here = Origin {
            capture: "table".into(),
            ..origin(1)
        };
        assert!(old(at("10:10:"), "10:10:").may_go(&here, 30, &[]).is_ok());
    }

    #[test]
    fn a_mark_of_another_place_says_nothing() {
        type Change = fn(&mut Origin);
        let elsewhere: [Change; 4] = [
            |it| it.system_id = "8".into(),
            |it| it.timeline = 2,
            |it| it.database_oid = 6,
            |it| it.table = "public.outbox".into(),
        ];
        for change in elsewhere {
            let mut here = origin(1);
            change(&mut here);
            let refused = old(at("10:10:"), "10:10:").may_go(&here, 30, &[]);
            assert!(
                matches!(refused, Err(Unusable::Elsewhere(_))),
                "{refused:?}"
            );
        }
        let ahead = old(at("40:40:"), "40:40:").may_go(&origin(1), 30, &[]);
        assert!(matches!(
            ahead,
            Err(Unusable::Elsewhere(Mismatch::Ahead(39, 30)))
        ));
    }

    #[test]
    fn a_mark_that_the_relay_has_not_reached_again_says_nothing() {
        let set_back = old(at("20:20:"), "15:20:15").may_go(&origin(1), 30, &[]);
        assert_eq!(set_back, Err(Unusable::NotReached));
    }

    fn leaf(rows: Option<(i64, i64)>, stays: bool) -> Leaf {
        Leaf {
            name: String::new(),
            rows,
            stays,
        }
    }

    #[test]
    fn a_leaf_goes_when_all_in_it_may_go() {
        let ring = [
            leaf(Some((200, 299)), false),
            leaf(Some((300, 399)), true),
            leaf(Some((400, 420)), true),
            leaf(None, false),
        ];
        let leave = Step::Leave;
        assert_eq!(steps(&ring), [Step::Truncate, leave, leave, leave]);
    }

    #[test]
    fn where_the_ring_is_too_small_rows_go_one_by_one() {
        // Leaf 0 was entered again while rows of the last lap are in it.
        let ring = [
            leaf(Some((50, 420)), true),
            leaf(Some((100, 199)), false),
            leaf(Some((200, 299)), true),
        ];
        assert_eq!(steps(&ring), [Step::Delete, Step::Truncate, Step::Leave]);
    }

    fn snapshot() -> impl Strategy<Value = Snapshot> {
        (2u64..60, proptest::collection::btree_set(1u64..60, 0..8)).prop_map(|(xmax, open)| {
            let open: Vec<u64> = open.into_iter().filter(|xid| *xid < xmax).collect();
            let list: Vec<String> = open.iter().map(ToString::to_string).collect();
            let xmin = open.first().copied().unwrap_or(xmax);
            format!("{xmin}:{xmax}:{}", list.join(",")).parse().unwrap()
        })
    }

    /// Half of the time the second goes on from the first.
    fn marked_and_acknowledged() -> impl Strategy<Value = (Snapshot, Snapshot)> {
        let grown = (snapshot(), 0u64..10, any::<u64>()).prop_map(|(marked, more, ended)| {
            let open = marked.in_progress().iter().copied();
            let open: Vec<u64> = open.filter(|xid| ended >> xid & 1 == 0).collect();
            let list: Vec<String> = open.iter().map(ToString::to_string).collect();
            let xmax = marked.xmax() + more;
            let xmin = open.first().copied().unwrap_or(xmax);
            let grown = format!("{xmin}:{xmax}:{}", list.join(","));
            (marked, grown.parse().unwrap())
        });
        prop_oneof![(snapshot(), snapshot()), grown]
    }

    proptest! {
        /// Whatever the mark, the acknowledged position and what is not settled: what may go was published, is known to
        /// be now, and is settled.
        #[test]
        fn nothing_goes_that_is_not_published_and_settled(
            (marked, acknowledged) in marked_and_acknowledged(),
            unsettled in proptest::collection::vec(1u64..60, 0..5), next_xid in prop_oneof![1u64..70, 60u64..70], timeline in 1u32..3,
        ) {
            let old = Old {
                at: String::new(),
                position: Position::at(origin(1), marked.clone()),
                acknowledged: Position::at(origin(1), acknowledged.clone()),
            };
            let may_go = old.may_go(&origin(timeline), next_xid, &unsettled);
            let is_usable = timeline == 1 && marked.xmax() <= next_xid && marked.grows_into(&acknowledged);
            prop_assert_eq!(may_go.is_ok(), is_usable);
            let Ok(may_go) = may_go else { return Ok(()); };
            for xid in (1..70).filter(|xid| may_go.sees(*xid)) {
                prop_assert!(marked.sees(xid) && acknowledged.sees(xid) && xid < next_xid && !unsettled.contains(&xid));
            }
            for xid in (1..70).filter(|xid| marked.sees(*xid) && !unsettled.contains(xid)) {
                prop_assert!(may_go.sees(xid));
            }
        }
    }
}
