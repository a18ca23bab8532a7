//! The [`Store`] of production: tables `outbox.parked` and `outbox.parked_events`.

use bytes::Bytes;
use deadpool_postgres::{Object, Pool};
use serde_json::Value as Json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::store::{New, Request, Store};
use super::unsettled::Unsettled;
use super::{Entry, counted};
use crate::database::{Database, Value, unsigned};
use crate::event::{Event, Slice};
use crate::fault::Fault;
use crate::position;

/// See the module's text.
pub struct PostgresStore {
    relay: String,
    pool: Pool,
    /// In a transaction, since [`Store::add`].
    writing: Option<Object>,
}

impl PostgresStore {
    /// Of the relay of this name; connects when it is asked.
    ///
    /// # Errors
    /// [`Fault::Defect`] if the pool can't be built.
    pub fn new(relay: &str, database: &Database) -> Result<Self, Fault> {
        Ok(Self {
            relay: relay.to_owned(),
            // One that keeps, one that reads what is released.
            pool: database.pool(2)?,
            writing: None,
        })
    }

    /// What would wait if what a record says were applied; by reading alone.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn would_wait(
        &self,
        said: &position::Unsettled,
    ) -> Result<position::Unsettled, Fault> {
        let values: [Value; 3] = [
            (&self.relay, Type::TEXT),
            (&said.passed, Type::TEXT_ARRAY),
            (&said.settled, Type::TEXT_ARRAY),
        ];
        let sql = include_str!("../../sql/park/would_wait.sql");
        let rows = self.rows(sql, &values).await?;
        Ok(counted(&Unsettled::of(
            rows.iter().map(entry).collect::<Result<_, _>>()?,
        )))
    }

    async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Fault> {
        Ok(self.pool.get().await?.query_typed(sql, values).await?)
    }

    fn writing(&self) -> Result<&Object, Fault> {
        self.writing
            .as_ref()
            .ok_or_else(|| Fault::Defect("a transaction is kept before it was added".into()))
    }

    async fn try_append(&self, entry: &Entry, slice: &Slice) -> Result<(), Fault> {
        let columns = Columns::of(slice)?;
        let client = self.writing()?;
        let append = include_str!("../../sql/park/append.sql");
        let bytes = signed(entry.bytes)?;
        let mut values = columns.values(&entry.id).to_vec();
        values.push((&bytes, Type::INT8));
        values.push((&entry.keys, Type::INT8_ARRAY));
        client.query_typed(append, &values).await?;
        Ok(())
    }

    async fn try_add(&self, new: &New<'_>) -> Result<i64, Fault> {
        let client = self.writing()?;
        let events = signed(new.events)?;
        let values: [Value; 4] = [
            (&self.relay, Type::TEXT),
            (&new.tx_id, Type::TEXT),
            (&new.fault, Type::TEXT),
            (&events, Type::INT8),
        ];
        let added = client
            .query_typed(include_str!("../../sql/park/add.sql"), &values)
            .await?;
        let Some(row) = added.first() else {
            // A relay that lost its lease meanwhile is told so instead.
            return Err(Fault::Refused(format!(
                "{} stands in outbox.parked already, and not as pending: the position went back behind it; delete its row there,                  then it begins anew",
                new.tx_id
            )));
        };
        let (id, was_there) = (row.try_get(0)?, row.try_get(1)?);
        if was_there {
            let forget = include_str!("../../sql/park/forget_events.sql");
            client.query_typed(forget, &[(&id, Type::INT8)]).await?;
        }
        Ok(id)
    }
}

impl Clone for PostgresStore {
    fn clone(&self) -> Self {
        Self {
            relay: self.relay.clone(),
            pool: self.pool.clone(),
            writing: None,
        }
    }
}

impl Store for PostgresStore {
    async fn add(&mut self, new: &New<'_>) -> Result<i64, Fault> {
        if self.writing.is_none() {
            let client = self.pool.get().await?;
            client
                .batch_execute(include_str!("../../sql/park/begin.sql"))
                .await?;
            self.writing = Some(client);
        }
        let added = self.try_add(new).await;
        self.or_abandon(added)
    }

    async fn append(&mut self, entry: &Entry, slice: &Slice) -> Result<(), Fault> {
        let appended = self.try_append(entry, slice).await;
        self.or_abandon(appended)
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        match self.writing.take() {
            Some(client) => Ok(client.batch_execute("commit").await?),
            None => Ok(()),
        }
    }

    async fn confirm(&mut self, passed: &[String], settled: &[String]) -> Result<(), Fault> {
        // What an opening finds half written is not its own.
        self.abandon();
        let mut changes: Vec<(&str, [Value; 2])> = Vec::new();
        for (sql, named) in [
            (include_str!("../../sql/park/passed.sql"), &passed),
            (include_str!("../../sql/park/settled.sql"), &settled),
        ] {
            if !named.is_empty() {
                changes.push((sql, [(&self.relay, Type::TEXT), (named, Type::TEXT_ARRAY)]));
            }
        }
        self.change(&changes).await
    }

    async fn unsettled(&mut self) -> Result<Vec<Entry>, Fault> {
        let sql = include_str!("../../sql/park/unsettled.sql");
        let rows = self.rows(sql, &[(&self.relay, Type::TEXT)]).await?;
        rows.iter().map(entry).collect()
    }

    async fn requests(&mut self) -> Result<Vec<(i64, Request)>, Fault> {
        let sql = include_str!("../../sql/park/requests.sql");
        let rows = self.rows(sql, &[(&self.relay, Type::TEXT)]).await?;
        let mut requests = Vec::new();
        for row in &rows {
            if let Some(request) = request(row.try_get(1)?)? {
                requests.push((row.try_get(0)?, request));
            }
        }
        Ok(requests)
    }

    async fn failed_again(&mut self, id: i64, why: &str) -> Result<(), Fault> {
        let values: [Value; 2] = [(&id, Type::INT8), (&why, Type::TEXT)];
        let failed = include_str!("../../sql/park/failed.sql");
        self.change(&[(failed, values)]).await
    }

    async fn torn(&mut self, ids: &[i64]) -> Result<Vec<i64>, Fault> {
        let torn = include_str!("../../sql/park/torn.sql");
        let rows = self.rows(torn, &[(&ids, Type::INT8_ARRAY)]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    async fn events(
        &self,
        id: i64,
        index: u64,
        events_max: u64,
    ) -> Result<Vec<(u64, Event)>, Fault> {
        let (index, events_max) = (signed(index)?, signed(events_max)?);
        let values: [Value; 3] = [
            (&id, Type::INT8),
            (&index, Type::INT8),
            (&events_max, Type::INT8),
        ];
        let sql = include_str!("../../sql/park/events.sql");
        self.rows(sql, &values).await?.iter().map(event).collect()
    }
}

impl PostgresStore {
    /// Makes these changes, durable together: the next record speaks no more of what was confirmed.
    async fn change(&self, changes: &[(&str, [Value<'_>; 2])]) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let client = self.pool.get().await?;
        let changed = async {
            let begin = include_str!("../../sql/park/begin.sql");
            client.batch_execute(begin).await?;
            for (sql, values) in changes {
                client.query_typed(sql, values).await?;
            }
            client.batch_execute("commit").await
        };
        if let Err(error) = changed.await {
            drop(Object::take(client));
            return Err(error.into());
        }
        Ok(())
    }

    /// A connection in the middle of a transaction is not given back to the pool.
    fn abandon(&mut self) {
        if let Some(client) = self.writing.take() {
            drop(Object::take(client));
        }
    }

    fn or_abandon<T>(&mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        if result.is_err() {
            self.abandon();
        }
        result
    }
}

fn signed(number: u64) -> Result<i64, Fault> {
    i64::try_from(number).map_err(|_| Fault::Defect(format!("{number} events or bytes")))
}

fn request(text: Option<&str>) -> Result<Option<Request>, Fault> {
    match text {
        None => Ok(None),
        Some("retry") => Ok(Some(Request::Retry)),
        Some("discard") => Ok(Some(Request::Discard)),
        Some(other) => Err(Fault::Refused(format!(
            "outbox.parked asks for {other:?}, which this version does not know"
        ))),
    }
}

fn entry(row: &Row) -> Result<Entry, Fault> {
    Ok(Entry {
        id: row.try_get(0)?,
        tx_id: row.try_get::<_, &str>(1)?.into(),
        is_parked: row.try_get(2)?,
        request: request(row.try_get(3)?)?,
        events: unsigned(row.try_get(4)?),
        bytes: unsigned(row.try_get(5)?),
        keys: row.try_get(6)?,
    })
}

fn event(row: &Row) -> Result<(u64, Event), Fault> {
    let bytes = |column: usize| {
        let value: Option<&[u8]> = row.try_get(column)?;
        Ok::<_, Fault>(value.map(Bytes::copy_from_slice))
    };
    let event = Event {
        seq: row.try_get(0)?,
        id: row.try_get(1)?,
        topic: row.try_get::<_, &str>(2)?.into(),
        key: bytes(3)?,
        event_type: row.try_get(4)?,
        payload: bytes(5)?,
        headers: headers_of(row.try_get(6)?)?,
        occurred_at_ms: row.try_get(7)?,
    };
    Ok((unsigned(row.try_get(8)?), event))
}

/// Pairs of name and value. All values come from JSON, so they are text.
fn headers_as_json(headers: &[(String, Option<Bytes>)]) -> Result<Json, Fault> {
    let pair = |(name, value): &(String, Option<Bytes>)| {
        let text = value.as_ref().map(|value| std::str::from_utf8(value));
        let text = text
            .transpose()
            .map_err(|_| Fault::Defect(format!("header {name} is no text")))?;
        Ok(serde_json::json!([name, text]))
    };
    headers
        .iter()
        .map(pair)
        .collect::<Result<Vec<_>, _>>()
        .map(Json::Array)
}

fn headers_of(json: Json) -> Result<Vec<(String, Option<Bytes>)>, Fault> {
    let pairs: Vec<(String, Option<String>)> = serde_json::from_value(json)
        .map_err(|error| Fault::Refused(format!("headers in outbox.parked_events: {error}")))?;
    let pair = |(name, value): (String, Option<String>)| (name, value.map(Bytes::from));
    Ok(pairs.into_iter().map(pair).collect())
}

/// The columns of `append.sql`.
struct Columns<'a> {
    index: Vec<i64>,
    seq: Vec<i64>,
    id: Vec<Uuid>,
    topic: Vec<&'a str>,
    key: Vec<Option<&'a [u8]>>,
    event_type: Vec<Option<&'a str>>,
    payload: Vec<Option<&'a [u8]>>,
    headers: Vec<Json>,
    occurred_at_ms: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(slice: &'a Slice) -> Result<Self, Fault> {
        let events = || slice.events.iter();
        let first = signed(slice.first_index)?;
        let count = signed(slice.events.len() as u64)?;
        Ok(Self {
            index: (first..first + count).collect(),
            seq: events().map(|it| it.seq).collect(),
            id: events().map(|it| it.id).collect(),
            topic: events().map(|it| &*it.topic).collect(),
            key: events().map(|it| it.key.as_deref()).collect(),
            event_type: events().map(|it| it.event_type.as_deref()).collect(),
            payload: events().map(|it| it.payload.as_deref()).collect(),
            headers: events()
                .map(|it| headers_as_json(&it.headers))
                .collect::<Result<_, _>>()?,
            occurred_at_ms: events().map(|it| it.occurred_at_ms).collect(),
        })
    }

    fn values(&'a self, id: &'a i64) -> [Value<'a>; 10] {
        [
            (id, Type::INT8),
            (&self.index, Type::INT8_ARRAY),
            (&self.seq, Type::INT8_ARRAY),
            (&self.id, Type::UUID_ARRAY),
            (&self.topic, Type::TEXT_ARRAY),
            (&self.key, Type::BYTEA_ARRAY),
            (&self.event_type, Type::TEXT_ARRAY),
            (&self.payload, Type::BYTEA_ARRAY),
            (&self.headers, Type::JSON_ARRAY),
            (&self.occurred_at_ms, Type::INT8_ARRAY),
        ]
    }
}
