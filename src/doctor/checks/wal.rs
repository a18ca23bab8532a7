//! What capture wal needs.

use super::only_wal;
use super::table::quoted;
use crate::capture::Start;
use crate::doctor::facts::{Facts, Known, SlotFacts, known, unknown};
use crate::doctor::finding::{
    Cure, Outcome, error, fine, found, person, shell, sql, unless, warning,
};
use crate::position::Lsn;

pub fn level(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let server = facts.server()?;
    match server.setting("wal_level") {
        "logical" => fine(""),
        other => found(
            error(
                format!("wal_level is {other}"),
                "the WAL does not say enough for logical decoding, so there can be no slot",
            )
            .cure(sql("alter system set wal_level = 'logical'"))
            .cure(super::server::restart(server)),
        ),
    }
}

pub fn replication(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let postgres = facts.postgres()?;
    let role = quoted(&postgres.server.role);
    if !postgres.server.role_replicates {
        return found(
            error(
                format!("role {role} has no replication attribute"),
                "it may not stream from a slot",
            )
            .cure(sql(format!("alter role {role} replication")))
            .cure(person(
                "on Amazon RDS and Aurora: grant rds_replication to the role",
            )),
        );
    }
    let (here, _) = known(&postgres.origin)?;
    let why = "the stream needs a connection to the same server as all others";
    match &postgres.streams_from {
        Ok(there) if *there == here.system_id => fine("it may, and reaches this cluster"),
        Ok(there) => found(
            error(
                format!(
                    "a replication connection reaches cluster {there}, others {}",
                    here.system_id
                ),
                why,
            )
            .cure(person(
                "give --database-url PostgreSQL's own address, not that of a pooler",
            )),
        ),
        Err(fault) => found(
            error(
                format!("no replication connection can be opened: {}", fault.0),
                why,
            )
            .cure(person(
                "give --database-url PostgreSQL's own address, not that of a pooler, and let pg_hba.conf admit the role to the database",
            )),
        ),
    }
}

pub fn publication(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let name = &facts.settings.outbox.slot;
    let table = facts.table()?;
    let Some(it) = known(&facts.postgres()?.publication)? else {
        let make = format!(
            "create publication {name} for table {} with (publish = 'insert', publish_via_partition_root = true)",
            table.name
        );
        let why = "a slot without it streams nothing, and can't be read";
        let what = format!("there is no publication {name}");
        return found(error(what, why).cure(sql(make)));
    };
    let mut findings = Vec::new();
    let mut tell = |what: String, why: &str, change: Cure| {
        findings.push(error(format!("publication {name} {what}"), why).cure(change));
    };
    let alter = |change: String| sql(format!("alter publication {name} {change}"));
    let whole = || alter(format!("set table {}", table.name));
    let lost = "what is inserted is not streamed, and is lost when the slot has passed it";
    if !it.has_table {
        let add = alter(format!("add table {}", table.name));
        tell(format!("does not have table {}", table.name), lost, add);
    }
    if !it.publishes_inserts {
        let set = alter("set (publish = 'insert')".to_owned());
        tell("does not publish inserts".to_owned(), lost, set);
    }
    if !it.through_root && table.is_partitioned {
        let set = alter("set (publish_via_partition_root = true)".to_owned());
        let what = "publishes partitions under their own names".to_owned();
        tell(what, lost, set);
    }
    if let Some(filter) = &it.row_filter {
        tell(format!("has a row filter: {filter}"), lost, whole());
    }
    let streams = |column: &String| it.columns.as_ref().is_none_or(|all| all.contains(column));
    let left_out: Vec<_> = table
        .columns
        .keys()
        .filter(|it| !streams(it))
        .cloned()
        .collect();
    if it.has_table && !left_out.is_empty() {
        let what = format!("leaves out columns: {}", left_out.join(", "));
        tell(what, "records would lack what is in them", whole());
    }
    unless(findings, format!("{name} does"))
}

pub fn slot(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let name = &facts.settings.outbox.slot;
    let slots = known(&facts.postgres()?.slots)?;
    let Some(it) = slots.iter().find(|it| it.slot_name == *name) else {
        return missing(facts, name);
    };
    let other = |why: String| {
        let cure = person("choose another --slot");
        found(error(why, "nothing of the outbox can be streamed from it").cure(cure))
    };
    match &it.plugin {
        Some(plugin) if plugin == "pgoutput" && it.is_of_this_database => {}
        Some(plugin) if plugin == "pgoutput" => {
            return other(format!("replication slot {name} is of another database"));
        }
        plugin => {
            let plugin = plugin.as_deref().unwrap_or("none, it is physical");
            return other(format!(
                "replication slot {name} has plugin {plugin}, not pgoutput"
            ));
        }
    }
    if let Some(ahead) = ahead_of_position(facts, it) {
        let what = format!("replication slot {name} stands at {ahead}, ahead of the position");
        let why = "it was made anew, or something else read from it: what committed between would be skipped, so the relay refuses to start";
        return found(error(what, why).cure(shell("outbox-relay recover --config …")));
    }
    match state(it) {
        State::Lost(why) => found(
            error(
                format!("replication slot {name} is lost ({why})"),
                "PostgreSQL removed WAL that was not published; the relay refuses to start",
            )
            .cure(shell("outbox-relay recover --config …"))
            .cure(person("raise max_slot_wal_keep_size")),
        ),
        State::InDanger => found(
            error(
                format!(
                    "replication slot {name} is about to be lost: it keeps {} MB of WAL, more than max_slot_wal_keep_size",
                    it.retained_bytes >> 20
                ),
                "when PostgreSQL removes that WAL, what was not published must be looked for in the table",
            )
            .cure(person("start the relay, so that it catches up; or raise max_slot_wal_keep_size")),
        ),
        State::Good => fine(format!(
            "{}, keeps {} MB of WAL{}",
            it.wal_status.as_deref().unwrap_or("reserved"),
            it.retained_bytes >> 20,
            it.safe_wal_size
                .map_or_else(String::new, |safe| format!(", safe for {} MB more", safe >> 20))
        )),
    }
}

/// Where the slot stands, if that is ahead of the position, as far as both are known.
fn ahead_of_position(facts: &Facts, slot: &SlotFacts) -> Option<Lsn> {
    let position = facts.kafka().ok()??.position.as_ref().ok()?.as_ref()?;
    let confirmed: Lsn = slot.confirmed_flush_lsn.as_ref()?.parse().ok()?;
    let streamed = position.streamed.as_ref()?;
    (confirmed > streamed.lsn).then_some(confirmed)
}

/// Rows that had committed before the slot was made are not streamed: a first start refuses to leave them out unasked.
pub fn older_rows(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let position = match facts.kafka()? {
        Some(kafka) => known(&kafka.position)?.is_some(),
        None => false,
    };
    if position || facts.settings.start == Start::Now {
        return fine("the relay goes on from where it stands");
    }
    match known(&facts.postgres()?.older_rows)? {
        Some(false) => fine(""),
        None if !has_slot(facts)? => unknown("there is no replication slot yet"),
        None => {
            let slot = &facts.settings.outbox.slot;
            let what = format!("replication slot {slot} was not made by outbox-relay");
            let why = "it is not known which rows are older, so the relay refuses its first start";
            let drop = sql(format!("select pg_drop_replication_slot('{slot}')"));
            let make = format!("outbox-relay init --capture wal --name {} --database-url …", facts.settings.name);
            found(error(what, why).cure(drop).cure(shell(make)))
        }
        Some(true) => found(
            error(
                format!("{} holds rows from before the replication slot was made", facts.table()?.name),
                "they are not in the stream, so the relay refuses its first start: it would leave them out",
            )
            .cure(person(
                "publish them with capture table, then run outbox-relay move --to wal; or delete them; or leave them out with --start now",
            )),
        ),
    }
}

fn has_slot(facts: &Facts) -> Known<bool> {
    let slots = known(&facts.postgres()?.slots)?;
    Ok(slots
        .iter()
        .any(|it| it.slot_name == facts.settings.outbox.slot))
}

enum State {
    Lost(String),
    InDanger,
    Good,
}

fn state(slot: &SlotFacts) -> State {
    match (slot.wal_status.as_deref(), &slot.invalidation_reason) {
        (_, Some(reason)) => State::Lost(reason.clone()),
        (None | Some("lost"), None) => State::Lost("wal_removed".to_owned()),
        (Some("unreserved"), None) => State::InDanger,
        _ => State::Good,
    }
}

/// A relay that ran must not get a new slot just so: what lies between is not in it.
fn missing(facts: &Facts, name: &str) -> Known<Outcome> {
    let what = format!("there is no replication slot {name}");
    let relay = &facts.settings.name;
    let position = match facts.kafka()? {
        Some(kafka) => known(&kafka.position)?.is_some(),
        None => false,
    };
    let (why, cure) = match position {
        true => (
            "what committed after the position can't be streamed",
            shell("outbox-relay recover --config …"),
        ),
        false => (
            "there is nothing to stream from",
            shell(format!(
                "outbox-relay init --capture wal --name {relay} --database-url …"
            )),
        ),
    };
    found(error(what, why).cure(cure))
}

pub fn limit(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    match facts.server()?.number("max_slot_wal_keep_size") {
        -1 => found(
            warning(
                "max_slot_wal_keep_size is -1",
                "while the relay is away its slot keeps WAL until the disk is full, and then PostgreSQL stops",
            )
            .alter_system("max_slot_wal_keep_size = '10GB'")
            .cure(person("rather what your disk can spare")),
        ),
        limit => fine(format!("{limit} MB")),
    }
}

pub fn failover(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let postgres = facts.postgres()?;
    let name = &facts.settings.outbox.slot;
    if postgres.server.version_num < 170_000 {
        return Ok(Outcome::NotAsked);
    }
    let slots = known(&postgres.slots)?;
    let Some(it) = slots.iter().find(|it| it.slot_name == *name) else {
        return unknown(format!("there is no replication slot {name}"));
    };
    match it.failover {
        Some(true) => fine(""),
        _ => found(
            warning(
                format!("replication slot {name} was made without failover"),
                "a standby that is promoted has no such slot: then only recover helps, from the rows that the table holds",
            )
            .cure(shell(format!(
                "psql \"dbname={} replication=database\" -c 'ALTER_REPLICATION_SLOT {name} (FAILOVER true)'   # while the relay is stopped",
                postgres.server.database
            ))),
        ),
    }
}

pub fn headroom(facts: &Facts) -> Known<Outcome> {
    only_wal!(facts);
    let server = facts.server()?;
    let slots = known(&facts.postgres()?.slots)?;
    let ours = slots
        .iter()
        .find(|it| it.slot_name == facts.settings.outbox.slot);
    let used = i64::try_from(slots.len()).unwrap_or(i64::MAX);
    let streams = ours.is_some_and(|it| it.active);
    let mut findings = Vec::new();
    let mut tell = |name: &str, used: i64, limit: i64, has_one: bool| {
        if !has_one && used >= limit {
            findings.push(
                error(
                    format!("{name} is {limit}, and all are used"),
                    "there is none left for the relay",
                )
                .cure(sql(format!("alter system set {name} = {}", limit * 2 + 2)))
                .cure(super::server::restart(server)),
            );
        }
    };
    let (slots_max, senders_max) = (
        server.number("max_replication_slots"),
        server.number("max_wal_senders"),
    );
    tell("max_replication_slots", used, slots_max, ours.is_some());
    tell("max_wal_senders", server.senders, senders_max, streams);
    unless(
        findings,
        format!(
            "{used} of {slots_max} slots, {} of {senders_max} walsenders are used",
            server.senders
        ),
    )
}
