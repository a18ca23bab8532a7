//! `doctor`: mistakes are planted in two real servers, named with their cures, and gone when these are applied.

use std::collections::BTreeSet;
use std::time::Duration;

use outbox_relay::capture::CaptureKind;
use outbox_relay::database::Database;
use outbox_relay::ring;
use outbox_relay::servers::{Postgres, PostgresVersion};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::roles::init;
use crate::support::acl::{Operation, Resource, give_back, revoke};
use crate::support::process::{RelayOf, binary};
use crate::support::proxy::pooler::Pooler;
use crate::support::scene::Scene;
use crate::support::servers::{TestDatabase, connect, own_postgres, postgres_of, shared};
use crate::support::topic::Hand;
use crate::support::{unique, within};

async fn publish_one(scene: &Scene) {
    let publish = format!("select outbox.publish('{}', 'k', 'v')", unique("topic"));
    let client = scene.database.connect().await;
    client.batch_execute(&publish).await.unwrap();
    scene.relay.catch_up().await;
}

/// What `doctor` found.
pub struct Found {
    code: i32,
    pub json: Value,
}

/// Asks `doctor` with the settings of the relay.
pub async fn doctor(relay: &RelayOf, more: &[&str]) -> Found {
    let output = command(relay).arg("--json").args(more).output().await;
    let output = output.expect("the binary");
    let json = serde_json::from_slice(&output.stdout);
    Found {
        code: output.status.code().expect("an exit code"),
        json: json.unwrap_or_else(|error| panic!("{error}: {output:?}")),
    }
}

fn command(relay: &RelayOf) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["doctor", "--name", &relay.name])
        .args(["--database-url", &relay.database_url])
        .args(["--kafka-brokers", &relay.brokers])
        .args(["--capture", relay.capture.name()])
        .args(&relay.more)
        .kill_on_drop(true);
    command
}

impl Found {
    pub fn checks(&self, verdicts: &[&str]) -> BTreeSet<String> {
        let checks = self.json["checks"].as_array().expect("checks");
        let ended = |check: &&Value| verdicts.contains(&check["verdict"].as_str().unwrap());
        let code = |check: &Value| check["code"].as_str().unwrap().to_owned();
        checks.iter().filter(ended).map(code).collect()
    }

    /// Codes of what is wrong.
    pub fn wrong(&self) -> BTreeSet<String> {
        self.checks(&["error", "warning"])
    }

    /// Steps of this kind, with the code of their check.
    fn cures(&self, kind: &str) -> Vec<(String, String)> {
        let mut cures = Vec::new();
        for check in self.json["checks"].as_array().expect("checks") {
            let code = check["code"].as_str().unwrap();
            let findings = check["findings"].as_array().into_iter().flatten();
            for step in findings.flat_map(|finding| finding["cure"].as_array().unwrap()) {
                if let Some(text) = step[kind].as_str() {
                    cures.push((code.to_owned(), text.to_owned()));
                }
            }
        }
        cures
    }

    fn is_clean(&self) -> bool {
        self.code == 0 && self.json["healthy"] == true && self.wrong().is_empty()
    }
}

/// A server, a database in it, a role for the relay that may do no more than it must, and topics.
struct Hospital {
    postgres: Postgres,
    database: TestDatabase,
    relay: RelayOf,
    role: String,
    hand: Hand,
    topic: String,
    positions: String,
}

impl Hospital {
    async fn of(capture: CaptureKind) -> Self {
        let postgres = own_postgres(PostgresVersion::V17, &[]).await;
        let database = TestDatabase::on(&postgres).await;
        let mut relay = RelayOf::new(&unique("relay"), &database).await;
        let role = relay.name.replace('-', "_");
        relay.capture = capture;
        relay.more.clear();
        relay.database_url = database.url.replace("postgres@", &format!("{role}@"));
        let hand = Hand::at(&relay.brokers);
        Self {
            topic: unique("topic"),
            positions: format!("outbox-relay.position.{}", relay.name),
            postgres,
            database,
            relay,
            role,
            hand,
        }
    }

    async fn run(&self, statement: &str) {
        let ran = self.database.connect().await.batch_execute(statement).await;
        ran.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }

    async fn restart(&mut self) {
        self.postgres.stop_fast().await.expect("stopped");
        self.postgres.start().await.expect("started");
    }

    /// Mistakes of both captures. Answers a connection whose transaction stays open.
    async fn plant(&mut self) -> Client {
        let (role, database) = (&self.role, &self.database.name);
        let client = self.database.connect().await;
        for statement in [
            format!("create role {role} login connection limit 2"),
            format!("grant pg_monitor to {role}"),
            format!("alter database {database} set synchronous_commit = off"),
            format!("grant usage on schema outbox to {role}"),
            format!("grant select on outbox.events, outbox.slots to {role}"),
            format!("grant select, update on outbox.relay to {role}"),
            "alter system set fsync = off".to_owned(),
            "alter system set max_slot_wal_keep_size = -1".to_owned(),
            format!("select outbox.publish('misspelt-{}', 'k', 'v')", self.topic),
            format!("select outbox.publish('{}', 'k', 'v')", self.topic),
            "alter table outbox.events set unlogged".to_owned(),
            "alter table outbox.events drop constraint events_xid_seq".to_owned(),
            "alter table outbox.events alter column xid drop default".to_owned(),
            "alter table outbox.events alter column id drop not null".to_owned(),
            "alter sequence outbox.events_seq_seq cache 20".to_owned(),
            "alter table outbox.events enable row level security".to_owned(),
            "create policy most on outbox.events using (topic is not null)".to_owned(),
            "create function public.swallow() returns trigger language plpgsql as $$ begin return null; end $$".to_owned(),
            "create trigger swallow before insert on outbox.events for each row execute function public.swallow()".to_owned(),
            "create rule nothing as on insert to outbox.events do instead nothing".to_owned(),
            "select pg_create_physical_replication_slot('forgotten', true)".to_owned(),
        ] {
            let ran = client.batch_execute(&statement).await;
            ran.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        for _ in 0..6 {
            let switch =
                "create table if not exists more (); drop table more; select pg_switch_wal()";
            client.batch_execute(switch).await.unwrap();
        }
        if self.relay.capture == CaptureKind::Wal {
            self.run("alter system set wal_level = 'replica'").await;
        }
        self.restart().await;
        let prepared = "begin; create table public.prepared (); prepare transaction 'it''s lost'";
        self.run(prepared).await;
        let open = self.database.connect().await;
        let open_transaction = "begin; create table public.open ()";
        open.batch_execute(open_transaction).await.unwrap();
        self.plant_in_kafka().await;
        open
    }

    async fn plant_in_kafka(&self) {
        let settings = [
            ("max.message.bytes", "1000"),
            ("unclean.leader.election.enable", "true"),
            ("min.insync.replicas", "2"),
            ("message.timestamp.before.max.ms", "60000"),
        ];
        self.hand.create(&self.topic, 1, &settings).await;
        self.hand.create(&self.positions, 1, &[]).await;
    }

    /// What is found now, and the cures that are SQL or our own command applied as they are printed.
    async fn treat(&mut self, more: &[&str]) -> Found {
        let found = doctor(&self.relay, more).await;
        let client = self.database.connect().await;
        for (code, statement) in found.cures("sql") {
            let ran = client.batch_execute(&statement).await;
            ran.unwrap_or_else(|error| panic!("{code}: {statement}: {error:?}"));
        }
        for (_, step) in found.cures("do") {
            // Its coordinator decides; here the test does.
            if let Some((_, rollback)) = step.split_once("rollback prepared") {
                self.run(&format!("rollback prepared{rollback}")).await;
            }
        }
        let mut steps = found.cures("do").into_iter();
        if steps.any(|(_, step)| step.starts_with("restart PostgreSQL")) {
            self.restart().await;
        }
        if found.wrong().contains("wal.older-rows") {
            self.run("delete from outbox.events").await;
        }
        for (code, line) in found.cures("shell") {
            self.shell(&code, &line).await;
        }
        found
    }

    /// Kafka's own tools are not here: what they would do is done by hand.
    async fn shell(&self, code: &str, line: &str) {
        let topic = |line: &str| {
            let after = ["--entity-name ", "--topic "].into_iter();
            let name = after.filter_map(|flag| line.split_once(flag)).next();
            name.unwrap().1.split(' ').next().unwrap().to_owned()
        };
        let (tool, _) = line.split_once(' ').unwrap();
        match tool {
            "kafka-configs.sh" => {
                let (_, setting) = line.split_once("--add-config ").unwrap();
                let (key, value) = setting.split_once('=').unwrap();
                self.hand.set(&topic(line), key, value).await;
            }
            "kafka-topics.sh" => self.hand.create(&topic(line), 3, &[]).await,
            "outbox-relay" if code == "wal.slot" => {
                let mut init = Command::new(binary());
                init.args(["init", "--capture", "wal", "--name", &self.relay.name]);
                let done = init.args(["--database-url", &self.database.url]).output();
                let done = done.await.unwrap();
                assert!(done.status.success(), "{line}: {done:?}");
            }
            _ => panic!("{code}: nobody knows how to {line}"),
        }
    }
}

both_captures!(
    180,
    planted_mistakes_are_named_and_with_the_printed_cures_they_are_gone
);

async fn planted_mistakes_are_named_and_with_the_printed_cures_they_are_gone(capture: CaptureKind) {
    let mut hospital = Hospital::of(capture).await;
    let _open = hospital.plant().await;
    let mut planted = vec![
        "kafka.message-size",
        "kafka.position-topic",
        "kafka.timestamps",
        "kafka.topic-replicas",
        "kafka.topics",
        "kafka.transaction-timeout",
        "kafka.unclean-election",
        "outbox.defaults",
        "outbox.index",
        "outbox.logged",
        "outbox.privileges",
        "outbox.row-security",
        "outbox.triggers",
        "pg.connections",
        "pg.fsync",
        "pg.idle-slots",
        "pg.long-transactions",
        "pg.prepared-transactions",
        "pg.synchronous-commit",
    ];
    planted.extend(match capture {
        CaptureKind::Table => vec!["outbox.sequence"],
        CaptureKind::Wal => vec![
            "wal.level",
            "wal.publication",
            "wal.replication",
            "wal.slot",
            "wal.slot-limit",
        ],
    });
    let age = ["--transaction-age-s", "0"];
    let too_long = [&age[..], &["--transaction-timeout-ms", "900001"]].concat();
    let found = doctor(&hospital.relay, &too_long).await;
    let expected: BTreeSet<String> = planted.iter().map(|code| (*code).to_owned()).collect();
    let missed: Vec<_> = expected.difference(&found.wrong()).cloned().collect();
    let invented: Vec<_> = found.wrong().difference(&expected).cloned().collect();
    assert!(
        missed.is_empty() && invented.is_empty(),
        "missed {missed:?}, invented {invented:?}: {:#}",
        found.json
    );
    assert_eq!(found.code, 3);
    for check in &planted {
        let cures = ["sql", "shell", "do"].map(|kind| found.cures(kind));
        let mut cures = cures.iter().flatten();
        assert!(cures.any(|(code, _)| code == check), "{check} has a cure");
    }
    let mut left = hospital.treat(&age).await;
    for _ in 0..4 {
        if left.is_clean() {
            break;
        }
        left = hospital.treat(&age).await;
    }
    assert!(left.is_clean(), "{:#}", left.json);
    assert!(left.checks(&["unknown"]).is_empty(), "{:#}", left.json);
    // And what is healthy works.
    hospital.relay.catch_up().await;
    let after = doctor(&hospital.relay, &[]).await;
    assert!(after.is_clean(), "{:#}", after.json);
}

#[test]
fn a_server_that_is_away_or_silent_is_a_finding_and_takes_bounded_time() {
    within(120, async {
        let database = TestDatabase::new().await;
        let relay = RelayOf::new(&unique("relay"), &database).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = silent.local_addr().unwrap().to_string();
        let no_postgres = |address: &str| RelayOf {
            database_url: format!("postgres://u@{address}/d"),
            ..relay.clone()
        };
        let no_kafka = |address: &str| RelayOf {
            brokers: address.to_owned(),
            ..relay.clone()
        };
        for (relay, away, answers) in [
            (no_postgres("127.0.0.1:1"), "pg", "kafka.reachable"),
            (no_postgres(&silent), "pg", "kafka.reachable"),
            (no_kafka("127.0.0.1:1"), "kafka", "pg.reachable"),
            (no_kafka(&silent), "kafka", "pg.reachable"),
        ] {
            let since = Instant::now();
            let found = doctor(&relay, &[]).await;
            assert!(since.elapsed() < Duration::from_secs(40));
            assert_eq!(found.code, 3, "{:#}", found.json);
            let errors = found.checks(&["error"]);
            assert_eq!(errors, BTreeSet::from([format!("{away}.reachable")]));
            let unknown = found.checks(&["unknown"]);
            assert!(unknown.iter().any(|code| code.starts_with(away)));
            assert!(found.checks(&["fine"]).contains(answers));
        }
    });
}

#[test]
fn every_version_of_postgresql_is_understood() {
    within(240, async {
        for version in [
            PostgresVersion::V14,
            PostgresVersion::V15,
            PostgresVersion::V18,
        ] {
            let database = TestDatabase::on(postgres_of(version).await).await;
            let mut scene = Scene::on(database, CaptureKind::Wal).await;
            let prefix = unique("r").replace('-', "_");
            init(&scene, &prefix).await;
            let role = format!("{prefix}_relay@");
            scene.relay.database_url = scene.database.url.replace("postgres@", &role);
            publish_one(&scene).await;
            let found = doctor(&scene.relay, &[]).await;
            let mut told = found.checks(&["error", "warning", "unknown"]);
            // The shared server has no limit; and a role without pg_monitor may not look at what others do just now.
            for code in ["wal.slot-limit", "pg.idle-slots", "pg.long-transactions"] {
                told.remove(code);
            }
            assert!(told.is_empty(), "{version:?}: {:#}", found.json);
            scene.drop_slots().await;
        }
    });
}

#[test]
fn a_pooler_in_transaction_mode_is_noticed_and_nothing_is_set_through_it() {
    within(60, async {
        let database = TestDatabase::new().await;
        let mut relay = RelayOf::new(&unique("relay"), &database).await;
        assert!(!doctor(&relay, &[]).await.wrong().contains("pg.session"));
        let pooler = Pooler::before(&database.url).await;
        relay.database_url = database.url.replace(&pooler.server, &pooler.address);
        let found = doctor(&relay, &[]).await;
        assert!(found.wrong().contains("pg.session"), "{:#}", found.json);
        let through = connect(&relay.database_url).await;
        let kept = through.query_one("show idle_session_timeout", &[]).await;
        assert_eq!(kept.unwrap().get::<_, &str>(0), "0");
    });
}

both_captures!(90, a_position_is_judged_as_a_start_would_judge_it);

async fn a_position_is_judged_as_a_start_would_judge_it(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    publish_one(&scene).await;
    let limit = ["pg.idle-slots", "wal.slot-limit"].map(str::to_owned);
    let wrong = async |relay: &RelayOf| {
        let mut wrong = doctor(relay, &[]).await.wrong();
        limit.iter().for_each(|code| _ = wrong.remove(code));
        wrong
    };
    let codes = |codes: &[&str]| codes.iter().map(|code| (*code).to_owned()).collect();
    assert_eq!(wrong(&scene.relay).await, BTreeSet::new());
    let renamed = RelayOf {
        name: unique("other"),
        capture: CaptureKind::Table,
        ..scene.relay.clone()
    };
    assert_eq!(wrong(&renamed).await, codes(&["outbox.name"]));
    if capture == CaptureKind::Wal {
        let table = RelayOf {
            capture: CaptureKind::Table,
            ..scene.relay.clone()
        };
        assert_eq!(wrong(&table).await, codes(&["position.fits"]));
        scene.drop_slots().await;
        let found = doctor(&scene.relay, &[]).await;
        assert!(found.wrong().contains("wal.slot"));
        let mut cures = found.cures("shell").into_iter();
        assert!(cures.any(|(_, line)| line.starts_with("outbox-relay recover")));
    }
    // Registered, and the position is gone.
    let hand = Hand::at(&scene.relay.brokers);
    let positions = format!("outbox-relay.position.{}", scene.relay.name);
    hand.delete(&positions).await;
    let found = doctor(&scene.relay, &[]).await;
    assert!(found.wrong().contains("position.fits"), "{:#}", found.json);
    let refused = scene.relay.start().await;
    assert_eq!(refused.ended().await.code(), Some(3));
}

#[test]
fn what_kafka_refuses_is_told_as_the_rule_that_allows_it() {
    within(90, async {
        let scene = Scene::new().await;
        publish_one(&scene).await;
        let brokers = &scene.relay.brokers;
        let positions = format!("outbox-relay.position.{}", scene.relay.name);
        for (operation, name) in [
            (Operation::Read, "Read"),
            (Operation::Describe, "Describe"),
            (Operation::DescribeConfigs, "DescribeConfigs"),
        ] {
            revoke(brokers, Resource::Topic, &positions, operation).await;
            let found = doctor(&scene.relay, &[]).await;
            let rule = format!("--operation {name} --topic {positions}");
            let mut cures = found.cures("shell").into_iter();
            assert!(
                cures.any(|(code, line)| code == "kafka.permissions" && line.contains(&rule)),
                "{name}: {:#}",
                found.json
            );
            give_back(brokers, Resource::Topic, &positions).await;
        }
        assert!(doctor(&scene.relay, &[]).await.is_clean());
    });
}

#[test]
fn a_database_without_schema_or_table_and_a_role_without_rights_are_told() {
    within(90, async {
        let name = unique("e").replace('-', "_");
        let postgres = &shared().await.postgres;
        let admin = connect(postgres.url()).await;
        let create = format!("create database {name}; create role {name} login");
        for statement in create.split("; ") {
            admin.batch_execute(statement).await.unwrap();
        }
        let (base, _) = postgres.url().rsplit_once('/').unwrap();
        let database = TestDatabase {
            url: format!("{base}/{name}"),
            name: name.clone(),
        };
        let mut relay = RelayOf::new(&unique("relay"), &database).await;
        relay.database_url = database.url.replace("postgres@", &format!("{name}@"));
        let found = doctor(&relay, &[]).await;
        for code in ["outbox.schema", "outbox.table"] {
            assert!(found.wrong().contains(code), "{code}: {:#}", found.json);
        }
        outbox_relay::init::init(&Database::parse(&database.url).unwrap())
            .await
            .unwrap();
        let found = doctor(&relay, &[]).await;
        assert!(found.wrong().contains("outbox.privileges"));
        assert!(found.checks(&["unknown"]).contains("outbox.name"));
        let client = connect(&database.url).await;
        for (_, statement) in found.cures("sql") {
            client.batch_execute(&statement).await.unwrap();
        }
        let found = doctor(&relay, &[]).await;
        assert!(found.is_clean(), "{:#}", found.json);
        // Of a ring retention needs the leaves too.
        assert!(
            ring::make(&Database::parse(&database.url).unwrap(), 10)
                .await
                .unwrap()
        );
        let retains = ["--retention-minutes", "1"];
        let found = doctor(&relay, &retains).await;
        assert!(found.wrong().contains("outbox.privileges"));
        let cures = found.cures("sql");
        assert!(
            cures.iter().any(|(_, it)| it.contains("truncate")),
            "{cures:?}"
        );
        for (_, statement) in cures {
            client.batch_execute(&statement).await.unwrap();
        }
        let found = doctor(&relay, &retains).await;
        assert!(found.is_clean(), "{:#}", found.json);
        let text = command(&relay).output().await.unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        for part in ["PostgreSQL\n", "✓ pg.reachable", "nothing is wrong"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\x1b'), "no colour but on a terminal");
    });
}
