//! Parking: a transaction that can't be published for a reason of its own steps aside, and all others flow.
//!
//! **Key, hold.** A key is a topic and a record key; events without a record key have none. A *parked* transaction failed
//! by itself. A *held* one did not, but shares a key with one that is parked or held before it, so it waits, whole, in
//! order. Both are *unsettled*: their events stand in `outbox.parked`, so that the position passes and retention runs.
//!
//! **Who failed?** What is wrong with a topic's name, a topic that is not there, or a size is found before anything is sent,
//! and names its transaction. What the broker refuses does not: in a group commit one failure aborts everybody. So the
//! next tries halve the number of those who may be to blame, until one fails *alone* in its Kafka transaction.
//!
//! **Protocol.** Two systems take part, and Kafka decides: a position record names the transactions that it passed over
//! without publishing them (`passed`), and those that it settles (`settled`).
//!
//! 1. *Park, hold*: a `pending` row with all events is committed in PostgreSQL. It says nothing yet.
//! 2. The position passes the transaction, and the record names it: from here on it counts as parked or held.
//! 3. The row is confirmed. From the next record on it is not named any more.
//! 4. *Retry, discard* are requests in the row; the relay that is active acts on them. One Kafka transaction holds the
//!    events of a retried transaction and a record that names it as settled; for a discarded one the record alone.
//!    Transactions that nothing holds any more are released alike, in order.
//! 5. The row is confirmed as published or discarded.
//!
//! An opening relay applies the last record's lists before anything else, so a crash between two steps repeats the later
//! one. A zombie may leave `pending` rows: no record names them, nobody acts on them. It can't write records, because it
//! was fenced, and confirming is what its last record says. If the database lost rows (a standby was promoted that did not
//! have them), number and ids that the record keeps of all unsettled transactions do not fit, and the relay refuses.
//!
//! `unsettled` and `topics` decide; `sift` keeps what must wait, `release` brings it back, `letters` tells the dead-letter topic; `store` is what is asked of a
//! database, `postgres` the one of production; `people` is what operators ask.

mod letters;
pub mod people;
pub mod postgres;
mod release;
mod sift;
pub mod store;
mod topics;
mod unsettled;

use std::collections::HashMap;
use std::sync::Arc;

use clap::ValueEnum;
use serde::Deserialize;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use self::letters::Letters;
pub use self::store::{NoStore, Store};
use self::topics::Topics;
pub use self::unsettled::Entry;
use self::unsettled::Unsettled;
use crate::crash_point::crash_point;
use crate::fault::Fault;
use crate::position::{self, Position};

/// How often is looked for requests, while there is anything that they could be about.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A record names all that it passes over or settles, and must fit into a message: that is 330 kB.
const TRANSACTIONS_MAX: u64 = 10_000;

/// What happens to a transaction that can't be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFault {
    /// It is parked, and all that share no key with it go on.
    Park,
    /// The relay stops by name.
    Halt,
}

/// Settings of parking.
#[derive(Clone, Debug)]
pub struct ParkSettings {
    /// What happens to a transaction that can't be published. Those that wait already hold others in either case.
    pub on_fault: OnFault,
    /// Events that may be unsettled; beyond it the relay stops by name.
    pub events_max: u64,
    /// The same for their bytes.
    pub bytes_max: u64,
    /// A topic that is told of each transaction that is parked, and of its end.
    pub dead_letter_topic: Option<String>,
    /// Events in a batch of released transactions.
    pub batch_events_max: u64,
    /// The same for their bytes.
    pub batch_bytes_max: u64,
}

/// What is published at the moment, as far as a failure must know.
#[derive(Default)]
struct Attempt {
    transactions: u64,
    /// Of the only one.
    tx_id: Option<Arc<str>>,
    /// They come from `outbox.parked`.
    released: Vec<i64>,
}

/// See the module's text.
pub struct Park<S> {
    store: S,
    settings: ParkSettings,
    unsettled: Unsettled,
    /// Rows that the next position passes over.
    passing: Unsettled,
    /// Rows that the next position settles.
    settling: Vec<i64>,
    /// Transactions that failed, and why: each is parked when it is read again. There may be several in a batch.
    doomed: HashMap<Arc<str>, String>,
    /// What is for one of these is doomed as well.
    topics: Topics,
    letters: Letters,
    /// A large transaction that was looked through, and whether it must wait.
    known: Option<(Arc<str>, bool)>,
    attempt: Attempt,
    /// The next so many transactions hold one that can't be published.
    suspects: u64,
    looked: Option<Instant>,
}

impl Park<NoStore> {
    /// Without a place for them: a transaction that can't be published stops the relay.
    #[must_use]
    pub fn none() -> Self {
        let settings = ParkSettings {
            on_fault: OnFault::Halt,
            events_max: 0,
            bytes_max: 0,
            dead_letter_topic: None,
            batch_events_max: 1,
            batch_bytes_max: 1,
        };
        Self::new(NoStore, settings)
    }
}

impl<S: Store> Park<S> {
    /// Nothing is known before [`Park::open`].
    pub fn new(store: S, settings: ParkSettings) -> Self {
        Self {
            store,
            letters: Letters::to(settings.dead_letter_topic.as_deref()),
            settings,
            unsettled: Unsettled::default(),
            passing: Unsettled::default(),
            settling: Vec::new(),
            doomed: HashMap::new(),
            topics: Topics::default(),
            known: None,
            attempt: Attempt::default(),
            suspects: 0,
            looked: None,
        }
    }

    /// How many transactions the next batch may hold.
    pub fn transactions_max(&self) -> u64 {
        half_of(self.suspects)
    }

    /// The same, once the batch under way is published.
    pub fn transactions_max_then(&self) -> u64 {
        half_of(self.suspects.saturating_sub(self.attempt.transactions))
    }

    /// Applies what the last record says, and reads what is unsettled.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the database does not hold what the record says.
    pub async fn open(&mut self, at: &Position) -> Result<(), Fault> {
        let said = &at.unsettled;
        self.passing = Unsettled::default();
        self.settling.clear();
        self.looked = None;
        self.letters.forget();
        self.unsettled = applied(&mut self.store, said).await?;
        crash_point("park.applied");
        let (transactions, ids) = self.unsettled.tally();
        if (transactions, ids) != (said.transactions, said.ids) {
            return Err(Fault::Refused(format!(
                "outbox.parked holds {transactions} unsettled transactions, the position in Kafka says {}, or others: rows were \
                 deleted, or a standby was promoted that did not have them; put them back, or run `outbox-relay adopt`",
                said.transactions
            )));
        }
        if transactions > 0 {
            warn!("{transactions} transactions are parked or held; see `outbox-relay parked list`");
        }
        Ok(())
    }

    /// What the record of the batch under way must say.
    pub fn said(&self) -> position::Unsettled {
        let ((waiting, waiting_ids), (passing, passing_ids)) =
            (self.unsettled.tally(), self.passing.tally());
        let (mut transactions, mut ids) = (waiting + passing, waiting_ids ^ passing_ids);
        let settled = self
            .settling
            .iter()
            .filter_map(|id| self.unsettled.get(*id));
        let settled: Vec<&Entry> = settled.collect();
        for entry in &settled {
            (transactions, ids) = (transactions - 1, ids ^ entry.hash());
        }
        position::Unsettled {
            transactions,
            ids,
            passed: self.passing.tx_ids().map(str::to_owned).collect(),
            settled: settled.iter().map(|it| it.tx_id.to_string()).collect(),
        }
    }

    /// The batch is visible: PostgreSQL is told.
    ///
    /// # Errors
    /// Those of the store; the record says it again to the next one who opens.
    pub async fn published(&mut self) -> Result<(), Fault> {
        self.suspects = self.suspects.saturating_sub(self.attempt.transactions);
        if self.passing.is_empty() && self.settling.is_empty() {
            return Ok(());
        }
        crash_point("park.passed");
        let said = self.said();
        self.store.confirm(&said.passed, &said.settled).await?;
        crash_point("park.confirmed");
        for entry in self.passing.drain() {
            self.doomed.remove(&entry.tx_id);
            self.unsettled.add(entry);
        }
        for id in self.settling.drain(..) {
            if let Some(entry) = self.unsettled.remove(id) {
                info!(tx_id = %entry.tx_id, id, "settled");
            }
        }
        Ok(())
    }

    /// A batch failed. Gives the fault back if it is nothing to be parked for.
    ///
    /// # Errors
    /// That fault, or one of the store.
    pub async fn failed(&mut self, fault: Fault) -> Result<(), Fault> {
        let Fault::Unpublishable { tx_id, topic, why } = &fault else {
            return Err(fault);
        };
        if self.letters.are_to_blame(topic.as_deref()) {
            return Err(Fault::Refused(format!(
                "the dead-letter topic: {why}; or leave dead-letter-topic out"
            )));
        }
        let attempt = std::mem::take(&mut self.attempt);
        // What was parked already stays so, whatever is to become of others.
        let halts = self.settings.on_fault == OnFault::Halt && attempt.released.is_empty();
        if halts || attempt.transactions == 0 {
            return Err(fault);
        }
        if let (Some(topic), OnFault::Park) = (topic, self.settings.on_fault) {
            self.topics.failed(topic, why);
        }
        let named = (tx_id != "?").then(|| Arc::from(tx_id.as_str()));
        let alone = (attempt.transactions == 1).then_some(attempt.tx_id);
        let Some(tx_id) = named.or(alone.flatten()) else {
            self.suspects = attempt.transactions;
            info!(
                "one of {} transactions can't be published ({why}); looking for it",
                attempt.transactions
            );
            return Ok(());
        };
        self.suspects = 0;
        let released = self.unsettled.id_of(&tx_id);
        match released.filter(|id| attempt.released.contains(id)) {
            Some(id) => {
                warn!(%tx_id, id, "it still can't be published: {why}");
                self.store.failed_again(id, why).await?;
            }
            None => {
                self.doomed.insert(tx_id, why.clone());
                self.known = None;
            }
        }
        Ok(())
    }
}

async fn applied(store: &mut impl Store, said: &position::Unsettled) -> Result<Unsettled, Fault> {
    store.confirm(&said.passed, &said.settled).await?;
    Ok(Unsettled::of(store.unsettled().await?))
}

fn half_of(suspects: u64) -> u64 {
    match suspects {
        0 => TRANSACTIONS_MAX,
        suspects => (suspects / 2).clamp(1, TRANSACTIONS_MAX),
    }
}

/// Applies what a record says, and answers what waits then.
///
/// # Errors
/// Those of the store.
pub async fn apply(
    store: &mut impl Store,
    said: &position::Unsettled,
) -> Result<position::Unsettled, Fault> {
    Ok(counted(&applied(store, said).await?))
}

fn counted(waiting: &Unsettled) -> position::Unsettled {
    let (transactions, ids) = waiting.tally();
    position::Unsettled {
        transactions,
        ids,
        ..position::Unsettled::default()
    }
}
