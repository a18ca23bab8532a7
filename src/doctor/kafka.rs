//! Asks Kafka, as the relay's own principal. Everything here blocks, and nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::facts::{Config, Denied, KafkaFacts, Known, TopicFacts, Unknown, unknown};
use crate::sink::kafka::classify::redacted;
use crate::sink::kafka::position_topic::topic_of;
use crate::sink::kafka::{KafkaSettings, last_position, secrets};

/// All of it.
const PATIENCE: Duration = Duration::from_secs(20);
/// One request.
const REQUEST: Duration = Duration::from_secs(5);
/// What the client has logged so far.
const LOG: Duration = Duration::from_millis(400);

/// What can be found out, about these topics among others.
pub(super) async fn gather(
    settings: &KafkaSettings,
    topics: BTreeSet<String>,
) -> Known<KafkaFacts> {
    let settings = KafkaSettings {
        socket_timeout_ms: u32::try_from(REQUEST.as_millis()).unwrap_or(u32::MAX),
        ..settings.clone()
    };
    let runtime = Handle::current();
    let asking = spawn_blocking(move || {
        Asking::begin(&settings, runtime).and_then(|asking| asking.ask(topics))
    });
    match timeout(PATIENCE, asking).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(error)) => unknown(format!("asking Kafka ended: {error}")),
        Err(_) => unknown(format!(
            "Kafka does not answer within {} s",
            PATIENCE.as_secs()
        )),
    }
}

/// Hears what the client library only says in its log.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    requests: BTreeMap<String, [i16; 2]>,
    last_error: Option<String>,
}

impl Listener {
    fn heard<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ConsumerContext for Listener {}

impl ClientContext for Listener {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, line: &str) {
        if let Some((name, versions)) = request(facility, line) {
            self.heard(|heard| heard.requests.insert(name.to_owned(), versions));
        }
    }

    fn error(&self, _: KafkaError, reason: &str) {
        self.heard(|heard| heard.last_error = Some(reason.to_owned()));
    }
}

/// `ApiKey EndTxn (26) Versions 0..5`, as the library logs what a broker understands.
fn request<'l>(facility: &str, line: &'l str) -> Option<(&'l str, [i16; 2])> {
    let (_, rest) = (facility == "APIVERSION").then(|| line.split_once("ApiKey "))??;
    let (name, rest) = rest.split_once(" (")?;
    let (_, versions) = rest.split_once("Versions ")?;
    let (first, last) = versions.split_once("..")?;
    Some((
        name,
        [first.trim().parse().ok()?, last.trim().parse().ok()?],
    ))
}

struct Asking<'a> {
    settings: &'a KafkaSettings,
    runtime: Handle,
    listener: Listener,
    /// Asked for metadata, and polled for the log: an admin client keeps it to itself.
    consumer: BaseConsumer<Listener>,
    admin: AdminClient<Listener>,
    denied: Vec<Denied>,
}

impl<'a> Asking<'a> {
    fn begin(settings: &'a KafkaSettings, runtime: Handle) -> Known<Self> {
        let listener = Listener::default();
        let mut config = settings.client_config();
        let admin = AdminClient::from_config_and_context(&config, listener.clone());
        config
            // Needed to make a consumer; without subscription and commits no group comes of it.
            .set("group.id", "outbox-relay-doctor")
            // The only way to learn which requests a broker understands.
            .set("debug", "feature")
            .set_log_level(RDKafkaLogLevel::Debug);
        let consumer = BaseConsumer::from_config_and_context(&config, listener.clone());
        let bad = |error: KafkaError| Unknown(told(settings, &error));
        Ok(Self {
            consumer: consumer.map_err(bad)?,
            admin: admin.map_err(bad)?,
            settings,
            runtime,
            listener,
            denied: Vec::new(),
        })
    }

    fn ask(mut self, topics: BTreeSet<String>) -> Known<KafkaFacts> {
        let asked = Instant::now();
        let position_topic = topic_of(&self.settings.name);
        // One topic, because a cluster may have very many.
        let metadata = self.consumer.fetch_metadata(Some(&position_topic), REQUEST);
        let answered_ms = asked.elapsed().as_millis();
        self.listen();
        let metadata = metadata.map_err(|error| self.unknown(&error))?;
        let brokers = metadata.brokers().len();
        let broker = metadata.brokers().first().map(|broker| broker.id());
        let broker = broker.map_or_else(|| unknown("Kafka names no broker"), |id| self.broker(id));
        let found = self.topic(&position_topic, true);
        let position = match &found {
            Ok(Some(_)) => self.position(&position_topic),
            Ok(None) => Ok(None),
            Err(why) => Err(why.clone()),
        };
        if let (Ok(None), true) = (&found, self.settings.check_position_topic) {
            self.may_create(&position_topic);
        }
        let transaction_state = self.topic("__transaction_state", false);
        let mut told = Vec::new();
        for name in topics {
            let topic = self.topic(&name, true);
            if let (Ok(None), true) = (&topic, self.settings.create_topics) {
                self.may_create(&name);
            }
            told.push((name, topic));
        }
        Ok(KafkaFacts {
            answered_ms,
            brokers,
            requests: self.listener.heard(|heard| heard.requests.clone()),
            broker,
            transaction_state,
            position_topic: found,
            position,
            topics: told,
            denied: self.denied,
        })
    }

    /// Until the last request of a transaction is named, or no more comes.
    fn listen(&self) {
        let until = Instant::now() + LOG;
        while Instant::now() < until
            && !self.listener.heard(|it| it.requests.contains_key("EndTxn"))
        {
            let _ = self.consumer.poll(LOG / 20);
        }
    }

    fn metadata(&self, topic: &str) -> Known<Metadata> {
        self.consumer
            .fetch_metadata(Some(topic), REQUEST)
            .map_err(|error| self.unknown(&error))
    }

    /// The error, with the library's last words: a failed login shows as a timeout.
    fn unknown(&self, error: &KafkaError) -> Unknown {
        let last = self.listener.heard(|heard| heard.last_error.clone());
        let text = told(self.settings, error);
        Unknown(match last {
            Some(last) if !text.contains(&last) => {
                format!("{text} ({})", redacted(&last, &secrets(self.settings)))
            }
            _ => text,
        })
    }

    fn deny(&mut self, resource: String, operation: &'static str, is_needed: bool) -> Unknown {
        let why = format!(
            "{operation} is refused on {}",
            resource.trim_start_matches('-')
        );
        let denied = Denied {
            resource,
            operation,
            is_needed,
        };
        if !self.denied.contains(&denied) {
            self.denied.push(denied);
        }
        Unknown(why)
    }

    /// `None`: there is no such topic. `is_needed`: the relay itself can't do without describing it.
    fn topic(&mut self, name: &str, is_needed: bool) -> Known<Option<TopicFacts>> {
        let metadata = self.metadata(name)?;
        let Some(topic) = metadata.topics().first() else {
            return Ok(None);
        };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Ok(None);
            }
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                return Err(self.deny(format!("--topic {name}"), "Describe", is_needed));
            }
            Some(code) => return unknown(code.to_string()),
        }
        // Without its settings the relay refuses its position topic; of others it asks none.
        let is_needed = name == topic_of(&self.settings.name) && self.settings.check_position_topic;
        let config = match self.describe(&ResourceSpecifier::Topic(name)) {
            Err(Refused::Denied) => {
                Err(self.deny(format!("--topic {name}"), "DescribeConfigs", is_needed))
            }
            Err(Refused::Else(why)) => Err(why),
            Ok(config) => Ok(config),
        };
        Ok(Some(facts(topic, config)))
    }

    fn broker(&mut self, id: i32) -> Known<Config> {
        match self.describe(&ResourceSpecifier::Broker(id)) {
            Err(Refused::Denied) => {
                Err(self.deny("--cluster".to_owned(), "DescribeConfigs", false))
            }
            Err(Refused::Else(why)) => Err(why),
            Ok(config) => Ok(config),
        }
    }

    fn describe(&self, resource: &ResourceSpecifier<'_>) -> Result<Config, Refused> {
        let options = AdminOptions::new().request_timeout(Some(REQUEST));
        let answer = self
            .runtime
            .block_on(self.admin.describe_configs([resource], &options));
        let answer = answer.map_err(|error| Refused::Else(self.unknown(&error)))?;
        match answer.into_iter().next() {
            // The client library keeps the error of a resource to itself, and then there are no settings.
            Some(Ok(resource)) if resource.entries.is_empty() => Err(Refused::Denied),
            Some(Ok(resource)) => Ok(settings_of(resource)),
            Some(Err(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            )) => Err(Refused::Denied),
            Some(Err(code)) => Err(Refused::Else(Unknown(code.to_string()))),
            None => Err(Refused::Else(Unknown("no answer about settings".into()))),
        }
    }

    /// Asks for the topic, and that it be not made.
    fn may_create(&mut self, name: &str) {
        let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST))
            .validate_only(true);
        let answer = self
            .runtime
            .block_on(self.admin.create_topics([&topic], &options));
        let code = answer.ok().and_then(|all| all.into_iter().next()?.err());
        if let Some((
            _,
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        )) = code
        {
            self.deny(format!("--topic {name}"), "Create", true);
        }
    }

    fn position(&mut self, topic: &str) -> Known<Option<crate::position::Position>> {
        let read = self.runtime.block_on(last_position(self.settings));
        read.map_err(|fault| match fault.to_string() {
            text if text.contains("uthorization failed") => {
                self.deny(format!("--topic {topic}"), "Read", true)
            }
            text => Unknown(text),
        })
    }
}

enum Refused {
    Denied,
    Else(Unknown),
}

fn told(settings: &KafkaSettings, error: &KafkaError) -> String {
    match error {
        // Never its text: it quotes the value, which may be a password.
        KafkaError::ClientConfig(_, _, key, _) => {
            format!("Kafka property {key}: unknown to librdkafka, or its value is not valid")
        }
        error => redacted(&error.to_string(), &secrets(settings)),
    }
}

fn settings_of(resource: ConfigResource) -> Config {
    let entries = resource.entries.into_iter();
    entries
        .filter_map(|entry| Some((entry.name, entry.value?)))
        .collect()
}

fn facts(topic: &MetadataTopic, config: Known<Config>) -> TopicFacts {
    let partitions = topic.partitions();
    let copies = partitions
        .iter()
        .map(|partition| partition.replicas().len());
    TopicFacts {
        partitions: partitions.len(),
        replicas: copies.min().unwrap_or(0),
        leaderless: partitions
            .iter()
            .filter(|partition| partition.leader() < 0)
            .count(),
        config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_understands_is_read_from_the_log() {
        let line = "[thrd:main]: 127.0.0.1:9092/bootstrap:   ApiKey EndTxn (26) Versions 0..5";
        assert_eq!(request("APIVERSION", line), Some(("EndTxn", [0, 5])));
        assert_eq!(request("CONNECT", line), None);
        assert_eq!(request("APIVERSION", "Broker API support:"), None);
    }
}
