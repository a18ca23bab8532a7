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

/// Decides, from the stored position, where it stands here. Pure.
///
/// # Errors
/// [`Fault::Position`] if transaction ids do not go on, [`Fault::Refused`] if there is none, or it is one of another
/// table or capture.
pub fn plan(
    stored: Option<Position>,
    names: Names<'_>,
    Here {
        origin: here,
        next_xid,
    }: &Here,
) -> Result<Plan, Fault> {
    let stored = stored.ok_or_else(|| {
        Fault::Refused(format!(
            "relay {} has no position in this Kafka; there is nothing to adopt",
            names.from
        ))
    })?;
    let theirs = &stored.origin;
    if theirs.table != here.table || theirs.capture != here.capture {
        return Err(Fault::Refused(format!(
            "the position belongs to table {} by capture {}; adopt changes the server, not the table ({}, {})",
            theirs.table, theirs.capture, here.table, here.capture
        )));
    }
    here.reaches(&stored, *next_xid)?;
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
    if names.differ() {
        note("name", &names.from, &names.to);
    }
    let to = Position {
        origin: here.clone(),
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
        let origin = Origin {
            system_id: "7".into(),
            timeline: 1,
            database_oid: 5,
            table: "outbox.events".into(),
            capture: "table".into(),
        };
        Position::at(origin, "110:120:112".parse().unwrap())
    }

    const SAME: Names<'_> = Names {
        from: "shop",
        to: "shop",
    };

    fn here(change: fn(&mut Origin), next_xid: Xid) -> Here {
        let mut origin = stored().origin;
        change(&mut origin);
        Here { origin, next_xid }
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
