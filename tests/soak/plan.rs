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
    /// SIGKILL to a broker.
    BrokerKill { which: Which, down_ms: u64 },
    /// SIGSTOP and SIGCONT to a broker: connections stay open and silent.
    BrokerPause { which: Which, for_ms: u64 },
    /// Orderly shutdown of a broker.
    BrokerRestart { which: Which, down_ms: u64 },
    /// All brokers but one are gone, by SIGKILL or by SIGSTOP: no quorum of controllers, and too few copies to write.
    OneBrokerLeft {
        left: Which,
        killed: bool,
        for_ms: u64,
    },
    /// Events need a copy on each broker, and one is killed: it is refused to write them.
    CopyMissing { which: Which, for_ms: u64 },
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

/// Which broker of several; where there is one it is that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Drawn(usize),
    /// It leads a partition of a topic of events.
    LeadsEvents {
        topic: usize,
        partition: usize,
    },
    /// It leads the position topic.
    LeadsPositions,
    /// It coordinates the relay's transactions.
    Coordinates,
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
            Self::BrokerKill { which, .. } => match which {
                Which::Drawn(_) => "broker: kill -9",
                Which::LeadsEvents { .. } => "broker: kill -9 of a leader of events",
                Which::LeadsPositions => "broker: kill -9 of the leader of positions",
                Which::Coordinates => "broker: kill -9 of the coordinator",
            },
            Self::BrokerPause { .. } => "broker: stopped for a while",
            Self::BrokerRestart { .. } => "broker: restart",
            Self::OneBrokerLeft { killed: true, .. } => "brokers: two of three killed",
            Self::OneBrokerLeft { killed: false, .. } => "brokers: two of three stopped",
            Self::CopyMissing { .. } => "brokers: too few copies, one killed",
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

    /// How many kills -9 of a broker are in it.
    pub fn broker_kills(self) -> u64 {
        match self {
            Self::BrokerKill { .. } | Self::CopyMissing { .. } => 1,
            Self::OneBrokerLeft { killed: true, .. } => 2,
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

/// How often in an hour, and how one is drawn. A new kind of fault is a variant, an arm in `kind`, a line here or for
/// some number of brokers, and an arm in `Stage::inject`.
///
/// No orderly shutdown of the only broker: while it leaves, its partitions have no leader. Its coordinator then takes a
/// transaction for ended without writing the markers, and `read_committed` stands still for good (measured, Kafka 4.3.1,
/// `describeProducers`: an open transaction of an epoch that the coordinator has long left).
const RATES: [(u64, Draw); 21] = [
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
    (16, |rng| Fault::BrokerPause {
        which: drawn(rng),
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

/// The same for what differs with one broker.
const RATES_OF_ONE: [(u64, Draw); 1] = [(36, |rng| killed(drawn(rng), rng))];

/// The same for what differs with three. Each of these stops or slows all writes for some seconds; more of them would
/// leave a small machine no time to recover between two.
const RATES_OF_THREE: [(u64, Draw); 8] = [
    (10, |rng| killed(drawn(rng), rng)),
    (8, |rng| {
        let (topic, partition) = (rng.usize(..), rng.usize(..));
        killed(Which::LeadsEvents { topic, partition }, rng)
    }),
    (8, |rng| killed(Which::LeadsPositions, rng)),
    (8, |rng| killed(Which::Coordinates, rng)),
    (6, |rng| Fault::BrokerRestart {
        which: drawn(rng),
        down_ms: rng.u64(0..3_000),
    }),
    (4, |rng| one_left(true, rng)),
    (4, |rng| one_left(false, rng)),
    (4, |rng| Fault::CopyMissing {
        which: drawn(rng),
        for_ms: rng.u64(2_000..12_000),
    }),
];

fn drawn(rng: &mut Rng) -> Which {
    Which::Drawn(rng.usize(..))
}

fn killed(which: Which, rng: &mut Rng) -> Fault {
    // Mostly shorter than the session, after which others take over what it led; starting it takes longer.
    let down_ms = rng.u64(0..4_000);
    Fault::BrokerKill { which, down_ms }
}

fn one_left(killed: bool, rng: &mut Rng) -> Fault {
    Fault::OneBrokerLeft {
        left: drawn(rng),
        killed,
        for_ms: rng.u64(2_000..12_000),
    }
}

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
pub fn plan(seed: u64, minutes: u64, brokers: usize) -> Vec<Planned> {
    let more: &[_] = match brokers {
        1 => &RATES_OF_ONE,
        _ => &RATES_OF_THREE,
    };
    let mut rng = Rng::with_seed(seed);
    let length_ms = minutes * 60_000 - FIRST_MS;
    let mut planned = Vec::new();
    for (per_hour, draw) in RATES.iter().chain(more) {
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
        assert_eq!(plan(7, 5, 3), plan(7, 5, 3));
        assert_ne!(plan(7, 5, 3), plan(8, 5, 3));
    }

    #[test]
    fn an_hour_has_what_it_must_have() {
        for brokers in [1, 3] {
            let plan = plan(1, 60, brokers);
            let counts = by_kind(&plan);
            let relay_kills: u64 = plan.iter().map(|each| each.fault.relay_kills()).sum();
            assert!(relay_kills >= 300, "{counts:?}");
            let broker_kills: u64 = plan.iter().map(|each| each.fault.broker_kills()).sum();
            assert!(broker_kills >= 30, "{counts:?}");
            assert!(counts["PostgreSQL: kill -9"] >= 10, "{counts:?}");
        }
    }

    #[test]
    fn a_minute_has_each_kind_in_order_and_in_time() {
        for (brokers, more) in [(1, RATES_OF_ONE.len()), (3, RATES_OF_THREE.len())] {
            let plan = plan(3, 1, brokers);
            assert_eq!(by_kind(&plan).len(), RATES.len() + more);
            assert!(plan.is_sorted_by_key(|each| each.at_ms));
            assert!(
                plan.iter()
                    .all(|each| (FIRST_MS..60_000).contains(&each.at_ms))
            );
        }
    }
}
