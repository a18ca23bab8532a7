//! A sink in memory, for tests and dry runs. It keeps the trait's whole contract, fencing included.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::{Batch, Event};
use crate::fault::Fault;
use crate::position::Position;
use crate::sink::Sink;

/// One published record.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Number of the batch that it came with, from 1: records of one batch became visible together.
    pub batch: u64,
    /// Header `tx-id`.
    pub tx_id: Arc<str>,
    /// Header `tx-index`.
    pub tx_index: u64,
    /// Header `tx-count`.
    pub tx_count: u64,
    /// The event itself.
    pub event: Event,
}

#[derive(Debug, Default)]
struct Held {
    epoch: u64,
    batches: u64,
    position: Option<Position>,
    records: Vec<Published>,
}

/// What all instances of one name share: the place of the broker. A clone is a handle to the same store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Held>>);

impl MemoryStore {
    /// All records that are visible, in order.
    #[must_use]
    pub fn records(&self) -> Vec<Published> {
        self.held().records.clone()
    }

    /// The last published position.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.held().position.clone()
    }

    /// A panic elsewhere leaves nothing half done here: each change below is made in one piece.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One instance that publishes to a [`MemoryStore`].
#[derive(Debug)]
pub struct MemorySink {
    store: MemoryStore,
    /// `None` while closed.
    epoch: Option<u64>,
}

impl MemorySink {
    /// An instance, closed.
    #[must_use]
    pub fn new(store: MemoryStore) -> Self {
        Self { store, epoch: None }
    }
}

impl Sink for MemorySink {
    async fn open(&mut self) -> Result<Option<Position>, Fault> {
        let mut held = self.store.held();
        held.epoch += 1;
        self.epoch = Some(held.epoch);
        Ok(held.position.clone())
    }

    async fn publish(&mut self, mut batch: Batch) -> Result<(), Fault> {
        // Taken, so that a failed or dropped call leaves the sink closed.
        let Some(epoch) = self.epoch.take() else {
            return Err(Fault::Recycle("the sink is not open".into()));
        };
        let mut slices = Vec::new();
        while let Some(slice) = batch.next().await? {
            slices.push(slice);
        }
        let mut held = self.store.held();
        if held.epoch != epoch {
            return Err(Fault::Recycle("a newer instance has opened".into()));
        }
        held.batches += 1;
        let number = held.batches;
        held.records.extend(slices.into_iter().flat_map(|slice| {
            let (tx_id, tx_count) = (slice.tx_id, slice.tx_count);
            (slice.first_index..)
                .zip(slice.events)
                .map(move |(tx_index, event)| Published {
                    batch: number,
                    tx_id: Arc::clone(&tx_id),
                    tx_index,
                    tx_count,
                    event,
                })
        }));
        held.position = Some(batch.after.clone());
        self.epoch = Some(epoch);
        Ok(())
    }

    async fn close(&mut self) {
        self.epoch = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Snapshot};

    fn genesis() -> Batch {
        let origin = Origin::of_test("table");
        Batch::genesis(Position::at(origin, Snapshot::empty()))
    }

    #[tokio::test]
    async fn an_older_instance_can_not_publish_after_a_newer_one_has_opened() {
        let store = MemoryStore::default();
        let (mut old, mut new) = (
            MemorySink::new(store.clone()),
            MemorySink::new(store.clone()),
        );
        assert_eq!(old.open().await.unwrap(), None);
        old.publish(genesis()).await.unwrap();
        assert_eq!(new.open().await.unwrap(), store.position());
        assert!(matches!(
            old.publish(genesis()).await,
            Err(Fault::Recycle(_))
        ));
        assert!(matches!(
            old.publish(genesis()).await,
            Err(Fault::Recycle(_))
        ));
        new.publish(genesis()).await.unwrap();
        new.close().await;
        assert!(matches!(
            new.publish(genesis()).await,
            Err(Fault::Recycle(_))
        ));
    }
}
