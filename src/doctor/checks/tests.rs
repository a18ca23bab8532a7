//! Every check finds what it is for, and nothing where all is well.

use std::collections::BTreeMap;

use super::CHECKS;
use crate::capture::CaptureKind;
use crate::capture::registry::Registration;
use crate::config::Options;
use crate::doctor::facts::{
    ColumnFacts, Facts, KafkaFacts, PostgresFacts, Publication, SchemaFacts, Sequence, ServerFacts,
    SessionFacts, Setting, SlotFacts, TableFacts, TopicFacts, Transactions, Unknown,
};
use crate::doctor::finding::Outcome;
use crate::init;
use crate::position::{Origin, Position, Snapshot};

fn here() -> Origin {
    Origin {
        timeline: 2,
        ..Origin::of_test("wal")
    }
}

fn position() -> Position {
    let seen: Snapshot = "90:90:".parse().unwrap();
    Position::at_lsn(here(), 100.into(), seen, None)
}

fn server() -> ServerFacts {
    let settings = [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("max_connections", "100"),
        ("superuser_reserved_connections", "3"),
        ("wal_level", "logical"),
        ("max_slot_wal_keep_size", "10240"),
        ("max_replication_slots", "10"),
        ("max_wal_senders", "10"),
    ];
    let setting = |(name, value): (&str, &str)| {
        let (value, source) = (value.to_owned(), "default".to_owned());
        (name.to_owned(), Setting { value, source })
    };
    ServerFacts {
        version: "17.1".into(),
        version_num: 170_001,
        is_standby: false,
        clock_ms: 0,
        database: "shop".into(),
        role: "relay".into(),
        role_replicates: true,
        connections: 10,
        role_limit: -1,
        role_connections: 1,
        database_limit: -1,
        database_connections: 1,
        senders: 0,
        settings: settings.into_iter().map(setting).collect(),
        asynchronous: Vec::new(),
    }
}

fn table() -> TableFacts {
    let column = |kind: &str, default: Option<&str>, identity| ColumnFacts {
        kind: kind.to_owned(),
        not_null: true,
        identity,
        default: default.map(str::to_owned),
    };
    let columns = [
        ("xid", column("xid8", Some("pg_current_xact_id()"), false)),
        ("seq", column("bigint", None, true)),
        ("id", column("uuid", Some("gen_random_uuid()"), false)),
        ("payload", column("bytea", None, false)),
    ];
    TableFacts {
        schema: "outbox".into(),
        name: "outbox.events".into(),
        is_partitioned: false,
        hides_rows: false,
        unlogged: Vec::new(),
        columns: columns.map(|(name, it)| (name.to_owned(), it)).into(),
        indexes: vec![Some(vec!["xid".into(), "seq".into()])],
        sequence: Some(Sequence {
            name: "outbox.events_seq_seq".into(),
            cache: 1,
            increment: 1,
            cycles: false,
        }),
        triggers: Vec::new(),
        rules: Vec::new(),
    }
}

fn slot() -> SlotFacts {
    SlotFacts {
        slot_name: "outbox_relay_shop".into(),
        plugin: Some("pgoutput".into()),
        active: false,
        temporary: false,
        wal_status: Some("reserved".into()),
        safe_wal_size: Some(1 << 30),
        confirmed_flush_lsn: Some("0/64".into()),
        invalidation_reason: None,
        inactive_since: None,
        failover: Some(true),
        is_of_this_database: true,
        retained_bytes: 1 << 30,
    }
}

fn postgres() -> PostgresFacts {
    PostgresFacts {
        answered_ms: 1,
        clock_ahead_ms: -20,
        server: server(),
        session: Ok(SessionFacts {
            reached: [vec![1, 1], vec![2, 2]],
            idle_session_timeout_ms: vec![1_500],
            lease_ms: 1_500,
        }),
        schema: Ok(SchemaFacts {
            exists: true,
            is_ours: true,
            may_read: true,
            applied: init::newest(),
        }),
        table: Ok(Some(table())),
        missing_privileges: Ok(Vec::new()),
        registrations: Ok(vec![Registration {
            name: "shop".into(),
            table: "outbox.events".into(),
        }]),
        foreign: Ok(None),
        transactions: Ok(Transactions {
            hidden: 0,
            old: Vec::new(),
        }),
        prepared: Ok(Vec::new()),
        slots: Ok(vec![slot()]),
        publication: Ok(Some(Publication {
            publishes_inserts: true,
            through_root: true,
            has_table: true,
            row_filter: None,
            columns: None,
        })),
        older_rows: Ok(Some(false)),
        destinations: Ok(Vec::new()),
        origin: Ok((here(), 100)),
        left: Ok(vec![(1, 50.into())]),
        streams_from: Ok("7".into()),
        old_after_s: 300,
    }
}

fn topic(more: &[(&str, &str)]) -> TopicFacts {
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.insync.replicas", "2"),
        ("max.message.bytes", "1048588"),
        ("unclean.leader.election.enable", "false"),
    ];
    let config = settings.iter().chain(more);
    let config = config.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    TopicFacts {
        partitions: 1,
        replicas: 3,
        leaderless: 0,
        config: Ok(config.collect()),
    }
}

fn brokers() -> KafkaFacts {
    let requests = ["InitProducerId", "AddPartitionsToTxn", "EndTxn"];
    let broker = [
        ("transaction.max.timeout.ms", "900000"),
        ("auto.create.topics.enable", "false"),
    ];
    KafkaFacts {
        answered_ms: 1,
        brokers: 3,
        requests: requests.map(|name| (name.to_owned(), [0, 5])).into(),
        broker: Ok(broker
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()),
        transaction_state: Ok(Some(topic(&[]))),
        position_topic: Ok(Some(topic(&[]))),
        position: Ok(Some(position())),
        topics: vec![
            ("a".into(), Ok(Some(topic(&[])))),
            ("b".into(), Ok(Some(topic(&[])))),
        ],
        denied: Vec::new(),
    }
}

fn facts() -> Facts {
    let options = Options {
        name: Some("shop".into()),
        database_url: Some("postgres://u@127.0.0.1/shop".into()),
        kafka_brokers: Some("127.0.0.1:9092".into()),
        capture: Some(CaptureKind::Wal),
        ..Options::default()
    };
    Facts {
        settings: options.settle().unwrap(),
        postgres: Ok(postgres()),
        kafka: Some(Ok(brokers())),
    }
}

/// Codes of the checks that find something, each of which must have a cure; and of those that could not be made.
fn judged(facts: &Facts) -> (Vec<&'static str>, Vec<&'static str>) {
    let (mut wrong, mut unknown) = (Vec::new(), Vec::new());
    for check in CHECKS {
        match (check.judge)(facts) {
            Ok(Outcome::Found(findings)) => {
                assert!(
                    findings.iter().all(|it| !it.cure.is_empty()),
                    "{}",
                    check.code
                );
                wrong.push(check.code);
            }
            Err(Unknown(_)) => unknown.push(check.code),
            Ok(_) => {}
        }
    }
    (wrong, unknown)
}

#[test]
fn where_all_is_well_nothing_is_found() {
    assert_eq!(judged(&facts()), (vec![], vec![]));
    let mut of_table = facts();
    of_table.settings.capture = CaptureKind::Table;
    let kafka = of_table.kafka.as_mut().unwrap().as_mut().unwrap();
    kafka.position = Ok(None);
    of_table.postgres.as_mut().unwrap().registrations = Ok(Vec::new());
    of_table.postgres.as_mut().unwrap().slots = Ok(Vec::new());
    assert_eq!(judged(&of_table), (vec![], vec![]));
    // And one thing that only capture table asks.
    of_table.postgres.as_mut().unwrap().foreign = Ok(Some("4711".into()));
    assert_eq!(judged(&of_table).0, ["outbox.foreign-rows"]);
}

#[test]
fn a_server_that_is_away_is_one_finding_and_nothing_else_is_claimed() {
    let mut none = facts();
    none.postgres = Err(Unknown("away".into()));
    none.kafka = Some(Err(Unknown("away".into())));
    let (wrong, unknown) = judged(&none);
    assert_eq!(wrong, ["pg.reachable", "kafka.reachable"]);
    // Two are of the other capture.
    assert_eq!(unknown.len(), CHECKS.len() - 2 - 2);
}

#[test]
fn a_dry_run_has_no_brokers_to_ask() {
    let mut dry = facts();
    dry.kafka = None;
    dry.settings.capture = CaptureKind::Table;
    dry.postgres.as_mut().unwrap().slots = Ok(Vec::new());
    assert_eq!(judged(&dry), (vec![], vec![]));
}

type Of<T> = fn(&mut T);

#[test]
fn what_is_wrong_with_postgresql_is_found_by_its_check() {
    fn set(server: &mut ServerFacts, name: &str, value: &str) {
        server.settings.get_mut(name).unwrap().value = value.to_owned();
    }
    let cases: [(Of<PostgresFacts>, &str); 25] = [
        (|it| it.server.version_num = 130_000, "pg.version"),
        (|it| it.server.is_standby = true, "pg.primary"),
        (
            |it| it.session.as_mut().unwrap().reached = [vec![1, 1], vec![1, 2]],
            "pg.session",
        ),
        (
            |it| it.session.as_mut().unwrap().reached = [vec![1, 2], vec![3, 3]],
            "pg.session",
        ),
        (
            |it| it.session.as_mut().unwrap().idle_session_timeout_ms = vec![0],
            "pg.session",
        ),
        (|it| it.server.connections = 95, "pg.connections"),
        (|it| it.server.role_limit = 2, "pg.connections"),
        (
            |it| set(&mut it.server, "full_page_writes", "off"),
            "pg.fsync",
        ),
        (
            |it| set(&mut it.server, "synchronous_commit", "off"),
            "pg.synchronous-commit",
        ),
        (|it| it.clock_ahead_ms = 3_600_000, "pg.clock"),
        (
            |it| {
                it.slots.as_mut().unwrap().push(SlotFacts {
                    slot_name: "x".into(),
                    ..slot()
                })
            },
            "pg.idle-slots",
        ),
        (
            |it| it.schema.as_mut().unwrap().applied = init::newest() - 1,
            "outbox.schema",
        ),
        (
            |it| it.schema.as_mut().unwrap().applied = init::newest() + 1,
            "outbox.schema",
        ),
        (
            |it| it.schema.as_mut().unwrap().is_ours = false,
            "outbox.schema",
        ),
        (
            |it| set(&mut it.server, "wal_level", "replica"),
            "wal.level",
        ),
        (|it| it.server.role_replicates = false, "wal.replication"),
        (|it| it.streams_from = Ok("8".into()), "wal.replication"),
        (
            |it| {
                it.publication
                    .as_mut()
                    .unwrap()
                    .as_mut()
                    .unwrap()
                    .row_filter = Some("(a)".into())
            },
            "wal.publication",
        ),
        (
            |it| {
                it.publication.as_mut().unwrap().as_mut().unwrap().columns = Some(vec!["id".into()])
            },
            "wal.publication",
        ),
        (
            |it| it.slots.as_mut().unwrap()[0].plugin = Some("wal2json".into()),
            "wal.slot",
        ),
        (
            |it| it.slots.as_mut().unwrap()[0].wal_status = Some("lost".into()),
            "wal.slot",
        ),
        (
            |it| it.slots.as_mut().unwrap()[0].wal_status = Some("unreserved".into()),
            "wal.slot",
        ),
        (
            |it| it.slots.as_mut().unwrap()[0].confirmed_flush_lsn = Some("0/65".into()),
            "wal.slot",
        ),
        (
            |it| it.slots.as_mut().unwrap()[0].failover = Some(false),
            "wal.slot-failover",
        ),
        (|it| it.server.senders = 10, "wal.headroom"),
    ];
    for (change, code) in cases {
        let mut facts = facts();
        change(facts.postgres.as_mut().unwrap());
        assert_eq!(judged(&facts).0, [code]);
    }
}

#[test]
fn what_is_wrong_with_the_table_is_found_by_its_check() {
    let cases: [(Of<TableFacts>, &str); 9] = [
        (|it| _ = it.columns.remove("payload"), "outbox.table"),
        (
            |it| it.columns.get_mut("seq").unwrap().kind = "integer".into(),
            "outbox.table",
        ),
        (
            |it| it.columns.get_mut("xid").unwrap().not_null = false,
            "outbox.defaults",
        ),
        (
            |it| it.columns.get_mut("seq").unwrap().identity = false,
            "outbox.defaults",
        ),
        (
            |it| it.indexes = vec![Some(vec!["seq".into(), "xid".into()]), None],
            "outbox.index",
        ),
        (
            |it| it.sequence.as_mut().unwrap().cycles = true,
            "outbox.sequence",
        ),
        (
            |it| it.sequence.as_mut().unwrap().increment = -1,
            "outbox.sequence",
        ),
        (|it| it.hides_rows = true, "outbox.row-security"),
        (
            |it| it.unlogged = vec!["outbox.events".into()],
            "outbox.logged",
        ),
    ];
    for (change, code) in cases {
        let mut facts = facts();
        facts.settings.capture = CaptureKind::Table;
        facts.kafka.as_mut().unwrap().as_mut().unwrap().position = Ok(None);
        let postgres = facts.postgres.as_mut().unwrap();
        (postgres.registrations, postgres.slots) = (Ok(Vec::new()), Ok(Vec::new()));
        change(postgres.table.as_mut().unwrap().as_mut().unwrap());
        assert_eq!(judged(&facts).0, [code]);
    }
}

#[test]
fn what_is_wrong_with_kafka_is_found_by_its_check() {
    let cases: [(Of<KafkaFacts>, &str); 10] = [
        (|it| _ = it.requests.remove("EndTxn"), "kafka.version"),
        (
            |it| {
                _ = it
                    .broker
                    .as_mut()
                    .unwrap()
                    .insert("transaction.max.timeout.ms".into(), "50000".into())
            },
            "kafka.transaction-timeout",
        ),
        (
            |it| {
                _ = it
                    .broker
                    .as_mut()
                    .unwrap()
                    .insert("auto.create.topics.enable".into(), "true".into())
            },
            "kafka.auto-create",
        ),
        (
            |it| {
                it.transaction_state
                    .as_mut()
                    .unwrap()
                    .as_mut()
                    .unwrap()
                    .replicas = 1
            },
            "kafka.transaction-state",
        ),
        (
            |it| it.transaction_state = Ok(Some(topic(&[("min.insync.replicas", "1")]))),
            "kafka.transaction-state",
        ),
        (
            |it| {
                it.position_topic
                    .as_mut()
                    .unwrap()
                    .as_mut()
                    .unwrap()
                    .partitions = 2
            },
            "kafka.position-topic",
        ),
        (
            |it| {
                it.topics[0]
                    .1
                    .as_mut()
                    .unwrap()
                    .as_mut()
                    .unwrap()
                    .leaderless = 1
            },
            "kafka.topics",
        ),
        (
            |it| it.topics[0].1 = Ok(Some(topic(&[("min.insync.replicas", "4")]))),
            "kafka.topic-replicas",
        ),
        (
            |it| it.topics[0].1 = Ok(Some(topic(&[("max.message.bytes", "2000000")]))),
            "kafka.message-size",
        ),
        (
            |it| it.position_topic = Ok(Some(topic(&[("unclean.leader.election.enable", "true")]))),
            "kafka.unclean-election",
        ),
    ];
    for (change, code) in cases {
        let mut facts = facts();
        change(facts.kafka.as_mut().unwrap().as_mut().unwrap());
        assert_eq!(judged(&facts).0, [code]);
    }
}

#[test]
fn a_position_is_resumed_only_where_a_start_would() {
    let cases: [(Of<Position>, bool); 6] = [
        (|it| it.origin.system_id = "8".into(), true),
        (|it| it.origin.database_oid = 6, true),
        (|it| it.origin.capture = "table".into(), true),
        (|it| it.origin.timeline = 3, true),
        (|it| it.seen = "101:102:101".parse().unwrap(), true),
        (|_| (), false),
    ];
    for (change, is_wrong) in cases {
        let (mut facts, mut position) = (facts(), position());
        change(&mut position);
        facts.kafka.as_mut().unwrap().as_mut().unwrap().position = Ok(Some(position));
        assert_eq!(judged(&facts).0 == ["position.fits"], is_wrong);
    }
    // A promotion: told, and where history divides wrong.
    for (published, severity) in [(50, "Warning"), (51, "Error")] {
        let (mut facts, mut position) = (facts(), position());
        position.origin.timeline = 1;
        position.streamed.as_mut().unwrap().published = published.into();
        facts.kafka.as_mut().unwrap().as_mut().unwrap().position = Ok(Some(position));
        let found = format!("{:?}", super::position::fits(&facts));
        assert!(found.contains(severity), "{found}");
    }
}

#[test]
fn each_check_is_in_the_documentation_once() {
    let text = include_str!("../../../docs/doctor.md");
    let told = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    told.for_each(|(code, _)| *count.entry(code).or_default() += 1);
    for check in CHECKS {
        assert_eq!(count.remove(check.code), Some(1), "{}", check.code);
    }
    assert!(count.is_empty(), "gone: {count:?}");
}
