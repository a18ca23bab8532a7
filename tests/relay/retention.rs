//! What was published long enough ago is deleted, and nothing else; writers never wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outbox_relay::capture::{CaptureKind, CaptureSettings};
use outbox_relay::fault::Fault;
use outbox_relay::lease::Lease;
use outbox_relay::position::Position;
use outbox_relay::retention::{RetentionSettings, start};
use outbox_relay::{init, ring, verify};
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::failover::moved;
use crate::support::process::binary;
use crate::support::scene::{Scene, clean};
use crate::support::servers::{
    TestDatabase, keep_slots, own_postgres_with_standby, promote, slots_are_kept,
};
use crate::support::writers::{Load, Writers, set_up, use_case};
use crate::support::{until, within};

/// The shape of the outbox table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Plain,
    /// With so many rows in a leaf.
    Ring(u32),
}

/// One test for each capture and each shape of the table.
macro_rules! everywhere {
    ($seconds:literal, $test:ident) => {
        mod $test {
            use super::{Table, within};
            use outbox_relay::capture::CaptureKind;

            #[test]
            fn table() {
                within($seconds, super::$test(CaptureKind::Table, Table::Plain));
            }

            #[test]
            fn wal() {
                within($seconds, super::$test(CaptureKind::Wal, Table::Plain));
            }

            #[test]
            fn table_in_a_ring() {
                within($seconds, super::$test(CaptureKind::Table, Table::Ring(10)));
            }

            #[test]
            fn wal_in_a_ring() {
                within($seconds, super::$test(CaptureKind::Wal, Table::Ring(10)));
            }
        }
    };
}

/// A relay that keeps published rows for a minute.
async fn scene(capture: CaptureKind, table: Table) -> Scene {
    on(TestDatabase::new().await, capture, table).await
}

async fn on(database: TestDatabase, capture: CaptureKind, table: Table) -> Scene {
    if let Table::Ring(leaf_rows) = table {
        assert!(ring::make(&database.database(), leaf_rows).await.unwrap());
    }
    let mut scene = Scene::on(database, capture).await;
    scene.relay = scene.relay.with(&["--retention-minutes", "1"]);
    scene
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn holds(client: &Client) -> i64 {
    number(client, "select count(*) from outbox.events").await
}

async fn holds_only(client: &Client, rows: i64) {
    until("what may go is gone", 30, async || {
        holds(client).await == rows
    })
    .await;
}

/// So many transactions of one event, each acknowledged.
async fn publish(scene: &Scene, name: &str, transactions: i64) {
    for i in 0..transactions {
        scene.commit(&format!("{name}{i}"), 1, 1).await;
    }
    until("all is acknowledged", 30, async || {
        let client = scene.database.connect().await;
        scene.acknowledged("true", &[]).await == holds(&client).await
    })
    .await;
}

/// As if a day went by.
async fn age(client: &Client) {
    age_by(client, "1 day").await;
}

/// As if so much time went by. Marks that are old are old enough, however often this is done.
async fn age_by(client: &Client, time: &str) {
    let age = format!(
        "update outbox.marks set at = at - interval '{time}' where at > now() - interval '30 minutes'"
    );
    client.batch_execute(&age).await.unwrap();
}

/// As if a day went by since all that is published was, and was marked.
async fn age_all(client: &Client) {
    age_all_by(client, "1 day").await;
}

async fn age_all_by(client: &Client, time: &str) {
    let marked = "select exists (select from outbox.marks m join outbox.relay r using (name) where m.position = r.position)";
    until("all is marked", 20, async || {
        // Else there is no new mark within a minute.
        age_by(client, time).await;
        client.query_one(marked, &[]).await.unwrap().get(0)
    })
    .await;
    age_by(client, time).await;
}

/// A lease that is always held.
#[derive(Clone)]
struct Held;

impl Lease for Held {
    async fn try_acquire(&self) -> Result<bool, Fault> {
        Ok(true)
    }

    fn held(&self) -> Result<(), Fault> {
        Ok(())
    }

    async fn prove(&self) -> Result<(), Fault> {
        Ok(())
    }

    async fn release(&self) {}
}

/// The acknowledged position as a mark of so long ago.
async fn mark(client: &Client, ago: &str) {
    let mark = format!(
        "insert into outbox.marks (name, at, position) select name, now() - interval '{ago}', position from outbox.relay"
    );
    client.batch_execute(&mark).await.unwrap();
}

/// Retention alone, for the relay that acknowledged last, until this many rows are left. Nothing is published meanwhile.
async fn without_a_relay(scene: &Scene, client: &Client, left: i64) {
    let outbox = scene.relay.options().outbox().unwrap();
    let holder =
        "update outbox.relay set started_at = now() - interval '100 years' returning lease_holder";
    let settings = RetentionSettings {
        minutes: 1,
        outbox: CaptureSettings {
            instance: client.query_one(holder, &[]).await.unwrap().get(0),
            ..outbox
        },
        database: scene.database.database(),
    };
    mark(client, "1 hour").await;
    let retention = start(settings, Held);
    holds_only(client, left).await;
    // Another mark is gone by to its end, so that this one is not needed any more: what had to go has gone.
    mark(client, "2 minutes").await;
    let done = "select count(*) from outbox.marks where at < now() - interval '30 minutes'";
    until("it is gone by", 20, async || {
        number(client, done).await == 0
    })
    .await;
    drop(retention);
    assert_eq!(holds(client).await, left);
}

everywhere!(120, what_was_published_long_ago_goes_and_nothing_else);

async fn what_was_published_long_ago_goes_and_nothing_else(capture: CaptureKind, table: Table) {
    let scene = scene(capture, table).await;
    set_up(&scene.database, 3).await;
    let client = scene.database.connect().await;
    let relay = scene.relay.start().await;
    publish(&scene, "old", 30).await;
    age_all(&client).await;
    match table {
        Table::Plain => {
            publish(&scene, "young", 5).await;
            holds_only(&client, 5).await;
        }
        // The leaf that the young ones came to goes as a whole, later.
        Table::Ring(_) => {
            holds_only(&client, 0).await;
            publish(&scene, "young", 5).await;
        }
    }
    relay.terminate().await;
    let settings = scene.relay.options().settle().unwrap();
    let verified = verify::verify(&settings).await.unwrap();
    assert!(verified.clean, "{}", verified.text());
    // No relay publishes these. Of a ring the leaf that holds the first of them keeps what it has.
    for i in 0..20 {
        scene.commit(&format!("unpublished{i}"), 2, 1).await;
    }
    let since = number(&client, "select last_value from outbox.events_seq_seq").await - 19;
    let left = match table {
        Table::Plain => 20,
        Table::Ring(leaf_rows) => {
            let leaf_rows = i64::from(leaf_rows);
            number(&client, &format!("select count(*) from outbox.events where seq / {leaf_rows} >= {since} / {leaf_rows}")).await
        }
    };
    without_a_relay(&scene, &client, left).await;
    clean(&scene.check().await, 55);
}

#[test]
fn rows_stay_as_long_as_they_are_to_stay() {
    within(120, async {
        let mut scene = Scene::of(CaptureKind::Table).await;
        scene.relay = scene.relay.with(&["--retention-minutes", "120"]);
        set_up(&scene.database, 3).await;
        let client = scene.database.connect().await;
        let relay = scene.relay.start().await;
        publish(&scene, "old", 5).await;
        age_all(&client).await;
        holds_only(&client, 0).await;
        publish(&scene, "young", 5).await;
        age_all_by(&client, "1 hour").await;
        let looked = "select (extract(epoch from max(query_start)) * 1000)::bigint from pg_stat_activity
                      where application_name = 'outbox-relay retention' and datname = current_database()";
        for _ in 0..2 {
            let last = number(&client, looked).await;
            until("it looks again", 20, async || {
                number(&client, looked).await > last
            })
            .await;
        }
        assert_eq!(holds(&client).await, 5, "an hour is too short");
        let two_hours = "update outbox.marks set at = at - interval '61 minutes'";
        client.batch_execute(two_hours).await.unwrap();
        holds_only(&client, 0).await;
        relay.terminate().await;
    });
}

everywhere!(
    120,
    a_transaction_that_commits_late_stays_until_it_is_published
);

async fn a_transaction_that_commits_late_stays_until_it_is_published(
    capture: CaptureKind,
    table: Table,
) {
    let scene = scene(capture, table).await;
    set_up(&scene.database, 3).await;
    let (client, late) = (
        scene.database.connect().await,
        scene.database.connect().await,
    );
    let relay = scene.relay.start().await;
    publish(&scene, "early", 3).await;
    late.batch_execute("begin").await.unwrap();
    let insert = use_case("late", &scene.prefix, 3, 3, false);
    late.batch_execute(&insert).await.unwrap();
    publish(&scene, "others", 30).await;
    let xid = number(&late, "select pg_current_xact_id()::text::bigint").await;
    age_all(&client).await;
    let newest = "select position::text from outbox.marks order by at desc limit 1";
    let marked: String = client.query_one(newest, &[]).await.unwrap().get(0);
    let marked: Position = serde_json::from_str(&marked).unwrap();
    let seen = marked.as_table().map_or(marked.seen, |it| it.seen);
    let open = u64::try_from(xid).unwrap();
    assert!(!seen.sees(open) && open < seen.xmax(), "{xid}: {seen}");
    relay.kill9().await;
    late.batch_execute("commit").await.unwrap();
    // With the late ones a ring keeps what is in their leaf.
    let left = match table {
        Table::Plain => 3,
        Table::Ring(_) => {
            let leaf = "select count(*) from outbox.events where seq / 10 in (select seq / 10 from outbox.events where xid = $1::text::xid8)";
            client
                .query_one(leaf, &[&xid.to_string()])
                .await
                .unwrap()
                .get(0)
        }
    };
    without_a_relay(&scene, &client, left).await;
    clean(&scene.check().await, 34);
}

everywhere!(180, a_relay_that_is_killed_while_rows_are_deleted);

async fn a_relay_that_is_killed_while_rows_are_deleted(capture: CaptureKind, table: Table) {
    let table = match table {
        Table::Plain => table,
        Table::Ring(_) => Table::Ring(200),
    };
    let scene = scene(capture, table).await;
    let load = Load {
        writers: 10,
        ..Load::default()
    };
    let writers = Writers::start(&scene.database, &scene.prefix, load).await;
    let client = scene.database.connect().await;
    let stop = AtomicBool::new(false);
    let time_flies = async {
        while !stop.load(Ordering::Relaxed) {
            age(&client).await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let kills = async {
        for _ in 0..8 {
            let relay = scene.relay.start().await;
            relay.says("deleted what was published before").await;
            sleep(Duration::from_millis(fastrand::u64(0..500))).await;
            relay.kill9().await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(time_flies, kills);
    writers.stop().await;
    clean(&scene.check().await, 200);
    let gone = number(
        &client,
        "select (select count(*) from ledger) - (select count(*) from outbox.events)",
    );
    assert!(gone.await > 200);
}

everywhere!(120, nobody_waits_for_a_lock);

async fn nobody_waits_for_a_lock(capture: CaptureKind, table: Table) {
    let table = match table {
        Table::Plain => table,
        Table::Ring(_) => Table::Ring(100_000),
    };
    let scene = scene(capture, table).await;
    set_up(&scene.database, 3).await;
    let (client, open, writer) = (
        scene.database.connect().await,
        scene.database.connect().await,
        scene.database.connect().await,
    );
    let relay = scene.relay.start().await;
    publish(&scene, "old", 10).await;
    open.batch_execute("begin").await.unwrap();
    let insert = use_case("open", &scene.prefix, 2, 1, false);
    open.batch_execute(&insert).await.unwrap();
    age_all(&client).await;
    // Another writer goes on beside the open one; what it writes is rolled back, so that all that is there may go.
    let insert = "begin; set local lock_timeout = '50ms'; select outbox.publish('t', 'k', 'v'::text); rollback";
    let waits = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                 where not granted and relation is not null and datname = current_database()";
    let tried = "select count(*) from pg_stat_activity where application_name = 'outbox-relay retention' and datname = current_database()
                 and (query like '%lock table only%' or query like '%delete from only%')";
    let (since, mut was_tried) = (Instant::now(), false);
    while since.elapsed() < Duration::from_secs(6) || !was_tried {
        assert_eq!(number(&client, waits).await, 0, "somebody waits for a lock");
        writer.batch_execute(insert).await.unwrap();
        was_tried |= number(&client, tried).await > 0;
    }
    let left = match table {
        Table::Plain => 0,
        Table::Ring(_) => 10,
    };
    holds_only(&client, left).await;
    open.batch_execute("commit").await.unwrap();
    until("all is acknowledged", 20, async || {
        scene.acknowledged("true", &[]).await == left + 1
    })
    .await;
    age_all(&client).await;
    holds_only(&client, 0).await;
    relay.terminate().await;
    clean(&scene.check().await, 11);
}

everywhere!(120, what_is_parked_stays_until_it_is_settled);

async fn what_is_parked_stays_until_it_is_settled(capture: CaptureKind, table: Table) {
    let scene = scene(capture, table).await;
    set_up(&scene.database, 3).await;
    let client = scene.database.connect().await;
    let relay = scene.relay.start().await;
    publish(&scene, "old", 25).await;
    relay.terminate().await;
    // One in each leaf of the ring.
    let park = "insert into outbox.parked (relay, tx_id, xid, state, events)
                select r.name, e.seq, e.xid, s.state, 1 from outbox.relay r, (values (3, 'parked'), (13, 'held'), (23, 'pending')) s (seq, state)
                join outbox.events e using (seq)";
    client.batch_execute(park).await.unwrap();
    let left = match table {
        Table::Plain => 3,
        Table::Ring(_) => 25,
    };
    without_a_relay(&scene, &client, left).await;
    let settle = "update outbox.parked set state = case state when 'held' then 'discarded' else 'published' end where state <> 'pending'";
    client.batch_execute(settle).await.unwrap();
    let left = match table {
        Table::Plain => 1,
        Table::Ring(_) => {
            number(
                &client,
                "select count(*) from outbox.events where seq >= 20",
            )
            .await
        }
    };
    without_a_relay(&scene, &client, left).await;
    scene.drop_slots().await;
}

both_captures!(
    180,
    after_a_promotion_marks_of_the_old_timeline_delete_nothing
);

async fn after_a_promotion_marks_of_the_old_timeline_delete_nothing(capture: CaptureKind) {
    let [mut primary, standby] = own_postgres_with_standby().await;
    keep_slots(&primary, &standby).await;
    let scene = on(TestDatabase::on(&primary).await, capture, Table::Plain).await;
    set_up(&scene.database, 3).await;
    let relay = scene.relay.start().await;
    if capture == CaptureKind::Wal {
        // A slot that stands before what the standby still has is kept once it has moved on.
        let moves_on = async {
            for i in 0.. {
                publish(&scene, &format!("more{i}-"), 1).await;
            }
        };
        tokio::select! {
            () = slots_are_kept(&primary, &standby) => {}
            () = moves_on => {}
        }
    }
    publish(&scene, "before", 20).await;
    let before = holds(&scene.database.connect().await).await;
    relay.terminate().await;
    primary.stop_fast().await.unwrap();
    promote(&standby).await;
    let scene = moved(scene, &standby);
    let client = scene.database.connect().await;
    age(&client).await;
    let relay = scene.relay.start().await;
    relay.says("nothing is deleted yet: the newest position that is old enough does not belong here: it was made on timeline 1").await;
    assert_eq!(holds(&client).await, before);
    publish(&scene, "after", 5).await;
    age_all(&client).await;
    holds_only(&client, 0).await;
    relay.terminate().await;
    clean(&scene.check().await, 25);
}

#[test]
fn a_ring_that_is_too_small_loses_its_rows_one_by_one() {
    within(60, async {
        let scene = scene(CaptureKind::Table, Table::Ring(1)).await;
        set_up(&scene.database, 3).await;
        let client = scene.database.connect().await;
        let relay = scene.relay.start().await;
        publish(&scene, "lap", 20).await;
        relay.terminate().await;
        // Two more laps, which stay.
        for i in 0..32 {
            scene.commit(&format!("unpublished{i}"), 2, 1).await;
        }
        without_a_relay(&scene, &client, 32).await;
        clean(&scene.check().await, 52);
    });
}

#[test]
fn marks_that_nobody_needs_go_but_for_the_first() {
    within(60, async {
        let scene = scene(CaptureKind::Table, Table::Plain).await;
        set_up(&scene.database, 3).await;
        let client = scene.database.connect().await;
        let relay = scene.relay.start().await;
        publish(&scene, "old", 3).await;
        let year = "update outbox.relay set started_at = now() - interval '1 year';
                    update outbox.marks set at = now() - interval '1 year';
                    insert into outbox.marks (name, at, position)
                    select name, now() - n * interval '1 hour', position from outbox.relay, generate_series(1, 3000) n";
        client.batch_execute(year).await.unwrap();
        holds_only(&client, 0).await;
        let marks = "select count(*) from outbox.marks where at < now() - interval '1 minute'";
        until("the first and the last are left", 20, async || {
            number(&client, marks).await == 2
        })
        .await;
        relay.terminate().await;
    });
}

/// A role with what the documents grant, and nothing else.
const GRANTS: &str = "
create role {role} login;
grant usage on schema outbox to {role};
grant select on outbox.events to {role};
grant select, insert, update on outbox.relay to {role};
grant select, insert on outbox.marks to {role};
grant select, insert, update, delete on outbox.parked, outbox.parked_events, outbox.parked_audit to {role};";
const GRANTS_TO_DELETE: &str = "
grant delete on outbox.events, outbox.marks to {role};
do $$ declare leaf regclass; begin
    for leaf in select inhrelid::regclass from pg_inherits where inhparent = 'outbox.events'::regclass loop
        execute format('grant select, delete, truncate on %s to {role}', leaf);
    end loop;
end $$;";

async fn with_the_documented_privileges(table: Table) {
    let mut scene = scene(CaptureKind::Table, table).await;
    set_up(&scene.database, 3).await;
    let client = scene.database.connect().await;
    let role = format!("{}_relay", scene.database.name);
    let grant = |sql: &str| sql.replace("{role}", &role);
    client.batch_execute(&grant(GRANTS)).await.unwrap();
    scene.relay.database_url = scene
        .relay
        .database_url
        .replace("postgres@", &format!("{role}@"));
    assert!(scene.relay.database_url.contains(&role));
    let relay = scene.relay.start().await;
    publish(&scene, "old", 30).await;
    age_all(&client).await;
    // It goes on, and says what it may not.
    relay
        .says("published rows are not deleted: PostgreSQL: permission denied")
        .await;
    publish(&scene, "more", 5).await;
    client
        .batch_execute(&grant(GRANTS_TO_DELETE))
        .await
        .unwrap();
    age_all(&client).await;
    holds_only(&client, 0).await;
    relay.terminate().await;
    clean(&scene.check().await, 35);
}

#[test]
fn a_relay_that_may_not_delete_says_so_and_goes_on() {
    within(90, with_the_documented_privileges(Table::Plain));
}

#[test]
fn a_relay_that_may_not_truncate_says_so_and_goes_on() {
    within(90, with_the_documented_privileges(Table::Ring(10)));
}

async fn init_partitioned(database: &TestDatabase, more: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary())
        .args(["init", "--partitioned", "--database-url", &database.url])
        .args(more)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn a_table_with_rows_is_not_made_a_ring() {
    within(60, async {
        let scene = Scene::new().await;
        set_up(&scene.database, 3).await;
        scene.commit("row", 1, 1).await;
        let client = scene.database.connect().await;
        let (code, said) = init_partitioned(&scene.database, &[]).await;
        assert!(code == Some(3) && said.contains("holds rows"), "{said}");
        client
            .batch_execute("truncate outbox.events; create publication p for table outbox.events")
            .await
            .unwrap();
        let (code, said) = init_partitioned(&scene.database, &[]).await;
        assert!(
            code == Some(3) && said.contains("in publication p"),
            "{said}"
        );
        client.batch_execute("drop publication p").await.unwrap();
        let (code, said) = init_partitioned(&scene.database, &["--leaf-rows", "7"]).await;
        assert!(
            code == Some(0) && said.contains("16 leaves of 7 rows"),
            "{said}"
        );
        let (code, said) = init_partitioned(&scene.database, &[]).await;
        assert!(
            code == Some(0) && said.contains("partitioned already"),
            "{said}"
        );
        let (code, said) = init_partitioned(&scene.database, &["--table", "public.outbox"]).await;
        assert!(
            code == Some(2) && said.contains("leave one of the two out"),
            "{said}"
        );
    });
}

#[test]
fn the_printed_sql_makes_the_same_ring() {
    within(60, async {
        let database = TestDatabase::new().await;
        let (code, said) = init_partitioned(&database, &["--print-sql", "--leaf-rows", "7"]).await;
        assert_eq!(
            (code, said.as_str()),
            (Some(0), init::script(Some(&ring::script(7))).as_str())
        );
        let client = database.connect().await;
        client
            .batch_execute("drop schema outbox cascade")
            .await
            .unwrap();
        client.batch_execute(&said).await.unwrap();
        let shape = "select string_agg(pg_get_partkeydef(partrelid), ''), (select count(*) from pg_inherits where inhparent = 'outbox.events'::regclass)
                     from pg_partitioned_table";
        let row = client.query_one(shape, &[]).await.unwrap();
        assert_eq!(
            (row.get::<_, &str>(0), row.get::<_, i64>(1)),
            ("LIST ((((seq / 7) % (16)::bigint)))", 16)
        );
    });
}
