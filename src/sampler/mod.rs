//! Looks at the database from beside the relay: lag, lease, the oldest open writer, the replication slot.
//!
//! A connection of its own, short statements, a bounded count, and no wait for a lock. What can't be told (a privilege is
//! missing, a statement took too long) is left out of the sample; only a server that does not answer is a fault.

mod rate;

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

pub use self::rate::Rate;
use crate::capture::CaptureSettings;
use crate::capture::table::shape;
use crate::database::{Database, Value, unsigned};
use crate::fault::{Fault, Server};
use crate::position::{Lsn, Position};

/// Rows that are looked at for lag, at most: some 50 ms.
const LAG_ROWS_MAX: i64 = 50_000;
/// For all of a sample, connecting included.
const PATIENCE: Duration = Duration::from_secs(6);

/// What was seen, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The database's clock, milliseconds since 1970 UTC.
    pub now_ms: i64,
    /// When it showed that, by this process's clock.
    #[serde(skip)]
    pub at: Instant,
    /// Whether any relay of the name holds the lease.
    pub lease_held: bool,
    /// What the active relay wrote of itself; none before its first acknowledgement.
    pub registration: Option<Registration>,
    /// What is committed and not published.
    pub lag: Option<Lag>,
    /// Capture wal: WAL between the position and the end.
    pub wal_lag_bytes: Option<u64>,
    /// The oldest open transaction that has written; none where the role may not see the sessions of others.
    pub oldest_writer: Option<Writer>,
    /// Capture wal: its replication slot.
    pub slot: Option<SlotState>,
    /// Capture wal: the server was asked, and has no such slot.
    #[serde(skip)]
    pub has_no_slot: bool,
    /// Transactions that were set aside.
    pub parked: Option<Parked>,
}

/// A row of `outbox.relay`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Registration {
    /// The table that the relay serves.
    pub table: String,
    /// The instance that acknowledged last.
    pub instance: String,
    /// All up to here is published.
    pub position: Position,
    /// When that was written, by the database's clock.
    pub acknowledged_at_ms: i64,
}

/// What is committed and not published.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lag {
    /// Events.
    pub events: u64,
    /// There may be more events, and older ones: counting has a limit.
    pub at_least: bool,
    /// How long ago the oldest of them occurred; none where the table has no such column.
    pub seconds: Option<f64>,
}

/// An open transaction that has written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Writer {
    /// Since when; 0 if there is none.
    pub seconds: f64,
    /// Its process, or its name where it is prepared.
    pub who: Option<String>,
}

/// Transactions that could not be published, and those that wait behind them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parked {
    /// Those that failed.
    pub transactions: u64,
    /// Those that share a key with one before them that waits.
    pub held_transactions: u64,
    /// Events of both.
    pub events: u64,
    /// Since when the oldest waits; 0 if there is none.
    pub seconds: f64,
}

/// State of the replication slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotState {
    /// A relay streams from it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Bytes that may still be written before it is in danger; none without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// Bytes of WAL that it keeps.
    pub retained_wal_bytes: u64,
    /// Since when nobody streams from it (PostgreSQL 17 and newer).
    pub inactive_seconds: Option<f64>,
}

/// Takes samples, over one connection.
pub struct Sampler {
    database: Database,
    settings: CaptureSettings,
    session: Option<Session>,
}

struct Session {
    client: Client,
    /// The statement for this table; none if it has not the columns.
    lag: Option<String>,
}

impl Sampler {
    /// Connects at the first sample.
    #[must_use]
    pub fn new(database: Database, settings: CaptureSettings) -> Self {
        Self {
            database,
            settings,
            session: None,
        }
    }

    /// Looks. `ahead` is where the relay of this process stands, which `outbox.relay` does not know yet.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the server does not answer, [`Fault::Refused`] if it has no schema `outbox`.
    pub async fn sample(&mut self, ahead: Option<&Position>) -> Result<Sample, Fault> {
        let sample = match timeout(PATIENCE, self.look(ahead)).await {
            Ok(sample) => sample,
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                let why = format!("no answer to the sampler within {seconds} s");
                Err(Fault::Unavailable(Server::Postgres, why))
            }
        };
        if sample.is_err() {
            self.session = None;
        }
        sample
    }

    async fn look(&mut self, ahead: Option<&Position>) -> Result<Sample, Fault> {
        let session = match self.session.take().filter(|it| !it.client.is_closed()) {
            Some(session) => session,
            None => Session::open(&self.database, &self.settings).await?,
        };
        let session = self.session.insert(session);
        let (mut sample, wal_end) = session.relay(&self.settings.name).await?;
        let stored = sample.registration.as_ref().map(|it| &it.position);
        if let Some(position) = ahead.or(stored) {
            sample.lag = session.lag(position).await?;
            if let Some(streamed) = &position.streamed {
                let behind = u64::from(wal_end).saturating_sub(u64::from(streamed.lsn));
                sample.wal_lag_bytes = Some(behind);
                let slot = session.slot(&self.settings.slot).await?;
                sample.has_no_slot = slot.as_ref().is_some_and(Option::is_none);
                sample.slot = slot.flatten();
            }
        }
        sample.oldest_writer = session.writer().await?;
        sample.parked = session.parked(&self.settings.name).await?;
        Ok(sample)
    }
}

impl Session {
    async fn open(database: &Database, settings: &CaptureSettings) -> Result<Self, Fault> {
        let client = database.connect().await?;
        let session = include_str!("../../sql/observe/session.sql");
        client.batch_execute(session).await?;
        let lag = match shape(&client, settings).await {
            Ok((_, shape)) => Some(shape.fill(include_str!("../../sql/observe/lag.sql"))),
            Err(fault @ Fault::Unavailable(..)) => return Err(fault),
            Err(_) => None,
        };
        Ok(Self { client, lag })
    }

    async fn relay(&self, name: &str) -> Result<(Sample, Lsn), Fault> {
        let relay = include_str!("../../sql/observe/relay.sql");
        let row = self
            .client
            .query_typed_one(relay, &[(&name, Type::TEXT)])
            .await?;
        let at = Instant::now();
        let wal_end = row.try_get::<_, Option<&str>>(1)?.unwrap_or("0/0");
        let wal_end = wal_end
            .parse()
            .map_err(|_| Fault::Defect(format!("{wal_end:?} is no place in the WAL")))?;
        let sample = Sample {
            now_ms: row.try_get(0)?,
            at,
            lease_held: row.try_get(2)?,
            registration: registration(&row)?,
            lag: None,
            wal_lag_bytes: None,
            oldest_writer: None,
            slot: None,
            has_no_slot: false,
            parked: None,
        };
        Ok((sample, wal_end))
    }

    async fn lag(&self, position: &Position) -> Result<Option<Lag>, Fault> {
        let Some(lag) = self.lag.as_ref().filter(|_| position.names_all()) else {
            return Ok(None);
        };
        let open: Vec<String> = position
            .seen
            .in_progress()
            .iter()
            .map(ToString::to_string)
            .collect();
        let window = position.window.as_ref();
        let values: [Value; 6] = [
            (&position.seen.xmax().to_string(), Type::TEXT),
            (&open, Type::TEXT_ARRAY),
            (&beyond(position), Type::TEXT),
            (&window.map(|it| it.until.to_string()), Type::TEXT),
            (&window.map_or(i64::MIN, |it| it.last_seq), Type::INT8),
            (&LAG_ROWS_MAX, Type::INT8),
        ];
        let found = self.client.query_typed(lag, &values).await;
        let Some(row) = first(found)? else {
            return Ok(None);
        };
        let events: i64 = row.try_get(0)?;
        let (oldest_ms, looked_at): (Option<i64>, i64) = (row.try_get(1)?, row.try_get(2)?);
        Ok(Some(Lag {
            events: unsigned(events),
            at_least: looked_at >= LAG_ROWS_MAX,
            seconds: match events {
                0 => Some(0.0),
                _ => oldest_ms.map(seconds),
            },
        }))
    }

    async fn writer(&self) -> Result<Option<Writer>, Fault> {
        let writer = include_str!("../../sql/observe/writer.sql");
        let Some(row) = first(self.client.query_typed(writer, &[]).await)? else {
            return Ok(None);
        };
        let (sees_all, open_ms): (bool, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(sees_all.then_some(Writer {
            seconds: open_ms.map_or(0.0, seconds),
            who: row.try_get(2)?,
        }))
    }

    async fn parked(&self, name: &str) -> Result<Option<Parked>, Fault> {
        let parked = include_str!("../../sql/observe/parked.sql");
        let values: [Value; 1] = [(&name, Type::TEXT)];
        let Some(row) = first(self.client.query_typed(parked, &values).await)? else {
            return Ok(None);
        };
        Ok(Some(Parked {
            transactions: unsigned(row.try_get(0)?),
            held_transactions: unsigned(row.try_get(1)?),
            events: unsigned(row.try_get(2)?),
            seconds: row.try_get::<_, Option<i64>>(3)?.map_or(0.0, seconds),
        }))
    }

    /// Outside, whether it could be told; inside, whether there is one.
    async fn slot(&self, name: &str) -> Result<Option<Option<SlotState>>, Fault> {
        let slot = include_str!("../../sql/observe/slot.sql");
        let values: [Value; 1] = [(&name, Type::TEXT)];
        let Some(rows) = told(self.client.query_typed(slot, &values).await)? else {
            return Ok(None);
        };
        let Some(row) = rows.first() else {
            return Ok(Some(None));
        };
        Ok(Some(Some(SlotState {
            active: row.try_get(0)?,
            wal_status: row.try_get(1)?,
            safe_wal_bytes: row.try_get(2)?,
            retained_wal_bytes: unsigned(row.try_get(3)?),
            inactive_seconds: row.try_get::<_, Option<i64>>(4)?.map(seconds),
        })))
    }
}

/// The first row.
fn first(rows: Result<Vec<Row>, tokio_postgres::Error>) -> Result<Option<Row>, Fault> {
    Ok(told(rows)?.and_then(|rows| rows.into_iter().next()))
}

/// The rows. A server that answered with an error has answered, but told nothing.
fn told(rows: Result<Vec<Row>, tokio_postgres::Error>) -> Result<Option<Vec<Row>>, Fault> {
    match rows {
        Ok(rows) => Ok(Some(rows)),
        Err(error) if error.as_db_error().is_some() => {
            tracing::debug!("the sampler leaves something out: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn registration(row: &Row) -> Result<Option<Registration>, Fault> {
    let Some(position) = row.try_get::<_, Option<&str>>(5)? else {
        return Ok(None);
    };
    let position = serde_json::from_str(position).map_err(|error| {
        Fault::Refused(format!(
            "the position in outbox.relay can't be read: {error}"
        ))
    })?;
    Ok(Some(Registration {
        table: row.try_get(3)?,
        instance: row.try_get(4)?,
        position,
        acknowledged_at_ms: row.try_get(6)?,
    }))
}

/// The transactions beyond the snapshot that were published, as a multirange.
fn beyond(position: &Position) -> String {
    let streamed = position.streamed.as_ref();
    let xids = streamed.and_then(|it| it.beyond.as_ref());
    let ranges: Vec<String> = xids
        .map(|xids| xids.ranges())
        .into_iter()
        .flatten()
        .map(|range| format!("[{},{}]", range.start(), range.end()))
        .collect();
    format!("{{{}}}", ranges.join(","))
}

fn seconds(ms: i64) -> f64 {
    // A time of the future is no negative age.
    ms.max(0) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Snapshot, Xids};

    #[test]
    fn transactions_beyond_the_snapshot_become_a_multirange() {
        let origin = Origin::of_test("wal");
        let xids = [112, 119, 120].into_iter().collect::<Xids>();
        let at = |beyond| Position::at_lsn(origin.clone(), 9.into(), Snapshot::empty(), beyond);
        assert_eq!(beyond(&at(Some(xids))), "{[112,112],[119,120]}");
        assert_eq!(beyond(&at(None)), "{}");
    }
}
