//! Where a relay stands, and the cluster and table that this belongs to. Pure.
//!
//! The table capture's place is a *snapshot*: a set of finished transactions. Not a sequence (gaps fill up late) and
//! not an xmin watermark (a long transaction would stall everybody). The WAL capture's place is the end of a commit
//! record, and beside it the set of transactions that were published, so that another capture can go on from it.

mod xids;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use tokio_postgres::types::PgLsn as Lsn;
pub use xids::Xids;

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

    /// The oldest transaction that had not finished: all below it had.
    #[must_use]
    pub fn xmin(&self) -> Xid {
        self.in_progress.first().copied().unwrap_or(self.xmax)
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

    /// Whether all that `self` sees is seen by `later` too.
    #[must_use]
    pub fn grows_into(&self, later: &Self) -> bool {
        self.xmax <= later.xmax && later.in_progress.iter().all(|xid| !self.sees(*xid))
    }

    /// The same without these transactions.
    #[must_use]
    pub fn without(&self, xids: &[Xid]) -> Self {
        let mut in_progress = self.in_progress.clone();
        in_progress.extend(xids.iter().filter(|xid| self.sees(**xid)));
        in_progress.sort_unstable();
        in_progress.dedup();
        Self {
            xmax: self.xmax,
            in_progress,
        }
    }

    /// The part of this snapshot in which nothing was in progress.
    #[must_use]
    pub fn below_all_open(&self) -> Self {
        Self {
            xmax: self.xmin(),
            in_progress: Vec::new(),
        }
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
        write!(f, "{}:{}:", self.xmin(), self.xmax)?;
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
    /// `table` or `wal`: the capture that made the position.
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

/// A place in the WAL, as the stream of commits passes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    /// The end of the last commit record that was handed out: commits that end at or below it are done. Never the LSN of a
    /// row: rows of one insert may share it.
    #[serde(with = "lsn_text")]
    pub lsn: Lsn,
    /// The end of the last commit record that brought events: without any the place goes on too.
    #[serde(with = "lsn_text")]
    pub published: Lsn,
    /// Transactions beyond `seen` that were handed out. `None`: more than a position can hold.
    pub beyond: Option<Xids>,
}

/// How much was handed out from the table, in all: the difference of two positions says whether a server has what lies between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Hashes of their ids, by exclusive or: the order does not matter.
    pub ids: i64,
}

impl Tally {
    /// With so many more.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self {
            events: self.events.saturating_add(more.events),
            ids: self.ids ^ more.ids,
        }
    }

    /// What came after `before`; `None` if it is not from before.
    #[must_use]
    pub fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            events: self.events.checked_sub(before.events)?,
            ids: self.ids ^ before.ids,
        })
    }
}

/// Transactions that the position passed over without publishing them, see `park`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unsettled {
    /// How many wait.
    pub transactions: u64,
    /// Hashes of their `tx-id`s, by exclusive or.
    pub ids: i64,
    /// Those that this position passed over: the database may not know it yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<String>,
    /// Those that are settled with this position: likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<String>,
}

impl Unsettled {
    /// None waits, and nothing need be told.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a relay stands.
///
/// Handed out is everything that `seen` sees; of an open window all up to its `last_seq`; and of the WAL all up to its
/// `lsn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// What the position belongs to.
    #[serde(flatten)]
    pub origin: Origin,
    /// Transactions whose events were handed out.
    pub seen: Snapshot,
    /// Table capture: set between two batches of one window. A transaction that commits after the window's snapshot may
    /// carry a smaller `seq`, therefore `last_seq` alone would not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Table capture: how much was handed out.
    #[serde(default)]
    pub tally: Tally,
    /// WAL capture: the place in the WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamed: Option<Streamed>,
    /// What it passed over.
    #[serde(default, skip_serializing_if = "Unsettled::is_none")]
    pub unsettled: Unsettled,
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
    #[error(
        "it was made by capture {0}, this relay runs capture {1}; go on with --capture {0}, or run `outbox-relay move --to {1}`"
    )]
    Capture(String, String),
    /// The server lost transactions that were published.
    #[error(
        "the server went back: the position has seen transaction {0}, the server's next one is {1}; \
         it was restored from an older backup or failed over with loss"
    )]
    Ahead(Xid, Xid),
    /// The same, seen in the table.
    #[error(
        "it was made on timeline {0}, this is timeline {1}: a standby was promoted, and of {2} events that were published since the \
         last acknowledged position it has {3}, or others; compare with `outbox-relay verify`, then run `outbox-relay adopt`"
    )]
    Missing(u32, u32, u64, u64),
    /// A standby was promoted that did not have all that was published.
    #[error(
        "timeline {0} goes on without it: it was left at {1}, the position stands at {2}, so a standby was promoted that had not \
         received all that was published; compare with `outbox-relay verify`, and publish or withdraw what is missing here"
    )]
    Diverged(u32, Lsn, Lsn),
    /// The same, seen in the WAL.
    #[error(
        "the server went back: the position stands at {0}, the server's WAL ends at {1}; \
         it was restored from an older backup or failed over with loss"
    )]
    AheadInWal(Lsn, Lsn),
}

#[cfg(test)]
impl Origin {
    /// One for unit tests.
    pub(crate) fn of_test(capture: &str) -> Self {
        Self {
            system_id: "7".into(),
            timeline: 1,
            database_oid: 5,
            table: "outbox.events".into(),
            capture: capture.into(),
        }
    }
}

impl Origin {
    /// `tx-id` of a transaction: `<system identifier>-<timeline>-<xid8>`.
    #[must_use]
    pub fn tx_id(&self, xid: Xid) -> Arc<str> {
        Arc::from(format!("{}-{}-{xid}", self.system_id, self.timeline))
    }

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
        let Position {
            seen,
            window,
            streamed,
            ..
        } = position;
        let window = window.as_ref().map_or(0, |window| window.until.xmax());
        let beyond = streamed.as_ref().and_then(|it| it.beyond.as_ref());
        let beyond = beyond.and_then(Xids::last).map_or(0, |xid| xid + 1);
        let claimed = seen.xmax().max(window).max(beyond);
        if claimed > next_xid {
            Err(Mismatch::Ahead(claimed - 1, next_xid))
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.streamed, &self.window) {
            (Some(streamed), _) => write!(f, "{}", streamed.lsn),
            (None, Some(window)) => write!(
                f,
                "{} and {} up to seq {}",
                self.seen, window.until, window.last_seq
            ),
            (None, None) => write!(f, "{}", self.seen),
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
            tally: Tally::default(),
            streamed: None,
            unsettled: Unsettled::default(),
        }
    }

    /// The place alone, which is all that a capture knows.
    #[must_use]
    pub fn place(&self) -> Self {
        Self {
            origin: self.origin.clone(),
            seen: self.seen.clone(),
            window: self.window.clone(),
            tally: self.tally,
            streamed: self.streamed.clone(),
            unsettled: Unsettled::default(),
        }
    }

    /// All of the WAL up to `lsn`, where the last events were, was handed out, which is what `seen` sees and `beyond`.
    #[must_use]
    pub fn at_lsn(origin: Origin, lsn: Lsn, seen: Snapshot, beyond: Option<Xids>) -> Self {
        Self {
            streamed: Some(Streamed {
                lsn,
                published: lsn,
                beyond,
            }),
            ..Self::at(origin, seen)
        }
    }

    /// Whether the transaction `xid` with its last row `last_seq` was handed out. `false` is no proof unless it
    /// [`names_all`](Self::names_all).
    #[must_use]
    pub fn covers(&self, xid: Xid, last_seq: i64) -> bool {
        let in_window = |window: &Window| window.until.sees(xid) && last_seq <= window.last_seq;
        let beyond = self.streamed.as_ref().and_then(|it| it.beyond.as_ref());
        self.seen.sees(xid)
            || self.window.as_ref().is_some_and(in_window)
            || beyond.is_some_and(|beyond| beyond.contains(xid))
    }

    /// Whether [`covers`](Self::covers) is certain when it says no.
    #[must_use]
    pub fn names_all(&self) -> bool {
        self.streamed.as_ref().is_none_or(|it| it.beyond.is_some())
    }

    /// The same place as the table capture holds it: a snapshot that sees exactly what was handed out. `None` if that is not
    /// known, or would be too long.
    #[must_use]
    pub fn as_table(&self) -> Option<Self> {
        /// About 1 MB of text, which a Kafka record holds at most by default, is 80 000 of them.
        const IN_PROGRESS_MAX: usize = 50_000;
        let Some(streamed) = &self.streamed else {
            return Some(self.clone());
        };
        let beyond = streamed.beyond.as_ref()?;
        let xmax = beyond.last().map_or(0, |xid| xid + 1).max(self.seen.xmax);
        let unseen = self.seen.in_progress.iter().copied();
        let in_progress: Vec<Xid> = unseen
            .chain(self.seen.xmax..xmax)
            .filter(|xid| !beyond.contains(*xid))
            .take(IN_PROGRESS_MAX + 1)
            .collect();
        let origin = Origin {
            capture: "table".to_owned(),
            ..self.origin.clone()
        };
        (in_progress.len() <= IN_PROGRESS_MAX).then(|| Self {
            unsettled: self.unsettled.clone(),
            ..Self::at(origin, Snapshot { xmax, in_progress })
        })
    }

    /// Whether `self` claims no more than `other`: positions of one relay only ever grow.
    #[must_use]
    pub fn precedes(&self, other: &Self) -> bool {
        match (&self.streamed, &other.streamed) {
            // After a promotion the WAL goes on from where the old timeline was left, behind all that was published.
            (Some(a), Some(b)) => {
                let promoted = self.origin.timeline < other.origin.timeline;
                a.lsn <= b.lsn || promoted && a.published <= b.lsn
            }
            (None, None) => self.precedes_in_the_table(other),
            // A move between the captures: nothing that was handed out may be forgotten.
            (None, Some(_)) => {
                let claimed = self.window.as_ref().map_or(&self.seen, |it| &it.until);
                claimed.grows_into(&other.seen)
            }
            (Some(a), None) => {
                let beyond = a.beyond.as_ref();
                self.seen.grows_into(&other.seen)
                    && beyond.is_some_and(|xids| xids.iter().all(|xid| other.covers(xid, i64::MIN)))
            }
        }
    }

    fn precedes_in_the_table(&self, other: &Self) -> bool {
        let last = |p: &Self| p.window.as_ref().map(|w| (w.until.xmax, w.last_seq));
        match (last(self), last(other)) {
            (Some(a), Some(b)) if self.seen == other.seen => a <= b,
            (Some(_), None) => self
                .window
                .as_ref()
                .is_some_and(|w| w.until.grows_into(&other.seen)),
            _ => self.seen.grows_into(&other.seen),
        }
    }
}

/// As PostgreSQL writes it: two hexadecimal numbers with a slash between.
mod lsn_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Lsn;

    pub fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong =
            |_| D::Error::custom(format!("{text:?} is no LSN; it would look like 0/16B3748"));
        text.parse().map_err(wrong)
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
        Origin::of_test("table")
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

    proptest! {
        #[test]
        fn a_place_in_the_wal_is_a_snapshot_too(
            seen in snapshots(), beyond in proptest::collection::btree_set(1u64..240, 0..20), xid in 1u64..260,
        ) {
            let beyond: Xids = beyond.into_iter().filter(|xid| !seen.sees(*xid)).collect();
            let streamed = Position::at_lsn(origin(), 9.into(), seen, Some(beyond));
            let table = streamed.as_table().unwrap();
            prop_assert_eq!(table.seen.sees(xid), streamed.covers(xid, 0));
            prop_assert!(streamed.precedes(&table));
            prop_assert_eq!(table.seen.to_string().parse::<Snapshot>().unwrap(), table.seen);
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
        position.tally = Tally { events: 3, ids: -7 };
        let json = r#"{"system_id":"7","timeline":1,"database_oid":5,"table":"outbox.events","capture":"table","seen":"112:120:112","window":{"until":"130:140:130","last_seq":9},"tally":{"events":3,"ids":-7}}"#;
        assert_eq!(serde_json::to_string(&position).unwrap(), json);
        assert_eq!(serde_json::from_str::<Position>(json).unwrap(), position);
        let beyond = [112, 119, 120].into_iter().collect();
        let lsn = "16/B374D848".parse().unwrap();
        let seen = "112:115:112".parse().unwrap();
        let position = Position::at_lsn(origin(), lsn, seen, Some(beyond));
        let json = r#"{"system_id":"7","timeline":1,"database_oid":5,"table":"outbox.events","capture":"table","seen":"112:115:112","tally":{"events":0,"ids":0},"streamed":{"lsn":"16/B374D848","published":"16/B374D848","beyond":"112,119-120"}}"#;
        assert_eq!(serde_json::to_string(&position).unwrap(), json);
        assert_eq!(serde_json::from_str::<Position>(json).unwrap(), position);
    }

    #[test]
    fn a_move_between_the_captures_forgets_nothing() {
        let at = |seen: &str| Position::at(origin(), seen.parse().unwrap());
        let streamed = |lsn: u64, seen: &str, beyond: &[Xid]| {
            let beyond = Some(beyond.iter().copied().collect());
            Position::at_lsn(origin(), lsn.into(), seen.parse().unwrap(), beyond)
        };
        assert!(at("10:20:10").precedes(&streamed(7, "10:20:10", &[])));
        assert!(!at("10:20:10").precedes(&streamed(7, "10:20:10,12", &[])));
        let before = streamed(7, "10:20:10", &[10, 25]);
        assert!(before.precedes(&at("26:26:")) && before.covers(25, 0) && !before.covers(24, 0));
        assert!(!before.precedes(&at("25:26:25")));
        assert!(before.precedes(&streamed(7, "10:20:10", &[])));
        assert!(!before.precedes(&streamed(6, "30:30:", &[])));
    }
}
