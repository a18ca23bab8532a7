//! What a seed decides before the run begins: sizes, settings, how often things go wrong.

use std::time::Duration;

use outbox_relay::capture::CaptureKind;

/// Keys that a transaction touches, at most.
pub const KEYS_OF_A_TRANSACTION: u64 = 3;
/// Events of one key that a transaction has, at most.
const EVENTS_OF_A_KEY: u64 = 30;

/// Everything that is drawn once for a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub relays: u64,
    pub writers: u64,
    pub transactions_of_each_writer: u64,
    pub keys: u64,
    pub topics: u64,
    pub partitions: u64,
    /// For how long faults happen.
    pub chaos: Duration,
    pub lease_time: Duration,
    pub socket_timeout_ms: u32,
    pub transaction_timeout_ms: u32,
    pub events_max: u64,
    pub linger: Duration,
    /// Time between two rounds of the WAL writer, at most.
    pub wal_writer_ms: u64,
    pub asynchronous_commits: f64,
    pub rollbacks: f64,
    pub prepared: f64,
    pub long_writers: f64,
    /// Of a Kafka request.
    pub frame_faults: f64,
    /// Of a PostgreSQL request.
    pub query_faults: f64,
    /// Faults of servers and processes.
    pub incidents: u64,
    /// The standby is promoted; it lacks so many records of the log.
    pub promotion: Option<u64>,
    pub capture: CaptureKind,
    /// Events of one key that a transaction has, at most.
    pub events_of_a_key: u64,
    /// Between two LSNs of the simulated WAL.
    pub record_bytes: u64,
    /// The walsender sends transactions without rows of ours too.
    pub sends_empty: bool,
    /// A commit waits so long for a synchronous standby, at most: it is flushed, but not visible.
    pub standby_ms: u64,
    /// Transactions that can't be published before all is calm.
    pub poisoned: f64,
    /// Published rows are deleted.
    pub retains: bool,
}

impl Scenario {
    /// The scenario of a seed. Half of them are of the table capture.
    pub fn of(seed: u64) -> Self {
        let mut scenario = Self::of_the_table(seed);
        let mut random = fastrand::Rng::with_seed(seed ^ 0x9a4);
        if scenario.promotion.is_none() {
            scenario.poisoned = [0.0, 0.0, 0.1, 0.4][random.usize(..4)];
        }
        scenario.retains = random.bool();
        let mut random = fastrand::Rng::with_seed(seed ^ 0x0a1);
        match random.bool() {
            true => scenario.of_the_wal(&mut random),
            false => scenario,
        }
    }

    /// What concerns the WAL capture alone, drawn from other numbers, so that the seeds of the table stay what they are.
    fn of_the_wal(self, random: &mut fastrand::Rng) -> Self {
        let events_of_a_key = random.u64(5..=EVENTS_OF_A_KEY);
        Self {
            capture: CaptureKind::Wal,
            events_of_a_key,
            // No transaction is larger: a larger one goes to disk, by threads, which are not repeatable.
            events_max: KEYS_OF_A_TRANSACTION * events_of_a_key + random.u64(0..=5),
            // Small ones are a busy outbox, large ones the WAL of neighbours.
            record_bytes: [1, 60, 1 << 20, 3 << 20][random.usize(..4)],
            sends_empty: random.bool(),
            standby_ms: [0, 20, 300][random.usize(..3)],
            ..self
        }
    }

    fn of_the_table(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ms = |range: std::ops::RangeInclusive<u64>, random: &mut fastrand::Rng| {
            Duration::from_millis(random.u64(range))
        };
        let mut pick = |choices: &[f64]| choices[random.usize(..choices.len())];
        let (asynchronous_commits, rollbacks) = (pick(&[0.0, 0.3, 0.8]), pick(&[0.0, 0.2, 0.5]));
        let (prepared, long_writers) = (pick(&[0.0, 0.1]), pick(&[0.0, 0.1, 0.3]));
        let (frame_faults, query_faults) =
            (pick(&[0.0, 0.02, 0.1, 0.2]), pick(&[0.0, 0.0, 0.01, 0.05]));
        let socket_timeout_ms = random.u32(100..=500);
        Self {
            seed,
            relays: random.u64(1..=3),
            writers: random.u64(1..=4),
            transactions_of_each_writer: random.u64(2..=10),
            keys: random.u64(1..=5),
            topics: random.u64(1..=2),
            partitions: random.u64(1..=2),
            chaos: ms(500..=3_000, &mut random),
            lease_time: ms(150..=1_000, &mut random),
            socket_timeout_ms,
            transaction_timeout_ms: socket_timeout_ms * random.u32(2..=6),
            events_max: random.u64(1..=12),
            linger: Duration::from_millis(random.u64(0..=3).saturating_sub(1) * 2),
            wal_writer_ms: random.u64(5..=400),
            asynchronous_commits,
            rollbacks,
            prepared,
            long_writers,
            frame_faults,
            query_faults,
            incidents: random.u64(0..=6),
            capture: CaptureKind::Table,
            events_of_a_key: EVENTS_OF_A_KEY,
            record_bytes: 1,
            sends_empty: false,
            standby_ms: 0,
            poisoned: 0.0,
            retains: false,
            promotion: (random.u64(0..10) == 0).then(|| random.u64(0..=30)),
        }
    }
}
