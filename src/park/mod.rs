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
//! `unsettled` decides; `store` is what is asked of a database; `postgres` the one of production.

pub mod people;
pub mod postgres;
pub mod store;
mod unsettled;

use std::collections::HashMap;
use std::sync::Arc;

use clap::ValueEnum;
use serde::Deserialize;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use self::store::{New, Request};
pub use self::store::{NoStore, Store};
pub use self::unsettled::Entry;
use self::unsettled::{Unsettled, keys_of};
use crate::crash_point::crash_point;
use crate::event::{Batch, Event, Slice, SliceSource};
use crate::fault::Fault;
use crate::position::{self, Position};

/// How often is looked for requests, while there is anything that they could be about.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
#[derive(Clone, Copy, Debug)]
pub struct ParkSettings {
    /// What happens to a transaction that can't be published. Those that wait already hold others in either case.
    pub on_fault: OnFault,
    /// Events that may be unsettled; beyond it the relay stops by name.
    pub events_max: u64,
    /// The same for their bytes.
    pub bytes_max: u64,
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
    passing: Vec<Entry>,
    /// Rows that the next position settles.
    settling: Vec<i64>,
    /// Transactions that failed, and why: each is parked when it is read again. There may be several in a batch.
    doomed: HashMap<Arc<str>, String>,
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
            settings,
            unsettled: Unsettled::default(),
            passing: Vec::new(),
            settling: Vec::new(),
            doomed: HashMap::new(),
            known: None,
            attempt: Attempt::default(),
            suspects: 0,
            looked: None,
        }
    }

    /// How many transactions the next batch may hold.
    pub fn transactions_max(&self) -> u64 {
        match self.suspects {
            0 => u64::MAX,
            suspects => (suspects / 2).max(1),
        }
    }

    /// Applies what the last record says, and reads what is unsettled.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the database does not hold what the record says.
    pub async fn open(&mut self, at: &Position) -> Result<(), Fault> {
        let said = &at.unsettled;
        self.passing.clear();
        self.settling.clear();
        self.looked = None;
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

    /// Takes out of a batch what must not be published, and keeps it; perhaps the position alone is left. `None`: it was only
    /// looked through, and must be read again.
    ///
    /// # Errors
    /// Those of the store; [`Fault::Refused`] at the limits.
    pub async fn sift(&mut self, batch: Batch) -> Result<Option<Batch>, Fault> {
        if self.unsettled.is_empty() && self.doomed.is_empty() {
            return self.let_through(batch).await;
        }
        match batch.is_whole() {
            true => self.sift_whole(batch).await,
            false => self.sift_large(batch).await,
        }
    }

    async fn let_through(&mut self, mut batch: Batch) -> Result<Option<Batch>, Fault> {
        self.attempt = Attempt {
            transactions: batch.transactions,
            // Only a failure needs it, but then the batch is gone.
            tx_id: match batch.transactions {
                1 => batch.first_tx_id().await?,
                _ => None,
            },
            released: Vec::new(),
        };
        Ok(Some(batch))
    }

    async fn sift_whole(&mut self, batch: Batch) -> Result<Option<Batch>, Fault> {
        let (after, catches_up) = (batch.after.clone(), batch.catches_up);
        let mut through = Vec::new();
        let mut kept = false;
        for slice in batch.into_slices() {
            match self.must_wait(&slice.tx_id, &keys_of(&slice.events)) {
                false => through.push(slice),
                true => {
                    kept = true;
                    self.keep(&slice).await?;
                }
            }
        }
        if kept {
            self.commit().await?;
        }
        self.let_through(Batch::of(through, after, catches_up))
            .await
    }

    /// It does not fit into memory: it is looked through, read again, and then kept or let through.
    async fn sift_large(&mut self, mut batch: Batch) -> Result<Option<Batch>, Fault> {
        let Some(tx_id) = batch.first_tx_id().await? else {
            return self.let_through(batch).await;
        };
        match self.known.take().filter(|(known, _)| *known == tx_id) {
            Some((_, false)) => self.let_through(batch).await,
            Some((_, true)) => {
                while let Some(slice) = batch.next().await? {
                    self.keep(&slice).await?;
                }
                self.commit().await?;
                let passed = Batch::of(Vec::new(), batch.after.clone(), batch.catches_up);
                self.let_through(passed).await
            }
            None => {
                let mut waits = false;
                while let Some(slice) = batch.next().await? {
                    waits |= self.must_wait(&tx_id, &keys_of(&slice.events));
                    if waits {
                        break;
                    }
                }
                self.known = Some((tx_id, waits));
                Ok(None)
            }
        }
    }

    /// Whether a transaction failed alone, shares a key with one that waits, or waits already.
    fn must_wait(&self, tx_id: &Arc<str>, keys: &[i64]) -> bool {
        let is_doomed = self.doomed.contains_key(tx_id);
        let is_passing = self.passing.iter().any(|entry| entry.tx_id == *tx_id);
        let shares = |entry: &Entry| entry.keys.iter().any(|key| keys.contains(key));
        is_doomed
            || is_passing
            || self.unsettled.holds(tx_id)
            || self.unsettled.blocks(keys)
            || self.passing.iter().any(shares)
    }

    /// Writes a transaction, or the next part of one, to the store.
    async fn keep(&mut self, slice: &Slice) -> Result<(), Fault> {
        if self.unsettled.holds(&slice.tx_id) {
            return Ok(());
        }
        let keys = keys_of(&slice.events);
        let bytes = slice.events.iter().map(|it| it.bytes() as u64).sum::<u64>();
        self.has_room(slice.events.len() as u64, bytes)?;
        if self
            .passing
            .last()
            .is_none_or(|last| last.tx_id != slice.tx_id)
        {
            let fault = self.doomed.get(&slice.tx_id).cloned();
            let tx_id = Arc::clone(&slice.tx_id);
            let new = New {
                tx_id: &tx_id,
                fault: fault.as_deref(),
                events: slice.tx_count,
            };
            let id = self.store.add(&new).await?;
            match &fault {
                Some(why) => warn!(%tx_id, id, "parked: {why}"),
                None => {
                    info!(%tx_id, id, "held: it shares a key with a transaction that is parked or held")
                }
            }
            self.passing.push(Entry::new(id, tx_id, fault.is_some()));
        }
        let Some(entry) = self.passing.last_mut() else {
            return Ok(());
        };
        entry.grow(slice.events.len() as u64, bytes, &keys);
        self.store.append(entry, slice).await
    }

    fn has_room(&self, events: u64, bytes: u64) -> Result<(), Fault> {
        let (mut all_events, mut all_bytes) = self.unsettled.size();
        for entry in &self.passing {
            (all_events, all_bytes) = (all_events + entry.events, all_bytes + entry.bytes);
        }
        let (events_max, bytes_max) = (self.settings.events_max, self.settings.bytes_max);
        if all_events + events <= events_max && all_bytes + bytes <= bytes_max {
            return Ok(());
        }
        Err(Fault::Refused(format!(
            "outbox.parked would hold more than parked-events-max ({events_max}) or parked-bytes-max ({bytes_max}); retry or \
             discard what is parked (`outbox-relay parked list`), or raise the limit"
        )))
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        self.store.commit().await?;
        crash_point("park.pending");
        Ok(())
    }

    /// What is free to go now: retried by request, or not held any more. Its position stays `at`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn release(&mut self, at: &Position) -> Result<Option<Batch>, Fault> {
        if self.unsettled.is_empty() {
            return Ok(None);
        }
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            for (id, request) in self.store.requests().await? {
                self.unsettled.request(id, request);
            }
        }
        let limits = (
            self.settings.batch_events_max,
            self.settings.batch_bytes_max,
        );
        let free = self.unsettled.free(self.transactions_max(), limits);
        if free.is_empty() {
            return Ok(None);
        }
        let mut batch = self.load(&free, at).await?;
        self.settling = free.iter().map(|entry| entry.id).collect();
        let published = free
            .iter()
            .filter(|entry| entry.request != Some(Request::Discard));
        self.attempt = Attempt {
            transactions: published.count() as u64,
            tx_id: batch.first_tx_id().await?,
            released: self.settling.clone(),
        };
        Ok(Some(batch))
    }

    /// The events of what is settled, but for what is discarded.
    async fn load(&mut self, free: &[Entry], at: &Position) -> Result<Batch, Fault> {
        let published: Vec<&Entry> = (free
            .iter()
            .filter(|entry| entry.request != Some(Request::Discard)))
        .collect();
        if let [one] = published[..]
            && (one.events > self.settings.batch_events_max
                || one.bytes > self.settings.batch_bytes_max)
        {
            let source = Pages::new(self.store.clone(), one.clone(), &self.settings);
            return Ok(Batch::streaming(
                Box::new(source),
                one.events,
                at.clone(),
                false,
            ));
        }
        let mut slices = Vec::new();
        for entry in published {
            let mut pages = Pages::new(self.store.clone(), entry.clone(), &self.settings);
            let mut whole: Vec<Event> = Vec::new();
            while let Some(slice) = pages.page().await? {
                whole.extend(slice.events);
            }
            slices.push(Slice {
                tx_id: Arc::clone(&entry.tx_id),
                tx_count: entry.events,
                first_index: 0,
                events: whole,
            });
        }
        Ok(Batch::of(slices, at.clone(), false))
    }

    /// What the record of the batch under way must say.
    pub fn said(&self) -> position::Unsettled {
        let (mut transactions, mut ids) = self.unsettled.tally();
        for entry in &self.passing {
            (transactions, ids) = (transactions + 1, ids ^ entry.hash());
        }
        let settled = self
            .settling
            .iter()
            .filter_map(|id| self.unsettled.get(*id));
        let settled: Vec<&Entry> = settled.collect();
        for entry in &settled {
            (transactions, ids) = (transactions - 1, ids ^ entry.hash());
        }
        let names = |entry: &Entry| entry.tx_id.to_string();
        position::Unsettled {
            transactions,
            ids,
            passed: self.passing.iter().map(names).collect(),
            settled: settled.into_iter().map(names).collect(),
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
        for entry in self.passing.drain(..) {
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
        let Fault::Unpublishable { tx_id, why } = &fault else {
            return Err(fault);
        };
        let attempt = std::mem::take(&mut self.attempt);
        if self.settings.on_fault == OnFault::Halt || attempt.transactions == 0 {
            return Err(fault);
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
            }
        }
        Ok(())
    }
}

async fn applied(store: &mut impl Store, said: &position::Unsettled) -> Result<Unsettled, Fault> {
    store.confirm(&said.passed, &said.settled).await?;
    Ok(Unsettled::of(store.unsettled().await?))
}

/// Applies what a record says, and answers what waits then.
///
/// # Errors
/// Those of the store.
pub async fn apply(
    store: &mut impl Store,
    said: &position::Unsettled,
) -> Result<position::Unsettled, Fault> {
    let (transactions, ids) = applied(store, said).await?.tally();
    Ok(position::Unsettled {
        transactions,
        ids,
        ..position::Unsettled::default()
    })
}

/// A transaction of the store, page by page.
struct Pages<S> {
    store: S,
    entry: Entry,
    index: u64,
    page_events: u64,
}

impl<S: Store> Pages<S> {
    fn new(store: S, entry: Entry, settings: &ParkSettings) -> Self {
        let average = (entry.bytes / entry.events.max(1)).max(1);
        let page_events =
            (settings.batch_bytes_max / average / 4).clamp(1, settings.batch_events_max);
        Self {
            store,
            entry,
            index: 0,
            page_events,
        }
    }

    async fn page(&mut self) -> Result<Option<Slice>, Fault> {
        if self.index >= self.entry.events {
            return Ok(None);
        }
        let events = (self
            .store
            .events(self.entry.id, self.index, self.page_events))
        .await?;
        if events.is_empty() {
            return Err(Fault::Refused(format!(
                "outbox.parked_events has only {} of the {} events of {}: rows were deleted; put them back, or discard it",
                self.index, self.entry.events, self.entry.tx_id
            )));
        }
        let slice = Slice {
            tx_id: Arc::clone(&self.entry.tx_id),
            tx_count: self.entry.events,
            first_index: self.index,
            events,
        };
        self.index += slice.events.len() as u64;
        Ok(Some(slice))
    }
}

impl<S: Store> SliceSource for Pages<S> {
    fn next(
        &mut self,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Option<Slice>, Fault>> + Send + '_>> {
        Box::pin(self.page())
    }
}
