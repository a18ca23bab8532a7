//! Schema outbox and the outbox table.

use crate::doctor::facts::{ColumnFacts, Facts, Known, Privilege, known, unknown};
use crate::doctor::finding::{
    Cure, Finding, Outcome, error, fine, found, person, shell, sql, unless, warning,
};
use crate::init;

pub fn schema(facts: &Facts) -> Known<Outcome> {
    let schema = known(&facts.postgres()?.schema)?;
    let role = &facts.server()?.role;
    let init = || shell("outbox-relay init --database-url …   # as a role that may create schemas");
    let newest = init::newest();
    if !schema.exists {
        let why = "the relay keeps its registration and its marks there";
        return found(error("there is no schema outbox", why).cure(init()));
    }
    if !schema.is_ours {
        let why = "init leaves it alone, and the relay has no place for its registration";
        let cure = person(
            "rename it, or give this service a database of its own; then run outbox-relay init",
        );
        return found(error("schema outbox was not made by outbox-relay", why).cure(cure));
    }
    if !schema.may_read {
        return unknown(format!(
            "role {role} may not read outbox.migrations: grant select on it"
        ));
    }
    match schema.applied {
        applied if applied < newest => found(
            error(
                format!("schema outbox is at migration {applied}, this program needs {newest}"),
                "statements of the relay would fail",
            )
            .cure(init()),
        ),
        applied if applied > newest => found(
            warning(
                format!("schema outbox is at migration {applied}, this program knows {newest}"),
                "it was brought up to date by a newer outbox-relay; an older one may not know all that is in it",
            )
            .cure(person("run the newer outbox-relay")),
        ),
        applied => fine(format!("at migration {applied}")),
    }
}

/// Which columns a capture can't do without, and their types where only one will do.
fn needed(facts: &Facts) -> Vec<(&'static str, &str, Option<&'static str>, &'static str)> {
    let columns = &facts.settings.outbox.columns;
    let mut needed = vec![
        (
            "id",
            columns.id.as_str(),
            None,
            "uuid not null default gen_random_uuid()",
        ),
        ("payload", columns.payload.as_str(), None, "bytea"),
    ];
    if !facts.captures_wal() {
        needed.push((
            "xid",
            columns.xid.as_str(),
            Some("xid8"),
            "xid8 not null default pg_current_xact_id()",
        ));
        needed.push((
            "seq",
            columns.seq.as_str(),
            Some("bigint"),
            "bigint generated always as identity",
        ));
    }
    needed
}

pub fn columns(facts: &Facts) -> Known<Outcome> {
    let settings = &facts.settings.outbox;
    let Some(table) = known(&facts.postgres()?.table)? else {
        let cure = match settings.table.as_str() {
            "outbox.events" => shell("outbox-relay init --database-url …"),
            _ => person("create it, or correct --table"),
        };
        let what = format!("there is no table {}", settings.table);
        return found(error(what, "there is nothing to publish from").cure(cure));
    };
    let name = &table.name;
    let mut findings = Vec::new();
    for (part, column, wanted, made_as) in needed(facts) {
        let why = "the relay can't read a row without it";
        let quoted = quoted(column);
        match (table.columns.get(column), wanted) {
            (None, _) => findings.push(
                error(format!("{name} has no column {column} for {part}"), why)
                    .cure(sql(format!(
                        "alter table {name} add column {quoted} {made_as}"
                    )))
                    .cure(person("or name the right one under [columns]")),
            ),
            (Some(found), Some(wanted)) if found.kind != wanted => findings.push(
                error(
                    format!(
                        "column {column} of {name} is {}; {part} must be {wanted}",
                        found.kind
                    ),
                    why,
                )
                .cure(person(format!(
                    "stop the writers and publish the rest; then drop the column, and alter table {name} add column {quoted} {made_as}"
                ))),
            ),
            _ => {}
        }
    }
    unless(findings, format!("{name} has all"))
}

/// A row without its transaction's id is never seen, or counted for another one.
pub fn defaults(facts: &Facts) -> Known<Outcome> {
    let table = facts.table()?;
    let columns = &facts.settings.outbox.columns;
    let name = &table.name;
    let mut findings = Vec::new();
    let column = |column: &str| table.columns.get(column);
    let mut tell = |column: &str, what: &str, why: &str, change: String| {
        let what = format!("column {column} of {name} {what}");
        let change = format!(
            "alter table {name} alter column {} {change}",
            quoted(column)
        );
        findings.push(error(what, why).cure(sql(change)));
    };
    if let Some(xid) =
        column(&columns.xid).filter(|xid| xid.kind == "xid8" && !facts.captures_wal())
    {
        let unseen = "a row without the id of its transaction is never published";
        if xid.default.as_deref() != Some("pg_current_xact_id()") {
            let to = "set default pg_current_xact_id()".to_owned();
            tell(
                &columns.xid,
                "has not the default pg_current_xact_id()",
                unseen,
                to,
            );
        }
        if !xid.not_null {
            tell(
                &columns.xid,
                "may be null",
                unseen,
                "set not null".to_owned(),
            );
        }
    }
    let may_be_null = |it: &&ColumnFacts| !it.not_null;
    if column(&columns.id).filter(may_be_null).is_some() {
        let why = "an event without an id stops the relay";
        tell(&columns.id, "may be null", why, "set not null".to_owned());
    }
    let seq = column(&columns.seq).filter(|_| !facts.captures_wal());
    if seq.is_some_and(|seq| !seq.identity && seq.default.is_none()) {
        let why = "without a sequence the order of insertion is not known";
        let to = "add generated always as identity".to_owned();
        tell(&columns.seq, "has neither identity nor default", why, to);
    }
    unless(findings, "xid, seq and id are")
}

pub fn index(facts: &Facts) -> Known<Outcome> {
    let table = facts.table()?;
    let columns = &facts.settings.outbox.columns;
    let (xid, seq) = (&columns.xid, &columns.seq);
    // Capture wal looks for the highest id alone, and does without the column.
    let wanted: Vec<&str> = match facts.captures_wal() {
        true if !table.columns.contains_key(xid) => return Ok(Outcome::NotAsked),
        true => vec![xid],
        false => vec![xid, seq],
    };
    let begins = |index: &Vec<String>| {
        index.len() >= wanted.len() && wanted.iter().zip(index).all(|(wanted, it)| wanted == it)
    };
    if table.indexes.iter().flatten().any(begins) {
        return fine(format!("there is one on {}", wanted.join(", ")));
    }
    let name = &table.name;
    // A partitioned table takes no concurrent build.
    let how = match table.is_partitioned {
        true => "create index",
        false => "create index concurrently",
    };
    found(
        error(
            format!("no index of {name} begins with ({})", wanted.join(", ")),
            "each look of the relay reads the whole table",
        )
        .cure(sql(format!(
            "{how} on {name} ({})",
            wanted
                .iter()
                .map(|column| quoted(column))
                .collect::<Vec<_>>()
                .join(", ")
        ))),
    )
}

pub fn sequence(facts: &Facts) -> Known<Outcome> {
    if facts.captures_wal() {
        return Ok(Outcome::NotAsked);
    }
    let table = facts.table()?;
    let Some(it) = &table.sequence else {
        return unknown("the column for seq has no sequence that PostgreSQL knows of");
    };
    let sequence = &it.name;
    let mut findings = Vec::new();
    let mut tell = |what: String, why: &str, change: &str| {
        let cure = sql(format!("alter sequence {sequence} {change}"));
        findings.push(error(format!("sequence {sequence} {what}"), why).cure(cure));
    };
    if it.cache > 1 {
        let what = format!("has cache {}", it.cache);
        let why = "each session takes numbers in advance, so a later transaction may have the lower ones: events are published in a wrong \
                   order. Sessions that are open keep theirs until they end";
        tell(what, why, "cache 1");
    }
    if it.increment < 1 {
        let why = "later rows have lower numbers: events are published in the reverse order";
        tell(format!("counts by {}", it.increment), why, "increment by 1");
    }
    if it.cycles {
        let why = "after the last number it begins again, and new events count as old";
        tell("cycles".to_owned(), why, "no cycle");
    }
    unless(findings, format!("{sequence} has cache 1"))
}

pub fn logged(facts: &Facts) -> Known<Outcome> {
    let table = facts.table()?;
    let tell = |name: &String| -> Finding {
        error(
            format!("{name} is not logged"),
            "a crash empties it; its rows are not in the WAL, nor on a standby",
        )
        .cure(sql(format!("alter table {name} set logged")))
    };
    unless(table.unlogged.iter().map(tell).collect(), "")
}

pub fn privileges(facts: &Facts) -> Known<Outcome> {
    let missing = known(&facts.postgres()?.missing_privileges)?;
    let role = quoted(&facts.server()?.role);
    let tell = |it: &Privilege| {
        let Privilege {
            privilege,
            kind,
            object,
            purpose,
        } = it;
        let what = format!("role {role} has no {privilege} on {object}");
        // It works without these two, and checks less or keeps more WAL.
        let optional = kind == "function" || object == "outbox.migrations";
        let finding = match optional {
            true => warning(what, purpose.clone()),
            false => error(what, purpose.clone()),
        };
        finding.cure(Cure::Sql(format!(
            "grant {privilege} on {kind} {object} to {role}"
        )))
    };
    unless(
        missing.iter().map(tell).collect(),
        format!("role {role} has them"),
    )
}

/// As `quote_ident` does it, but for reserved words.
pub fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    match begins && name.chars().all(plain) {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}
