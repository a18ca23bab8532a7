//! Everything that can go wrong, what the relay does about it, and how long it waits. Pure; the only place that decides.

use std::time::Duration;

use crate::position::Mismatch;

/// A server that the relay talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// The database that holds the outbox.
    Postgres,
    /// The brokers.
    Kafka,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Kafka => "Kafka",
        })
    }
}

/// What went wrong. The text is one sentence for an operator; it never holds a secret or a payload.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The server is away, restarting, overloaded, or a request had no answer.
    #[error("{0} is not available: {1}")]
    Unavailable(Server, String),
    /// The outcome of a Kafka transaction is not known, or a stale frame of it may be on its way.
    #[error("the Kafka producer must be made anew: {0}")]
    Recycle(String),
    /// The lease on the name was lost, or could not be proven.
    #[error("this relay no longer holds the lease: {0}")]
    LeaseLost(String),
    /// The stored position can't be resumed from here.
    #[error("the stored position can't be resumed here: {0}")]
    Position(#[from] Mismatch),
    /// Something that an operator must put right before any event may be published.
    #[error("{0}")]
    Refused(String),
    /// A transaction that can't be published for a reason of its own.
    #[error("transaction {tx_id} can't be published: {why}")]
    Unpublishable {
        /// Header `tx-id` of the transaction, or `?` where the broker doesn't say which one it was.
        tx_id: String,
        /// The topic that is to blame, where that is what it is: then so is each other transaction with an event for it.
        topic: Option<String>,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// The relay was asked to stop and could not finish in time.
    #[error("a server did not answer within drain-ms ({} ms); nothing is lost, the next start goes on from the last position", .0.as_millis())]
    DrainDeadline(Duration),
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// Something that the relay's authors thought impossible.
    #[error("this is a defect of outbox-relay, please report it: {0}")]
    Defect(String),
}

/// What the relay does about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Open the sink again at once, read its position and go on from there.
    Reopen,
    /// The same after a while.
    BackOff,
    /// Wait for the lease, then open.
    StandBy,
    /// End with this exit code.
    Stop(u8),
}

impl Verdict {
    /// What metrics call it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Reopen => "reopen",
            Self::BackOff => "back_off",
            Self::StandBy => "stand_by",
            Self::Stop(_) => "stop",
        }
    }
}

/// Exit codes of the binary. They are documented in the README.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// A defect, or a check that found violations.
    pub const FAILED: u8 = 1;
    /// A setting, flag or argument is wrong.
    pub const SETTING: u8 = 2;
    /// The relay refuses to go on: the position does not fit, or a server is not set up.
    pub const REFUSED: u8 = 3;
    /// A transaction can't be published.
    pub const UNPUBLISHABLE: u8 = 4;
    /// The drain deadline passed while a server did not answer. Nothing is lost: the next start goes on.
    pub const DRAIN_DEADLINE: u8 = 5;
}

impl Fault {
    /// What the relay does about it. No wildcard arm: a new fault must be decided here.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Recycle(_) => Verdict::Reopen,
            Self::Unavailable(..) => Verdict::BackOff,
            Self::LeaseLost(_) => Verdict::StandBy,
            Self::Position(_) | Self::Refused(_) => Verdict::Stop(exit::REFUSED),
            Self::Unpublishable { .. } => Verdict::Stop(exit::UNPUBLISHABLE),
            Self::DrainDeadline(_) => Verdict::Stop(exit::DRAIN_DEADLINE),
            Self::Setting(_) => Verdict::Stop(exit::SETTING),
            Self::Defect(_) => Verdict::Stop(exit::FAILED),
        }
    }

    /// What metrics call it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Recycle(_) => "recycle",
            Self::Unavailable(Server::Postgres, _) => "postgres_unavailable",
            Self::Unavailable(Server::Kafka, _) => "kafka_unavailable",
            Self::LeaseLost(_) => "lease_lost",
            Self::Position(_) => "position",
            Self::Refused(_) => "refused",
            Self::Unpublishable { .. } => "unpublishable",
            Self::DrainDeadline(_) => "drain_deadline",
            Self::Setting(_) => "setting",
            Self::Defect(_) => "defect",
        }
    }

    /// The exit code of a command that ends with this fault.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.verdict() {
            Verdict::Stop(code) => code,
            Verdict::Reopen | Verdict::BackOff | Verdict::StandBy => exit::FAILED,
        }
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        of_postgres(&error)
    }
}

impl From<deadpool_postgres::PoolError> for Fault {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => of_postgres(&error),
            other => Self::Unavailable(Server::Postgres, other.to_string()),
        }
    }
}

/// Classes of SQLSTATE that an operator must look at; all else goes away by itself or with a new connection
/// (PostgreSQL manual, appendix A).
fn of_postgres(error: &tokio_postgres::Error) -> Fault {
    let Some(db) = error.as_db_error() else {
        return Fault::Unavailable(Server::Postgres, with_cause(error));
    };
    Fault::of_sqlstate(db.code().code(), db.message())
}

impl Fault {
    /// What an error of PostgreSQL means.
    #[must_use]
    pub fn of_sqlstate(code: &str, message: &str) -> Self {
        match code {
            "42P01" | "3F000" | "42703" | "42883" => Fault::Refused(format!(
                "PostgreSQL: {message} (SQLSTATE {code}); run `outbox-relay init` on this database, or check --table and [columns]"
            )),
            "42501" => Fault::Refused(format!(
                "PostgreSQL: {message} (SQLSTATE {code}); grant the relay's role this privilege"
            )),
            "28000" | "28P01" => Fault::Refused(format!(
                "PostgreSQL refuses the login: {message} (SQLSTATE {code})"
            )),
            "3D000" => Fault::Refused(format!(
                "PostgreSQL: {message} (SQLSTATE {code}); create it, or correct --database-url"
            )),
            _ => Fault::Unavailable(Server::Postgres, format!("{message} (SQLSTATE {code})")),
        }
    }
}

fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => {
            format!("{error}: {cause}")
        }
        _ => error.to_string(),
    }
}

/// Waiting times between tries: doubling, with jitter, so that many relays do not come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    /// From `least` for the first try up to `most`.
    #[must_use]
    pub fn new(least: Duration, most: Duration) -> Self {
        Self {
            least,
            most,
            tries: 0,
        }
    }

    /// The next waiting time; `jitter` is a random number in 0..1 and takes up to a half off.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let full = self
            .least
            .saturating_mul(1 << self.tries.min(16))
            .min(self.most);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// It worked: the next fault starts at `least` again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn backoff_grows_to_its_limit_and_never_beyond(jitters in proptest::collection::vec(0.0f64..1.0, 1..40)) {
            let (least, most) = (Duration::from_millis(50), Duration::from_secs(5));
            let mut backoff = Backoff::new(least, most);
            for (i, jitter) in jitters.iter().enumerate() {
                let wait = backoff.next(*jitter);
                let full = least.saturating_mul(1 << i.min(16)).min(most);
                prop_assert!(wait <= full && wait >= full / 2);
            }
            backoff.reset();
            prop_assert!(backoff.next(0.0) == least);
        }
    }
}
