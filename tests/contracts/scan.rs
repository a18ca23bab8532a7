//! What a scan reads: the visible records up to where the topic ended when it began.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outbox_relay::scan::{Scan, offsets_of};
use rdkafka::Message;
use rdkafka::producer::Producer;

use crate::support::scan::{Record, records};
use crate::support::servers::shared;
use crate::support::topic::Hand;
use crate::support::{unique, within};

fn record(partition: i32, value: &str) -> Record {
    Record {
        partition,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
        timestamp_ms: 1_700_000_000_000,
    }
}

/// The values that are read, and whether as many offsets were reported as there were to read.
fn values(scan: &Scan, topic: &str) -> (Vec<String>, bool) {
    let extents = scan.extents(topic).unwrap();
    let (mut values, mut offsets) = (Vec::new(), 0);
    let feed = |message: &rdkafka::message::BorrowedMessage<'_>| {
        values.push(String::from_utf8_lossy(message.payload().unwrap()).into_owned());
        Ok(())
    };
    scan.read(topic, &extents, |further| offsets += further, feed)
        .unwrap();
    values.sort();
    (values, offsets == offsets_of(&extents))
}

#[test]
fn markers_aborted_records_and_a_moved_log_start_are_passed_over() {
    within(90, async {
        let (brokers, topic) = (shared().await.kafka.brokers(), unique("scan"));
        let hand = Hand::at(brokers);
        hand.create(&topic, 3, &[]).await;
        let producer = hand.producer(Some(&topic));
        hand.transaction(&producer, &topic, &[record(0, "a0"), record(1, "b0")], true);
        hand.transaction(
            &producer,
            &topic,
            &[record(0, "no"), record(2, "no")],
            false,
        );
        hand.transaction(&producer, &topic, &[record(0, "a1")], true);
        hand.transaction(&producer, &topic, &[record(1, "no")], false);
        let (brokers, name) = (brokers.to_owned(), topic.clone());
        let read = move || {
            let scan = Scan::of(&brokers).unwrap();
            (values(&scan, &name), values(&scan, &name), scan)
        };
        let (first, second, scan) = tokio::task::spawn_blocking(read).await.unwrap();
        let all = (["a0", "a1", "b0"].map(str::to_owned).to_vec(), true);
        assert_eq!(first, all);
        assert_eq!(second, all, "a scan can be repeated");
        hand.delete_before(&topic, 0, 1).await;
        hand.delete_before(&topic, 1, 4).await;
        let name = topic.clone();
        let read = move || {
            let extents = scan.extents(&name).unwrap();
            (values(&scan, &name), extents[&0].first, extents[&1].first)
        };
        let after = tokio::task::spawn_blocking(read).await.unwrap();
        assert_eq!(after, ((vec!["a1".to_owned()], true), 1, 4));
    });
}

#[test]
fn under_constant_load_it_ends_where_the_topic_ended_when_it_began() {
    within(90, async {
        let (brokers, topic) = (shared().await.kafka.brokers().to_owned(), unique("scan"));
        let hand = Hand::at(&brokers);
        hand.create(&topic, 1, &[]).await;
        hand.write(&topic, &[record(0, "before")]);
        let stop = Arc::new(AtomicBool::new(false));
        let load = {
            let (topic, stop) = (topic.clone(), stop.clone());
            tokio::task::spawn_blocking(move || {
                let producer = hand.producer(Some(&topic));
                while !stop.load(Ordering::Relaxed) {
                    hand.transaction(&producer, &topic, &[record(0, "meanwhile")], true);
                }
            })
        };
        let read = move || {
            let scan = Scan::of(&brokers).unwrap();
            let mut reads = 0;
            for _ in 0..20 {
                let extents = scan.extents(&topic).unwrap();
                let feed = |message: &rdkafka::message::BorrowedMessage<'_>| {
                    assert!(message.offset() < extents[&0].end, "read beyond the end");
                    reads += 1;
                    Ok(())
                };
                scan.read(&topic, &extents, |_| (), feed).unwrap();
            }
            reads
        };
        let reads = tokio::task::spawn_blocking(read).await;
        stop.store(true, Ordering::Relaxed);
        load.await.unwrap();
        let reads = reads.unwrap();
        assert!(reads > 20, "{reads}");
    });
}

#[test]
fn what_was_written_before_is_waited_for_until_it_is_decided() {
    within(90, async {
        let (brokers, topic) = (shared().await.kafka.brokers(), unique("scan"));
        let hand = Hand::at(brokers);
        hand.create(&topic, 1, &[]).await;
        let producer = hand.producer(Some(&topic));
        hand.open_transaction(&producer, &topic);
        let mut reading = tokio::spawn({
            let topic = topic.clone();
            async move { records(brokers, &topic).await }
        });
        let early = tokio::time::timeout(Duration::from_secs(1), &mut reading).await;
        assert!(early.is_err(), "{early:?}");
        producer
            .commit_transaction(Duration::from_secs(10))
            .unwrap();
        assert_eq!(reading.await.unwrap().len(), 1);
    });
}
