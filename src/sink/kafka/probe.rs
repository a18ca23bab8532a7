//! Asks whether Kafka answers, for readiness. A client of its own: the producer's may be busy, or gone.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::task::spawn_blocking;

use super::classify::{At, fault_of};
use super::position_topic::{consumer, topic_of};
use super::topic::Quiet;
use crate::fault::{Fault, Server};
use crate::sink::kafka::KafkaSettings;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the module's text.
#[derive(Clone)]
pub struct Probe {
    consumer: Arc<BaseConsumer<Quiet>>,
    topic: Arc<str>,
}

impl Probe {
    /// Nothing is sent before it is asked.
    ///
    /// # Errors
    /// [`Fault::Setting`] if the client library refuses the settings.
    pub fn new(settings: &KafkaSettings) -> Result<Self, Fault> {
        Ok(Self {
            consumer: Arc::new(consumer(settings, "read_committed")?),
            topic: topic_of(&settings.name).into(),
        })
    }

    /// One question to whichever broker the client chooses: about one topic, because a cluster may have very many.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if there is no answer.
    pub async fn ask(&self) -> Result<(), Fault> {
        let (consumer, topic) = (Arc::clone(&self.consumer), Arc::clone(&self.topic));
        let ask = move || {
            // Else the client's log piles up while a broker is away.
            while consumer.poll(Duration::ZERO).is_some() {}
            consumer
                .fetch_metadata(Some(&topic), PATIENCE)
                .map(drop)
                .map_err(|error| fault_of(&error, At::Cluster, None))
        };
        let asked = spawn_blocking(ask).await;
        asked.map_err(|error| Fault::Unavailable(Server::Kafka, error.to_string()))?
    }
}
