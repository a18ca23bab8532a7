//! The writers: a backup-request service whose use cases change an aggregate and say so in events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::{Client, Statement, Transaction};
use uuid::Uuid;

use crate::database::Database;
use crate::fault::Fault;
use crate::ledger::{CommittedEvent, Ledger};

/// Writers at work; more than there are keys a writer would hit at once, so that some wait for each other's locks.
const WRITERS: usize = 8;
/// Aggregates: few enough that writers meet at one now and then.
const REQUESTS: usize = 36;

/// Where the story plays, and for how long.
#[derive(Debug)]
pub struct Plot {
    /// Topic of all events but the replies.
    pub requests_topic: String,
    /// Topic of the replies.
    pub replies_topic: String,
    /// When the writers begin.
    pub start: Instant,
    /// When the writers begin no further use case.
    pub end: Instant,
    /// Events a second that the writers aim at, all together.
    pub events_per_second: u32,
    /// What the writers have done.
    pub done: Done,
}

/// What the writers have done, for the progress display; the check does not rely on it.
#[derive(Debug, Default)]
pub struct Done {
    /// Events committed.
    pub events: AtomicU64,
    /// Transactions committed.
    pub transactions: AtomicU64,
    /// Transactions rolled back after their events were inserted.
    pub rolled_back: AtomicU64,
    /// Savepoints rolled back after an event was inserted.
    pub savepoints: AtomicU64,
}

/// Makes the service's tables.
///
/// # Errors
/// As the database says.
pub async fn prepare(database: &Database) -> Result<(), Fault> {
    let client = database.connect().await?;
    client
        .batch_execute(include_str!("../../sql/demo/schema.sql"))
        .await?;
    let ids: Vec<String> = (0..REQUESTS).map(request_id).collect();
    client
        .execute(include_str!("../../sql/demo/requests.sql"), &[&ids])
        .await?;
    Ok(())
}

/// Plays the story to its end.
///
/// # Errors
/// The first error of a writer: nothing in this story takes the database away, so there is none to be expected.
pub async fn play(database: &Database, plot: &Arc<Plot>) -> Result<(), Fault> {
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let writer = Writer::new(database, Arc::clone(plot)).await?;
        writers.spawn(writer.work());
    }
    while let Some(end) = writers.join_next().await {
        end.map_err(|error| Fault::Defect(format!("a writer of the demo ended: {error}")))??;
    }
    Ok(())
}

/// Reads what was committed.
///
/// # Errors
/// As the database says.
pub async fn ledger(database: &Database) -> Result<Ledger, Fault> {
    let client = database.connect().await?;
    let rows = client
        .query(include_str!("../../sql/demo/ledger.sql"), &[])
        .await?;
    let mut transactions: Vec<(String, Vec<CommittedEvent>)> = Vec::new();
    for row in rows {
        let (xid, id, version): (String, Uuid, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(4)?);
        let version = u64::try_from(version)
            .map_err(|_| Fault::Defect(format!("event {id} has version {version}")))?;
        let (topic, key) = (row.try_get(2)?, row.try_get(3)?);
        let event = CommittedEvent {
            id,
            topic,
            key,
            version,
        };
        match transactions.last_mut() {
            Some((last, events)) if *last == xid => events.push(event),
            _ => transactions.push((xid, vec![event])),
        }
    }
    let mut ledger = Ledger::new();
    for (xid, events) in transactions {
        ledger.commit(format!("xid {xid}"), events);
    }
    Ok(ledger)
}

fn request_id(number: usize) -> String {
    format!("request-{number:02}")
}

/// An event of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Received,
    Created,
    Allowed,
    Replied,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Received => "BackupRequestReceived",
            Self::Created => "BackupRequestCreated",
            Self::Allowed => "BackupRequestAllowed",
            Self::Replied => "BackupRequestReplied",
        }
    }

    /// Some events carry data, some the id only.
    fn payload(self, request: &str) -> Value {
        let bytes = fastrand::u64(1..1 << 40);
        match self {
            Self::Received => json!({ "id": request, "path": "/srv/data", "bytes": bytes }),
            Self::Replied => json!({ "id": request, "answer": "allowed", "within_bytes": bytes }),
            Self::Created | Self::Allowed => json!({ "id": request }),
        }
    }
}

/// What a use case does to an aggregate in this state: its events, and the state after them.
fn use_case(state: &str, dice: u8) -> (&'static [Kind], &'static str) {
    use Kind::{Allowed, Created, Received, Replied};
    match (state, dice % 3) {
        ("created", _) => (&[Allowed, Replied], "replied"),
        ("allowed", _) => (&[Replied], "replied"),
        (_, 0) => (&[Received, Created], "created"),
        (_, 1) => (&[Received, Created, Allowed], "allowed"),
        (_, _) => (&[Received, Created, Allowed, Replied], "replied"),
    }
}

/// How a use case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    /// Its first event is written, taken back to a savepoint, and written again.
    SecondThoughts,
    RollBack,
}

impl Ending {
    fn of(dice: u8) -> Self {
        match dice % 10 {
            0 => Self::RollBack,
            1 => Self::SecondThoughts,
            _ => Self::Commit,
        }
    }
}

/// When the next use case is due, if `written` events are to have taken their share of the time.
fn due(start: Instant, written: u64, events_per_second: u32) -> Instant {
    start + Duration::from_micros(written.saturating_mul(1_000_000) / u64::from(events_per_second))
}

struct Statements {
    call: Statement,
    lock: Statement,
    change: Statement,
    publish: Statement,
    insert: Statement,
}

impl Statements {
    async fn of(client: &Client) -> Result<Self, Fault> {
        Ok(Self {
            call: client
                .prepare(include_str!("../../sql/demo/call.sql"))
                .await?,
            lock: client
                .prepare(include_str!("../../sql/demo/lock.sql"))
                .await?,
            change: client
                .prepare(include_str!("../../sql/demo/change.sql"))
                .await?,
            publish: client
                .prepare(include_str!("../../sql/demo/publish.sql"))
                .await?,
            insert: client
                .prepare(include_str!("../../sql/demo/insert.sql"))
                .await?,
        })
    }
}

struct Writer {
    client: Client,
    statements: Statements,
    plot: Arc<Plot>,
}

impl Writer {
    async fn new(database: &Database, plot: Arc<Plot>) -> Result<Self, Fault> {
        let client = database.connect().await?;
        let statements = Statements::of(&client).await?;
        Ok(Self {
            client,
            statements,
            plot,
        })
    }

    async fn work(mut self) -> Result<(), Fault> {
        loop {
            let written = self.plot.done.events.load(Ordering::Relaxed);
            let due = due(self.plot.start, written, self.plot.events_per_second);
            if due >= self.plot.end || Instant::now() >= self.plot.end {
                return Ok(());
            }
            sleep_until(due).await;
            self.call().await?;
        }
    }

    /// One use case on one aggregate, in one transaction.
    async fn call(&mut self) -> Result<(), Fault> {
        let (request, ending) = (
            request_id(fastrand::usize(0..REQUESTS)),
            Ending::of(fastrand::u8(..)),
        );
        let (plot, statements) = (&self.plot, &self.statements);
        let mut transaction = self.client.transaction().await?;
        transaction.execute(&statements.call, &[&request]).await?;
        let row = transaction.query_one(&statements.lock, &[&request]).await?;
        let (state, mut version): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let (kinds, state) = use_case(&state, fastrand::u8(..));
        if ending == Ending::SecondThoughts {
            let savepoint = transaction.savepoint("second_thoughts").await?;
            publish(
                &savepoint,
                statements,
                plot,
                (&request, version + 1),
                kinds[0],
            )
            .await?;
            savepoint.rollback().await?;
            plot.done.savepoints.fetch_add(1, Ordering::Relaxed);
        }
        for kind in kinds {
            version += 1;
            publish(&transaction, statements, plot, (&request, version), *kind).await?;
        }
        transaction
            .execute(&statements.change, &[&request, &state, &version])
            .await?;
        if ending == Ending::RollBack {
            transaction.rollback().await?;
            plot.done.rolled_back.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        transaction.commit().await?;
        plot.done
            .events
            .fetch_add(kinds.len() as u64, Ordering::Relaxed);
        plot.done.transactions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Writes an event of a request, at a version, to the outbox and to the ledger.
async fn publish(
    transaction: &Transaction<'_>,
    statements: &Statements,
    plot: &Plot,
    (request, version): (&str, i64),
    kind: Kind,
) -> Result<(), Fault> {
    let topic = match kind {
        Kind::Replied => &plot.replies_topic,
        Kind::Received | Kind::Created | Kind::Allowed => &plot.requests_topic,
    };
    // Both ways of writing an event that the README shows.
    let statement = match kind {
        Kind::Received | Kind::Replied => &statements.publish,
        Kind::Created | Kind::Allowed => &statements.insert,
    };
    let payload = kind.payload(request);
    transaction
        .execute(
            statement,
            &[topic, &request, &payload, &kind.name(), &version],
        )
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_case_leads_to_a_reply() {
        for first in 0..3 {
            let (mut state, mut told) = ("new", Vec::new());
            while state != "replied" {
                let (kinds, next) = use_case(state, first);
                assert!((1..=4).contains(&kinds.len()));
                told.extend_from_slice(kinds);
                state = next;
            }
            assert_eq!(
                told,
                [Kind::Received, Kind::Created, Kind::Allowed, Kind::Replied]
            );
        }
    }

    #[test]
    fn a_tenth_is_rolled_back() {
        let rolled_back = (0..100).filter(|dice| Ending::of(*dice) == Ending::RollBack);
        assert_eq!(rolled_back.count(), 10);
    }

    #[test]
    fn writing_is_due_at_the_rate() {
        let start = Instant::now();
        assert_eq!(due(start, 0, 1500), start);
        assert_eq!(due(start, 3000, 1500), start + Duration::from_secs(2));
    }
}
