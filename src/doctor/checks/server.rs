//! The server: whether it answers, what it promises of a commit, and who holds it back.

use crate::capture::CaptureKind;
use crate::doctor::facts::{Facts, Known, Scope, ServerFacts, SlotFacts, known, unknown};
use crate::doctor::finding::{Finding, Outcome, error, fine, found, person, sql, unless, warning};

/// A clock that is further off is told: Kafka judges the age of records by its own.
const SKEW_MAX_MS: i64 = 5_000;
/// An idle slot that keeps more is told.
const KEPT_BYTES_MAX: i64 = 64 << 20;

pub fn reachable(facts: &Facts) -> Known<Outcome> {
    match &facts.postgres {
        Ok(it) => fine(format!(
            "PostgreSQL {} as role {}, in {} ms",
            it.server.version, it.server.role, it.answered_ms
        )),
        Err(why) => found(
            error(
                why.0.clone(),
                "the relay waits for PostgreSQL, and publishes nothing meanwhile",
            )
            .cure(person(format!(
                "start it, or correct --database-url ({})",
                facts.settings.database
            ))),
        ),
    }
}

pub fn version(facts: &Facts) -> Known<Outcome> {
    let server = facts.server()?;
    match server.version_num {
        140_000.. => fine(server.version.clone()),
        _ => found(
            error(
                format!("PostgreSQL {} is too old", server.version),
                "the relay needs transaction ids of 64 bits and idle_session_timeout",
            )
            .cure(person("upgrade to PostgreSQL 14 or newer")),
        ),
    }
}

pub fn primary(facts: &Facts) -> Known<Outcome> {
    match facts.server()?.is_standby {
        false => fine(""),
        true => found(
            error(
                "it is a standby",
                "the relay holds its lease and acknowledges on the primary",
            )
            .cure(person(
                "name the primary in --database-url, or all servers with target_session_attrs=read-write",
            )),
        ),
    }
}

pub fn fsync(facts: &Facts) -> Known<Outcome> {
    let server = facts.server()?;
    let off = ["fsync", "full_page_writes"]
        .into_iter()
        .filter(|name| server.setting(name) == "off");
    let tell = |name: &str| {
        error(
            format!("{name} is off"),
            "after a crash the server may lack events that were published, or be corrupt",
        )
        .alter_system(&format!("{name} = on"))
    };
    unless(off.map(tell).collect(), "fsync and full_page_writes are on")
}

/// The relay publishes nothing before it is flushed; but a writer that was told of its commit may lose it.
pub fn synchronous_commit(facts: &Facts) -> Known<Outcome> {
    let server = facts.server()?;
    let why = "a crash loses commits that were answered, with their events; and a standby that is promoted may lack events that \
               were published";
    let tell = |scope: String, finding: fn(Finding) -> Finding| {
        finding(warning(format!("synchronous_commit is off{scope}"), why))
    };
    let setting = server.settings.get("synchronous_commit");
    let everywhere = setting.filter(|it| it.value == "off" && !is_scoped(&it.source));
    let mut findings: Vec<Finding> = everywhere
        .map(|_| {
            tell(String::new(), |it| {
                it.alter_system("synchronous_commit = on")
            })
        })
        .into_iter()
        .collect();
    findings.extend(server.asynchronous.iter().map(|it| {
        let (scope, reset) = scoped(it);
        warning(format!("synchronous_commit is off for {scope}"), why).cure(sql(reset))
    }));
    unless(findings, "it is on for every database and role")
}

/// A source that `asynchronous` tells of, or the relay's own address.
fn is_scoped(source: &str) -> bool {
    ["database", "user", "database user", "client", "session"].contains(&source)
}

fn scoped(scope: &Scope) -> (String, String) {
    let reset = "reset synchronous_commit";
    match (&scope.database, &scope.role) {
        (Some(database), Some(role)) => (
            format!("role {role} in database {database}"),
            format!("alter role {role} in database {database} {reset}"),
        ),
        (Some(database), None) => (
            format!("database {database}"),
            format!("alter database {database} {reset}"),
        ),
        (None, Some(role)) => (format!("role {role}"), format!("alter role {role} {reset}")),
        (None, None) => ("all roles".to_owned(), format!("alter role all {reset}")),
    }
}

pub fn clock(facts: &Facts) -> Known<Outcome> {
    let ahead = facts.postgres()?.clock_ahead_ms;
    let (direction, by) = match ahead {
        0.. => ("ahead of", ahead),
        _ => ("behind", -ahead),
    };
    let off = format!("its clock is {by} ms {direction} ours");
    if by <= SKEW_MAX_MS {
        return fine(off);
    }
    found(
        warning(
            off,
            "occurred_at becomes the record's timestamp: Kafka deletes records by it, and refuses those that are too far in the \
             future. Nothing else is decided by a clock",
        )
        .cure(person("let an NTP client keep both machines' clocks")),
    )
}

pub fn long_transactions(facts: &Facts) -> Known<Outcome> {
    let postgres = facts.postgres()?;
    let transactions = known(&postgres.transactions)?;
    let tell = |it: &crate::doctor::facts::OpenTransaction| {
        let text = |part: &Option<String>| part.clone().unwrap_or_else(|| "?".to_owned());
        warning(
            format!(
                "pid {} ({}, role {}, database {}) has a transaction open for {} s, {}",
                it.pid,
                text(&it.application),
                text(&it.role),
                text(&it.database),
                it.age_s,
                text(&it.state)
            ),
            "VACUUM can't remove what was deleted since; its own events come only when it ends, and a replication slot keeps all WAL \
             since it began",
        )
        .cure(sql(format!("select pg_terminate_backend({})", it.pid)))
    };
    let old: Vec<_> = transactions.old.iter().map(tell).collect();
    if old.is_empty() && transactions.hidden > 0 {
        return unknown(format!(
            "{} open transactions are of roles whose sessions role {} may not look at: grant pg_monitor to it",
            transactions.hidden, postgres.server.role
        ));
    }
    unless(
        old,
        format!("none for longer than {} s", postgres.old_after_s),
    )
}

pub fn prepared_transactions(facts: &Facts) -> Known<Outcome> {
    let postgres = facts.postgres()?;
    let tell = |it: &crate::doctor::facts::Prepared| {
        let (gid, database) = (&it.gid, &it.database);
        warning(
            format!(
                "prepared transaction {gid} of role {} in database {database} waits for its end for {} s",
                it.owner, it.age_s
            ),
            "its locks and its place stay, over restarts too: VACUUM, and the making of a slot, wait for it",
        )
        .cure(person(format!(
            "as its coordinator decided, in database {database}: commit prepared {gid}, or rollback prepared {gid}"
        )))
    };
    let prepared = known(&postgres.prepared)?;
    unless(
        prepared.iter().map(tell).collect(),
        format!("none for longer than {} s", postgres.old_after_s),
    )
}

pub fn idle_slots(facts: &Facts) -> Known<Outcome> {
    let ours = match facts.settings.capture {
        CaptureKind::Wal => Some(&facts.settings.outbox.slot),
        CaptureKind::Table => None,
    };
    let idle = |it: &&SlotFacts| {
        !it.active
            && !it.temporary
            && it.retained_bytes > KEPT_BYTES_MAX
            && Some(&it.slot_name) != ours
    };
    let tell = |it: &SlotFacts| {
        let name = it.slot_name.replace('\'', "''");
        let since = it
            .inactive_since
            .as_deref()
            .map(|since| format!(" since {since}"));
        warning(
            format!(
                "replication slot {} is not read{}, and keeps {} MB of WAL",
                it.slot_name,
                since.unwrap_or_default(),
                it.retained_bytes >> 20
            ),
            "WAL that nobody reads fills the disk, and then PostgreSQL stops",
        )
        .cure(person("start its reader; or, if it has none any more:"))
        .cure(sql(format!("select pg_drop_replication_slot('{name}')")))
    };
    let slots = known(&facts.postgres()?.slots)?;
    unless(
        slots.iter().filter(idle).map(tell).collect(),
        format!("none keeps more than {} MB", KEPT_BYTES_MAX >> 20),
    )
}

/// What is set in the server's files needs a restart; without it the check goes on finding it.
pub(super) fn restart(server: &ServerFacts) -> crate::doctor::finding::Cure {
    person(format!("restart PostgreSQL {}", server.version))
}
