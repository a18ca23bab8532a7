//! The brokers.

use super::kafka;
use crate::doctor::facts::{Denied, Facts, KafkaFacts, Known, TopicFacts, known, unknown};
use crate::doctor::finding::{Outcome, error, fine, found, person, shell, unless, warning};

/// Copies that a topic ought to have, where there are as many brokers.
const COPIES: usize = 3;
/// The requests of a transactional producer.
const OF_TRANSACTIONS: [&str; 3] = ["InitProducerId", "AddPartitionsToTxn", "EndTxn"];

pub fn reachable(facts: &Facts) -> Known<Outcome> {
    match &facts.kafka {
        None => Ok(Outcome::NotAsked),
        Some(Ok(it)) => fine(match it.brokers {
            1 => format!(
                "one broker, in {} ms: nothing has a second copy, which is fit for development alone",
                it.answered_ms
            ),
            brokers => format!("{brokers} brokers, in {} ms", it.answered_ms),
        }),
        Some(Err(why)) => found(
            error(
                why.0.clone(),
                "the relay waits for Kafka, and publishes nothing meanwhile",
            )
            .cure(person(format!(
                "start it, or correct --kafka-brokers ({}) and [kafka_properties]",
                facts.settings.kafka.brokers
            ))),
        ),
    }
}

pub fn version(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    if kafka.requests.is_empty() {
        return unknown("the client library did not say which requests the brokers understand");
    }
    let lacks: Vec<_> = OF_TRANSACTIONS
        .into_iter()
        .filter(|name| !kafka.requests.contains_key(*name))
        .collect();
    match lacks.is_empty() {
        true => fine(""),
        false => found(
            error(
                format!("the brokers don't understand {}", lacks.join(", ")),
                "events and position are published in one Kafka transaction",
            )
            .cure(person(
                "upgrade to Apache Kafka 2.5 or newer, or to a compatible broker with transactions",
            )),
        ),
    }
}

pub fn permissions(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let principal = principal(facts);
    let tell = |it: &Denied| {
        let Denied {
            resource,
            operation,
            is_needed,
        } = it;
        let what = format!("{principal} has no {operation} on {}", spoken(resource));
        let finding = match is_needed {
            true => error(what, "the relay needs it"),
            false => warning(what, "without it some of these checks can't be made"),
        };
        finding.cure(shell(format!(
            "kafka-acls.sh --bootstrap-server {} --add --allow-principal '{principal}' --operation {operation} {resource}",
            facts.settings.kafka.brokers
        )))
    };
    unless(
        kafka.denied.iter().map(tell).collect(),
        "Write can't be tried without writing",
    )
}

/// As Kafka's authorizer names who logs in.
fn principal(facts: &Facts) -> String {
    let property = |key: &str| facts.settings.kafka.properties.get(key);
    let user = property("sasl.username").or_else(|| property("sasl.user"));
    match (user, property("ssl.certificate.location").is_some()) {
        (Some(user), _) => format!("User:{user}"),
        (None, true) => "User:CN=…".to_owned(),
        (None, false) => "User:ANONYMOUS".to_owned(),
    }
}

/// `--topic shop` as `topic shop`.
fn spoken(resource: &str) -> String {
    resource.trim_start_matches("--").replace(" --", " ")
}

pub fn transaction_timeout(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let ours = facts.settings.kafka.transaction_timeout_ms;
    let limit = setting(kafka, "transaction.max.timeout.ms")?;
    match limit.parse::<u64>() {
        Ok(limit) if u64::from(ours) > limit => found(
            error(
                format!("transaction-timeout-ms is {ours}, the brokers allow {limit}"),
                "they refuse the relay's producer",
            )
            .cure(person(format!(
                "set transaction-timeout-ms to {limit} or less, or raise transaction.max.timeout.ms of the brokers"
            ))),
        ),
        Ok(limit) => fine(format!("{ours} of at most {limit}")),
        Err(_) => unknown("the broker does not tell its transaction.max.timeout.ms"),
    }
}

/// The log of the coordinators: what is lost of it leaves transactions open, or undecided.
pub fn transaction_state(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let why = "when the broker that has the only copy is lost, transactions that were committed may be undone, and consumers wait for open ones";
    let replicas_wanted = kafka.copies();
    let (replicas, in_sync) = match known(&kafka.transaction_state)? {
        Some(topic) => (
            topic.replicas,
            topic.setting("min.insync.replicas")?.to_owned(),
        ),
        // It is made at the first transaction, as the brokers' settings say.
        None => {
            let replicas = setting(kafka, "transaction.state.log.replication.factor")?;
            let in_sync = setting(kafka, "transaction.state.log.min.isr")?;
            (replicas.parse().unwrap_or(0), in_sync.to_owned())
        }
    };
    let brokers = &facts.settings.kafka.brokers;
    let mut findings = Vec::new();
    if replicas < replicas_wanted {
        let what = format!(
            "__transaction_state has {replicas} copies on {} brokers",
            kafka.brokers
        );
        findings.push(warning(what, why).cure(person(format!(
            "set transaction.state.log.replication.factor={replicas_wanted} on the brokers; a topic that exists is moved by kafka-reassign-partitions.sh"
        ))));
    }
    if replicas >= COPIES && in_sync.parse::<u32>().is_ok_and(|count| count < 2) {
        let what = format!("__transaction_state has min.insync.replicas {in_sync}");
        findings.push(warning(what, why).cure(shell(alter_topic(
            brokers,
            "__transaction_state",
            "min.insync.replicas=2",
        ))));
    }
    unless(
        findings,
        format!(
            "{}, of which {in_sync} must be in sync",
            super::topics::copies_of(replicas)
        ),
    )
}

pub fn auto_create(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    match setting(kafka, "auto.create.topics.enable")? {
        "true" => found(
            warning(
                "auto.create.topics.enable is true",
                "whoever asks for a topic makes it, with the broker's defaults: a consumer that misspells it waits for ever, and one that comes \
                 first decides the number of partitions. The relay itself never asks so",
            )
            .cure(person("set auto.create.topics.enable=false on the brokers")),
        ),
        _ => fine(""),
    }
}

impl KafkaFacts {
    /// Copies that a topic ought to have here.
    pub(super) fn copies(&self) -> usize {
        self.brokers.clamp(1, COPIES)
    }
}

/// A setting of the brokers; "" where they don't tell it.
fn setting<'a>(kafka: &'a KafkaFacts, key: &str) -> Known<&'a str> {
    Ok(known(&kafka.broker)?.get(key).map_or("", String::as_str))
}

/// Whether a topic has the copies that it ought to have, as one word for a list.
pub(super) fn few_copies(kafka: &KafkaFacts, topic: &TopicFacts) -> bool {
    topic.replicas < kafka.copies()
}

pub(super) fn alter_topic(brokers: &str, topic: &str, setting: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} --add-config {setting}"
    )
}
