//! What is free to go again, and the way back into a batch.

use std::sync::Arc;

use tokio::time::Instant;

use super::store::Request;
use super::unsettled::Entry;
use super::{Attempt, LOOK_EVERY, Park, ParkSettings, Store};
use crate::event::{Batch, Event, Slice, SliceSource};
use crate::fault::Fault;
use crate::position::Position;

impl<S: Store> Park<S> {
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
        let transactions_max = self.transactions_max();
        let free = loop {
            let free = self.unsettled.free(transactions_max, limits);
            if free.is_empty() {
                return Ok(None);
            }
            // What stays holds what was behind it, so all is reckoned anew.
            if !self.any_is_torn(&free).await? {
                break free;
            }
        };
        let mut batch = self.load(&free, &at.place()).await?;
        self.settling = free.iter().map(|entry| entry.id).collect();
        self.attempt = Attempt {
            transactions: free.iter().filter(|it| is_published(it)).count() as u64,
            tx_id: batch.first_tx_id().await?,
            released: self.settling.clone(),
        };
        Ok(Some(batch))
    }

    /// Those of which rows were deleted stay parked.
    async fn any_is_torn(&mut self, free: &[Entry]) -> Result<bool, Fault> {
        let published = free.iter().filter(|it| is_published(it));
        let ids: Vec<i64> = published.map(|entry| entry.id).collect();
        let torn = self.store.torn(&ids).await?;
        for id in &torn {
            let why =
                "rows of it were deleted from outbox.parked_events; put them back, or discard it";
            tracing::warn!(id, "it can't be published: {why}");
            self.store.failed_again(*id, why).await?;
            self.unsettled.failed(*id);
        }
        Ok(!torn.is_empty())
    }

    /// The events of what is settled, but for what is discarded.
    async fn load(&mut self, free: &[Entry], at: &Position) -> Result<Batch, Fault> {
        let published: Vec<&Entry> = free.iter().filter(|it| is_published(it)).collect();
        if let [one] = published[..]
            && (one.events > self.settings.batch_events_max
                || one.bytes > self.settings.batch_bytes_max)
        {
            let letters = self.letters.settled(free);
            let source = Pages::new(self.store.clone(), one.clone(), &self.settings);
            let source = source.and_then(letters);
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
        slices.extend(self.letters.settled(free));
        Ok(Batch::of(slices, at.clone(), false))
    }
}

fn is_published(entry: &Entry) -> bool {
    entry.request != Some(Request::Discard)
}

/// A transaction of the store, page by page.
struct Pages<S> {
    store: S,
    entry: Entry,
    index: u64,
    page_events: u64,
    /// What comes behind it.
    letters: Vec<Slice>,
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
            letters: Vec::new(),
        }
    }

    fn and_then(self, letters: Vec<Slice>) -> Self {
        Self { letters, ..self }
    }

    async fn page(&mut self) -> Result<Option<Slice>, Fault> {
        if self.index >= self.entry.events {
            return Ok(self.letters.pop());
        }
        let events = (self
            .store
            .events(self.entry.id, self.index, self.page_events))
        .await?;
        // One after the other, from here on: a row that was deleted in the middle would tear the transaction.
        let has_gap = (self.index..)
            .zip(&events)
            .any(|(expected, (index, _))| *index != expected);
        if events.is_empty() || has_gap {
            return Err(Fault::Refused(format!(
                "outbox.parked_events has not all {} events of {}: rows were deleted; put them back, or discard it",
                self.entry.events, self.entry.tx_id
            )));
        }
        let slice = Slice {
            tx_id: Arc::clone(&self.entry.tx_id),
            tx_count: self.entry.events,
            first_index: self.index,
            events: events.into_iter().map(|(_, event)| event).collect(),
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
