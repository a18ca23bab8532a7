//! Named places, one for each step of the loop, at which a test stops the process dead.
//!
//! `OUTBOX_RELAY_CRASH_AT=kafka.commit:2` sends SIGKILL to the process when it passes `kafka.commit` for the second time.
//! Builds without debug assertions, such as release builds, have none of it.

/// All points, about in the order in which a relay passes them; those of the Kafka sink lie behind the command that they
/// are named after. A test goes through the list.
pub const CRASH_POINTS: [&str; 17] = [
    "relay.leased",
    "kafka.create",
    "kafka.prove_lease",
    "kafka.init_transactions",
    "kafka.read_position",
    "relay.genesis",
    "relay.read",
    "kafka.begin",
    "kafka.produce",
    "kafka.flush",
    "kafka.produce_position",
    "kafka.commit",
    "relay.published",
    "relay.acknowledged",
    "relay.drained",
    "kafka.drop_producer",
    "relay.closed",
];

/// Those of parking and of releasing what waited, in the order in which a relay passes them.
pub const PARK_CRASH_POINTS: [&str; 5] = [
    "park.applied",
    "park.pending",
    "park.passed",
    "park.confirmed",
    "relay.released",
];

/// Those of `move` and `recover`, in the order in which one of them passes those that it has.
pub const MOVE_CRASH_POINTS: [&str; 8] = [
    "move.no_more_emits",
    "move.recovering",
    "move.slot_dropped",
    "move.dropped",
    "move.publication",
    "move.slot",
    "move.caught_up",
    "move.stored",
];

/// Passes the point `name`; if it is armed, nothing comes after that.
#[inline]
pub fn crash_point(name: &'static str) {
    #[cfg(debug_assertions)]
    armed::pass(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    /// The armed point, and how often it will still be passed.
    static ARMED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let text = std::env::var("OUTBOX_RELAY_CRASH_AT").ok()?;
        let (name, pass) = parse(&text)?;
        Some((name.to_owned(), AtomicU32::new(pass)))
    });

    pub(super) fn pass(name: &str) {
        let mut all = super::CRASH_POINTS
            .iter()
            .chain(&super::PARK_CRASH_POINTS)
            .chain(&super::MOVE_CRASH_POINTS);
        let listed = all.any(|known| *known == name);
        debug_assert!(listed, "{name} is not listed");
        if let Some((armed, passes)) = &*ARMED
            && armed == name
            && passes.fetch_sub(1, Ordering::Relaxed) == 1
        {
            // SIGKILL to a thread of ours ends all of us.
            let _ = raise(Signal::SIGKILL);
        }
    }

    /// `name` or `name:pass`.
    fn parse(text: &str) -> Option<(&str, u32)> {
        match text.split_once(':') {
            Some((name, pass)) => Some((name, pass.parse().ok()?)),
            None => Some((text, 1)),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_armed_by_its_name_and_the_pass() {
            assert_eq!(parse("kafka.commit"), Some(("kafka.commit", 1)));
            assert_eq!(parse("kafka.commit:3"), Some(("kafka.commit", 3)));
            assert_eq!(parse("kafka.commit:often"), None);
        }
    }
}
