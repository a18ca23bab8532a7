//! The [`Shell`] of production: PostgreSQL, by a pool for questions and a replication connection for the stream.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::make::{primary, written};
use super::shell::{Here, Present, Shell, SlotMade};
use super::slot::{Slot, warnings};
use super::timeline::{self, Left};
use super::wire::{Wire, WireStream};
use crate::capture::CaptureSettings;
use crate::capture::columns::names;
use crate::capture::registry::{self, Registration};
use crate::capture::table::origin;
use crate::database::{Database, Value, unsigned, xid};
use crate::fault::{Fault, Server};
use crate::position::{Lsn, Origin, Position, Snapshot};

/// How long a walsender that had our slot before may take to end by itself.
const SLOT_PATIENCE: Duration = Duration::from_millis(300);
/// How long it may take to end when it was told to.
const SLOT_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module's text.
pub struct PostgresShell {
    settings: CaptureSettings,
    database: Database,
    pool: Pool,
    connection: Option<Connection>,
}

/// The connection for questions, and the statements for the table as it was found.
struct Connection {
    client: Object,
    present: String,
    made: String,
    may_let_go: bool,
}

impl PostgresShell {
    /// Connects when it is told to.
    ///
    /// # Errors
    /// [`Fault::Defect`] if the pool can't be built.
    pub fn new(settings: CaptureSettings, database: &Database) -> Result<Self, Fault> {
        Ok(Self {
            settings,
            database: database.clone(),
            // One for questions, one for acknowledging.
            pool: database.pool(2)?,
            connection: None,
        })
    }

    fn connection(&self) -> Result<&Connection, Fault> {
        self.connection
            .as_ref()
            .ok_or_else(|| Fault::Defect("the capture asks without a connection".into()))
    }

    /// Logs in where `origin` is; a host of the address that is another server is passed over.
    async fn wire(&self, origin: &Origin) -> Result<Wire, Fault> {
        // Asked on the connection that will stream, so that nothing can come between.
        let is_there = async |wire: &mut Wire| {
            let system = wire.query_one("IDENTIFY_SYSTEM").await?;
            let (system_id, timeline) = (text(&system, 0), text(&system, 1));
            match system_id == origin.system_id && timeline == origin.timeline.to_string() {
                true => Ok(()),
                false => Err(Fault::Unavailable(
                    Server::Postgres,
                    "the replication connection reached another server than the one that was asked before".into(),
                )),
            }
        };
        primary(&self.database, is_there).await
    }

    async fn terminate(&self) -> Result<(), Fault> {
        let slot: [Value; 1] = [(&self.settings.slot, Type::TEXT)];
        let terminate = include_str!("../../../sql/wal/terminate.sql");
        self.connection()?
            .client
            .query_typed(terminate, &slot)
            .await?;
        Ok(())
    }
}

fn text(row: &[Option<String>], column: usize) -> String {
    row.get(column).cloned().flatten().unwrap_or_default()
}

impl Shell for PostgresShell {
    type Stream = WireStream;

    fn is_connected(&self) -> bool {
        (self.connection.as_ref()).is_some_and(|connection| !connection.client.is_closed())
    }

    async fn connect(&mut self) -> Result<Here, Fault> {
        self.connection = None;
        let client = self.pool.get().await?;
        let settings = &self.settings;
        let (origin, _) = origin(&client, &settings.table, "wal").await?;
        let columns = include_str!("../../../sql/table/columns.sql");
        let found = client
            .query_typed(columns, &[(&settings.table, Type::TEXT)])
            .await?;
        let has_xid = found.iter().try_fold(false, |known, row| {
            Ok::<_, Fault>(known || row.try_get::<_, &str>(1)? == settings.columns.xid)
        })?;
        let fill = |sql: &str| names(&settings.table, &settings.columns, sql);
        let (highest, older) = match has_xid {
            true => (
                fill(include_str!("../../../sql/wal/highest.sql")),
                fill("pg_visible_in_snapshot({xid}, s.snapshot::pg_snapshot)"),
            ),
            false => ("null::text".to_owned(), "true".to_owned()),
        };
        // Behind all that was committed so far; the nudge makes the stream come past it even where nothing else happens.
        let committed = written(&client).await?;
        client
            .batch_execute(include_str!("../../../sql/table/nudge.sql"))
            .await?;
        let values: [Value; 2] = [(&settings.slot, Type::TEXT), (&settings.table, Type::TEXT)];
        let here = include_str!("../../../sql/wal/here.sql");
        let row = client.query_typed_one(here, &values).await?;
        let slot = slot(&row)?;
        let keeps_without_limit: bool = row.try_get(9)?;
        let warnings = slot
            .as_ref()
            .map(|slot| warnings(&settings.slot, slot, keeps_without_limit));
        let published = row.try_get(8)?;
        self.connection = Some(Connection {
            may_let_go: row.try_get(10)?,
            client,
            present: include_str!("../../../sql/wal/present.sql").replace("{highest}", &highest),
            made: fill(include_str!("../../../sql/wal/made.sql")).replace("{older}", &older),
        });
        Ok(Here {
            origin,
            next_xid: xid(row.try_get(11)?)?,
            committed,
            slot,
            warnings: warnings.unwrap_or_default(),
            published,
        })
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
        registry::registrations(&self.connection()?.client, &self.settings).await
    }

    async fn present(&mut self) -> Result<Present, Fault> {
        let Connection {
            client, present, ..
        } = self.connection()?;
        let row = client.query_typed_one(present, &[]).await?;
        Ok(Present {
            snapshot: snapshot(row.try_get(0)?)?,
            highest: row.try_get::<_, Option<&str>>(1)?.map(xid).transpose()?,
            written: lsn(row.try_get(2)?)?,
        })
    }

    async fn left(&mut self, origin: &Origin) -> Result<Vec<Left>, Fault> {
        timeline::left(&self.database, origin.timeline).await
    }

    async fn let_go(&mut self) -> Result<(), Fault> {
        let connection = self.connection()?;
        if connection.may_let_go {
            let let_go = include_str!("../../../sql/wal/let_go.sql");
            connection.client.query_typed(let_go, &[]).await?;
        }
        Ok(())
    }

    async fn slot_made(&mut self) -> Result<Option<SlotMade>, Fault> {
        let Connection { client, made, .. } = self.connection()?;
        let rows = client
            .query_typed(made, &[(&self.settings.slot, Type::TEXT)])
            .await?;
        let made = |row: &Row| {
            Ok(SlotMade {
                consistent: lsn(row.try_get(0)?)?,
                older_rows: row.try_get(1)?,
                seen: row
                    .try_get::<_, Option<&str>>(2)?
                    .map(snapshot)
                    .transpose()?,
            })
        };
        rows.first().map(made).transpose()
    }

    async fn stream(&mut self, origin: &Origin, from: Lsn) -> Result<WireStream, Fault> {
        let slot = &self.settings.slot;
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} (proto_version '1', publication_names '\"{slot}\"', messages 'true', \
             binary 'true')"
        );
        let since = Instant::now();
        let mut told = false;
        loop {
            let busy = match self.wire(origin).await?.start(&command, from).await {
                Err(fault @ Fault::Unavailable(..)) => fault,
                end => return end,
            };
            if since.elapsed() >= SLOT_TIMEOUT {
                return Err(busy);
            }
            if since.elapsed() >= SLOT_PATIENCE && !told {
                told = true;
                self.terminate().await?;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        let client = self.pool.get().await?;
        registry::acknowledge(&client, &self.settings, position).await
    }
}

/// The first eight columns of `here.sql`.
fn slot(row: &Row) -> Result<Option<Slot>, Fault> {
    let Some(plugin) = row.try_get(0)? else {
        return Ok(None);
    };
    let confirmed: Option<&str> = row.try_get(5)?;
    Ok(Some(Slot {
        plugin,
        is_of_this_database: row.try_get(1)?,
        inactive_since: row.try_get(2)?,
        wal_status: row.try_get(3)?,
        invalidation: row.try_get(4)?,
        confirmed: confirmed.map_or(Ok(Lsn::from(0)), lsn)?,
        retained_bytes: unsigned(row.try_get(6)?),
        safe_bytes: row.try_get(7)?,
    }))
}

fn snapshot(text: &str) -> Result<Snapshot, Fault> {
    text.parse()
        .map_err(|_| Fault::Defect(format!("{text:?} is no snapshot")))
}

pub(super) fn lsn(text: &str) -> Result<Lsn, Fault> {
    text.parse()
        .map_err(|_| Fault::Defect(format!("{text:?} is no LSN")))
}
