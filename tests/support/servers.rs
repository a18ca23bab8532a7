//! The servers of the test run: one PostgreSQL and one Kafka that all share, and own ones for tests that kill them.

use outbox_relay::database::Database;
use outbox_relay::servers::{Kafka, Postgres, PostgresOptions, PostgresVersion, Servers, Sources};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::unique;

/// What all tests share.
pub struct Shared {
    servers: Servers,
    /// For tests that kill them: never those whose addresses were given.
    own: Servers,
    pub postgres: Postgres,
    pub kafka: Kafka,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();
static OTHER_POSTGRES: [OnceCell<Postgres>; 2] = [const { OnceCell::const_new() }; 2];

/// The shared servers; started by the first test that asks. If none can be had, that test fails and says what to install.
pub async fn shared() -> &'static Shared {
    SHARED
        .get_or_init(|| async {
            let servers = Servers::new().unwrap_or_else(|error| panic!("{error}"));
            let (postgres, kafka) = tokio::join!(
                servers.postgres(PostgresOptions::default()),
                servers.kafka()
            );
            let own = Servers::with(
                Sources {
                    database_url: None,
                    kafka_brokers: None,
                    ..Sources::from_env()
                },
                None::<fn(&str)>,
            );
            Shared {
                own: own.unwrap_or_else(|error| panic!("{error}")),
                postgres: postgres.unwrap_or_else(|error| panic!("{error}")),
                kafka: kafka.unwrap_or_else(|error| panic!("{error}")),
                servers,
            }
        })
        .await
}

/// A shared server of another major version than the default one.
pub async fn postgres_of(version: PostgresVersion) -> &'static Postgres {
    let slot = match version {
        PostgresVersion::V14 => &OTHER_POSTGRES[0],
        PostgresVersion::V18 => &OTHER_POSTGRES[1],
        _ => return &shared().await.postgres,
    };
    slot.get_or_init(|| own_postgres(version, &[])).await
}

/// A PostgreSQL of one's own, to stop and kill.
pub async fn own_postgres(version: PostgresVersion, settings: &[(&str, &str)]) -> Postgres {
    let settings = settings
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let options = PostgresOptions { version, settings };
    shared()
        .await
        .own
        .postgres(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A Kafka of one's own, to kill.
pub async fn own_kafka() -> Kafka {
    shared()
        .await
        .own
        .kafka()
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A child of ours must end with the run, however it ends.
pub async fn adopt(pid: u32) {
    shared().await.servers.adopt(pid);
}

/// It has ended.
pub async fn release(pid: u32) {
    shared().await.servers.release(pid);
}

/// A database of one test, with schema `outbox`.
pub struct TestDatabase {
    pub url: String,
    pub name: String,
}

impl TestDatabase {
    /// On the shared server.
    pub async fn new() -> Self {
        Self::on(&shared().await.postgres).await
    }

    /// On this server.
    pub async fn on(postgres: &Postgres) -> Self {
        let name = unique("t").replace('-', "_");
        let admin = connect(postgres.url()).await;
        admin
            .batch_execute(&format!("create database {name}"))
            .await
            .expect("create database");
        let (base, _) = postgres
            .url()
            .rsplit_once('/')
            .expect("a url with a database");
        let url = format!("{base}/{name}");
        outbox_relay::init::init(&Database::parse(&url).expect("a usable url"))
            .await
            .expect("init");
        Self { url, name }
    }

    pub fn database(&self) -> Database {
        Database::parse(&self.url).expect("a usable url")
    }

    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }
}

/// A plain connection.
pub async fn connect(url: &str) -> Client {
    Database::parse(url)
        .expect("a usable url")
        .connect()
        .await
        .expect("a connection")
}
