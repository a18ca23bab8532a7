//! One database, its topics and its relay, and the ledger check at the end.

use outbox_relay::capture::CaptureKind;
use outbox_relay::ledger::Report;
use outbox_relay::position::Position;
use outbox_relay::supervisor::make_slot;
use tokio_postgres::types::ToSql;

use super::process::RelayOf;
use super::scan::check;
use super::servers::TestDatabase;
use super::writers::{finish_prepared, ledger, use_case};
use super::{unique, until};

/// One database, its topics and its relay.
pub struct Scene {
    pub database: TestDatabase,
    pub prefix: String,
    pub relay: RelayOf,
}

impl Scene {
    /// Captured from the table.
    pub async fn new() -> Self {
        Self::of(CaptureKind::Table).await
    }

    pub async fn of(capture: CaptureKind) -> Self {
        Self::on(TestDatabase::new().await, capture).await
    }

    pub async fn on(database: TestDatabase, capture: CaptureKind) -> Self {
        let name = unique("relay");
        let mut relay = RelayOf::new(&name, &database).await;
        relay.capture = capture;
        let scene = Self {
            database,
            prefix: format!("{name}-topic"),
            relay,
        };
        scene.make_slot().await;
        scene
    }

    /// What capture wal needs for the relay's name, if that is its capture.
    pub async fn make_slot(&self) {
        if self.relay.capture == CaptureKind::Wal {
            let outbox = self.relay.options().outbox().expect("settings");
            let made = make_slot(&self.database.database(), &outbox).await;
            assert_eq!(made.expect("a slot").len(), 2);
        }
    }

    /// One transaction of a writer, of so many events on one key.
    pub async fn commit(&self, tx: &str, key: i32, events: i32) {
        let client = self.database.connect().await;
        let call = use_case(tx, &self.prefix, key, events, false);
        client.batch_execute(&call).await.expect("a commit");
    }

    /// How many events that meet the condition are acknowledged.
    pub async fn acknowledged(&self, condition: &str, values: &[&(dyn ToSql + Sync)]) -> i64 {
        let client = self.database.connect().await;
        let position = "select position::text from outbox.relay";
        let position = client.query_opt(position, &[]).await.expect("an answer");
        let Some(position) = position else { return 0 };
        let position: Position = serde_json::from_str(position.get(0)).expect("a position");
        let events = format!(
            "select xid::text::bigint, max(seq), count(*) from outbox.events where {condition} group by xid"
        );
        let events = client.query(&events, values).await.expect("events");
        let covered = events
            .iter()
            .filter(|row| position.covers(row.get::<_, i64>(0).unsigned_abs(), row.get(1)));
        covered.map(|row| row.get::<_, i64>(2)).sum()
    }

    /// Waits until the relay has acknowledged all that is committed now.
    pub async fn caught_up(&self) {
        let client = self.database.connect().await;
        let committed = client.query_one("select count(*) from outbox.events", &[]);
        let committed: i64 = committed.await.unwrap().get(0);
        let published = async || self.acknowledged("true", &[]).await == committed;
        until("all is published", 120, published).await;
    }

    /// Publishes what is left, and checks.
    pub async fn check(&self) -> Report {
        let client = self.database.connect().await;
        finish_prepared(&client, &self.database.name).await;
        self.relay.catch_up().await;
        self.drop_slots().await;
        let ledger = ledger(&self.database).await;
        check(&self.relay.brokers, &self.prefix, &self.relay.name, ledger).await
    }

    /// At the end of a test: a slot that is left keeps the shared server's WAL.
    pub async fn drop_slots(&self) {
        self.database.drop_slots().await;
    }
}

/// Nothing lost, doubled, torn, out of order or made up, in at least so many transactions.
pub fn clean(report: &Report, transactions_min: u64) {
    assert!(report.is_clean(), "{report}");
    assert!(
        report.transactions >= transactions_min,
        "too little happened to prove anything: {report}"
    );
}
