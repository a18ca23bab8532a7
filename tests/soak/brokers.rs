//! The Kafka brokers, one or three: their topics, and what is done to them.

use std::time::Duration;

use outbox_relay::servers::Kafka;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::plan::Which;
use crate::stage::{Stage, text};
use crate::support::cluster::{coordinator_of, leader_of, need_copies};
use crate::support::servers::{own_kafka, own_kafka_cluster};

/// Partitions of each topic.
pub const PARTITIONS: i32 = 3;
/// Longer than any run: the check needs every position record.
const POSITION_LAG_MS: &str = "604800000";
/// Copies that a write needs where there are three.
const IN_SYNC: u8 = 2;

/// All brokers. Faults of theirs wait for each other, so that each meets a whole cluster.
pub struct Brokers {
    addresses: String,
    count: usize,
    kafka: Mutex<Kafka>,
}

impl Brokers {
    pub async fn bring_up(count: usize) -> Self {
        let kafka = match count {
            1 => own_kafka().await,
            _ => own_kafka_cluster().await,
        };
        Self {
            addresses: kafka.brokers().to_owned(),
            count,
            kafka: Mutex::new(kafka),
        }
    }

    pub fn addresses(&self) -> &str {
        &self.addresses
    }

    /// Makes the topics of events, and the position topic of a relay of this name.
    pub async fn create_topics(&self, names: &[String], relay: &str) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.addresses)
            .create()
            .expect("an admin client");
        let positions = format!("outbox-relay.position.{relay}");
        let in_sync = IN_SYNC.to_string();
        let topic = |name, partitions| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(self.count as i32));
            match self.count {
                1 => topic,
                _ => topic.set("min.insync.replicas", &in_sync),
            }
        };
        let mut topics: Vec<_> = names.iter().map(|name| topic(name, PARTITIONS)).collect();
        topics.push(
            topic(&positions, 1)
                .set("cleanup.policy", "compact")
                .set("min.compaction.lag.ms", POSITION_LAG_MS),
        );
        let made = admin.create_topics(&topics, &AdminOptions::new()).await;
        for topic in made.expect("an answer about topics") {
            topic.expect("a topic");
        }
    }

    /// The number of the broker that is meant.
    async fn number(&self, which: Which) -> Result<usize, String> {
        let topics = Stage::topics();
        match which {
            Which::Drawn(number) => Ok(1 + number % self.count),
            Which::LeadsEvents { topic, partition } => {
                let topic = &topics[topic % topics.len()];
                leader_of(&self.addresses, topic, partition % PARTITIONS as usize).await
            }
            Which::LeadsPositions => {
                let topic = format!("outbox-relay.position.{}", Stage::relay_name());
                leader_of(&self.addresses, &topic, 0).await
            }
            Which::Coordinates => coordinator_of(&self.addresses, Stage::relay_name()).await,
        }
    }

    pub async fn kill9(&self, which: Which, down: Duration) -> Result<(), String> {
        let mut kafka = self.kafka.lock().await;
        let number = self.number(which).await?;
        kafka.kill9(number).await.map_err(text)?;
        sleep(down).await;
        kafka.start(number).await.map_err(text)
    }

    pub async fn pause(&self, which: Which, time: Duration) -> Result<(), String> {
        let mut kafka = self.kafka.lock().await;
        let number = self.number(which).await?;
        kafka.sigstop(number).await.map_err(text)?;
        sleep(time).await;
        kafka.sigcont(number).await.map_err(text)
    }

    pub async fn restart(&self, which: Which, down: Duration) -> Result<(), String> {
        let mut kafka = self.kafka.lock().await;
        let number = self.number(which).await?;
        kafka.stop(number).await.map_err(text)?;
        sleep(down).await;
        kafka.start(number).await.map_err(text)
    }

    /// All others go away, and come back one after the other.
    pub async fn leave_one(&self, left: Which, killed: bool, time: Duration) -> Result<(), String> {
        let mut kafka = self.kafka.lock().await;
        let left = self.number(left).await?;
        let others: Vec<usize> = kafka.numbers().filter(|it| *it != left).collect();
        for number in &others {
            match killed {
                true => kafka.kill9(*number).await.map_err(text)?,
                false => kafka.sigstop(*number).await.map_err(text)?,
            }
        }
        sleep(time).await;
        for number in others {
            match killed {
                true => kafka.start(number).await.map_err(text)?,
                false => kafka.sigcont(number).await.map_err(text)?,
            }
        }
        Ok(())
    }

    /// No event can be written meanwhile.
    pub async fn miss_a_copy(&self, which: Which, time: Duration) -> Result<(), String> {
        let mut kafka = self.kafka.lock().await;
        let number = self.number(which).await?;
        let all = u8::try_from(self.count).map_err(text)?;
        need_copies(&self.addresses, &Stage::topics(), all).await?;
        kafka.kill9(number).await.map_err(text)?;
        sleep(time).await;
        let needed = need_copies(&self.addresses, &Stage::topics(), IN_SYNC).await;
        kafka.start(number).await.map_err(text)?;
        needed
    }
}
