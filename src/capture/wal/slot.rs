//! The replication slot: what is known of it, and whether a position can be streamed from it. Pure.

use std::fmt;

use crate::fault::Fault;
use crate::position::Lsn;

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its output plugin; ours is pgoutput.
    pub plugin: String,
    /// It belongs to this database.
    pub is_of_this_database: bool,
    /// Since when nobody streams from it (17 and newer).
    pub inactive_since: Option<String>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Why it can't be used any more (17 and newer).
    pub invalidation: Option<String>,
    /// All that commits at or below it is not streamed any more.
    pub confirmed: Lsn,
    /// Bytes of WAL that it keeps.
    pub retained_bytes: u64,
    /// Bytes that may still be written before it is in danger; none without a limit.
    pub safe_bytes: Option<i64>,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.retained_bytes;
        write!(
            f,
            "{}, confirmed to {}, keeps {kept} bytes of WAL",
            self.wal_status, self.confirmed
        )?;
        if let Some(safe) = self.safe_bytes {
            write!(f, ", safe for {safe} bytes more")?;
        }
        match &self.inactive_since {
            Some(since) => write!(f, ", inactive since {since}"),
            None => Ok(()),
        }
    }
}

/// Whether what commits beyond `position` can be streamed from the slot `name`.
///
/// # Errors
/// [`Fault::Refused`] with the reason and the way out.
pub fn check(name: &str, slot: Option<&Slot>, position: Lsn) -> Result<(), Fault> {
    let refused = |why: String| Err(Fault::Refused(why));
    let Some(slot) = slot else {
        return refused(format!(
            "there is no replication slot {name} on this server, so what committed after {position} can't be streamed; run \
             `outbox-relay recover`, which goes on from the rows that the table still holds"
        ));
    };
    if slot.plugin != "pgoutput" || !slot.is_of_this_database {
        return refused(format!(
            "replication slot {name} belongs to another database or to plugin {}; choose another --slot",
            slot.plugin
        ));
    }
    if slot.wal_status == "lost" || slot.invalidation.is_some() {
        let why = slot.invalidation.as_deref().unwrap_or("wal_removed");
        return refused(format!(
            "replication slot {name} is lost ({why}): PostgreSQL removed WAL that was not published; run `outbox-relay recover`, \
             which goes on from the rows that the table still holds, and raise max_slot_wal_keep_size"
        ));
    }
    if slot.confirmed > position {
        return refused(format!(
            "replication slot {name} stands at {}, ahead of the position {position}: it was made anew, or something else read from \
             it; what committed between would be skipped; run `outbox-relay recover`",
            slot.confirmed
        ));
    }
    Ok(())
}

/// What an operator should know of a slot that can be used; `keeps_without_limit`: `max_slot_wal_keep_size = -1`.
#[must_use]
pub fn warnings(name: &str, slot: &Slot, keeps_without_limit: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if keeps_without_limit {
        warnings.push(
            "max_slot_wal_keep_size is -1: while this relay is away its slot keeps WAL until the disk is full; set a limit"
                .to_owned(),
        );
    }
    if slot.wal_status == "unreserved" {
        warnings.push(format!(
            "replication slot {name} is about to be lost: it keeps {} bytes of WAL, more than max_slot_wal_keep_size allows",
            slot.retained_bytes
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            is_of_this_database: true,
            inactive_since: None,
            wal_status: "reserved".into(),
            invalidation: None,
            confirmed: 100.into(),
            retained_bytes: 5,
            safe_bytes: None,
        }
    }

    #[test]
    fn a_slot_that_can_not_serve_the_position_is_refused_with_its_reason() {
        assert!(check("s", Some(&slot()), 100.into()).is_ok());
        type Change = fn(&mut Slot);
        let cases: [(Change, &str); 5] = [
            (|s| s.plugin = "wal2json".into(), "plugin wal2json"),
            (|s| s.is_of_this_database = false, "another database"),
            (|s| s.wal_status = "lost".into(), "is lost (wal_removed)"),
            (
                |s| s.invalidation = Some("idle_timeout".into()),
                "is lost (idle_timeout)",
            ),
            (|s| s.confirmed = 101.into(), "ahead of the position 0/64"),
        ];
        for (change, says) in cases {
            let mut slot = slot();
            change(&mut slot);
            let fault = check("s", Some(&slot), 100.into()).unwrap_err().to_string();
            assert!(fault.contains(says), "{fault}");
        }
        let none = check("s", None, 100.into()).unwrap_err().to_string();
        assert!(none.contains("no replication slot s"), "{none}");
    }

    #[test]
    fn what_is_known_of_a_slot_is_one_line() {
        let known = Slot {
            safe_bytes: Some(9),
            inactive_since: Some("noon".into()),
            ..slot()
        };
        assert_eq!(
            known.to_string(),
            "reserved, confirmed to 0/64, keeps 5 bytes of WAL, safe for 9 bytes more, inactive since noon"
        );
    }

    #[test]
    fn a_slot_in_danger_is_told_of() {
        assert!(warnings("s", &slot(), false).is_empty());
        assert_eq!(warnings("s", &slot(), true).len(), 1);
        let mut slot = slot();
        slot.wal_status = "unreserved".into();
        assert!(warnings("s", &slot, false)[0].contains("about to be lost"));
    }
}
