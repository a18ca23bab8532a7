//! `init --role-prefix`: each role can do its work, and nothing else.

use outbox_relay::capture::CaptureKind;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::support::process::binary;
use crate::support::scan::records;
use crate::support::scene::Scene;
use crate::support::servers::connect;
use crate::support::{unique, until};

/// A scene whose relay logs in as its own role, with a writer that has the writers' role.
struct Cast {
    scene: Scene,
    prefix: String,
    admin: Client,
    writer: Client,
    topic: String,
}

impl Cast {
    async fn of(capture: CaptureKind) -> Self {
        let mut scene = Scene::of(capture).await;
        let prefix = unique("r").replace('-', "_");
        init(&scene, &prefix).await;
        let url = scene.database.url.clone();
        let url_of = |role: &str| url.replace("postgres@", &format!("{prefix}_{role}@"));
        let admin = connect(&url).await;
        let login = format!("create role {prefix}_shop login in role {prefix}_writer");
        admin.batch_execute(&login).await.unwrap();
        scene.relay.database_url = url_of("relay");
        Self {
            writer: connect(&url_of("shop")).await,
            topic: unique("topic"),
            scene,
            prefix,
            admin,
        }
    }

    async fn publish(&self, value: &str) {
        let publish = "select outbox.publish($1, 'k', $2::text)";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.topic, &value];
        self.writer.execute(publish, &values).await.unwrap();
    }

    /// An event that is larger than the relay sends.
    async fn publish_too_much(&self) {
        let publish = "select outbox.publish($1, 'large', repeat('x', 2000000))";
        self.writer.execute(publish, &[&self.topic]).await.unwrap();
    }

    async fn waiting(&self) -> i64 {
        let waiting = "select count(*) from outbox.parked where state in ('parked', 'held')";
        let waiting = self.admin.query_one(waiting, &[]).await;
        waiting.unwrap().get(0)
    }

    async fn relay(&self) -> Client {
        connect(&self.scene.relay.database_url).await
    }

    /// Roles are the server's: they stay when a database goes.
    async fn leave(self) {
        self.scene.drop_slots().await;
    }
}

/// Makes slot and roles.
pub async fn init(scene: &Scene, prefix: &str) {
    let capture = scene.relay.capture.name();
    let mut init = Command::new(binary());
    init.args(["init", "--name", &scene.relay.name, "--capture", capture])
        .args(["--role-prefix", prefix])
        .args([
            "--database-url",
            &scene
                .database
                .url
                .replace(&format!("{prefix}_relay@"), "postgres@"),
        ]);
    let done = init.output().await.unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// PostgreSQL refuses it for want of a privilege.
async fn is_forbidden(client: &Client, statement: &str) {
    let error = client.batch_execute(statement).await.expect_err(statement);
    let code = error.code().map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error:?}");
}

both_captures!(90, each_role_does_its_work_and_nothing_else);

async fn each_role_does_its_work_and_nothing_else(capture: CaptureKind) {
    let cast = Cast::of(capture).await;
    cast.publish("one").await;
    let insert = "insert into outbox.events (topic, aggregate_id, payload) values ($1, 'k', 'two') returning id";
    cast.writer.query_one(insert, &[&cast.topic]).await.unwrap();
    cast.scene.relay.catch_up().await;
    let mut expected = 2;
    if capture == CaptureKind::Wal {
        let emit = "select outbox.emit($1, 'k', 'three'::text)";
        cast.writer.execute(emit, &[&cast.topic]).await.unwrap();
        cast.scene.relay.catch_up().await;
        expected = 3;
    }
    let found = records(&cast.scene.relay.brokers, &cast.topic).await;
    assert_eq!(found.len(), expected);
    cast.publish_too_much().await;
    cast.scene.relay.catch_up().await;
    assert_eq!(cast.waiting().await, 1);
    // One try that fails again, and then it is given up.
    for wish in ["retry", "discard"] {
        let ask = format!("update outbox.parked set requested = '{wish}'");
        cast.admin.batch_execute(&ask).await.unwrap();
        let running = cast.scene.relay.start().await;
        until("the wish is fulfilled", 30, async || {
            let open = "select count(*) from outbox.parked where requested is not null";
            let open = cast.admin.query_one(open, &[]).await;
            open.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        running.terminate().await;
    }
    assert_eq!(cast.waiting().await, 0);
    for forbidden in [
        "select payload from outbox.events",
        "update outbox.events set payload = null",
        "delete from outbox.events",
        "truncate outbox.events",
        "insert into outbox.events (topic, xid) values ('t', '1')",
        "insert into outbox.events (topic, seq) overriding system value values ('t', 1)",
        "select position from outbox.relay",
        "delete from outbox.relay",
        "select from outbox.marks",
        "delete from outbox.slots",
        "delete from outbox.migrations",
        "create table outbox.mine ()",
    ] {
        is_forbidden(&cast.writer, forbidden).await;
    }
    let relay = cast.relay().await;
    for forbidden in [
        "insert into outbox.events (topic) values ('t')",
        "update outbox.events set payload = null",
        "select outbox.publish('t', 'k', 'v')",
        "select outbox.emit('t', 'k', 'v')",
        "delete from outbox.relay",
        "update outbox.marks set at = now()",
        "delete from outbox.slots",
        "insert into outbox.slots (slot) values ('s')",
        "delete from outbox.migrations",
        "create table outbox.mine ()",
    ] {
        is_forbidden(&relay, forbidden).await;
    }
    if capture == CaptureKind::Table {
        is_forbidden(&relay, "select from outbox.slots").await;
        let slot = "select pg_create_physical_replication_slot('mine')";
        is_forbidden(&relay, slot).await;
    }
    let of_others = format!(
        "select count(*) from (
            select relowner as owner from pg_class where relnamespace = 'outbox'::regnamespace
            union all select proowner from pg_proc where pronamespace = 'outbox'::regnamespace
            union all select nspowner from pg_namespace where nspname = 'outbox') objects
         where owner <> '{0}_owner'::regrole or (select rolcanlogin from pg_roles where rolname = '{0}_owner')",
        cast.prefix
    );
    let of_others = cast.admin.query_one(&of_others, &[]).await.unwrap();
    assert_eq!(of_others.get::<_, i64>(0), 0);
    cast.leave().await;
}

both_captures!(120, the_relay_has_no_privilege_that_it_can_do_without);

async fn the_relay_has_no_privilege_that_it_can_do_without(capture: CaptureKind) {
    let cast = Cast::of(capture).await;
    let relay = format!("{}_relay", cast.prefix);
    // Capture wal asks the table and its slot's origin at its first start, and now and then.
    let first: &[&str] = match capture {
        CaptureKind::Table => &[],
        CaptureKind::Wal => &["table outbox.events", "table outbox.slots"],
    };
    for on in first {
        stops_without(&cast, "select", on).await;
    }
    cast.publish("first").await;
    cast.scene.relay.catch_up().await;
    // The last one is for `doctor`.
    let granted = "select 'table ' || table_schema || '.' || table_name, privilege_type from information_schema.role_table_grants
         where grantee = $1 and table_name <> 'migrations' union all values ('schema outbox', 'usage')";
    let granted = cast.admin.query(granted, &[&relay]).await.unwrap();
    assert!(granted.len() >= 7);
    for row in granted {
        let (on, privilege): (&str, &str) = (row.get(0), row.get(1));
        // Asked only when what waits is found half kept, or is tried again.
        let is_rare = on == "table outbox.parked_events" && privilege != "INSERT";
        let is_for_retention = privilege == "DELETE" && on != "table outbox.parked_events";
        if !first.contains(&on) && !is_rare && !is_for_retention {
            stops_without(&cast, privilege, on).await;
            cast.scene.relay.catch_up().await;
        }
    }
    if capture == CaptureKind::Wal {
        let take = format!("alter role {relay} noreplication");
        cast.admin.batch_execute(&take).await.unwrap();
        let run = cast.scene.relay.clone().with(&["--until-caught-up"]);
        let output = run.command().output().await.unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
    // Run again, it puts right what was changed.
    init(&cast.scene, &cast.prefix).await;
    cast.scene.relay.catch_up().await;
    cast.leave().await;
}

/// Takes the privilege away and gives it back; meanwhile the relay refuses to work.
async fn stops_without(cast: &Cast, privilege: &str, on: &str) {
    let relay = format!("{}_relay", cast.prefix);
    let revoke = format!("revoke {privilege} on {on} from {relay}");
    cast.admin.batch_execute(&revoke).await.unwrap();
    match on.starts_with("table outbox.parked") {
        true => cast.publish_too_much().await,
        false => cast.publish("more").await,
    }
    let run = cast.scene.relay.clone().with(&["--until-caught-up"]);
    let output = run.command().output().await.unwrap();
    let code = output.status.code();
    assert_eq!(code, Some(3), "without {privilege} on {on}: {output:?}");
    let grant = format!("grant {privilege} on {on} to {relay}");
    cast.admin.batch_execute(&grant).await.unwrap();
}
