//! The admin endpoint and `outbox-relay status`, with real servers.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::capture::CaptureKind;
use outbox_relay::position::{Origin, Position, Snapshot, Window, Xids};
use outbox_relay::sampler::Sampler;
use outbox_relay::servers::PostgresVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use crate::support::process::{RelayOf, RelayProcess, binary};
use crate::support::scene::Scene;
use crate::support::servers::{TestDatabase, own_kafka, own_postgres};
use crate::support::writers::set_up;
use crate::support::{BUSY, unique, until, within};

/// A relay's admin endpoint.
struct Endpoint {
    address: String,
}

/// An answer: its status, its headers, its body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Endpoint {
    /// Of a relay that was started with `--admin-listen 0`; each says where it listens.
    async fn of(process: &RelayProcess) -> Self {
        process.says("admin endpoint at http://").await;
        let log = process.log();
        let (_, rest) = log.rsplit_once("admin endpoint at http://").unwrap();
        let address = rest.split('/').next().unwrap().to_owned();
        Self { address }
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        let asked = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            let request =
                format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = timeout(Duration::from_secs(5 * BUSY), asked).await;
        let answer = answer.expect("an answer in time").expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }

    async fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status").await.body).expect("JSON")
    }

    /// The value of a metric, by the beginning of its line; none while it is not there.
    async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").await.body;
        let line = text.lines().find(|it| it.starts_with(line))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until a probe answers with this status.
    async fn turns(&self, probe: &str, status: u16) {
        let what = format!("{probe} answers {status}");
        until(&what, 60, async || self.get(probe).await.status == status).await;
    }
}

async fn observed(capture: CaptureKind) -> Scene {
    let mut scene = Scene::of(capture).await;
    scene.relay = scene.relay.with(&["--admin-listen", "0"]);
    set_up(&scene.database, 10).await;
    scene
}

both_captures!(120, metrics_and_status_follow_what_is_published);

async fn metrics_and_status_follow_what_is_published(capture: CaptureKind) {
    let scene = observed(capture).await;
    let process = scene.relay.start().await;
    let admin = Endpoint::of(&process).await;
    admin.turns("/readyz", 200).await;
    assert_eq!(admin.get("/livez").await.status, 200);
    // Latency is told once the database's clock is known.
    until("a sample", 30, async || {
        admin
            .metric("outbox_relay_sample_age_seconds")
            .await
            .is_some()
    })
    .await;
    for tx in 0..5 {
        scene.commit(&format!("tx{tx}"), 1, 4).await;
    }
    let name = &scene.relay.name;
    let total = format!("outbox_relay_published_events_total{{relay=\"{name}\"}}");
    until("20 events are counted", 30, async || {
        admin.metric(&total).await == Some(20.0)
    })
    .await;
    let metric = async |name: &str| admin.metric(&format!("outbox_relay_{name}")).await;
    assert_eq!(metric("published_transactions_total").await, Some(5.0));
    assert!(metric("published_bytes_total").await > Some(20.0));
    assert_eq!(metric("batch_events_sum").await, Some(20.0));
    assert!(metric("kafka_transaction_seconds_count").await >= Some(1.0));
    assert_eq!(metric("latency_seconds_count").await, Some(5.0));
    let slowest = metric("latency_seconds_sum").await.unwrap() / 5.0;
    assert!((0.0..20.0).contains(&slowest), "{slowest} s");
    until("nothing is left", 30, async || {
        metric("lag_events").await == Some(0.0) && metric("lag_seconds").await == Some(0.0)
    })
    .await;
    assert_eq!(
        metric("state{state=\"active\"")
            .await
            .or(metric(&format!("state{{relay=\"{name}\",state=\"active\"")).await),
        Some(1.0)
    );
    assert_eq!(metric("lease_held").await, Some(1.0));
    assert_eq!(metric("oldest_open_writer_age_seconds").await, Some(0.0));
    let has_slot = metric("slot_retained_wal_bytes").await.is_some();
    assert_eq!(has_slot, capture == CaptureKind::Wal);
    let status = admin.status().await;
    assert_eq!(status["state"], "active");
    assert_eq!(status["published"]["events"], 20);
    assert_eq!(status["instance"], status["active_instance"]);
    assert!(status["history"]["lag_events"].as_array().unwrap().len() > 1);
    assert_eq!(status["capture"], capture.name());
    process.terminate().await;
    scene.drop_slots().await;
}

both_captures!(
    240,
    lag_and_an_open_writer_are_seen_from_a_relay_that_can_not_publish
);

async fn lag_and_an_open_writer_are_seen_from_a_relay_that_can_not_publish(capture: CaptureKind) {
    let mut scene = observed(capture).await;
    // A frozen broker is waited for so long.
    scene.relay = scene.relay.with(&["--transaction-timeout-ms", "10000"]);
    let mut kafka = own_kafka().await;
    scene.relay.brokers = kafka.brokers().to_owned();
    let process = scene.relay.start().await;
    let admin = Endpoint::of(&process).await;
    admin.turns("/readyz", 200).await;
    // It has acknowledged, so there is something to be behind of.
    scene.commit("first", 1, 1).await;
    until("the first event is published", 30, async || {
        admin.status().await["published"]["events"] == 1
    })
    .await;
    kafka.sigstop(1).await.unwrap();
    admin.turns("/readyz", 503).await;
    scene.commit("second", 1, 7).await;
    let writer = scene.database.connect().await;
    let open = format!(
        "begin; select outbox.publish('{}', 'k', 'open')",
        unique("topic")
    );
    writer.batch_execute(&open).await.unwrap();
    until("lag and the writer are seen", 30, async || {
        let status = admin.status().await;
        status["lag"]["events"] == 7
            && status["lag"]["seconds"].as_f64() > Some(0.5)
            && status["oldest_writer"]["seconds"].as_f64() > Some(0.5)
    })
    .await;
    assert_eq!(admin.get("/livez").await.status, 200, "an outage is alive");
    let faults = "outbox_relay_faults_total";
    until("the outage is counted", 60, async || {
        admin.get("/metrics").await.body.lines().any(|line| {
            line.starts_with(faults)
                && line.contains("kafka_unavailable")
                && line.contains("back_off")
        })
    })
    .await;
    writer.batch_execute("rollback").await.unwrap();
    kafka.sigcont(1).await.unwrap();
    admin.turns("/readyz", 200).await;
    until("all is published", 60, async || {
        admin.status().await["lag"]["events"] == 0
    })
    .await;
    process.terminate().await;
    scene.drop_slots().await;
}

both_captures!(
    120,
    a_loop_that_stands_still_while_both_servers_answer_is_not_live
);

async fn a_loop_that_stands_still_while_both_servers_answer_is_not_live(capture: CaptureKind) {
    let mut scene = observed(capture).await;
    let short = ["--transaction-timeout-ms", "10000", "--stalled-ms", "10000"];
    scene.relay = scene.relay.with(&short);
    let process = scene.relay.start().await;
    let admin = Endpoint::of(&process).await;
    admin.turns("/readyz", 200).await;
    let blocker = scene.database.connect().await;
    // Acknowledging waits for it; reading does not.
    let lock = "begin; lock table outbox.relay in exclusive mode";
    blocker.batch_execute(lock).await.unwrap();
    scene.commit("tx", 1, 1).await;
    admin.turns("/livez", 503).await;
    let said = admin.get("/livez").await.body;
    assert!(
        said.starts_with("stalled: the loop has made no step for"),
        "{said}"
    );
    assert_eq!(admin.get("/readyz").await.status, 503);
    blocker.batch_execute("rollback").await.unwrap();
    admin.turns("/livez", 200).await;
    admin.turns("/readyz", 200).await;
    process.terminate().await;
    scene.drop_slots().await;
}

#[test]
fn a_standby_is_ready_and_names_the_active_relay() {
    within(120, async {
        let scene = observed(CaptureKind::Table).await;
        let first = scene.relay.start().await;
        let active = Endpoint::of(&first).await;
        first.says("active").await;
        scene.commit("tx", 1, 3).await;
        let second = scene.relay.start().await;
        let standby = Endpoint::of(&second).await;
        second.says("standing by").await;
        standby.turns("/readyz", 200).await;
        until("it knows the other", 30, async || {
            let (active, standby) = (active.status().await, standby.status().await);
            standby["state"] == "standby"
                && standby["active_instance"] == active["instance"]
                && standby["lag"]["events"] == 0
                && standby["lease_held"] == true
        })
        .await;
        first.terminate().await;
        until("it takes over", 30, async || {
            standby.status().await["state"] == "active"
        })
        .await;
        second.terminate().await;
    });
}

#[test]
fn the_endpoint_reads_only_and_loads_nothing_from_elsewhere() {
    within(60, async {
        let scene = observed(CaptureKind::Table).await;
        let process = scene.relay.start().await;
        let admin = Endpoint::of(&process).await;
        for path in ["/", "/status", "/metrics", "/livez", "/readyz"] {
            for method in ["POST", "PUT", "DELETE", "PATCH"] {
                let answer = admin.ask(method, path).await;
                assert_eq!(answer.status, 405, "{method} {path}");
                assert!(answer.head.contains("allow: get,head"), "{}", answer.head);
            }
        }
        let head = admin.ask("HEAD", "/").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(admin.get("/nothing").await.status, 404);
        let page = admin.get("/").await;
        for header in [
            "default-src 'none'",
            "script-src 'sha256-",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
        ] {
            assert!(page.head.contains(header), "{header}: {}", page.head);
        }
        assert!(admin.address.starts_with("127.0.0.1:"), "{}", admin.address);
        process.terminate().await;
    });
}

#[test]
fn clients_that_never_finish_their_requests_slow_neither_the_relay_nor_the_end() {
    within(90, async {
        let scene = observed(CaptureKind::Table).await;
        let process = scene.relay.start().await;
        let admin = Endpoint::of(&process).await;
        process.says("active").await;
        let mut idlers = Vec::new();
        // More than are served at a time.
        for _ in 0..100 {
            let mut stream = TcpStream::connect(&admin.address).await.unwrap();
            stream
                .write_all(b"GET /status HTTP/1.1\r\nx: ")
                .await
                .unwrap();
            idlers.push(stream);
        }
        scene.commit("tx", 1, 3).await;
        until("the relay goes on", 10, async || {
            scene.acknowledged("true", &[]).await == 3
        })
        .await;
        // They are cut off after 10 s, and those behind them after 10 s more.
        until("others are served again", 40, async || {
            let asked = timeout(Duration::from_secs(1), admin.get("/livez")).await;
            asked.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        process.terminate().await;
    });
}

#[test]
fn an_address_that_can_not_be_listened_on_is_a_wrong_setting() {
    within(60, async {
        let database = TestDatabase::new().await;
        let relay = RelayOf::new(&unique("relay"), &database).await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        for (listen, says) in [
            ("nonsense", "admin-listen \"nonsense\" is not usable"),
            (taken.as_str(), "can't be listened on"),
        ] {
            let relay = relay.clone().with(&["--admin-listen", listen]);
            let output = relay.command().output().await.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(says), "{said}");
        }
    });
}

/// Every word of a file that looks like one of our metrics.
fn named_in(path: &str) -> BTreeSet<String> {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_name(c));
    let ours = words.filter(|word| word.starts_with("outbox_relay_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_dashboard_the_alerts_and_the_manual_exists_and_every_one_is_in_the_manual() {
    within(120, async {
        // Capture wal has all of them but the position of the other capture; a limit of kept WAL is set by the operator.
        let elsewhere = [
            "outbox_relay_position_transaction_id",
            "outbox_relay_slot_safe_wal_bytes",
        ];
        // Not while it is streamed from.
        let at_times = ["outbox_relay_slot_inactive_seconds"];
        let scene = observed(CaptureKind::Wal).await;
        let process = scene.relay.start().await;
        let admin = Endpoint::of(&process).await;
        scene.commit("tx", 1, 3).await;
        let seen = ["slot_active", "lag_seconds", "acknowledged_age_seconds"];
        until("all is seen", 30, async || {
            let text = admin.get("/metrics").await.body;
            seen.iter()
                .all(|name| text.contains(&format!("\noutbox_relay_{name}")))
        })
        .await;
        let text = admin.get("/metrics").await.body;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let shown: BTreeSet<_> = lines
            .filter_map(|line| line.split(['{', ' ']).next())
            .map(str::to_owned)
            .collect();
        let declared: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect();
        let known = |name: &String| {
            shown.contains(name)
                || declared.contains(name)
                || declared.contains(name.trim_end_matches("_total"))
                || elsewhere.contains(&name.as_str())
                || at_times.contains(&name.as_str())
        };
        for file in [
            "deploy/grafana-dashboard.json",
            "deploy/prometheus-alerts.yaml",
            "docs/observability.md",
        ] {
            let named = named_in(file);
            assert!(named.len() > 5, "{file} names metrics");
            let strange: Vec<_> = named.iter().filter(|name| !known(name)).collect();
            assert!(
                strange.is_empty(),
                "{file} names {strange:?}, which is not exposed"
            );
        }
        let manual = named_in("docs/observability.md");
        let missing: Vec<_> = declared
            .iter()
            .filter(|name| !manual.contains(*name) && !manual.contains(&format!("{name}_total")))
            .collect();
        assert!(
            missing.is_empty(),
            "the manual does not explain {missing:?}"
        );
        process.terminate().await;
        scene.drop_slots().await;
    });
}

#[test]
fn a_status_that_watches_ends_on_ctrl_c_also_while_the_database_is_away() {
    within(90, async {
        let mut postgres = own_postgres(PostgresVersion::V17, &[]).await;
        let database = TestDatabase::on(&postgres).await;
        let mut watch = tokio::process::Command::new(binary());
        watch
            .args(["status", "--watch", "--name", "nobody"])
            .args(["--database-url", &database.url])
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true);
        let mut watch = watch.spawn().unwrap();
        let mut said = String::new();
        let mut stdout = watch.stdout.take().unwrap();
        let mut says = async |what: &str| {
            while !said.contains(what) {
                let mut some = [0; 4096];
                let read = stdout.read(&mut some).await.unwrap();
                assert!(read > 0, "{what}: {said}");
                said += &String::from_utf8_lossy(&some[..read]);
            }
        };
        says("no relay of this name is active").await;
        postgres.kill9().await.unwrap();
        says("PostgreSQL is not available").await;
        let pid = i32::try_from(watch.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        assert_eq!(watch.wait().await.unwrap().code(), Some(1));
    });
}

both_captures!(90, the_status_command_tells_from_the_database_alone);

async fn the_status_command_tells_from_the_database_alone(capture: CaptureKind) {
    let scene = observed(capture).await;
    let status = async |more: &[&str]| {
        let mut command = tokio::process::Command::new(binary());
        command
            .args(["status", "--name", &scene.relay.name])
            .args(["--database-url", &scene.database.url])
            .args(more)
            .kill_on_drop(true);
        let output = command.output().await.unwrap();
        let [said, erred] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        (output.status.code(), said + &erred)
    };
    let (code, said) = status(&[]).await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("no relay named"), "{said}");
    let process = scene.relay.start().await;
    scene.commit("tx", 1, 3).await;
    until("it is acknowledged", 30, async || {
        scene.acknowledged("true", &[]).await == 3
    })
    .await;
    let (code, said) = status(&[]).await;
    assert_eq!(code, Some(0), "{said}");
    for says in ["active on", "0 events", "oldest open writer"] {
        assert!(said.contains(says), "{says} in\n{said}");
    }
    process.kill9().await;
    scene.commit("later", 1, 2).await;
    until("nobody holds the lease", 30, async || {
        status(&["--json"]).await.0 == Some(1)
    })
    .await;
    let (_, said) = status(&["--json"]).await;
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["lag"]["events"], 2, "{said}");
    assert_eq!(found["troubles"][0], "no relay of this name is active");
    assert_eq!(found["slot"].is_null(), capture == CaptureKind::Table);
    scene.drop_slots().await;
}

#[test]
fn lag_is_what_the_position_has_not_passed() {
    within(60, async {
        let scene = observed(CaptureKind::Table).await;
        // Transactions of 1, 2, 4 and 8 events.
        for (number, events) in [1, 2, 4, 8].into_iter().enumerate() {
            scene.commit(&format!("tx{number}"), 1, events).await;
        }
        let client = scene.database.connect().await;
        let rows =
            "select xid::text::bigint, max(seq) from outbox.events group by xid order by xid";
        let rows = client.query(rows, &[]).await.unwrap();
        let xids: Vec<u64> = rows
            .iter()
            .map(|row| row.get::<_, i64>(0).unsigned_abs())
            .collect();
        let last_seqs: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
        let (database, outbox) = (scene.database.database(), scene.relay.options().outbox());
        let mut sampler = Sampler::new(database, outbox.unwrap());
        let mut lag = async |position: Position| {
            let sample = sampler.sample(Some(&position)).await.unwrap();
            sample.lag.unwrap().events
        };
        let origin = Origin {
            system_id: "7".into(),
            timeline: 1,
            database_oid: 5,
            table: "outbox.events".into(),
            capture: "table".into(),
        };
        let snapshot = |text: String| text.parse::<Snapshot>().unwrap();
        let at = |seen: Snapshot| Position::at(origin.clone(), seen);
        let end = xids[3] + 1;
        assert_eq!(lag(at(Snapshot::empty())).await, 15);
        assert_eq!(lag(at(snapshot(format!("{end}:{end}:")))).await, 0);
        // A transaction that was open when the position was taken.
        let open = snapshot(format!("{}:{end}:{}", xids[2], xids[2]));
        assert_eq!(lag(at(open)).await, 4);
        // In the middle of a window that all of them are in, but the last.
        let until = snapshot(format!("{}:{}:", xids[3], xids[3]));
        let window = Some(Window {
            until,
            last_seq: last_seqs[1],
        });
        let resumed = Position {
            window,
            ..at(Snapshot::empty())
        };
        assert_eq!(lag(resumed).await, 12);
        // What the stream brought beyond the snapshot.
        let beyond = Some([xids[0], xids[3]].into_iter().collect::<Xids>());
        let streamed = Position::at_lsn(origin.clone(), 1.into(), Snapshot::empty(), beyond);
        assert_eq!(lag(streamed).await, 6);
    });
}

#[test]
fn parked_transactions_are_seen() {
    within(90, async {
        let mut scene = observed(CaptureKind::Table).await;
        let small = ["--kafka-property", "message.max.bytes=2000"];
        scene.relay = scene.relay.with(&small);
        let process = scene.relay.start().await;
        let admin = Endpoint::of(&process).await;
        let (client, topic) = (scene.database.connect().await, unique("topic"));
        let publish = "select outbox.publish($1, 'k', repeat('x', $2))";
        for bytes in [5_000, 10] {
            client.execute(publish, &[&topic, &bytes]).await.unwrap();
        }
        until("one is parked, and one waits behind it", 60, async || {
            let parked = &admin.status().await["parked"];
            parked["transactions"] == 1 && parked["held_transactions"] == 1
        })
        .await;
        until("it is passed", 60, async || {
            admin.status().await["lag"]["events"] == 0
        })
        .await;
        let text = admin.get("/metrics").await.body;
        let tried = |line: &str| line.contains("fault=\"unpublishable\",verdict=\"park\"");
        let tried = text.lines().find(|line| tried(line)).unwrap();
        assert!(!tried.ends_with(" 0"), "{tried}");
        process.terminate().await;
    });
}
