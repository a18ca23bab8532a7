//! Which faults a run injects, and when. Pure: the seed and the length decide all of it.

use fastrand::Rng;

/// No fault before the writers and the relay are at work.
const FIRST_MS: u64 = 4_000;
const HOUR_MS: u64 = 3_600_000;

/// One fault, with all that was left to chance. Every time is in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to a relay; it is started again at once.
    RelayKill,
    /// SIGKILL, a new start, and SIGKILL again in the middle of it.
    RelayKillTwice { after_ms: u64 },
    /// SIGTERM to a relay; it is started again when it has ended.
    RelayTerminate,
    /// SIGSTOP and SIGCONT to a relay. The lease lasts 1 500 ms, a Kafka transaction 10 000 ms.
    RelayPause { pause: Pause, for_ms: u64 },
    /// A second relay of the same name comes and goes, by SIGTERM or by SIGKILL.
    SecondRelay { for_ms: u64, killed: bool },
    /// `pg_terminate_backend` for some sessions of relays.
    RelaySessions,
    /// SIGKILL to the broker.
    BrokerKill { down_ms: u64 },
    /// SIGSTOP and SIGCONT to the broker: connections stay open and silent.
    BrokerPause { for_ms: u64 },
    /// SIGKILL to PostgreSQL, right after transactions that rolled back, so that it gives their ids out again.
    PostgresKill { rollbacks: u64, down_ms: u64 },
    /// Fast shutdown of PostgreSQL.
    PostgresRestart { down_ms: u64 },
    /// SIGSTOP and SIGCONT to all processes of PostgreSQL.
    PostgresPause { for_ms: u64 },
    /// All connections between relays and one server are reset.
    NetworkReset(Link),
    /// Nothing comes through between relays and one server; then all of it does.
    NetworkStall { link: Link, for_ms: u64 },
    /// The broker carries a request out, and its reply is lost with the connection, or in silence.
    ReplyLost { of: Asked, silently: bool },
    /// A commit is held until its client has given it up and is in its next transaction; then the broker gets it, or the
    /// abort that a client could have sent in its place.
    LateEndTxn { as_abort: bool },
}

/// A way from the relays to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Kafka,
    Postgres,
}

/// A request of the relay to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Produce,
    EndTxn,
    InitProducerId,
}

/// How long a relay stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It may keep the lease.
    Short,
    /// It loses the lease.
    PastLease,
    /// The broker aborts its Kafka transaction, too.
    PastTransaction,
}

impl Fault {
    /// The kind, as the report counts it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::RelayKill => "relay: kill -9",
            Self::RelayKillTwice { .. } => "relay: kill -9, and again while it starts",
            Self::RelayTerminate => "relay: SIGTERM",
            Self::RelayPause {
                pause: Pause::Short,
                ..
            } => "relay: stopped, shorter than the lease",
            Self::RelayPause {
                pause: Pause::PastLease,
                ..
            } => "relay: stopped, longer than the lease",
            Self::RelayPause {
                pause: Pause::PastTransaction,
                ..
            } => "relay: stopped, longer than the transaction timeout",
            Self::SecondRelay { .. } => "relay: a second one comes and goes",
            Self::RelaySessions => "relay: sessions terminated",
            Self::BrokerKill { .. } => "broker: kill -9",
            Self::BrokerPause { .. } => "broker: stopped for a while",
            Self::PostgresKill { .. } => "PostgreSQL: kill -9",
            Self::PostgresRestart { .. } => "PostgreSQL: restart",
            Self::PostgresPause { .. } => "PostgreSQL: stopped for a while",
            Self::NetworkReset(Link::Kafka) => "network: connections to Kafka reset",
            Self::NetworkReset(Link::Postgres) => "network: connections to PostgreSQL reset",
            Self::NetworkStall {
                link: Link::Kafka, ..
            } => "network: black hole before Kafka",
            Self::NetworkStall {
                link: Link::Postgres,
                ..
            } => "network: black hole before PostgreSQL",
            Self::ReplyLost {
                of: Asked::Produce, ..
            } => "network: reply to Produce lost",
            Self::ReplyLost {
                of: Asked::EndTxn, ..
            } => "network: reply to EndTxn lost",
            Self::ReplyLost {
                of: Asked::InitProducerId,
                ..
            } => "network: reply to InitProducerId lost",
            Self::LateEndTxn { as_abort: false } => {
                "network: commit held into the next transaction"
            }
            Self::LateEndTxn { as_abort: true } => "network: abort held into the next transaction",
        }
    }

    /// How many kills -9 of a relay are in it.
    pub fn relay_kills(self) -> u64 {
        match self {
            Self::RelayKill => 1,
            Self::RelayKillTwice { .. } => 2,
            _ => 0,
        }
    }
}

/// A fault and its moment, counted from the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at_ms: u64,
    pub fault: Fault,
}

type Draw = fn(&mut Rng) -> Fault;

/// How often in an hour, and how one is drawn. A new kind of fault is a variant, an arm in `kind`, a line here, and an
/// arm in `Stage::inject`.
///
/// No orderly shutdown of the broker: it is the only one, and while it leaves, its partitions have no leader. Its
/// coordinator then takes a transaction for ended without writing the markers, and `read_committed` stands still for
/// good (measured, Kafka 4.3.1, `describeProducers`: an open transaction of an epoch that the coordinator has long left).
const RATES: [(u64, Draw); 22] = [
    (330, |_| Fault::RelayKill),
    (40, |rng| Fault::RelayKillTwice {
        after_ms: rng.u64(0..500),
    }),
    (40, |_| Fault::RelayTerminate),
    (40, |rng| pause(Pause::Short, rng.u64(50..1_200))),
    (24, |rng| pause(Pause::PastLease, rng.u64(2_000..6_000))),
    (8, |rng| {
        pause(Pause::PastTransaction, rng.u64(12_000..25_000))
    }),
    (40, |rng| Fault::SecondRelay {
        for_ms: rng.u64(3_000..40_000),
        killed: rng.bool(),
    }),
    (40, |_| Fault::RelaySessions),
    (36, |rng| Fault::BrokerKill {
        down_ms: rng.u64(0..3_000),
    }),
    (16, |rng| Fault::BrokerPause {
        for_ms: rng.u64(500..12_000),
    }),
    (20, |rng| Fault::PostgresKill {
        rollbacks: rng.u64(0..40),
        down_ms: rng.u64(0..2_000),
    }),
    (8, |rng| Fault::PostgresRestart {
        down_ms: rng.u64(0..2_000),
    }),
    (16, |rng| Fault::PostgresPause {
        for_ms: rng.u64(500..8_000),
    }),
    (24, |_| Fault::NetworkReset(Link::Kafka)),
    (24, |_| Fault::NetworkReset(Link::Postgres)),
    (12, |rng| stall(Link::Kafka, rng.u64(500..14_000))),
    (12, |rng| stall(Link::Postgres, rng.u64(500..6_000))),
    (16, |rng| lost(Asked::Produce, rng.bool())),
    (24, |rng| lost(Asked::EndTxn, rng.bool())),
    (12, |rng| lost(Asked::InitProducerId, rng.bool())),
    (12, |_| Fault::LateEndTxn { as_abort: false }),
    (12, |_| Fault::LateEndTxn { as_abort: true }),
];

fn stall(link: Link, for_ms: u64) -> Fault {
    Fault::NetworkStall { link, for_ms }
}

fn lost(of: Asked, silently: bool) -> Fault {
    Fault::ReplyLost { of, silently }
}

fn pause(pause: Pause, for_ms: u64) -> Fault {
    Fault::RelayPause { pause, for_ms }
}

/// The faults of a run, in the order of their moments. Each kind comes at least once, and is spread evenly: one in each
/// of equal stretches, anywhere in it. Kinds do not wait for each other, so faults overlap.
pub fn plan(seed: u64, minutes: u64) -> Vec<Planned> {
    let mut rng = Rng::with_seed(seed);
    let length_ms = minutes * 60_000 - FIRST_MS;
    let mut planned = Vec::new();
    for (per_hour, draw) in RATES {
        let count = (per_hour * minutes).div_ceil(HOUR_MS / 60_000).max(1);
        for index in 0..count {
            let (from, to) = (length_ms * index / count, length_ms * (index + 1) / count);
            let at_ms = FIRST_MS + rng.u64(from..to);
            let fault = draw(&mut rng);
            planned.push(Planned { at_ms, fault });
        }
    }
    planned.sort_by_key(|planned| planned.at_ms);
    planned
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn by_kind(plan: &[Planned]) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for planned in plan {
            *counts.entry(planned.fault.kind()).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(plan(7, 5), plan(7, 5));
        assert_ne!(plan(7, 5), plan(8, 5));
    }

    #[test]
    fn an_hour_has_what_it_must_have() {
        let plan = plan(1, 60);
        let relay_kills: u64 = plan.iter().map(|each| each.fault.relay_kills()).sum();
        assert!(relay_kills >= 300, "{relay_kills}");
        let counts = by_kind(&plan);
        assert!(counts["broker: kill -9"] >= 30, "{counts:?}");
        assert!(counts["PostgreSQL: kill -9"] >= 10, "{counts:?}");
    }

    #[test]
    fn a_minute_has_each_kind_in_order_and_in_time() {
        let plan = plan(3, 1);
        assert_eq!(by_kind(&plan).len(), RATES.len());
        assert!(plan.is_sorted_by_key(|each| each.at_ms));
        assert!(
            plan.iter()
                .all(|each| (FIRST_MS..60_000).contains(&each.at_ms))
        );
    }
}
