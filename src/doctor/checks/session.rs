//! The relay's connections.

use crate::capture::CaptureKind;
use crate::config::Settings;
use crate::doctor::facts::{Facts, Known, known};
use crate::doctor::finding::{Outcome, error, fine, found, person, sql, warning};

/// The lease, the pool of the capture, that of what is parked. The WAL capture's stream is a walsender.
fn connections_needed(settings: &Settings) -> i64 {
    let capture = match settings.capture {
        CaptureKind::Table => 3,
        CaptureKind::Wal => 2,
    };
    let retention = i64::from(settings.retention_minutes.is_some());
    let admin = i64::from(settings.admin_listen.is_some());
    1 + capture + 2 + retention + admin
}

/// A pooler in transaction mode hands a session to whoever comes next: the lease, a lock of its session, would not hold.
pub fn session(facts: &Facts) -> Known<Outcome> {
    let session = known(&facts.postgres()?.session)?;
    let [first, second] = &session.reached;
    let moved = |pids: &[i32]| pids.iter().any(|pid| Some(pid) != pids.first());
    let shared = first.iter().any(|pid| second.contains(pid)) || moved(first) || moved(second);
    let forgot = session
        .idle_session_timeout_ms
        .iter()
        .any(|kept| *kept != session.lease_ms);
    let what = match (shared, forgot) {
        (false, false) => return fine("idle_session_timeout holds"),
        (true, _) => {
            "two connections share a session of the server: a pooler in transaction mode lies between"
        }
        (false, true) => {
            "idle_session_timeout does not stay as it was set: something between resets the session"
        }
    };
    found(
        error(
            what,
            "the lease is a lock of the session, and the server ends a silent one: two relays would take turns, and Kafka would fence \
             one by the other",
        )
        .cure(person(
            "give --database-url PostgreSQL's own address, or a pooler in session mode (pgbouncer: pool_mode = session)",
        )),
    )
}

pub fn connections(facts: &Facts) -> Known<Outcome> {
    let server = facts.server()?;
    let reserved =
        server.number("superuser_reserved_connections") + server.number("reserved_connections");
    let limit = server.number("max_connections") - reserved;
    let needed = connections_needed(&facts.settings);
    let role = format!("\"{}\"", server.role.replace('"', "\"\""));
    let database = format!("\"{}\"", server.database.replace('"', "\"\""));
    let limits = [
        (
            "max_connections",
            limit,
            server.connections,
            sql(format!(
                "alter system set max_connections = {}",
                server.number("max_connections") * 2
            )),
        ),
        (
            "the role's connection limit",
            server.role_limit,
            server.role_connections,
            sql(format!("alter role {role} connection limit -1")),
        ),
        (
            "the database's connection limit",
            server.database_limit,
            server.database_connections,
            sql(format!("alter database {database} connection limit -1")),
        ),
    ];
    for (name, limit, used, cure) in limits {
        if limit >= 0 && limit - used < needed {
            let finding = warning(
                format!("{name} leaves {} of {limit} connections", (limit - used).max(0)),
                format!("the relay needs up to {needed}; one that gets none waits, and its lease may be lost"),
            )
            .cure(cure);
            return found(match name {
                "max_connections" => finding.cure(super::server::restart(server)),
                _ => finding,
            });
        }
    }
    fine(format!("{} of {limit} are used", server.connections))
}
