//! The transactions that wait: which keys they hold, and which of them are free to go. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::store::Request;
use crate::event::Event;

/// A transaction of `outbox.parked` that is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of the row.
    pub id: i64,
    /// Header `tx-id`.
    pub tx_id: Arc<str>,
    /// It failed by itself; else it is held.
    pub is_parked: bool,
    /// What an operator asked for.
    pub request: Option<Request>,
    /// Its events.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Hashes of its keys, each once, ascending.
    pub keys: Vec<i64>,
}

impl Entry {
    pub(super) fn new(id: i64, tx_id: Arc<str>, is_parked: bool) -> Self {
        Self {
            id,
            tx_id,
            is_parked,
            request: None,
            events: 0,
            bytes: 0,
            keys: Vec::new(),
        }
    }

    pub(super) fn grow(&mut self, events: u64, bytes: u64, keys: &[i64]) {
        self.events += events;
        self.bytes += bytes;
        self.keys.extend(keys);
        self.keys.sort_unstable();
        self.keys.dedup();
    }

    pub(super) fn hash(&self) -> i64 {
        hash([self.tx_id.as_bytes()])
    }
}

/// Hashes of the keys of these events, each once, ascending. Two keys of one hash hold each other: harmless.
pub(super) fn keys_of(events: &[Event]) -> Vec<i64> {
    let key = |event: &Event| {
        let key = event.key.as_ref()?;
        Some(hash([event.topic.as_bytes(), &[0], key]))
    };
    let mut keys: Vec<i64> = events.iter().filter_map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// FNV-1a with 64 bits: stored, so it must stay what it is.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> i64 {
    let bytes = parts.into_iter().flatten();
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.cast_signed()
}

/// All that wait, in the order in which they were passed.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    entries: BTreeMap<u64, Entry>,
    places: HashMap<i64, u64>,
    ids: HashMap<Arc<str>, i64>,
    next_place: u64,
    /// How many entries have a key.
    keys: HashMap<i64, u32>,
    size: (u64, u64),
    /// Hashes of their `tx-id`s by exclusive or.
    hash: i64,
    /// Nothing was free when it was looked, and nothing that matters has changed since.
    none_is_free: bool,
}

impl Unsettled {
    pub fn of(entries: Vec<Entry>) -> Self {
        let mut all = Self::default();
        entries.into_iter().for_each(|entry| all.add(entry));
        all
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, id: i64) -> Option<&Entry> {
        self.entries.get(self.places.get(&id)?)
    }

    pub fn id_of(&self, tx_id: &str) -> Option<i64> {
        self.ids.get(tx_id).copied()
    }

    pub fn holds(&self, tx_id: &str) -> bool {
        self.ids.contains_key(tx_id)
    }

    /// Whether one of them has one of these keys.
    pub fn blocks(&self, keys: &[i64]) -> bool {
        keys.iter().any(|key| self.keys.contains_key(key))
    }

    /// Events and bytes.
    pub fn size(&self) -> (u64, u64) {
        self.size
    }

    /// Number, and hashes of their `tx-id`s by exclusive or.
    pub fn tally(&self) -> (u64, i64) {
        (self.entries.len() as u64, self.hash)
    }

    /// Their `tx-id`s, in order.
    pub fn tx_ids(&self) -> impl Iterator<Item = &str> {
        self.entries.values().map(|entry| &*entry.tx_id)
    }

    pub fn add(&mut self, entry: Entry) {
        for key in &entry.keys {
            *self.keys.entry(*key).or_default() += 1;
        }
        self.size = (self.size.0 + entry.events, self.size.1 + entry.bytes);
        self.hash ^= entry.hash();
        self.none_is_free = false;
        self.ids.insert(Arc::clone(&entry.tx_id), entry.id);
        self.places.insert(entry.id, self.next_place);
        self.entries.insert(self.next_place, entry);
        self.next_place += 1;
    }

    /// One of them goes on: more events of the transaction with this id.
    pub fn grow(&mut self, id: i64, events: u64, bytes: u64, keys: &[i64]) -> Option<&Entry> {
        let entry = self.entries.get_mut(self.places.get(&id)?)?;
        for key in keys {
            if entry.keys.binary_search(key).is_err() {
                *self.keys.entry(*key).or_default() += 1;
            }
        }
        entry.grow(events, bytes, keys);
        self.size = (self.size.0 + events, self.size.1 + bytes);
        Some(entry)
    }

    /// Takes all of them out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Entry> + use<> {
        std::mem::take(self).entries.into_values()
    }

    pub fn remove(&mut self, id: i64) -> Option<Entry> {
        let entry = self.entries.remove(&self.places.remove(&id)?)?;
        self.ids.remove(&entry.tx_id);
        self.hash ^= entry.hash();
        self.none_is_free = false;
        for key in &entry.keys {
            if let Some(count) = self.keys.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(key);
                }
            }
        }
        self.size = (self.size.0 - entry.events, self.size.1 - entry.bytes);
        Some(entry)
    }

    pub fn request(&mut self, id: i64, request: Request) {
        let place = self.places.get(&id);
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.request = Some(request);
            self.none_is_free = false;
        }
    }

    /// A try of this one failed.
    pub fn failed(&mut self, id: i64) {
        let place = self.places.get(&id);
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            (entry.request, entry.is_parked) = (None, true);
        }
    }

    /// What may be settled next, in order, within the limits: what was asked for, and what nothing before it holds.
    pub fn free(&mut self, transactions_max: u64, limits: (u64, u64)) -> Vec<Entry> {
        if self.none_is_free {
            return Vec::new();
        }
        let (mut free, mut remaining) = (Vec::new(), HashSet::<i64>::new());
        let (mut transactions, mut events, mut bytes) = (0, 0, 0);
        for entry in self.entries.values() {
            let waits = entry.is_parked && entry.request.is_none();
            let is_held = entry.keys.iter().any(|key| remaining.contains(key));
            let is_published = entry.request != Some(Request::Discard);
            let has_room = events + entry.events <= limits.0 && bytes + entry.bytes <= limits.1;
            let fits = free.is_empty()
                || (free.len() as u64) < transactions_max
                    && (!is_published || transactions == 0 || has_room);
            if waits || is_held || !fits {
                remaining.extend(&entry.keys);
                continue;
            }
            if is_published {
                transactions += 1;
                (events, bytes) = (events + entry.events, bytes + entry.bytes);
            }
            free.push(entry.clone());
        }
        // The first one goes whatever the limits are.
        self.none_is_free = free.is_empty();
        free
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: i64, is_parked: bool, keys: &[i64]) -> Entry {
        let mut entry = Entry::new(id, format!("7-1-{id}").into(), is_parked);
        entry.grow(2, 10, keys);
        entry
    }

    fn ids(entries: &[Entry]) -> Vec<i64> {
        entries.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn what_shares_a_key_waits_transitively_and_goes_in_order() {
        let mut all = Unsettled::of(vec![
            entry(1, true, &[1]),
            entry(2, false, &[1, 2]),
            entry(3, false, &[2]),
            entry(4, true, &[9]),
            entry(5, false, &[9]),
        ]);
        assert!(all.blocks(&[2]) && all.blocks(&[7, 9]) && !all.blocks(&[7]));
        assert_eq!(all.free(9, (99, 999)), []);
        all.request(1, Request::Retry);
        assert_eq!(ids(&all.free(9, (99, 999))), [1, 2, 3]);
        assert_eq!(ids(&all.free(2, (99, 999))), [1, 2]);
        assert_eq!(
            ids(&all.free(9, (5, 999))),
            [1, 2],
            "six events are too many"
        );
        assert_eq!(
            ids(&all.free(9, (1, 1))),
            [1],
            "one goes alone, however large"
        );
        all.remove(1);
        all.request(4, Request::Discard);
        assert_eq!(ids(&all.free(9, (99, 999))), [2, 3, 4, 5]);
        for id in [2, 4] {
            all.remove(id);
        }
        assert!(!all.blocks(&[1]) && all.blocks(&[9]));
        let (before, five) = (all.tally(), entry(5, false, &[]).hash());
        all.remove(5);
        assert_eq!(all.tally(), (before.0 - 1, before.1 ^ five));
    }

    #[test]
    fn one_that_comes_in_parts_holds_the_keys_of_all_parts() {
        let mut all = Unsettled::default();
        all.add(Entry::new(1, "7-1-1".into(), true));
        all.grow(1, 2, 10, &[4, 5]);
        assert_eq!(all.grow(1, 1, 5, &[5, 6]).unwrap().keys, [4, 5, 6]);
        assert_eq!(all.size(), (3, 15));
        assert!(all.blocks(&[4]) && all.blocks(&[6]));
        assert_eq!(all.drain().map(|it| it.events).collect::<Vec<_>>(), [3]);
        assert!(all.is_empty() && !all.blocks(&[5]) && all.size() == (0, 0));
    }

    #[test]
    fn hashes_stay_what_they_are_because_they_are_stored() {
        assert_eq!(hash([&b"a"[..]]), 0xaf63_dc4c_8601_ec8c_u64.cast_signed());
        assert_eq!(hash([&b""[..]]), 0xcbf2_9ce4_8422_2325_u64.cast_signed());
    }

    proptest! {
        /// Whatever is released in whatever steps, of two transactions that share a key the earlier one goes first.
        #[test]
        fn no_transaction_overtakes_one_that_shares_a_key(
            entries in proptest::collection::vec((any::<bool>(), proptest::collection::vec(0i64..4, 0..3)), 0..20),
            steps in proptest::collection::vec((0i64..20, 1u64..4), 0..60),
        ) {
            let made = entries.iter().enumerate();
            let made: Vec<Entry> = made.map(|(i, (parked, keys))| entry(i as i64, *parked, keys)).collect();
            let mut all = Unsettled::of(made.clone());
            let mut gone: HashSet<i64> = HashSet::new();
            for (retried, transactions_max) in steps {
                all.request(retried, Request::Retry);
                for free in all.free(transactions_max, (100, 1000)) {
                    let before = made.iter().filter(|it| it.id < free.id && it.keys.iter().any(|key| free.keys.contains(key)));
                    for earlier in before {
                        prop_assert!(gone.contains(&earlier.id), "{} went before {}", free.id, earlier.id);
                    }
                    gone.insert(free.id);
                    all.remove(free.id);
                }
            }
        }
    }
}
