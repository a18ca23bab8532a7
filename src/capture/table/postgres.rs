//! The [`Shell`] of production: PostgreSQL, through a small pool.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use deadpool_postgres::{Object, Pool};
use futures_util::{TryFutureExt, TryStreamExt, try_join};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::rows::event;
use super::shell::{Opened, Pages, Shell};
use crate::capture::CaptureSettings;
use crate::capture::columns::{Shape, Statements};
use crate::capture::registry::{self, Registration};
use crate::capture::route::Route;
use crate::capture::window::Planned;
use crate::database::{Database, Value, unsigned, xid};
use crate::event::Event;
use crate::fault::{Fault, Server};
use crate::position::{NotASnapshot, Origin, Position, Snapshot, Xid};

/// See the module's text.
pub struct PostgresShell {
    settings: CaptureSettings,
    pool: Pool,
    connection: Option<Connection>,
}

/// The reading connection with what was found out on it.
struct Connection {
    client: Object,
    sql: Arc<Statements>,
    route: Route,
}

impl PostgresShell {
    /// Connects when it is told to.
    ///
    /// # Errors
    /// [`Fault::Defect`] if the pool can't be built.
    pub fn new(settings: CaptureSettings, database: &Database) -> Result<Self, Fault> {
        Ok(Self {
            settings,
            // One for reading, one for a streaming transaction, one for acknowledging.
            pool: database.pool(3)?,
            connection: None,
        })
    }

    fn connection(&self) -> Result<&Connection, Fault> {
        self.connection
            .as_ref()
            .ok_or_else(|| Fault::Defect("the capture reads without a connection".into()))
    }

    fn client(&self) -> Result<&Client, Fault> {
        Ok(&self.connection()?.client)
    }
}

impl Shell for PostgresShell {
    type Pages = PostgresPages;

    fn is_connected(&self) -> bool {
        (self.connection.as_ref()).is_some_and(|connection| !connection.client.is_closed())
    }

    async fn connect(&mut self) -> Result<Origin, Fault> {
        self.connection = None;
        let client = self.pool.get().await?;
        let (origin, _) = origin(&client, &self.settings.table, "table").await?;
        let sql = Arc::new(Statements::new(&shape(&client, &self.settings).await?.1));
        self.connection = Some(Connection {
            client,
            sql,
            route: Route::new(&self.settings.route),
        });
        Ok(origin)
    }

    async fn prepare(&mut self) {
        // Why there is none, if so, `connect` says.
        drop(self.pool.get().await);
    }

    fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Object::take(connection.client));
        }
    }

    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault> {
        registry::registrations(self.client()?, &self.settings).await
    }

    async fn acknowledged(&mut self) -> Result<Option<Position>, Fault> {
        registry::acknowledged(self.client()?, &self.settings).await
    }

    async fn foreign(&mut self) -> Result<Option<Xid>, Fault> {
        let Connection { client, sql, .. } = self.connection()?;
        let rows = client.query_typed(&sql.foreign, &[]).await?;
        rows.first().map(|row| xid(row.try_get(0)?)).transpose()
    }

    async fn snapshot(&mut self) -> Result<Snapshot, Fault> {
        let row = self
            .client()?
            .query_typed_one(include_str!("../../../sql/table/snapshot.sql"), &[])
            .await?;
        snapshot(row.try_get(0)?)
    }

    async fn open(&mut self, seen: &Snapshot) -> Result<Opened, Fault> {
        let Connection { client, sql, .. } = self.connection()?;
        let open: Vec<String> = seen.in_progress().iter().map(ToString::to_string).collect();
        let values: [Value; 2] = [
            (&seen.xmax().to_string(), Type::TEXT),
            (&open, Type::TEXT_ARRAY),
        ];
        // In one flight: a client sends what is polled first, and does not wait for the answer before it sends more.
        let begin = client.batch_execute("begin isolation level repeatable read read only");
        let ((), row) = try_join!(begin, client.query_typed_one(&sql.open, &values))?;
        Ok(Opened {
            snapshot: snapshot(row.try_get(0)?)?,
            written: row.try_get(1)?,
            highest: row.try_get::<_, Option<&str>>(2)?.map(xid).transpose()?,
            late: row.try_get(3)?,
        })
    }

    async fn plan(
        &mut self,
        seen: &Snapshot,
        until: &Snapshot,
        last_seq: i64,
        count: u64,
    ) -> Result<Vec<Planned>, Fault> {
        let Connection { client, sql, .. } = self.connection()?;
        let declare = sql.plan(seen, until, last_seq);
        let declared = client.batch_execute(&declare).map_err(Fault::from);
        let ((), planned) = try_join!(declared, fetched(client, count))?;
        Ok(planned)
    }

    async fn planned(&mut self, count: u64) -> Result<Vec<Planned>, Fault> {
        fetched(self.client()?, count).await
    }

    async fn rows(&mut self, xids: &[Xid], last: bool) -> Result<Vec<(Xid, Event)>, Fault> {
        let connection = self.connection()?;
        let rows = connection.rows(xids);
        if last {
            let (rows, ()) = try_join!(rows, connection.rollback())?;
            return Ok(rows);
        }
        rows.await
    }

    async fn rollback(&mut self) -> Result<(), Fault> {
        self.connection()?.rollback().await
    }

    async fn is_flushed(&mut self, written: &str) -> Result<bool, Fault> {
        let flushed = include_str!("../../../sql/table/flushed.sql");
        let row = self
            .client()?
            .query_typed_one(flushed, &[(&written, Type::TEXT)])
            .await?;
        Ok(row.try_get(0)?)
    }

    async fn nudge(&mut self) -> Result<(), Fault> {
        let client = self.pool.get().await?;
        let nudge = include_str!("../../../sql/table/nudge.sql");
        Ok(client.batch_execute(nudge).await?)
    }

    fn pages(&self, origin: &Origin) -> PostgresPages {
        let found = self
            .connection
            .as_ref()
            .map(|connection| (connection.sql.clone(), connection.route.clone()));
        PostgresPages {
            pool: self.pool.clone(),
            planned_at: origin.clone(),
            found,
            client: None,
        }
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        let client = self.pool.get().await?;
        registry::acknowledge(&client, &self.settings, position).await
    }
}

/// Pages, all on one connection of the pool: what was found out about its server holds for each of them.
pub struct PostgresPages {
    pool: Pool,
    planned_at: Origin,
    found: Option<(Arc<Statements>, Route)>,
    client: Option<Object>,
}

impl PostgresPages {
    async fn connect(&self) -> Result<Object, Fault> {
        let client = self.pool.get().await?;
        let (here, _) = origin(&client, &self.planned_at.table, &self.planned_at.capture).await?;
        here.is_where(&self.planned_at)?;
        Ok(client)
    }
}

impl Pages for PostgresPages {
    async fn page(&mut self, xid: Xid, after_seq: i64, events: u64) -> Result<Vec<Event>, Fault> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let client = self.client.insert(client);
        let Some((sql, route)) = &mut self.found else {
            return Err(Fault::Defect("pages without a connection".into()));
        };
        let limit = i64::try_from(events).unwrap_or(i64::MAX);
        let values: [Value; 3] = [
            (&xid.to_string(), Type::TEXT),
            (&after_seq, Type::INT8),
            (&limit, Type::INT8),
        ];
        let rows = client.query_typed(&sql.rows_of_one, &values).await?;
        rows.iter().map(|row| event(route, row)).collect()
    }
}

/// Where `table` would be read by this connection and capture, and the next transaction id of its server; asked once for
/// each connection.
///
/// # Errors
/// [`Fault::Unavailable`] if the server is a standby, [`Fault::Refused`] if it is older than PostgreSQL 14.
pub async fn origin(client: &Client, table: &str, capture: &str) -> Result<(Origin, Xid), Fault> {
    if client
        .query_typed_one(include_str!("../../../sql/table/standby.sql"), &[])
        .await?
        .try_get(0)?
    {
        return Err(Fault::Unavailable(
            Server::Postgres,
            "it is a standby; the relay reads from the primary".into(),
        ));
    }
    let row = client
        .query_typed_one(include_str!("../../../sql/table/origin.sql"), &[])
        .await?;
    let origin = Origin {
        system_id: row.try_get(0)?,
        timeline: u32::try_from(row.try_get::<_, i32>(1)?)
            .map_err(|error| Fault::Defect(error.to_string()))?,
        database_oid: row.try_get(2)?,
        table: table.to_owned(),
        capture: capture.to_owned(),
    };
    let next_xid = xid(row.try_get(3)?)?;
    let version: i32 = row.try_get(4)?;
    if version < 140_000 {
        return Err(Fault::Refused(format!(
            "PostgreSQL {} is too old; outbox-relay needs 14 or newer",
            version / 10_000
        )));
    }
    Ok((origin, next_xid))
}

/// The table as the server spells it, and its shape.
///
/// # Errors
/// [`Fault::Refused`] if it is missing or can't be read.
pub(crate) async fn shape(
    client: &Client,
    settings: &CaptureSettings,
) -> Result<(String, Shape), Fault> {
    let rows = client
        .query_typed(
            include_str!("../../../sql/table/columns.sql"),
            &[(&settings.table, Type::TEXT)],
        )
        .await?;
    let mut found = BTreeMap::new();
    let mut table = settings.table.clone();
    for row in &rows {
        table = row.try_get(0)?;
        found.insert(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?);
    }
    let shape = Shape::new(&table, &settings.columns, &found)?;
    Ok((table, shape))
}

impl Connection {
    async fn rows(&self, xids: &[Xid]) -> Result<Vec<(Xid, Event)>, Fault> {
        let xids: Vec<String> = xids.iter().map(ToString::to_string).collect();
        let stream = self
            .client
            .query_typed_raw(&self.sql.rows, [(xids, Type::TEXT_ARRAY)])
            .await?;
        let mut stream = pin!(stream);
        let (mut rows, mut route) = (Vec::new(), self.route.clone());
        while let Some(row) = stream.try_next().await? {
            rows.push((xid(row.try_get(0)?)?, event(&mut route, &row)?));
        }
        Ok(rows)
    }

    async fn rollback(&self) -> Result<(), Fault> {
        Ok(self.client.batch_execute("rollback").await?)
    }
}

async fn fetched(client: &Client, count: u64) -> Result<Vec<Planned>, Fault> {
    let fetch = format!("fetch forward {count} from plan");
    let rows = client.query_typed(&fetch, &[]).await?;
    rows.iter().map(planned).collect()
}

fn planned(row: &Row) -> Result<Planned, Fault> {
    Ok(Planned {
        xid: xid(row.try_get(0)?)?,
        last_seq: row.try_get(1)?,
        events: unsigned(row.try_get(2)?),
        bytes: unsigned(row.try_get(3)?),
        ids: row.try_get(4)?,
    })
}

fn snapshot(text: &str) -> Result<Snapshot, Fault> {
    text.parse()
        .map_err(|error: NotASnapshot| Fault::Defect(error.to_string()))
}
