//! Letters to the dead-letter topic: a record for each transaction that is parked, and a tombstone once it is settled. They go
//! into the Kafka transaction whose position passes it, or settles it; so a compacted topic shows what waits.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

use super::Entry;
use crate::event::{Event, Slice};
use crate::fault::Fault;

/// Events that a letter names.
const EVENTS_MAX: usize = 10;
/// Characters of whatever it repeats.
const CHARS_MAX: usize = 250;
/// Header `type`.
const TYPE: &str = "outbox-relay.parked";

/// The value of a record: JSON.
#[derive(Serialize)]
struct Letter<'a> {
    tx_id: &'a str,
    /// For `outbox-relay parked`.
    id: i64,
    fault: String,
    events: u64,
    first_events: Vec<Named>,
}

/// An event, but for what it says: that may be what is too large.
#[derive(Serialize)]
struct Named {
    id: Uuid,
    topic: String,
    key: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
}

/// A letter must not be too large itself.
fn cut(text: &str) -> String {
    text.chars().take(CHARS_MAX).collect()
}

/// Those that wait for the next batch.
pub(super) struct Letters {
    topic: Option<Arc<str>>,
    waiting: Vec<Slice>,
}

impl Letters {
    pub fn to(topic: Option<&str>) -> Self {
        Self {
            topic: topic.map(Arc::from),
            waiting: Vec::new(),
        }
    }

    /// A transaction is parked as row `id`; `slice` is its beginning.
    pub fn parked(&mut self, slice: &Slice, id: i64, fault: &str) -> Result<(), Fault> {
        let Some(topic) = &self.topic else {
            return Ok(());
        };
        let key = |key: &Bytes| cut(&String::from_utf8_lossy(key));
        let named = slice.events.iter().take(EVENTS_MAX).map(|event| Named {
            id: event.id,
            topic: cut(&event.topic),
            key: event.key.as_ref().map(key),
            event_type: event.event_type.as_deref().map(cut),
        });
        let letter = Letter {
            tx_id: &slice.tx_id,
            id,
            fault: cut(fault),
            events: slice.tx_count,
            first_events: named.collect(),
        };
        let value =
            serde_json::to_vec(&letter).map_err(|error| Fault::Defect(error.to_string()))?;
        self.waiting
            .push(record(topic, &slice.tx_id, Some(value.into())));
        Ok(())
    }

    /// Tombstones for those that were parked, and are published now or discarded.
    pub fn settled(&self, entries: &[Entry]) -> Vec<Slice> {
        let Some(topic) = &self.topic else {
            return Vec::new();
        };
        let parked = entries.iter().filter(|entry| entry.is_parked);
        parked
            .map(|entry| record(topic, &entry.tx_id, None))
            .collect()
    }

    /// Puts all that wait into an envelope.
    pub fn take(&mut self) -> Vec<Slice> {
        std::mem::take(&mut self.waiting)
    }

    /// They were about a batch that was not published.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    /// The fault of a topic is that of the letters' own.
    pub fn are_to_blame(&self, topic: Option<&str>) -> bool {
        topic.is_some() && topic == self.topic.as_deref()
    }
}

fn record(topic: &Arc<str>, tx_id: &Arc<str>, payload: Option<Bytes>) -> Slice {
    Slice {
        tx_id: Arc::clone(tx_id),
        tx_count: 0,
        first_index: 0,
        events: vec![Event {
            seq: 0,
            id: Uuid::new_v4(),
            topic: Arc::clone(topic),
            key: Some(Bytes::copy_from_slice(tx_id.as_bytes())),
            event_type: Some(TYPE.into()),
            payload,
            headers: Vec::new(),
            // For the client that is: now.
            occurred_at_ms: 0,
        }],
    }
}
