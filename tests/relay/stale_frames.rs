//! The recycling rule, on a real broker: an EndTxn frame that was delayed on a dying connection, and retried on another,
//! arrives inside the next transaction.
//!
//! Each stale frame comes twice: with the rule, and, as the control, with a shell that hides what the rule goes by. The
//! control must show damage; else the test with the rule would prove nothing.

use std::time::Duration;

use outbox_relay::capture::CaptureKind;
use outbox_relay::event::Slice;
use outbox_relay::fault::Fault;
use outbox_relay::ledger::Report;
use outbox_relay::sink::kafka::machine::{Committed, Signal};
use outbox_relay::sink::kafka::producer::{Shell, ThreadShell};
use outbox_relay::sink::kafka::record::{Partitions, PositionRecord};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::local::beside;
use crate::support::proxy::{Act, Api, At, KafkaProxy};
use crate::support::scene::{Scene, clean};
use crate::support::until;
use crate::support::writers::{Load, Writers};

/// Shows every commit that answered OK as a clean one: the relay without the recycling rule.
struct Blind(ThreadShell);

impl Shell for Blind {
    async fn create(&mut self) -> Result<(), Fault> {
        self.0.create().await
    }
    async fn init_transactions(&mut self) -> Result<(), Fault> {
        self.0.init_transactions().await
    }
    async fn read_position(&mut self, check_topic: bool) -> Result<Option<PositionRecord>, Fault> {
        self.0.read_position(check_topic).await
    }
    async fn begin(&mut self) -> Result<(), Fault> {
        self.0.begin().await
    }
    async fn produce(&mut self, slices: Vec<Slice>) -> Result<(), Fault> {
        self.0.produce(slices).await
    }
    async fn flush(&mut self) -> Result<Partitions, Fault> {
        self.0.flush().await
    }
    async fn produce_position(&mut self, record: &PositionRecord) -> Result<(), Fault> {
        self.0.produce_position(record).await
    }
    async fn commit(&mut self) -> Result<Committed, Fault> {
        self.0.commit().await?;
        Ok(Committed {
            signals: vec![Signal::EndTxnOk],
            elapsed_ms: 0,
        })
    }
    async fn drop_producer(&mut self) {
        self.0.drop_producer().await;
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Stale {
    /// The frame as the relay sent it.
    Commit,
    /// The frame as a client that aborts would have left it on the wire. Our sink never aborts, so the proxy turns the
    /// flag of the held commit. Other clients do, and so might a later version of ours.
    Abort,
}

/// What came of a stale frame.
struct Outcome {
    report: Report,
    /// The broker's answer to the stale frame.
    error: i16,
    /// Answers to requests for an epoch while it was held.
    epochs: u64,
}

/// Holds the EndTxn of one transaction until its retry went through and the events of the next one are in Kafka, lets it
/// go there, and judges. `shell` decides whether the rule holds.
async fn outcome_of<S: Shell>(
    capture: CaptureKind,
    stale: Stale,
    shell: impl FnOnce(ThreadShell) -> S,
) -> Outcome {
    let scene = Scene::of(capture).await;
    let proxy = KafkaProxy::start(&scene.relay.brokers).await.unwrap();
    let mut relay = scene.relay.clone();
    relay.brokers = proxy.brokers();
    let load = Load {
        writers: 4,
        ..Load::default()
    };
    let writers = Writers::start(&scene.database, &scene.prefix, load).await;
    let positions = format!("outbox-relay.position.{}", relay.name);
    let (error, epochs) = beside(&relay, shell, async {
        let mut held = proxy.order(Act::Hold, At::api(Api::EndTxn).after(5));
        held.caught().await.unwrap();
        let epochs = proxy.answered(Api::InitProducerId);
        // The events of the next transaction are there when its position is about to follow. An abort must come before
        // the broker knows of the position's partition: then the position is in a transaction of its own. A commit must
        // come after that, and before the position.
        let api = match stale {
            Stale::Commit => Api::Produce,
            Stale::Abort => Api::AddPartitionsToTxn,
        };
        let mut next = proxy.order(Act::Hold, At::api(api).mentioning(&positions));
        next.caught().await.unwrap();
        let epochs = proxy.answered(Api::InitProducerId) - epochs;
        let before = end_of(&scene.relay.brokers, &positions).await;
        let answer = match stale {
            Stale::Commit => held.release().await,
            Stale::Abort => held.release_as_abort().await,
        };
        let error = answer.unwrap().end_txn_error().unwrap();
        if error == 0 && stale == Stale::Commit {
            // The answer comes before the markers are written; the position must find them.
            until("the marker of the stale commit", 10, async || {
                end_of(&scene.relay.brokers, &positions).await > before
            })
            .await;
        }
        next.release().await.unwrap();
        writers.more(100).await;
        proxy.more(Api::EndTxn, 3).await.unwrap();
        writers.stop().await;
        (error, epochs)
    })
    .await;
    Outcome {
        report: scene.check().await,
        error,
        epochs,
    }
}

/// The end of a topic with one partition, markers counted.
async fn end_of(brokers: &str, topic: &str) -> i64 {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let ask = move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("isolation.level", "read_uncommitted")
            .create()
            .unwrap();
        let timeout = Duration::from_secs(10);
        consumer.fetch_watermarks(&topic, 0, timeout).unwrap().1
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// The broker fenced the frame, because the producer had been made anew before the next begin.
fn survived(outcome: &Outcome) {
    clean(&outcome.report, 100);
    // The client asks more than once while the markers of the commit are being written.
    assert_ne!(outcome.epochs, 0, "the relay must recycle");
    assert_ne!(outcome.error, 0, "the stale frame must be fenced");
}

/// The broker took the frame for one of the transaction under way.
fn damaged(outcome: &Outcome) {
    assert_eq!(outcome.epochs, 0, "the rule is off");
    assert_eq!(outcome.error, 0, "the stale frame must have been accepted");
    assert!(!outcome.report.is_clean(), "{}", outcome.report);
}

both_captures!(90, a_stale_commit_is_fenced);

async fn a_stale_commit_is_fenced(capture: CaptureKind) {
    survived(&outcome_of(capture, Stale::Commit, |shell| shell).await)
}

both_captures!(90, without_the_recycling_rule_a_stale_commit_doubles_events);

async fn without_the_recycling_rule_a_stale_commit_doubles_events(capture: CaptureKind) {
    let outcome = outcome_of(capture, Stale::Commit, Blind).await;
    damaged(&outcome);
    assert!(outcome.report.doubled.count > 0, "{}", outcome.report);
}

both_captures!(90, a_stale_abort_is_fenced);

async fn a_stale_abort_is_fenced(capture: CaptureKind) {
    survived(&outcome_of(capture, Stale::Abort, |shell| shell).await)
}

both_captures!(90, without_the_recycling_rule_a_stale_abort_loses_events);

async fn without_the_recycling_rule_a_stale_abort_loses_events(capture: CaptureKind) {
    let outcome = outcome_of(capture, Stale::Abort, Blind).await;
    damaged(&outcome);
    assert!(outcome.report.lost.count > 0, "{}", outcome.report);
}
