//! A database transaction that needs longer than the broker waits for a Kafka transaction would be aborted at each try.
//!
//! From one try it can't be told from a broker that went away. So it is at the second one, of the same transaction, if records
//! of it were delivered both times.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::fault::Fault;

/// The transaction that was late last; outlives producers.
#[derive(Clone, Default)]
pub(super) struct Late(Arc<Mutex<Option<Arc<str>>>>);

/// A transaction that failed, alone in its Kafka transaction.
pub(super) struct Try<'a> {
    pub tx_id: &'a Arc<str>,
    /// Since the Kafka transaction began.
    pub took: Duration,
    /// `transaction_timeout_ms`.
    pub limit: Duration,
    /// Its records that were delivered.
    pub delivered: u64,
}

impl Late {
    /// What is to be said of a try that failed, if it says more than its own error.
    pub fn judge(&self, failed: &Try<'_>) -> Option<Fault> {
        let Try {
            tx_id,
            took,
            limit,
            delivered,
        } = failed;
        if *took < *limit * 9 / 10 || *delivered == 0 {
            return None;
        }
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.replace(Arc::clone(tx_id));
        (before.as_ref() == Some(tx_id)).then(|| {
            Fault::Refused(format!(
                "transaction {tx_id} can't be published within transaction-timeout-ms ({} ms): {delivered} of its events were \
                 delivered in that time, twice; raise transaction-timeout-ms, and the brokers' transaction.max.timeout.ms if it \
                 is smaller",
                limit.as_millis()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_time_that_the_same_transaction_is_late_is_told() {
        let (late, limit) = (Late::default(), Duration::from_secs(10));
        let judge = |tx_id: &str, took_s: u64, delivered: u64| {
            let (tx_id, took) = (&Arc::from(tx_id), Duration::from_secs(took_s));
            let failed = Try {
                tx_id,
                took,
                limit,
                delivered,
            };
            late.judge(&failed).map(|fault| fault.to_string())
        };
        assert_eq!(judge("a", 10, 5), None);
        assert_eq!(judge("b", 10, 5), None);
        assert_eq!(
            judge("b", 3, 5),
            None,
            "it failed early, for another reason"
        );
        assert_eq!(judge("b", 10, 0), None, "the brokers took nothing");
        let said = judge("b", 9, 7).unwrap();
        assert!(
            said.contains("raise transaction-timeout-ms") && said.contains("7 of its"),
            "{said}"
        );
    }
}
