//! The contract of `Capture`, against PostgreSQL 14, 17 and 18.

use std::time::Duration;

use outbox_relay::capture::table::{BatchLimits, Columns, TableCapture, TableSettings};
use outbox_relay::capture::{Capture, Start};
use outbox_relay::event::Event;
use outbox_relay::fault::Fault;
use outbox_relay::position::{Mismatch, Position, Snapshot};
use outbox_relay::servers::PostgresVersion;
use tokio_postgres::Client;

use crate::support::servers::{
    TestDatabase, own_postgres, own_postgres_with_standby, postgres_of, promote,
};
use crate::support::{until, within};

pub fn settings() -> TableSettings {
    TableSettings {
        name: "shop".into(),
        instance: "test:1".into(),
        registers: true,
        table: "outbox.events".into(),
        columns: Columns::default(),
        route: "outbox.event.{aggregate_type}".into(),
        batch: BatchLimits {
            events_max: 100,
            bytes_max: 1 << 20,
        },
        linger: Duration::ZERO,
        poll_min: Duration::from_millis(1),
        poll_max: Duration::from_millis(10),
    }
}

/// A capture with the position that it stands at.
struct Reader {
    capture: TableCapture,
    position: Position,
}

impl Reader {
    async fn new(database: &TestDatabase, settings: TableSettings) -> Self {
        let mut capture = TableCapture::new(settings, &database.database()).unwrap();
        let position = capture.genesis(Start::Beginning).await.unwrap();
        Self { capture, position }
    }

    /// The transactions of the next batch, by payload; empty if there is none.
    async fn batch(&mut self) -> Vec<Vec<String>> {
        let Some(mut batch) = self.capture.next(&self.position).await.unwrap() else {
            return Vec::new();
        };
        let mut transactions: Vec<Vec<String>> = Vec::new();
        while let Some(slice) = batch.next().await.unwrap() {
            let payloads = slice.events.iter().map(payload);
            match (slice.first_index, transactions.last_mut()) {
                (1.., Some(last)) => last.extend(payloads),
                _ => transactions.push(payloads.collect()),
            }
            assert!(slice.first_index + slice.events.len() as u64 <= slice.tx_count);
        }
        assert!(self.position.precedes(&batch.after));
        self.position = batch.after;
        transactions
    }

    /// All that is there now.
    async fn all(&mut self) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        loop {
            match self.batch().await {
                batch if batch.is_empty() => return all,
                batch => all.extend(batch),
            }
        }
    }
}

fn payload(event: &Event) -> String {
    String::from_utf8(event.payload.clone().unwrap().to_vec()).unwrap()
}

async fn insert(client: &Client, payload: &str) {
    client
        .execute("select outbox.publish('t', 'k', $1::text)", &[&payload])
        .await
        .unwrap();
}

pub async fn sql(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

pub fn on_all_versions(test: impl AsyncFn(&TestDatabase)) {
    within(120, async {
        for version in [
            PostgresVersion::V14,
            PostgresVersion::V17,
            PostgresVersion::V18,
        ] {
            test(&TestDatabase::on(postgres_of(version).await).await).await;
        }
    });
}

#[test]
fn a_late_commit_is_not_skipped_and_delays_nobody() {
    on_all_versions(async |database| {
        let (slow, fast) = (database.connect().await, database.connect().await);
        let mut reader = Reader::new(database, settings()).await;
        sql(&slow, "begin").await;
        insert(&slow, "slow").await;
        insert(&fast, "fast 1").await;
        assert_eq!(reader.all().await, [["fast 1"]]);
        insert(&fast, "fast 2").await;
        assert_eq!(reader.all().await, [["fast 2"]]);
        sql(&slow, "commit").await;
        assert_eq!(reader.all().await, [["slow"]]);
        assert!(reader.all().await.is_empty());
    });
}

#[test]
fn rolled_back_work_never_appears() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let mut reader = Reader::new(database, settings()).await;
        sql(
            &client,
            "begin; select outbox.publish('t', 'k', 'gone'); rollback",
        )
        .await;
        sql(&client, "begin; select outbox.publish('t', 'k', 'kept 1'); savepoint s; select outbox.publish('t', 'k', 'undone');
             rollback to s; select outbox.publish('t', 'k', 'kept 2'); commit").await;
        sql(
            &client,
            "begin; select outbox.publish('t', 'k', 'prepared'); prepare transaction 'p'",
        )
        .await;
        assert_eq!(reader.all().await, [["kept 1", "kept 2"]]);
        sql(&client, "commit prepared 'p'").await;
        assert_eq!(reader.all().await, [["prepared"]]);
    });
}

#[test]
fn order_is_that_of_the_last_insert_not_of_the_transaction_ids() {
    on_all_versions(async |database| {
        let (first, second) = (database.connect().await, database.connect().await);
        let mut reader = Reader::new(database, settings()).await;
        // The lock inversion: the lower xid waits for the aggregate and writes after the higher one.
        sql(&first, "begin; select pg_current_xact_id()").await;
        insert(&second, "by the higher xid").await;
        insert(&first, "by the lower xid").await;
        sql(&first, "commit").await;
        assert_eq!(
            reader.all().await,
            [["by the higher xid"], ["by the lower xid"]]
        );
    });
}

#[test]
fn a_window_is_cut_between_transactions_and_resumed_in_its_middle() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let late = database.connect().await;
        let small = TableSettings {
            batch: BatchLimits {
                events_max: 5,
                bytes_max: 1 << 20,
            },
            ..settings()
        };
        let mut reader = Reader::new(database, small.clone()).await;
        sql(&late, "begin").await;
        insert(&late, "late").await;
        for i in 0..6 {
            sql(&client, &format!("begin; select outbox.publish('t', 'k', '{i}a'); select outbox.publish('t', 'k', '{i}b'); commit")).await;
        }
        assert_eq!(reader.batch().await, [["0a", "0b"], ["1a", "1b"]]);
        // A restart in the middle; meanwhile a transaction commits whose seq lies below the place reached.
        sql(&late, "commit").await;
        reader.capture = TableCapture::new(small, &database.database()).unwrap();
        assert_eq!(reader.batch().await, [["2a", "2b"], ["3a", "3b"]]);
        assert_eq!(reader.batch().await, [["4a", "4b"], ["5a", "5b"]]);
        assert_eq!(reader.batch().await, [["late"]]);
        assert!(reader.batch().await.is_empty());
    });
}

#[test]
fn a_transaction_beyond_the_limits_streams_whole_and_alone() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let small = TableSettings {
            batch: BatchLimits {
                events_max: 50,
                bytes_max: 1 << 20,
            },
            ..settings()
        };
        let mut reader = Reader::new(database, small).await;
        insert(&client, "before").await;
        sql(
            &client,
            "select outbox.publish('t', 'k', i::text) from generate_series(1, 321) i",
        )
        .await;
        insert(&client, "after").await;
        assert_eq!(reader.batch().await, [["before"]]);
        let large = reader.batch().await;
        assert_eq!(
            large,
            [(1..=321).map(|i| i.to_string()).collect::<Vec<_>>()]
        );
        assert_eq!(reader.batch().await, [["after"]]);
    });
}

#[test]
fn a_transaction_is_not_streamed_from_another_server_than_the_one_that_planned_it() {
    within(120, async {
        let [mut primary, standby] = own_postgres_with_standby().await;
        let database = TestDatabase::on(&primary).await;
        let on_standby = database.moved_to(&standby);
        let mut reader = Reader::new(&database.or(&on_standby), settings()).await;
        let large = "select outbox.publish('t', 'k', i::text) from generate_series(1, 321) i";
        sql(&database.connect().await, large).await;
        on_standby.has("outbox.events", 321).await;
        let mut batch = reader
            .capture
            .next(&reader.position)
            .await
            .unwrap()
            .unwrap();
        primary.kill9().await.unwrap();
        promote(&standby).await;
        let page = batch.next().await;
        assert!(
            matches!(page, Err(Fault::Position(Mismatch::Timeline(1, 2)))),
            "{page:?}"
        );
    });
}

#[test]
fn bytes_limit_a_batch_too() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let small = TableSettings {
            batch: BatchLimits {
                events_max: 1000,
                bytes_max: 2500,
            },
            ..settings()
        };
        let mut reader = Reader::new(database, small).await;
        for _ in 0..5 {
            sql(
                &client,
                "select outbox.publish('t', 'k', repeat('x', 1000))",
            )
            .await;
        }
        assert_eq!(reader.batch().await.len(), 2);
        assert_eq!(reader.batch().await.len(), 2);
        assert_eq!(reader.batch().await.len(), 1);
    });
}

#[test]
fn a_cancelled_read_loses_nothing() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let small = TableSettings {
            batch: BatchLimits {
                events_max: 3,
                bytes_max: 1 << 20,
            },
            ..settings()
        };
        let mut reader = Reader::new(database, small).await;
        for i in 0..40 {
            insert(&client, &i.to_string()).await;
        }
        let mut read = Vec::new();
        for micros in 0.. {
            // Cut off at ever later points, then read in earnest.
            let cancelled = tokio::time::timeout(
                Duration::from_micros(micros * 37 % 4000),
                reader.capture.next(&reader.position),
            )
            .await;
            drop(cancelled);
            match reader.batch().await {
                batch if batch.is_empty() => break,
                batch => read.extend(batch.concat()),
            }
        }
        assert_eq!(read, (0..40).map(|i| i.to_string()).collect::<Vec<_>>());
    });
}

#[test]
fn the_stored_position_claims_no_transaction_that_left_no_durable_row() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let mut reader = Reader::new(database, settings()).await;
        insert(&client, "1").await;
        let xid: String = client
            .query_one(
                "select max(xid::text::bigint)::text from outbox.events",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        for _ in 0..5 {
            sql(
                &client,
                "begin; select outbox.publish('t', 'k', 'no'); rollback",
            )
            .await;
        }
        assert_eq!(reader.all().await, [["1"]]);
        assert!(reader.all().await.is_empty());
        assert_eq!(
            reader.position.seen.xmax(),
            xid.parse::<u64>().unwrap() + 1,
            "above it nothing is known to be durable, and idle polls do not advance it"
        );
    });
}

#[test]
fn nothing_is_handed_out_before_it_is_durable() {
    within(120, async {
        // The WAL writer is slow, so an asynchronous commit stays in memory unless somebody flushes it.
        let mut postgres = own_postgres(PostgresVersion::V17, &[("wal_writer_delay", "10s")]).await;
        let database = TestDatabase::on(&postgres).await;
        let client = database.connect().await;
        let mut reader = Reader::new(&database, settings()).await;
        sql(&client, "set synchronous_commit = off").await;
        insert(&client, "asynchronous").await;
        assert_eq!(reader.all().await, [["asynchronous"]]);
        postgres.kill9().await.unwrap();
        postgres.start().await.unwrap();
        let client = database.connect().await;
        let rows: i64 = client
            .query_one("select count(*) from outbox.events", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(
            rows, 1,
            "it was handed out, so it must have survived the crash"
        );
    });
}

#[test]
fn transaction_ids_that_a_crash_gives_out_again_are_not_skipped() {
    within(120, async {
        let mut postgres = own_postgres(PostgresVersion::V17, &[("wal_writer_delay", "10s")]).await;
        let database = TestDatabase::on(&postgres).await;
        let client = database.connect().await;
        let mut reader = Reader::new(&database, settings()).await;
        insert(&client, "before").await;
        // Rolled back, nothing flushed: these ids will be given out again.
        for _ in 0..20 {
            sql(
                &client,
                "begin; select outbox.publish('t', 'k', 'no'); rollback",
            )
            .await;
        }
        // What a look would see. A look also waits until all of that is flushed, which keeps the ids from coming again:
        // a second guard, left out here, so that the first one stands alone.
        let row = client
            .query_one(
                "select pg_current_snapshot()::text, max(xid::text::bigint) from outbox.events",
                &[],
            )
            .await
            .unwrap();
        let seen: Snapshot = row.get::<_, &str>(0).parse().unwrap();
        let highest = Some(row.get::<_, i64>(1).unsigned_abs());
        reader.position.seen = seen.trimmed(&reader.position.seen, highest);
        postgres.kill9().await.unwrap();
        postgres.start().await.unwrap();
        let client = database.connect().await;
        insert(&client, "after").await;
        let again = "select max(xid::text::bigint) from outbox.events";
        let again: i64 = client.query_one(again, &[]).await.unwrap().get(0);
        assert!(
            seen.sees(again.unsigned_abs()),
            "the crash gave no id out again, so nothing is proven: {again}, {seen}"
        );
        reader.capture = TableCapture::new(settings(), &database.database()).unwrap();
        assert_eq!(reader.all().await, [["after"]]);
    });
}

#[test]
fn a_position_of_another_place_or_of_the_future_is_refused() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        insert(&client, "1").await;
        let mut reader = Reader::new(database, settings()).await;
        let good = reader.position.clone();
        let mut refused = async |change: fn(&mut Position)| {
            let mut position = good.clone();
            change(&mut position);
            match reader.capture.next(&position).await {
                Err(Fault::Position(mismatch)) => mismatch,
                other => panic!("{:?} for {position:?}", other.map(|_| ())),
            }
        };
        assert!(matches!(
            refused(|p| p.origin.system_id = "1".into()).await,
            Mismatch::System(..)
        ));
        assert!(matches!(
            refused(|p| p.origin.timeline = 9).await,
            Mismatch::Timeline(9, 1)
        ));
        assert!(matches!(
            refused(|p| p.origin.database_oid = 1).await,
            Mismatch::Database(..)
        ));
        assert!(matches!(
            refused(|p| p.origin.table = "a.b".into()).await,
            Mismatch::Table(..)
        ));
        assert!(matches!(
            refused(|p| p.origin.capture = "wal".into()).await,
            Mismatch::Capture(..)
        ));
        assert!(matches!(
            refused(|p| p.seen = "900000000:900000000:".parse().unwrap()).await,
            Mismatch::Ahead(..)
        ));
        assert_eq!(reader.all().await, [["1"]]);
    });
}

#[test]
fn a_second_name_is_refused_and_a_lost_position_is_no_first_start() {
    on_all_versions(async |database| {
        let mut reader = Reader::new(database, settings()).await;
        reader.capture.acknowledge(&reader.position).await.unwrap();
        reader.capture.acknowledge(&reader.position).await.unwrap();
        let again = TableCapture::new(settings(), &database.database())
            .unwrap()
            .genesis(Start::Beginning)
            .await
            .unwrap_err();
        assert!(
            again
                .to_string()
                .contains("registered in outbox.relay but has no position"),
            "{again}"
        );
        let other = TableSettings {
            name: "other".into(),
            ..settings()
        };
        let other = TableCapture::new(other, &database.database())
            .unwrap()
            .genesis(Start::Beginning)
            .await
            .unwrap_err();
        assert!(
            other.to_string().contains("is served by another relay"),
            "{other}"
        );
    });
}

#[test]
fn a_start_now_skips_what_is_committed_but_not_what_is_open() {
    on_all_versions(async |database| {
        let (open, client) = (database.connect().await, database.connect().await);
        sql(&open, "begin").await;
        insert(&open, "open").await;
        insert(&client, "old").await;
        let mut capture = TableCapture::new(settings(), &database.database()).unwrap();
        let position = capture.genesis(Start::Now).await.unwrap();
        let mut reader = Reader { capture, position };
        insert(&client, "new").await;
        sql(&open, "commit").await;
        let mut all = reader.all().await.concat();
        all.sort();
        assert_eq!(all, ["new", "open"]);
    });
}

#[test]
fn a_debezium_table_works_by_configuration() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        sql(&client, "create table public.outbox (id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null,
                 aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb);
             alter table public.outbox add xid xid8 not null default pg_current_xact_id(), add seq bigint generated always as identity;
             create index on public.outbox (xid, seq);
             insert into public.outbox (aggregatetype, aggregateid, type, payload) values ('order', '7', 'Created', '{\"a\": 1}')").await;
        let columns = Columns {
            aggregate_type: "aggregatetype".into(),
            aggregate_id: "aggregateid".into(),
            event_type: "type".into(),
            ..Columns::default()
        };
        let settings = TableSettings {
            table: "public.outbox".into(),
            columns,
            ..settings()
        };
        let mut capture = TableCapture::new(settings, &database.database()).unwrap();
        let position = capture.genesis(Start::Beginning).await.unwrap();
        let mut batch = capture.next(&position).await.unwrap().unwrap();
        let event = batch.next().await.unwrap().unwrap().events.remove(0);
        assert_eq!(
            (&*event.topic, event.key.as_deref()),
            ("outbox.event.order", Some(&b"7"[..]))
        );
        assert_eq!(
            (event.event_type.as_deref(), payload(&event)),
            (Some("Created"), "{\"a\": 1}".to_owned())
        );
    });
}

#[test]
fn rows_of_another_cluster_are_refused() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        sql(
            &client,
            "insert into outbox.events (xid, topic) values ('999999999', 't')",
        )
        .await;
        let fault = TableCapture::new(settings(), &database.database())
            .unwrap()
            .genesis(Start::Beginning)
            .await
            .unwrap_err();
        assert!(
            fault.to_string().contains("came from another cluster"),
            "{fault}"
        );
    });
}

#[test]
fn linger_lets_transactions_share_a_batch() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let slow = TableSettings {
            linger: Duration::from_millis(400),
            ..settings()
        };
        let mut reader = Reader::new(database, slow).await;
        insert(&client, "1").await;
        let (batch, ()) = tokio::join!(reader.batch(), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            insert(&client, "2").await;
        });
        assert_eq!(batch, [["1"], ["2"]]);
    });
}

#[test]
fn snapshot_arithmetic_agrees_with_the_server() {
    within(60, async {
        let database = TestDatabase::on(postgres_of(PostgresVersion::V17).await).await;
        let client = database.connect().await;
        for _ in 0..200 {
            let xmax = fastrand::u64(1..60);
            let mut open: Vec<u64> = (0..fastrand::usize(0..6))
                .map(|_| fastrand::u64(1..60))
                .filter(|x| *x < xmax)
                .collect();
            open.sort_unstable();
            open.dedup();
            let list = open
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",");
            let text = format!("{}:{xmax}:{list}", open.first().unwrap_or(&xmax));
            let ours: Snapshot = text.parse().unwrap();
            let rows = client
                .query(&format!("select x::bigint from generate_series(1, 64) x where pg_visible_in_snapshot(x::text::xid8, '{text}')"), &[])
                .await
                .unwrap();
            let seen: Vec<u64> = rows
                .iter()
                .map(|row| row.get::<_, i64>(0).unsigned_abs())
                .collect();
            assert_eq!(
                (1..=64).filter(|x| ours.sees(*x)).collect::<Vec<_>>(),
                seen,
                "{text}"
            );
        }
    });
}

#[test]
fn transaction_ids_are_compared_as_numbers() {
    within(60, async {
        // A young server: the step from 999 to 1000 is still ahead.
        let database = TestDatabase::on(&own_postgres(PostgresVersion::V17, &[]).await).await;
        let client = database.connect().await;
        let next = async || {
            client
                .query_one("select pg_current_xact_id()::text::bigint", &[])
                .await
                .unwrap()
                .get::<_, i64>(0)
        };
        let mut reader = Reader::new(&database, settings()).await;
        while next().await < 996 {}
        for i in 0..6 {
            insert(&client, &i.to_string()).await;
        }
        assert_eq!(
            reader.batch().await.concat(),
            ["0", "1", "2", "3", "4", "5"],
            "one window sees them all"
        );
    });
}

#[test]
fn an_idle_capture_sees_what_comes_later() {
    on_all_versions(async |database| {
        let client = database.connect().await;
        let mut reader = Reader::new(database, settings()).await;
        assert!(reader.batch().await.is_empty());
        assert!(reader.batch().await.is_empty());
        insert(&client, "at last").await;
        let mut found = Vec::new();
        until("the event", 5, async || {
            found.extend(reader.batch().await.concat());
            !found.is_empty()
        })
        .await;
        assert_eq!(found, ["at last"]);
    });
}
