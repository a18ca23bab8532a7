//! Between servers that demand TLS, a login and privileges of everybody: no more is granted than the README says.

use std::path::Path;

use outbox_relay::capture::CaptureKind;
use outbox_relay::servers::Kafka;
use outbox_relay::sink::kafka::position_topic::topic_of;

use super::doctor::doctor;
use super::roles;
use crate::support::acl::{Operation, Resource, allow};
use crate::support::process::RelayOf;
use crate::support::scan::records_from;
use crate::support::scene::Scene;
use crate::support::servers::{TestDatabase, connect};
use crate::support::strict::{strict_kafka, strict_postgres};
use crate::support::topic::Hand;
use crate::support::{unique, until};

const USER: &str = "relay";
const PASSWORD: &str = "kafka-secret";

/// What the README names.
async fn grant(kafka: &Kafka, name: &str, topic: &str) {
    use Operation::{Create, Describe, DescribeConfigs, Read, Write};
    let writes = [Write, Describe];
    let position = [Create, Read, Write, Describe, DescribeConfigs];
    let id = format!("outbox-relay.{name}");
    for (resource, name, operations) in [
        (Resource::Topic, topic, &writes[..]),
        (Resource::TransactionalId, &id, &writes),
        (Resource::Topic, &topic_of(name), &position),
    ] {
        allow(kafka.brokers(), USER, resource, name, operations).await;
    }
}

/// The same with other properties of the client.
fn with_kafka(relay: &RelayOf, password: &str, protocol: &str, roots: &Path) -> RelayOf {
    let mut relay = relay.clone();
    for property in [
        format!("security.protocol={protocol}"),
        "sasl.mechanism=SCRAM-SHA-512".into(),
        format!("sasl.username={USER}"),
        format!("sasl.password={password}"),
        format!("ssl.ca.location={}", roots.display()),
    ] {
        relay.more.extend(["--kafka-property".into(), property]);
    }
    relay
}

both_captures!(
    240,
    a_relay_works_between_servers_that_demand_tls_and_a_login
);

async fn a_relay_works_between_servers_that_demand_tls_and_a_login(capture: CaptureKind) {
    let (postgres, postgres_root) = strict_postgres("scram-sha-256").await;
    let (kafka, kafka_root) = strict_kafka(USER, PASSWORD).await;
    let folder = tempfile::tempdir().unwrap();
    let root = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let postgres_root = root("postgres.pem", postgres_root);
    let kafka_root = root("kafka.pem", kafka_root);

    let scene = Scene::on(TestDatabase::on(&postgres).await, capture).await;
    let prefix = unique("r").replace('-', "_");
    roles::init(&scene, &prefix).await;
    let admin = connect(&scene.database.url).await;
    let password = format!("alter role {prefix}_relay password 'postgres-secret'");
    admin.batch_execute(&password).await.unwrap();
    let topic = unique("topic");
    Hand::at(kafka.brokers()).create(&topic, 3, &[]).await;
    grant(&kafka, &scene.relay.name, &topic).await;

    let url = |tls: &str| {
        let login = format!("{prefix}_relay:postgres-secret@");
        format!("{}?{tls}", scene.database.url.replace("postgres@", &login))
    };
    let verified = url(&format!(
        "sslmode=verify-full&sslrootcert={}",
        postgres_root.display()
    ));
    let mut open = scene.relay.clone();
    open.more.clear();
    open.brokers = kafka.strict_brokers().unwrap().to_owned();
    open.database_url = verified;
    let relay = with_kafka(&open, PASSWORD, "SASL_SSL", &kafka_root);

    let process = relay.start().await;
    let publish = "select outbox.publish($1, 'k', 'v'::text)";
    admin.execute(publish, &[&topic]).await.unwrap();
    records_from(kafka.brokers(), &topic, 1).await;
    // What doctor looks at beyond that it says.
    let found = doctor(&relay, &[]).await;
    assert!(found.checks(&["error"]).is_empty(), "{:#}", found.json);
    assert!(found.wrong().contains("kafka.permissions"));
    for (resource, name, operation) in [
        (
            Resource::Cluster,
            "kafka-cluster",
            Operation::DescribeConfigs,
        ),
        (Resource::Topic, "__transaction_state", Operation::Describe),
    ] {
        allow(kafka.brokers(), USER, resource, name, &[operation]).await;
    }
    for topic in [&topic, "__transaction_state"] {
        let looks = [Operation::DescribeConfigs];
        allow(kafka.brokers(), USER, Resource::Topic, topic, &looks).await;
    }
    until("nothing is kept from it", 20, async || {
        let found = doctor(&relay, &[]).await;
        found.checks(&["unknown"]).is_empty() && !found.wrong().contains("kafka.permissions")
    })
    .await;
    assert!(!process.log().contains("secret") && !found.json.to_string().contains("secret"));
    process.terminate().await;

    // One thing is wrong with each of these.
    let plain = RelayOf {
        database_url: url("sslmode=disable"),
        ..relay.clone()
    };
    let unknown = RelayOf {
        database_url: url("sslmode=verify-full"),
        ..relay.clone()
    };
    for (relay, says) in [
        (plain, "refuses the login"),
        (unknown, "certificate"),
        (
            with_kafka(&open, "wrong-secret", "SASL_SSL", &kafka_root),
            "uthentication",
        ),
        (
            with_kafka(&open, PASSWORD, "SASL_SSL", &postgres_root),
            "certificate",
        ),
        (
            with_kafka(&open, PASSWORD, "SASL_PLAINTEXT", &kafka_root),
            "Kafka is not available",
        ),
    ] {
        let process = relay.start().await;
        process.says(says).await;
        assert!(!process.log().contains("secret"), "{}", process.log());
        process.kill9().await;
    }
    scene.drop_slots().await;
}
