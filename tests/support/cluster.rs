//! Which node of a Kafka cluster leads what, and how many copies a write needs.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::metadata::Metadata;
use tokio::time::{Instant, sleep};

use super::BUSY;

/// For one question; a node that does not answer must not take all the time.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Until the cluster does what is asked. An election takes little longer than a broker's session, which is 3 s.
const PATIENCE: Duration = Duration::from_secs(40 * BUSY);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The leaders of its partitions are the coordinators of transactions.
const TRANSACTION_STATE: &str = "__transaction_state";

/// Number of the node that leads a partition; waits while none does.
pub async fn leader_of(brokers: &str, topic: &str, partition: usize) -> Result<usize, String> {
    leader(brokers, topic, |_| partition).await
}

/// Number of the node that coordinates the transactions of a relay.
pub async fn coordinator_of(brokers: &str, relay: &str) -> Result<usize, String> {
    let hash = java_hash(&format!("outbox-relay.{relay}"));
    leader(brokers, TRANSACTION_STATE, |partitions| hash % partitions).await
}

/// Absolute value of Java's `String.hashCode`, for ASCII. Kafka takes 0 for the one number that has none.
fn java_hash(text: &str) -> usize {
    let step = |hash: i32, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte));
    let hash = text.bytes().fold(0, step);
    usize::try_from(hash.checked_abs().unwrap_or(0)).expect("it is not negative")
}

async fn leader(
    brokers: &str,
    topic: &str,
    partition: impl Fn(usize) -> usize,
) -> Result<usize, String> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let (admin, name) = (admin(brokers), topic.to_owned());
        let ask = move || admin.inner().fetch_metadata(Some(&name), ANSWER_MAX);
        let answer = tokio::task::spawn_blocking(ask).await.expect("no panic");
        if let Some(leader) = answer.ok().and_then(|it| leader_in(&it, &partition)) {
            return Ok(leader);
        }
        sleep(LOOK_EVERY).await;
    }
    Err(format!("nobody leads topic {topic}"))
}

fn leader_in(metadata: &Metadata, partition: impl Fn(usize) -> usize) -> Option<usize> {
    let partitions = metadata.topics().first()?.partitions();
    let wanted = i32::try_from(partition(partitions.len().max(1))).ok()?;
    let found = partitions.iter().find(|found| found.id() == wanted)?;
    // -1 while there is none.
    usize::try_from(found.leader()).ok()
}

/// Has each write to these topics need so many copies. All other settings of theirs go back to the default.
pub async fn need_copies(brokers: &str, topics: &[String], copies: u8) -> Result<(), String> {
    let copies = copies.to_string();
    let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX));
    let since = Instant::now();
    loop {
        let changes: Vec<_> = topics
            .iter()
            .map(|topic| AlterConfig::new(ResourceSpecifier::Topic(topic)))
            .map(|change| change.set("min.insync.replicas", &copies))
            .collect();
        // A new client each time: an old one goes on to ask a node that is away.
        let why = match admin(brokers).alter_configs(&changes, &options).await {
            Ok(answers) => match answers.into_iter().find_map(Result::err) {
                None => return Ok(()),
                Some((_, code)) => code.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if since.elapsed() > PATIENCE {
            return Err(format!("min.insync.replicas can't be set: {why}"));
        }
        sleep(LOOK_EVERY).await;
    }
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set_log_level(RDKafkaLogLevel::Emerg)
        .create()
        .expect("an admin client")
}

#[cfg(test)]
mod tests {
    use super::java_hash;

    #[test]
    fn transactional_ids_are_hashed_as_java_hashes_them() {
        assert_eq!(java_hash("hello"), 99_162_322);
        assert_eq!(java_hash("outbox-relay"), 2_852_735);
        assert_eq!(java_hash("polygenelubricants"), 0, "the least number");
    }
}
