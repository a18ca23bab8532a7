//! What `sql/table/open.sql` and `sql/table/plan.sql` answer, in Rust. A contract test holds it to a real server.

use std::collections::BTreeMap;

use outbox_relay::capture::table::Planned;
use outbox_relay::position::{Snapshot, Xid};

/// What the plan needs of a row that is visible.
#[derive(Clone, Copy, Debug)]
pub struct RowSize {
    pub xid: Xid,
    pub seq: i64,
    pub bytes: u64,
    /// The hash of its event id.
    pub id: i64,
}

/// The transactions that `seen` has not seen and `until` has, above `last_seq`, by `max(seq)`.
pub fn plan(
    visible: impl Iterator<Item = RowSize>,
    seen: &Snapshot,
    until: &Snapshot,
    last_seq: i64,
) -> Vec<Planned> {
    let unseen = |xid: Xid| xid >= seen.xmax() || seen.in_progress().contains(&xid);
    let mut by_xid: BTreeMap<Xid, Planned> = BTreeMap::new();
    for row in visible.filter(|row| unseen(row.xid) && until.sees(row.xid)) {
        let planned = by_xid.entry(row.xid).or_insert(Planned {
            xid: row.xid,
            last_seq: row.seq,
            events: 0,
            bytes: 0,
            ids: 0,
        });
        planned.last_seq = planned.last_seq.max(row.seq);
        planned.events += 1;
        planned.bytes += row.bytes;
        planned.ids ^= row.id;
    }
    let mut plan: Vec<Planned> = by_xid
        .into_values()
        .filter(|planned| planned.last_seq > last_seq)
        .collect();
    plan.sort_by_key(|planned| planned.last_seq);
    plan
}

/// The highest transaction from `seen`'s end on of which a row is visible, and whether one is visible that was in
/// progress then.
pub fn news(visible: impl Iterator<Item = RowSize>, seen: &Snapshot) -> (Option<Xid>, bool) {
    visible.fold((None, false), |(highest, late), row| {
        let above = (row.xid >= seen.xmax()).then_some(row.xid);
        (
            highest.max(above),
            late || seen.in_progress().contains(&row.xid),
        )
    })
}
