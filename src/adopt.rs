//! `adopt`: a person vouches that a position of another place goes on here.
//!
//! After `pg_upgrade` (transaction ids go on, the system identifier changes), after a clean promotion (the timeline
//! changes), and for a new `--name` of the same table. A dump restored into a new cluster is none of these: its
//! transaction ids start again, and the check of them refuses it.

use crate::capture::Capture;
use crate::event::Batch;
use crate::fault::Fault;
use crate::position::{Lsn, Origin, Position, Streamed, Unsettled, Xid};
use crate::sink::Sink;

/// The name whose position is taken over, and the name that goes on from it; often the same.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Whose position it is.
    pub from: &'a str,
    /// Who goes on.
    pub to: &'a str,
}

impl Names<'_> {
    /// Whether the position moves to another name.
    #[must_use]
    pub fn differ(&self) -> bool {
        self.from != self.to
    }
}

/// This server: what a position would belong to, and the next transaction id that it gives out.
#[derive(Clone, Debug)]
pub struct Here {
    /// Cluster, database and table.
    pub origin: Origin,
    /// Transaction ids below it have been given out.
    pub next_xid: Xid,
    /// For capture wal: the timelines that the server has left, each with the place in the WAL.
    pub left: Vec<(u32, Lsn)>,
}

/// What adopting would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The position as it is stored.
    pub from: Position,
    /// The same place in this cluster.
    pub to: Position,
    /// Differences, one sentence each; empty: nothing to adopt.
    pub changes: Vec<String>,
}

impl Here {
    /// The same place in the WAL of this server. A position may stand, without events, beyond what a standby had got; there
    /// this server wrote something else, which is still to be published.
    fn goes_on(&self, streamed: &Streamed, theirs: &Origin) -> Result<Streamed, Fault> {
        let here = &self.origin;
        if theirs.system_id != here.system_id || theirs.timeline == here.timeline {
            return Ok(streamed.clone());
        }
        let mut left = self.left.iter();
        let known = left.find(|(timeline, _)| *timeline == theirs.timeline);
        let (_, left_at) = known.ok_or_else(|| {
            Fault::Refused(format!(
                "the position was made on timeline {}, which did not lead to this server's timeline {}; run `outbox-relay \
                 recover`, which goes on from the rows that the table still holds",
                theirs.timeline, here.timeline
            ))
        })?;
        Ok(Streamed {
            lsn: streamed.lsn.min(*left_at),
            published: streamed.published.min(*left_at),
            ..streamed.clone()
        })
    }
}

impl Plan {
    /// So many transactions are parked and held here: rows that are missing are not waited for.
    pub fn goes_on_with(&mut self, waiting: Unsettled) {
        let known = &self.from.unsettled;
        let is_same = (known.transactions, known.ids) == (waiting.transactions, waiting.ids);
        let (known, here) = (known.transactions, waiting.transactions);
        if !is_same {
            let doubt = match here {
                0 => "",
                _ => {
                    "; of those that wait here some may have been published already, see docs/parking.md"
                }
            };
            self.changes.push(format!(
                "parked and held transactions: {known} become {here}{doubt}"
            ));
        }
        self.to.unsettled = waiting;
    }
}

/// Decides, from the stored position, where it stands here. Pure.
///
/// # Errors
/// [`Fault::Position`] if transaction ids do not go on, [`Fault::Refused`] if there is none, or it is one of another
/// table or capture, or of a timeline that did not lead here.
pub fn plan(stored: Option<Position>, names: Names<'_>, there: &Here) -> Result<Plan, Fault> {
    let stored = stored.ok_or_else(|| {
        Fault::Refused(format!(
            "relay {} has no position in this Kafka; there is nothing to adopt",
            names.from
        ))
    })?;
    let (theirs, here) = (&stored.origin, &there.origin);
    if theirs.table != here.table || theirs.capture != here.capture {
        return Err(Fault::Refused(format!(
            "the position belongs to table {} by capture {}; adopt changes the server, not the table ({}, {})",
            theirs.table, theirs.capture, here.table, here.capture
        )));
    }
    here.reaches(&stored, there.next_xid)?;
    let streamed = (stored.streamed.as_ref())
        .map(|streamed| there.goes_on(streamed, theirs))
        .transpose()?;
    let mut changes = Vec::new();
    let mut note = |what: &str, from: &dyn std::fmt::Display, to: &dyn std::fmt::Display| {
        changes.push(format!("{what}: {from} becomes {to}"));
    };
    if theirs.system_id != here.system_id {
        note("system identifier", &theirs.system_id, &here.system_id);
    }
    if theirs.timeline != here.timeline {
        note("timeline", &theirs.timeline, &here.timeline);
    }
    if theirs.database_oid != here.database_oid {
        note("database oid", &theirs.database_oid, &here.database_oid);
    }
    if let (Some(from), Some(to)) = (&stored.streamed, &streamed)
        && from.lsn != to.lsn
    {
        note("place in the WAL", &from.lsn, &to.lsn);
    }
    if names.differ() {
        note("name", &names.from, &names.to);
    }
    let to = Position {
        origin: here.clone(),
        streamed,
        ..stored.clone()
    };
    Ok(Plan {
        from: stored,
        to,
        changes,
    })
}

/// A position moves only to a name that has none. Pure.
///
/// # Errors
/// [`Fault::Refused`] if it has one.
pub fn must_be_new(name: &str, position: Option<Position>) -> Result<(), Fault> {
    match position {
        None => Ok(()),
        Some(position) => Err(Fault::Refused(format!(
            "relay {name} has a position of its own, {}; nothing was changed",
            position
        ))),
    }
}

/// Carries a plan out: the position goes into the sink, in a transaction of its own, and the name is registered.
///
/// # Errors
/// Those of the sink and the database; running `adopt` again goes on from there.
pub async fn carry_out(
    plan: &Plan,
    sink: &mut impl Sink,
    capture: &mut impl Capture,
) -> Result<(), Fault> {
    sink.publish(Batch::genesis(plan.to.clone())).await?;
    capture.acknowledge(&plan.to).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Position {
        let origin = Origin::of_test("table");
        Position::at(origin, "110:120:112".parse().unwrap())
    }

    const SAME: Names<'_> = Names {
        from: "shop",
        to: "shop",
    };

    fn here(change: fn(&mut Origin), next_xid: Xid) -> Here {
        let mut origin = stored().origin;
        change(&mut origin);
        Here {
            origin,
            next_xid,
            left: Vec::new(),
        }
    }

    #[test]
    fn after_an_upgrade_the_place_stays_and_the_identity_changes() {
        let here = here(|o| (o.system_id, o.database_oid) = ("8".into(), 6), 130);
        let plan = plan(Some(stored()), SAME, &here).unwrap();
        assert_eq!(plan.to.seen, stored().seen);
        assert_eq!(plan.to.origin, here.origin);
        assert_eq!(
            plan.changes,
            [
                "system identifier: 7 becomes 8",
                "database oid: 5 becomes 6"
            ]
        );
    }

    #[test]
    fn a_place_in_the_wal_that_the_standby_had_not_reached_goes_back_to_where_it_took_over() {
        let mut wal = stored();
        wal.origin.capture = "wal".into();
        let at = |lsn: u64| {
            let beyond = Some([125].into_iter().collect());
            Position::at_lsn(wal.origin.clone(), lsn.into(), wal.seen.clone(), beyond)
        };
        let mut here = here(|o| (o.timeline, o.capture) = (3, "wal".into()), 130);
        here.left = vec![(1, 500.into()), (2, 700.into())];
        let place = |lsn: u64| {
            let plan = plan(Some(at(lsn)), SAME, &here).unwrap();
            let streamed = plan.to.streamed.unwrap();
            assert_eq!(streamed.beyond, at(lsn).streamed.unwrap().beyond);
            (u64::from(streamed.lsn), plan.changes.len())
        };
        assert_eq!(place(400), (400, 1));
        assert_eq!(place(600), (500, 2));
        here.left = vec![(2, 700.into())];
        let another = plan(Some(at(400)), SAME, &here).unwrap_err().to_string();
        assert!(another.contains("did not lead"), "{another}");
    }

    #[test]
    fn a_new_name_is_a_change_and_must_have_no_position() {
        let names = Names {
            from: "old",
            to: "new",
        };
        let plan = plan(Some(stored()), names, &here(|_| (), 130)).unwrap();
        assert_eq!(plan.changes, ["name: old becomes new"]);
        assert_eq!(plan.to, stored());
        assert!(must_be_new("new", None).is_ok());
        assert!(matches!(
            must_be_new("new", Some(stored())),
            Err(Fault::Refused(_))
        ));
    }

    #[test]
    fn a_restored_dump_another_table_and_no_position_are_refused() {
        assert!(matches!(
            plan(
                Some(stored()),
                SAME,
                &here(|o| o.system_id = "8".into(), 90)
            ),
            Err(Fault::Position(_))
        ));
        assert!(matches!(
            plan(Some(stored()), SAME, &here(|o| o.table = "a.b".into(), 130)),
            Err(Fault::Refused(_))
        ));
        assert!(matches!(
            plan(None, SAME, &here(|_| (), 130)),
            Err(Fault::Refused(_))
        ));
    }
}
