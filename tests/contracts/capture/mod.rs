//! The contract of `Capture`: one suite for both, against PostgreSQL 14, 15, 17 and 18. What only one of them has is beside it.

mod login;
mod place;
mod table;
mod wal;

use std::time::Duration;

use outbox_relay::capture::{BatchLimits, Capture, CaptureKind, CaptureSettings, Columns, Start};
use outbox_relay::fault::Fault;
use outbox_relay::position::{Mismatch, Position};
use outbox_relay::servers::PostgresVersion;

pub use self::place::{Place, insert, on_table, settings, sql};
use self::place::{Reader, on_all, payload};
use crate::support::servers::own_postgres;
use crate::support::{until, within};

#[test]
fn a_late_commit_is_not_skipped_and_delays_nobody() {
    on_all(async |place| {
        let (slow, fast) = (place.connect().await, place.connect().await);
        let mut reader = Reader::new(place, place.settings()).await;
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
    on_all(async |place| {
        let client = place.connect().await;
        let mut reader = Reader::new(place, place.settings()).await;
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
    on_all(async |place| {
        let (first, second) = (place.connect().await, place.connect().await);
        let mut reader = Reader::new(place, place.settings()).await;
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
fn a_backlog_is_cut_between_transactions_and_resumed_in_its_middle() {
    on_all(async |place| {
        let client = place.connect().await;
        let late = place.connect().await;
        let small = CaptureSettings {
            batch: BatchLimits {
                events_max: 5,
                bytes_max: 1 << 20,
                transactions_max: u64::MAX,
            },
            ..place.settings()
        };
        let mut reader = Reader::new(place, small).await;
        sql(&late, "begin").await;
        insert(&late, "late").await;
        for i in 0..6 {
            sql(&client, &format!("begin; select outbox.publish('t', 'k', '{i}a'); select outbox.publish('t', 'k', '{i}b'); commit")).await;
        }
        let mut read = Vec::new();
        until("a first batch", 5, async || {
            read.extend(reader.batch().await);
            !read.is_empty()
        })
        .await;
        assert!(read.len() <= 2, "five events at most: {read:?}");
        // A restart in the middle; meanwhile a transaction commits whose seq lies below the place reached.
        sql(&late, "commit").await;
        reader.restart();
        read.extend(reader.all().await);
        let mut expected: Vec<_> = (0..6)
            .map(|i| vec![format!("{i}a"), format!("{i}b")])
            .collect();
        expected.push(vec!["late".to_owned()]);
        assert_eq!(read, expected);
        assert!(reader.all().await.is_empty());
    });
}

#[test]
fn a_transaction_beyond_the_limits_streams_whole_and_alone() {
    on_all(async |place| {
        let client = place.connect().await;
        let small = CaptureSettings {
            batch: BatchLimits {
                events_max: 50,
                bytes_max: 1 << 20,
                transactions_max: u64::MAX,
            },
            ..place.settings()
        };
        let mut reader = Reader::new(place, small).await;
        insert(&client, "before").await;
        sql(
            &client,
            "select outbox.publish('t', 'k', i::text) from generate_series(1, 321) i",
        )
        .await;
        insert(&client, "after").await;
        // That it is alone in its batch is checked of every batch.
        let large: Vec<_> = (1..=321).map(|i| i.to_string()).collect();
        let expected = [vec!["before".to_owned()], large, vec!["after".to_owned()]];
        assert_eq!(reader.all().await, expected);
    });
}

#[test]
fn bytes_limit_a_batch_too() {
    on_all(async |place| {
        let client = place.connect().await;
        let small = CaptureSettings {
            batch: BatchLimits {
                events_max: 1000,
                bytes_max: 2500,
                transactions_max: u64::MAX,
            },
            ..place.settings()
        };
        let mut reader = Reader::new(place, small).await;
        for _ in 0..5 {
            sql(
                &client,
                "select outbox.publish('t', 'k', repeat('x', 1000))",
            )
            .await;
        }
        let mut found = 0;
        until("all five", 5, async || {
            let batch = reader.batch().await.len();
            assert!(batch <= 2, "{batch} thousand bytes");
            found += batch;
            found == 5
        })
        .await;
    });
}

#[test]
fn a_cancelled_read_loses_nothing() {
    on_all(async |place| {
        let client = place.connect().await;
        let small = CaptureSettings {
            batch: BatchLimits {
                events_max: 3,
                bytes_max: 1 << 20,
                transactions_max: u64::MAX,
            },
            ..place.settings()
        };
        let mut reader = Reader::new(place, small).await;
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
            read.extend(reader.batch().await.concat());
            if read.len() >= 40 {
                break;
            }
        }
        assert!(reader.all().await.is_empty());
        assert_eq!(read, (0..40).map(|i| i.to_string()).collect::<Vec<_>>());
    });
}

#[test]
fn nothing_is_handed_out_before_it_is_durable() {
    within(120, async {
        // The WAL writer is slow, so an asynchronous commit stays in memory unless somebody flushes it.
        let mut postgres = own_postgres(PostgresVersion::V17, &[("wal_writer_delay", "10s")]).await;
        for kind in [CaptureKind::Table, CaptureKind::Wal] {
            let place = Place::on(&postgres, kind).await;
            let client = place.connect().await;
            let mut reader = Reader::new(&place, place.settings()).await;
            sql(&client, "set synchronous_commit = off").await;
            insert(&client, "asynchronous").await;
            assert_eq!(reader.all().await, [["asynchronous"]]);
            postgres.kill9().await.unwrap();
            postgres.start().await.unwrap();
            let client = place.connect().await;
            let rows = client.query_one("select count(*) from outbox.events", &[]);
            let rows: i64 = rows.await.unwrap().get(0);
            assert_eq!(
                rows, 1,
                "it was handed out, so it must have survived the crash"
            );
            // The slot's own place went back; the position did not.
            assert!(reader.all().await.is_empty());
        }
    });
}

#[test]
fn a_position_of_another_place_or_of_the_future_is_refused() {
    on_all(async |place| {
        let client = place.connect().await;
        insert(&client, "1").await;
        let mut reader = Reader::new(place, place.settings()).await;
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
            refused(|p| p.origin.capture = "another".into()).await,
            Mismatch::Capture(..)
        ));
        assert!(matches!(
            refused(|p| p.seen = "900000000:900000000:".parse().unwrap()).await,
            Mismatch::Ahead(..)
        ));
        if place.kind == CaptureKind::Wal {
            let mismatch = refused(|p| {
                p.streamed.as_mut().unwrap().lsn = "FFFF/0".parse().unwrap();
            });
            assert!(matches!(mismatch.await, Mismatch::AheadInWal(..)));
        }
        assert_eq!(reader.all().await, [["1"]]);
    });
}

#[test]
fn a_second_name_is_refused_and_a_lost_position_is_no_first_start() {
    on_all(async |place| {
        let mut reader = Reader::new(place, place.settings()).await;
        reader.capture.acknowledge(&reader.position).await.unwrap();
        reader.capture.acknowledge(&reader.position).await.unwrap();
        let again = place
            .capture(place.settings())
            .genesis(Start::Beginning)
            .await
            .unwrap_err();
        assert!(
            again
                .to_string()
                .contains("registered in outbox.relay but has no position"),
            "{again}"
        );
        let other = CaptureSettings {
            name: "other".into(),
            ..place.settings()
        };
        let other = place
            .capture(other)
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
    on_all(async |place| {
        let (open, client) = (place.connect().await, place.connect().await);
        sql(&open, "begin").await;
        insert(&open, "open").await;
        insert(&client, "old").await;
        let mut reader = Reader::new(place, place.settings()).await;
        reader.position = reader.capture.genesis(Start::Now).await.unwrap();
        insert(&client, "new").await;
        sql(&open, "commit").await;
        let mut all = reader.all().await.concat();
        all.sort();
        assert_eq!(all, ["new", "open"]);
    });
}

#[test]
fn a_debezium_table_works_by_configuration() {
    on_all(async |place| {
        let client = place.connect().await;
        sql(&client, "create table public.outbox (id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null,
                 aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb);
             alter table public.outbox add xid xid8 not null default pg_current_xact_id(), add seq bigint generated always as identity;
             create index on public.outbox (xid, seq)").await;
        let columns = Columns {
            aggregate_type: "aggregatetype".into(),
            aggregate_id: "aggregateid".into(),
            event_type: "type".into(),
            ..Columns::default()
        };
        let settings = CaptureSettings {
            table: "public.outbox".into(),
            columns,
            slot: format!("{}_debezium", place.database.name),
            ..place.settings()
        };
        place.prepare(&settings).await;
        sql(&client, "insert into public.outbox (aggregatetype, aggregateid, type, payload) values ('order', '7', 'Created', '{\"a\": 1}')").await;
        let mut capture = place.capture(settings);
        let position = capture.genesis(Start::Beginning).await.unwrap();
        let mut batch = None;
        until("a batch", 5, async || {
            batch = capture.next(&position).await.unwrap();
            batch.is_some()
        })
        .await;
        let mut batch = batch.unwrap();
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
fn linger_lets_transactions_share_a_batch() {
    on_all(async |place| {
        let client = place.connect().await;
        let slow = CaptureSettings {
            linger: Duration::from_millis(1_500),
            ..place.settings()
        };
        let mut reader = Reader::new(place, slow).await;
        insert(&client, "1").await;
        if place.kind == CaptureKind::Wal {
            // Past what it must bring first.
            assert_eq!(reader.all().await, [["1"]]);
            insert(&client, "1").await;
        }
        let (batch, ()) = tokio::join!(reader.batch(), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            insert(&client, "2").await;
        });
        assert_eq!(batch, [["1"], ["2"]]);
    });
}

#[test]
fn an_idle_capture_sees_what_comes_later() {
    on_all(async |place| {
        let client = place.connect().await;
        let mut reader = Reader::new(place, place.settings()).await;
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
