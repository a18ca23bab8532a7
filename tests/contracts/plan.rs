//! The simulator stands on a plan of its own: what `open.sql` and `plan.sql` answer on a server, it must answer too.

#[path = "../simulation/postgres/plan.rs"]
mod simulated;

use outbox_relay::capture::table::PostgresShell;
use outbox_relay::capture::table::shell::Shell;
use outbox_relay::position::{Snapshot, Xid};
use outbox_relay::servers::PostgresVersion;
use tokio_postgres::Client;

use self::simulated::{RowSize, news, plan};
use super::capture::{Place, on_table, settings, sql};
use crate::support::servers::{TestDatabase, postgres_of};
use crate::support::within;

/// Transaction ids and `seq`s of one trial lie below it.
const IDS: u64 = 40;
const PLAN_MAX: u64 = 1_000;

async fn shell(database: &TestDatabase) -> PostgresShell {
    let mut shell = PostgresShell::new(settings(), &database.database()).unwrap();
    shell.connect().await.unwrap();
    shell
}

/// The rows that are visible to others.
async fn visible(client: &Client) -> Vec<RowSize> {
    let rows = "select xid::text::bigint, seq, coalesce(octet_length(payload), 0)::bigint, uuid_hash_extended(id, 0) from outbox.events";
    let rows = client.query(rows, &[]).await.unwrap();
    rows.iter()
        .map(|row| RowSize {
            xid: row.get::<_, i64>(0).unsigned_abs(),
            seq: row.get(1),
            bytes: row.get::<_, i64>(2).unsigned_abs(),
            id: row.get(3),
        })
        .collect()
}

/// Asks both for the way from `seen` to `until`, and compares. Answers the number of transactions in the plan.
async fn compare(
    shell: &mut PostgresShell,
    rows: &[RowSize],
    (seen, until, last_seq): (&Snapshot, &Snapshot, i64),
) -> usize {
    let opened = shell.open(seen).await.unwrap();
    let planned = shell.plan(seen, until, last_seq, PLAN_MAX);
    let planned = planned.await.unwrap();
    shell.rollback().await.unwrap();
    let asked = format!("from {seen} to {until} above {last_seq} of {rows:?}");
    let rows = || rows.iter().copied();
    assert_eq!(
        (opened.highest, opened.late),
        news(rows(), seen),
        "open: {asked}"
    );
    assert_eq!(
        planned,
        plan(rows(), seen, until, last_seq),
        "plan: {asked}"
    );
    planned.len()
}

fn any_snapshot() -> Snapshot {
    let xmax = fastrand::u64(1..=IDS + 1);
    let share = fastrand::f64();
    let open: Vec<String> = (1..xmax)
        .filter(|_| fastrand::f64() < share)
        .map(|xid| xid.to_string())
        .collect();
    let xmin = open.first().cloned().unwrap_or_else(|| xmax.to_string());
    format!("{xmin}:{xmax}:{}", open.join(",")).parse().unwrap()
}

/// Rows of some transactions, their `seq`s in any order, some without a payload.
async fn insert_any_rows(client: &Client) {
    let mut seqs: Vec<u64> = (1..=IDS).collect();
    fastrand::shuffle(&mut seqs);
    seqs.truncate(fastrand::usize(1..=seqs.len()));
    let share = fastrand::u64(1..=IDS);
    let rows: Vec<String> = seqs
        .iter()
        .map(|seq| {
            let xid = fastrand::u64(1..=share);
            let payload = match fastrand::usize(0..5) {
                0 => "null".into(),
                bytes => format!("'{}'", "x".repeat(bytes)),
            };
            format!("({seq}, '{xid}', 't', {payload})")
        })
        .collect();
    let rows = rows.join(", ");
    let insert = format!(
        "truncate outbox.events; insert into outbox.events (seq, xid, topic, payload) overriding system value values {rows}"
    );
    sql(client, &insert).await;
}

#[test]
fn the_simulated_plan_answers_what_the_server_answers_to_any_snapshots() {
    within(120, async {
        let database = TestDatabase::on(postgres_of(PostgresVersion::V17).await).await;
        let (client, mut shell) = (database.connect().await, shell(&database).await);
        let mut planned = 0;
        for _ in 0..60 {
            insert_any_rows(&client).await;
            let rows = visible(&client).await;
            for _ in 0..10 {
                let last_seq = match fastrand::bool() {
                    true => i64::MIN + 1,
                    false => fastrand::i64(0..=IDS.cast_signed()),
                };
                let way = (&any_snapshot(), &any_snapshot(), last_seq);
                planned += compare(&mut shell, &rows, way).await;
            }
        }
        assert!(planned > 600, "the plans are not empty: {planned}");
    });
}

/// A writer whose transaction may be open.
struct Writer {
    client: Client,
    open: bool,
}

impl Writer {
    /// Goes on in any way.
    async fn step(&mut self) {
        let (statement, open) = match (self.open, fastrand::u8(0..8)) {
            (false, 0..=2) => ("begin; select pg_current_xact_id()", true),
            (false, _) => ("select outbox.publish('t', 'k', 'alone')", false),
            (true, 0..=2) => ("select outbox.publish('t', 'k', 'x')", true),
            (true, 3) => (
                "savepoint s; select outbox.publish('t', 'k', 'undone'); rollback to s",
                true,
            ),
            (true, 4..=6) => ("commit", false),
            (true, _) => ("rollback", false),
        };
        sql(&self.client, statement).await;
        self.open = open;
    }
}

#[test]
fn the_simulated_plan_answers_what_the_server_answers_to_concurrent_writers() {
    on_table(async |Place { database, .. }| {
        let mut writers = Vec::new();
        for _ in 0..4 {
            let client = database.connect().await;
            writers.push(Writer {
                client,
                open: false,
            });
        }
        let (client, mut shell) = (database.connect().await, shell(database).await);
        let mut known = vec![Snapshot::empty()];
        let mut planned = 0;
        for _ in 0..60 {
            for _ in 0..fastrand::usize(1..6) {
                let writer = fastrand::usize(0..writers.len());
                writers[writer].step().await;
            }
            let rows = visible(&client).await;
            let now = shell.snapshot().await.unwrap();
            let seen = known[fastrand::usize(0..known.len())].clone();
            let highest: Option<Xid> = news(rows.iter().copied(), &seen).0;
            let until = now.trimmed(&seen, highest);
            let last_seq = fastrand::i64(0..=rows.len() as i64);
            planned += compare(&mut shell, &rows, (&seen, &until, i64::MIN + 1)).await;
            compare(&mut shell, &rows, (&seen, &until, last_seq)).await;
            known.push(until);
        }
        assert!(planned > 60, "the plans are not empty: {planned}");
    });
}
