//! Events a second, told from outside: by the tally of the positions that the relay acknowledges. Pure.

use super::Registration;

/// A relay acknowledges about once a second while it publishes. Older than that, nothing was published.
const QUIET_MS: i64 = 3_000;

/// Follows the acknowledged positions.
#[derive(Debug, Default)]
pub struct Rate {
    last: Option<(i64, u64)>,
    per_second: Option<f64>,
}

impl Rate {
    /// The rate, after another look. Capture wal keeps no tally, so it has none.
    pub fn of(&mut self, registration: Option<&Registration>, now_ms: i64) -> Option<f64> {
        let known = registration.filter(|it| it.position.streamed.is_none())?;
        let now = (known.acknowledged_at_ms, known.position.tally.events);
        match self.last {
            Some((at, events)) if now.0 > at => {
                let more = now.1.saturating_sub(events) as f64;
                self.per_second = Some(more * 1000.0 / (now.0 - at) as f64);
            }
            None => {}
            Some(_) if now_ms - now.0 > QUIET_MS => self.per_second = Some(0.0),
            Some(_) => {}
        }
        self.last = Some(now);
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Position, Snapshot, Tally};

    #[test]
    fn a_rate_is_between_two_acknowledgements_and_ends_with_them() {
        let at = |acknowledged_at_ms, events| Registration {
            table: "outbox.events".into(),
            instance: "h:1:a".into(),
            position: Position {
                tally: Tally { events, ids: 0 },
                ..Position::at(Origin::of_test("table"), Snapshot::empty())
            },
            acknowledged_at_ms,
        };
        let mut rate = Rate::default();
        assert_eq!(rate.of(Some(&at(1_000, 50)), 1_100), None);
        assert_eq!(rate.of(Some(&at(3_000, 250)), 3_100), Some(100.0));
        assert_eq!(rate.of(Some(&at(3_000, 250)), 4_100), Some(100.0));
        assert_eq!(rate.of(Some(&at(3_000, 250)), 6_100), Some(0.0));
        assert_eq!(rate.of(None, 7_000), None);
    }
}
