//! What only the table capture has: snapshots, and transaction ids that come again.

use outbox_relay::capture::{Capture, CaptureKind, Start};
use outbox_relay::fault::Fault;
use outbox_relay::position::{Mismatch, Snapshot};
use outbox_relay::servers::PostgresVersion;

use super::place::{Place, Reader, insert, on_table, sql};
use crate::support::servers::{
    TestDatabase, own_postgres, own_postgres_with_standby, postgres_of, promote,
};
use crate::support::within;

#[test]
fn a_transaction_is_not_streamed_from_another_server_than_the_one_that_planned_it() {
    within(120, async {
        let [mut primary, standby] = own_postgres_with_standby().await;
        let mut place = Place::on(&primary, CaptureKind::Table).await;
        let on_standby = place.database.moved_to(&standby);
        place.database = place.database.or(&on_standby);
        let mut reader = Reader::new(&place, place.settings()).await;
        let large = "select outbox.publish('t', 'k', i::text) from generate_series(1, 321) i";
        sql(&place.connect().await, large).await;
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
fn the_stored_position_claims_no_transaction_that_left_no_durable_row() {
    on_table(async |place| {
        let client = place.connect().await;
        let mut reader = Reader::new(place, place.settings()).await;
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
fn transaction_ids_that_a_crash_gives_out_again_are_not_skipped() {
    within(120, async {
        let mut postgres = own_postgres(PostgresVersion::V17, &[("wal_writer_delay", "10s")]).await;
        let place = Place::on(&postgres, CaptureKind::Table).await;
        let client = place.connect().await;
        let mut reader = Reader::new(&place, place.settings()).await;
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
        let client = place.connect().await;
        insert(&client, "after").await;
        let again = "select max(xid::text::bigint) from outbox.events";
        let again: i64 = client.query_one(again, &[]).await.unwrap().get(0);
        assert!(
            seen.sees(again.unsigned_abs()),
            "the crash gave no id out again, so nothing is proven: {again}, {seen}"
        );
        reader.restart();
        assert_eq!(reader.all().await, [["after"]]);
    });
}

#[test]
fn rows_of_another_cluster_are_refused() {
    on_table(async |place| {
        let client = place.connect().await;
        sql(
            &client,
            "insert into outbox.events (xid, topic) values ('999999999', 't')",
        )
        .await;
        let fault = place
            .capture(place.settings())
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
        let place = Place::on(
            &own_postgres(PostgresVersion::V17, &[]).await,
            CaptureKind::Table,
        )
        .await;
        let client = place.connect().await;
        let next = async || {
            client
                .query_one("select pg_current_xact_id()::text::bigint", &[])
                .await
                .unwrap()
                .get::<_, i64>(0)
        };
        let mut reader = Reader::new(&place, place.settings()).await;
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
