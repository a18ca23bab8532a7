//! Judges a run: what was committed in PostgreSQL against what a `read_committed` consumer sees in Kafka.
//!
//! It knows neither a database nor a broker. The caller writes down the transactions that committed in a [`Ledger`],
//! opens a [`Check`], feeds it the relay's position records and every record of a scan from the beginning, and gets a
//! [`Report`] on five invariants:
//!
//! | | invariant | counted in the report |
//! |---|---|---|
//! | I1 | every committed event is seen | `lost`, events |
//! | I2 | no event is seen twice | `doubled`, extra sightings |
//! | I3 | a key's versions and a transaction's indexes only ever grow inside a partition | `out_of_order`, events |
//! | I4 | a transaction is seen whole, inside one Kafka transaction, and the relay's position says so | `torn`, transactions |
//! | I5 | nothing is seen that was not committed | `phantoms`, records |
//!
//! **One fault, one kind.** Of a doubled event only one sighting is judged further, so a repetition is not out of order
//! as well. A phantom belongs to no transaction, so it tears none. A transaction of which nothing is seen is lost, not
//! torn; one that is seen in part is both. An event seen under another topic or key than the committed ones is a
//! phantom there and lost where it should be, because that is what the consumers of the two topics see.
//!
//! **Any order of feeding.** Offsets decide the order, not the order of the calls: position records and records may
//! come interleaved and partition by partition. Nothing is judged before [`Check::finish`].
//!
//! **Memory**: ten million events in five million transactions, all seen, took 1.3 GB (measured). It grows with the
//! events and transactions, the distinct keys and the position records, not with what the records carry.
//!
//! Not judged: the order of a key whose records lie in several partitions (Kafka promises none; partitions may be
//! added while the relay runs) is judged in each partition for itself.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use uuid::Uuid;

/// How many offenders of each kind a [`Report`] describes; it counts all of them.
pub const OFFENDERS_MAX: usize = 10;

/// An event of a transaction that committed, as its writer wrote it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedEvent {
    /// The event's id, unique in the ledger.
    pub id: Uuid,
    /// The topic where it must appear.
    pub topic: String,
    /// The record key it must carry.
    pub key: String,
    /// Order number among the events of this topic and key. The writer takes it while it holds the key's row lock, so
    /// a larger one committed later.
    pub version: u64,
}

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

/// The transactions that committed in PostgreSQL.
#[derive(Debug, Default)]
pub struct Ledger {
    transactions: Vec<Transaction>,
    /// The events of all transactions, one transaction after the other.
    events: Vec<Event>,
    by_id: HashMap<Uuid, u32>,
    keys: Names<Arc<str>>,
}

#[derive(Debug)]
struct Transaction {
    name: Box<str>,
    first_event: u32,
}

/// Numbers instead of names and no gaps: there may be ten million of these.
#[derive(Debug)]
struct Event {
    id: Uuid,
    version: u64,
    transaction: u32,
    key: u32,
}

impl Ledger {
    /// A ledger without transactions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a committed transaction with its events in the order in which they were inserted. `name` is whatever the
    /// writer calls it; the report repeats it.
    ///
    /// # Panics
    ///
    /// When an event's id is in the ledger already: nothing could be judged against such a ledger. Also beyond 2³²−1
    /// events.
    pub fn commit(
        &mut self,
        name: impl Into<String>,
        events: impl IntoIterator<Item = CommittedEvent>,
    ) -> &mut Self {
        let transaction = number(self.transactions.len());
        let first_event = number(self.events.len());
        self.transactions.push(Transaction {
            name: name.into().into_boxed_str(),
            first_event,
        });
        for event in events {
            let known = self.by_id.insert(event.id, number(self.events.len()));
            assert!(known.is_none(), "event {} is in the ledger twice", event.id);
            self.events.push(Event {
                id: event.id,
                version: event.version,
                transaction,
                key: self.keys.number_of(&event.topic, event.key.as_str()),
            });
        }
        self
    }

    /// Number of transactions committed so far.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions.len() as u64
    }

    /// Number of events in them.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events.len() as u64
    }

    /// Opens a check against this ledger, one for each scan.
    #[must_use]
    pub fn check(&self) -> Check<'_> {
        Check {
            ledger: self,
            first: vec![Sighting::NONE; self.events.len()],
            extra: Vec::new(),
            strangers: Vec::new(),
            partitions: Names::default(),
            claims: Vec::new(),
            positions: Vec::new(),
            tx_id_hash: RandomState::new(),
            records: 0,
            phantoms: Violations::default(),
        }
    }

    /// The events of a transaction, as indexes.
    fn events_of(&self, transaction: usize) -> Range<usize> {
        let first = self.transactions[transaction].first_event as usize;
        let end = self
            .transactions
            .get(transaction + 1)
            .map_or(self.events.len(), |next| next.first_event as usize);
        first..end
    }
}

/// Gives a topic's keys (or partitions) small numbers, so that an event holds four bytes instead of two strings.
#[derive(Debug)]
struct Names<T> {
    numbers: HashMap<Arc<str>, HashMap<T, u32>>,
    names: Vec<(Arc<str>, T)>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            names: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Names<T> {
    fn number_of<Q>(&mut self, topic: &str, name: &Q) -> u32
    where
        T: std::borrow::Borrow<Q>,
        Q: ?Sized + Eq + std::hash::Hash + ToOwned,
        for<'a> T: From<&'a Q>,
    {
        // Two look-ups instead of one `entry`: the names are nearly always known, and `entry` would own them each time.
        if let Some(number) = self.numbers.get(topic).and_then(|names| names.get(name)) {
            return *number;
        }
        let topic = self
            .numbers
            .get_key_value(topic)
            .map_or_else(|| Arc::from(topic), |(topic, _)| Arc::clone(topic));
        let (name, number) = (T::from(name), number(self.names.len()));
        self.names.push((Arc::clone(&topic), name.clone()));
        self.numbers.entry(topic).or_default().insert(name, number);
        number
    }
}

/// Where an event was seen, and what its headers said there.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    offset: i64,
    /// Only compared inside one transaction, so 64 bits of hash stand for the whole text.
    tx_id: u64,
    partition: u32,
    tx_index: u32,
    tx_count: u32,
}

impl Sighting {
    /// Not seen. A sentinel, because an `Option` would cost eight bytes for each event.
    const NONE: Self = Self {
        offset: i64::MIN,
        tx_id: 0,
        partition: u32::MAX,
        tx_index: 0,
        tx_count: 0,
    };

    fn is_none(&self) -> bool {
        self.partition == u32::MAX
    }
}

/// A [`PublishedRange`] with what was found in it.
#[derive(Debug)]
struct Claim {
    partition: u32,
    position: u32,
    first_offset: i64,
    last_offset: i64,
    count: u64,
    /// Records found that are the judged sighting of a committed event: certainly counted by the relay.
    found: u64,
    /// Repetitions and phantoms found: the relay may or may not have counted them, they are reported anyway.
    found_extra: u64,
}

#[derive(Debug)]
struct Position {
    offset: i64,
    kafka_transaction: u64,
}

/// A check under way; see the [module](self) for what it judges.
#[derive(Debug)]
pub struct Check<'l> {
    ledger: &'l Ledger,
    /// For each event of the ledger the sighting that is judged.
    first: Vec<Sighting>,
    /// Further sightings, with the event's index.
    extra: Vec<(u32, Sighting)>,
    /// Partition and offset of each phantom.
    strangers: Vec<(u32, i64)>,
    partitions: Names<PartitionNumber>,
    claims: Vec<Claim>,
    positions: Vec<Position>,
    tx_id_hash: RandomState,
    records: u64,
    phantoms: Violations,
}

/// A Kafka partition's number, as opposed to the number that [`Names`] gives to a topic's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PartitionNumber(i32);

impl From<&Self> for PartitionNumber {
    fn from(number: &Self) -> Self {
        *number
    }
}

impl Check<'_> {
    /// Takes a position record. All of them must be fed, before, after or between the records.
    pub fn position(&mut self, record: &PositionRecord) -> &mut Self {
        let position = number(self.positions.len());
        self.positions.push(Position {
            offset: record.offset,
            kafka_transaction: record.kafka_transaction,
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

    /// Notes a record that was not committed, or (`committed`) not under this topic and key.
    fn phantom(
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
        self.judge_positions(&mut report, lost);
        report
    }

    /// Index of the claim that covers an offset. Needs the claims sorted.
    fn claim_at(&self, partition: u32, offset: i64) -> Option<usize> {
        let after = self
            .claims
            .partition_point(|claim| (claim.partition, claim.first_offset) <= (partition, offset));
        let claim = self.claims.get(after.checked_sub(1)?)?;
        (claim.partition == partition && offset <= claim.last_offset).then_some(after - 1)
    }

    /// The Kafka transaction of a sighting, as an index into `positions`.
    fn position_of(&self, sighting: &Sighting) -> Option<u32> {
        self.claim_at(sighting.partition, sighting.offset)
            .map(|claim| self.claims[claim].position)
    }

    /// I2. Of several sightings the one that the earliest position record claims is judged further: it is the one that
    /// was published with the rest of its transaction, whichever the scan met first.
    fn settle_extra_sightings(&mut self, report: &mut Report) {
        let rank = |check: &Self, seen: &Sighting| {
            (
                check.position_of(seen).unwrap_or(u32::MAX),
                seen.partition,
                seen.offset,
            )
        };
        let mut extra = mem::take(&mut self.extra);
        for (event, sighting) in &mut extra {
            let event = *event as usize;
            if rank(self, sighting) < rank(self, &self.first[event]) {
                mem::swap(sighting, &mut self.first[event]);
            }
            report.doubled.add(|| {
                let first = self.place(&self.first[event]);
                self.offender(
                    event,
                    Some(sighting),
                    format!("seen again here, first at {first}"),
                )
            });
        }
        self.extra = extra;
    }

    /// Counts for each claim the records that lie in it.
    fn count_found(&mut self) {
        for seen in 0..self.first.len() {
            let sighting = self.first[seen];
            if let Some(claim) = self.claim_at(sighting.partition, sighting.offset) {
                self.claims[claim].found += 1;
            }
        }
        let extra = self
            .extra
            .iter()
            .map(|(_, sighting)| (sighting.partition, sighting.offset));
        let all: Vec<_> = extra.chain(self.strangers.iter().copied()).collect();
        for (partition, offset) in all {
            if let Some(claim) = self.claim_at(partition, offset) {
                self.claims[claim].found_extra += 1;
            }
        }
    }

    /// I1. Answers the number of lost events of each topic.
    fn judge_lost(&self, report: &mut Report) -> HashMap<Arc<str>, u64> {
        let mut lost = HashMap::new();
        for event in (0..self.first.len()).filter(|event| self.first[*event].is_none()) {
            let (topic, key) = &self.ledger.keys.names[self.ledger.events[event].key as usize];
            *lost.entry(Arc::clone(topic)).or_insert(0) += 1;
            report.lost.add(|| {
                self.offender(
                    event,
                    None,
                    format!("committed with key {key:?}, never seen"),
                )
            });
        }
        lost
    }

    /// I4, the database's transactions.
    fn judge_transactions(&self, report: &mut Report) {
        for transaction in 0..self.ledger.transactions.len() {
            let events = self.ledger.events_of(transaction);
            // One of which nothing is seen is lost and no more.
            let Some(first) = events.clone().find(|event| !self.first[*event].is_none()) else {
                continue;
            };
            if let Some((event, what)) = self.tear(events, first) {
                report.torn.add(|| {
                    let seen = Some(&self.first[event]).filter(|seen| !seen.is_none());
                    self.offender(event, seen, what)
                });
            }
        }
    }

    /// The first event that shows that a transaction is not whole. `first` is its first event that was seen.
    fn tear(&self, events: Range<usize>, first: usize) -> Option<(usize, String)> {
        let count = events.len();
        let reference = &self.first[first];
        let home = self.position_of(reference);
        events.clone().find_map(|event| {
            let seen = &self.first[event];
            if seen.is_none() {
                let visible = events
                    .clone()
                    .filter(|event| !self.first[*event].is_none())
                    .count();
                return Some((
                    event,
                    format!(
                        "{visible} of the transaction's {count} events are seen, this one is not"
                    ),
                ));
            }
            let position = self.position_of(seen);
            let what = if position.is_none() {
                "no position record claims this record".to_owned()
            } else if position != home {
                let (here, there) = (
                    self.kafka_transaction(position),
                    self.kafka_transaction(home),
                );
                format!(
                    "published in {here}, but {} of the same transaction in {there}",
                    self.ledger.events[first].id
                )
            } else if seen.tx_count as usize != count {
                format!(
                    "says tx-count {}, but the transaction has {count} events",
                    seen.tx_count
                )
            } else if seen.tx_id != reference.tx_id {
                format!(
                    "its tx-id differs from that of {} of the same transaction",
                    self.ledger.events[first].id
                )
            } else {
                return None;
            };
            Some((event, what))
        })
    }

    /// I3. An event counts once, however many rules it breaks.
    fn judge_order(&self, report: &mut Report) {
        let mut stale = vec![false; self.first.len()];
        self.judge_order_of_keys(report, &mut stale);
        self.judge_order_in_transactions(report, &mut stale);
    }

    /// An event is stale when its partition had already shown a later one of its key.
    fn judge_order_of_keys(&self, report: &mut Report, stale: &mut [bool]) {
        let lane = |event: usize| (self.ledger.events[event].key, self.first[event].partition);
        let mut seen: Vec<u32> = (0..number(self.first.len()))
            .filter(|event| !self.first[*event as usize].is_none())
            .collect();
        seen.sort_unstable_by_key(|event| {
            (lane(*event as usize), self.first[*event as usize].offset)
        });
        let mut newest: Option<usize> = None;
        for event in seen.into_iter().map(|event| event as usize) {
            let Some(before) = newest.filter(|before| lane(*before) == lane(event)) else {
                newest = Some(event);
                continue;
            };
            let (version, shown) = (
                self.ledger.events[event].version,
                self.ledger.events[before].version,
            );
            if version > shown {
                newest = Some(event);
                continue;
            }
            stale[event] = true;
            report.out_of_order.add(|| {
                let key = &self.ledger.keys.names[self.ledger.events[event].key as usize].1;
                let place = self.place(&self.first[before]);
                let what = format!(
                    "version {version} of key {key:?} comes after version {shown} at {place}"
                );
                self.offender(event, Some(&self.first[event]), what)
            });
        }
    }

    /// Inside a partition a transaction's records keep the order of insertion, and `tx-index` says so.
    fn judge_order_in_transactions(&self, report: &mut Report, stale: &mut [bool]) {
        for transaction in 0..self.ledger.transactions.len() {
            let events = self.ledger.events_of(transaction);
            let mut seen: Vec<usize> = events
                .filter(|event| !self.first[*event].is_none())
                .collect();
            seen.sort_unstable_by_key(|event| {
                (self.first[*event].partition, self.first[*event].offset)
            });
            let mut furthest: Option<usize> = None;
            for event in seen {
                let here = &self.first[event];
                let before =
                    furthest.filter(|before| self.first[*before].partition == here.partition);
                match before {
                    Some(before)
                        if event < before || here.tx_index <= self.first[before].tx_index =>
                    {
                        if mem::replace(&mut stale[event], true) {
                            continue;
                        }
                        report.out_of_order.add(|| {
                            let (index, place) =
                                (self.first[before].tx_index, self.place(&self.first[before]));
                            let what = format!(
                                "tx-index {} comes after tx-index {index} at {place}",
                                here.tx_index
                            );
                            self.offender(event, Some(here), what)
                        });
                    }
                    _ => furthest = Some(event),
                }
            }
        }
    }

    /// I4, the relay's own account: each position record counts what is visible in its ranges, and no two claim the same
    /// offsets. A Kafka transaction counts once. `lost` are the events missing in each topic: so many records may be
    /// missing from its ranges without a further report, because the loss has been reported.
    fn judge_positions(&self, report: &mut Report, mut lost: HashMap<Arc<str>, u64>) {
        let mut wrong = vec![false; self.positions.len()];
        for (index, claim) in self.claims.iter().enumerate() {
            let topic = &self.partitions.names[claim.partition as usize].0;
            let most = claim.found + claim.found_extra;
            let missing = claim.count.saturating_sub(most);
            let excused = match lost.get_mut(topic) {
                Some(left) if missing <= *left => {
                    *left -= missing;
                    true
                }
                _ => missing == 0,
            };
            let previous = index.checked_sub(1).map(|previous| &self.claims[previous]);
            let overlaps = previous.filter(|previous| {
                previous.partition == claim.partition && claim.first_offset <= previous.last_offset
            });
            let what = if let Some(previous) = overlaps {
                format!(
                    "claims offsets that {} claims too",
                    self.kafka_transaction(Some(previous.position))
                )
            } else if !excused || claim.count < claim.found {
                format!(
                    "counts {} records up to offset {}, visible are {most}",
                    claim.count, claim.last_offset
                )
            } else {
                continue;
            };
            if !mem::replace(&mut wrong[claim.position as usize], true) {
                report.torn.add(|| self.claim_offender(claim, &what));
            }
        }
    }

    fn claim_offender(&self, claim: &Claim, what: &str) -> Offender {
        let (topic, partition) = &self.partitions.names[claim.partition as usize];
        Offender {
            event: None,
            transaction: None,
            topic: Some(topic.to_string()),
            partition: Some(partition.0),
            offset: Some(claim.first_offset),
            what: format!("{} {what}", self.kafka_transaction(Some(claim.position))),
        }
    }

    /// Describes an event of the ledger, at the place where it was seen if it was.
    fn offender(&self, event: usize, seen: Option<&Sighting>, what: String) -> Offender {
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

    fn place(&self, sighting: &Sighting) -> String {
        let (topic, partition) = &self.partitions.names[sighting.partition as usize];
        format!("{topic}/{}@{}", partition.0, sighting.offset)
    }

    fn kafka_transaction(&self, position: Option<u32>) -> String {
        position
            .map(|position| &self.positions[position as usize])
            .map_or_else(
                || "no Kafka transaction".to_owned(),
                |Position {
                     offset,
                     kafka_transaction,
                 }| {
                    format!(
                        "Kafka transaction {kafka_transaction} (position record at offset {offset})"
                    )
                },
            )
    }
}

/// What a [`Check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Transactions in the ledger.
    pub transactions: u64,
    /// Events in the ledger.
    pub events: u64,
    /// Records that were fed, violating ones included.
    pub records: u64,
    /// I1: committed events that were never seen.
    pub lost: Violations,
    /// I2: sightings of an event beyond its first.
    pub doubled: Violations,
    /// I4: transactions that are not whole, and Kafka transactions whose position record does not fit what is visible.
    pub torn: Violations,
    /// I3: events that stand behind a later one of their key, or of their transaction in the same partition.
    pub out_of_order: Violations,
    /// I5: records of events that were never committed, or committed for another topic or key.
    pub phantoms: Violations,
}

impl Report {
    /// Whether every invariant holds. True for an empty ledger and an empty scan too: look at `events` as well.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.invariants()
            .iter()
            .all(|(_, violations)| violations.count == 0)
    }

    fn invariants(&self) -> [(&'static str, &Violations); 5] {
        [
            ("I1 lost", &self.lost),
            ("I2 doubled", &self.doubled),
            ("I3 out of order", &self.out_of_order),
            ("I4 torn", &self.torn),
            ("I5 phantoms", &self.phantoms),
        ]
    }
}

impl fmt::Display for Report {
    /// A table of counts, then the offenders if there are any. Ends without a line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = [
            ("transactions", self.transactions),
            ("events", self.events),
            ("records seen", self.records),
        ];
        let found = self
            .invariants()
            .map(|(name, violations)| (name, violations.count));
        for (name, count) in inputs.into_iter().chain(found) {
            writeln!(f, "{name:<15}  {count:>12}")?;
        }
        write!(
            f,
            "{:<15}  {:>12}",
            "verdict",
            if self.is_clean() {
                "clean"
            } else {
                "NOT CLEAN"
            }
        )?;
        for (name, violations) in self
            .invariants()
            .into_iter()
            .filter(|(_, violations)| violations.count > 0)
        {
            write!(f, "\n\n{name}: {}", violations.count)?;
            for offender in &violations.first {
                write!(f, "\n  {offender}")?;
            }
            let untold = violations.count - violations.first.len() as u64;
            if untold > 0 {
                write!(f, "\n  and {untold} more")?;
            }
        }
        Ok(())
    }
}

/// The violations of one invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// All of them.
    pub count: u64,
    /// The first [`OFFENDERS_MAX`], described.
    pub first: Vec<Offender>,
}

impl Violations {
    /// Counts one; describes it only while there is room, because a bad run may have millions.
    fn add(&mut self, describe: impl FnOnce() -> Offender) {
        self.count += 1;
        if self.first.len() < OFFENDERS_MAX {
            self.first.push(describe());
        }
    }
}

/// One violation, with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// The event's id; absent when a position record is at fault.
    #[serde(serialize_with = "serialize_id")]
    pub event: Option<Uuid>,
    /// The ledger's name of its transaction; absent for a phantom that is not in the ledger.
    pub transaction: Option<String>,
    /// The topic where it was seen, or should have been.
    pub topic: Option<String>,
    /// The partition where it was seen.
    pub partition: Option<i32>,
    /// The offset where it was seen; for a position record the first offset of the range at fault.
    pub offset: Option<i64>,
    /// What is wrong with it.
    pub what: String,
}

/// Written out here so that `uuid` needs no further feature for one field.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn serialize_id<S: Serializer>(id: &Option<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Offender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(event) = &self.event {
            write!(f, "event {event} ")?;
        }
        if let Some(transaction) = &self.transaction {
            write!(f, "of transaction {transaction} ")?;
        }
        if let Some(topic) = &self.topic {
            write!(f, "{topic}")?;
        }
        if let (Some(partition), Some(offset)) = (self.partition, self.offset) {
            write!(f, "/{partition}@{offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

fn number(index: usize) -> u32 {
    // The largest value stays free for `Sighting::NONE`.
    u32::try_from(index)
        .ok()
        .filter(|number| *number < u32::MAX)
        .expect("a ledger holds fewer than 2^32 - 1 entries")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

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
                kafka_transaction: 100 + u64::try_from(number).unwrap(),
                partitions: ranges
                    .into_iter()
                    .map(|((topic, partition), (first_offset, last_offset, count))| {
                        PublishedRange {
                            topic: TOPICS[topic].to_owned(),
                            partition,
                            first_offset,
                            last_offset,
                            count,
                        }
                    })
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
            self.report()
                .invariants()
                .map(|(_, violations)| violations.count)
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
                kafka_transaction: position.kafka_transaction + 1000,
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
                .contains("Kafka transaction 1101")
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
                Self::ShortenRange => {
                    history.positions[at % positions].partitions[0].last_offset -= 1
                }
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
}
