//! Capture from the outbox table, by snapshot difference. Needs no slot, no `wal_level`, no superuser.
//!
//! A *window* is what a new snapshot sees and the position's snapshot did not. Its transactions are listed once, by a
//! cursor, in order of `max(seq)`; the rows of each batch are then read by transaction id, through the one index. A
//! window that is larger than a batch is cut between transactions; the position names the window until it is done.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::{Object, Pool};
use futures_util::TryStreamExt;
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};
use uuid::Uuid;

pub use super::columns::Columns;
use super::columns::Statements;
pub use super::window::BatchLimits;
use super::window::{Cut, Planned, assemble, cut};
use super::{Capture, Start};
use crate::database::Database;
use crate::event::{Batch, Event, Slice, SliceSource};
use crate::fault::{Fault, Server};
use crate::position::{Origin, Position, Snapshot, Window, Xid};

/// Transactions fetched from the plan at a time: ids and sizes only, 32 bytes each.
const PLAN_ROWS: u64 = 5_000;
/// An open window pins the server's xmin, so it is closed after this time and opened again from the position.
const WINDOW_OPEN_MAX: Duration = Duration::from_secs(10);
/// How long WAL may take to be flushed by itself before a synchronous commit of ours nudges it.
const FLUSH_PATIENCE: Duration = Duration::from_millis(5);

/// Settings of a [`TableCapture`].
#[derive(Clone, Debug)]
pub struct TableSettings {
    /// Name of the relay, for `outbox.relay`.
    pub name: String,
    /// Host and process, for `outbox.relay.lease_holder`.
    pub instance: String,
    /// Whether the relay is registered in `outbox.relay`. A dry run into memory is not: it keeps no position.
    pub registers: bool,
    /// `schema.table`.
    pub table: String,
    /// Its columns.
    pub columns: Columns,
    /// Topic of rows without one; `{aggregate_type}` stands for the row's.
    pub route: String,
    /// Limits of a batch.
    pub batch: BatchLimits,
    /// How long the first transaction of a window waits for others to join its batch; more of them share the cost of one
    /// Kafka transaction.
    pub linger: Duration,
    /// Time between two looks, when there was something.
    pub poll_min: Duration,
    /// Time between two looks, when there was nothing for long.
    pub poll_max: Duration,
}

/// See the module's text.
pub struct TableCapture {
    settings: TableSettings,
    pool: Pool,
    session: Option<Session>,
    poll: Duration,
}

/// The reading connection with all that holds for as long as it lives.
struct Session {
    client: Object,
    origin: Origin,
    sql: Arc<Statements>,
    route: Arc<Route>,
    batch: BatchLimits,
    linger: Duration,
    window: Option<OpenWindow>,
    /// A transaction may be open on the connection: set before BEGIN, so that a cancelled call is cleaned up.
    in_transaction: bool,
    /// The snapshot in which nothing was found, and the position that looked.
    nothing_at: Option<(String, Position)>,
}

/// A window with its plan under way.
struct OpenWindow {
    seen: Snapshot,
    until: Snapshot,
    /// Opened anew at the server's present, not resumed in its middle.
    fresh: bool,
    planned: VecDeque<Planned>,
    plan_exhausted: bool,
    opened: Instant,
    stands_at: Position,
}

impl TableCapture {
    /// Connects at the first call of [`Capture::next`] or [`Capture::genesis`].
    ///
    /// # Errors
    /// [`Fault::Setting`] if the route template or the table's name can't be used.
    pub fn new(settings: TableSettings, database: &Database) -> Result<Self, Fault> {
        if settings.table.split('.').count() != 2 || settings.table.split('.').any(str::is_empty) {
            return Err(Fault::Setting(format!(
                "table {:?} is not usable; it would look like outbox.events",
                settings.table
            )));
        }
        // One for reading, one for a streaming transaction, one for acknowledging.
        let pool = database.pool(3)?;
        let poll = settings.poll_min;
        Ok(Self {
            settings,
            pool,
            session: None,
            poll,
        })
    }

    async fn session(&mut self) -> Result<&mut Session, Fault> {
        let live = match self.session.take() {
            Some(session) if !session.client.is_closed() => session,
            _ => Session::open(&self.settings, &self.pool).await?,
        };
        Ok(self.session.insert(live))
    }

    async fn look(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        let pool = self.pool.clone();
        let session = self.session().await?;
        let batch = session.look(after, &pool).await;
        if batch.is_err() {
            // A failed statement leaves the connection in a state that is not worth knowing.
            if let Some(session) = self.session.take() {
                drop(Object::take(session.client));
            }
        }
        batch
    }
}

impl Capture for TableCapture {
    async fn genesis(&mut self, start: Start) -> Result<Position, Fault> {
        let (name, registers) = (self.settings.name.clone(), self.settings.registers);
        let session = self.session().await?;
        if registers && registered(&session.client, &name, &session.origin.table).await? {
            return Err(Fault::Refused(format!(
                "relay {name} is registered in outbox.relay but has no position in Kafka: its position topic was deleted or this is \
                 another Kafka cluster; restore the topic, or, if all may be published again, delete the row of {name} from outbox.relay"
            )));
        }
        let origin = session.origin.clone();
        let seen = match start {
            Start::Beginning => Snapshot::empty(),
            Start::Now => session.present().await?,
        };
        Ok(Position::at(origin, seen))
    }

    async fn next(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        let mut batch = self.look(after).await?;
        if batch.is_none() {
            sleep(self.poll).await;
            batch = self.look(after).await?;
        }
        self.poll = match batch {
            Some(_) => self.settings.poll_min,
            None => (self.poll * 2).min(self.settings.poll_max),
        };
        Ok(batch)
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        if !self.settings.registers {
            return Ok(());
        }
        let client = self.pool.get().await?;
        let (origin, name) = (&position.origin, &self.settings.name);
        let json =
            serde_json::to_string(position).map_err(|error| Fault::Defect(error.to_string()))?;
        let timeline =
            i32::try_from(origin.timeline).map_err(|error| Fault::Defect(error.to_string()))?;
        let values: [(&(dyn ToSql + Sync), Type); 7] = [
            (name, Type::TEXT),
            (&origin.table, Type::TEXT),
            (&origin.capture, Type::TEXT),
            (&origin.system_id, Type::TEXT),
            (&timeline, Type::INT4),
            (&json, Type::TEXT),
            (&self.settings.instance, Type::TEXT),
        ];
        match client
            .query_typed(include_str!("../../sql/relay/acknowledge.sql"), &values)
            .await
        {
            Err(error)
                if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) =>
            {
                return Err(served_by_another(&origin.table, name));
            }
            result => result?,
        };
        client
            .query_typed(
                include_str!("../../sql/relay/mark.sql"),
                &[(name, Type::TEXT), (&json, Type::TEXT)],
            )
            .await?;
        Ok(())
    }
}

/// Where the relay of `settings` would read: asked once for each connection.
///
/// # Errors
/// [`Fault::Refused`] if the server is no primary, or the table is missing or of a shape that can't be read.
pub async fn origin(client: &tokio_postgres::Client, table: &str) -> Result<(Origin, Xid), Fault> {
    if client
        .query_typed_one(include_str!("../../sql/table/standby.sql"), &[])
        .await?
        .try_get(0)?
    {
        return Err(Fault::Unavailable(
            Server::Postgres,
            "it is a standby; the relay reads from the primary".into(),
        ));
    }
    let row = client
        .query_typed_one(include_str!("../../sql/table/origin.sql"), &[])
        .await?;
    let origin = Origin {
        system_id: row.try_get(0)?,
        timeline: u32::try_from(row.try_get::<_, i32>(1)?)
            .map_err(|error| Fault::Defect(error.to_string()))?,
        database_oid: row.try_get(2)?,
        table: table.to_owned(),
        capture: "table".to_owned(),
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

/// Whether the name is registered for the table; a conflict with another name or table is a fault.
async fn registered(
    client: &tokio_postgres::Client,
    name: &str,
    table: &str,
) -> Result<bool, Fault> {
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&name, Type::TEXT), (&table, Type::TEXT)];
    let rows = client
        .query_typed(include_str!("../../sql/relay/registered.sql"), &values)
        .await?;
    for row in &rows {
        let (known, serves): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        if known != name {
            return Err(served_by_another(table, known));
        }
        if serves != table {
            return Err(Fault::Refused(format!(
                "relay {name} serves table {serves}; give the relay of {table} another --name"
            )));
        }
    }
    Ok(!rows.is_empty())
}

fn served_by_another(table: &str, name: &str) -> Fault {
    Fault::Refused(format!(
        "table {table} is served by another relay than this one (registered: {name}); one name serves a table: use it, \
         or take over with `outbox-relay adopt --from {name}`"
    ))
}

impl Session {
    async fn open(settings: &TableSettings, pool: &Pool) -> Result<Self, Fault> {
        let client = pool.get().await?;
        let (origin, _) = origin(&client, &settings.table).await?;
        let rows = client
            .query_typed(
                include_str!("../../sql/table/columns.sql"),
                &[(&settings.table, Type::TEXT)],
            )
            .await?;
        let mut found = BTreeMap::new();
        let mut table = settings.table.clone();
        for row in &rows {
            table = row.try_get(0)?;
            found.insert(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?);
        }
        let sql = Arc::new(Statements::new(&table, &settings.columns, &found)?);
        if settings.registers {
            registered(&client, &settings.name, &origin.table).await?;
        }
        if let Some(row) = client.query_typed(&sql.foreign, &[]).await?.first() {
            let xid: &str = row.try_get(0)?;
            return Err(Fault::Refused(format!(
                "table {table} holds rows of transaction {xid}, which this server has not reached: they came from another cluster \
                 (a restored dump, logical replication); publish or remove them, see the README, \"Rows of another cluster\""
            )));
        }
        Ok(Self {
            client,
            origin,
            sql,
            route: Arc::new(Route::new(&settings.route)),
            batch: settings.batch,
            linger: settings.linger,
            window: None,
            in_transaction: false,
            nothing_at: None,
        })
    }

    /// All that is committed and durable now, as a position may claim it.
    async fn present(&mut self) -> Result<Snapshot, Fault> {
        self.begin().await?;
        let opened = self.open_snapshot(&Snapshot::empty()).await?;
        self.end().await?;
        self.durable(&opened.written).await?;
        Ok(opened.snapshot.trimmed(&Snapshot::empty(), opened.highest))
    }

    async fn look(&mut self, after: &Position, pool: &Pool) -> Result<Option<Batch>, Fault> {
        let usable = self
            .window
            .as_ref()
            .is_some_and(|w| w.stands_at == *after && w.opened.elapsed() < WINDOW_OPEN_MAX);
        if !usable {
            self.end().await?;
            self.window = self.open_window(after).await?;
        }
        // Taken out while it is used: a cancelled call leaves no window behind, and the next one opens it anew.
        let Some(mut window) = self.window.take() else {
            return Ok(None);
        };
        let Some(batch) = self.next_batch(&mut window, pool).await? else {
            return Ok(None);
        };
        if window.stands_at.window.is_some() {
            self.window = Some(window);
        } else {
            self.end().await?;
        }
        Ok(Some(batch))
    }

    /// `None` if there is nothing after the position.
    async fn open_window(&mut self, after: &Position) -> Result<Option<OpenWindow>, Fault> {
        let resumed = after.window.as_ref();
        if resumed.is_none() && self.unchanged(after).await? {
            return Ok(None);
        }
        self.begin().await?;
        let mut opened = self.open_snapshot(&after.seen).await?;
        if resumed.is_none() && !self.linger.is_zero() && opened.found() {
            self.end().await?;
            sleep(self.linger).await;
            self.begin().await?;
            opened = self.open_snapshot(&after.seen).await?;
        }
        self.origin.accepts(after, opened.snapshot.xmax())?;
        if resumed.is_none() && !opened.found() {
            self.end().await?;
            self.nothing_at = Some((opened.snapshot.to_string(), after.clone()));
            return Ok(None);
        }
        let (until, last_seq) = match resumed {
            Some(window) => (window.until.clone(), window.last_seq),
            None => (
                opened.snapshot.trimmed(&after.seen, opened.highest),
                i64::MIN + 1,
            ),
        };
        self.client
            .batch_execute(&self.sql.plan(&after.seen, &until, last_seq))
            .await?;
        self.durable(&opened.written).await?;
        Ok(Some(OpenWindow {
            seen: after.seen.clone(),
            until,
            fresh: resumed.is_none(),
            planned: VecDeque::new(),
            plan_exhausted: false,
            opened: Instant::now(),
            stands_at: after.clone(),
        }))
    }

    /// Idle cost: one statement that touches no table.
    async fn unchanged(&mut self, after: &Position) -> Result<bool, Fault> {
        let Some((snapshot, position)) = &self.nothing_at else {
            return Ok(false);
        };
        if position != after {
            return Ok(false);
        }
        let row = self
            .client
            .query_typed_one(include_str!("../../sql/table/snapshot.sql"), &[])
            .await?;
        Ok(row.try_get::<_, &str>(0)? == snapshot)
    }

    async fn next_batch(
        &mut self,
        window: &mut OpenWindow,
        pool: &Pool,
    ) -> Result<Option<Batch>, Fault> {
        self.fetch_plan(window).await?;
        let Some(cut) = cut(&mut window.planned, self.batch) else {
            // Only a resumed window can turn out empty: its rows were deleted. It is done.
            window.stands_at = Position::at(self.origin.clone(), window.until.clone());
            return Ok(
                (!window.fresh).then(|| Batch::of(Vec::new(), window.stands_at.clone(), false))
            );
        };
        self.fetch_plan(window).await?;
        let last = match &cut {
            Cut::Whole(whole) => whole.last().map_or(0, |planned| planned.last_seq),
            Cut::Large(one) => one.last_seq,
        };
        let done = window.plan_exhausted && window.planned.is_empty();
        window.stands_at = match done {
            true => Position::at(self.origin.clone(), window.until.clone()),
            false => Position {
                origin: self.origin.clone(),
                seen: window.seen.clone(),
                window: Some(Window {
                    until: window.until.clone(),
                    last_seq: last,
                }),
            },
        };
        let (after, catches_up) = (window.stands_at.clone(), done && window.fresh);
        Ok(Some(match cut {
            Cut::Whole(whole) => Batch::of(self.read_whole(&whole).await?, after, catches_up),
            Cut::Large(one) => Batch::streaming(
                Box::new(self.stream(one, pool)),
                one.events,
                after,
                catches_up,
            ),
        }))
    }

    /// Fills the plan up to a batch's worth.
    async fn fetch_plan(&mut self, window: &mut OpenWindow) -> Result<(), Fault> {
        while !window.plan_exhausted
            && (window.planned.len() as u64) < self.batch.events_max.min(PLAN_ROWS) + 1
        {
            let rows = self
                .client
                .query_typed(&format!("fetch forward {PLAN_ROWS} from plan"), &[])
                .await?;
            window.plan_exhausted = (rows.len() as u64) < PLAN_ROWS;
            for row in &rows {
                window.planned.push_back(Planned {
                    xid: xid(row.try_get(0)?)?,
                    last_seq: row.try_get(1)?,
                    events: unsigned(row.try_get(2)?),
                    bytes: unsigned(row.try_get(3)?),
                });
            }
        }
        Ok(())
    }

    async fn read_whole(&self, whole: &[Planned]) -> Result<Vec<Slice>, Fault> {
        let xids: Vec<String> = whole
            .iter()
            .map(|planned| planned.xid.to_string())
            .collect();
        let stream = self
            .client
            .query_typed_raw(&self.sql.rows, [(xids, Type::TEXT_ARRAY)])
            .await?;
        let mut stream = pin!(stream);
        let mut rows = Vec::new();
        while let Some(row) = stream.try_next().await? {
            rows.push((xid(row.try_get(0)?)?, self.route.event(&row)?));
        }
        let transactions = assemble(whole, rows).ok_or_else(|| {
            Fault::Defect("a snapshot showed other rows than its plan counted".into())
        })?;
        Ok(transactions
            .into_iter()
            .map(|(xid, events)| Slice {
                tx_id: tx_id(&self.origin, xid),
                tx_count: events.len() as u64,
                first_index: 0,
                events,
            })
            .collect())
    }

    fn stream(&self, planned: Planned, pool: &Pool) -> LargeTransaction {
        let page = (planned.events * self.batch.bytes_max / planned.bytes.max(1))
            .clamp(1, self.batch.events_max);
        LargeTransaction {
            pool: pool.clone(),
            sql: self.sql.clone(),
            route: self.route.clone(),
            tx_id: tx_id(&self.origin, planned.xid),
            planned,
            page: i64::try_from(page / 2 + 1).unwrap_or(i64::MAX),
            last_seq: i64::MIN,
            index: 0,
        }
    }

    async fn begin(&mut self) -> Result<(), Fault> {
        self.in_transaction = true;
        Ok(self
            .client
            .batch_execute("begin isolation level repeatable read read only")
            .await?)
    }

    async fn end(&mut self) -> Result<(), Fault> {
        self.window = None;
        if self.in_transaction {
            self.client.batch_execute("rollback").await?;
            self.in_transaction = false;
        }
        Ok(())
    }

    async fn open_snapshot(&self, seen: &Snapshot) -> Result<Opened, Fault> {
        let open: Vec<String> = seen.in_progress().iter().map(ToString::to_string).collect();
        let values: [(&(dyn ToSql + Sync), Type); 2] = [
            (&seen.xmax().to_string(), Type::TEXT),
            (&open, Type::TEXT_ARRAY),
        ];
        let row = self.client.query_typed_one(&self.sql.open, &values).await?;
        Ok(Opened {
            snapshot: row
                .try_get::<_, &str>(0)?
                .parse()
                .map_err(|error: crate::position::NotASnapshot| Fault::Defect(error.to_string()))?,
            written: row.try_get(1)?,
            highest: row.try_get::<_, Option<&str>>(2)?.map(xid).transpose()?,
            late: row.try_get(3)?,
        })
    }

    /// Waits until all WAL up to `written` is flushed: a visible row of an asynchronous commit can still vanish.
    async fn durable(&self, written: &str) -> Result<(), Fault> {
        let since = Instant::now();
        loop {
            let flushed = include_str!("../../sql/table/flushed.sql");
            if self
                .client
                .query_typed_one(flushed, &[(&written, Type::TEXT)])
                .await?
                .try_get(0)?
            {
                return Ok(());
            }
            if since.elapsed() >= FLUSH_PATIENCE {
                // On a connection of its own: this one may be inside the window's read-only transaction.
                let nudge = self.client_for_nudge().await?;
                nudge
                    .batch_execute(include_str!("../../sql/table/nudge.sql"))
                    .await?;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn client_for_nudge(&self) -> Result<Object, Fault> {
        let pool = Object::pool(&self.client)
            .ok_or_else(|| Fault::Unavailable(Server::Postgres, "the pool is closed".into()))?;
        Ok(pool.get().await?)
    }
}

/// What `sql/table/open.sql` answers.
struct Opened {
    snapshot: Snapshot,
    /// The end of WAL after the snapshot was taken.
    written: String,
    /// The highest transaction above the position of which a row is visible.
    highest: Option<Xid>,
    /// Rows of transactions are visible that were in progress at the position.
    late: bool,
}

impl Opened {
    fn found(&self) -> bool {
        self.highest.is_some() || self.late
    }
}

/// A transaction that is too large for memory, page by page.
struct LargeTransaction {
    pool: Pool,
    sql: Arc<Statements>,
    route: Arc<Route>,
    tx_id: Arc<str>,
    planned: Planned,
    page: i64,
    last_seq: i64,
    index: u64,
}

impl LargeTransaction {
    async fn page(&mut self) -> Result<Option<Slice>, Fault> {
        if self.index == self.planned.events {
            return Ok(None);
        }
        let client = self.pool.get().await?;
        let values: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.planned.xid.to_string(), Type::TEXT),
            (&self.last_seq, Type::INT8),
            (&self.page, Type::INT8),
        ];
        let rows = client.query_typed(&self.sql.rows_of_one, &values).await?;
        let events: Vec<Event> = rows
            .iter()
            .map(|row| self.route.event(row))
            .collect::<Result<_, _>>()?;
        let Some(last) = events.last() else {
            return Err(Fault::Refused(format!(
                "rows of transaction {} were deleted while it was being published; writers must not delete rows",
                self.tx_id
            )));
        };
        self.last_seq = last.seq;
        let first_index = self.index;
        self.index += events.len() as u64;
        Ok(Some(Slice {
            tx_id: self.tx_id.clone(),
            tx_count: self.planned.events,
            first_index,
            events,
        }))
    }
}

impl SliceSource for LargeTransaction {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Slice>, Fault>> + Send + '_>> {
        Box::pin(self.page())
    }
}

/// Makes events of rows: topic from the row or the template.
struct Route {
    before: String,
    after: String,
}

impl Route {
    fn new(template: &str) -> Self {
        let (before, after) = template
            .split_once("{aggregate_type}")
            .unwrap_or((template, ""));
        Self {
            before: before.to_owned(),
            after: after.to_owned(),
        }
    }

    /// The columns in the order of `columns::select_list`, after the xid.
    fn event(&self, row: &Row) -> Result<Event, Fault> {
        let aggregate_type: Option<&str> = row.try_get(4)?;
        let topic = match row.try_get::<_, Option<&str>>(3)? {
            Some(topic) => Arc::from(topic),
            None => Arc::from(format!(
                "{}{}{}",
                self.before,
                aggregate_type.unwrap_or_default(),
                self.after
            )),
        };
        let bytes = |column: Option<&[u8]>| column.map(Bytes::copy_from_slice);
        Ok(Event {
            seq: row.try_get(1)?,
            id: row.try_get::<_, Uuid>(2)?,
            topic,
            key: bytes(row.try_get::<_, Option<&str>>(5)?.map(str::as_bytes)),
            event_type: row.try_get(6)?,
            payload: bytes(row.try_get(7)?),
            headers: headers(row.try_get(8)?),
            occurred_at_ms: row.try_get::<_, Milliseconds>(9)?.0,
        })
    }
}

/// Strings as they are, null as null, all else as JSON.
fn headers(text: Option<&str>) -> Vec<(String, Option<Bytes>)> {
    use serde_json::{Map, Value};
    let Some(Ok(map)) = text.map(serde_json::from_str::<Map<String, Value>>) else {
        return Vec::new();
    };
    map.into_iter()
        .map(|(name, value)| {
            let value = match value {
                Value::Null => None,
                Value::String(text) => Some(Bytes::from(text)),
                other => Some(Bytes::from(other.to_string())),
            };
            (name, value)
        })
        .collect()
}

/// A `timestamptz` in milliseconds since 1970, held within what Kafka takes.
struct Milliseconds(i64);

impl<'a> FromSql<'a> for Milliseconds {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        /// PostgreSQL counts microseconds from 2000-01-01.
        const EPOCH_2000_MS: i64 = 946_684_800_000;
        /// The year 9999; `infinity` ends here.
        const LATEST_MS: i64 = 253_402_300_799_999;
        let micros = i64::from_be_bytes(raw.try_into()?);
        // From 1 on: to librdkafka 0 means "now", and the broker refuses negative times.
        Ok(Self(
            (micros.div_euclid(1000))
                .saturating_add(EPOCH_2000_MS)
                .clamp(1, LATEST_MS),
        ))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

fn tx_id(origin: &Origin, xid: Xid) -> Arc<str> {
    Arc::from(format!("{}-{}-{xid}", origin.system_id, origin.timeline))
}

fn xid(text: &str) -> Result<Xid, Fault> {
    text.parse()
        .map_err(|_| Fault::Defect(format!("{text:?} is not a transaction id")))
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_from_the_template() {
        let route = Route::new("outbox.event.{aggregate_type}.v1");
        assert_eq!(
            (route.before.as_str(), route.after.as_str()),
            ("outbox.event.", ".v1")
        );
    }

    #[test]
    fn header_values_keep_their_form() {
        let read = headers(Some(
            r#"{"traceparent": "00-ab", "n": 1, "none": null, "o": {"a": [1]}}"#,
        ));
        let expected = [
            ("traceparent", Some("00-ab")),
            ("n", Some("1")),
            ("none", None),
            ("o", Some(r#"{"a":[1]}"#)),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.map(Bytes::from_static_str)))
            .collect();
        assert_eq!(read, expected);
        assert!(headers(None).is_empty());
    }

    trait FromStaticStr {
        fn from_static_str(text: &'static str) -> Bytes;
    }
    impl FromStaticStr for Bytes {
        fn from_static_str(text: &'static str) -> Bytes {
            Bytes::from_static(text.as_bytes())
        }
    }

    #[test]
    fn times_are_milliseconds_and_stay_in_range() {
        let read = |micros: i64| {
            Milliseconds::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes())
                .unwrap()
                .0
        };
        assert_eq!(read(0), 946_684_800_000);
        assert_eq!(read(1_999), 946_684_800_001);
        assert_eq!(read(i64::MIN), 1);
        assert_eq!(read(i64::MAX), 253_402_300_799_999);
    }
}
