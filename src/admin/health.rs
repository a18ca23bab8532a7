//! Alive and ready: what a probe is told. Pure.

use std::time::Duration;

use crate::metrics::{State, Turn};

/// Whether a server answers; none: it has not been asked yet.
pub type Reach = Option<Result<(), String>>;

/// What probes are told: good, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// A restart would not help.
    pub live: Result<(), String>,
    /// It publishes, or would at once if the active relay went away.
    pub ready: Result<(), String>,
}

/// `silent`: how long ago the loop made its last step; `stalled`: how long that may be.
///
/// A loop that waits for a server that is away waits rightly, and a restart would not bring the server back. One that
/// stands still while both servers answer does not wait for either.
#[must_use]
pub fn health(
    turn: &Turn,
    silent: Duration,
    stalled: Duration,
    postgres: &Reach,
    kafka: &Reach,
) -> Health {
    let servers = answers("PostgreSQL", postgres).and_then(|()| answers("Kafka", kafka));
    let live = match silent >= stalled && servers.is_ok() {
        true => Err(format!(
            "stalled: the loop has made no step for {} s, although both servers answer",
            silent.as_secs()
        )),
        false => Ok(()),
    };
    let ready = live.clone().and(servers).and(match turn.state {
        State::Active | State::StandBy => Ok(()),
        state => Err(state.name().replace('_', " ")),
    });
    Health { live, ready }
}

fn answers(name: &str, reach: &Reach) -> Result<(), String> {
    match reach {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => Err(why.clone()),
        None => Err(format!("{name} has not been asked yet")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::fault::Server;

    fn told(state: State, silent_s: u64, postgres: &Reach, kafka: &Reach) -> (bool, bool) {
        let now = Instant::now();
        let turn = Turn {
            state,
            since: now,
            at: now,
            position: None,
            published_until_ms: None,
            fault: None,
        };
        let (silent, stalled) = (Duration::from_secs(silent_s), Duration::from_secs(60));
        let Health { live, ready } = health(&turn, silent, stalled, postgres, kafka);
        (live.is_ok(), ready.is_ok())
    }

    #[test]
    fn an_outage_is_alive_but_not_ready_and_a_loop_that_stands_still_is_neither() {
        let (up, away) = (Some(Ok(())), Some(Err("Kafka is not available".to_owned())));
        assert_eq!(told(State::Active, 0, &up, &up), (true, true));
        assert_eq!(told(State::StandBy, 0, &up, &up), (true, true));
        assert_eq!(told(State::Starting, 0, &up, &up), (true, false));
        assert_eq!(told(State::Active, 0, &up, &None), (true, false));
        assert_eq!(told(State::Active, 5, &up, &away), (true, false));
        let waiting = State::Waiting(Server::Kafka);
        assert_eq!(told(waiting, 1, &up, &up), (true, false));
        assert_eq!(told(State::Active, 600, &up, &away), (true, false));
        assert_eq!(told(State::Active, 59, &up, &up), (true, true));
        assert_eq!(told(State::Active, 60, &up, &up), (false, false));
        assert_eq!(told(State::StandBy, 60, &up, &up), (false, false));
    }
}
