//! A set of transaction ids. Ids come one after the other, so it is kept as runs. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Snapshot, Xid};

/// A set of transaction ids, as `112,119-120`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Xids {
    /// First and last of each run; between two runs lies at least one id.
    runs: BTreeMap<Xid, Xid>,
}

impl Xids {
    /// Adds one.
    pub fn insert(&mut self, xid: Xid) {
        if self.contains(xid) {
            return;
        }
        let last = self.runs.remove(&(xid + 1)).unwrap_or(xid);
        match self.runs.range_mut(..xid).next_back() {
            Some((_, end)) if *end + 1 == xid => *end = last,
            _ => drop(self.runs.insert(xid, last)),
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn contains(&self, xid: Xid) -> bool {
        let before = self.runs.range(..=xid).next_back();
        before.is_some_and(|(_, end)| xid <= *end)
    }

    /// The greatest.
    #[must_use]
    pub fn last(&self) -> Option<Xid> {
        self.runs.last_key_value().map(|(_, end)| *end)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Xid> {
        self.runs.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// The same as runs, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<Xid>> {
        self.runs.iter().map(|(first, last)| *first..=*last)
    }

    /// How many runs there are: what the text's length grows with.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Those that `seen` does not see.
    #[must_use]
    pub fn beyond(&self, seen: &Snapshot) -> Self {
        self.iter().filter(|xid| !seen.sees(*xid)).collect()
    }

    /// The greatest that `seen` sees.
    #[must_use]
    pub fn last_seen_by(&self, seen: &Snapshot) -> Option<Xid> {
        let runs = self.runs.iter().rev();
        let mut descending = runs.flat_map(|(first, last)| (*first..=*last).rev());
        descending.find(|xid| seen.sees(*xid))
    }
}

impl FromIterator<Xid> for Xids {
    fn from_iter<I: IntoIterator<Item = Xid>>(xids: I) -> Self {
        let mut set = Self::default();
        for xid in xids {
            set.insert(xid);
        }
        set
    }
}

impl fmt::Display for Xids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.runs.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The text is no set of transaction ids.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no set of transaction ids; it would look like 112,119-120")]
pub struct NotXids(String);

impl FromStr for Xids {
    type Err = NotXids;

    fn from_str(text: &str) -> Result<Self, NotXids> {
        parse(text).ok_or_else(|| NotXids(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Xids> {
    let mut runs: BTreeMap<Xid, Xid> = BTreeMap::new();
    for run in text.split(',').filter(|_| !text.is_empty()) {
        let run: RangeInclusive<Xid> = match run.split_once('-') {
            Some((first, last)) => first.parse().ok()?..=last.parse().ok()?,
            None => run.parse().map(|xid| xid..=xid).ok()?,
        };
        let apart = |(_, end): (&Xid, &Xid)| end.checked_add(1).is_some_and(|it| it < *run.start());
        if run.is_empty() || !runs.last_key_value().is_none_or(apart) {
            return None;
        }
        runs.insert(*run.start(), *run.end());
    }
    Some(Xids { runs })
}

impl TryFrom<String> for Xids {
    type Error = NotXids;

    fn try_from(text: String) -> Result<Self, NotXids> {
        text.parse()
    }
}

impl From<Xids> for String {
    fn from(xids: Xids) -> Self {
        xids.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(xids in proptest::collection::vec(0u64..60, 0..60), asked in 0u64..64, cut in 1u64..64) {
            let ours: Xids = xids.iter().copied().collect();
            let theirs: BTreeSet<Xid> = xids.into_iter().collect();
            prop_assert_eq!(ours.iter().collect::<Vec<_>>(), theirs.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(ours.contains(asked), theirs.contains(&asked));
            prop_assert_eq!(ours.last(), theirs.last().copied());
            prop_assert_eq!(ours.to_string().parse::<Xids>().unwrap(), ours.clone());
            let seen: Snapshot = format!("{cut}:{cut}:").parse().unwrap();
            prop_assert!(ours.beyond(&seen).iter().eq(theirs.range(cut..).copied()));
            prop_assert_eq!(ours.last_seen_by(&seen), theirs.range(..cut).next_back().copied());
        }
    }

    #[test]
    fn refuses_what_is_no_set() {
        for text in ["a", "3-2", "5,4", "5,6", "1-3,3", "1-,2", ","] {
            assert!(text.parse::<Xids>().is_err(), "{text}");
        }
    }
}
