//! Asks PostgreSQL, as the relay's own role; each question in a short read-only transaction, so that nothing is left behind.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tokio::time::{Instant, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::checks::quoted;
use super::facts::{
    Destination, Known, PostgresFacts, SchemaFacts, ServerFacts, SessionFacts, TableFacts, Unknown,
    known, unknown,
};
use crate::capture::registry;
use crate::capture::table::origin;
use crate::capture::wal::{make, timeline};
use crate::capture::{CaptureKind, CaptureSettings};
use crate::config::Settings;
use crate::database::Value;
use crate::fault::Fault;

/// All of it; a server that falls silent must not hold up the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// One question: the server ends it by itself, so that none is left behind.
const QUESTION_MS: u64 = 3_000;

/// What can be found out.
pub(super) async fn gather(settings: &Settings, old_after_s: i64) -> Known<PostgresFacts> {
    match timeout(PATIENCE, ask(settings, old_after_s)).await {
        Ok(facts) => facts,
        Err(_) => unknown(format!(
            "PostgreSQL does not answer within {} s",
            PATIENCE.as_secs()
        )),
    }
}

fn of(fault: Fault) -> Unknown {
    Unknown(fault.to_string())
}

fn of_error(error: tokio_postgres::Error) -> Unknown {
    of(error.into())
}

async fn ask(settings: &Settings, old_after_s: i64) -> Known<PostgresFacts> {
    let client = settings.database.connect().await.map_err(of)?;
    let asked = Instant::now();
    let before = now_ms();
    let server: ServerFacts =
        one(&client, include_str!("../../sql/doctor/server.sql"), &[]).await?;
    let (after, answered_ms) = (now_ms(), asked.elapsed().as_millis());
    let clock_ahead_ms = server.clock_ms - i64::midpoint(before, after);
    // A standby can't be asked for the end of its WAL; and what it has is the primary's.
    let reason = match (server.is_standby, server.version_num) {
        (true, _) => Some("PostgreSQL is a standby"),
        (false, ..140_000) => Some("PostgreSQL is too old"),
        _ => None,
    };
    if let Some(reason) = reason {
        return Ok(nothing_else(
            answered_ms,
            clock_ahead_ms,
            server,
            old_after_s,
            reason,
        ));
    }
    let outbox = &settings.outbox;
    let age: [Value; 1] = [(&old_after_s, Type::INT8)];
    let table = table(&client, outbox).await;
    let origin = origin(&client, &outbox.table, settings.capture.name())
        .await
        .map_err(of);
    let left = match &origin {
        Ok((here, _)) => timeline::left(&settings.database, here.timeline)
            .await
            .map_err(of),
        Err(why) => Err(why.clone()),
    };
    Ok(PostgresFacts {
        answered_ms,
        clock_ahead_ms,
        session: session(&client, settings).await,
        schema: schema(&client).await,
        missing_privileges: privileges(&client, settings, &table).await,
        registrations: registry::registrations(&client, outbox).await.map_err(of),
        foreign: foreign(&client, outbox, &table).await,
        transactions: one(
            &client,
            include_str!("../../sql/doctor/transactions.sql"),
            &age,
        )
        .await,
        prepared: one(&client, include_str!("../../sql/doctor/prepared.sql"), &age).await,
        slots: one(&client, include_str!("../../sql/doctor/slots.sql"), &[]).await,
        publication: publication(&client, outbox).await,
        older_rows: older_rows(&client, outbox, &table).await,
        destinations: destinations(&client, outbox, &table).await,
        streams_from: match settings.capture {
            CaptureKind::Wal => make::streams_from(&settings.database).await.map_err(of),
            CaptureKind::Table => unknown("capture table does not stream"),
        },
        table,
        origin,
        left,
        server,
        old_after_s,
    })
}

fn nothing_else(
    answered_ms: u128,
    clock_ahead_ms: i64,
    server: ServerFacts,
    old_after_s: i64,
    reason: &str,
) -> PostgresFacts {
    PostgresFacts {
        answered_ms,
        clock_ahead_ms,
        session: unknown(reason),
        schema: unknown(reason),
        table: unknown(reason),
        missing_privileges: unknown(reason),
        registrations: unknown(reason),
        foreign: unknown(reason),
        transactions: unknown(reason),
        prepared: unknown(reason),
        slots: unknown(reason),
        publication: unknown(reason),
        older_rows: unknown(reason),
        destinations: unknown(reason),
        origin: unknown(reason),
        left: unknown(reason),
        streams_from: unknown(reason),
        server,
        old_after_s,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the server's clock, and nothing is decided by it"
)]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| {
        i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
    })
}

/// The rows of one question.
async fn rows(client: &Client, sql: &str, values: &[Value<'_>]) -> Known<Vec<Row>> {
    let begin = format!("begin read only; set local statement_timeout = {QUESTION_MS}");
    client.batch_execute(&begin).await.map_err(of_error)?;
    let rows = client.query_typed(sql, values).await;
    client.batch_execute("rollback").await.map_err(of_error)?;
    rows.map_err(of_error)
}

/// One JSON value, if there is a row.
async fn maybe<T: DeserializeOwned>(
    client: &Client,
    sql: &str,
    values: &[Value<'_>],
) -> Known<Option<T>> {
    let rows = rows(client, sql, values).await?;
    let read = |row: &Row| {
        let json: Json = row.try_get(0).map_err(of_error)?;
        serde_json::from_value(json).map_err(|error| Unknown(format!("an answer is odd: {error}")))
    };
    rows.first().map(read).transpose()
}

async fn one<T: DeserializeOwned>(client: &Client, sql: &str, values: &[Value<'_>]) -> Known<T> {
    let found = maybe(client, sql, values).await?;
    found.ok_or_else(|| Unknown("no answer".to_owned()))
}

/// Two connections at once. What is set in a session is set only where the session is known to be ours.
async fn session(first: &Client, settings: &Settings) -> Known<SessionFacts> {
    let second = settings.database.connect().await.map_err(of)?;
    let lease_ms = i64::try_from(settings.lease_time.as_millis()).unwrap_or(i64::MAX);
    let mut facts = SessionFacts {
        reached: [Vec::new(), Vec::new()],
        idle_session_timeout_ms: Vec::new(),
        lease_ms,
    };
    for _ in 0..3 {
        for (client, reached) in [first, &second].into_iter().zip(&mut facts.reached) {
            reached.push(kept(client).await?.0);
        }
    }
    let [reached, of_second] = &facts.reached;
    if reached.iter().any(|pid| of_second.contains(pid)) {
        return Ok(facts);
    }
    let set =
        include_str!("../../sql/doctor/session.sql").replace("{lease_ms}", &lease_ms.to_string());
    second.batch_execute(&set).await.map_err(of_error)?;
    for _ in 0..2 {
        facts.idle_session_timeout_ms.push(kept(&second).await?.1);
    }
    Ok(facts)
}

async fn kept(client: &Client) -> Known<(i32, i64)> {
    let kept = client.query_typed_one(include_str!("../../sql/doctor/kept.sql"), &[]);
    let row = kept.await.map_err(of_error)?;
    let read = || Ok((row.try_get(0)?, row.try_get(1)?));
    read().map_err(of_error)
}

async fn schema(client: &Client) -> Known<SchemaFacts> {
    let schema = include_str!("../../sql/doctor/schema.sql");
    let mut schema: SchemaFacts = one(client, schema, &[]).await?;
    if schema.may_read {
        let applied = rows(client, include_str!("../../sql/init/applied.sql"), &[]).await?;
        let applied = applied.first().map_or(Ok(0), |row| row.try_get(0));
        schema.applied = applied.map_err(of_error)?;
    }
    Ok(schema)
}

/// Schema and name of the outbox table, as they are set.
fn place(outbox: &CaptureSettings) -> (&str, &str) {
    outbox.table.split_once('.').unwrap_or(("", &outbox.table))
}

async fn table(client: &Client, outbox: &CaptureSettings) -> Known<Option<TableFacts>> {
    let (schema, name) = place(outbox);
    let values: [Value; 3] = [
        (&schema, Type::TEXT),
        (&name, Type::TEXT),
        (&outbox.columns.seq, Type::TEXT),
    ];
    maybe(client, include_str!("../../sql/doctor/table.sql"), &values).await
}

async fn privileges(
    client: &Client,
    settings: &Settings,
    table: &Known<Option<TableFacts>>,
) -> Known<Vec<super::facts::Privilege>> {
    let table = known(table)?.as_ref();
    let (schema, name) = place(&settings.outbox);
    let (schema, name) = table.map_or_else(
        || {
            (
                quoted(schema),
                format!("{}.{}", quoted(schema), quoted(name)),
            )
        },
        |it| (it.schema.clone(), it.name.clone()),
    );
    let needs = include_str!("../../sql/roles/relay.sql")
        .replace("{schema}", &schema.replace('\'', "''"))
        .replace("{table}", &name.replace('\'', "''"));
    let missing = include_str!("../../sql/doctor/privileges.sql").replace("{needs}", &needs);
    let retains = settings.retention_minutes.is_some();
    let values: [Value; 2] = [
        (&settings.capture.name(), Type::TEXT),
        (&retains, Type::BOOL),
    ];
    one(client, &missing, &values).await
}

async fn foreign(
    client: &Client,
    outbox: &CaptureSettings,
    table: &Known<Option<TableFacts>>,
) -> Known<Option<String>> {
    let Some(table) = known(table)?
        .as_ref()
        .filter(|it| it.columns.contains_key(&outbox.columns.xid))
    else {
        return unknown("there is no column for the transaction's id");
    };
    let foreign = include_str!("../../sql/table/foreign.sql")
        .replace("{table}", &table.name)
        .replace("{xid}", &quoted(&outbox.columns.xid));
    let rows = rows(client, &foreign, &[]).await?;
    let xid = rows.first().map(|row| row.try_get(0)).transpose();
    xid.map_err(of_error)
}

async fn publication(
    client: &Client,
    outbox: &CaptureSettings,
) -> Known<Option<super::facts::Publication>> {
    let (schema, name) = place(outbox);
    let values: [Value; 3] = [
        (&outbox.slot, Type::TEXT),
        (&schema, Type::TEXT),
        (&name, Type::TEXT),
    ];
    maybe(
        client,
        include_str!("../../sql/doctor/publication.sql"),
        &values,
    )
    .await
}

/// What a first start of capture wal asks.
async fn older_rows(
    client: &Client,
    outbox: &CaptureSettings,
    table: &Known<Option<TableFacts>>,
) -> Known<Option<bool>> {
    let Some(table) = known(table)? else {
        return Ok(None);
    };
    let older = match table.columns.contains_key(&outbox.columns.xid) {
        true => "pg_visible_in_snapshot({xid}, s.snapshot::pg_snapshot)",
        false => "true",
    };
    let made = include_str!("../../sql/wal/made.sql")
        .replace("{older}", older)
        .replace("{xid}", &quoted(&outbox.columns.xid))
        .replace("{table}", &table.name);
    let rows = rows(client, &made, &[(&outbox.slot, Type::TEXT)]).await?;
    let older = rows.first().map(|row| row.try_get(1)).transpose();
    older.map_err(of_error)
}

/// From the newest rows, where the table can tell which these are.
async fn destinations(
    client: &Client,
    outbox: &CaptureSettings,
    table: &Known<Option<TableFacts>>,
) -> Known<Vec<Destination>> {
    let Some(table) = known(table)? else {
        return Ok(Vec::new());
    };
    let columns = &outbox.columns;
    let text = |column: &String| match table.columns.contains_key(column) {
        true => format!("{}::text", quoted(column)),
        false => "null::text".to_owned(),
    };
    let xid = quoted(&columns.xid);
    let is_ordered = table
        .columns
        .get(&columns.xid)
        .is_some_and(|it| it.kind == "xid8");
    let (xid, newest) = match is_ordered {
        true => (xid.clone(), format!("order by {xid} desc")),
        false => ("null::xid8".to_owned(), String::new()),
    };
    let topics = include_str!("../../sql/doctor/topics.sql")
        .replace("{topic}", &text(&columns.topic))
        .replace("{aggregate_type}", &text(&columns.aggregate_type))
        .replace("{xid}", &xid)
        .replace("{table}", &table.name)
        .replace("{newest}", &newest);
    one(client, &topics, &[(&outbox.name, Type::TEXT)]).await
}
