//! Topics that failed lately. Without them each transaction for such a topic would cost all others a try of its own.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use crate::event::Event;

/// So long after a topic failed what is for it is set aside untried. A topic that was made meanwhile is found then.
const UNTRIED: Duration = Duration::from_secs(5);

/// Why, and since when, by name.
#[derive(Default)]
pub(super) struct Topics(HashMap<Arc<str>, (String, Instant)>);

impl Topics {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn failed(&mut self, topic: &str, why: &str) {
        self.0
            .insert(topic.into(), (why.to_owned(), Instant::now()));
    }

    /// Forgets those that are to be tried again.
    pub fn forget(&mut self) {
        self.0.retain(|_, (_, since)| since.elapsed() < UNTRIED);
    }

    /// Why one of these events can't be published.
    pub fn to_blame(&self, events: &[Event]) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let (why, _) = events.iter().find_map(|event| self.0.get(&event.topic))?;
        Some(why.clone())
    }
}
