//! What of a batch must wait, and how it is kept.

use std::sync::Arc;

use tracing::{info, warn};

use super::store::New;
use super::unsettled::{Entry, keys_of};
use super::{Attempt, Park, Store};
use crate::crash_point::crash_point;
use crate::event::{Batch, Slice};
use crate::fault::Fault;

impl<S: Store> Park<S> {
    /// Takes out of a batch what must not be published, and keeps it; perhaps the position alone is left. `None`: it was only
    /// looked through, and must be read again.
    ///
    /// # Errors
    /// Those of the store; [`Fault::Refused`] at the limits.
    pub async fn sift(&mut self, batch: Batch) -> Result<Option<Batch>, Fault> {
        self.topics.forget();
        if self.unsettled.is_empty() && self.doomed.is_empty() && self.topics.is_empty() {
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
        let (slices, times) = batch.into_slices();
        let (mut through, mut through_times) = (Vec::new(), Vec::new());
        let mut kept = false;
        for (at, slice) in slices.into_iter().enumerate() {
            match self.must_wait(&slice, &keys_of(&slice.events)) {
                false => {
                    through_times.extend(times.as_ref().and_then(|times| times.get(at)));
                    through.push(slice);
                }
                true => {
                    kept = true;
                    self.keep(&slice).await?;
                }
            }
        }
        if kept {
            self.commit().await?;
        }
        let alone = through.first().filter(|_| through.len() == 1);
        self.attempt = Attempt {
            transactions: through.len() as u64,
            tx_id: alone.map(|slice| Arc::clone(&slice.tx_id)),
            released: Vec::new(),
        };
        through.extend(self.letters.take());
        let batch = Batch::of(through, after, catches_up);
        Ok(Some(match times {
            Some(_) => batch.committed_at_ms(through_times),
            None => batch,
        }))
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
                let letters = self.letters.take();
                let passed = Batch::of(letters, batch.after.clone(), batch.catches_up);
                self.attempt = Attempt::default();
                Ok(Some(passed))
            }
            None => {
                let mut waits = false;
                while let Some(slice) = batch.next().await? {
                    waits |= self.must_wait(&slice, &keys_of(&slice.events));
                    if waits {
                        break;
                    }
                }
                self.known = Some((tx_id, waits));
                Ok(None)
            }
        }
    }

    /// Whether a transaction failed alone, shares a key with one that waits, waits already, or has an event for a topic that
    /// failed.
    fn must_wait(&mut self, slice: &Slice, keys: &[i64]) -> bool {
        let tx_id = &slice.tx_id;
        let is_held = [&self.unsettled, &self.passing]
            .into_iter()
            .any(|waiting| waiting.holds(tx_id) || waiting.blocks(keys));
        if is_held || self.doomed.contains_key(tx_id) {
            return true;
        }
        // One that is held goes with the one before it; for this one a person must ask.
        match self.topics.to_blame(&slice.events) {
            Some(why) => self.doomed.insert(Arc::clone(tx_id), why).is_none(),
            None => false,
        }
    }

    /// Writes a transaction, or the next part of one, to the store.
    async fn keep(&mut self, slice: &Slice) -> Result<(), Fault> {
        if self.unsettled.holds(&slice.tx_id) {
            return Ok(());
        }
        let keys = keys_of(&slice.events);
        let events = slice.events.len() as u64;
        let bytes = slice.events.iter().map(|it| it.bytes() as u64).sum::<u64>();
        self.has_room(events, bytes)?;
        let id = match self.passing.id_of(&slice.tx_id) {
            Some(id) => id,
            None => self.add(slice).await?,
        };
        match self.passing.grow(id, events, bytes, &keys) {
            Some(entry) => self.store.append(entry, slice).await,
            None => Err(Fault::Defect(format!("row {id} is not being kept"))),
        }
    }

    async fn add(&mut self, slice: &Slice) -> Result<i64, Fault> {
        let tx_id = Arc::clone(&slice.tx_id);
        let fault = self.doomed.get(&tx_id).cloned();
        let new = New {
            tx_id: &tx_id,
            fault: fault.as_deref(),
            events: slice.tx_count,
        };
        let id = self.store.add(&new).await?;
        match &fault {
            Some(why) => {
                warn!(%tx_id, id, "parked: {why}");
                self.letters.parked(slice, id, why)?;
            }
            None => {
                info!(%tx_id, id, "held: it shares a key with a transaction that is parked or held")
            }
        }
        self.passing.add(Entry::new(id, tx_id, fault.is_some()));
        // Others may have to wait now.
        self.known = None;
        Ok(id)
    }

    fn has_room(&self, events: u64, bytes: u64) -> Result<(), Fault> {
        let (waiting, passing) = (self.unsettled.size(), self.passing.size());
        let all = (
            waiting.0 + passing.0 + events,
            waiting.1 + passing.1 + bytes,
        );
        let (events_max, bytes_max) = (self.settings.events_max, self.settings.bytes_max);
        if all.0 <= events_max && all.1 <= bytes_max {
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
}
