//! What was found out about both servers, and what could not be.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::capture::registry::Registration;
use crate::capture::route::Route;
use crate::config::Settings;
use crate::position::{Lsn, Origin, Position, Xid};

/// Why something is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(pub String);

/// A fact, or why it is not known.
pub type Known<T> = Result<T, Unknown>;

pub(super) fn unknown<T>(why: impl Into<String>) -> Known<T> {
    Err(Unknown(why.into()))
}

/// A fact that others build on.
pub(super) fn known<T>(fact: &Known<T>) -> Known<&T> {
    fact.as_ref().map_err(Clone::clone)
}

/// All that the checks look at.
pub struct Facts {
    /// How the relay is set up.
    pub settings: Settings,
    /// The database side.
    pub postgres: Known<PostgresFacts>,
    /// The brokers' side; `None` with another sink.
    pub kafka: Option<Known<KafkaFacts>>,
}

/// PostgreSQL, as this role sees it.
pub struct PostgresFacts {
    pub answered_ms: u128,
    /// By how much its clock is ahead of ours.
    pub clock_ahead_ms: i64,
    pub server: ServerFacts,
    /// Whether a session keeps what was set in it, and is ours alone.
    pub session: Known<SessionFacts>,
    pub schema: Known<SchemaFacts>,
    /// `None`: there is no such table.
    pub table: Known<Option<TableFacts>>,
    pub missing_privileges: Known<Vec<Privilege>>,
    pub registrations: Known<Vec<Registration>>,
    /// A row's transaction that this server has not reached.
    pub foreign: Known<Option<String>>,
    pub transactions: Known<Transactions>,
    pub prepared: Known<Vec<Prepared>>,
    pub slots: Known<Vec<SlotFacts>>,
    pub publication: Known<Option<Publication>>,
    /// Whether the table holds rows from before the slot; `None`: outbox.slots does not know when it was made.
    pub older_rows: Known<Option<bool>>,
    /// Where the newest rows go.
    pub destinations: Known<Vec<Destination>>,
    pub origin: Known<(Origin, Xid)>,
    /// Timelines that the server has left, and where.
    pub left: Known<Vec<(u32, Lsn)>>,
    /// Cluster that answers on a replication connection.
    pub streams_from: Known<String>,
    /// Transactions open for longer are told.
    pub old_after_s: i64,
}

/// A setting of the server.
#[derive(Debug, Clone, Deserialize)]
pub struct Setting {
    pub value: String,
    pub source: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ServerFacts {
    pub version: String,
    pub version_num: u32,
    pub is_standby: bool,
    pub clock_ms: i64,
    pub database: String,
    pub role: String,
    pub role_replicates: bool,
    pub connections: i64,
    pub role_limit: i64,
    pub role_connections: i64,
    pub database_limit: i64,
    pub database_connections: i64,
    pub senders: i64,
    pub settings: BTreeMap<String, Setting>,
    /// Databases and roles with `synchronous_commit = off` of their own, quoted.
    pub asynchronous: Vec<Scope>,
}

/// Where a setting was made.
#[derive(Debug, Clone, Deserialize)]
pub struct Scope {
    pub database: Option<String>,
    pub role: Option<String>,
}

impl ServerFacts {
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |it| &it.value)
    }

    pub fn number(&self, name: &str) -> i64 {
        self.setting(name).parse().unwrap_or(0)
    }
}

/// Two connections that are open at once, asked in turn.
#[derive(Debug, Clone)]
pub struct SessionFacts {
    /// Process ids that the first connection, and the second, reached.
    pub reached: [Vec<i32>; 2],
    /// The first one's `idle_session_timeout`, which was set before.
    pub idle_session_timeout_ms: Vec<i64>,
    pub lease_ms: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct SchemaFacts {
    pub exists: bool,
    pub is_ours: bool,
    pub may_read: bool,
    /// The highest migration that was applied.
    #[serde(default)]
    pub applied: i32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct TableFacts {
    /// Both quoted where they must be.
    pub schema: String,
    pub name: String,
    pub is_partitioned: bool,
    pub hides_rows: bool,
    pub unlogged: Vec<String>,
    pub columns: BTreeMap<String, ColumnFacts>,
    pub indexes: Vec<Option<Vec<String>>>,
    pub sequence: Option<Sequence>,
    pub triggers: Vec<String>,
    pub rules: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ColumnFacts {
    #[serde(rename = "type")]
    pub kind: String,
    pub not_null: bool,
    pub identity: bool,
    pub default: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Sequence {
    pub name: String,
    pub cache: i64,
    pub increment: i64,
    pub cycles: bool,
}

/// A privilege that the relay needs.
#[derive(Debug, Clone, Deserialize)]
pub struct Privilege {
    pub privilege: String,
    pub kind: String,
    pub object: String,
    pub purpose: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Transactions {
    /// Open ones of other roles, whose age this role may not see.
    pub hidden: i64,
    pub old: Vec<OpenTransaction>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct OpenTransaction {
    pub pid: i32,
    pub role: Option<String>,
    pub application: Option<String>,
    pub database: Option<String>,
    pub state: Option<String>,
    pub age_s: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Prepared {
    /// As a literal.
    pub gid: String,
    pub owner: String,
    pub database: String,
    pub age_s: i64,
}

/// A row of `pg_replication_slots`; columns that older versions lack have a default.
#[derive(Debug, Clone, Deserialize)]
pub struct SlotFacts {
    pub slot_name: String,
    pub plugin: Option<String>,
    pub active: bool,
    pub temporary: bool,
    pub wal_status: Option<String>,
    pub safe_wal_size: Option<i64>,
    pub confirmed_flush_lsn: Option<String>,
    pub invalidation_reason: Option<String>,
    pub inactive_since: Option<String>,
    pub failover: Option<bool>,
    pub is_of_this_database: bool,
    pub retained_bytes: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Publication {
    pub publishes_inserts: bool,
    pub through_root: bool,
    pub has_table: bool,
    pub row_filter: Option<String>,
    pub columns: Option<Vec<String>>,
}

/// Topic, or aggregate type, of some of the newest rows.
#[derive(Debug, Clone, Deserialize)]
pub struct Destination {
    pub topic: Option<String>,
    pub aggregate_type: Option<String>,
    /// One of them is not published.
    pub waits: bool,
}

impl Destination {
    /// Its topic, as the relay chooses it.
    pub fn name(&self, route: &str) -> String {
        let mut route = Route::new(route);
        route
            .topic(self.topic.as_deref(), self.aggregate_type.as_deref())
            .to_string()
    }
}

/// Kafka, as this principal sees it.
pub struct KafkaFacts {
    pub answered_ms: u128,
    pub brokers: usize,
    /// Requests that a broker understands, with their versions; empty: it was not learnt.
    pub requests: BTreeMap<String, [i16; 2]>,
    /// Settings of one of the brokers.
    pub broker: Known<Config>,
    pub transaction_state: Known<Option<TopicFacts>>,
    pub position_topic: Known<Option<TopicFacts>>,
    pub position: Known<Option<Position>>,
    /// Those that rows name, in the order of their names.
    pub topics: Vec<(String, Known<Option<TopicFacts>>)>,
    /// What was refused.
    pub denied: Vec<Denied>,
}

/// Settings by name.
pub type Config = BTreeMap<String, String>;

/// A topic.
#[derive(Debug, Clone)]
pub struct TopicFacts {
    pub partitions: usize,
    /// The fewest copies that a partition has.
    pub replicas: usize,
    /// Partitions without a leader.
    pub leaderless: usize,
    pub config: Known<Config>,
}

impl TopicFacts {
    pub fn setting(&self, key: &str) -> Known<&str> {
        Ok(known(&self.config)?.get(key).map_or("", String::as_str))
    }
}

/// A request that Kafka's authorizer refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// As kafka-acls.sh takes it: `--topic NAME`, `--cluster`.
    pub resource: String,
    pub operation: &'static str,
    /// Whether the relay can't do without.
    pub is_needed: bool,
}
