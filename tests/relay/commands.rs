//! The binary's surface: init, run, adopt, settings, exit codes, logs.

use std::process::Output;

use outbox_relay::capture::CaptureKind;
use outbox_relay::init;
use tokio::process::Command;

use crate::support::process::{RelayOf, binary};
use crate::support::scan::records;
use crate::support::scene::Scene;
use crate::support::servers::{TestDatabase, connect, shared};
use crate::support::{unique, within};

async fn outbox_relay(arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .expect("the binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn empty_database() -> String {
    let name = unique("e").replace('-', "_");
    let postgres = &shared().await.postgres;
    connect(postgres.url())
        .await
        .batch_execute(&format!("create database {name}"))
        .await
        .unwrap();
    format!("{}/{name}", postgres.url().rsplit_once('/').unwrap().0)
}

#[test]
fn init_says_what_it_did_and_may_be_run_again() {
    within(60, async {
        let url = empty_database().await;
        let first = outbox_relay(&["init", "--database-url", &url]).await;
        assert!(
            first.status.success() && text(&first.stdout).contains("applied 001_outbox.sql"),
            "{first:?}"
        );
        let second = outbox_relay(&["init", "--database-url", &url]).await;
        assert!(
            second.status.success() && text(&second.stdout).contains("nothing to do"),
            "{second:?}"
        );
    });
}

#[test]
fn printed_sql_does_the_same_and_every_object_has_a_comment() {
    within(60, async {
        let url = empty_database().await;
        let printed = outbox_relay(&["init", "--print-sql"]).await;
        assert_eq!(text(&printed.stdout), init::script(None));
        let client = connect(&url).await;
        client.batch_execute(&text(&printed.stdout)).await.unwrap();
        let again = outbox_relay(&["init", "--database-url", &url]).await;
        assert!(text(&again.stdout).contains("nothing to do"), "{again:?}");
        let bare = "select count(*) from pg_class c left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
             where c.relnamespace = 'outbox'::regnamespace and c.relkind = 'r'
             and (obj_description(c.oid) is null or col_description(c.oid, a.attnum) is null)";
        assert_eq!(
            client.query_one(bare, &[]).await.unwrap().get::<_, i64>(0),
            0
        );
    });
}

#[test]
fn a_foreign_schema_named_outbox_is_left_alone() {
    within(60, async {
        let url = empty_database().await;
        connect(&url)
            .await
            .batch_execute("create schema outbox")
            .await
            .unwrap();
        let output = outbox_relay(&["init", "--database-url", &url]).await;
        assert_eq!(output.status.code(), Some(3));
        assert!(
            text(&output.stderr).contains("was not made by outbox-relay"),
            "{output:?}"
        );
    });
}

#[test]
fn writers_mistakes_fail_in_their_own_transaction() {
    within(60, async {
        let client = TestDatabase::new().await.connect().await;
        for insert in [
            "select outbox.publish('no spaces', 'k', 'v')",
            "select outbox.publish('..', 'k', 'v')",
            "insert into outbox.events (payload) values ('')",
            "insert into outbox.events (aggregate_type) values ('a/b')",
            "insert into outbox.events (topic, headers) values ('t', '[1]')",
        ] {
            let error = client.batch_execute(insert).await.unwrap_err();
            assert_eq!(
                error.code().map(|code| code.code()),
                Some("23514"),
                "{insert}: {error}"
            );
        }
    });
}

both_captures!(90, each_form_of_publish_arrives_byte_for_byte);

async fn each_form_of_publish_arrives_byte_for_byte(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (topic, relay) = (unique("topic"), &scene.relay);
    let client = scene.database.connect().await;
    let statement = "begin;
        select outbox.publish('T', 'k', 'plain text');
        select outbox.publish('T', 'k', '{\"a\": 1}'::jsonb, 'Created', '{\"traceparent\": \"00\"}');
        select outbox.publish('T', 'k', '\\x00ff'::bytea);
        select outbox.publish('T', 'k', null::bytea);
        insert into outbox.events (aggregate_type, aggregate_id, payload) values ('T', 'k', 'routed');
        commit";
    client
        .batch_execute(&statement.replace("'T'", &format!("'{topic}'")))
        .await
        .unwrap();
    relay.catch_up().await;
    let found = records(&relay.brokers, &topic).await;
    let values: Vec<Option<&[u8]>> = found.iter().map(|record| record.value.as_deref()).collect();
    assert_eq!(
        values,
        [
            Some(&b"plain text"[..]),
            Some(b"{\"a\": 1}"),
            Some(&[0, 255]),
            None
        ]
    );
    assert!(
        found[1]
            .headers
            .contains(&("traceparent".into(), Some("00".into()))),
        "{:?}",
        found[1].headers
    );
    assert_eq!(
        records(&relay.brokers, &format!("outbox.event.{topic}"))
            .await
            .len(),
        1
    );
    // Nothing new: it ends at once and publishes nothing again.
    relay.catch_up().await;
    assert_eq!(records(&relay.brokers, &topic).await.len(), 4);
    scene.drop_slots().await;
}

#[test]
fn with_on_fault_halt_a_missing_topic_stops_the_relay_by_name() {
    within(60, async {
        let database = TestDatabase::new().await;
        let topic = unique("missing");
        database
            .connect()
            .await
            .execute("select outbox.publish($1, 'k', 'v'::text)", &[&topic])
            .await
            .unwrap();
        let mut relay = RelayOf::new(&unique("relay"), &database).await;
        relay.more.clear();
        let relay = relay.with(&["--until-caught-up", "--on-fault", "halt"]);
        let process = relay.start().await;
        process.says(&topic).await;
        assert_eq!(process.ended().await.code(), Some(4));
    });
}

#[test]
fn without_init_it_says_so() {
    within(60, async {
        let mut relay = RelayOf::new(&unique("relay"), &TestDatabase::new().await).await;
        relay.database_url = empty_database().await;
        let output = relay.command().output().await.unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(
            text(&output.stderr).contains("outbox-relay init"),
            "{output:?}"
        );
    });
}

both_captures!(90, a_deleted_position_topic_is_no_first_start);

async fn a_deleted_position_topic_is_no_first_start(capture: CaptureKind) {
    let mut scene = Scene::of(capture).await;
    scene.relay.catch_up().await;
    scene.relay.name = unique("other");
    scene.make_slot().await;
    let (database, other) = (&scene.database, &scene.relay);
    let output = other.command().output().await.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        text(&output.stderr).contains("one name serves a table"),
        "{output:?}"
    );
    // As if the topic had gone: the name is known to the database, not to Kafka.
    let client = database.connect().await;
    client
        .execute("update outbox.relay set name = $1", &[&other.name])
        .await
        .unwrap();
    let output = other.command().output().await.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        text(&output.stderr).contains("has no position in Kafka"),
        "{output:?}"
    );
    scene.drop_slots().await;
}

#[test]
fn adopt_takes_over_another_name_and_only_when_told() {
    within(120, async {
        let database = TestDatabase::new().await;
        let topic = unique("topic");
        let client = database.connect().await;
        let publish = "select outbox.publish($1, 'k', $2::text)";
        client.execute(publish, &[&topic, &"1"]).await.unwrap();
        let old = RelayOf::new(&unique("old"), &database).await;
        old.catch_up().await;
        client.execute(publish, &[&topic, &"2"]).await.unwrap();
        let new = RelayOf {
            name: unique("new"),
            ..old.clone()
        };
        let adopt = |more: &'static [&'static str]| {
            let mut arguments = vec![
                "adopt",
                "--from",
                &old.name,
                "--name",
                &new.name,
                "--database-url",
                &new.database_url,
                "--kafka-brokers",
                &new.brokers,
            ];
            arguments.extend(more);
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            async move { outbox_relay(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await }
        };
        let dry = adopt(&[]).await;
        assert!(
            dry.status.success() && text(&dry.stdout).contains("nothing was changed"),
            "{dry:?}"
        );
        assert_eq!(new.command().output().await.unwrap().status.code(), Some(3));
        let applied = adopt(&["--apply"]).await;
        assert!(
            applied.status.success() && text(&applied.stdout).contains("adopted"),
            "{applied:?}"
        );
        new.catch_up().await;
        let values: Vec<_> = records(&new.brokers, &topic)
            .await
            .into_iter()
            .map(|record| record.value.unwrap())
            .collect();
        assert_eq!(values, [b"1", b"2"]);
    });
}

#[test]
fn a_bad_setting_is_one_sentence_and_exit_code_2() {
    within(60, async {
        let cases: [&[&str]; 5] = [
            &[
                "run",
                "--database-url",
                "postgres://u:topsecret@127.0.0.1/d",
                "--kafka-brokers",
                "127.0.0.1:9092",
            ],
            &[
                "run",
                "--name",
                "a",
                "--database-url",
                "http://u:topsecret@h",
                "--kafka-brokers",
                "127.0.0.1:9092",
            ],
            &[
                "run",
                "--name",
                "a",
                "--database-url",
                "postgres://u:topsecret@127.0.0.1/d",
                "--kafka-brokers",
                "nonsense",
            ],
            &[
                "run",
                "--name",
                "a",
                "--database-url",
                "postgres://u:topsecret@127.0.0.1/d",
                "--kafka-brokers",
                "h:1",
                "--kafka-property",
                "acks=0",
            ],
            &[
                "run",
                "--name",
                "a",
                "--database-url",
                "postgres://u:topsecret@127.0.0.1/d",
                "--kafka-brokers",
                "h:1",
                "--config",
                "/nowhere.toml",
            ],
        ];
        for arguments in cases {
            let output = outbox_relay(arguments).await;
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(
                error.lines().count() == 1 && !error.contains("topsecret"),
                "{error}"
            );
        }
        assert_eq!(
            outbox_relay(&["run", "--sink", "rabbitmq"])
                .await
                .status
                .code(),
            Some(2)
        );
        assert_eq!(
            outbox_relay(&["run", "--nonsense"]).await.status.code(),
            Some(2)
        );
    });
}

#[test]
fn environment_and_file_are_read_and_logs_can_be_json_without_secrets() {
    within(90, async {
        let database = TestDatabase::new().await;
        let relay = RelayOf::new(&unique("relay"), &database).await;
        let with_secret = relay
            .database_url
            .replace("postgres@", "postgres:topsecret@");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(
            &mut file,
            format!(
                "kafka_brokers = \"{}\"\n[kafka_properties]\n\"sasl.password\" = \"topsecret\"\n",
                relay.brokers
            )
            .as_bytes(),
        )
        .unwrap();
        let run = async |properties: &str| {
            let output = Command::new(binary())
                .args(["run", "--until-caught-up", "--log-format", "json"])
                .env("OUTBOX_RELAY_NAME", &relay.name)
                .env("OUTBOX_RELAY_DATABASE_URL", &with_secret)
                .env("OUTBOX_RELAY_CONFIG", file.path())
                .env("OUTBOX_RELAY_KAFKA_PROPERTIES", properties)
                .env("RUST_LOG", "trace")
                .output();
            output.await.unwrap()
        };
        // One a line, and each of them reaches the client.
        let wrong = run("client.id=here\nno.such.property=topsecret\n").await;
        assert_eq!(wrong.status.code(), Some(2));
        let said = text(&wrong.stderr);
        assert!(
            said.contains("no.such.property") && !said.contains("topsecret"),
            "{said}"
        );
        let output = run("client.id=here\ncompression.type=zstd\n").await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let log = text(&output.stderr);
        assert!(
            !log.contains("topsecret"),
            "{}",
            log.lines().find(|line| line.contains("topsecret")).unwrap()
        );
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line)
                .unwrap_or_else(|error| panic!("{error}: {line}"));
        }
    });
}

#[test]
fn a_dry_run_into_memory_leaves_no_trace() {
    within(60, async {
        let database = TestDatabase::new().await;
        let name = unique("relay");
        // What the real relay of this name has parked is none of its business.
        let parked = "insert into outbox.parked (relay, tx_id, xid, state, events) values ($1, '1-1-1', '1', 'parked', 1)";
        let client = database.connect().await;
        client.execute(parked, &[&name]).await.unwrap();
        let output = outbox_relay(&[
            "run",
            "--sink",
            "memory",
            "--until-caught-up",
            "--name",
            &name,
            "--database-url",
            &database.url,
        ])
        .await;
        assert!(output.status.success(), "{output:?}");
        let registered = database
            .connect()
            .await
            .query("select from outbox.relay", &[])
            .await
            .unwrap();
        assert!(registered.is_empty());
    });
}
