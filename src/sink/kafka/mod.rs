//! The Kafka sink: a batch and its position in one Kafka transaction.
//!
//! `machine` decides, `producer` carries out, `position_topic` keeps the position, `topic` knows topics, `batches` how much they take at once, `record` is what is
//! written, and `classify` says what an error means.

mod batches;
pub mod classify;
mod late;
pub mod machine;
pub mod position_topic;
pub mod probe;
pub mod producer;
pub mod record;
pub mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use crate::crash_point::crash_point;
use crate::event::{Batch, Event, Slice};
use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::position::Position;
use crate::sink::Sink;
use crate::sink::kafka::machine::{Command, Input, Machine, Step};
use crate::sink::kafka::producer::{Shell, ThreadShell};

/// Events, and their bytes, that go to the producer's thread in one piece. A piece of this size takes it a few
/// milliseconds, so that handing over costs nothing beside it, and gathering the next one goes on meanwhile.
pub(crate) const PIECE_EVENTS: usize = 1_024;
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Proves that this relay holds the lease on its name.
#[allow(
    async_fn_in_trait,
    reason = "driven by the sink, which runs in the relay's one task"
)]
pub trait Proof {
    /// A round trip on the lease's own connection.
    ///
    /// # Errors
    /// [`Fault::LeaseLost`] if it is lost or could not be proven.
    async fn prove(&self) -> Result<(), Fault>;
}

impl<P: Proof> Proof for Arc<P> {
    async fn prove(&self) -> Result<(), Fault> {
        P::prove(self).await
    }
}

/// Settings of the sink.
#[derive(Clone)]
pub struct KafkaSettings {
    /// `host:port`, comma separated.
    pub brokers: String,
    /// The relay's name: in the transactional id, and the position topic.
    pub name: String,
    /// The process, for position records.
    pub instance: String,
    /// Further properties of librdkafka, such as `security.protocol`, `sasl.*`, `ssl.*`, `compression.type`.
    pub properties: BTreeMap<String, String>,
    /// After this time the broker aborts a transaction that is still open; a consumer waits that long for a dead relay.
    pub transaction_timeout_ms: u32,
    /// How long the client waits for more records before it sends a batch. 0 is best: all that is queued is flushed at
    /// once, so waiting only delays; a large batch fills the client's queue faster than the broker answers (measured).
    pub linger_ms: u32,
    /// Whether the position topic is made when missing, and checked when opening. Without it the topic must be there, and
    /// right: for principals that may not describe configurations.
    pub check_position_topic: bool,
    /// Whether topics of events are created when missing.
    pub create_topics: bool,
    /// Partitions of a created topic; -1 is the broker's default.
    pub topic_partitions: i32,
    /// Replicas of a created topic; -1 is the broker's default.
    pub topic_replication_factor: i32,
    /// Publishes again under this name of a replay: each record has it as a header, and the transactional id is another one
    /// than the relay's.
    pub replay: Option<Arc<str>>,
    /// A request without an answer for this long has failed. A commit of half of it is suspicious.
    pub socket_timeout_ms: u32,
}

/// Properties that the relay sets itself, because its guarantee rests on them, or that are settings of their own.
const RESERVED: [&str; 24] = [
    "allow.auto.create.topics",
    "bootstrap.servers",
    "debug",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.idempotence",
    "enable.partition.eof",
    "fetch.wait.max.ms",
    "group.id",
    "isolation.level",
    "linger.ms",
    "log.connection.close",
    "log.queue",
    "log_level",
    "message.timeout.ms",
    "metadata.broker.list",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.ms",
    "request.required.acks",
    "acks",
    "socket.timeout.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// Refuses properties that the relay sets itself.
///
/// # Errors
/// [`Fault::Setting`] with the first such key; never with its value.
pub fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), Fault> {
    match properties
        .keys()
        .find(|key| RESERVED.contains(&key.as_str()))
    {
        Some(key) => Err(Fault::Setting(format!(
            "Kafka property {key} is set by outbox-relay itself; leave it out"
        ))),
        None => Ok(()),
    }
}

/// Values that must not show up in an error.
pub(crate) fn secrets(settings: &KafkaSettings) -> Vec<String> {
    const MARKS: [&str; 6] = [
        "password",
        "secret",
        "pem",
        "jaas",
        "token",
        "oauthbearer.config",
    ];
    let secret = |key: &str| MARKS.iter().any(|mark| key.contains(mark));
    settings
        .properties
        .iter()
        .filter(|(key, value)| secret(key) && !value.is_empty())
        .map(|(_, value)| value.clone())
        .collect()
}

impl KafkaSettings {
    /// The defaults, for a relay of this name.
    #[must_use]
    pub fn new(brokers: String, name: String, instance: String) -> Self {
        Self {
            brokers,
            name,
            instance,
            properties: BTreeMap::new(),
            transaction_timeout_ms: 60_000,
            linger_ms: 0,
            check_position_topic: true,
            create_topics: false,
            topic_partitions: -1,
            topic_replication_factor: -1,
            replay: None,
            socket_timeout_ms: 10_000,
        }
    }

    /// Checks what can be checked without a broker.
    ///
    /// # Errors
    /// [`Fault::Setting`] with the setting and what would be valid.
    pub fn check(&self) -> Result<(), Fault> {
        check_properties(&self.properties)?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=200).contains(&self.name.len()) || !self.name.bytes().all(legal) {
            return Err(Fault::Setting(format!(
                "name {:?} is not valid: 1 to 200 of a-z, A-Z, 0-9, dot, underscore and hyphen",
                self.name
            )));
        }
        if self.transaction_timeout_ms < 1_000 {
            return Err(Fault::Setting(
                "transaction_timeout_ms must be at least 1000".into(),
            ));
        }
        if self.socket_timeout_ms < 100 || self.socket_timeout_ms > self.transaction_timeout_ms {
            // librdkafka wants it so; and a request that outlives its transaction serves nobody.
            return Err(Fault::Setting(
                "socket_timeout_ms must be between 100 and transaction_timeout_ms".into(),
            ));
        }
        Ok(())
    }

    /// What producer, consumers and admin client have in common. The user's properties go first: ours win.
    pub(crate) fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Its default of 10 s is as long as a drain: a broker that is back would be found too late.
        config.set("reconnect.backoff.max.ms", "1000");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
            .set("bootstrap.servers", &self.brokers)
            .set("socket.timeout.ms", self.socket_timeout_ms.to_string())
            // A misspelt topic must be refused, not made.
            .set("allow.auto.create.topics", "false")
            // The recycling rule must see each of them.
            .set("log.connection.close", "true")
            .set_log_level(RDKafkaLogLevel::Info);
        config
    }

    fn request_time(&self) -> Duration {
        Duration::from_millis(u64::from(self.socket_timeout_ms))
    }

    fn transaction_time(&self) -> Duration {
        Duration::from_millis(u64::from(self.transaction_timeout_ms))
    }
}

/// The last committed position of the relay that `settings` name. Fences nobody and makes no topic, so a relay of that
/// name may be about to publish more.
///
/// # Errors
/// Those of opening, but for the lease and the epoch.
pub async fn last_position(settings: &KafkaSettings) -> Result<Option<Position>, Fault> {
    settings.check()?;
    let settings = settings.clone();
    let record = tokio::task::spawn_blocking(move || position_topic::peek(&settings)).await;
    let record = record.map_err(|error| Fault::Defect(error.to_string()))??;
    Ok(record.map(|record| record.position))
}

/// Publishes to Kafka, exactly once. See [`machine`] for how.
pub struct KafkaSink<P, S = ThreadShell> {
    machine: Machine,
    proof: P,
    shell: S,
    metrics: Metrics,
}

impl<P: Proof> KafkaSink<P> {
    /// A sink, closed; nothing is sent before `open`.
    ///
    /// # Errors
    /// [`Fault::Setting`], see [`KafkaSettings::check`].
    pub fn new(settings: KafkaSettings, proof: P) -> Result<Self, Fault> {
        settings.check()?;
        let machine = Machine::new(settings.instance.clone(), settings.socket_timeout_ms);
        Ok(Self::with_shell(
            machine,
            proof,
            ThreadShell::new(Arc::new(settings)),
        ))
    }
}

impl<P: Proof, S: Shell> KafkaSink<P, S> {
    /// A sink over another shell, for a simulator.
    pub fn with_shell(machine: Machine, proof: P, shell: S) -> Self {
        Self {
            machine,
            proof,
            shell,
            metrics: Metrics::default(),
        }
    }

    /// Tells these metrics what it does.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Asks the machine and carries out what it says, until it comes to an end.
    async fn drive(&mut self, mut input: Input, mut batch: Option<Batch>) -> Step {
        loop {
            let command = match self.machine.step(input) {
                Step::Do(command) => command,
                end => return end,
            };
            let name = command.name();
            input = self
                .carry_out(command, &mut batch)
                .await
                .unwrap_or_else(Input::Failed);
            tracing::trace!("{name}");
            crash_point(name);
            self.metrics.turned();
        }
    }

    async fn carry_out(
        &mut self,
        command: Command,
        batch: &mut Option<Batch>,
    ) -> Result<Input, Fault> {
        let shell = &mut self.shell;
        match command {
            Command::Create => shell.create().await?,
            Command::ProveLease => self.proof.prove().await?,
            Command::InitTransactions => shell.init_transactions().await?,
            Command::ReadPosition { check_topic } => {
                return Ok(Input::Read(
                    shell.read_position(check_topic).await?.map(Box::new),
                ));
            }
            Command::Begin => shell.begin().await?,
            Command::Produce => match piece_of(batch).await? {
                slices if slices.is_empty() => return Ok(Input::Exhausted),
                slices => shell.produce(slices).await?,
            },
            Command::Flush => return Ok(Input::Delivered(shell.flush().await?)),
            Command::ProducePosition(record) => shell.produce_position(&record).await?,
            Command::Commit => return Ok(Input::Committed(shell.commit().await?)),
            Command::DropProducer => shell.drop_producer().await,
        }
        Ok(Input::Done)
    }
}

/// The next slices of the batch, enough to be worth handing over; none when it is complete.
async fn piece_of(batch: &mut Option<Batch>) -> Result<Vec<Slice>, Fault> {
    let mut piece = Vec::new();
    let (mut events, mut bytes) = (0, 0);
    if let Some(batch) = batch {
        while events < PIECE_EVENTS && bytes < PIECE_BYTES {
            let Some(slice) = batch.next().await? else {
                break;
            };
            events += slice.events.len();
            bytes += slice.events.iter().map(Event::bytes).sum::<usize>();
            piece.push(slice);
        }
    }
    Ok(piece)
}

fn unexpected(step: &Step) -> Fault {
    Fault::Defect(format!("the Kafka sink ended with {step:?}"))
}

impl<P: Proof, S: Shell> Sink for KafkaSink<P, S> {
    async fn open(&mut self) -> Result<Option<Position>, Fault> {
        match self.drive(Input::Open, None).await {
            Step::Opened(position) => Ok(position.map(|position| *position)),
            Step::Failed(fault) => Err(fault),
            other => Err(unexpected(&other)),
        }
    }

    async fn publish(&mut self, batch: Batch) -> Result<(), Fault> {
        let after = Box::new(batch.after.clone());
        match self.drive(Input::Publish { after }, Some(batch)).await {
            Step::Published { recycled } => {
                if let Some(why) = recycled {
                    self.metrics.recycled(why.reason);
                    tracing::warn!(
                        why = why.text,
                        "the Kafka producer was made anew after a commit; the batch is published"
                    );
                }
                Ok(())
            }
            Step::Failed(fault) => Err(fault),
            other => Err(unexpected(&other)),
        }
    }

    async fn close(&mut self) {
        let _ = self.drive(Input::Close, None).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_properties_are_refused_by_key_only() {
        for key in ["transactional.id", "group.id", "delivery.timeout.ms"] {
            let fault =
                check_properties(&[(key.to_owned(), "s3cret".to_owned())].into()).unwrap_err();
            let text = fault.to_string();
            assert!(
                matches!(fault, Fault::Setting(_))
                    && text.contains(key)
                    && !text.contains("s3cret"),
                "{text}"
            );
        }
        assert!(check_properties(&[("sasl.password".to_owned(), "x".to_owned())].into()).is_ok());
    }

    #[test]
    fn settings_are_checked_before_anything_is_sent() {
        let settings = |change: fn(&mut KafkaSettings)| {
            let mut settings = KafkaSettings::new("h:1".into(), "orders".into(), "i".into());
            change(&mut settings);
            settings.check()
        };
        assert!(settings(|_| ()).is_ok());
        assert!(settings(|s| s.name = "a b".into()).is_err());
        assert!(settings(|s| s.name = String::new()).is_err());
        assert!(settings(|s| s.socket_timeout_ms = 70_000).is_err());
        assert!(settings(|s| s.transaction_timeout_ms = 10).is_err());
    }
}
