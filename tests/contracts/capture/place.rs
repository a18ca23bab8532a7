//! Where the suite runs: each capture, on each server.

use std::time::Duration;

use outbox_relay::capture::wal::make;
use outbox_relay::capture::{
    BatchLimits, Capture, CaptureKind, CaptureSettings, Columns, Either, Start,
};
use outbox_relay::database::Database;
use outbox_relay::event::Event;
use outbox_relay::position::Position;
use outbox_relay::servers::{Postgres, PostgresVersion};
use tokio_postgres::Client;

use crate::support::servers::{TestDatabase, postgres_of};
use crate::support::within;

/// One capture on one database.
pub struct Place {
    pub kind: CaptureKind,
    pub database: TestDatabase,
}

impl Place {
    pub async fn on(postgres: &Postgres, kind: CaptureKind) -> Self {
        let place = Self {
            kind,
            database: TestDatabase::on(postgres).await,
        };
        place.prepare(&place.settings()).await;
        place
    }

    /// What `init --capture` makes.
    pub async fn prepare(&self, settings: &CaptureSettings) {
        if self.kind == CaptureKind::Wal {
            let database = self.at();
            (make::make_publication(&database, settings).await).expect("a publication");
            (make::make_slot(&database, settings, |_| ()).await).expect("a slot");
        }
    }

    pub fn settings(&self) -> CaptureSettings {
        CaptureSettings {
            slot: self.database.name.clone(),
            ..settings()
        }
    }

    pub fn capture(&self, settings: CaptureSettings) -> Either {
        Either::new(self.kind, settings, &self.at()).unwrap()
    }

    pub fn at(&self) -> Database {
        self.database.database()
    }

    pub async fn connect(&self) -> Client {
        self.database.connect().await
    }

    /// The slots of this database; one that is left behind would keep the server's WAL.
    async fn drop_slots(&self) {
        self.database.drop_slots().await;
    }
}

pub fn settings() -> CaptureSettings {
    CaptureSettings {
        name: "shop".into(),
        instance: "test:1".into(),
        registers: true,
        table: "outbox.events".into(),
        columns: Columns::default(),
        route: "outbox.event.{aggregate_type}".into(),
        batch: BatchLimits {
            events_max: 100,
            bytes_max: 1 << 20,
            transactions_max: u64::MAX,
        },
        linger: Duration::ZERO,
        poll_min: Duration::from_millis(1),
        poll_max: Duration::from_millis(10),
        slot: "outbox_relay_shop".into(),
    }
}

/// A capture with the position that it stands at.
pub struct Reader<'p> {
    pub place: &'p Place,
    pub settings: CaptureSettings,
    pub capture: Either,
    pub position: Position,
}

impl<'p> Reader<'p> {
    pub async fn new(place: &'p Place, settings: CaptureSettings) -> Self {
        let mut capture = place.capture(settings.clone());
        let position = capture.genesis(Start::Beginning).await.unwrap();
        Self {
            place,
            settings,
            capture,
            position,
        }
    }

    /// The process dies and another one starts.
    pub fn restart(&mut self) {
        self.capture = self.place.capture(self.settings.clone());
    }

    /// The transactions of the next batch, by payload; empty if there is none.
    pub async fn batch(&mut self) -> Vec<Vec<String>> {
        self.next().await.unwrap_or_default()
    }

    /// The same; a batch may have no events. What must hold of every batch is checked.
    async fn next(&mut self) -> Option<Vec<Vec<String>>> {
        let mut batch = self.capture.next(&self.position).await.unwrap()?;
        let mut transactions: Vec<Vec<String>> = Vec::new();
        while let Some(slice) = batch.next().await.unwrap() {
            let payloads = slice.events.iter().map(payload);
            match (slice.first_index, transactions.last_mut()) {
                (1.., Some(last)) => last.extend(payloads),
                _ => transactions.push(payloads.collect()),
            }
            assert!(slice.first_index + slice.events.len() as u64 <= slice.tx_count);
        }
        let events = transactions.iter().flatten().count() as u64;
        assert_eq!(
            (transactions.len() as u64, events),
            (batch.transactions, batch.events)
        );
        let limit = self.settings.batch.events_max;
        assert!(
            events <= limit || transactions.len() == 1,
            "{events} events are more than {limit}"
        );
        assert!(self.position.precedes(&batch.after));
        self.position = batch.after;
        Some(transactions)
    }

    /// All that is there now. A stream brings it a little later than it is committed, but one that begins anew says when it
    /// has brought all of it.
    pub async fn all(&mut self) -> Vec<Vec<String>> {
        if self.place.kind == CaptureKind::Wal {
            self.restart();
        }
        let mut all = Vec::new();
        while let Some(batch) = self.next().await {
            all.extend(batch);
        }
        all
    }
}

pub fn payload(event: &Event) -> String {
    String::from_utf8(event.payload.clone().unwrap().to_vec()).unwrap()
}

pub async fn insert(client: &Client, payload: &str) {
    client
        .execute("select outbox.publish('t', 'k', $1::text)", &[&payload])
        .await
        .unwrap();
}

pub async fn sql(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

const VERSIONS: [PostgresVersion; 4] = [
    PostgresVersion::V14,
    PostgresVersion::V15,
    PostgresVersion::V17,
    PostgresVersion::V18,
];

/// Each capture on each version.
pub fn on_all(test: impl AsyncFn(&Place)) {
    on(&[CaptureKind::Table, CaptureKind::Wal], test);
}

pub fn on_table(test: impl AsyncFn(&Place)) {
    on(&[CaptureKind::Table], test);
}

pub fn on_wal(test: impl AsyncFn(&Place)) {
    on(&[CaptureKind::Wal], test);
}

fn on(kinds: &[CaptureKind], test: impl AsyncFn(&Place)) {
    within(180, async {
        for version in VERSIONS {
            for kind in kinds {
                let place = Place::on(postgres_of(version).await, *kind).await;
                test(&place).await;
                place.drop_slots().await;
            }
        }
    });
}
