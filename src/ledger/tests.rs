use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::position::{Origin, Position};

#[derive(Clone, Debug)]
struct OwnedRecord {
    topic: String,
    partition: i32,
    offset: i64,
    id: Uuid,
    key: String,
    tx_id: String,
    tx_index: u32,
    tx_count: u32,
}

impl OwnedRecord {
    fn borrowed(&self) -> SeenRecord<'_> {
        SeenRecord {
            topic: &self.topic,
            partition: self.partition,
            offset: self.offset,
            id: self.id,
            key: &self.key,
            tx_id: &self.tx_id,
            tx_index: self.tx_index,
            tx_count: self.tx_count,
        }
    }
}

/// A run as it would be recorded; a test breaks one thing in it.
#[derive(Clone, Debug, Default)]
struct History {
    committed: Vec<(String, Vec<CommittedEvent>)>,
    positions: Vec<PositionRecord>,
    records: Vec<OwnedRecord>,
}

fn position(xmax: u64) -> Position {
    let origin = Origin::of_test("table");
    Position::at(origin, format!("{xmax}:{xmax}:").parse().unwrap())
}

const TOPICS: [&str; 2] = ["orders", "payments"];
const PARTITIONS: i32 = 3;

/// A clean run. Each inner list is a transaction, each number a key; `group` transactions share a Kafka transaction.
fn clean(transactions: &[Vec<u8>], group: usize) -> History {
    let mut history = History::default();
    let mut versions: BTreeMap<u8, u64> = BTreeMap::new();
    let mut ends: BTreeMap<(usize, i32), i64> = BTreeMap::new();
    for (number, group) in transactions.chunks(group).enumerate() {
        let mut ranges: BTreeMap<(usize, i32), (i64, i64, u64)> = BTreeMap::new();
        for keys in group {
            let name = format!("tx{}", history.committed.len());
            let mut events = Vec::new();
            for (index, key) in keys.iter().enumerate() {
                let version = versions
                    .entry(*key)
                    .and_modify(|version| *version += 1)
                    .or_insert(1);
                let lane = (usize::from(key % 2), i32::from(*key) % PARTITIONS);
                let end = ends.entry(lane).or_insert(0);
                let range = ranges.entry(lane).or_insert((*end, *end, 0));
                *range = (range.0, *end, range.2 + 1);
                let (id, topic, key) = (
                    Uuid::new_v4(),
                    TOPICS[lane.0].to_owned(),
                    format!("key{key}"),
                );
                history.records.push(OwnedRecord {
                    topic: topic.clone(),
                    partition: lane.1,
                    offset: *end,
                    id,
                    key: key.clone(),
                    tx_id: format!("7-1-{name}"),
                    tx_index: u32::try_from(index).unwrap(),
                    tx_count: u32::try_from(keys.len()).unwrap(),
                });
                events.push(CommittedEvent {
                    id,
                    topic,
                    key,
                    version: *version,
                });
                *end += 1;
            }
            history.committed.push((name, events));
        }
        for lane in ranges.keys() {
            // The transaction marker takes an offset, too.
            *ends.get_mut(lane).unwrap() += 1;
        }
        history.positions.push(PositionRecord {
            offset: 2 * i64::try_from(number).unwrap(),
            kafka_transaction: 100 + 10 * u64::try_from(number).unwrap(),
            instance: "a".to_owned(),
            position: position(10 * (1 + u64::try_from(number).unwrap())),
            partitions: ranges
                .into_iter()
                .map(
                    |((topic, partition), (first_offset, last_offset, count))| PublishedRange {
                        topic: TOPICS[topic].to_owned(),
                        partition,
                        first_offset,
                        last_offset,
                        count,
                    },
                )
                .collect(),
        });
    }
    history
}

impl History {
    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::new();
        for (name, events) in &self.committed {
            ledger.commit(name.as_str(), events.clone());
        }
        ledger
    }

    fn report(&self) -> Report {
        let ledger = self.ledger();
        let mut check = ledger.check();
        self.positions
            .iter()
            .for_each(|position| _ = check.position(position));
        self.records
            .iter()
            .for_each(|record| _ = check.record(record.borrowed()));
        check.finish()
    }

    /// Of each kind: lost, doubled, out of order, torn, phantoms.
    fn counts(&self) -> [u64; 5] {
        let report = self.report();
        assert_eq!((report.went_back.count, report.interleaved.count), (0, 0));
        let counts = report.invariants().map(|(_, violations)| violations.count);
        [counts[0], counts[1], counts[2], counts[3], counts[4]]
    }

    /// Exchanges what stands at two places; the places stay.
    fn exchange(&mut self, a: usize, b: usize) {
        self.records.swap(a, b);
        let (place_a, place_b) = (self.records[a].offset, self.records[b].offset);
        (self.records[a].offset, self.records[b].offset) = (place_b, place_a);
    }

    /// Offset behind the last record of a partition, in no position record's range.
    fn end(&self, like: &OwnedRecord) -> i64 {
        let same = |record: &&OwnedRecord| {
            record.topic == like.topic && record.partition == like.partition
        };
        self.records
            .iter()
            .filter(same)
            .map(|record| record.offset)
            .max()
            .unwrap_or(0)
            + 100
    }

    /// Cuts the position record that claims the record `at` in two before this record.
    fn cut_position_before(&mut self, at: usize) -> bool {
        let record = self.records[at].clone();
        let claims = |range: &PublishedRange| {
            range.topic == record.topic
                && range.partition == record.partition
                && (range.first_offset..=range.last_offset).contains(&record.offset)
        };
        let Some(position) = self
            .positions
            .iter_mut()
            .find(|position| position.partitions.iter().any(claims))
        else {
            return false;
        };
        let range = position
            .partitions
            .iter_mut()
            .find(|range| claims(range))
            .unwrap();
        if range.first_offset == record.offset {
            return false;
        }
        let moved = u64::try_from(range.last_offset - record.offset + 1).unwrap();
        let tail = PublishedRange {
            first_offset: record.offset,
            count: moved,
            ..range.clone()
        };
        range.last_offset = record.offset - 1;
        range.count -= moved;
        let next = PositionRecord {
            offset: position.offset + 1,
            kafka_transaction: position.kafka_transaction + 1,
            instance: position.instance.clone(),
            position: position.position.clone(),
            partitions: vec![tail],
        };
        self.positions.push(next);
        true
    }
}

/// Keys 0 and 2 are in `orders` (partitions 0 and 2), keys 1 and 3 in `payments` (partitions 1 and 0).
fn sample() -> History {
    clean(
        &[
            vec![0, 1, 0],
            vec![2],
            vec![3, 3],
            vec![0, 2],
            vec![1, 1, 1],
            vec![0],
        ],
        2,
    )
}

#[test]
fn a_clean_history_is_clean() {
    let report = sample().report();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.transactions, report.events, report.records),
        (6, 12, 12)
    );
}

#[test]
fn the_order_of_feeding_does_not_matter() {
    let history = sample();
    let ledger = history.ledger();
    let mut check = ledger.check();
    history
        .records
        .iter()
        .rev()
        .for_each(|record| _ = check.record(record.borrowed()));
    history
        .positions
        .iter()
        .rev()
        .for_each(|position| _ = check.position(position));
    assert!(check.finish().is_clean());
}

#[test]
fn a_dropped_record_is_lost_and_its_transaction_torn() {
    let mut history = sample();
    let dropped = history.records.remove(1);
    assert_eq!(history.counts(), [1, 0, 0, 1, 0]);
    let lost = &history.report().lost.first[0];
    assert_eq!(
        (lost.event, lost.transaction.as_deref()),
        (Some(dropped.id), Some("tx0"))
    );
}

#[test]
fn a_wholly_lost_transaction_is_not_torn() {
    let mut history = sample();
    history.records.retain(|record| record.tx_id != "7-1-tx4");
    assert_eq!(history.counts(), [3, 0, 0, 0, 0]);
}

#[test]
fn a_lost_event_excuses_only_its_own_topic() {
    let mut history = sample();
    history.records.retain(|record| record.tx_id != "7-1-tx1");
    history.positions[1]
        .partitions
        .iter_mut()
        .find(|range| range.topic == "payments")
        .unwrap()
        .count += 1;
    assert_eq!(history.counts(), [1, 0, 0, 1, 0]);
}

#[test]
fn a_doubled_record_is_only_doubled() {
    let mut history = sample();
    let mut again = history.records[0].clone();
    again.offset = history.end(&again);
    history.records.push(again.clone());
    assert_eq!(history.counts(), [0, 1, 0, 0, 0]);
    assert_eq!(history.report().doubled.first[0].offset, Some(again.offset));
}

#[test]
fn a_batch_published_twice_is_only_doubled_whichever_copy_comes_first() {
    let mut history = sample();
    let mut again = history.positions[0].clone();
    again.position = history.positions[2].position.clone();
    (again.offset, again.kafka_transaction) = (99, 199);
    again.partitions.iter_mut().for_each(|range| {
        (range.first_offset, range.last_offset) =
            (range.first_offset + 500, range.last_offset + 500);
    });
    history.positions.push(again);
    let first_batch = history
        .records
        .iter()
        .filter(|record| ["7-1-tx0", "7-1-tx1"].contains(&&*record.tx_id));
    let copies: Vec<_> = first_batch
        .map(|record| OwnedRecord {
            offset: record.offset + 500,
            ..record.clone()
        })
        .collect();
    let (before, behind) = copies.split_at(2);
    history.records.splice(0..0, before.iter().cloned());
    history.records.extend(behind.iter().cloned());
    assert_eq!(history.counts(), [0, 4, 0, 0, 0]);
}

#[test]
fn two_swapped_records_of_a_key_are_out_of_order() {
    let mut history = sample();
    history.exchange(0, 2);
    assert_eq!(history.counts(), [0, 0, 1, 0, 0]);
    let late = &history.report().out_of_order.first[0];
    assert_eq!(
        (late.topic.as_deref(), late.partition, late.offset),
        (Some("orders"), Some(0), Some(1))
    );
}

#[test]
fn two_swapped_records_of_different_keys_are_out_of_order_in_their_transaction() {
    let mut history = clean(&[vec![0, 6]], 1);
    assert!(history.report().is_clean());
    history.exchange(0, 1);
    assert_eq!(history.counts(), [0, 0, 1, 0, 0]);
}

#[test]
fn a_transaction_seen_in_part_is_torn_once() {
    let mut history = sample();
    let torn = |record: &OwnedRecord| record.tx_id == "7-1-tx4" && record.tx_index > 0;
    history.records.retain(|record| !torn(record));
    assert_eq!(history.counts(), [2, 0, 0, 1, 0]);
    assert_eq!(
        history.report().torn.first[0].transaction.as_deref(),
        Some("tx4")
    );
}

#[test]
fn a_phantom_is_only_a_phantom() {
    let mut history = sample();
    let mut rolled_back = history.records[0].clone();
    (rolled_back.id, rolled_back.tx_id) = (Uuid::new_v4(), "7-1-666".to_owned());
    rolled_back.offset = history.end(&rolled_back);
    history.records.push(rolled_back);
    assert_eq!(history.counts(), [0, 0, 0, 0, 1]);
    assert_eq!(history.report().phantoms.first[0].transaction, None);
}

#[test]
fn a_phantom_that_the_relay_counted_is_only_a_phantom() {
    let mut history = clean(&[vec![0, 0, 0]], 1);
    history.records[1].id = Uuid::new_v4();
    let (_, events) = &mut history.committed[0];
    events.remove(1);
    history
        .records
        .iter_mut()
        .for_each(|record| record.tx_count = 2);
    assert_eq!(history.counts(), [0, 0, 0, 0, 1]);
}

#[test]
fn an_event_on_a_wrong_topic_is_a_phantom_there_and_lost_here() {
    let mut history = clean(&[vec![0], vec![1]], 1);
    history.records[1].topic = "refunds".to_owned();
    assert_eq!(history.counts(), [1, 0, 0, 0, 1]);
}

#[test]
fn a_transaction_over_two_kafka_transactions_is_torn() {
    let mut history = sample();
    // The second of tx2's two events, the last that its Kafka transaction wrote to this partition.
    let at = history
        .records
        .iter()
        .position(|record| record.tx_id == "7-1-tx2" && record.tx_index == 1)
        .unwrap();
    assert!(history.cut_position_before(at));
    assert_eq!(history.counts(), [0, 0, 0, 1, 0]);
    assert!(
        history.report().torn.first[0]
            .what
            .contains("Kafka transaction 111")
    );
}

#[test]
fn a_record_that_no_position_claims_tears_its_transaction() {
    let mut history = sample();
    history.positions[2]
        .partitions
        .retain(|range| range.topic == "orders");
    assert_eq!(history.counts(), [0, 0, 0, 1, 0]);
    assert_eq!(
        history.report().torn.first[0].transaction.as_deref(),
        Some("tx4")
    );
}

#[test]
fn a_misreported_count_is_torn_once_for_each_position_record() {
    for wrong in [0, 2, 9] {
        let mut history = clean(&[vec![0], vec![1], vec![0, 1]], 2);
        history.positions[0]
            .partitions
            .iter_mut()
            .for_each(|range| range.count = wrong);
        assert_eq!(history.counts(), [0, 0, 0, 1, 0], "count {wrong}");
        assert!(
            history.report().torn.first[0]
                .what
                .contains("Kafka transaction 100")
        );
    }
}

#[test]
fn a_wrong_tx_count_or_tx_id_tears_its_transaction() {
    let mut history = sample();
    history.records[2].tx_count = 4;
    assert_eq!(history.counts(), [0, 0, 0, 1, 0]);
    let mut history = sample();
    history.records[2].tx_id.push('x');
    assert_eq!(history.counts(), [0, 0, 0, 1, 0]);
}

#[test]
fn the_report_counts_all_and_describes_ten() {
    let mut history = clean(&vec![vec![0]; 25], 5);
    history.records.clear();
    let report = history.report();
    assert_eq!(
        (report.lost.count, report.lost.first.len()),
        (25, OFFENDERS_MAX)
    );
    let text = report.to_string();
    assert!(
        text.contains("NOT CLEAN") && text.ends_with("and 15 more"),
        "{text}"
    );
}

#[test]
#[should_panic(expected = "is in the ledger twice")]
fn an_id_cannot_be_committed_twice() {
    let mut history = clean(&[vec![0]], 1);
    history.committed.push(history.committed[0].clone());
    let _ = history.ledger();
}

#[test]
fn a_position_that_goes_back_is_found() {
    let mut history = sample();
    history.positions[2].position = position(15);
    let report = history.report();
    assert_eq!((report.went_back.count, report.is_clean()), (1, false));
    assert_eq!(report.went_back.first[0].offset, Some(4));
    let mut history = sample();
    history.positions[1].kafka_transaction = 100;
    let report = history.report();
    assert_eq!(report.went_back.count, 1);
    assert!(
        report.went_back.first[0]
            .what
            .contains("100 comes after 100")
    );
}

#[test]
fn two_writers_in_turns_are_found_and_successors_are_not() {
    let interleaved = |instances: [&str; 6]| {
        let mut history = clean(&vec![vec![0]; 6], 1);
        for (position, instance) in history.positions.iter_mut().zip(instances) {
            position.instance = instance.to_owned();
        }
        history.report().interleaved.count
    };
    assert_eq!(interleaved(["a", "a", "b", "b", "c", "c"]), 0);
    assert_eq!(interleaved(["a", "a", "b", "a", "b", "b"]), 3);
    assert_eq!(interleaved(["a", "b", "a", "a", "a", "a"]), 4);
}

/// The sample as an outbox table shows it that lost rows to retention.
fn retained(history: &History, gone: &[&str], undue: &[&str]) -> Ledger {
    let mut ledger = Ledger::of_retained_rows();
    // Versions tell the order of all events, as they must where topics have limits.
    for (order, (name, events)) in history.committed.iter().enumerate() {
        let events = events.iter().cloned().map(|event| CommittedEvent {
            version: order as u64,
            ..event
        });
        match name.as_str() {
            name if gone.contains(&name) => {}
            name if undue.contains(&name) => _ = ledger.commit_undue(name, events),
            name => _ = ledger.commit(name, events),
        }
    }
    ledger
}

/// Feeds the history to a check of retained rows; `set` may say more about the topics.
fn judged(history: &History, ledger: &Ledger, set: impl Fn(&mut Check<'_>)) -> Report {
    let mut check = ledger.check();
    set(&mut check);
    history
        .positions
        .iter()
        .for_each(|position| _ = check.position(position));
    for record in &history.records {
        match ledger.holds(&record.id) {
            true => _ = check.record(record.borrowed()),
            false => _ = check.stranger(&record.topic, record.partition, record.offset),
        }
    }
    check.finish()
}

#[test]
fn deleted_rows_and_compacted_position_records_are_no_fault() {
    let mut history = sample();
    history.positions.remove(0);
    let report = judged(&history, &retained(&history, &["tx2"], &[]), |_| ());
    assert!(report.is_clean(), "{report}");
    // A part of a transaction deleted from the table: its records say a larger count.
    history.committed[3].1.pop();
    let report = judged(&history, &retained(&history, &[], &[]), |_| ());
    assert!(report.is_clean(), "{report}");
}

#[test]
fn the_order_of_a_transaction_that_lost_rows_is_not_judged() {
    let mut history = clean(&[vec![0], vec![0, 1]], 1);
    history.exchange(0, 1);
    let check = |history: &History| judged(history, &retained(history, &[], &[]), |_| ());
    assert_eq!(check(&history).out_of_order.count, 1);
    history.committed[1].1.pop();
    assert_eq!(check(&history).out_of_order.count, 0);
}

#[test]
fn an_undue_transaction_may_be_seen_or_not_or_in_part() {
    let mut history = sample();
    history.positions.truncate(2);
    let ledger = retained(&history, &[], &["tx4", "tx5"]);
    assert!(judged(&history, &ledger, |_| ()).is_clean());
    history
        .records
        .retain(|record| record.tx_id != "7-1-tx4" || record.tx_index == 0);
    let report = judged(&history, &ledger, |_| ());
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.unjudged.not_yet_published, 2);
}

#[test]
fn what_lies_below_the_log_start_is_not_judged_and_what_lies_above_is() {
    let mut history = clean(&vec![vec![0]; 6], 2);
    let ledger = retained(&history, &[], &[]);
    let start = history.records[2].offset;
    history.records.drain(..2);
    let limited = |history: &History| {
        judged(history, &ledger, |check| {
            _ = check.log_start("orders", 0, start)
        })
    };
    let report = limited(&history);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.unjudged.perhaps_below_log_start, 2);
    history.records.remove(2);
    assert_eq!(limited(&history).lost.count, 1);
    history.records.clear();
    let report = limited(&history);
    assert_eq!(
        (report.lost.count, report.unjudged.perhaps_below_log_start),
        (0, 6)
    );
}

#[test]
fn loss_is_not_judged_in_a_compacted_topic() {
    let mut history = sample();
    history
        .records
        .retain(|record| record.topic != "orders" || record.tx_index != 0);
    let ledger = retained(&history, &[], &[]);
    let report = judged(&history, &ledger, |check| _ = check.compacted("orders"));
    assert!(report.is_clean(), "{report}");
    assert!(report.unjudged.perhaps_compacted > 0);
    assert!(!judged(&history, &ledger, |_| ()).is_clean());
}

#[test]
fn a_stranger_can_be_convicted() {
    let history = sample();
    let ledger = retained(&history, &["tx0"], &[]);
    let mut check = ledger.check();
    check.stranger("orders", 0, 0).convict(Offender {
        event: None,
        transaction: None,
        topic: Some("orders".into()),
        partition: Some(0),
        offset: Some(0),
        what: "rolled back".into(),
    });
    assert_eq!(check.finish().phantoms.count, 1);
}

/// What ten million events cost in memory, for the figure in the module's text.
#[test]
#[ignore = "takes a minute and gigabytes"]
fn memory_of_ten_million_events() {
    let id = |n: u64| {
        Uuid::from_u128(u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    };
    let key = |n: u64| format!("key{}", n % 10_000);
    let mut ledger = Ledger::of_retained_rows();
    for transaction in 0..5_000_000_u64 {
        let events = (0..2).map(|index| CommittedEvent {
            id: id(2 * transaction + index),
            topic: "orders".into(),
            key: key(2 * transaction + index),
            version: transaction,
        });
        ledger.commit(transaction.to_string(), events);
    }
    let mut check = ledger.check();
    for n in 0..10_000_000_u64 {
        check.record(SeenRecord {
            topic: "orders",
            partition: i32::try_from(n % 10_000 % 3).unwrap(),
            offset: i64::try_from(n).unwrap(),
            id: id(n),
            key: &key(n),
            tx_id: &(n / 2).to_string(),
            tx_index: u32::try_from(n % 2).unwrap(),
            tx_count: 2,
        });
    }
    let report = check.finish();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    println!("{peak}\n{report}");
    assert!(report.is_clean());
}

/// Everything that can be broken in one place.
#[derive(Clone, Copy, Debug)]
enum Mutation {
    Drop,
    Double,
    Swap,
    Phantom,
    RolledBack,
    WrongKey,
    CutPosition,
    ForgetPosition,
    ShortenRange,
    Miscount,
    MisstateTxCount,
    RenameTx,
}

fn mutations() -> impl Strategy<Value = Mutation> {
    use Mutation::*;
    prop::sample::select(vec![
        Drop,
        Double,
        Swap,
        Phantom,
        RolledBack,
        WrongKey,
        CutPosition,
        ForgetPosition,
        ShortenRange,
        Miscount,
        MisstateTxCount,
        RenameTx,
    ])
}

impl Mutation {
    /// Breaks the history at the record or position record that `at` picks; false if this breaks nothing there.
    fn apply(self, history: &mut History, at: usize) -> bool {
        let (positions, at) = (history.positions.len(), at % history.records.len());
        match self {
            Self::Drop => drop(history.records.remove(at)),
            Self::Double | Self::Phantom => {
                let mut record = history.records[at].clone();
                record.offset = history.end(&record);
                if matches!(self, Self::Phantom) {
                    record.id = Uuid::new_v4();
                }
                history.records.push(record);
            }
            Self::Swap => {
                let one = history.records[at].clone();
                let other = history.records.iter().enumerate().find(|(index, other)| {
                    *index != at && (&other.topic, &other.key) == (&one.topic, &one.key)
                });
                let Some((other, _)) = other else {
                    return false;
                };
                history.exchange(at, other);
            }
            Self::RolledBack => {
                let id = history.records[at].id;
                history
                    .committed
                    .iter_mut()
                    .for_each(|(_, events)| events.retain(|event| event.id != id));
            }
            Self::WrongKey => history.records[at].key.push('x'),
            Self::CutPosition => {
                // A cut between two transactions would be no fault.
                let record = &history.records[at];
                let before = history.records.iter().any(|other| {
                    (&other.topic, other.partition, &other.tx_id)
                        == (&record.topic, record.partition, &record.tx_id)
                        && other.offset < record.offset
                });
                return before && history.cut_position_before(at);
            }
            Self::ForgetPosition => drop(history.positions.remove(at % positions)),
            Self::ShortenRange => history.positions[at % positions].partitions[0].last_offset -= 1,
            Self::Miscount => history.positions[at % positions].partitions[0].count += 1,
            Self::MisstateTxCount => history.records[at].tx_count += 1,
            Self::RenameTx => {
                history.records[at].tx_id.push('x');
                return history.records[at].tx_count > 1;
            }
        }
        true
    }
}

fn transactions() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(0..9_u8, 1..6), 1..25)
}

proptest! {
    #[test]
    fn any_clean_history_is_clean(transactions in transactions(), group in 1..8_usize) {
        let report = clean(&transactions, group).report();
        prop_assert!(report.is_clean(), "{report}");
    }

    #[test]
    fn no_mutation_is_clean(
        transactions in transactions(), group in 1..8_usize, mutation in mutations(), at in any::<usize>(),
    ) {
        let mut history = clean(&transactions, group);
        prop_assume!(mutation.apply(&mut history, at));
        prop_assert!(!history.report().is_clean(), "{mutation:?}");
    }
}
