//! Where a relay stands: a PostgreSQL snapshot, and the cluster and table that it belongs to. Pure.
//!
//! The table capture's position is a *snapshot*: a set of finished transactions. Not a sequence (gaps fill up late) and
//! not an xmin watermark (a long transaction would stall everybody).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PostgreSQL transaction id with its epoch (`xid8`): 64 bits, never wraps.
pub type Xid = u64;

/// A set of finished transactions, as `pg_current_snapshot()` prints it: `xmin:xmax:xip,…`.
///
/// Seen are all transactions below `xmax` that are not in `in_progress`
/// (PostgreSQL manual, "Transaction ID and Snapshot Information Functions").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Snapshot {
    xmax: Xid,
    in_progress: Vec<Xid>,
}

impl Snapshot {
    /// The snapshot that has seen nothing: a relay that starts at the beginning of the table.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            xmax: 1,
            in_progress: Vec::new(),
        }
    }

    /// The first transaction id that counts as unseen, whatever its state.
    #[must_use]
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// Transactions below `xmax` that were still in progress, ascending.
    #[must_use]
    pub fn in_progress(&self) -> &[Xid] {
        &self.in_progress
    }

    /// Whether the transaction had finished when the snapshot was taken: `pg_visible_in_snapshot`.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmax && self.in_progress.binary_search(&xid).is_err()
    }

    /// The part of this snapshot that a position may claim.
    ///
    /// After a crash PostgreSQL gives out again the ids of transactions whose end was not flushed, so a stored position
    /// may count as seen only what lies at or below a transaction whose commit is durable: `highest`, the highest id of
    /// which a committed row was read, or what `before`, the position until now, claims already.
    #[must_use]
    pub fn trimmed(&self, before: &Snapshot, highest: Option<Xid>) -> Self {
        let claimed = highest.map_or(before.xmax, |xid| before.xmax.max(xid + 1));
        let xmax = self.xmax.min(claimed);
        let in_progress = self
            .in_progress
            .iter()
            .copied()
            .filter(|xid| *xid < xmax)
            .collect();
        Self { xmax, in_progress }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let xmin = self.in_progress.first().copied().unwrap_or(self.xmax);
        write!(f, "{xmin}:{}:", self.xmax)?;
        for (i, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is not a snapshot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a PostgreSQL snapshot; it would look like 110:120:112,115")]
pub struct NotASnapshot(String);

impl FromStr for Snapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, NotASnapshot> {
        parse(text).ok_or_else(|| NotASnapshot(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Snapshot> {
    let mut parts = text.split(':');
    let xmin: Xid = parts.next()?.parse().ok()?;
    let xmax: Xid = parts.next()?.parse().ok()?;
    let list = parts.next()?;
    let in_progress = match list {
        "" => Vec::new(),
        list => list
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<Xid>, _>>()
            .ok()?,
    };
    let ascending = in_progress.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = in_progress.iter().all(|xid| (xmin..xmax).contains(xid));
    (parts.next().is_none() && 0 < xmin && xmin <= xmax && ascending && inside)
        .then_some(Snapshot { xmax, in_progress })
}

impl TryFrom<String> for Snapshot {
    type Error = NotASnapshot;

    fn try_from(text: String) -> Result<Self, NotASnapshot> {
        text.parse()
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.to_string()
    }
}

/// What a position belongs to. Two services on one server and one Kafka must not resume from each other's position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `pg_control_system()`: one value for each `initdb`.
    pub system_id: String,
    /// Changes with each promotion of a standby.
    pub timeline: u32,
    /// Oid of the database.
    pub database_oid: u32,
    /// `schema.table`.
    pub table: String,
    /// `table`: the capture that made the position.
    pub capture: String,
}

/// The middle of a window that was too large for one batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The snapshot at which the window ends, trimmed.
    pub until: Snapshot,
    /// `max(seq)` of the last transaction that was handed out; the rest of the window lies above it.
    pub last_seq: i64,
}

/// Where a relay stands: everything that `seen` sees was handed out, and of the open window all up to its `last_seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// What the position belongs to.
    #[serde(flatten)]
    pub origin: Origin,
    /// Transactions whose events were handed out.
    pub seen: Snapshot,
    /// Set between two batches of one window. A transaction that commits after the window's snapshot may carry a
    /// smaller `seq`, therefore `last_seq` alone would not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// Why a position can't be resumed from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another `initdb`: another server, or a major upgrade.
    #[error(
        "it was made on the PostgreSQL cluster {0}, this is {1}; after pg_upgrade run `outbox-relay adopt`"
    )]
    System(String, String),
    /// A standby was promoted, or the cluster was restored to a point in time.
    #[error(
        "it was made on timeline {0}, this is timeline {1}: a standby was promoted or a backup restored; \
         see that nothing published is missing here, then run `outbox-relay adopt`"
    )]
    Timeline(u32, u32),
    /// Another database of the same server.
    #[error(
        "it was made in the database with oid {0}, this one has oid {1}; give each service a --name of its own"
    )]
    Database(u32, u32),
    /// Another table.
    #[error(
        "it was made from table {0}, this relay reads {1}; give each table a --name of its own"
    )]
    Table(String, String),
    /// The other capture.
    #[error("it was made by capture {0}, this relay runs capture {1}")]
    Capture(String, String),
    /// The server lost transactions that were published.
    #[error(
        "the server went back: the position has seen transaction {0}, the server's next one is {1}; \
         it was restored from an older backup or failed over with loss"
    )]
    Ahead(Xid, Xid),
}

impl Origin {
    /// Whether `position` may be resumed from here; `next_xid` is the next transaction id that the server will give out.
    ///
    /// # Errors
    /// The first thing that does not fit, the most fundamental one first.
    pub fn accepts(&self, position: &Position, next_xid: Xid) -> Result<(), Mismatch> {
        self.is_where(&position.origin)?;
        self.reaches(position, next_xid)
    }

    /// Whether what was found at `theirs` is found here.
    ///
    /// # Errors
    /// As those of [`accepts`](Self::accepts).
    pub fn is_where(&self, theirs: &Self) -> Result<(), Mismatch> {
        let ours = self;
        if theirs.system_id != ours.system_id {
            return Err(Mismatch::System(
                theirs.system_id.clone(),
                ours.system_id.clone(),
            ));
        }
        if theirs.database_oid != ours.database_oid {
            return Err(Mismatch::Database(theirs.database_oid, ours.database_oid));
        }
        if theirs.table != ours.table {
            return Err(Mismatch::Table(theirs.table.clone(), ours.table.clone()));
        }
        if theirs.capture != ours.capture {
            return Err(Mismatch::Capture(
                theirs.capture.clone(),
                ours.capture.clone(),
            ));
        }
        if theirs.timeline != ours.timeline {
            return Err(Mismatch::Timeline(theirs.timeline, ours.timeline));
        }
        Ok(())
    }

    /// Whether the server has been where `position` stands.
    ///
    /// # Errors
    /// [`Mismatch::Ahead`] if not.
    pub fn reaches(&self, position: &Position, next_xid: Xid) -> Result<(), Mismatch> {
        let claimed = position
            .window
            .as_ref()
            .map_or(&position.seen, |window| &window.until)
            .xmax();
        let claimed = claimed.max(position.seen.xmax());
        if claimed > next_xid {
            Err(Mismatch::Ahead(claimed - 1, next_xid))
        } else {
            Ok(())
        }
    }
}

impl Position {
    /// The whole transactions of a window were handed out.
    #[must_use]
    pub fn at(origin: Origin, seen: Snapshot) -> Self {
        Self {
            origin,
            seen,
            window: None,
        }
    }

    /// Whether the transaction `xid` with its last row `last_seq` was handed out.
    #[must_use]
    pub fn covers(&self, xid: Xid, last_seq: i64) -> bool {
        let in_window = |window: &Window| window.until.sees(xid) && last_seq <= window.last_seq;
        self.seen.sees(xid) || self.window.as_ref().is_some_and(in_window)
    }

    /// Whether `self` claims no more than `other`: positions of one relay only ever grow.
    #[must_use]
    pub fn precedes(&self, other: &Self) -> bool {
        let last = |p: &Self| p.window.as_ref().map(|w| (w.until.xmax, w.last_seq));
        let grows = |a: &Snapshot, b: &Snapshot| {
            a.xmax <= b.xmax && b.in_progress.iter().all(|x| !a.sees(*x))
        };
        match (last(self), last(other)) {
            (Some(a), Some(b)) if self.seen == other.seen => a <= b,
            (Some(_), None) => self
                .window
                .as_ref()
                .is_some_and(|w| grows(&w.until, &other.seen)),
            _ => grows(&self.seen, &other.seen),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (1u64..200, proptest::collection::btree_set(1u64..200, 0..12)).prop_map(|(xmax, open)| {
            Snapshot {
                xmax,
                in_progress: open.into_iter().filter(|xid| *xid < xmax).collect(),
            }
        })
    }

    fn origin() -> Origin {
        Origin {
            system_id: "7".into(),
            timeline: 1,
            database_oid: 5,
            table: "outbox.events".into(),
            capture: "table".into(),
        }
    }

    #[test]
    fn reads_what_postgresql_prints() {
        let snapshot: Snapshot = "110:120:112,115".parse().unwrap();
        assert!(
            snapshot.sees(111) && !snapshot.sees(112) && snapshot.sees(119) && !snapshot.sees(120)
        );
    }

    #[test]
    fn refuses_what_is_no_snapshot() {
        for text in [
            "", "1", "1:2", "a:b:", "3:2:", "0:1:", "1:5:7", "1:9:4,3", "1:9:3,3", "1:2::",
            "-1:2:", "1:2:,",
        ] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn prints_what_it_reads(snapshot in snapshots()) {
            prop_assert_eq!(snapshot.to_string().parse::<Snapshot>().unwrap(), snapshot);
        }

        #[test]
        fn a_trimmed_snapshot_claims_nothing_above_what_was_read(
            before in snapshots(), now in snapshots(), highest in proptest::option::of(1u64..200), xid in 1u64..220,
        ) {
            let highest = highest.filter(|xid| now.sees(*xid));
            let trimmed = now.trimmed(&before, highest);
            // It never sees more than the snapshot did, and nothing above what is known to be durable.
            prop_assert!(!trimmed.sees(xid) || now.sees(xid));
            prop_assert!(!trimmed.sees(xid) || xid < before.xmax() || Some(xid) <= highest);
            // What was read stays seen.
            if let Some(highest) = highest { prop_assert!(trimmed.sees(highest)); }
        }

        #[test]
        fn a_later_snapshot_trimmed_never_goes_back(
            (before, now) in snapshots().prop_flat_map(|before| {
                // A later snapshot: some of the open transactions have ended, new ones began.
                let open = before.in_progress.clone();
                (Just(before.clone()), proptest::sample::subsequence(open.clone(), 0..=open.len()), 0u64..50,
                    proptest::collection::btree_set(0u64..50, 0..5))
                    .prop_map(|(before, still_open, more, new)| {
                        let xmax = before.xmax + more;
                        let mut in_progress = still_open;
                        in_progress.extend(new.into_iter().map(|n| before.xmax + n).filter(|x| *x < xmax));
                        (before, Snapshot { xmax, in_progress })
                    })
            }), pick in 0u64..300,
        ) {
            let highest = Some(pick).filter(|xid| now.sees(*xid));
            let (a, b) = (Position::at(origin(), before.clone()), Position::at(origin(), now.trimmed(&before, highest)));
            prop_assert!(a.precedes(&b), "{before} then {}", b.seen);
        }
    }

    #[test]
    fn a_position_of_another_place_is_refused_with_its_reason() {
        let here = origin();
        let position = |change: fn(&mut Origin)| {
            let mut origin = origin();
            change(&mut origin);
            Position::at(origin, "110:120:112".parse().unwrap())
        };
        let check = |change: fn(&mut Origin)| here.accepts(&position(change), 120).unwrap_err();
        assert!(matches!(
            check(|o| o.system_id = "8".into()),
            Mismatch::System(..)
        ));
        assert!(matches!(
            check(|o| o.timeline = 2),
            Mismatch::Timeline(2, 1)
        ));
        assert!(matches!(
            check(|o| o.database_oid = 6),
            Mismatch::Database(6, 5)
        ));
        assert!(matches!(
            check(|o| o.table = "a.b".into()),
            Mismatch::Table(..)
        ));
        assert!(matches!(
            check(|o| o.capture = "wal".into()),
            Mismatch::Capture(..)
        ));
        assert_eq!(
            here.accepts(&position(|_| ()), 119),
            Err(Mismatch::Ahead(119, 119))
        );
        assert_eq!(here.accepts(&position(|_| ()), 120), Ok(()));
    }

    #[test]
    fn the_stored_form_is_stable() {
        let mut position = Position::at(origin(), "110:120:112".parse().unwrap());
        position.window = Some(Window {
            until: "130:140:130".parse().unwrap(),
            last_seq: 9,
        });
        let json = r#"{"system_id":"7","timeline":1,"database_oid":5,"table":"outbox.events","capture":"table","seen":"112:120:112","window":{"until":"130:140:130","last_seq":9}}"#;
        assert_eq!(serde_json::to_string(&position).unwrap(), json);
        assert_eq!(serde_json::from_str::<Position>(json).unwrap(), position);
    }
}
