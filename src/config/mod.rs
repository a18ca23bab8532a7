//! Settings: one list, read from flags, then the environment, then a TOML file, then defaults.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::capture::{BatchLimits, CaptureKind, CaptureSettings, Columns, Start};
use crate::database::Database;
use crate::fault::Fault;
use crate::park::{OnFault, ParkSettings};
use crate::sink::kafka::{KafkaSettings, check_properties, topic};

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// Apache Kafka, exactly once.
    Kafka,
    /// This process's memory: to try the database side without a broker. Gone at the end.
    Memory,
}

impl SinkKind {
    /// As settings name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Memory => "memory",
        }
    }
}

/// Where a relay begins that never ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartKind {
    /// All rows that are in the table.
    Beginning,
    /// Only what commits from now on.
    Now,
}

/// Declares each setting once: the flag, the environment variable, the TOML key, and how the layers merge.
macro_rules! options {
    ($( $(#[doc = $doc:literal])+ $name:ident : $kind:ty, $env:literal, $help:literal $(, $hide:ident)? ; )+) => {
        /// Settings as they were given, each in one layer; see the help of `outbox-relay run`.
        #[derive(Args, Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Options {
            $(
                $(#[doc = $doc])+
                #[arg(long, env = $env, help = $help $(, $hide = true)?)]
                pub $name: Option<$kind>,
            )+
            /// Properties of librdkafka, `key=value`, for TLS, SASL, compression.
            #[arg(
                long = "kafka-property", env = "OUTBOX_RELAY_KAFKA_PROPERTIES", value_name = "KEY=VALUE", value_delimiter = '\n',
                hide_env_values = true,
                help = "Property of librdkafka, e.g. security.protocol=SASL_SSL; repeat, or one a line in the environment; \
                        [kafka_properties] in the file"
            )]
            #[serde(skip)]
            pub kafka_property: Vec<String>,
            /// The same in the file.
            #[arg(skip)]
            pub kafka_properties: Option<BTreeMap<String, String>>,
            /// Column names, in the file only.
            #[arg(skip)]
            pub columns: Option<Columns>,
        }

        impl Options {
            /// `self` where it says something, else `lower`.
            fn over(self, lower: Self) -> Result<Self, Fault> {
                let mut properties = lower.kafka_properties.unwrap_or_default();
                properties.extend(key_values(&self.kafka_property)?);
                Ok(Self {
                    $( $name: self.$name.or(lower.$name), )+
                    kafka_property: Vec::new(),
                    kafka_properties: Some(properties),
                    columns: self.columns.or(lower.columns),
                })
            }
        }
    };
}

options! {
    /// Name of the relay. It names the position topic, the transactional.id and the lease, so there is no default.
    name: String, "OUTBOX_RELAY_NAME", "Name of the relay: letters, digits, '.', '_', '-'; names its position topic, transactional.id and lease";
    /// Address of the database.
    database_url: String, "OUTBOX_RELAY_DATABASE_URL", "postgres://user:password@host:5432/db, or a unix socket: postgres://user@%2Fvar%2Frun%2Fpostgresql/db", hide_env_values;
    /// Address of the brokers.
    kafka_brokers: String, "OUTBOX_RELAY_KAFKA_BROKERS", "Kafka brokers, host:port, separated by commas";
    /// Where events go.
    sink: SinkKind, "OUTBOX_RELAY_SINK", "Where events go [default: kafka]";
    /// Where events come from.
    capture: CaptureKind, "OUTBOX_RELAY_CAPTURE", "How committed events are found [default: table]";
    /// Replication slot and publication of capture wal.
    slot: String, "OUTBOX_RELAY_SLOT", "Replication slot of capture wal, and its publication: lower-case letters, digits, '_' [default: outbox_relay_NAME]";
    /// The outbox table.
    table: String, "OUTBOX_RELAY_TABLE", "The outbox table [default: outbox.events]";
    /// Topic of rows without one.
    route: String, "OUTBOX_RELAY_ROUTE", "Topic of rows without one [default: outbox.event.{aggregate_type}]";
    /// Where to begin without a position.
    start: StartKind, "OUTBOX_RELAY_START", "Where a relay begins that never ran [default: beginning]";
    /// Events in a batch.
    batch_events_max: u64, "OUTBOX_RELAY_BATCH_EVENTS_MAX", "Events in one Kafka transaction, at most, and 10000 database transactions; a larger one goes alone [default: 10000]";
    /// Payload bytes in a batch.
    batch_bytes_max: u64, "OUTBOX_RELAY_BATCH_BYTES_MAX", "Payload bytes in one Kafka transaction, at most; a larger database transaction goes alone [default: 4194304]";
    /// Group commit.
    linger_ms: u64, "OUTBOX_RELAY_LINGER_MS", "Milliseconds a found transaction waits for others to share its Kafka transaction [default: 0]";
    /// Shortest time between two looks.
    poll_ms_min: u64, "OUTBOX_RELAY_POLL_MS_MIN", "Milliseconds between two looks at the table while events flow [default: 5]";
    /// Longest time between two looks.
    poll_ms_max: u64, "OUTBOX_RELAY_POLL_MS_MAX", "Milliseconds between two looks at the table when it is quiet [default: 100]";
    /// Kafka's limit for an open transaction.
    transaction_timeout_ms: u32, "OUTBOX_RELAY_TRANSACTION_TIMEOUT_MS", "Milliseconds after which Kafka aborts an unfinished transaction [default: 60000]";
    /// Whether the position topic is made and checked.
    check_position_topic: bool, "OUTBOX_RELAY_CHECK_POSITION_TOPIC", "false: the position topic must be there and is not checked, for principals that may not describe configurations [default: true]";
    /// Whether missing topics are made.
    create_topics: bool, "OUTBOX_RELAY_CREATE_TOPICS", "true: create missing topics; false: what is for one is parked [default: false]";
    /// Partitions of a topic that is made.
    topic_partitions: i32, "OUTBOX_RELAY_TOPIC_PARTITIONS", "Partitions of a topic that create_topics makes [default: 3]";
    /// Replication factor of a topic that is made.
    topic_replication_factor: i32, "OUTBOX_RELAY_TOPIC_REPLICATION_FACTOR", "Replicas of a topic that create_topics makes; -1: the broker's default [default: -1]";
    /// What happens to a transaction that can't be published.
    on_fault: OnFault, "OUTBOX_RELAY_ON_FAULT", "What happens to a transaction that can't be published for a reason of its own [default: park]";
    /// Events that may be parked or held.
    parked_events_max: u64, "OUTBOX_RELAY_PARKED_EVENTS_MAX", "Events that may be parked or held; beyond it the relay stops [default: 100000]";
    /// Bytes that may be parked or held.
    parked_bytes_max: u64, "OUTBOX_RELAY_PARKED_BYTES_MAX", "Their payload bytes [default: 268435456]";
    /// Told of what is parked.
    dead_letter_topic: String, "OUTBOX_RELAY_DEAD_LETTER_TOPIC", "Topic that is told of each transaction that is parked, in the Kafka transaction that passes it; a tombstone when it is settled [default: none]";
    /// How long published rows stay.
    retention_minutes: u32, "OUTBOX_RELAY_RETENTION_MINUTES", "Minutes that a published row stays in the table, then it is deleted; without it rows stay for ever";
    /// Time after which a silent holder loses the lease.
    lease_ms: u64, "OUTBOX_RELAY_LEASE_MS", "Milliseconds after which a silent relay loses the lease [default: 1500]";
    /// Time to finish after a signal.
    drain_ms: u64, "OUTBOX_RELAY_DRAIN_MS", "Milliseconds to finish the batch under way after SIGTERM or Ctrl-C [default: 10000]";
    /// Where the admin endpoint listens.
    admin_listen: String, "OUTBOX_RELAY_ADMIN_LISTEN", "Where probes, metrics and the status page are served: a port of the loopback address, or address:port, e.g. 9464 or 0.0.0.0:9464; port 0 is a free one [default: nowhere]";
    /// Time after which a loop without a step is stalled.
    stalled_ms: u64, "OUTBOX_RELAY_STALLED_MS", "Milliseconds without a step of the loop, while both servers answer, after which /livez fails [default: 300000, or transaction-timeout-ms if that is more]";
}

/// All settings of a relay, checked.
#[derive(Clone)]
pub struct Settings {
    /// Name of the relay.
    pub name: String,
    /// The database.
    pub database: Database,
    /// Where events go.
    pub sink: SinkKind,
    /// Where it begins.
    pub start: Start,
    /// Where events come from.
    pub capture: CaptureKind,
    /// The outbox, for whichever capture.
    pub outbox: CaptureSettings,
    /// The Kafka sink's part; its brokers are empty for another sink.
    pub kafka: KafkaSettings,
    /// What happens to a transaction that can't be published.
    pub park: ParkSettings,
    /// How many minutes published rows stay; none: for ever.
    pub retention_minutes: Option<i32>,
    /// Time after which a silent holder loses the lease.
    pub lease_time: Duration,
    /// Time to finish after a signal.
    pub drain_time: Duration,
    /// Where the admin endpoint listens, if anywhere.
    pub admin_listen: Option<SocketAddr>,
    /// Time after which a loop without a step is stalled.
    pub stalled_time: Duration,
}

/// Never with their text, which may be a password. Empty lines are what a file in the environment ends in.
fn key_values(given: &[String]) -> Result<Vec<(String, String)>, Fault> {
    let pairs = given.iter().enumerate();
    let pairs = pairs.filter(|(_, text)| !text.trim().is_empty());
    let pair = |(index, text): (usize, &String)| match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err(wrong(format!(
            "Kafka property {} of those that were given is not usable; it must look like key=value",
            index + 1
        ))),
    };
    pairs.map(pair).collect()
}

/// What the parser says, but for the value that is wrong, which may be a password.
fn without_value(message: &str) -> String {
    let quotes = ["invalid type", "invalid value"]
        .into_iter()
        .find(|kind| message.starts_with(kind));
    let message = match (quotes, message.rsplit_once(", expected ")) {
        (Some(kind), Some((_, expected))) => format!("{kind}, expected {expected}"),
        (Some(kind), None) => kind.to_owned(),
        (None, _) => message.to_owned(),
    };
    message.replace('\n', " ")
}

/// A Kafka topic name is made of the relay's name.
fn legal_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=200).contains(&name.len()) && name.chars().all(legal)
}

fn wrong(text: impl Into<String>) -> Fault {
    Fault::Setting(text.into())
}

impl Options {
    /// Lays the options over those of the file, if there is one.
    ///
    /// # Errors
    /// [`Fault::Setting`] if the file can't be read or holds an unknown key; it never repeats a value of the file.
    pub fn with_file(self, path: Option<&Path>) -> Result<Self, Fault> {
        let Some(path) = path else {
            return self.over(Self::default());
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            wrong(format!(
                "configuration file {} can't be read: {error}",
                path.display()
            ))
        })?;
        let lower: Self = toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            wrong(format!(
                "configuration file {}, line {line}: {}",
                path.display(),
                without_value(error.message())
            ))
        })?;
        self.over(lower)
    }

    /// The database alone, for commands that need nothing else.
    ///
    /// # Errors
    /// [`Fault::Setting`] if the address is missing or can't be used.
    pub fn database(&self) -> Result<Database, Fault> {
        let url = self.database_url.as_deref().ok_or_else(|| {
            wrong("database-url is missing; give --database-url, OUTBOX_RELAY_DATABASE_URL or database_url in the configuration file")
        })?;
        Database::parse(url)
    }

    /// Checks everything, before anything is touched.
    ///
    /// # Errors
    /// [`Fault::Setting`] with the key and what would be right.
    pub fn settle(&self) -> Result<Settings, Fault> {
        let name = self.name()?;
        let database = self.database()?;
        let sink = self.sink.unwrap_or(SinkKind::Kafka);
        let capture = self.capture.unwrap_or(CaptureKind::Table);
        let instance = instance();
        let kafka = self.kafka(name.clone(), instance.clone())?;
        let stalled_ms = self.stalled_ms(kafka.transaction_timeout_ms.into())?;
        let outbox = CaptureSettings {
            registers: sink == SinkKind::Kafka,
            instance: instance.clone(),
            ..self.outbox()?
        };
        Ok(Settings {
            capture,
            park: ParkSettings {
                on_fault: self.on_fault.unwrap_or(OnFault::Park),
                events_max: self.parked_events_max.unwrap_or(100_000),
                bytes_max: self.parked_bytes_max.unwrap_or(256 << 20),
                dead_letter_topic: self.dead_letter_topic(sink)?,
                batch_events_max: outbox.batch.events_max,
                batch_bytes_max: outbox.batch.bytes_max,
            },
            outbox,
            kafka,
            name,
            database,
            sink,
            start: match self.start.unwrap_or(StartKind::Beginning) {
                StartKind::Beginning => Start::Beginning,
                StartKind::Now => Start::Now,
            },
            retention_minutes: self.retention(sink)?,
            lease_time: Duration::from_millis(at_least(
                "lease-ms",
                self.lease_ms.unwrap_or(1_500),
                300,
            )?),
            drain_time: Duration::from_millis(self.drain_ms.unwrap_or(10_000)),
            admin_listen: self.admin_listen()?,
            stalled_time: Duration::from_millis(stalled_ms),
        })
    }

    /// The Kafka sink's part, for a relay of this name; its brokers are empty for another sink.
    ///
    /// # Errors
    /// As those of [`Options::settle`].
    pub fn kafka(&self, name: String, instance: String) -> Result<KafkaSettings, Fault> {
        let brokers = self.brokers()?;
        check_brokers(&brokers)?;
        let properties = self.kafka_properties.clone().unwrap_or_default();
        check_properties(&properties)?;
        let transaction_timeout_ms = at_least(
            "transaction-timeout-ms",
            u64::from(self.transaction_timeout_ms.unwrap_or(60_000)),
            10_000,
        )?;
        Ok(KafkaSettings {
            properties,
            transaction_timeout_ms: u32::try_from(transaction_timeout_ms).unwrap_or(u32::MAX),
            check_position_topic: self.check_position_topic.unwrap_or(true),
            create_topics: self.create_topics.unwrap_or(false),
            topic_partitions: positive("topic-partitions", self.topic_partitions.unwrap_or(3))?,
            topic_replication_factor: self.replication_factor()?,
            ..KafkaSettings::new(brokers, name, instance)
        })
    }

    fn dead_letter_topic(&self, sink: SinkKind) -> Result<Option<String>, Fault> {
        match (&self.dead_letter_topic, sink) {
            (None, _) => Ok(None),
            (Some(_), SinkKind::Memory) => Err(wrong(
                "dead-letter-topic has no meaning with sink memory; leave one of the two out",
            )),
            (Some(topic), _) if topic::is_legal(topic) => Ok(Some(topic.clone())),
            (Some(topic), _) => Err(wrong(format!(
                "dead-letter-topic {topic:?} is not usable: {}",
                topic::LEGAL
            ))),
        }
    }

    fn brokers(&self) -> Result<String, Fault> {
        let brokers = self.kafka_brokers.as_deref().unwrap_or_default().trim();
        match (self.sink.unwrap_or(SinkKind::Kafka), brokers) {
            (SinkKind::Kafka, "") => Err(wrong(
                "kafka-brokers is missing; give --kafka-brokers, OUTBOX_RELAY_KAFKA_BROKERS or kafka_brokers in the configuration file",
            )),
            (SinkKind::Memory, brokers) if !brokers.is_empty() => Err(wrong(
                "kafka-brokers has no meaning with sink memory; leave one of the two out",
            )),
            (_, brokers) => Ok(brokers.to_owned()),
        }
    }

    /// A port alone is one of the loopback address: whoever wants others to see it says so.
    fn admin_listen(&self) -> Result<Option<SocketAddr>, Fault> {
        let Some(text) = self.admin_listen.as_deref().map(str::trim) else {
            return Ok(None);
        };
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listen = text.parse().map(loopback).or_else(|_| text.parse());
        listen.map(Some).map_err(|_: std::net::AddrParseError| {
            wrong(format!(
                "admin-listen {text:?} is not usable; it would look like 9464 (loopback only) or 0.0.0.0:9464"
            ))
        })
    }

    /// The longest step of a loop that is well is a Kafka transaction.
    fn stalled_ms(&self, transaction_timeout_ms: u64) -> Result<u64, Fault> {
        match self.stalled_ms {
            None => Ok(transaction_timeout_ms.max(300_000)),
            Some(_) if self.admin_listen.is_none() => Err(wrong(
                "stalled-ms has no meaning without admin-listen; leave it out",
            )),
            Some(ms) if ms < transaction_timeout_ms => Err(wrong(format!(
                "stalled-ms is {ms}; it must not be less than transaction-timeout-ms ({transaction_timeout_ms})"
            ))),
            Some(ms) => Ok(ms),
        }
    }

    fn name(&self) -> Result<String, Fault> {
        let name = self.name.clone().ok_or_else(|| {
            wrong(
                "name is missing; give --name, OUTBOX_RELAY_NAME or name in the configuration file",
            )
        })?;
        match legal_name(&name) {
            true => Ok(name),
            false => Err(wrong(format!(
                "name {name:?} is not usable: 1 to 200 letters, digits, '.', '_' or '-'"
            ))),
        }
    }

    /// The outbox alone, for commands that need no sink.
    ///
    /// # Errors
    /// As those of [`Options::settle`].
    pub fn outbox(&self) -> Result<CaptureSettings, Fault> {
        self.check_capture()?;
        let name = self.name()?;
        let poll_min = at_least("poll-ms-min", self.poll_ms_min.unwrap_or(5), 1)?;
        let poll_max = self.poll_ms_max.unwrap_or(100);
        if poll_max < poll_min {
            return Err(wrong(format!(
                "poll-ms-max is {poll_max} and poll-ms-min {poll_min}; the first must not be the smaller one"
            )));
        }
        let route = self
            .route
            .clone()
            .unwrap_or_else(|| "outbox.event.{aggregate_type}".to_owned());
        if !legal_name(&route.replace("{aggregate_type}", "a")) {
            return Err(wrong(format!(
                "route {route:?} makes no legal topic; it would look like outbox.event.{{aggregate_type}}"
            )));
        }
        Ok(CaptureSettings {
            slot: self.slot(&name)?,
            name,
            instance: instance(),
            registers: true,
            table: self.table()?,
            columns: self.columns.clone().unwrap_or_default(),
            route,
            batch: BatchLimits {
                events_max: at_least(
                    "batch-events-max",
                    self.batch_events_max.unwrap_or(10_000),
                    1,
                )?,
                bytes_max: at_least(
                    "batch-bytes-max",
                    self.batch_bytes_max.unwrap_or(4 << 20),
                    1,
                )?,
                transactions_max: u64::MAX,
            },
            linger: Duration::from_millis(self.linger_ms.unwrap_or(0)),
            poll_min: Duration::from_millis(poll_min),
            poll_max: Duration::from_millis(poll_max),
        })
    }

    /// The outbox table alone.
    ///
    /// # Errors
    /// [`Fault::Setting`] if it is not `schema.table`.
    pub fn table(&self) -> Result<String, Fault> {
        let table = self
            .table
            .clone()
            .unwrap_or_else(|| "outbox.events".to_owned());
        match table.split('.').count() != 2 || table.split('.').any(str::is_empty) {
            false => Ok(table),
            true => Err(wrong(format!(
                "table {table:?} is not usable; it would look like outbox.events"
            ))),
        }
    }

    /// Settings of one capture have no meaning with the other.
    fn check_capture(&self) -> Result<(), Fault> {
        match self.capture.unwrap_or(CaptureKind::Table) {
            CaptureKind::Table if self.slot.is_some() => Err(wrong(
                "slot has no meaning with capture table; leave it out, or give --capture wal",
            )),
            CaptureKind::Wal if self.poll_ms_min.is_some() => Err(wrong(
                "poll-ms-min has no meaning with capture wal, which does not poll; leave it out",
            )),
            _ => Ok(()),
        }
    }

    /// Slots share one name space on a server, and PostgreSQL allows them few characters.
    fn slot(&self, name: &str) -> Result<String, Fault> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let slot = self.slot.clone().unwrap_or_else(|| {
            let name = name.to_ascii_lowercase();
            format!("outbox_relay_{}", name.replace(|c| !legal(c), "_"))
        });
        match (1..=63).contains(&slot.len()) && slot.chars().all(legal) {
            true => Ok(slot),
            false => Err(wrong(format!(
                "slot {slot:?} is not usable: 1 to 63 lower-case letters, digits or '_'"
            ))),
        }
    }

    fn retention(&self, sink: SinkKind) -> Result<Option<i32>, Fault> {
        /// A hundred years; PostgreSQL reckons no further back than some thousands.
        const MOST: u32 = 100 * 366 * 24 * 60;
        match (self.retention_minutes, sink) {
            (None, _) => Ok(None),
            (Some(_), SinkKind::Memory) => Err(wrong(
                "retention-minutes has no meaning with sink memory, which publishes nothing; leave one of the two out",
            )),
            (Some(minutes @ 1..=MOST), _) => Ok(i32::try_from(minutes).ok()),
            (Some(minutes), _) => Err(wrong(format!(
                "retention-minutes is {minutes}; it must be 1 to {MOST}, or left out: then rows stay for ever"
            ))),
        }
    }

    fn replication_factor(&self) -> Result<i32, Fault> {
        match self.topic_replication_factor.unwrap_or(-1) {
            -1 => Ok(-1),
            other => positive("topic-replication-factor", other),
        }
    }
}

fn check_brokers(brokers: &str) -> Result<(), Fault> {
    for broker in brokers.split(',').filter(|_| !brokers.is_empty()) {
        let port = broker
            .trim()
            .rsplit_once(':')
            .map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
        if !matches!(port, Some((false, Ok(1..)))) {
            return Err(wrong(format!(
                "kafka-brokers: {:?} is no address; it would look like 127.0.0.1:9092",
                broker.trim()
            )));
        }
    }
    Ok(())
}

fn at_least(key: &str, value: u64, least: u64) -> Result<u64, Fault> {
    if value < least {
        Err(wrong(format!(
            "{key} is {value}; it must be {least} or more"
        )))
    } else {
        Ok(value)
    }
}

fn positive(key: &str, value: i32) -> Result<i32, Fault> {
    if value < 1 {
        Err(wrong(format!("{key} is {value}; it must be 1 or more")))
    } else {
        Ok(value)
    }
}

/// Host and process id, for people who look for the active relay, and a random part: in a container that is restarted
/// host and process id come again, and position records must tell the processes apart.
fn instance() -> String {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    format!(
        "{}:{}:{:08x}",
        host.as_deref().unwrap_or("unknown"),
        std::process::id(),
        fastrand::u32(..)
    )
}

/// The configuration file, as a flag of every command that has settings.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigFile {
    /// TOML file with settings.
    #[arg(
        long,
        env = "OUTBOX_RELAY_CONFIG",
        value_name = "FILE",
        help = "TOML file with settings; flags and environment win over it"
    )]
    pub config: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
