//! What people see of `outbox.parked`, and ask for. The relay acts on it.

use std::collections::HashMap;

use serde::Serialize;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::store::Request;
use crate::database::{Value, xid};
use crate::fault::Fault;
use crate::position::{self, Xid};

/// Events that `show` shows.
const EVENTS_SHOWN_MAX: i64 = 1_000;

/// A transaction of `outbox.parked`.
#[derive(Debug, Serialize)]
pub struct Parked {
    /// For `retry` and `discard`.
    pub id: i64,
    /// Header `tx-id`.
    pub tx_id: String,
    /// `parked`, `held`, `published` or `discarded`.
    pub state: String,
    /// What the relay is asked to do.
    pub requested: Option<String>,
    /// Number of its events.
    pub events: i64,
    /// Their bytes.
    pub bytes: i64,
    /// How often it was tried.
    pub attempts: i32,
    /// Why it can't be published; none if it is held.
    pub fault: Option<String>,
    /// When it failed, or was held, first.
    pub first_at: String,
    /// When it failed last.
    pub last_at: String,
    /// When it was published or discarded.
    pub settled_at: Option<String>,
}

/// An event of one.
#[derive(Debug, Serialize)]
pub struct ParkedEvent {
    /// Header `tx-index`.
    pub index: i64,
    /// Event id.
    pub id: Uuid,
    /// Topic.
    pub topic: String,
    /// Record key; bytes that are no text are escaped.
    pub key: Option<String>,
    /// Header `type`.
    pub event_type: Option<String>,
    /// Size of the payload; none for a tombstone.
    pub payload_bytes: Option<i32>,
    /// Record timestamp.
    pub occurred_at: String,
}

/// What was done to one.
#[derive(Debug, Serialize)]
pub struct Done {
    /// When.
    pub at: String,
    /// The database role.
    pub who: String,
    /// What.
    pub action: String,
    /// Why.
    pub reason: Option<String>,
}

/// One of them, with its events (the first 1 000) and its history.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The transaction.
    #[serde(flatten)]
    pub parked: Parked,
    /// Its first events.
    pub first_events: Vec<ParkedEvent>,
    /// What was done to it.
    pub history: Vec<Done>,
}

/// The transactions that wait; with `all` those that are settled too.
///
/// # Errors
/// Those of the database.
pub async fn list(client: &Client, relay: &str, all: bool) -> Result<Vec<Parked>, Fault> {
    let values: [Value; 2] = [(&relay, Type::TEXT), (&all, Type::BOOL)];
    let list = include_str!("../../sql/park/list.sql");
    let rows = client.query_typed(list, &values).await?;
    rows.iter().map(parked).collect()
}

fn parked(row: &Row) -> Result<Parked, Fault> {
    Ok(Parked {
        id: row.try_get(0)?,
        tx_id: row.try_get(1)?,
        state: row.try_get(2)?,
        requested: row.try_get(3)?,
        events: row.try_get(4)?,
        bytes: row.try_get(5)?,
        attempts: row.try_get(6)?,
        fault: row.try_get(7)?,
        first_at: row.try_get(8)?,
        last_at: row.try_get(9)?,
        settled_at: row.try_get(10)?,
    })
}

/// The transactions that were ever set aside, by id, with whether they are not published yet, or never. `last` is what the
/// last record says; asked after it was read, none that its position passed over is missing.
///
/// # Errors
/// Those of the database.
pub async fn set_aside(
    client: &Client,
    relay: &str,
    last: &position::Unsettled,
) -> Result<HashMap<Xid, bool>, Fault> {
    let values: [Value; 2] = [(&relay, Type::TEXT), (&last.passed, Type::TEXT_ARRAY)];
    let set_aside = include_str!("../../sql/park/set_aside.sql");
    let rows = client.query_typed(set_aside, &values).await?;
    let of = |row: &Row| Ok((xid(row.try_get(0)?)?, row.try_get(1)?));
    rows.iter().map(of).collect()
}

/// One of them.
///
/// # Errors
/// [`Fault::Setting`] if there is none of this id.
pub async fn show(client: &Client, relay: &str, id: i64) -> Result<Shown, Fault> {
    let values: [Value; 2] = [(&relay, Type::TEXT), (&id, Type::INT8)];
    let one = include_str!("../../sql/park/one.sql");
    let rows = client.query_typed(one, &values).await?;
    let parked = parked(rows.first().ok_or_else(|| unknown(relay, &[id]))?)?;
    let values: [Value; 3] = [
        (&relay, Type::TEXT),
        (&id, Type::INT8),
        (&EVENTS_SHOWN_MAX, Type::INT8),
    ];
    let events = include_str!("../../sql/park/show.sql");
    let events = client.query_typed(events, &values).await?;
    let history = include_str!("../../sql/park/audit.sql");
    let history = client.query_typed(history, &values[..2]).await?;
    Ok(Shown {
        parked,
        first_events: events.iter().map(event).collect::<Result<_, _>>()?,
        history: history.iter().map(done).collect::<Result<_, _>>()?,
    })
}

fn event(row: &Row) -> Result<ParkedEvent, Fault> {
    Ok(ParkedEvent {
        index: row.try_get(0)?,
        id: row.try_get(1)?,
        topic: row.try_get(2)?,
        key: row.try_get(3)?,
        event_type: row.try_get(4)?,
        payload_bytes: row.try_get(5)?,
        occurred_at: row.try_get(6)?,
    })
}

fn done(row: &Row) -> Result<Done, Fault> {
    Ok(Done {
        at: row.try_get(0)?,
        who: row.try_get(1)?,
        action: row.try_get(2)?,
        reason: row.try_get(3)?,
    })
}

/// Asks the relay to act on these, or, without ids, on all that are parked; answers those that it will act on.
///
/// # Errors
/// [`Fault::Setting`] if one of them is not parked, or something was asked for already; then nothing is asked for.
pub async fn request(
    client: &mut Client,
    relay: &str,
    request: Request,
    ids: &[i64],
    reason: Option<&str>,
) -> Result<Vec<i64>, Fault> {
    let wish = match request {
        Request::Retry => "retry",
        Request::Discard => "discard",
    };
    let values: [Value; 4] = [
        (&relay, Type::TEXT),
        (&wish, Type::TEXT),
        (&ids, Type::INT8_ARRAY),
        (&reason, Type::TEXT),
    ];
    let transaction = client.transaction().await?;
    let sql = include_str!("../../sql/park/request.sql");
    let rows = transaction.query_typed(sql, &values).await?;
    let asked: Vec<i64> = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    let missing: Vec<i64> = ids
        .iter()
        .copied()
        .filter(|id| !asked.contains(id))
        .collect();
    if !missing.is_empty() {
        return Err(unknown(relay, &missing));
    }
    transaction.commit().await?;
    Ok(asked)
}

fn unknown(relay: &str, ids: &[i64]) -> Fault {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    Fault::Setting(format!(
        "relay {relay} has no parked transaction {} that nothing was asked for yet; see `outbox-relay parked list`",
        ids.join(", ")
    ))
}
