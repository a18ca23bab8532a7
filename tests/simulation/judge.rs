//! What a run must have kept: I1 to I5 by the production checker, the rest here.

use std::collections::HashMap;

use outbox_relay::ledger::{
    CommittedEvent, Ledger, PositionRecord as Claimed, PublishedRange, Report, SeenRecord,
};
use outbox_relay::position::{Lsn, Xid};
use outbox_relay::sink::kafka::record::PositionRecord;
use uuid::Uuid;

use crate::kafka::{Content, Kafka};
use crate::postgres::Postgres;
use crate::postgres::shell::topic_of;
use crate::world::World;
use outbox_relay::capture::CaptureKind;

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Its number.
    pub invariant: &'static str,
    pub what: String,
}

impl Violation {
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { invariant, what }
    }
}

/// Judges the end state. `complete`: all must have been published; not so where the relay had to stop.
pub fn judge(world: &World, complete: bool) -> (Report, Vec<Violation>) {
    let ledger = ledger(world);
    let kafka = world.kafka();
    let report = check(world, &ledger, &kafka);
    let mut violations = Vec::new();
    for (invariant, found) in [
        ("I1", &report.lost),
        ("I2", &report.doubled),
        ("I3", &report.out_of_order),
        ("I4", &report.torn),
        ("I5", &report.phantoms),
    ] {
        let excused = invariant == "I1" && !complete;
        if let Some(first) = found.first.first().filter(|_| !excused) {
            violations.push(Violation::new(
                invariant,
                format!("{} of: {first}", found.count),
            ));
        }
    }
    violations.extend(positions_grow(&kafka));
    violations.extend(one_writer(&kafka));
    if world.scenario().capture == CaptureKind::Wal {
        let server = world.postgres();
        // What was parked comes late, and what shares a key with it.
        if world.scenario().poisoned == 0.0 {
            violations.extend(in_commit_order(&server, &kafka));
        }
        violations.extend(positions_say_what_is_published(&server, &kafka));
        let ahead = server.slot.ahead.clone();
        violations.extend(ahead.map(|what| Violation::new("I7", what)));
    }
    (report, violations)
}

/// What is committed and durable in the end.
fn ledger(world: &World) -> Ledger {
    let mut server = world.postgres();
    let end = server.written();
    server.flush(end);
    let mut rows: Vec<_> = server.present_rows().cloned().collect();
    rows.sort_by_key(|row| (row.xid, row.seq));
    let mut ledger = Ledger::new();
    for transaction in rows.chunk_by(|a, b| a.xid == b.xid) {
        let events = transaction.iter().map(|row| CommittedEvent {
            id: row.id,
            topic: topic_of(world, row.key),
            key: row.key.to_string(),
            version: row.version,
        });
        ledger.commit(transaction[0].xid.to_string(), events);
    }
    ledger
}

fn check(world: &World, ledger: &Ledger, kafka: &Kafka) -> Report {
    let mut check = ledger.check();
    for (offset, record) in kafka.positions() {
        check.position(&claimed(offset, record));
    }
    for visible in kafka.visible() {
        if let Content::Event {
            id,
            key,
            tx_id,
            tx_index,
            tx_count,
        } = &visible.written.content
        {
            let (topic, partition) = world.partition_name(visible.partition);
            check.record(SeenRecord {
                topic: &topic,
                partition,
                offset: visible.offset,
                id: *id,
                key,
                tx_id,
                tx_index: *tx_index,
                tx_count: *tx_count,
            });
        }
    }
    check.finish()
}

fn claimed(offset: i64, record: &PositionRecord) -> Claimed {
    let ranges = record.partitions.iter().flat_map(|(topic, partitions)| {
        partitions.iter().map(|(partition, range)| PublishedRange {
            topic: topic.clone(),
            partition: *partition,
            first_offset: range[0],
            last_offset: range[1],
            count: range[2].unsigned_abs(),
        })
    });
    Claimed {
        offset,
        kafka_transaction: record.kafka_transaction,
        instance: record.instance.clone(),
        position: record.position.clone(),
        partitions: ranges.collect(),
    }
}

/// I7.
fn positions_grow(kafka: &Kafka) -> Option<Violation> {
    let positions = kafka.positions();
    let back = positions.windows(2).find(|pair| {
        let (before, after) = (&pair[0].1.position, &pair[1].1.position);
        before.origin == after.origin && !before.precedes(after)
    })?;
    let what = format!("{:?} after {:?}", back[1].1.position, back[0].1.position);
    Some(Violation::new("I7", what))
}

/// I3 of the WAL capture: a partition shows transactions in the order of their commits, whether or not they share a key.
fn in_commit_order(server: &Postgres, kafka: &Kafka) -> Option<Violation> {
    let seq_of: HashMap<Uuid, i64> = server.present_rows().map(|row| (row.id, row.seq)).collect();
    let mut end_of = HashMap::new();
    for (_, rows, end) in server.commits() {
        end_of.extend(rows.iter().map(|seq| (*seq, end)));
    }
    let visible = kafka.visible();
    // What a promotion lost has no place.
    let placed = visible.iter().filter_map(|visible| {
        let Content::Event { id, .. } = &visible.written.content else {
            return None;
        };
        Some((visible.partition, *end_of.get(seq_of.get(id)?)?))
    });
    let placed: Vec<_> = placed.collect();
    let back = placed
        .windows(2)
        .find(|pair| pair[0].0 == pair[1].0 && pair[0].1 > pair[1].1)?;
    let what = format!("a commit at {} comes after one at {}", back[1].1, back[0].1);
    Some(Violation::new("I3", what))
}

/// I7 of the WAL capture: beside its place a position names exactly the transactions that had committed by then, so that
/// the table can be read on from there.
fn positions_say_what_is_published(server: &Postgres, kafka: &Kafka) -> Option<Violation> {
    let commits: Vec<_> = server.commits().collect();
    let positions = kafka.positions();
    let names = positions.iter().filter_map(|(_, record)| {
        let position = &record.position;
        let streamed = position.streamed.as_ref()?;
        let is_whole = streamed.beyond.is_some() && position.origin.timeline == server.timeline;
        is_whole.then_some((position, streamed.lsn))
    });
    for (position, lsn) in names {
        let wrong =
            |(xid, _, end): &&(Xid, &[i64], Lsn)| position.covers(*xid, i64::MAX) != (*end <= lsn);
        if let Some((xid, _, end)) = commits.iter().find(wrong) {
            let what = format!("{xid} committed at {end}, and the position is {position:?}");
            return Some(Violation::new("I7", what));
        }
    }
    None
}

/// I8: the terms of the lease in which records were written only grow.
fn one_writer(kafka: &Kafka) -> Option<Violation> {
    let visible = kafka.visible();
    let back = visible.windows(2).find(|pair| {
        pair[0].partition == pair[1].partition && pair[0].written.term > pair[1].written.term
    })?;
    let (before, after) = (back[0].written, back[1].written);
    Some(Violation::new(
        "I8",
        format!(
            "{} (term {}) wrote after {} (term {})",
            after.instance, after.term, before.instance, before.term
        ),
    ))
}
