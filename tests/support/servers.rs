//! The servers of the test run: one PostgreSQL and one Kafka that all share, and own ones for tests that kill them.

use std::sync::LazyLock;

use outbox_relay::database::Database;
use outbox_relay::servers::{Kafka, Postgres, PostgresOptions, PostgresVersion, Servers, Sources};
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use url::Url;

use super::{unique, until};

/// What all tests share.
pub struct Shared {
    /// Owns the two.
    _servers: Servers,
    pub postgres: Postgres,
    pub kafka: Kafka,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();
static OWN: LazyLock<Servers> = LazyLock::new(|| {
    let sources = Sources {
        database_url: None,
        kafka_brokers: None,
        ..Sources::from_env()
    };
    Servers::with(sources, None::<fn(&str)>).unwrap_or_else(|error| panic!("{error}"))
});
static OTHER_POSTGRES: [OnceCell<Postgres>; 3] = [const { OnceCell::const_new() }; 3];

/// The shared servers; started by the first test that asks. If none can be had, that test fails and says what to install.
pub async fn shared() -> &'static Shared {
    SHARED
        .get_or_init(|| async {
            let servers = Servers::new().unwrap_or_else(|error| panic!("{error}"));
            let options = logical(PostgresVersion::default(), &[]);
            let (postgres, kafka) = tokio::join!(servers.postgres(options), servers.kafka());
            Shared {
                postgres: postgres.unwrap_or_else(|error| panic!("{error}")),
                kafka: kafka.unwrap_or_else(|error| panic!("{error}")),
                _servers: servers,
            }
        })
        .await
}

/// Servers to stop and kill: never those whose addresses were given.
pub fn own() -> &'static Servers {
    &OWN
}

/// A shared server of another major version than the default one.
pub async fn postgres_of(version: PostgresVersion) -> &'static Postgres {
    let slot = match version {
        PostgresVersion::V14 => &OTHER_POSTGRES[0],
        PostgresVersion::V15 => &OTHER_POSTGRES[1],
        PostgresVersion::V18 => &OTHER_POSTGRES[2],
        PostgresVersion::V17 => return &shared().await.postgres,
    };
    slot.get_or_init(|| own_postgres(version, &[])).await
}

/// A server that both captures can read from: the table capture would be content without.
fn logical(version: PostgresVersion, settings: &[(&str, &str)]) -> PostgresOptions {
    let for_wal = [
        ("wal_level", "logical"),
        ("max_replication_slots", "60"),
        ("max_wal_senders", "60"),
    ];
    let all = for_wal.iter().chain(settings);
    PostgresOptions {
        version,
        settings: all
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

/// A PostgreSQL of one's own, to stop and kill.
pub async fn own_postgres(version: PostgresVersion, settings: &[(&str, &str)]) -> Postgres {
    own()
        .postgres(logical(version, settings))
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A primary of one's own with an asynchronous standby.
pub async fn own_postgres_with_standby() -> [Postgres; 2] {
    own()
        .postgres_with_standby(logical(PostgresVersion::default(), &[]))
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Lets the standby keep the primary's logical slots too (PostgreSQL 17, "Logical Replication Failover").
pub async fn keep_slots(primary: &Postgres, standby: &Postgres) {
    let port = Url::parse(primary.url()).expect("a url").port();
    let port = port.expect("a port");
    let client = connect(primary.url()).await;
    let slot = "select pg_create_physical_replication_slot('standby', true)";
    client.batch_execute(slot).await.expect("a physical slot");
    let client = connect(standby.url()).await;
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    for setting in [
        "primary_slot_name = 'standby'".to_owned(),
        "hot_standby_feedback = on".to_owned(),
        "sync_replication_slots = on".to_owned(),
        format!("primary_conninfo = '{conninfo}'"),
    ] {
        let alter = format!("alter system set {setting}");
        client.batch_execute(&alter).await.expect("a setting");
    }
    client
        .batch_execute("select pg_reload_conf()")
        .await
        .expect("a reload");
}

/// Waits until the standby has the slots of the primary.
pub async fn slots_are_kept(primary: &Postgres, standby: &Postgres) {
    let (primary, client) = (connect(primary.url()).await, connect(standby.url()).await);
    until("the slots are on the standby", 60, async || {
        let kept = "select count(*) from pg_replication_slots where synced and not temporary";
        // A slot that stands before what the standby still has is kept once it has moved on.
        let move_on = "select pg_log_standby_snapshot()";
        primary.batch_execute(move_on).await.expect("a snapshot");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        client
            .query_one(kept, &[])
            .await
            .is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
}

/// Makes a standby a primary, on a timeline of its own.
pub async fn promote(standby: &Postgres) {
    let client = connect(standby.url()).await;
    let promote = "select pg_promote(wait_seconds => 60)";
    let promoted = client.query_one(promote, &[]).await.unwrap();
    assert!(promoted.get::<_, bool>(0));
}

/// A Kafka of one's own, to kill.
pub async fn own_kafka() -> Kafka {
    own()
        .kafka()
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Three Kafka nodes of one's own.
pub async fn own_kafka_cluster() -> Kafka {
    own()
        .kafka_cluster()
        .await
        .unwrap_or_else(|error| panic!("{error}"))
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
        let url = url_of(postgres, &name);
        outbox_relay::init::init(&Database::parse(&url).expect("a usable url"))
            .await
            .expect("init");
        Self { url, name }
    }

    /// At the end of a test: a slot that is left keeps the server's WAL.
    pub async fn drop_slots(&self) {
        let client = self.connect().await;
        let drop = "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots where database = current_database()";
        until("no slot is left", 10, async || {
            client.query_one(drop, &[]).await.is_ok()
        })
        .await;
    }

    /// The same database on a standby of its server.
    pub fn moved_to(&self, postgres: &Postgres) -> Self {
        Self {
            url: url_of(postgres, &self.name),
            name: self.name.clone(),
        }
    }

    /// Waits until a standby has so many rows of a table. At first it lacks the database, too.
    pub async fn has(&self, table: &str, rows: i64) {
        until("the standby has it", 30, async || {
            let Ok(client) = self.database().connect().await else {
                return false;
            };
            let count = format!("select count(*) from {table}");
            let count = client.query_one(&count, &[]).await;
            count.is_ok_and(|row| row.get::<_, i64>(0) == rows)
        })
        .await;
    }

    /// Whichever of the two servers answers.
    pub fn or(&self, other: &Self) -> Self {
        let place = |url: &str| {
            let (_, rest) = url.rsplit_once('@').expect("a url with a user");
            rest.split('/').next().expect("a place").to_owned()
        };
        let (first, second) = (place(&self.url), place(&other.url));
        Self {
            url: self.url.replace(&first, &format!("{first},{second}")),
            name: self.name.clone(),
        }
    }

    pub fn database(&self) -> Database {
        Database::parse(&self.url).expect("a usable url")
    }

    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }
}

fn url_of(postgres: &Postgres, database: &str) -> String {
    let url = postgres.url();
    let (base, _) = url.rsplit_once('/').expect("a url with a database");
    format!("{base}/{database}")
}

/// A plain connection.
pub async fn connect(url: &str) -> Client {
    Database::parse(url)
        .expect("a usable url")
        .connect()
        .await
        .expect("a connection")
}
