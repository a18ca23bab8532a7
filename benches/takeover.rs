//! How long nobody publishes when the active relay ends: `cargo bench --bench takeover [-- --trials 20 --logs FOLDER]`.
//!
//! Three relays of one name, one active, two standing by; a writer commits an event each 10 ms. The active one is killed
//! (kill -9), or asked to end (SIGTERM). The time is that from the signal until a read_committed consumer has the first
//! event that the successor published: the position record in the same Kafka transaction names the process. Each trial
//! then starts a third relay again. With `--logs` each relay logs to a file of its own there.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that can not go on ends"
)]

mod support;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::database::Database;
use outbox_relay::servers::Servers;
use outbox_relay::sink::kafka::position_topic::topic_of;
use outbox_relay::sink::kafka::record::PositionRecord;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset};
use support::{consumer, database, init_wal, number, topic_with_append_times};
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_postgres::Client;

const RELAYS: usize = 3;
const EVENT_EVERY: Duration = Duration::from_millis(10);
/// A trial that needs longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let trials = number("--trials", 20);
    let settings = [("wal_level", "logical")];
    support::run(&settings, async |servers, postgres, brokers| {
        for capture in ["table", "wal"] {
            let stage = Stage::set(servers, postgres.url(), brokers, capture).await;
            stage.measure(trials).await;
        }
    });
}

/// One name, its database, its topic, and the consumer that looks.
struct Stage<'a> {
    servers: &'a Servers,
    url: String,
    brokers: String,
    capture: &'static str,
    client: Client,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

/// What the consumer has seen.
#[derive(Default)]
struct Seen {
    /// When the event at this offset arrived.
    arrived: HashMap<i64, Instant>,
    /// The process of the last position record.
    active: Option<u32>,
    /// The first event of each process.
    first_of: HashMap<u32, i64>,
}

impl Seen {
    fn take(&mut self, topic: &str, message: &BorrowedMessage<'_>) {
        if message.topic() == topic {
            self.arrived.insert(message.offset(), Instant::now());
            return;
        }
        let record = PositionRecord::decode(message.payload().unwrap()).unwrap();
        let pid = record.instance.split(':').nth(1).unwrap().parse().unwrap();
        if let Some([first, ..]) = record.partitions.get(topic).map(|it| it[&0]) {
            self.active = Some(pid);
            self.first_of.entry(pid).or_insert(first);
        }
    }

    /// When the first event of another process than this arrived.
    fn successor_of(&self, pid: u32) -> Option<Instant> {
        let active = self.active.filter(|active| *active != pid)?;
        self.arrived.get(self.first_of.get(&active)?).copied()
    }
}

impl<'a> Stage<'a> {
    async fn set(servers: &'a Servers, url: &str, brokers: &str, capture: &'static str) -> Self {
        let url = database(url, &format!("takeover_{capture}")).await;
        if capture == "wal" {
            init_wal(capture, &url).await;
        }
        topic_with_append_times(brokers, capture, 1).await;
        let client = Database::parse(&url).unwrap().connect().await.unwrap();
        Self {
            servers,
            url,
            brokers: brokers.to_owned(),
            capture,
            client,
            seen: Arc::default(),
            stop: Arc::default(),
        }
    }

    async fn measure(&self, trials: u64) {
        let writer = tokio::spawn(write(self.url.clone(), self.capture, self.stop.clone()));
        let mut relays = vec![self.relay(0)];
        // The position topic is there when the first relay publishes.
        let (brokers, topic) = (self.brokers.clone(), self.capture);
        sleep(Duration::from_secs(3)).await;
        let consumer = tokio::task::spawn_blocking({
            let (seen, stop) = (self.seen.clone(), self.stop.clone());
            move || consume(&brokers, topic, &seen, &stop)
        });
        for (name, signal) in [("kill -9", Signal::SIGKILL), ("SIGTERM", Signal::SIGTERM)] {
            let mut times = Vec::new();
            for trial in 1..=trials {
                while relays.len() < RELAYS {
                    relays.push(self.relay(relays.len()));
                }
                let took = self.trial(&mut relays, signal).await;
                let (capture, ms) = (self.capture, took.as_secs_f64() * 1e3);
                println!("capture {capture}, {name} {trial}: {ms:.0} ms");
                times.push(took);
            }
            times.sort_unstable();
            let ms = |time: &Duration| time.as_secs_f64() * 1e3;
            println!(
                "capture {}, {name}: median {:.0} ms, worst {:.0} ms, best {:.0} ms",
                self.capture,
                ms(&times[(times.len() - 1) / 2]),
                ms(times.last().unwrap()),
                ms(&times[0]),
            );
        }
        for mut relay in relays {
            relay.kill().await.unwrap();
        }
        self.stop.store(true, Ordering::Relaxed);
        writer.await.unwrap();
        consumer.await.unwrap();
    }

    /// Ends the active relay; answers how long it took until somebody else's event was seen.
    async fn trial(&self, relays: &mut Vec<Child>, signal: Signal) -> Duration {
        self.settled().await;
        let active = self.seen().active.unwrap();
        let since = Instant::now();
        kill(Pid::from_raw(i32::try_from(active).unwrap()), signal).unwrap();
        let first = loop {
            if let Some(first) = self.seen().successor_of(active) {
                break first;
            }
            assert!(since.elapsed() < PATIENCE, "nobody took over");
            sleep(Duration::from_millis(1)).await;
        };
        let ended = relays.iter().position(|relay| relay.id() == Some(active));
        relays.remove(ended.unwrap()).wait().await.unwrap();
        first - since
    }

    /// All relays have a session for the lease, and the active one has published for a while.
    async fn settled(&self) {
        let sessions = "select count(*) from pg_stat_activity
            where application_name = 'outbox-relay lease' and datname = current_database()";
        while self
            .client
            .query_one(sessions, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            != RELAYS as i64
        {
            sleep(Duration::from_millis(10)).await;
        }
        // Not in step with anything.
        sleep(Duration::from_millis(fastrand::u64(1_500..2_500))).await;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn relay(&self, number: usize) -> Child {
        let logs = std::env::args().skip_while(|word| word != "--logs").nth(1);
        let log = logs.map(|folder| {
            let name = format!("{}-{}-{number}.log", self.capture, fastrand::u32(..));
            File::create(PathBuf::from(folder).join(name)).unwrap()
        });
        let child = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
            .args(["run", "--name", self.capture, "--capture", self.capture])
            .args([
                "--database-url",
                &self.url,
                "--kafka-brokers",
                &self.brokers,
            ])
            .stderr(log.map_or_else(Stdio::null, Stdio::from))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.servers.adopt(child.id().unwrap());
        child
    }
}

/// A transaction of one event each 10 ms.
async fn write(url: String, topic: &'static str, stop: Arc<AtomicBool>) {
    let client = Database::parse(&url).unwrap().connect().await.unwrap();
    let publish = format!("select outbox.publish('{topic}', 'key', 'value'::text)");
    let mut tick = interval(EVENT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        client.batch_execute(&publish).await.unwrap();
    }
}

/// Reads events and positions until it is stopped.
fn consume(brokers: &str, topic: &str, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let consumer = consumer(
        brokers,
        &[(topic, 0), (&topic_of(topic), 0)],
        Offset::Beginning,
    );
    while !stop.load(Ordering::Relaxed) {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
            seen.lock().unwrap().take(topic, &message);
        }
    }
}
