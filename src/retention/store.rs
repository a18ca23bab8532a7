//! The statements, on a connection of their own.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::decide::{Leaf, Old};
use crate::capture::CaptureSettings;
use crate::capture::columns::Shape;
use crate::capture::table::{origin, shape};
use crate::database::{Database, Value, unsigned, xid};
use crate::fault::Fault;
use crate::position::{Origin, Position, Snapshot, Xid};

/// How long a statement waits for a lock. Deleting takes none that a writer waits for, so it only bounds our own wait.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a statement may take in all.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A row's place in the index.
pub type Place = (Xid, i64);

/// A connection with what was found out on it.
pub struct Store {
    client: Client,
    settings: CaptureSettings,
    shape: Shape,
    /// The table, as the server spells it, quoted.
    pub table: String,
    /// Where it is.
    pub origin: Origin,
}

impl Store {
    /// Connects.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the table has no columns for transaction and order.
    pub async fn connect(database: &Database, settings: &CaptureSettings) -> Result<Self, Fault> {
        let client = database.connect().await?;
        let (origin, _) = origin(&client, &settings.table, "table").await?;
        // Before the search path is taken away, by which its name is looked up as all others do.
        let (_, shape) = shape(&client, settings).await?;
        let milliseconds = |time: Duration| time.as_millis().to_string();
        let session = include_str!("../../sql/retention/session.sql")
            .replace("{lock_ms}", &milliseconds(LOCK_TIMEOUT))
            .replace("{statement_ms}", &milliseconds(STATEMENT_TIMEOUT));
        client.batch_execute(&session).await?;
        Ok(Self {
            client,
            settings: settings.clone(),
            table: shape.fill("{table}"),
            shape,
            origin,
        })
    }

    /// Marks what was acknowledged last, if nothing new came since the last mark.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn mark(&self) -> Result<(), Fault> {
        let mark = include_str!("../../sql/retention/mark.sql");
        let CaptureSettings { name, instance, .. } = &self.settings;
        let values: [Value; 2] = [(name, Type::TEXT), (instance, Type::TEXT)];
        self.client.query_typed(mark, &values).await?;
        Ok(())
    }

    /// The newest mark that is older than so many minutes.
    ///
    /// # Errors
    /// [`Fault::Refused`] if it can't be read.
    pub async fn old(&self, minutes: i32) -> Result<Option<Old>, Fault> {
        let old = include_str!("../../sql/retention/old.sql");
        let CaptureSettings { name, instance, .. } = &self.settings;
        let values: [Value; 3] = [
            (name, Type::TEXT),
            (instance, Type::TEXT),
            (&minutes, Type::INT4),
        ];
        let rows = self.client.query_typed(old, &values).await?;
        let read = |row: &Row| {
            Ok(Old {
                at: row.try_get(0)?,
                position: position(row.try_get(1)?)?,
                acknowledged: position(row.try_get(2)?)?,
            })
        };
        rows.first().map(read).transpose()
    }

    /// Transactions that were passed over and are not settled: parked, or held behind such.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn unsettled(&self) -> Result<Vec<Xid>, Fault> {
        let unsettled = include_str!("../../sql/retention/unsettled.sql");
        let name: [Value; 1] = [(&self.settings.name, Type::TEXT)];
        let rows = self.client.query_typed(unsettled, &name).await?;
        rows.iter().map(|row| xid(row.try_get(0)?)).collect()
    }

    /// The next transaction id that the server will give out.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn next_xid(&self) -> Result<Xid, Fault> {
        let next_xid = include_str!("../../sql/move/next_xid.sql");
        let row = self.client.query_typed_one(next_xid, &[]).await?;
        xid(row.try_get(0)?)
    }

    /// The leaves of a partitioned table, as the server spells them.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn leaves(&self) -> Result<Vec<String>, Fault> {
        let leaves = include_str!("../../sql/retention/leaves.sql");
        let rows = self
            .client
            .query_typed(leaves, &[(&self.table, Type::TEXT)])
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// What a leaf holds.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn leaf(&self, name: String, may_go: &Snapshot) -> Result<Leaf, Fault> {
        let leaf = self.filled(include_str!("../../sql/retention/leaf.sql"), &name, may_go);
        let row = self.client.query_typed_one(&leaf, &[]).await?;
        let (first, last): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(Leaf {
            name,
            rows: first.zip(last),
            stays: row.try_get(2)?,
        })
    }

    /// Empties a leaf if all in it may go; `false`: somebody is at work in it.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn truncate(&self, leaf: &str, may_go: &Snapshot) -> Result<bool, Fault> {
        let truncate = include_str!("../../sql/retention/truncate.sql");
        let truncate = self.filled(truncate, leaf, may_go);
        match self.client.batch_execute(&truncate).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes up to so many rows that may go behind `after`; answers the last one and how many. `None`: there are none.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn delete(
        &self,
        table: &str,
        may_go: &Snapshot,
        after: Place,
        rows: u32,
    ) -> Result<Option<(Place, u64)>, Fault> {
        let delete = include_str!("../../sql/retention/delete.sql");
        let delete = self
            .filled(delete, table, may_go)
            .replace("{after_xid}", &after.0.to_string())
            .replace("{after_seq}", &after.1.to_string())
            .replace("{rows}", &rows.to_string());
        let gone = self.client.query_typed(&delete, &[]).await?;
        let read = |row: &Row| {
            let last = (xid(row.try_get(0)?)?, row.try_get(1)?);
            Ok((last, unsigned(row.try_get(2)?)))
        };
        gone.first().map(read).transpose()
    }

    /// Deletes up to so many marks from before `at`; answers how many.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn prune(&self, at: &str, rows: u32) -> Result<u64, Fault> {
        let prune = include_str!("../../sql/retention/prune.sql");
        let values: [Value; 3] = [
            (&self.settings.name, Type::TEXT),
            (&at, Type::TEXT),
            (&i64::from(rows), Type::INT8),
        ];
        Ok(self.client.execute_typed(prune, &values).await?)
    }

    /// The statement for this table or leaf, and these transactions.
    fn filled(&self, sql: &str, table: &str, may_go: &Snapshot) -> String {
        let open: Vec<String> = may_go
            .in_progress()
            .iter()
            .map(ToString::to_string)
            .collect();
        let sql = sql
            .replace("{stays}", include_str!("../../sql/retention/stays.sql"))
            .replace("{table}", table)
            .replace("{xmax}", &may_go.xmax().to_string())
            .replace("{in_progress}", &format!("{{{}}}", open.join(",")));
        self.shape.fill(&sql)
    }
}

fn position(text: &str) -> Result<Position, Fault> {
    serde_json::from_str(text).map_err(|error| {
        Fault::Refused(format!("a position in outbox.marks can't be read: {error}"))
    })
}
