//! Layers, checks, and what is said of what is wrong.

use super::*;

fn least() -> Options {
    Options {
        name: Some("shop".into()),
        database_url: Some("postgres://u:topsecret@127.0.0.1/shop".into()),
        kafka_brokers: Some("127.0.0.1:9092".into()),
        ..Options::default()
    }
}

fn file(text: &str) -> Result<Options, Fault> {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Options::default().with_file(Some(file.path()))
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let mut flags = least();
    flags.linger_ms = Some(7);
    flags.kafka_property = vec!["compression.type=zstd".into(), String::new()];
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(
        &mut file,
        b"linger_ms = 3\nlease_ms = 900\n[kafka_properties]\n\"compression.type\" = \"lz4\"\n\"sasl.username\" = \"u\"\n[columns]\nid = \"event_id\"\n",
    )
    .unwrap();
    let settings = flags
        .with_file(Some(file.path()))
        .unwrap()
        .settle()
        .unwrap();
    assert_eq!(settings.outbox.linger, Duration::from_millis(7));
    assert_eq!(settings.lease_time, Duration::from_millis(900));
    assert_eq!(settings.drain_time, Duration::from_secs(10));
    assert_eq!(settings.kafka.properties["compression.type"], "zstd");
    assert_eq!(settings.kafka.properties["sasl.username"], "u");
    assert_eq!(
        (
            settings.outbox.columns.id.as_str(),
            settings.outbox.columns.seq.as_str()
        ),
        ("event_id", "seq")
    );
}

/// No `..`: a new setting must be added here.
#[test]
fn every_setting_arrives() {
    let given = Options {
        name: Some("shop".into()),
        database_url: Some("postgres://u@127.0.0.1:1/other".into()),
        kafka_brokers: Some("h:7".into()),
        sink: Some(SinkKind::Kafka),
        capture: Some(CaptureKind::Table),
        slot: None,
        table: Some("a.b".into()),
        route: Some("r.{aggregate_type}".into()),
        start: Some(StartKind::Now),
        batch_events_max: Some(11),
        batch_bytes_max: Some(12),
        linger_ms: Some(13),
        poll_ms_min: Some(14),
        poll_ms_max: Some(15),
        transaction_timeout_ms: Some(16_000),
        check_position_topic: Some(false),
        create_topics: Some(true),
        topic_partitions: Some(17),
        topic_replication_factor: Some(18),
        on_fault: Some(OnFault::Halt),
        parked_events_max: Some(21),
        parked_bytes_max: Some(22),
        dead_letter_topic: Some("dead".into()),
        retention_minutes: Some(21),
        lease_ms: Some(1_900),
        drain_ms: Some(20),
        admin_listen: Some("0.0.0.0:21".into()),
        stalled_ms: Some(22_000),
        kafka_property: Vec::new(),
        kafka_properties: Some([("compression.type".to_owned(), "lz4".to_owned())].into()),
        columns: Some(Columns {
            id: "event_id".into(),
            ..Columns::default()
        }),
    };
    let Settings {
        name,
        database,
        sink,
        capture,
        start,
        outbox,
        kafka,
        park,
        retention_minutes,
        lease_time,
        drain_time,
        admin_listen,
        stalled_time,
    } = given.settle().unwrap();
    let ms = Duration::from_millis;
    assert_eq!(
        (name.as_str(), sink, capture, start),
        ("shop", SinkKind::Kafka, CaptureKind::Table, Start::Now)
    );
    assert_eq!(database.to_string(), "127.0.0.1:1/other");
    assert_eq!((lease_time, drain_time), (ms(1_900), ms(20)));
    assert_eq!(retention_minutes, Some(21));
    assert_eq!(park.dead_letter_topic.as_deref(), Some("dead"));
    assert_eq!(admin_listen, "0.0.0.0:21".parse().ok());
    assert_eq!(stalled_time, ms(22_000));
    assert_eq!(
        (outbox.name.as_str(), outbox.table.as_str()),
        ("shop", "a.b")
    );
    assert_eq!(
        (outbox.route.as_str(), outbox.columns.id.as_str()),
        ("r.{aggregate_type}", "event_id")
    );
    assert_eq!((outbox.batch.events_max, outbox.batch.bytes_max), (11, 12));
    assert_eq!(
        (outbox.linger, outbox.poll_min, outbox.poll_max),
        (ms(13), ms(14), ms(15))
    );
    assert_eq!(
        (kafka.brokers.as_str(), kafka.name.as_str()),
        ("h:7", "shop")
    );
    assert_eq!(
        (kafka.transaction_timeout_ms, kafka.check_position_topic),
        (16_000, false)
    );
    assert_eq!(
        (
            kafka.create_topics,
            kafka.topic_partitions,
            kafka.topic_replication_factor
        ),
        (true, 17, 18)
    );
    assert_eq!(kafka.properties["compression.type"], "lz4");
    assert_eq!(park.on_fault, OnFault::Halt);
    assert_eq!((park.events_max, park.bytes_max), (21, 22));
    assert_eq!((park.batch_events_max, park.batch_bytes_max), (11, 12));
}

#[test]
fn an_admin_port_alone_is_one_of_the_loopback_address() {
    let listen = |text: &str| {
        let mut options = least();
        options.admin_listen = Some(text.into());
        options.settle().unwrap().admin_listen.unwrap().to_string()
    };
    assert_eq!(listen("9464"), "127.0.0.1:9464");
    assert_eq!(listen("0.0.0.0:9464"), "0.0.0.0:9464");
    assert_eq!(listen("[::1]:0"), "[::1]:0");
    assert_eq!(least().settle().unwrap().admin_listen, None);
}

#[test]
fn a_slot_is_named_after_the_relay() {
    let slot = |name: &str, slot: Option<&str>| {
        let mut options = least();
        options.capture = Some(CaptureKind::Wal);
        (options.name, options.slot) = (Some(name.into()), slot.map(str::to_owned));
        options.settle().unwrap().outbox.slot
    };
    assert_eq!(slot("Shop-eu.1", None), "outbox_relay_shop_eu_1");
    assert_eq!(slot("shop", Some("mine")), "mine");
}

#[test]
fn an_unknown_key_or_a_bad_value_in_the_file_is_one_sentence_with_its_line() {
    for (text, says) in [
        (
            "name = \"a\"\nnmae = \"b\"\n",
            "line 2: unknown field `nmae`",
        ),
        ("linger_ms = \"often\"\n", "line 1: invalid type"),
        ("[columns]\nseqq = \"x\"\n", "unknown field `seqq`"),
        ("sink = \"rabbit\"\n", "unknown variant `rabbit`"),
        ("= 3", "line 1"),
    ] {
        let fault = file(text).unwrap_err().to_string();
        assert!(fault.contains(says) && !fault.contains('\n'), "{fault}");
    }
    assert!(
        Options::default()
            .with_file(Some(Path::new("/nowhere.toml")))
            .unwrap_err()
            .to_string()
            .contains("/nowhere.toml")
    );
}

#[test]
fn a_secret_that_stands_in_the_wrong_form_is_not_told() {
    for text in [
        "[kafka_properties]\n\"sasl.password\" = 73501\n",
        "kafka_properties = \"sasl.password=73501\"\n",
        "database_url = 73501\n",
        "database_url = [\"postgres://u:73501@h/d, expected\"]\n",
    ] {
        let fault = file(text).unwrap_err().to_string();
        assert!(
            fault.contains("invalid type, expected ") && !fault.contains("73501"),
            "{fault}"
        );
    }
    let flags = Options {
        kafka_property: vec!["a=b".into(), "sasl.password: 73501".into()],
        ..Options::default()
    };
    let fault = flags.with_file(None).unwrap_err().to_string();
    assert!(
        fault.contains("property 2") && fault.contains("key=value") && !fault.contains("73501"),
        "{fault}"
    );
}

#[test]
fn what_is_wrong_is_named_with_what_would_be_right() {
    type Change = fn(&mut Options);
    let cases: [(Change, &str); 24] = [
        (|o| o.name = None, "name is missing"),
        (
            |o| o.name = Some("a b".into()),
            "name \"a b\" is not usable",
        ),
        (|o| o.database_url = None, "database-url is missing"),
        (
            |o| o.database_url = Some("mysql://u:topsecret@h/d".into()),
            "database-url is not usable",
        ),
        (|o| o.kafka_brokers = None, "kafka-brokers is missing"),
        (
            |o| o.kafka_brokers = Some("localhost".into()),
            "kafka-brokers: \"localhost\" is no address",
        ),
        (
            |o| o.kafka_brokers = Some("h:99999".into()),
            "is no address",
        ),
        (
            |o| o.sink = Some(SinkKind::Memory),
            "no meaning with sink memory",
        ),
        (|o| o.table = Some("events".into()), "table \"events\""),
        (
            |o| o.dead_letter_topic = Some("a b".into()),
            "dead-letter-topic \"a b\" is not usable",
        ),
        (|o| o.route = Some("a/{aggregate_type}".into()), "route"),
        (
            |o| (o.poll_ms_min, o.poll_ms_max) = (Some(50), Some(10)),
            "poll-ms-max is 10",
        ),
        (|o| o.slot = Some("s".into()), "slot has no meaning"),
        (
            |o| (o.capture, o.slot) = (Some(CaptureKind::Wal), Some("A".into())),
            "slot \"A\" is not usable",
        ),
        (
            |o| (o.capture, o.poll_ms_min) = (Some(CaptureKind::Wal), Some(5)),
            "poll-ms-min has no meaning",
        ),
        (|o| o.batch_events_max = Some(0), "batch-events-max is 0"),
        (|o| o.retention_minutes = Some(0), "retention-minutes is 0"),
        (
            |o| o.retention_minutes = Some(u32::MAX),
            "it must be 1 to 52704000",
        ),
        (
            |o| {
                (o.sink, o.kafka_brokers) = (Some(SinkKind::Memory), None);
                o.retention_minutes = Some(1);
            },
            "retention-minutes has no meaning with sink memory",
        ),
        (|o| o.topic_partitions = Some(0), "topic-partitions is 0"),
        (
            |o| o.admin_listen = Some("localhost".into()),
            "admin-listen \"localhost\" is not usable",
        ),
        (
            |o| o.stalled_ms = Some(400_000),
            "stalled-ms has no meaning without admin-listen",
        ),
        (
            |o| (o.admin_listen, o.stalled_ms) = (Some("1".into()), Some(59_999)),
            "stalled-ms is 59999",
        ),
        (
            |o| o.kafka_properties = Some([("transactional.id".to_owned(), "x".to_owned())].into()),
            "transactional.id",
        ),
    ];
    for (change, says) in cases {
        let mut options = least();
        change(&mut options);
        let Err(fault @ Fault::Setting(_)) = options.settle() else {
            panic!("not refused: {says}")
        };
        let text = fault.to_string();
        assert!(
            text.contains(says) && !text.contains("topsecret") && !text.contains('\n'),
            "{text}"
        );
    }
}
