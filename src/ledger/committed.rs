//! What was committed.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::check::Check;

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
    /// a larger one committed later. Equal ones: the order of the two is not known.
    pub version: u64,
}

/// The transactions that committed in PostgreSQL.
#[derive(Debug, Default)]
pub struct Ledger {
    pub(super) transactions: Vec<Transaction>,
    /// The events of all transactions, one transaction after the other.
    pub(super) events: Vec<Event>,
    pub(super) by_id: HashMap<Uuid, u32>,
    pub(super) keys: Names<Arc<str>>,
    pub(super) retained: bool,
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) name: Box<str>,
    pub(super) first_event: u32,
    pub(super) due: bool,
    /// Published later than its place in the order.
    pub(super) late: bool,
}

/// Numbers instead of names and no gaps: there may be ten million of these.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) id: Uuid,
    pub(super) version: u64,
    pub(super) transaction: u32,
    pub(super) key: u32,
}

impl Ledger {
    /// A ledger without transactions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A ledger of rows that an outbox table still holds. Others were deleted, perhaps some of the same transaction, and so
    /// may be the older position records. So a `tx-count` may be larger than the number of its events here, and a record
    /// that no position record claims is no offence where none of its transaction is claimed.
    #[must_use]
    pub fn of_retained_rows() -> Self {
        Self {
            retained: true,
            ..Self::default()
        }
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
        self.add(name.into(), events, true)
    }

    /// The same for one that may be seen or not, or in part, because it may not have been published yet.
    ///
    /// # Panics
    ///
    /// As [`Ledger::commit`].
    pub fn commit_undue(
        &mut self,
        name: impl Into<String>,
        events: impl IntoIterator<Item = CommittedEvent>,
    ) -> &mut Self {
        self.add(name.into(), events, false)
    }

    /// The transaction that was added last was set aside, and published later: its events without a key may come at any place.
    pub fn late(&mut self) -> &mut Self {
        if let Some(last) = self.transactions.last_mut() {
            last.late = true;
        }
        self
    }

    fn add(
        &mut self,
        name: String,
        events: impl IntoIterator<Item = CommittedEvent>,
        due: bool,
    ) -> &mut Self {
        let transaction = number(self.transactions.len());
        let first_event = number(self.events.len());
        self.transactions.push(Transaction {
            name: name.into_boxed_str(),
            first_event,
            due,
            late: false,
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

    /// The topics of its events.
    #[must_use]
    pub fn topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = self.keys.numbers.keys().map(|topic| &**topic).collect();
        topics.sort_unstable();
        topics
    }

    /// Whether an event of this id is in it.
    #[must_use]
    pub fn holds(&self, id: &Uuid) -> bool {
        self.by_id.contains_key(id)
    }

    /// Opens a check against this ledger, one for each scan.
    #[must_use]
    pub fn check(&self) -> Check<'_> {
        Check::of(self)
    }

    /// The events of a transaction, as indexes.
    pub(super) fn events_of(&self, transaction: usize) -> Range<usize> {
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
pub(super) struct Names<T> {
    pub(super) numbers: HashMap<Arc<str>, HashMap<T, u32>>,
    pub(super) names: Vec<(Arc<str>, T)>,
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
    pub(super) fn number_of<Q>(&mut self, topic: &str, name: &Q) -> u32
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

pub(super) fn number(index: usize) -> u32 {
    // The largest value stays free for `Sighting::NONE`.
    u32::try_from(index)
        .ok()
        .filter(|number| *number < u32::MAX)
        .expect("a ledger holds fewer than 2^32 - 1 entries")
}
