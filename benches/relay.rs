//! How fast the relay is on this machine: `cargo bench --bench relay [-- --seconds 60 --transactions 66667 --socket]`.
//!
//! Drain: 200 001 events, 3 to a transaction, 190 bytes each, are in the table; a relay publishes them and ends. The rate
//! is told twice: by the broker's own append times, from the first record to the last, and from the start of the process
//! to its end. The reference, in the same run, is the read alone: COPY of the same columns over the same connection.
//! Latency: 500 transactions of 3 events a second; from `clock_timestamp()` inside the insert, so including the
//! commit's flush, to the return of a read_committed consumer's poll.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that can not go on ends"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::TryStreamExt;
use outbox_relay::database::Database;
use outbox_relay::servers::Servers;
use rdkafka::{Message, Offset};
use support::{
    INSERT, appended, by_the_socket, consumer, database, ended, load, number, relay,
    topic_with_append_times, usage,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const RATE: u64 = 500;
const WRITERS: u64 = 10;

fn main() {
    let seconds = number("--seconds", 60);
    let transactions = number("--transactions", 66_667);
    let by_socket = std::env::args().any(|word| word == "--socket");
    let settings = [("max_wal_size", "8GB")];
    support::run(&settings, async |servers, postgres, brokers| {
        let url = match by_socket {
            true => by_the_socket(postgres),
            false => postgres.url().to_owned(),
        };
        drain(servers, &url, brokers, transactions).await;
        latency(servers, &url, brokers, seconds).await;
    });
}

async fn drain(servers: &Servers, url: &str, brokers: &str, transactions: u64) {
    let url = database(url, "drain").await;
    topic_with_append_times(brokers, "drain", 3).await;
    let client = Database::parse(&url).unwrap().connect().await.unwrap();
    load(&client, "drain", transactions).await;
    let events = transactions as f64 * 3.0;
    for round in 1..=3 {
        let since = Instant::now();
        let copy = "copy (select xid::text, seq, id, topic, aggregate_type, aggregate_id, event_type, payload, headers::text, occurred_at
                    from outbox.events order by xid, seq) to stdout binary";
        let bytes = client
            .copy_out(copy)
            .await
            .unwrap()
            .try_fold(0, |n, piece| async move { Ok(n + piece.len()) })
            .await
            .unwrap();
        let reference = events / since.elapsed().as_secs_f64();
        client
            .batch_execute("delete from outbox.relay")
            .await
            .unwrap();
        let child = relay(
            servers,
            &format!("drain-{round}"),
            &url,
            brokers,
            &["--until-caught-up"],
        );
        let (whole, peak, cpu) = ended(child).await;
        let appended = appended(brokers, "drain", transactions * 3, round);
        let rate = events / appended.as_secs_f64();
        println!(
            "drain {round}: {rate:.0} events/s by append times, {:.0} from start to end of the process ({whole:.2} s), \
             COPY alone {reference:.0} events/s ({} MB), ratio {:.2}, peak memory {:.0} MiB, {:.1} µs CPU per event",
            events / whole,
            bytes / 1_000_000,
            rate / reference,
            peak,
            cpu * 1e6 / events,
        );
    }
}

async fn latency(servers: &Servers, url: &str, brokers: &str, seconds: u64) {
    let url = database(url, "latency").await;
    let mut child = relay(servers, "latency", &url, brokers, &[]);
    let insert = INSERT.replace("$T", "'latency'");
    // The topic is made by the first event, before the consumer looks for it.
    Database::parse(&url)
        .unwrap()
        .connect()
        .await
        .unwrap()
        .batch_execute(&insert)
        .await
        .unwrap();
    sleep(Duration::from_secs(3)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let consumer = tokio::task::spawn_blocking({
        let (brokers, stop) = (brokers.to_owned(), stop.clone());
        move || consume(&brokers, &stop)
    });
    sleep(Duration::from_secs(2)).await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let client = Database::parse(&url).unwrap().connect().await.unwrap();
        let insert = insert.clone();
        writers.spawn(async move {
            let mut tick = interval(Duration::from_micros(1_000_000 * WRITERS / RATE));
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            for _ in 0..seconds * RATE / WRITERS {
                tick.tick().await;
                client.batch_execute(&insert).await.unwrap();
            }
        });
    }
    let since = Instant::now();
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    let rate = (seconds * RATE) as f64 / since.elapsed().as_secs_f64();
    sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut seen = consumer.await.unwrap();
    seen.sort_unstable();
    let at = |share: f64| seen[((seen.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let (peak, cpu) = usage(child.id().unwrap()).unwrap();
    println!(
        "latency: {} events at {rate:.0} transactions/s of 3: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, worst {:.1} ms, \
         peak memory {peak:.0} MiB, {:.0} µs CPU per event",
        seen.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        cpu * 1e6 / seen.len() as f64,
    );
    assert_eq!(
        seen.len() as u64,
        seconds * RATE * 3,
        "every event is seen once"
    );
    child.start_kill().unwrap();
    child.wait().await.unwrap();
}

/// Latencies in microseconds of all that comes after the events that are there already.
#[expect(
    clippy::disallowed_methods,
    reason = "the events carry the database's wall clock, which is this machine's"
)]
fn consume(brokers: &str, stop: &AtomicBool) -> Vec<i64> {
    let partitions = [0, 1, 2].map(|partition| ("latency", partition));
    let consumer = consumer(brokers, &partitions, Offset::End);
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else {
            continue;
        };
        let now = i64::try_from(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_micros(),
        )
        .unwrap();
        let text = String::from_utf8_lossy(message.payload().unwrap()).into_owned();
        seen.push(now - text.split(' ').next().unwrap().parse::<i64>().unwrap());
    }
    seen
}
