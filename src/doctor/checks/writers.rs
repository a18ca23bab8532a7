//! What keeps rows of writers from being published as they were inserted.

use crate::doctor::facts::{Facts, Known, known};
use crate::doctor::finding::{Outcome, error, fine, found, person, sql, unless, warning};

pub fn row_security(facts: &Facts) -> Known<Outcome> {
    let table = facts.table()?;
    let role = super::table::quoted(&facts.server()?.role);
    if !table.hides_rows {
        return fine("");
    }
    found(
        error(
            format!(
                "row security of {} holds for role {role}, and may hide rows from it",
                table.name
            ),
            "a row that the relay does not see is never published, and its transaction counts as done",
        )
        .cure(sql(format!(
            "alter table {} disable row level security",
            table.name
        )))
        .cure(person(format!(
            "or, to keep the policies for writers: alter role {role} bypassrls"
        ))),
    )
}

pub fn triggers(facts: &Facts) -> Known<Outcome> {
    let table = facts.table()?;
    let name = &table.name;
    let rules = table.rules.iter().map(|rule| {
        error(
            format!("rule {rule} of {name} does something else instead of inserting"),
            "what writers insert does not arrive in the table, and is not published",
        )
        .cure(sql(format!("alter table {name} disable rule {rule}")))
    });
    let triggers = table.triggers.iter().map(|trigger| {
        warning(
            format!("trigger {trigger} runs before each row is inserted into {name}"),
            "it may change the row, or suppress it by answering null: then an event is missing without an error",
        )
        .cure(sql(format!("alter table {name} disable trigger {trigger}")))
    });
    unless(rules.chain(triggers).collect(), "")
}

pub fn foreign_rows(facts: &Facts) -> Known<Outcome> {
    if facts.captures_wal() {
        return Ok(Outcome::NotAsked);
    }
    let table = facts.table()?;
    match known(&facts.postgres()?.foreign)? {
        None => fine(""),
        Some(xid) => found(
            error(
                format!(
                    "{} holds rows of transaction {xid}, which this server has not reached",
                    table.name
                ),
                "they came from another cluster by a dump or by replication; the relay can't know which were published, and refuses to start",
            )
            .cure(person(
                "publish or remove them, see the README, \"Rows of another cluster\"",
            )),
        ),
    }
}
