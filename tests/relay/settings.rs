//! Settings whose effect shows only with the binary and real servers.

use std::collections::HashSet;
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use outbox_relay::capture::CaptureKind;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_postgres::Client;

use crate::support::process::RelayOf;
use crate::support::scan::records;
use crate::support::scene::Scene;
use crate::support::servers::{TestDatabase, own_kafka};
use crate::support::{unique, until, within};

async fn publish(client: &Client, topic: &str, payload: &str) {
    client
        .execute(
            "select outbox.publish($1, 'k', $2::text)",
            &[&topic, &payload],
        )
        .await
        .unwrap();
}

/// Runs a new relay on a new database with one event in it, until it has caught up or refuses.
async fn one_event_with(settings: &[&str]) -> (Output, String) {
    let database = TestDatabase::new().await;
    publish(&database.connect().await, &unique("topic"), "1").await;
    let relay = RelayOf::new(&unique("relay"), &database).await;
    let relay = relay.with(&["--until-caught-up", "--on-fault", "halt"]);
    let relay = relay.with(settings);
    let output = relay.command().output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// When each reading session of relays last asked something: database and time.
async fn last_questions(client: &Client) -> Vec<(String, String)> {
    let rows = client
        .query(
            "select datname::text, query_start::text from pg_stat_activity
             where application_name = 'outbox-relay' and pid <> pg_backend_pid() and query_start is not null",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn drain_ms_ends_a_relay_whose_broker_does_not_answer() {
    within(120, async {
        let mut kafka = own_kafka().await;
        let database = TestDatabase::new().await;
        let mut relay = RelayOf::new(&unique("relay"), &database)
            .await
            .with(&["--drain-ms", "300"]);
        relay.brokers = kafka.brokers().to_owned();
        let process = relay.start().await;
        process.says("active").await;
        kafka.sigstop(1).await.unwrap();
        let client = database.connect().await;
        publish(&client, &unique("topic"), "1").await;
        // An idle relay looks ten times a second; one that publishes, to a broker that is silent, does not.
        until("a batch is under way", 30, async || {
            let silent = "select count(*) from pg_stat_activity where application_name = 'outbox-relay'
                          and datname = current_database() and pid <> pg_backend_pid() and clock_timestamp() - query_start < interval '1 second'";
            client.query_one(silent, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        process.signal(Signal::SIGTERM);
        process.says("within drain-ms (300 ms)").await;
        assert_eq!(process.ended().await.code(), Some(5));
        kafka.sigcont(1).await.unwrap();
        relay.catch_up().await;
    });
}

#[test]
fn transaction_timeout_ms_is_what_the_broker_is_told() {
    within(90, async {
        // The broker's transaction.max.timeout.ms is 15 minutes.
        let (output, said) = one_event_with(&["--transaction-timeout-ms", "900000"]).await;
        assert!(output.status.success(), "{said}");
        let (output, said) = one_event_with(&["--transaction-timeout-ms", "900001"]).await;
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("transaction.max.timeout.ms"), "{said}");
    });
}

#[test]
fn topic_replication_factor_is_what_the_broker_is_asked_for() {
    within(90, async {
        let (output, said) = one_event_with(&["--topic-replication-factor", "1"]).await;
        assert!(output.status.success(), "{said}");
        let (output, said) = one_event_with(&["--topic-replication-factor", "30"]).await;
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(
            said.to_lowercase().contains("replication factor") && said.contains("create the topic"),
            "{said}"
        );
    });
}

#[test]
fn route_and_topic_partitions_shape_the_topic_that_is_made() {
    within(90, async {
        let database = TestDatabase::new().await;
        let kind = unique("kind");
        let insert = "insert into outbox.events (aggregate_type, payload) values ($1, 'routed')";
        let client = database.connect().await;
        client.execute(insert, &[&kind]).await.unwrap();
        let relay = RelayOf::new(&unique("relay"), &database).await.with(&[
            "--route",
            "mine.{aggregate_type}.events",
            "--topic-partitions",
            "5",
        ]);
        relay.catch_up().await;
        let (brokers, topic) = (relay.brokers, format!("mine.{kind}.events"));
        assert_eq!(records(&brokers, &topic).await.len(), 1);
        let partitions = tokio::task::spawn_blocking(move || {
            let mut config = ClientConfig::new();
            let consumer: BaseConsumer = config.set("bootstrap.servers", brokers).create().unwrap();
            let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(10));
            metadata.unwrap().topics()[0].partitions().len()
        });
        assert_eq!(partitions.await.unwrap(), 5);
    });
}

#[test]
fn kafka_property_reaches_the_client() {
    within(90, async {
        let database = TestDatabase::new().await;
        let client = database.connect().await;
        publish(&client, &unique("topic"), &"x".repeat(5_000)).await;
        let relay = RelayOf::new(&unique("relay"), &database).await;
        let small = relay.clone().with(&[
            "--until-caught-up",
            "--on-fault",
            "halt",
            "--kafka-property",
            "message.max.bytes=2000",
        ]);
        let output = small.command().output().await.unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        relay.catch_up().await;
    });
}

#[test]
fn poll_ms_min_and_max_say_how_often_it_looks() {
    within(120, async {
        let start = async |min: &str, max: &str| {
            let database = TestDatabase::new().await;
            let relay = RelayOf::new(&unique("relay"), &database).await.with(&[
                "--poll-ms-min",
                min,
                "--poll-ms-max",
                max,
            ]);
            let process = relay.start().await;
            process.says("active").await;
            (database, process)
        };
        let (busy, busy_process) = start("1", "20").await;
        let (tiring, tiring_process) = start("1", "3600000").await;
        let (lazy, lazy_process) = start("3600000", "3600000").await;
        let client = busy.connect().await;
        let mut seen: HashSet<(String, String)> = HashSet::new();
        let mut busy_since_tiring = 0;
        // It falls ever more behind, and no faster than that: its pauses double.
        until("a relay looks ever less often", 60, async || {
            for (database, at) in last_questions(&client).await {
                let new = seen.insert((database.clone(), at));
                match database {
                    name if new && name == busy.name => busy_since_tiring += 1,
                    name if new && name == tiring.name => busy_since_tiring = 0,
                    _ => {}
                }
            }
            busy_since_tiring >= 40
        })
        .await;
        let looks = |of: &TestDatabase| seen.iter().filter(|(name, _)| *name == of.name).count();
        assert!(
            looks(&busy) > looks(&tiring) && looks(&tiring) > looks(&lazy),
            "{} {} {}",
            looks(&busy),
            looks(&tiring),
            looks(&lazy)
        );
        // Whatever it waits for, a signal ends it.
        for process in [busy_process, tiring_process, lazy_process] {
            process.terminate().await;
        }
    });
}

both_captures!(90, start_now_leaves_out_what_was_committed_before);

async fn start_now_leaves_out_what_was_committed_before(capture: CaptureKind) {
    let mut scene = Scene::of(capture).await;
    let (client, topic) = (scene.database.connect().await, unique("topic"));
    publish(&client, &topic, "before").await;
    scene.relay = scene.relay.with(&["--start", "now"]);
    scene.relay.catch_up().await;
    publish(&client, &topic, "after").await;
    scene.relay.catch_up().await;
    let found = records(&scene.relay.brokers, &topic).await;
    let values: Vec<_> = found
        .iter()
        .map(|record| record.value.as_deref().unwrap())
        .collect();
    assert_eq!(values, [b"after"]);
    scene.drop_slots().await;
}
