//! What the benchmarks share: a loaded table, a relay and what it uses, and the broker's clock.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::process::Stdio;
use std::time::Duration;

use outbox_relay::database::Database;
use outbox_relay::servers::{Postgres, PostgresOptions, Servers};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

pub const INSERT: &str = "insert into outbox.events (topic, aggregate_id, event_type, payload)
    select $T, (random() * 10000)::int::text, 'Measured',
           convert_to(rpad((extract(epoch from clock_timestamp()) * 1e6)::bigint::text || ' ', 190, 'x'), 'UTF8')
    from generate_series(1, 3)";

/// Runs a benchmark to its end, beside a PostgreSQL with these settings and a Kafka.
pub fn run(settings: &[(&str, &str)], measure: impl AsyncFn(&Servers, &Postgres, &str)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let servers = Servers::new().unwrap();
        let settings = settings.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let options = PostgresOptions {
            settings: settings.collect(),
            ..PostgresOptions::default()
        };
        let (postgres, kafka) = tokio::join!(servers.postgres(options), servers.kafka());
        let (postgres, kafka) = (postgres.unwrap(), kafka.unwrap());
        measure(&servers, &postgres, kafka.brokers()).await;
        servers.shutdown().await;
    });
}

/// The number behind a flag.
pub fn number(flag: &str, otherwise: u64) -> u64 {
    let given = std::env::args().skip_while(|word| word != flag).nth(1);
    given.map_or(otherwise, |text| text.parse().unwrap())
}

/// The same server by its unix socket.
pub fn by_the_socket(postgres: &Postgres) -> String {
    let folder = postgres
        .socket_dir()
        .expect("a server of our own")
        .display();
    let folder = folder.to_string().replace('/', "%2F");
    let (user, place) = postgres.url().rsplit_once('@').unwrap();
    let (_, port_and_database) = place.split_once(':').unwrap();
    format!("{user}@{folder}:{port_and_database}")
}

pub async fn database(url: &str, name: &str) -> String {
    let admin = Database::parse(url).unwrap().connect().await.unwrap();
    admin
        .batch_execute(&format!("create database {name}"))
        .await
        .unwrap();
    let url = format!("{}/{name}", url.rsplit_once('/').unwrap().0);
    outbox_relay::init::init(&Database::parse(&url).unwrap())
        .await
        .unwrap();
    url
}

/// What `init --capture wal` makes.
pub async fn init_wal(name: &str, url: &str) {
    let init = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(["init", "--capture", "wal", "--name", name])
        .args(["--database-url", url])
        .stdout(Stdio::null())
        .status();
    assert!(init.await.unwrap().success());
}

pub fn relay(servers: &Servers, name: &str, url: &str, brokers: &str, more: &[&str]) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args([
            "run",
            "--name",
            name,
            "--database-url",
            url,
            "--kafka-brokers",
            brokers,
            "--create-topics",
            "true",
        ])
        .args(more)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    servers.adopt(child.id().unwrap());
    child
}

/// Peak resident memory in MiB and CPU seconds of a process, as long as it lives.
pub fn usage(pid: u32) -> Option<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))?
        .split_whitespace()
        .nth(1)?
        .parse::<f64>()
        .ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|t| t.parse::<f64>().unwrap())
        .sum::<f64>();
    Some((peak / 1024.0, ticks / 100.0))
}

/// So many partitions, and times that the broker gives.
pub async fn topic_with_append_times(brokers: &str, topic: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .unwrap();
    let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime");
    let made = admin.create_topics(&[topic], &AdminOptions::new()).await;
    made.unwrap().remove(0).unwrap();
}

/// One that sees what was committed, as soon as it is there.
pub fn consumer(brokers: &str, partitions: &[(&str, i32)], from: Offset) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "5")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    for (topic, partition) in partitions {
        all.add_partition_offset(topic, *partition, from).unwrap();
    }
    consumer.assign(&all).unwrap();
    consumer
}

/// Time from the first to the last record of the given round, each of `events`.
pub fn appended(brokers: &str, topic: &str, events: u64, round: u64) -> Duration {
    let partitions = [0, 1, 2].map(|partition| (topic, partition));
    let consumer = consumer(brokers, &partitions, Offset::Beginning);
    let mut times: Vec<i64> = (0..events * round)
        .map(|_| {
            let message = consumer.poll(Duration::from_secs(30)).unwrap().unwrap();
            message.timestamp().to_millis().unwrap()
        })
        .collect();
    times.sort_unstable();
    let times = &times[(events * (round - 1)) as usize..];
    Duration::from_millis((times[times.len() - 1] - times[0]).unsigned_abs())
}

/// Writes so many transactions of 3 events, and settles the server.
pub async fn load(client: &Client, topic: &str, transactions: u64) {
    let insert = INSERT.replace("$T", &format!("'{topic}'"));
    client
        .batch_execute(&format!(
            "create procedure load() language plpgsql as $$ begin for i in 1..{transactions} loop {insert}; commit; end loop; end $$;
             set synchronous_commit = off"
        ))
        .await
        .unwrap();
    client.batch_execute("call load()").await.unwrap();
    for statement in ["vacuum analyze outbox.events", "checkpoint"] {
        client.batch_execute(statement).await.unwrap();
    }
}

/// Waits for the end of a relay that catches up: seconds, peak memory in MiB, CPU seconds.
pub async fn ended(mut child: Child) -> (f64, f64, f64) {
    let since = Instant::now();
    let mut used = (0.0, 0.0);
    let status = loop {
        used = usage(child.id().unwrap_or(0)).unwrap_or(used);
        tokio::select! {
            status = child.wait() => break status.unwrap(),
            () = sleep(Duration::from_millis(10)) => {}
        }
    };
    assert!(status.success(), "{status}");
    (since.elapsed().as_secs_f64(), used.0, used.1)
}
