//! `adopt`: a person vouches that a position of another place goes on here.
//!
//! After `pg_upgrade` (transaction ids go on, the system identifier changes), after a clean promotion (the timeline
//! changes), and for a new `--name` of the same table. A dump restored into a new cluster is none of these: its
//! transaction ids start again, and the check of them refuses it.

use crate::capture::Capture;
use crate::event::Batch;
use crate::fault::Fault;
use crate::position::{Origin, Position, Xid};
use crate::sink::Sink;

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

/// Decides, from the stored position, where it stands here. Pure.
///
/// # Errors
/// [`Fault::Position`] if transaction ids do not go on, [`Fault::Refused`] if it is another table or capture.
pub fn plan(stored: &Position, here: &Origin, next_xid: Xid) -> Result<Plan, Fault> {
    let theirs = &stored.origin;
    if theirs.table != here.table || theirs.capture != here.capture {
        return Err(Fault::Refused(format!(
            "the position belongs to table {} by capture {}; adopt changes the server, not the table ({}, {})",
            theirs.table, theirs.capture, here.table, here.capture
        )));
    }
    here.reaches(stored, next_xid)?;
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
    let to = Position {
        origin: here.clone(),
        ..stored.clone()
    };
    Ok(Plan {
        from: stored.clone(),
        to,
        changes,
    })
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
        let origin = Origin {
            system_id: "7".into(),
            timeline: 1,
            database_oid: 5,
            table: "outbox.events".into(),
            capture: "table".into(),
        };
        Position::at(origin, "110:120:112".parse().unwrap())
    }

    #[test]
    fn after_an_upgrade_the_place_stays_and_the_identity_changes() {
        let here = Origin {
            system_id: "8".into(),
            timeline: 1,
            database_oid: 6,
            ..stored().origin
        };
        let plan = plan(&stored(), &here, 130).unwrap();
        assert_eq!(plan.to.seen, stored().seen);
        assert_eq!(plan.to.origin, here);
        assert_eq!(
            plan.changes,
            [
                "system identifier: 7 becomes 8",
                "database oid: 5 becomes 6"
            ]
        );
    }

    #[test]
    fn a_restored_dump_and_another_table_are_refused() {
        let here = Origin {
            system_id: "8".into(),
            ..stored().origin
        };
        assert!(matches!(
            plan(&stored(), &here, 90),
            Err(Fault::Position(_))
        ));
        let here = Origin {
            table: "a.b".into(),
            ..stored().origin
        };
        assert!(matches!(
            plan(&stored(), &here, 130),
            Err(Fault::Refused(_))
        ));
    }
}
