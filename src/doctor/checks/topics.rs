//! The topics of events, and the position topic.

use super::brokers::{alter_topic, few_copies};
use super::kafka;
use crate::doctor::facts::{Facts, KafkaFacts, Known, TopicFacts, known};
use crate::doctor::finding::{Finding, Outcome, error, fine, person, shell, unless, warning};
use crate::park::OnFault;
use crate::sink::kafka::position_topic::{check, topic_of};

/// librdkafka's default.
const MESSAGE_BYTES_MAX: u64 = 1_000_000;
/// A topic that takes records of less than this age may refuse a backlog.
const AGE_MS_MIN: u64 = 7 * 24 * 3_600_000;

pub fn position_topic(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let settings = &facts.settings.kafka;
    let (name, brokers) = (topic_of(&facts.settings.name), &settings.brokers);
    let Some(topic) = known(&kafka.position_topic)? else {
        if settings.check_position_topic {
            return fine("there is none; the first start makes it");
        }
        let make = format!(
            "kafka-topics.sh --bootstrap-server {brokers} --create --topic {name} --partitions 1 --replication-factor {} --config cleanup.policy=compact",
            kafka.copies()
        );
        let what = format!("there is no topic {name}, and check-position-topic is false");
        let why = "then the relay does not make it, and has no place for its position";
        return Ok(Outcome::Found(vec![error(what, why).cure(shell(make))]));
    };
    let policy = topic.setting("cleanup.policy")?;
    let in_sync = topic.setting("min.insync.replicas")?;
    let mut findings = Vec::new();
    // As a start judges it.
    if let Err(fault) = check(
        &name,
        topic.partitions,
        topic.replicas,
        Some(policy),
        Some(in_sync),
    ) {
        let why = "the relay refuses to start: its position could be lost, and then events would be repeated";
        let cure = match (topic.partitions, policy) {
            (1, "compact") => shell(alter_topic(brokers, &name, "min.insync.replicas=2")),
            (1, _) => shell(alter_topic(brokers, &name, "cleanup.policy=compact")),
            _ => person(
                "stop the relay, keep the last record of its partition, and make the topic anew with 1 partition",
            ),
        };
        findings.push(error(fault.to_string(), why).cure(cure));
    }
    if few_copies(kafka, topic) {
        findings.push(copies(facts, kafka, &name, topic));
    }
    unless(
        findings,
        format!("1 partition, compact, {}", copies_of(topic.replicas)),
    )
}

pub(super) fn copies_of(replicas: usize) -> String {
    match replicas {
        1 => "1 copy".to_owned(),
        more => format!("{more} copies"),
    }
}

/// Those of the events that are there.
fn there(kafka: &KafkaFacts) -> Known<Vec<(&str, &TopicFacts)>> {
    let mut there = Vec::new();
    for (name, topic) in &kafka.topics {
        if let Some(topic) = known(topic)? {
            there.push((name.as_str(), topic));
        }
    }
    Ok(there)
}

pub fn topics(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let settings = &facts.settings.kafka;
    let destinations = known(&facts.postgres()?.destinations)?;
    let waits = |name: &str| {
        let mut names = destinations.iter().filter(|it| it.waits);
        names.any(|it| it.name(&facts.settings.outbox.route) == name)
    };
    let mut findings = Vec::new();
    for (name, topic) in &kafka.topics {
        match known(topic)? {
            None if waits(name) && !settings.create_topics => findings.push(
                error(
                    format!("there is no topic {name}, and rows wait for it"),
                    unpublishable(facts),
                )
                .cure(shell(format!(
                    "kafka-topics.sh --bootstrap-server {} --create --topic {name} --partitions 3 --replication-factor {}",
                    settings.brokers,
                    kafka.copies()
                )))
                .cure(person("or give --create-topics true")),
            ),
            Some(topic) if topic.leaderless > 0 => findings.push(
                error(
                    format!(
                        "{} of {} partitions of topic {name} have no leader",
                        topic.leaderless, topic.partitions
                    ),
                    "nothing can be written to them",
                )
                .cure(person("start the brokers that hold them")),
            ),
            _ => {}
        }
    }
    unless(
        findings,
        match kafka.topics.len() {
            0 => "the newest rows name none".to_owned(),
            count => format!("the newest rows name {count}"),
        },
    )
}

/// What becomes of a transaction that Kafka refuses.
fn unpublishable(facts: &Facts) -> &'static str {
    match facts.settings.park.on_fault {
        OnFault::Park => "such transactions are parked, and what shares a key with them waits",
        OnFault::Halt => "the relay stops with exit code 4 at the first such transaction",
    }
}

fn copies(facts: &Facts, kafka: &KafkaFacts, name: &str, topic: &TopicFacts) -> Finding {
    let what = format!(
        "topic {name} has {} on {} brokers",
        copies_of(topic.replicas),
        kafka.brokers
    );
    warning(what, "what the broker with the only copy loses is lost").cure(person(format!(
        "give it {} copies by kafka-reassign-partitions.sh --bootstrap-server {}",
        kafka.copies(),
        facts.settings.kafka.brokers
    )))
}

pub fn replicas(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let brokers = &facts.settings.kafka.brokers;
    let mut findings = Vec::new();
    for (name, topic) in there(kafka)? {
        if few_copies(kafka, topic) {
            findings.push(copies(facts, kafka, name, topic));
        }
        let Ok(in_sync) = topic.setting("min.insync.replicas")?.parse::<usize>() else {
            continue;
        };
        let what = format!(
            "topic {name} has {} and min.insync.replicas {in_sync}",
            copies_of(topic.replicas)
        );
        if in_sync > topic.replicas {
            let why = "there can't be so many in sync, so Kafka refuses all that is written";
            let to = format!("min.insync.replicas={}", topic.replicas.div_ceil(2));
            findings.push(error(what, why).cure(shell(alter_topic(brokers, name, &to))));
        } else if topic.replicas >= 3 && in_sync < 2 {
            let why = "what one broker holds counts as written, and goes with that broker";
            let cure = shell(alter_topic(brokers, name, "min.insync.replicas=2"));
            findings.push(warning(what, why).cure(cure));
        }
    }
    unless(findings, "as many copies as there can be")
}

pub fn unclean_election(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let (brokers, position) = (
        &facts.settings.kafka.brokers,
        topic_of(&facts.settings.name),
    );
    let mut all = there(kafka)?;
    all.extend(
        known(&kafka.position_topic)?
            .iter()
            .map(|it| (position.as_str(), it)),
    );
    all.extend(
        known(&kafka.transaction_state)?
            .iter()
            .map(|it| ("__transaction_state", it)),
    );
    let mut findings = Vec::new();
    for (name, topic) in all {
        if topic.setting("unclean.leader.election.enable")? == "true" {
            let to = "unclean.leader.election.enable=false";
            findings.push(
                error(
                    format!("topic {name} has unclean.leader.election.enable true"),
                    "a broker that lags may become the leader: then records that were acknowledged are lost",
                )
                .cure(shell(alter_topic(brokers, name, to))),
            );
        }
    }
    unless(findings, "")
}

pub fn message_size(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let settings = &facts.settings.kafka;
    let ours = settings.properties.get("message.max.bytes");
    let ours = ours
        .and_then(|it| it.parse().ok())
        .unwrap_or(MESSAGE_BYTES_MAX);
    let mut findings = Vec::new();
    let mut limits = Vec::new();
    let topics = there(kafka)?;
    for (name, topic) in topics {
        let Ok(theirs) = topic.setting("max.message.bytes")?.parse::<u64>() else {
            continue;
        };
        limits.push((theirs, name));
        if theirs < ours {
            let to = format!("max.message.bytes={}", ours.max(1_048_588));
            findings.push(
                error(
                    format!("topic {name} takes {theirs} bytes, the relay sends up to {ours}"),
                    format!(
                        "{}; the limit holds for a batch of small records, too",
                        unpublishable(facts)
                    ),
                )
                .cure(shell(alter_topic(&settings.brokers, name, &to)))
                .cure(person(
                    "or set message.max.bytes under [kafka_properties] to the topic's limit",
                )),
            );
        }
    }
    limits.sort_unstable();
    if let (true, [(least, of_least), .., (most, of_most)]) =
        (findings.is_empty(), limits.as_slice())
        && least != most
    {
        let to = format!("max.message.bytes={most}");
        findings.push(
            warning(
                format!("topic {of_least} takes {least} bytes, topic {of_most} {most}"),
                "the same payload can be published to one and not to the other; consumers size their fetches by one of the two",
            )
            .cure(shell(alter_topic(&settings.brokers, of_least, &to))),
        );
    }
    unless(findings, format!("at least {ours} bytes"))
}

pub fn timestamps(facts: &Facts) -> Known<Outcome> {
    let kafka = kafka!(facts);
    let mut findings = Vec::new();
    for (name, topic) in there(kafka)? {
        let is_own = topic.setting("message.timestamp.type")? != "LogAppendTime";
        let limit = topic.setting("message.timestamp.before.max.ms")?;
        if let (true, Ok(limit)) = (is_own, limit.parse::<u64>())
            && limit < AGE_MS_MIN
        {
            let to = "message.timestamp.before.max.ms=9223372036854775807";
            findings.push(
                warning(
                    format!(
                        "topic {name} refuses records whose occurred_at is older than {limit} ms"
                    ),
                    format!(
                        "after an outage of the relay its backlog is refused, and {}",
                        unpublishable(facts)
                    ),
                )
                .cure(shell(alter_topic(&facts.settings.kafka.brokers, name, to))),
            );
        }
    }
    unless(findings, "")
}
