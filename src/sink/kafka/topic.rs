//! Topics: their names, whether they are there, and making one. Everything here blocks, but for [`make`].

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::fault::{Fault, Server};
use crate::sink::kafka::KafkaSettings;
use crate::sink::kafka::classify::{At, fault_of, of_code};

/// Time between two looks at something that the brokers are about to do.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What Kafka allows as a name (`Topic.validate` of the Java sources), in words.
pub const LEGAL: &str = "1 to 249 of a-z, A-Z, 0-9, dot, underscore and hyphen";

/// Whether Kafka allows the name. Checked here because the client library says less.
#[must_use]
pub fn is_legal(topic: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&topic.len()) && topic.bytes().all(legal) && topic != "." && topic != ".."
}

/// Makes a topic with the partitions and replicas that `settings` give, if it is not there.
///
/// # Errors
/// [`Fault::Setting`] if Kafka allows no such name; else those of the brokers.
pub async fn make(settings: &KafkaSettings, topic: &str) -> Result<(), Fault> {
    if !is_legal(topic) {
        return Err(Fault::Setting(format!(
            "topic {topic:?} is not usable: {LEGAL}"
        )));
    }
    let (settings, topic, runtime) = (settings.clone(), topic.to_owned(), Handle::current());
    let made = tokio::task::spawn_blocking(move || {
        let factor = TopicReplication::Fixed(settings.topic_replication_factor);
        let admin = Admin {
            config: &settings.client_config(),
            runtime: &runtime,
            timeout: settings.request_time(),
        };
        let new = NewTopic::new(&topic, settings.topic_partitions, factor);
        admin.create(&new, At::Cluster)
    });
    made.await
        .map_err(|error| Fault::Defect(error.to_string()))?
}

/// Whether the brokers say that there is no such topic.
pub(super) fn is_absence(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
    )
}

/// Forwards the client's log, and remembers nothing.
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, line: &str) {
        super::producer::forward_log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

/// Admin requests; each takes at most `timeout`.
pub(super) struct Admin<'a> {
    pub config: &'a ClientConfig,
    pub runtime: &'a Handle,
    pub timeout: Duration,
}

impl Admin<'_> {
    fn client(&self) -> Result<AdminClient<Quiet>, KafkaError> {
        AdminClient::from_config_and_context(self.config, Quiet)
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }

    /// Creates a topic and waits until the brokers show it. One that exists meanwhile is as good.
    pub fn create(&self, topic: &NewTopic<'_>, at: At<'_>) -> Result<(), Fault> {
        let client = self.client().map_err(|error| fault_of(&error, at, None))?;
        let created = self.create_with(&client, topic, at);
        discard(client);
        created
    }

    fn create_with(
        &self,
        client: &AdminClient<Quiet>,
        topic: &NewTopic<'_>,
        at: At<'_>,
    ) -> Result<(), Fault> {
        let results = self
            .runtime
            .block_on(client.create_topics([topic], &self.options()));
        for result in results.map_err(|error| fault_of(&error, at, None))? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(of_code(code, at, format!("can't create {name}: {code}")));
                }
            }
        }
        let until = Instant::now() + self.timeout;
        while Instant::now() < until {
            let metadata = client
                .inner()
                .fetch_metadata(Some(topic.name), self.timeout);
            let metadata = metadata.map_err(|error| fault_of(&error, at, None))?;
            if metadata.topics().first().is_some_and(is_served) {
                return Ok(());
            }
            pause(LOOK_EVERY);
        }
        Err(Fault::Unavailable(
            Server::Kafka,
            format!("topic {} was created but does not show up", topic.name),
        ))
    }

    /// Two settings of a topic.
    pub fn settings(&self, topic: &str, keys: [&str; 2]) -> Result<[Option<String>; 2], Fault> {
        let at = At::PositionTopic(topic);
        let client = self.client().map_err(|error| fault_of(&error, at, None))?;
        let wanted = [ResourceSpecifier::Topic(topic)];
        let answer = self
            .runtime
            .block_on(client.describe_configs(&wanted, &self.options()));
        discard(client);
        let resource = answer
            .map_err(|error| fault_of(&error, at, None))?
            .into_iter()
            .next();
        let resource = match resource {
            Some(Ok(resource)) => resource,
            Some(Err(code)) => {
                return Err(of_code(
                    code,
                    at,
                    format!("its settings can't be read (needs DescribeConfigs): {code}"),
                ));
            }
            None => {
                return Err(Fault::Unavailable(
                    Server::Kafka,
                    format!("no answer about topic {topic}"),
                ));
            }
        };
        Ok(keys.map(|key| resource.get(key).and_then(|entry| entry.value.clone())))
    }
}

fn is_served(topic: &MetadataTopic) -> bool {
    let led = topic
        .partitions()
        .iter()
        .all(|partition| partition.leader() >= 0);
    topic.error().is_none() && !topic.partitions().is_empty() && led
}

/// Drops a client elsewhere: it takes up to 100 ms (measured), and a recycling should not last longer than it must.
pub(super) fn discard<T: Send + 'static>(client: T) {
    // Without a thread it is dropped here; then it just lasts.
    let _ = std::thread::Builder::new()
        .name("kafka-discard".into())
        .spawn(move || drop(client));
}

#[expect(
    clippy::disallowed_methods,
    reason = "the producer's thread runs outside tokio"
)]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_are_those_that_kafka_allows() {
        let long = "a".repeat(250);
        for (name, legal) in [
            ("a.B_c-9", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a b", false),
            ("ü", false),
        ] {
            assert_eq!(is_legal(name), legal, "{name}");
        }
        assert!(is_legal(&long[..249]) && !is_legal(&long));
    }
}
