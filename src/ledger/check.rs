//! What was seen, gathered until it is judged.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::mem;
use std::sync::Arc;

use uuid::Uuid;

use super::committed::{Event, Ledger, Names, number};
use super::report::{Offender, Report, Violations};

/// A record that the `read_committed` scan returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenRecord<'a> {
    /// The topic it was read from.
    pub topic: &'a str,
    /// The partition of that topic.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// Header `id`.
    pub id: Uuid,
    /// The record key.
    pub key: &'a str,
    /// Header `tx-id`. It need not resemble the ledger's name of the transaction; it must be the same in all of its records.
    pub tx_id: &'a str,
    /// Header `tx-index`: place in the transaction. Only its growth is judged, so it may count from 0 or from 1.
    pub tx_index: u32,
    /// Header `tx-count`: number of events of the transaction.
    pub tx_count: u32,
}

/// A position record of the relay: what one Kafka transaction says that it published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionRecord {
    /// Offset of this record in the position topic.
    pub offset: i64,
    /// The relay's number of the Kafka transaction.
    pub kafka_transaction: u64,
    /// The producer that published it.
    pub instance: String,
    /// Where the capture stood then.
    pub position: crate::position::Position,
    /// What it published, one entry for each partition written to; empty for a genesis record.
    pub partitions: Vec<PublishedRange>,
}

/// The part of a [`PositionRecord`] that claims records of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRange {
    /// The topic written to.
    pub topic: String,
    /// The partition written to.
    pub partition: i32,
    /// Offset of the first record.
    pub first_offset: i64,
    /// Offset of the last record, included.
    pub last_offset: i64,
    /// Number of records.
    pub count: u64,
}

/// Where an event was seen, and what its headers said there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) offset: i64,
    /// Only compared inside one transaction, so 64 bits of hash stand for the whole text.
    pub(super) tx_id: u64,
    pub(super) partition: u32,
    pub(super) tx_index: u32,
    pub(super) tx_count: u32,
}

impl Sighting {
    /// Not seen. A sentinel, because an `Option` would cost eight bytes for each event.
    pub(super) const NONE: Self = Self {
        offset: i64::MIN,
        tx_id: 0,
        partition: u32::MAX,
        tx_index: 0,
        tx_count: 0,
    };

    pub(super) fn is_none(&self) -> bool {
        self.partition == u32::MAX
    }
}

/// A [`PublishedRange`] with what was found in it.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) partition: u32,
    pub(super) position: u32,
    pub(super) first_offset: i64,
    pub(super) last_offset: i64,
    pub(super) count: u64,
    /// Records found that are the judged sighting of a committed event: certainly counted by the relay.
    pub(super) found: u64,
    /// Repetitions and phantoms found: the relay may or may not have counted them, they are reported anyway.
    pub(super) found_extra: u64,
}

#[derive(Debug)]
pub(super) struct Position {
    pub(super) offset: i64,
    pub(super) kafka_transaction: u64,
    pub(super) instance: u32,
    pub(super) position: crate::position::Position,
}

/// A check under way; the module says what it judges.
#[derive(Debug)]
pub struct Check<'l> {
    pub(super) ledger: &'l Ledger,
    /// For each event of the ledger the sighting that is judged.
    pub(super) first: Vec<Sighting>,
    /// Further sightings, with the event's index.
    pub(super) extra: Vec<(u32, Sighting)>,
    /// Partition and offset of each phantom.
    pub(super) strangers: Vec<(u32, i64)>,
    pub(super) partitions: Names<PartitionNumber>,
    pub(super) claims: Vec<Claim>,
    pub(super) positions: Vec<Position>,
    pub(super) instances: Vec<String>,
    pub(super) limits: BTreeMap<Arc<str>, Limits>,
    pub(super) tx_id_hash: RandomState,
    pub(super) records: u64,
    pub(super) phantoms: Violations,
}

/// A Kafka partition's number, as opposed to the number that [`Names`] gives to a topic's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PartitionNumber(pub(super) i32);

impl From<&Self> for PartitionNumber {
    fn from(number: &Self) -> Self {
        *number
    }
}

/// What a topic does not show any more.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) compacted: bool,
    /// Log start offsets above 0.
    pub(super) log_starts: BTreeMap<i32, i64>,
}

impl<'l> Check<'l> {
    pub(super) fn of(ledger: &'l Ledger) -> Self {
        Self {
            ledger,
            first: vec![Sighting::NONE; ledger.events.len()],
            extra: Vec::new(),
            strangers: Vec::new(),
            partitions: Names::default(),
            claims: Vec::new(),
            positions: Vec::new(),
            instances: Vec::new(),
            limits: BTreeMap::new(),
            tx_id_hash: RandomState::new(),
            records: 0,
            phantoms: Violations::default(),
        }
    }
}

impl Check<'_> {
    /// Says that records of this topic may have been compacted away: loss in it is not judged.
    pub fn compacted(&mut self, topic: &str) -> &mut Self {
        self.limits_of(topic).compacted = true;
        self
    }

    /// Says that all below `offset` is deleted from the partition. A missing event of the topic is lost only if its
    /// version is larger than that of the first event that is seen in each such partition: so versions must tell the
    /// order of all events, not only of those of a key.
    pub fn log_start(&mut self, topic: &str, partition: i32, offset: i64) -> &mut Self {
        if offset > 0 {
            self.limits_of(topic).log_starts.insert(partition, offset);
        }
        self
    }

    fn limits_of(&mut self, topic: &str) -> &mut Limits {
        self.limits.entry(Arc::from(topic)).or_default()
    }

    /// Few producers publish in turn, so the last one is nearly always the one.
    fn instance(&mut self, name: &str) -> u32 {
        let known = self.instances.iter().rposition(|known| known == name);
        number(known.unwrap_or_else(|| {
            self.instances.push(name.to_owned());
            self.instances.len() - 1
        }))
    }

    /// Takes a position record. All of them must be fed, before, after or between the records.
    pub fn position(&mut self, record: &PositionRecord) -> &mut Self {
        let position = number(self.positions.len());
        let instance = self.instance(&record.instance);
        self.positions.push(Position {
            offset: record.offset,
            kafka_transaction: record.kafka_transaction,
            instance,
            position: record.position.clone(),
        });
        for range in &record.partitions {
            let partition = self
                .partitions
                .number_of(&range.topic, &PartitionNumber(range.partition));
            self.claims.push(Claim {
                partition,
                position,
                first_offset: range.first_offset,
                last_offset: range.last_offset,
                count: range.count,
                found: 0,
                found_extra: 0,
            });
        }
        self
    }

    /// Takes a record of the scan.
    pub fn record(&mut self, record: SeenRecord<'_>) -> &mut Self {
        self.records += 1;
        let partition = self
            .partitions
            .number_of(record.topic, &PartitionNumber(record.partition));
        let Some(&event) = self.ledger.by_id.get(&record.id) else {
            return self.phantom(&record, partition, None);
        };
        let (topic, key) = &self.ledger.keys.names[self.ledger.events[event as usize].key as usize];
        if **topic != *record.topic || **key != *record.key {
            return self.phantom(&record, partition, Some(event));
        }
        let sighting = Sighting {
            offset: record.offset,
            tx_id: self.tx_id_hash.hash_one(record.tx_id),
            partition,
            tx_index: record.tx_index,
            tx_count: record.tx_count,
        };
        let first = &mut self.first[event as usize];
        if first.is_none() {
            *first = sighting;
        } else {
            self.extra.push((event, sighting));
        }
        self
    }

    /// Takes a record of which the ledger says nothing, and which may be right all the same: it is only counted among those
    /// that the position records claim.
    pub fn stranger(&mut self, topic: &str, partition: i32, offset: i64) -> &mut Self {
        self.records += 1;
        let partition = self
            .partitions
            .number_of(topic, &PartitionNumber(partition));
        self.strangers.push((partition, offset));
        self
    }

    /// Takes the verdict on a [`Check::stranger`]: a phantom after all.
    pub fn convict(&mut self, offender: Offender) -> &mut Self {
        self.phantoms.add(|| offender);
        self
    }

    /// Notes a record that was not committed, or (`committed`) not under this topic and key.
    pub(super) fn phantom(
        &mut self,
        record: &SeenRecord<'_>,
        partition: u32,
        committed: Option<u32>,
    ) -> &mut Self {
        self.strangers.push((partition, record.offset));
        let ledger = self.ledger;
        self.phantoms.add(|| Offender {
            event: Some(record.id),
            transaction: committed.map(|event| {
                ledger.transactions[ledger.events[event as usize].transaction as usize]
                    .name
                    .to_string()
            }),
            topic: Some(record.topic.to_owned()),
            partition: Some(record.partition),
            offset: Some(record.offset),
            what: committed.map_or_else(
                || {
                    format!(
                        "seen with key {:?} and tx-id {}, but never committed",
                        record.key, record.tx_id
                    )
                },
                |event| {
                    let (topic, key) =
                        &ledger.keys.names[ledger.events[event as usize].key as usize];
                    format!(
                        "seen with key {:?}, but committed for topic {topic} with key {key:?}",
                        record.key
                    )
                },
            ),
        });
        self
    }

    /// Judges everything that was fed.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.claims
            .sort_by_key(|claim| (claim.partition, claim.first_offset, claim.position));
        let mut report = Report {
            transactions: self.ledger.transactions(),
            events: self.ledger.events(),
            records: self.records,
            phantoms: mem::take(&mut self.phantoms),
            ..Report::default()
        };
        self.settle_extra_sightings(&mut report);
        self.count_found();
        let lost = self.judge_lost(&mut report);
        self.judge_transactions(&mut report);
        self.judge_order(&mut report);
        self.judge_claims(&mut report, lost);
        self.judge_positions(&mut report);
        report
    }

    /// Index of the claim that covers an offset. Needs the claims sorted.
    pub(super) fn claim_at(&self, partition: u32, offset: i64) -> Option<usize> {
        let after = self
            .claims
            .partition_point(|claim| (claim.partition, claim.first_offset) <= (partition, offset));
        let claim = self.claims.get(after.checked_sub(1)?)?;
        (claim.partition == partition && offset <= claim.last_offset).then_some(after - 1)
    }

    /// The Kafka transaction of a sighting, as an index into `positions`.
    pub(super) fn position_of(&self, sighting: &Sighting) -> Option<u32> {
        self.claim_at(sighting.partition, sighting.offset)
            .map(|claim| self.claims[claim].position)
    }

    /// Describes an event of the ledger, at the place where it was seen if it was.
    pub(super) fn offender(&self, event: usize, seen: Option<&Sighting>, what: String) -> Offender {
        let Event {
            id,
            transaction,
            key,
            ..
        } = &self.ledger.events[event];
        let partition = seen.map(|seen| self.partitions.names[seen.partition as usize].1.0);
        Offender {
            event: Some(*id),
            transaction: Some(
                self.ledger.transactions[*transaction as usize]
                    .name
                    .to_string(),
            ),
            topic: Some(self.ledger.keys.names[*key as usize].0.to_string()),
            partition,
            offset: seen.map(|seen| seen.offset),
            what,
        }
    }

    pub(super) fn place(&self, sighting: &Sighting) -> String {
        let (topic, partition) = &self.partitions.names[sighting.partition as usize];
        format!("{topic}/{}@{}", partition.0, sighting.offset)
    }

    pub(super) fn kafka_transaction(&self, position: Option<u32>) -> String {
        position
            .map(|position| &self.positions[position as usize])
            .map_or_else(
                || "no Kafka transaction".to_owned(),
                |Position {
                     offset,
                     kafka_transaction,
                     ..
                 }| {
                    format!(
                        "Kafka transaction {kafka_transaction} (position record at offset {offset})"
                    )
                },
            )
    }
}
