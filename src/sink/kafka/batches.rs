//! How large the client makes its batches.
//!
//! A topic's `max.message.bytes` is about the batch, whatever number of records it holds, and the client knows nothing of it:
//! many records that would fit, each by itself, are refused together. What a broker refuses is therefore first a reason to
//! make smaller batches; only what is refused then, in a batch of its own, is too large.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Duration, Instant};

/// `batch.size` of librdkafka by default.
const DEFAULT_BYTES: usize = 1_000_000;
/// Any size is reached by the first record, so each goes alone.
const ONE_RECORD: usize = 1;
/// A producer that is made so long after a refusal of which the limit was not told tries the old size again.
const ALONE_FOR: Duration = Duration::from_secs(60);

/// The most bytes of a batch; outlives producers.
#[derive(Clone)]
pub(super) struct Batches(Arc<Mutex<Known>>);

struct Known {
    bytes_max: usize,
    /// Since when each record goes alone.
    alone_since: Option<Instant>,
}

impl Batches {
    /// As the property says, if it is given.
    pub fn new(batch_size: Option<&String>) -> Self {
        let given = batch_size.and_then(|text| text.trim().parse().ok());
        Self(Arc::new(Mutex::new(Known {
            bytes_max: given.unwrap_or(DEFAULT_BYTES),
            alone_since: None,
        })))
    }

    /// For the next producer.
    pub fn bytes_max(&self) -> usize {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.alone_since.take_if(|it| it.elapsed() >= ALONE_FOR);
        match known.alone_since {
            Some(_) => ONE_RECORD,
            None => known.bytes_max,
        }
    }

    /// A topic refused a batch. Whether it may have been the number of its records: then the next producer's are smaller.
    /// `topic_bytes_max` is the topic's limit, if that may be asked for.
    pub fn refused(&self, topic_bytes_max: Option<usize>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match topic_bytes_max {
            Some(topic) if topic >= known.bytes_max => false,
            Some(topic) => {
                // The client reckons the frame of a batch roughly.
                known.bytes_max = (topic - topic / 10).max(ONE_RECORD);
                true
            }
            None => known.alone_since.replace(Instant::now()).is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_get_as_small_as_a_topic_wants_them_and_then_it_is_the_record() {
        let batches = Batches::new(None);
        assert!(
            !batches.refused(Some(1_048_588)),
            "a batch was never so large"
        );
        assert_eq!(batches.bytes_max(), DEFAULT_BYTES);
        assert!(batches.refused(Some(2_000)));
        assert_eq!(batches.bytes_max(), 1_800);
        assert!(!batches.refused(Some(2_000)));
        assert!(batches.refused(Some(1_000)), "another topic");
        assert!(!batches.refused(Some(2_000)));
        assert_eq!(batches.bytes_max(), 900);
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_limit_is_not_told_each_record_goes_alone_for_a_while() {
        let batches = Batches::new(Some(&"5000".to_owned()));
        assert_eq!(batches.bytes_max(), 5_000);
        assert!(batches.refused(None));
        assert!(!batches.refused(None));
        assert_eq!(batches.bytes_max(), ONE_RECORD);
        tokio::time::advance(ALONE_FOR).await;
        assert_eq!(batches.bytes_max(), 5_000);
        assert!(batches.refused(None));
    }
}
