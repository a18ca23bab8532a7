//! One database, its topics and its relay, and the ledger check at the end.

use outbox_relay::ledger::Report;

use super::process::RelayOf;
use super::scan::check;
use super::servers::TestDatabase;
use super::unique;
use super::writers::{finish_prepared, ledger, use_case};

/// One database, its topics and its relay.
pub struct Scene {
    pub database: TestDatabase,
    pub prefix: String,
    pub relay: RelayOf,
}

impl Scene {
    pub async fn new() -> Self {
        Self::on(TestDatabase::new().await).await
    }

    pub async fn on(database: TestDatabase) -> Self {
        let name = unique("relay");
        let relay = RelayOf::new(&name, &database).await;
        Self {
            database,
            prefix: format!("{name}-topic"),
            relay,
        }
    }

    /// One transaction of a writer, of so many events on one key.
    pub async fn commit(&self, tx: &str, key: i32, events: i32) {
        let client = self.database.connect().await;
        let call = use_case(tx, &self.prefix, key, events, false);
        client.batch_execute(&call).await.expect("a commit");
    }

    /// Publishes what is left, and checks.
    pub async fn check(&self) -> Report {
        let client = self.database.connect().await;
        finish_prepared(&client, &self.database.name).await;
        self.relay.catch_up().await;
        let ledger = ledger(&self.database).await;
        check(&self.relay.brokers, &self.prefix, &self.relay.name, ledger).await
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
