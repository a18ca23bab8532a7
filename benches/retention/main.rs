//! What retention keeps of an outbox that is written for long, as a plain table and as a ring of leaves beside it:
//! `cargo bench --bench retention [-- --minutes 60 --events-per-second 1000 --retention-minutes 5 --out docs]`.
//!
//! Two databases of one server, each with its writers and its relay; transactions of 3 events, 190 bytes each. Every 10 s: size
//! of table and indexes, dead rows, memory of the relay. The numbers go to `retention.csv` as they come, `retention.svg` is
//! drawn anew each minute, so what was measured stays if it is cut off. At the end `verify` compares what is left.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that can not go on ends"
)]

mod plot;
#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outbox_relay::database::Database;
use outbox_relay::ring;
use outbox_relay::servers::{Postgres, Servers};
use plot::{Chart, svg};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use support::{INSERT, database, number, relay};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};
use tokio_postgres::Client;

const NAMES: [&str; 2] = ["plain", "ring"];
const EVENTS_OF_ONE: u64 = 3;
const WRITERS: u64 = 4;
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples between two drawings.
const DRAW_EACH: usize = 6;

const SIZES: &str = "
select coalesce(sum(s.n_live_tup), 0)::bigint, coalesce(sum(s.n_dead_tup), 0)::bigint,
       sum(pg_table_size(t.relid))::bigint, sum(pg_indexes_size(t.relid))::bigint
from (select 'outbox.events'::regclass relid union select relid from pg_partition_tree('outbox.events')) t
join pg_class c on c.oid = t.relid and c.relkind = 'r'
left join pg_stat_user_tables s on s.relid = t.relid";

/// One table, its writers and its relay.
struct Side {
    name: &'static str,
    url: String,
    client: Client,
    relay: Child,
    written: Arc<AtomicU64>,
    writers: JoinSet<()>,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    seconds: u64,
    events_written: u64,
    live_rows: i64,
    dead_rows: i64,
    table_bytes: i64,
    index_bytes: i64,
    relay_rss_bytes: u64,
}

fn main() {
    support::run(&[], measure);
}

async fn measure(servers: &Servers, postgres: &Postgres, brokers: &str) {
    let minutes = number("--minutes", 60);
    let rate = number("--events-per-second", 1_000);
    let retention = number("--retention-minutes", 5);
    let out = std::env::args().skip_while(|word| word != "--out").nth(1);
    let out =
        PathBuf::from(out.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/docs").into()));
    // What is written in twice the retention.
    let leaf_rows = (rate * 60 * retention * 2).div_ceil(ring::LEAVES.into());
    let title = format!(
        "Outbox of {rate} events/s, retention {retention} min, ring of {} × {leaf_rows} rows",
        ring::LEAVES
    );
    println!("{title}: {minutes} min, to {}", out.display());

    let mut sides = Vec::new();
    for name in NAMES {
        topic(brokers, name).await;
        let url = database(postgres.url(), name).await;
        let here = Database::parse(&url).unwrap();
        if name == "ring" {
            ring::make(&here, u32::try_from(leaf_rows).unwrap())
                .await
                .unwrap();
        }
        let client = here.connect().await.unwrap();
        let more = ["--retention-minutes", &retention.to_string()];
        let relay = relay(servers, name, &url, brokers, &more);
        let written = Arc::new(AtomicU64::new(0));
        let writers = write(&here, name, rate, &written).await;
        sides.push(Side {
            name,
            url,
            client,
            relay,
            written,
            writers,
            samples: Vec::new(),
        });
    }

    let mut csv = File::create(out.join("retention.csv")).unwrap();
    writeln!(
        csv,
        "seconds,table,events_written,live_rows,dead_rows,table_bytes,index_bytes,relay_rss_bytes"
    )
    .unwrap();
    let begin = Instant::now();
    for n in 0..=minutes * 60 / SAMPLE_EVERY.as_secs() {
        sleep_until(begin + SAMPLE_EVERY * u32::try_from(n).unwrap()).await;
        for side in &mut sides {
            side.sample(n * SAMPLE_EVERY.as_secs(), &mut csv).await;
        }
        csv.flush().unwrap();
        if (n as usize).is_multiple_of(DRAW_EACH) {
            std::fs::write(out.join("retention.svg"), draw(&title, &sides)).unwrap();
        }
    }
    std::fs::write(out.join("retention.svg"), draw(&title, &sides)).unwrap();
    for side in &mut sides {
        side.writers.shutdown().await;
        verify(side, brokers).await;
        side.relay.start_kill().unwrap();
        side.relay.wait().await.unwrap();
    }
}

/// It forgets too, else a long run fills the disk.
async fn topic(brokers: &str, name: &str) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .unwrap();
    let topic = NewTopic::new(name, 3, TopicReplication::Fixed(1))
        .set("retention.ms", "900000")
        .set("segment.ms", "120000")
        .set("segment.bytes", "67108864");
    let made = admin.create_topics(&[topic], &AdminOptions::new()).await;
    made.unwrap().remove(0).unwrap();
}

/// Writers that hold the rate; what they are late with they make up for.
async fn write(
    database: &Database,
    topic: &str,
    rate: u64,
    written: &Arc<AtomicU64>,
) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let client = database.connect().await.unwrap();
        let (insert, written) = (INSERT.replace("$T", &format!("'{topic}'")), written.clone());
        writers.spawn(async move {
            let mut tick = interval(Duration::from_micros(
                1_000_000 * WRITERS * EVENTS_OF_ONE / rate,
            ));
            loop {
                tick.tick().await;
                client.batch_execute(&insert).await.unwrap();
                written.fetch_add(EVENTS_OF_ONE, Ordering::Relaxed);
            }
        });
    }
    writers
}

impl Side {
    async fn sample(&mut self, seconds: u64, csv: &mut File) {
        assert!(
            self.relay.try_wait().unwrap().is_none() && self.writers.try_join_next().is_none(),
            "the relay or a writer of {} ended",
            self.name
        );
        let row = self.client.query_one(SIZES, &[]).await.unwrap();
        let sample = Sample {
            seconds,
            events_written: self.written.load(Ordering::Relaxed),
            live_rows: row.get(0),
            dead_rows: row.get(1),
            table_bytes: row.get(2),
            index_bytes: row.get(3),
            relay_rss_bytes: rss_bytes(self.relay.id().unwrap()),
        };
        let Sample {
            events_written,
            live_rows,
            dead_rows,
            table_bytes,
            index_bytes,
            relay_rss_bytes,
            ..
        } = sample;
        let name = self.name;
        writeln!(
            csv,
            "{seconds},{name},{events_written},{live_rows},{dead_rows},{table_bytes},{index_bytes},{relay_rss_bytes}"
        )
        .unwrap();
        if (self.samples.len()).is_multiple_of(DRAW_EACH) {
            let mb = |bytes: i64| bytes as f64 / 1e6;
            println!(
                "{:>3} min {name:>5}: {events_written} events written, {live_rows} rows, {dead_rows} dead, table {:.0} MB, \
                 indexes {:.0} MB, relay {:.0} MB",
                seconds / 60,
                mb(table_bytes),
                mb(index_bytes),
                relay_rss_bytes as f64 / 1e6
            );
        }
        self.samples.push(sample);
    }
}

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb: u64 = line
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    kb * 1024
}

fn draw(title: &str, sides: &[Side]) -> String {
    let chart = |title, unit, value: fn(&Sample) -> f64| Chart {
        title,
        unit,
        lines: sides
            .iter()
            .map(|side| {
                let point = |it: &Sample| (it.seconds as f64 / 60.0, value(it));
                side.samples.iter().map(point).collect()
            })
            .collect(),
    };
    let charts = [
        chart("Table, MB", 1e6, |it| it.table_bytes as f64),
        chart("Indexes, MB", 1e6, |it| it.index_bytes as f64),
        chart("Dead rows, thousands", 1e3, |it| it.dead_rows as f64),
        chart("Memory of the relay, MB", 1e6, |it| {
            it.relay_rss_bytes as f64
        }),
    ];
    svg(
        title,
        &NAMES.map(|name| {
            if name == "plain" {
                "plain table"
            } else {
                "ring of leaves"
            }
        }),
        &charts,
    )
}

/// Beside the running relay, which publishes the rest meanwhile.
async fn verify(side: &Side, brokers: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args([
            "verify",
            "--name",
            side.name,
            "--database-url",
            &side.url,
            "--kafka-brokers",
            brokers,
        ])
        .output()
        .await
        .unwrap();
    println!("{}: {}", side.name, String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
