//! Where it is played: the servers, the database, the topics, the relays. It does what the plan says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outbox_relay::capture::CaptureKind;
use outbox_relay::servers::{Postgres, PostgresVersion};
use outbox_relay::supervisor::make_slot;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::brokers::Brokers;
use crate::fleet::{Fleet, Violations};
use crate::network::Network;
use crate::plan::Fault;
use crate::support::process::{RelayOf, binary};
use crate::support::servers::{TestDatabase, own, own_postgres};

/// Name of the relay, and of what belongs to it.
const NAME: &str = "soak";
/// A Kafka transaction of a relay that stands still is aborted after this: the least that a relay allows.
const TRANSACTION_TIMEOUT_MS: &str = "10000";
/// Small, so that a backlog takes several Kafka transactions, and some database transactions go alone.
const BATCH_EVENTS_MAX: &str = "500";

/// All that takes part.
pub struct Stage {
    postgres: Mutex<Postgres>,
    pub database: TestDatabase,
    pub brokers: Brokers,
    pub fleet: Fleet,
    /// Between the relays and both servers. Writers and checks go past it.
    network: Network,
}

impl Stage {
    /// Brings all of it up, with so many brokers.
    pub async fn set_up(capture: CaptureKind, brokers: usize, violations: Violations) -> Self {
        // A lazy WAL writer, so that a crash loses more of what was committed asynchronously.
        let settings = [("wal_writer_delay", "1s"), ("autovacuum_naptime", "15s")];
        let postgres = own_postgres(PostgresVersion::V17, &settings);
        let (postgres, brokers) = tokio::join!(postgres, Brokers::bring_up(brokers));
        let database = TestDatabase::on(&postgres).await;
        brokers.create_topics(&Self::topics(), NAME).await;
        let more = [
            "--transaction-timeout-ms",
            TRANSACTION_TIMEOUT_MS,
            "--batch-events-max",
            BATCH_EVENTS_MAX,
        ];
        let network = Network::before(brokers.addresses(), &database.url).await;
        let relay = RelayOf {
            program: binary(),
            capture,
            name: NAME.to_owned(),
            // Its sessions are told from the writers' by this name.
            database_url: format!("{}?application_name=relay", network.database_url),
            brokers: network.kafka.brokers(),
            more: more.map(str::to_owned).into(),
            crash_at: None,
        };
        if capture == CaptureKind::Wal {
            let outbox = relay.options().outbox().expect("settings");
            let made = make_slot(&database.database(), &outbox).await;
            made.expect("a slot");
        }
        Self {
            postgres: Mutex::new(postgres),
            database,
            brokers,
            fleet: Fleet::start(relay, own().folder(), violations),
            network,
        }
    }

    /// Prefix of the topics that the writers write to.
    pub fn prefix() -> &'static str {
        NAME
    }

    pub fn topics() -> Vec<String> {
        (0..3).map(|number| format!("{NAME}{number}")).collect()
    }

    pub fn relay_name() -> &'static str {
        NAME
    }

    pub async fn postgres_version(&self) -> String {
        let client = self.database.connect().await;
        let row = client.query_one("show server_version", &[]).await;
        row.map_or_else(text, |row| row.get(0))
    }

    /// Injects a fault, and heals it; returns then. Faults of one server wait for each other, all others overlap.
    pub async fn inject(&self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::RelayKill => self.fleet.kill9().await,
            Fault::RelayKillTwice { after_ms } => self.fleet.kill9_twice(ms(after_ms)).await,
            Fault::RelayTerminate => self.fleet.terminate().await,
            Fault::RelayPause { for_ms, .. } => self.fleet.pause(ms(for_ms)).await,
            Fault::SecondRelay { for_ms, killed } => self.fleet.second(ms(for_ms), killed).await,
            Fault::RelaySessions => self.terminate_sessions().await,
            Fault::BrokerKill { which, down_ms } => {
                self.brokers.kill9(which, ms(down_ms)).await?;
            }
            Fault::BrokerPause { which, for_ms } => self.brokers.pause(which, ms(for_ms)).await?,
            Fault::BrokerRestart { which, down_ms } => {
                self.brokers.restart(which, ms(down_ms)).await?;
            }
            Fault::OneBrokerLeft {
                left,
                killed,
                for_ms,
            } => self.brokers.leave_one(left, killed, ms(for_ms)).await?,
            Fault::CopyMissing { which, for_ms } => {
                self.brokers.miss_a_copy(which, ms(for_ms)).await?;
            }
            Fault::PostgresKill { rollbacks, down_ms } => {
                let mut postgres = self.postgres.lock().await;
                self.roll_back(rollbacks).await;
                postgres.kill9().await.map_err(text)?;
                sleep(ms(down_ms)).await;
                postgres.start().await.map_err(text)?;
            }
            Fault::PostgresRestart { down_ms } => {
                let mut postgres = self.postgres.lock().await;
                postgres.stop_fast().await.map_err(text)?;
                sleep(ms(down_ms)).await;
                postgres.start().await.map_err(text)?;
            }
            Fault::PostgresPause { for_ms } => {
                let mut postgres = self.postgres.lock().await;
                postgres.sigstop().await.map_err(text)?;
                sleep(ms(for_ms)).await;
                postgres.sigcont().await.map_err(text)?;
            }
            Fault::NetworkReset(link) => self.network.reset(link),
            Fault::NetworkStall { link, for_ms } => self.network.stall(link, ms(for_ms)).await,
            Fault::ReplyLost { of, silently } => self.network.lose_reply(of, silently).await,
            Fault::LateEndTxn { as_abort } => self.network.late_end_txn(as_abort).await,
        }
        Ok(())
    }

    /// Statements that are not done in time are given up: the server may be away.
    async fn try_sql(&self, statements: &str) {
        let done = async {
            if let Ok(client) = self.database.database().connect().await {
                let _ = client.batch_execute(statements).await;
            }
        };
        let _ = timeout(Duration::from_secs(3), done).await;
    }

    async fn terminate_sessions(&self) {
        self.try_sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where application_name in ('relay', 'outbox-relay', 'outbox-relay lease') and random() < 0.6",
        )
        .await;
    }

    async fn roll_back(&self, transactions: u64) {
        let never = "begin; select outbox.publish('never', 'k', 'no'); rollback;";
        self.try_sql(&never.repeat(usize::try_from(transactions).unwrap_or(0)))
            .await;
    }
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

pub fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Milliseconds since 1970, to compare with the timestamps of records.
#[expect(
    clippy::disallowed_methods,
    reason = "measures how late a record comes; both clocks are this machine's"
)]
pub fn epoch_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
