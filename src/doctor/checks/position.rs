//! The stored position, judged as a start would judge it.

use super::kafka;
use crate::capture::registry;
use crate::doctor::facts::{Facts, Known, known};
use crate::doctor::finding::{Outcome, error, fine, found, person, shell, sql, warning};
use crate::position::{Lsn, Mismatch, Origin, Position};

pub fn name(facts: &Facts) -> Known<Outcome> {
    let outbox = &facts.settings.outbox;
    if !outbox.registers {
        return Ok(Outcome::NotAsked);
    }
    let registrations = known(&facts.postgres()?.registrations)?;
    match registry::registered(outbox, registrations) {
        Ok(true) => fine(format!("{} serves {}", outbox.name, outbox.table)),
        Ok(false) => fine("none is registered, so a start registers it"),
        Err(fault) => {
            let other = registrations.iter().find(|it| it.name != outbox.name);
            let cure = match other {
                Some(other) => shell(format!(
                    "outbox-relay adopt --from {} --config …   # or use that --name",
                    other.name
                )),
                None => person("give this relay another --name"),
            };
            found(
                error(
                    fault.to_string(),
                    "two relays would publish each event twice; the second one is refused",
                )
                .cure(cure),
            )
        }
    }
}

pub fn fits(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let postgres = facts.postgres()?;
    let (here, next_xid) = known(&postgres.origin)?;
    let Some(position) = known(&kafka.position)? else {
        return no_position(facts);
    };
    match accepts(here, position, *next_xid, &postgres.left) {
        Ok(Fit::Same) => fine(format!("it stands at {position}")),
        Ok(Fit::Promoted) => found(
            warning(
                format!(
                    "a standby was promoted: the position is of timeline {}, the server on {}",
                    position.origin.timeline, here.timeline
                ),
                "at its start the relay looks whether all that it published is here, and goes on by itself only then",
            )
            .cure(person("start the relay; it goes on, or says what is missing")),
        ),
        Err(mismatch) => found(
            error(
                format!("the position can't be resumed here: {mismatch}"),
                "the relay refuses to start: it would lose or repeat events",
            )
            .cure(way_out(&mismatch)),
        ),
    }
}

/// No position: a first start, unless the relay is registered.
fn no_position(facts: &Facts) -> Known<Outcome> {
    let relay = &facts.settings.name;
    let registrations = known(&facts.postgres()?.registrations)?;
    if !registrations.iter().any(|it| it.name == *relay) {
        return fine("there is none: the relay has never run");
    }
    found(
        error(
            registry::lost_position(relay).to_string(),
            "the relay refuses to start: it would publish again all that the table holds",
        )
        .cure(person(
            "restore the topic, or name the right brokers; only if all may be published again:",
        ))
        .cure(sql(format!(
            "delete from outbox.relay where name = '{relay}'"
        ))),
    )
}

enum Fit {
    Same,
    Promoted,
}

/// As the captures decide, but for the events themselves, which a promoted server is asked for at the start.
fn accepts(
    here: &Origin,
    position: &Position,
    next_xid: u64,
    left: &Known<Vec<(u32, Lsn)>>,
) -> Result<Fit, Mismatch> {
    let theirs = &position.origin;
    if theirs.timeline >= here.timeline {
        here.accepts(position, next_xid)?;
        return Ok(Fit::Same);
    }
    let moved = Origin {
        timeline: here.timeline,
        ..theirs.clone()
    };
    here.is_where(&moved)?;
    if let (Some(streamed), Ok(left)) = (&position.streamed, left) {
        let left = left
            .iter()
            .find(|(timeline, _)| *timeline == theirs.timeline);
        let (_, left_at) = left.ok_or(Mismatch::Timeline(theirs.timeline, here.timeline))?;
        if streamed.published > *left_at {
            let (of, stood) = (theirs.timeline, streamed.published);
            return Err(Mismatch::Diverged(of, *left_at, stood));
        }
    }
    here.reaches(position, next_xid)?;
    Ok(Fit::Promoted)
}

fn way_out(mismatch: &Mismatch) -> crate::doctor::finding::Cure {
    match mismatch {
        Mismatch::Capture(was, wanted) => shell(format!(
            "outbox-relay move --to {wanted} --config …   # or go on with --capture {was}"
        )),
        Mismatch::System(..) | Mismatch::Timeline(..) => {
            shell("outbox-relay adopt --config …   # after pg_upgrade or a promotion without loss")
        }
        Mismatch::Database(..) | Mismatch::Table(..) => {
            person("give each database and each table a --name of its own")
        }
        Mismatch::Ahead(..)
        | Mismatch::Missing(..)
        | Mismatch::Diverged(..)
        | Mismatch::AheadInWal(..) => shell(
            "outbox-relay verify --config …   # compare what was lost, see the README, \"Adopt\"",
        ),
    }
}
