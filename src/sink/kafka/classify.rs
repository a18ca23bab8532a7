//! What each error of the Kafka client means for the relay. The only place that decides.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::fault::{Fault, Server, Verdict};

/// What was being done when the error came.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// A transaction call, or a request that belongs to no topic.
    Cluster,
    /// The position topic: the relay itself needs it.
    PositionTopic(&'a str),
    /// An event.
    Event {
        /// Its topic.
        topic: &'a str,
        /// Its transaction, `?` where it is not known.
        tx_id: &'a str,
    },
}

/// The fault for an error of the client library; `last_error` is the last text of its error callback, which often says
/// more (an SASL failure shows as "timed out" in the call that waits for the connection).
#[must_use]
pub fn fault_of(error: &KafkaError, at: At<'_>, last_error: Option<&str>) -> Fault {
    if let KafkaError::ClientConfig(_, _, key, _) = error {
        // Never the text: it quotes the value, which may be a password.
        return Fault::Setting(format!(
            "Kafka property {key}: unknown to librdkafka, or its value is not valid"
        ));
    }
    let fatal = matches!(error, KafkaError::Transaction(inner) if inner.is_fatal());
    let said = match error {
        KafkaError::Transaction(inner) => inner.string(),
        other => other.to_string(),
    };
    let text = match last_error {
        Some(last) if !said.contains(last) => format!("{said} ({last})"),
        _ => said,
    };
    let code = match error {
        // The crate does not count these among the errors that have a code.
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    match (error, code) {
        (KafkaError::ClientCreation(_), _) => {
            Fault::Setting(format!("the Kafka client can't be made: {text}"))
        }
        (_, Some(code)) => match of_code(code, at, text.clone()) {
            // A new producer is the cure of what is fatal to one, unless no producer would do better.
            fault if fatal && !matches!(fault.verdict(), Verdict::Stop(_)) => Fault::Recycle(text),
            fault => fault,
        },
        _ => Fault::Recycle(text),
    }
}

/// The fault for an error code.
#[must_use]
pub fn of_code(code: RDKafkaErrorCode, at: At<'_>, text: String) -> Fault {
    use RDKafkaErrorCode as Code;
    match code {
        // The record itself. A broker's limit is on the batch, but a batch of one is the least there is.
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidTimestamp
        | Code::InvalidRecord => by_subject(
            at,
            text,
            "make the payload smaller, or raise max.message.bytes of the topic and of the relay",
        ),
        // The topic.
        Code::InvalidTopic => by_topic(at, text, "correct the topic's name"),
        Code::TopicAuthorizationFailed => by_topic(
            at,
            text,
            "grant the relay's principal Write and Describe on the topic",
        ),
        Code::PolicyViolation
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidConfig => by_topic(
            at,
            text,
            "create the topic yourself, as the cluster's policy wants it",
        ),
        // The principal, or the cluster as a whole.
        Code::TransactionalIdAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::DelegationTokenAuthorizationFailed => Fault::Refused(format!(
            "Kafka: {text}; grant the relay's principal Write and Describe on its transactional id"
        )),
        Code::InvalidTransactionTimeout => Fault::Setting(format!(
            "Kafka: {text}; choose a transaction-timeout-ms that is no larger than the broker's transaction.max.timeout.ms"
        )),
        Code::UnsupportedVersion | Code::UnsupportedFeature | Code::UnsupportedForMessageFormat => {
            Fault::Refused(format!(
                "Kafka: {text}; the brokers are too old for transactions"
            ))
        }
        // Goes away by itself, or with a restart of somebody else: wait. The transaction is ended by the next producer.
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::SSL
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::RequestTimedOut
        | Code::QueueFull
        | Code::ISRInsufficient
        | Code::WaitingForCoordinator
        | Code::WaitCache
        | Code::Retry
        | Code::UnknownBroker
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::StaleControllerEpoch
        | Code::NetworkException
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::NotController
        | Code::ConcurrentTransactions
        | Code::KafkaStorageError
        | Code::LogDirNotFound
        | Code::ReassignmentInProgress
        | Code::ListenerNotFound
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::StaleBrokerEpoch
        | Code::OffsetNotAvailable
        | Code::ThrottlingQuotaExceeded => Fault::Unavailable(Server::Kafka, text),
        // Fenced is also what the broker says after it timed the transaction out: it is no proof that another relay
        // runs. The lease decides that when the sink opens again.
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TransactionCoordinatorFenced
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::InvalidProducerIdMapping
        | Code::UnknownProducerId
        | Code::InvalidTransactionalState
        | Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::State => Fault::Recycle(text),
        // Unclassified: the producer may be in any state. A new one knows.
        other => Fault::Recycle(format!("{text} [{other:?}]")),
    }
}

fn by_topic(at: At<'_>, text: String, remedy: &str) -> Fault {
    match (at, by_subject(at, text, remedy)) {
        (At::Event { topic, .. }, Fault::Unpublishable { tx_id, why, .. }) => {
            Fault::Unpublishable {
                tx_id,
                topic: Some(topic.to_owned()),
                why,
            }
        }
        (_, fault) => fault,
    }
}

fn by_subject(at: At<'_>, text: String, remedy: &str) -> Fault {
    match at {
        At::Event { topic, tx_id } => Fault::Unpublishable {
            tx_id: tx_id.to_owned(),
            topic: None,
            why: format!("topic {topic}: {text}; {remedy}"),
        },
        At::PositionTopic(topic) => {
            Fault::Refused(format!("position topic {topic}: {text}; {remedy}"))
        }
        At::Cluster => Fault::Refused(format!("Kafka: {text}; {remedy}")),
    }
}

/// Replaces each of `secrets` in a fault's text. The client library quotes settings in some of its messages.
#[must_use]
pub fn redacted(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| {
        text.replace(secret.as_str(), "***")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversize_event_names_topic_and_transaction() {
        let at = At::Event {
            topic: "t",
            tx_id: "7-1-10",
        };
        let fault = of_code(
            RDKafkaErrorCode::MessageSizeTooLarge,
            at,
            "too large".into(),
        );
        assert!(
            matches!(&fault, Fault::Unpublishable { tx_id, why, .. } if tx_id == "7-1-10" && why.contains("topic t"))
        );
        let fault = of_code(
            RDKafkaErrorCode::TopicAuthorizationFailed,
            At::PositionTopic("p"),
            "no".into(),
        );
        assert!(matches!(fault, Fault::Refused(_)));
    }

    #[test]
    fn fencing_never_concludes_that_another_relay_runs() {
        for code in [
            RDKafkaErrorCode::Fenced,
            RDKafkaErrorCode::ProducerFenced,
            RDKafkaErrorCode::InvalidProducerEpoch,
        ] {
            assert!(matches!(
                of_code(code, At::Cluster, String::new()),
                Fault::Recycle(_)
            ));
        }
        let unknown = of_code(RDKafkaErrorCode::Unknown, At::Cluster, String::new());
        assert!(matches!(unknown, Fault::Recycle(_)));
    }

    #[test]
    fn a_bad_property_is_named_without_its_value() {
        use rdkafka::types::RDKafkaConfRes;
        let (key, value) = ("sasl.password".to_owned(), "hunter2".to_owned());
        let error = KafkaError::ClientConfig(
            RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            value.clone(),
            key,
            value,
        );
        let text = fault_of(&error, At::Cluster, None).to_string();
        assert!(
            text.contains("sasl.password") && !text.contains("hunter2"),
            "{text}"
        );
        assert_eq!(redacted("bad hunter2!", &["hunter2".into()]), "bad ***!");
    }
}
