//! Moving a relay between the two captures, without loss and without repetition. The relay must be stopped; writers go on,
//! and what they commit is published meanwhile.
//!
//! **To the WAL.** 1. The slot is made; the table is published on while that waits for open transactions. 2. The table is
//! published until all that committed before the slot was made is out. 3. One position record says: the stream begins at
//! the slot's place, and what the table's snapshot sees is out already. The stream's first transactions may be among that;
//! the capture skips them by their ids. Before step 3 the relay is one of the table, after it one of the WAL.
//!
//! **To the table.** 1. `outbox.relay` says table, so `outbox.emit` is refused from now on. 2. The stream is published until
//! all transactions that were open then are out: none of the later ones can have events that the table does not have.
//! 3. One position record says what was published, as a snapshot. 4. Slot and publication are dropped.
//!
//! **Recover.** The slot is lost, and with it the WAL since the position. The position says which transactions were
//! published, so it becomes one of the table, and from there it is a move to the WAL with a new slot. Events without a row
//! and rows that their writers deleted are gone with the WAL.
//!
//! Each step may be cut off: the same command, run again, goes on.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::capture::table::{TableCapture, origin};
use crate::capture::wal::{WalCapture, make};
use crate::capture::{Capture, CaptureKind, CaptureSettings, Either, Start};
use crate::config::{Settings, SinkKind};
use crate::crash_point::crash_point;
use crate::event::Batch;
use crate::fault::Fault;
use crate::lease::{AdvisoryLease, Lease};
use crate::park::Park;
use crate::park::postgres::PostgresStore;
use crate::position::{Position, Streamed, Xids};
use crate::relay::{Relay, RelaySettings};
use crate::sink::Sink;
use crate::sink::kafka::KafkaSink;

/// Between two looks whether the transactions that were open have ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the stream is followed for its position to be one that the table can go on from: it is each second or so.
const FOLLOW: Duration = Duration::from_secs(2);
const FOLLOW_TRIES: u32 = 15;

/// Moves the relay to `to`; answers a sentence for each thing that was done.
///
/// # Errors
/// [`Fault::Refused`] if the relay is active or has no position; those of the servers. The same command goes on.
pub async fn move_to(settings: &Settings, to: CaptureKind) -> Result<Vec<String>, Fault> {
    let mover = Mover::new(settings).await?;
    let done = match to {
        CaptureKind::Wal => mover.to_wal().await,
        CaptureKind::Table => mover.to_table().await,
    };
    mover.lease.0.release().await;
    done
}

/// What `recover` found.
#[derive(Debug)]
pub struct Recovery {
    /// Where the stream was.
    pub stood_at: Position,
    /// Rows that the table holds and that were not published: events, transactions.
    pub rows: (i64, i64),
    /// What was done; nothing in a dry run.
    pub done: Vec<String>,
}

/// After a lost slot: goes on from the rows of the table, then with a new slot. Without `apply` it only looks.
///
/// # Errors
/// As [`move_to`]; [`Fault::Refused`] if the position does not say what was published.
pub async fn recover(settings: &Settings, apply: bool) -> Result<Recovery, Fault> {
    let mover = Mover::new(settings).await?;
    let found = mover.recover(apply).await;
    mover.lease.0.release().await;
    found
}

/// A lease that the loop does not give back between two steps.
#[derive(Clone)]
struct Kept(AdvisoryLease);

impl Lease for Kept {
    async fn try_acquire(&self) -> Result<bool, Fault> {
        self.0.try_acquire().await
    }

    fn held(&self) -> Result<(), Fault> {
        self.0.held()
    }

    async fn prove(&self) -> Result<(), Fault> {
        self.0.prove().await
    }

    async fn release(&self) {}
}

struct Mover<'a> {
    settings: &'a Settings,
    lease: Kept,
    client: Client,
}

impl<'a> Mover<'a> {
    async fn new(settings: &'a Settings) -> Result<Self, Fault> {
        if settings.sink != SinkKind::Kafka {
            return Err(Fault::Setting(
                "this needs sink kafka: no other sink keeps a position".into(),
            ));
        }
        let (database, name) = (&settings.database, &settings.name);
        let lease = AdvisoryLease::new(database.clone(), name, settings.lease_time);
        // One that was killed a moment ago may still hold it.
        let until = Instant::now() + settings.lease_time * 2;
        while !lease.try_acquire().await? {
            if Instant::now() >= until {
                return Err(Fault::Refused(format!(
                    "relay {name} is active; stop it first"
                )));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(Self {
            settings,
            lease: Kept(lease),
            client: database.connect().await?,
        })
    }

    async fn to_wal(&self) -> Result<Vec<String>, Fault> {
        let (database, outbox) = (&self.settings.database, &self.settings.outbox);
        if self.position().await?.streamed.is_some() {
            return Ok(vec![format!("relay {} reads the WAL already", outbox.name)]);
        }
        let mut done = Vec::new();
        if make::make_publication(database, outbox).await? {
            done.push(format!("made publication {}", outbox.slot));
        }
        crash_point("move.publication");
        let making = make::make_slot(database, outbox, |text| info!("{text}"));
        if let Some(made) = self.beside(CaptureKind::Table, making).await? {
            done.push(format!(
                "made replication slot {} at {}",
                outbox.slot, made.consistent
            ));
        }
        crash_point("move.slot");
        self.catch_up(CaptureKind::Table).await?;
        crash_point("move.caught_up");
        let mut sink = self.sink()?;
        let published = some(sink.open().await?, &outbox.name)?;
        if published.window.is_some() {
            return Err(Fault::Defect("caught up in the middle of a window".into()));
        }
        let (origin, _) = origin(&self.client, &outbox.table, "wal").await?;
        let from = make::stands_at(&self.client, &outbox.slot).await?;
        let streamed = Streamed {
            lsn: from,
            // The table's events lie before here, wherever.
            published: make::written(&self.client).await?,
            beyond: Some(Xids::default()),
        };
        let moved = Position {
            streamed: Some(streamed),
            unsettled: published.unsettled,
            ..Position::at(origin, published.seen)
        };
        let mut capture = WalCapture::new(outbox.clone(), database)?;
        self.store(&mut sink, &mut capture, &moved).await?;
        done.push(format!("the relay goes on from {moved} of the WAL"));
        Ok(done)
    }

    async fn to_table(&self) -> Result<Vec<String>, Fault> {
        let outbox = &self.settings.outbox;
        let mut done = Vec::new();
        if self.position().await?.streamed.is_some() {
            let no_more = include_str!("../sql/move/no_more_emits.sql");
            self.client
                .query_typed(no_more, &[(&outbox.name, Type::TEXT)])
                .await?;
            crash_point("move.no_more_emits");
            self.beside(CaptureKind::Wal, self.open_ones_end()).await?;
            let (mut sink, moved) = self.as_table().await?;
            let mut capture = TableCapture::new(outbox.clone(), &self.settings.database)?;
            self.store(&mut sink, &mut capture, &moved).await?;
            done.push(format!("the relay goes on from {moved} of the table"));
        }
        done.extend(self.drop_slot().await?);
        Ok(done)
    }

    async fn recover(&self, apply: bool) -> Result<Recovery, Fault> {
        let outbox = &self.settings.outbox;
        let mut stood_at = self.position().await?;
        if stood_at.streamed.is_some() {
            let mut capture = WalCapture::new(outbox.clone(), &self.settings.database)?;
            stood_at = capture.carried_over(&stood_at).await?;
        }
        let Some(moved) = stood_at.as_table() else {
            return Err(Fault::Refused(
                "the position does not say which transactions were published: there were too many; compare with \
                 `outbox-relay verify`, and start anew under another --name with --start now"
                    .into(),
            ));
        };
        let (here, next_xid) = origin(&self.client, &outbox.table, "table").await?;
        here.accepts(&moved, next_xid)?;
        let rows = self.unpublished(&moved).await?;
        let mut done = Vec::new();
        if apply {
            if stood_at.streamed.is_some() {
                let mut sink = self.sink()?;
                sink.open().await?;
                let mut capture = TableCapture::new(outbox.clone(), &self.settings.database)?;
                self.store(&mut sink, &mut capture, &moved).await?;
            }
            crash_point("move.recovering");
            done.extend(self.drop_slot().await?);
            crash_point("move.dropped");
            done.extend(self.to_wal().await?);
        }
        Ok(Recovery {
            stood_at,
            rows,
            done,
        })
    }

    fn sink(&self) -> Result<KafkaSink<AdvisoryLease>, Fault> {
        KafkaSink::new(self.settings.kafka.clone(), self.lease.0.clone())
    }

    async fn position(&self) -> Result<Position, Fault> {
        let mut sink = self.sink()?;
        let position = sink.open().await?;
        sink.close().await;
        some(position, &self.settings.name)
    }

    /// One position record, and the registration.
    async fn store(
        &self,
        sink: &mut KafkaSink<AdvisoryLease>,
        capture: &mut impl Capture,
        moved: &Position,
    ) -> Result<(), Fault> {
        sink.publish(Batch::genesis(moved.clone())).await?;
        crash_point("move.stored");
        sink.close().await;
        capture.acknowledge(moved).await
    }

    /// Publishes on while `work` is done.
    async fn beside<T>(
        &self,
        kind: CaptureKind,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let stop = CancellationToken::new();
        let work = async {
            let done = work.await;
            stop.cancel();
            done
        };
        let (published, done) = tokio::join!(self.publish(kind, false, stop.clone()), work);
        published?;
        done
    }

    /// Publishes all that was committed before the call.
    async fn catch_up(&self, kind: CaptureKind) -> Result<(), Fault> {
        self.publish(kind, true, CancellationToken::new()).await
    }

    async fn publish(
        &self,
        kind: CaptureKind,
        until_caught_up: bool,
        stop: CancellationToken,
    ) -> Result<(), Fault> {
        let how = RelaySettings {
            start: Start::Beginning,
            until_caught_up,
        };
        let (database, lease, sink) = (&self.settings.database, self.lease.clone(), self.sink()?);
        // What is registered must not change meanwhile.
        let outbox = CaptureSettings {
            registers: false,
            ..self.settings.outbox.clone()
        };
        let capture = Either::new(kind, outbox, database)?;
        let store = PostgresStore::new(&self.settings.name, database)?;
        let park = Park::new(store, self.settings.park.clone());
        let relay = Relay::new(capture, sink, lease, how, stop).parking(park);
        relay.run().await?;
        Ok(())
    }

    /// Waits until all transactions that are open now have ended.
    async fn open_ones_end(&self) -> Result<(), Fault> {
        let now = include_str!("../sql/move/next_xid.sql");
        let now: String = self.client.query_typed_one(now, &[]).await?.try_get(0)?;
        let ended = include_str!("../sql/move/ended.sql");
        let mut told = false;
        while !self
            .client
            .query_typed_one(ended, &[(&now, Type::TEXT)])
            .await?
            .try_get::<_, bool>(0)?
        {
            if !std::mem::replace(&mut told, true) {
                info!(
                    "waiting for the transactions that are open: {}",
                    make::blockers(&self.client).await?
                );
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The stream's position as one of the table, and the sink that is open at it.
    async fn as_table(&self) -> Result<(KafkaSink<AdvisoryLease>, Position), Fault> {
        for _ in 0..FOLLOW_TRIES {
            self.catch_up(CaptureKind::Wal).await?;
            crash_point("move.caught_up");
            let mut sink = self.sink()?;
            if let Some(moved) = some(sink.open().await?, &self.settings.name)?.as_table() {
                return Ok((sink, moved));
            }
            sink.close().await;
            let follow = async {
                sleep(FOLLOW).await;
                Ok(())
            };
            self.beside(CaptureKind::Wal, follow).await?;
        }
        Err(Fault::Refused(
            "the position does not say which transactions were published: an old transaction is open; try again when it has ended"
                .into(),
        ))
    }

    async fn drop_slot(&self) -> Result<Vec<String>, Fault> {
        let slot = &self.settings.outbox.slot;
        make::drop_slot(&self.client, slot).await?;
        crash_point("move.slot_dropped");
        let forget = include_str!("../sql/move/forget_slot.sql");
        self.client
            .query_typed(forget, &[(slot, Type::TEXT)])
            .await?;
        let publication = include_str!("../sql/move/drop_publication.sql");
        self.client
            .batch_execute(&publication.replace("{slot}", slot))
            .await?;
        Ok(vec![format!(
            "dropped replication slot and publication {slot}"
        )])
    }

    /// Rows that `position` does not cover: events and transactions.
    async fn unpublished(&self, position: &Position) -> Result<(i64, i64), Fault> {
        let unpublished = include_str!("../sql/move/unpublished.sql");
        let unpublished = make::filled(&self.settings.outbox, unpublished);
        let open: Vec<String> = position
            .seen
            .in_progress()
            .iter()
            .map(ToString::to_string)
            .collect();
        let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] = [
            (&position.seen.xmax().to_string(), Type::TEXT),
            (&open, Type::TEXT_ARRAY),
        ];
        let row = self.client.query_typed_one(&unpublished, &values).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }
}

fn some(position: Option<Position>, name: &str) -> Result<Position, Fault> {
    position.ok_or_else(|| {
        Fault::Refused(format!(
            "relay {name} has no position in this Kafka; there is nothing to move: start it with the capture that it is to have"
        ))
    })
}
