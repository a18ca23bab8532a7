//! What only the WAL capture has: events without rows, the slot, and where the WAL goes.

use outbox_relay::capture::wal::make;
use outbox_relay::capture::{BatchLimits, Capture, CaptureSettings, Start};
use outbox_relay::event::Event;
use outbox_relay::fault::Fault;
use tokio_postgres::Client;

use super::place::{Place, Reader, insert, on_wal, sql};
use crate::support::until;

/// A reader that is registered, so that `outbox.emit` works.
async fn registered(place: &Place) -> Reader<'_> {
    let mut reader = Reader::new(place, place.settings()).await;
    reader.capture.acknowledge(&reader.position).await.unwrap();
    reader
}

async fn refusal(place: &Place, reader: &Reader<'_>) -> String {
    let mut capture = place.capture(reader.settings.clone());
    match capture.next(&reader.position).await {
        Err(fault @ Fault::Refused(_)) => fault.to_string(),
        other => panic!("not refused: {:?}", other.map(|batch| batch.is_some())),
    }
}

/// All events that are there, as they are.
async fn events(reader: &mut Reader<'_>) -> Vec<Event> {
    reader.restart();
    let mut all = Vec::new();
    while let Some(mut batch) = reader.capture.next(&reader.position).await.unwrap() {
        while let Some(slice) = batch.next().await.unwrap() {
            all.extend(slice.events);
        }
        reader.position = batch.after;
    }
    all
}

#[test]
fn emitted_events_and_rows_of_one_transaction_come_together_and_in_order() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        sql(
            &client,
            "begin;
             select outbox.publish('t', 'k', '1'::text);
             select outbox.emit('t', 'k', '2'::text);
             savepoint s; select outbox.emit('t', 'k', 'undone'::text); rollback to s;
             select outbox.publish('t', 'k', '3'::text);
             select outbox.emit('t', 'k', '4'::text);
             commit;
             begin; select outbox.emit('t', 'k', 'no'::text); rollback;
             select pg_logical_emit_message(false, 'outbox', 'of no transaction');
             select pg_logical_emit_message(true, 'another', 'of somebody else')",
        )
        .await;
        assert_eq!(reader.all().await, [["1", "2", "3", "4"]]);
    });
}

#[test]
fn an_emitted_event_is_what_a_published_one_would_be() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        let all = |function: &str| {
            format!(
                "begin;
                 select outbox.{function}('t', 'k', '\\x00ff'::bytea, 'Made', '{{\"a\": 1, \"b\": null, \"c\": \"x\"}}');
                 select outbox.{function}(null, null, null::bytea, null, null, 'order');
                 select outbox.{function}('t', 'ключ', '{{\"n\": 1}}'::jsonb, 'Made');
                 select outbox.{function}('t', 'k', ''::text);
                 commit"
            )
        };
        sql(&client, &all("publish")).await;
        sql(&client, &all("emit")).await;
        let mut all = events(&mut reader).await;
        let plain = |event: &mut Event| {
            (event.seq, event.id, event.occurred_at_ms) = (0, uuid::Uuid::nil(), 0)
        };
        let age = all
            .iter()
            .map(|event| event.occurred_at_ms.abs_diff(all[0].occurred_at_ms))
            .max();
        assert!(age.unwrap() < 60_000, "{age:?}");
        all.iter_mut().for_each(plain);
        let emitted = all.split_off(4);
        assert_eq!(all, emitted);
        assert_eq!(&*all[1].topic, "outbox.event.order");
        assert_eq!(
            (all[1].payload.as_deref(), all[3].payload.as_deref()),
            (None, Some(&b""[..]))
        );
    });
}

async fn emit(client: &Client, arguments: &str) -> String {
    let error = client
        .batch_execute(&format!("select outbox.emit({arguments})"))
        .await;
    error
        .unwrap_err()
        .as_db_error()
        .unwrap()
        .message()
        .to_owned()
}

#[test]
fn emit_raises_an_error_where_nobody_would_see_the_event() {
    on_wal(async |place| {
        let client = place.connect().await;
        let says = emit(&client, "'t', 'k', 'x'::text").await;
        assert!(says.contains("needs a relay with capture wal"), "{says}");
        let reader = registered(place).await;
        let says = emit(&client, "'a/b', 'k', 'x'::text").await;
        assert!(says.contains("no legal Kafka topic"), "{says}");
        let says = emit(&client, "null, 'k', 'x'::text").await;
        assert!(says.contains("no legal Kafka topic"), "{says}");
        let says = emit(&client, "'t', 'k', 'x'::text, null, '[1]'").await;
        assert!(says.contains("must be a JSON object"), "{says}");
        drop(reader);
        sql(&client, "update outbox.relay set capture = 'table'").await;
        let says = emit(&client, "'t', 'k', 'x'::text").await;
        assert!(says.contains("needs a relay with capture wal"), "{says}");
    });
}

#[test]
fn a_row_that_its_writer_deletes_is_published() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        sql(
            &client,
            "begin; select outbox.publish('t', 'k', '1'::text); delete from outbox.events; commit",
        )
        .await;
        assert_eq!(reader.all().await, [["1"]]);
    });
}

#[test]
fn rows_that_share_a_place_in_the_wal_are_all_there() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        sql(&client, "insert into outbox.events (topic, payload) select 't', convert_to(i::text, 'UTF8') from generate_series(1, 60) i").await;
        // COPY writes many rows with one record.
        sql(&client, "copy outbox.events (topic, payload) from program 'for i in $(seq 61 90); do echo \"t,$i\"; done' (format csv)").await;
        let read = reader.all().await;
        let expected: Vec<_> = (1..=90).map(|i| i.to_string()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read.concat(), expected);
    });
}

#[test]
fn ten_thousand_subtransactions_are_one_transaction() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        sql(
            &client,
            "do $$ begin
                for i in 1..10000 loop
                    begin
                        perform outbox.publish('t', 'k', i::text);
                        if i % 3 = 0 then raise exception 'undone'; end if;
                    exception when raise_exception then null;
                    end;
                end loop;
             end $$",
        )
        .await;
        let expected: Vec<_> = (1..=10_000)
            .filter(|i| i % 3 != 0)
            .map(|i| i.to_string())
            .collect();
        assert_eq!(reader.all().await, [expected]);
    });
}

#[test]
fn a_slot_that_can_not_serve_the_position_is_refused() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        insert(&client, "1").await;
        let slot = place.settings().slot;
        // Something else reads from it.
        reader.restart();
        let skip = format!("select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
        until("the slot is free", 5, async || {
            client.batch_execute(&skip).await.is_ok()
        })
        .await;
        let says = refusal(place, &reader).await;
        assert!(says.contains("ahead of the position"), "{says}");
        // It is gone; and made anew.
        sql(
            &client,
            &format!("select pg_drop_replication_slot('{slot}')"),
        )
        .await;
        let says = refusal(place, &reader).await;
        assert!(says.contains("there is no replication slot"), "{says}");
        let made = make::make_slot(&place.at(), &place.settings(), |_| ())
            .await
            .unwrap();
        assert!(made.is_some());
        let says = refusal(place, &reader).await;
        assert!(says.contains("ahead of the position"), "{says}");
        sql(&client, &format!("drop publication \"{slot}\"")).await;
        let says = refusal(place, &reader).await;
        assert!(says.contains("there is no publication"), "{says}");
    });
}

#[test]
fn a_first_start_at_the_beginning_needs_a_stream_that_has_all_rows() {
    on_wal(async |place| {
        let client = place.connect().await;
        insert(&client, "streamed").await;
        let mut later = CaptureSettings {
            slot: format!("{}_later", place.database.name),
            ..place.settings()
        };
        place.prepare(&later).await;
        let fault = place
            .capture(later.clone())
            .genesis(Start::Beginning)
            .await
            .unwrap_err();
        assert!(
            fault.to_string().contains("older than replication slot"),
            "{fault}"
        );
        later.slot += "_by_hand";
        let slot = &later.slot;
        sql(
            &client,
            &format!("create publication \"{slot}\" for table outbox.events"),
        )
        .await;
        sql(
            &client,
            &format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
        )
        .await;
        let fault = place
            .capture(later)
            .genesis(Start::Beginning)
            .await
            .unwrap_err();
        assert!(
            fault.to_string().contains("was not made by outbox-relay"),
            "{fault}"
        );
        let mut reader = Reader::new(place, place.settings()).await;
        assert_eq!(reader.all().await, [["streamed"]]);
    });
}

#[test]
fn a_slot_that_was_left_half_made_is_made_again_and_a_foreign_one_is_left_alone() {
    on_wal(async |place| {
        let client = place.connect().await;
        let slot = place.settings().slot;
        let make = async || make::make_slot(&place.at(), &place.settings(), |_| ()).await;
        assert_eq!(make().await.unwrap(), None);
        sql(&client, "update outbox.slots set consistent_lsn = null").await;
        assert!(make().await.unwrap().is_some());
        sql(&client, "delete from outbox.slots").await;
        let fault = make().await.unwrap_err().to_string();
        assert!(
            fault.contains("was not made by outbox-relay") && fault.contains(&slot),
            "{fault}"
        );
    });
}

#[test]
fn the_printed_sql_makes_what_init_makes() {
    on_wal(async |place| {
        let client = place.connect().await;
        let settings = CaptureSettings {
            slot: format!("{}_printed", place.database.name),
            ..place.settings()
        };
        // One at a time, as psql runs them.
        for statement in make::script(&settings).split_inclusive(";\n") {
            sql(&client, statement).await;
        }
        let mut reader = Reader::new(place, settings).await;
        insert(&client, "1").await;
        assert_eq!(reader.all().await, [["1"]]);
    });
}

#[test]
fn an_idle_outbox_moves_on_while_others_write_and_its_slot_with_it() {
    on_wal(async |place| {
        let client = place.connect().await;
        let mut reader = registered(place).await;
        sql(&client, "create table noise (t text)").await;
        let before = reader.position.streamed.clone().unwrap().lsn;
        // 24 MB.
        let noise =
            "insert into noise select repeat(md5(i::text), 30) from generate_series(1, 24000) i";
        sql(&client, noise).await;
        until("the position moves on", 20, async || {
            assert!(reader.batch().await.is_empty(), "there are no events");
            u64::from(reader.position.streamed.clone().unwrap().lsn)
                > u64::from(before) + (16 << 20)
        })
        .await;
        reader.capture.acknowledge(&reader.position).await.unwrap();
        let stands_at = reader.position.streamed.clone().unwrap().lsn;
        let slot = place.settings().slot;
        let confirmed = format!(
            "select confirmed_flush_lsn = '{stands_at}' from pg_replication_slots where slot_name = '{slot}'"
        );
        until("the slot too", 5, async || {
            client.query_one(&confirmed, &[]).await.unwrap().get(0)
        })
        .await;
    });
}

#[test]
fn a_position_says_which_transactions_it_stands_for() {
    on_wal(async |place| {
        let client = place.connect().await;
        let open = place.connect().await;
        let small = CaptureSettings {
            batch: BatchLimits {
                events_max: 3,
                bytes_max: 1 << 20,
                transactions_max: u64::MAX,
            },
            ..place.settings()
        };
        let mut reader = Reader::new(place, small).await;
        sql(
            &open,
            "begin; select outbox.publish('t', 'k', 'open'::text)",
        )
        .await;
        let mut read = 0;
        // Long enough for snapshots to take the place of the list.
        until("fresh snapshots", 30, async || {
            insert(&client, "x").await;
            read += reader.batch().await.len();
            reader.position.seen.xmax() > 1 && read > 20
        })
        .await;
        read += reader.all().await.len();
        let rows = "select xid::text::bigint from outbox.events";
        let rows = client.query(rows, &[]).await.unwrap();
        assert_eq!(rows.len(), read);
        for row in rows {
            let xid = row.get::<_, i64>(0).unsigned_abs();
            assert!(
                reader.position.covers(xid, 0),
                "{xid} {:?}",
                reader.position
            );
        }
        let own = "select pg_current_xact_id()::text";
        let own: String = open.query_one(own, &[]).await.unwrap().get(0);
        assert!(!reader.position.covers(own.parse().unwrap(), 0));
        sql(&open, "commit").await;
        assert_eq!(reader.all().await, [["open"]]);
        assert!(reader.position.covers(own.parse().unwrap(), 0));
    });
}
