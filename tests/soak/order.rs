//! The live check: what a `read_committed` consumer is shown must continue each key without a gap. Pure.
//!
//! It needs no ledger and little memory, so it tells at once what the check at the end would tell after an hour.

use std::collections::HashMap;

/// How many violations are described; all are counted.
const DESCRIBED_MAX: usize = 10;

/// The last offset of each partition, and the last version of each key.
#[derive(Debug, Default)]
pub struct Order {
    offsets: HashMap<(String, i32), i64>,
    versions: HashMap<String, u64>,
    violations: u64,
    described: Vec<String>,
}

impl Order {
    /// Takes a record. Answers whether it is new: a consumer that lost its broker may be shown one again.
    pub fn take(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        key: &str,
        version: u64,
    ) -> bool {
        let last = self
            .offsets
            .entry((topic.to_owned(), partition))
            .or_insert(-1);
        if offset <= *last {
            return false;
        }
        *last = offset;
        let known = self.versions.entry(key.to_owned()).or_insert(0);
        if version != *known + 1 {
            self.violations += 1;
            if self.described.len() < DESCRIBED_MAX {
                self.described.push(format!(
                    "key {key:?}: version {version} came after {known}, at {topic}/{partition}@{offset}"
                ));
            }
        }
        *known = version;
        true
    }

    /// How many there were, and the first ones.
    pub fn violations(&self) -> (u64, &[String]) {
        (self.violations, &self.described)
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    /// Feeds versions of one key at growing offsets; answers the violations.
    fn violations(versions: &[u64]) -> u64 {
        let mut order = Order::default();
        for (offset, version) in (0..).zip(versions) {
            assert!(order.take("t", 0, offset, "k", *version));
        }
        order.violations().0
    }

    #[test]
    fn a_loss_a_repetition_and_a_swap_are_seen() {
        assert_eq!(violations(&[1, 2, 3]), 0);
        assert_eq!(violations(&[1, 3]), 1);
        assert_eq!(violations(&[1, 2, 2]), 1);
        assert_eq!(violations(&[2, 1]), 2);
    }

    #[test]
    fn an_offset_that_is_shown_again_is_no_event() {
        let mut order = Order::default();
        assert!(order.take("t", 0, 5, "k", 1));
        assert!(!order.take("t", 0, 5, "k", 1));
        assert!(order.take("t", 1, 5, "other", 1));
        assert_eq!(order.violations().0, 0);
    }
}
