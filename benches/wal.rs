//! The capture from the WAL on this machine:
//! `cargo bench --bench wal [-- --transactions 66667 --rounds 5 --large 1000000 --noise-mb 2048 --noise-mb-per-second 64]`.
//!
//! Drain: 200 001 events, 3 to a transaction, 190 bytes each, lie behind a slot; a relay publishes them and ends. The rate
//! is told by the broker's own append times, and from the start of the process to its end. The reference, in turn with it:
//! `pg_recvlogical` with pgoutput reads the same WAL over the same transport to /dev/null, with values as text, its default,
//! and with the options that the relay uses (it comes with PostgreSQL's client programs and must be in the PATH). Large: the peak memory of a relay that publishes one transaction of 1 000 000 events.
//! Idle: what the slot of a relay without events keeps while another database of the server writes 2 GB.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that can not go on ends"
)]

mod support;

use std::time::Duration;

use outbox_relay::database::Database;
use outbox_relay::servers::Servers;
use support::{
    appended, by_the_socket, database, ended, init_wal, load, number, relay,
    topic_with_append_times,
};
use tokio::process::Command;
use tokio::time::{Instant, interval, sleep};
use tokio_postgres::Client;

/// Each has a slot and a publication of its own, made before the WAL that it will read.
struct Plan {
    transport: &'static str,
    url: String,
    round: u64,
}

impl Plan {
    fn slot(&self) -> String {
        format!("outbox_relay_{}_{}", self.transport, self.round)
    }

    fn name(&self) -> String {
        format!("{}_{}", self.transport, self.round)
    }
}

fn main() {
    let settings = [
        ("wal_level", "logical"),
        ("max_replication_slots", "50"),
        ("max_wal_senders", "50"),
        ("max_wal_size", "8GB"),
    ];
    support::run(&settings, async |servers, postgres, brokers| {
        let tcp = postgres.url();
        let socket = by_the_socket(postgres);
        drain(servers, [tcp, &socket], brokers).await;
        large(servers, tcp, brokers).await;
        idle(servers, tcp, brokers).await;
    });
}

async fn connect(url: &str) -> Client {
    Database::parse(url).unwrap().connect().await.unwrap()
}

async fn drain(servers: &Servers, [tcp, socket]: [&str; 2], brokers: &str) {
    let (transactions, rounds) = (number("--transactions", 66_667), number("--rounds", 5));
    let events = transactions as f64 * 3.0;
    let tcp = database(tcp, "drain").await;
    let socket = format!("{}/drain", socket.rsplit_once('/').unwrap().0);
    let mut plans = Vec::new();
    for round in 0..=rounds {
        for (transport, url) in [("tcp", &tcp), ("socket", &socket)] {
            let url = url.clone();
            plans.push(Plan {
                transport,
                url,
                round,
            });
        }
    }
    for plan in &plans {
        init_wal(&plan.name(), &plan.url).await;
    }
    topic_with_append_times(brokers, "drain", 3).await;
    let client = connect(&tcp).await;
    load(&client, "drain", transactions).await;
    // Fresh brokers are slow: the first round warms them up, and is not told.
    for (n, plan) in plans.iter().enumerate() {
        let text = events / recvlogical(&client, plan, &[]).await;
        let binary = events / recvlogical(&client, plan, &["messages=true", "binary=true"]).await;
        let arguments = ["--capture", "wal", "--until-caught-up"];
        let child = relay(servers, &plan.name(), &plan.url, brokers, &arguments);
        let (whole, peak, cpu) = ended(child).await;
        let appended = appended(brokers, "drain", transactions * 3, n as u64 + 1);
        let rate = events / appended.as_secs_f64();
        if plan.round > 0 {
            println!(
                "drain, {} {}: {rate:.0} events/s by append times, {:.0} from start to end of the process ({whole:.2} s); \
             pg_recvlogical {text:.0} events/s, ratio {:.2}, with our options {binary:.0}, ratio {:.2}; \
             peak memory {peak:.0} MiB, {:.1} µs CPU per event",
                plan.transport,
                plan.round,
                events / whole,
                rate / text,
                rate / binary,
                cpu * 1e6 / events,
            );
        }
        let done = format!(
            "delete from outbox.relay; select pg_drop_replication_slot('{}')",
            plan.slot()
        );
        client.batch_execute(&done).await.unwrap();
    }
}

/// Seconds from the start of the program to its end, on a copy of the slot.
async fn recvlogical(client: &Client, plan: &Plan, options: &[&str]) -> f64 {
    let copy = format!("{}_reference", plan.slot());
    let (slot, end) = (plan.slot(), "select pg_current_wal_lsn()::text");
    let end: String = client.query_one(end, &[]).await.unwrap().get(0);
    client
        .batch_execute(&format!(
            "select pg_copy_logical_replication_slot('{slot}', '{copy}')"
        ))
        .await
        .unwrap();
    let url = plan.url.replace("postgres://", "postgresql://");
    let since = Instant::now();
    let ended = Command::new("pg_recvlogical")
        .args([
            "--dbname", &url, "--slot", &copy, "--start", "--endpos", &end,
        ])
        .args(["--file", "/dev/null", "--no-loop"])
        .args(["--option", "proto_version=1"])
        .args(options.iter().flat_map(|option| ["--option", option]))
        .args(["--option", &format!("publication_names={slot}")])
        .status();
    let status = ended
        .await
        .expect("pg_recvlogical in the PATH; it comes with PostgreSQL's client programs");
    let seconds = since.elapsed().as_secs_f64();
    assert!(status.success(), "{status}");
    client
        .batch_execute(&format!("select pg_drop_replication_slot('{copy}')"))
        .await
        .unwrap();
    seconds
}

async fn large(servers: &Servers, url: &str, brokers: &str) {
    let events = number("--large", 1_000_000);
    let url = database(url, "large").await;
    init_wal("large", &url).await;
    topic_with_append_times(brokers, "large", 3).await;
    let client = connect(&url).await;
    let insert = format!(
        "insert into outbox.events (topic, aggregate_id, event_type, payload)
         select 'large', (i % 10000)::text, 'Measured', convert_to(rpad(i::text, 190, 'x'), 'UTF8') from generate_series(1, {events}) i"
    );
    client.batch_execute(&insert).await.unwrap();
    let arguments = ["--capture", "wal", "--until-caught-up"];
    let child = relay(servers, "large", &url, brokers, &arguments);
    let (whole, peak, cpu) = ended(child).await;
    appended(brokers, "large", events, 1);
    println!(
        "large: one transaction of {events} events in {whole:.1} s, peak memory {peak:.0} MiB, {:.1} µs CPU per event",
        cpu * 1e6 / events as f64
    );
    let done = "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots where database = current_database()";
    client.batch_execute(done).await.unwrap();
}

async fn idle(servers: &Servers, url: &str, brokers: &str) {
    let (megabytes, megabytes_a_second) = (
        number("--noise-mb", 2_048),
        number("--noise-mb-per-second", 64),
    );
    let noise = connect(&database(url, "noise").await).await;
    let url = database(url, "idle").await;
    init_wal("idle", &url).await;
    let mut child = relay(servers, "idle", &url, brokers, &["--capture", "wal"]);
    let client = connect(&url).await;
    let kept = async || -> i64 {
        let kept = "select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint from pg_replication_slots";
        client.query_one(kept, &[]).await.unwrap().get(0)
    };
    noise
        .batch_execute("create table noise (t text)")
        .await
        .unwrap();
    let writer = tokio::spawn(async move {
        // 16 MB of WAL each.
        let chunk =
            "insert into noise select repeat(md5(i::text), 30) from generate_series(1, 16000) i";
        let mut pace = interval(Duration::from_micros(16_000_000 / megabytes_a_second));
        for _ in 0..megabytes / 16 {
            pace.tick().await;
            noise.batch_execute(chunk).await.unwrap();
        }
    });
    let (mut most, since) = (0, Instant::now());
    while !writer.is_finished() {
        most = most.max(kept().await);
        sleep(Duration::from_millis(100)).await;
    }
    writer.await.unwrap();
    let wrote = since.elapsed();
    let mut below = None;
    while since.elapsed() < wrote + Duration::from_secs(60) && below.is_none() {
        sleep(Duration::from_millis(100)).await;
        below = (kept().await < 64 << 20).then(|| since.elapsed() - wrote);
    }
    let (at_last, mb) = (kept().await, |bytes: i64| bytes >> 20);
    println!(
        "idle: {megabytes} MB written beside it in {:.1} s, at most {} MB kept meanwhile, below 64 MB {:.1?} after the end, then {} MB",
        wrote.as_secs_f64(),
        mb(most),
        below,
        mb(at_last)
    );
    child.start_kill().unwrap();
    child.wait().await.unwrap();
}
