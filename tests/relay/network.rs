//! Faults of the network, between the relay and each of its servers. Each test ends with the ledger check.

use std::time::Duration;

use outbox_relay::capture::CaptureKind;
use tokio::time::sleep;
use url::Url;

use crate::support::local::{SOCKET_TIMEOUT_MS, beside};
use crate::support::process::RelayOf;
use crate::support::proxy::{Act, Api, At, KafkaProxy, Stall, TcpProxy, Weather};
use crate::support::scene::{Scene, clean};
use crate::support::until;
use crate::support::writers::{Load, Writers};

/// Where the relay runs.
#[derive(Clone, Copy, PartialEq)]
enum Relay {
    /// As users run it.
    Process,
    /// In the test, for faults that only end with the socket timeout.
    Impatient,
}

async fn few_writers(scene: &Scene) -> Writers {
    let load = Load {
        writers: 4,
        ..Load::default()
    };
    Writers::start(&scene.database, &scene.prefix, load).await
}

/// Plays `faults` between a working relay and Kafka. Afterwards transactions must go through the proxy again.
async fn kafka_survives(capture: CaptureKind, how: Relay, faults: impl AsyncFnOnce(&KafkaProxy)) {
    let scene = Scene::of(capture).await;
    let proxy = KafkaProxy::start(&scene.relay.brokers).await.unwrap();
    let mut relay = scene.relay.clone();
    relay.brokers = proxy.brokers();
    let writers = few_writers(&scene).await;
    let script = async {
        faults(&proxy).await;
        proxy.more(Api::EndTxn, 5).await.unwrap();
        writers.more(50).await;
        writers.stop().await;
    };
    match how {
        Relay::Process => {
            let relay = relay.start().await;
            script.await;
            relay.terminate().await;
        }
        Relay::Impatient => beside(&relay, |shell| shell, script).await,
    }
    clean(&scene.check().await, 50);
}

/// Each kind of request meets `act` once.
async fn each_request_meets(capture: CaptureKind, how: Relay, act: Act) {
    kafka_survives(capture, how, async |proxy| {
        for api in REQUESTS {
            // The connections that live through one fault are in order before the next.
            proxy.order(act, At::api(api)).caught().await.unwrap();
            proxy.more(Api::EndTxn, 3).await.unwrap();
        }
    })
    .await;
}

const REQUESTS: [Api; 4] = [
    Api::InitProducerId,
    Api::AddPartitionsToTxn,
    Api::Produce,
    Api::EndTxn,
];

both_captures!(60, replies_of_kafka_are_lost);

async fn replies_of_kafka_are_lost(capture: CaptureKind) {
    each_request_meets(capture, Relay::Process, Act::LoseReply).await;
}

both_captures!(
    60,
    connections_to_kafka_are_reset_in_the_middle_of_a_transaction
);

async fn connections_to_kafka_are_reset_in_the_middle_of_a_transaction(capture: CaptureKind) {
    each_request_meets(capture, Relay::Process, Act::Reset).await;
}

both_captures!(60, connections_to_kafka_are_half_open);

async fn connections_to_kafka_are_half_open(capture: CaptureKind) {
    each_request_meets(capture, Relay::Impatient, Act::SwallowReplies).await;
}

both_captures!(60, all_connections_to_kafka_are_reset_again_and_again);

async fn all_connections_to_kafka_are_reset_again_and_again(capture: CaptureKind) {
    kafka_survives(capture, Relay::Process, async |proxy| {
        for _ in 0..10 {
            proxy.more(Api::Produce, 3).await.unwrap();
            assert!(proxy.reset() > 0);
        }
    })
    .await;
}

both_captures!(
    60,
    kafka_is_behind_a_black_hole_longer_than_the_socket_timeout
);

async fn kafka_is_behind_a_black_hole_longer_than_the_socket_timeout(capture: CaptureKind) {
    kafka_survives(capture, Relay::Impatient, async |proxy| {
        for timeouts in [1.5, 3.0] {
            proxy.more(Api::EndTxn, 3).await.unwrap();
            proxy.set(Weather {
                stalled: Stall::Everything,
                ..Weather::default()
            });
            let timeout = Duration::from_millis(SOCKET_TIMEOUT_MS.into());
            sleep(timeout.mul_f64(timeouts)).await;
            // What was sent into it arrives now, after the retries.
            proxy.set(Weather::default());
        }
    })
    .await;
}

both_captures!(120, kafka_is_far_away_and_the_line_is_thin);

async fn kafka_is_far_away_and_the_line_is_thin(capture: CaptureKind) {
    kafka_survives(capture, Relay::Process, async |proxy| {
        proxy.set(Weather {
            latency: Duration::from_millis(20),
            ..Weather::default()
        });
        proxy.more(Api::EndTxn, 5).await.unwrap();
        proxy.set(Weather {
            bytes_per_second: Some(200_000),
            ..Weather::default()
        });
        proxy.more(Api::EndTxn, 5).await.unwrap();
    })
    .await;
}

/// A relay whose PostgreSQL is behind a proxy.
async fn behind_proxy(scene: &Scene) -> (TcpProxy, RelayOf) {
    let mut url = Url::parse(&scene.relay.database_url).unwrap();
    let port = url.port().unwrap_or(5432);
    let upstream = format!("{}:{port}", url.host_str().unwrap());
    let proxy = TcpProxy::start(&upstream).await.unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.port())).unwrap();
    let mut relay = scene.relay.clone();
    relay.database_url = url.into();
    (proxy, relay)
}

/// Waits until the relay has acknowledged something that was committed just now.
async fn follows(scene: &Scene) {
    let client = scene.database.connect().await;
    let row = client.query_one("select max(seq) from outbox.events", &[]);
    let last = row.await.unwrap().get::<_, i64>(0);
    let published = async || scene.acknowledged("seq >= $1", &[&last]).await > 0;
    until("the relay follows", 20, published).await;
}

/// Plays `faults` between a working relay and PostgreSQL.
async fn postgresql_survives(capture: CaptureKind, faults: impl AsyncFnOnce(&Scene, &TcpProxy)) {
    let scene = Scene::of(capture).await;
    let (proxy, relay) = behind_proxy(&scene).await;
    let writers = few_writers(&scene).await;
    let relay = relay.start().await;
    writers.more(20).await;
    follows(&scene).await;
    faults(&scene, &proxy).await;
    writers.more(50).await;
    follows(&scene).await;
    writers.stop().await;
    relay.terminate().await;
    clean(&scene.check().await, 50);
}

both_captures!(60, all_connections_to_postgresql_are_reset_again_and_again);

async fn all_connections_to_postgresql_are_reset_again_and_again(capture: CaptureKind) {
    postgresql_survives(capture, async |scene, proxy| {
        for _ in 0..4 {
            assert!(proxy.reset(None) > 0);
            follows(scene).await;
        }
    })
    .await;
}

both_captures!(60, all_backends_are_terminated_again_and_again);

async fn all_backends_are_terminated_again_and_again(capture: CaptureKind) {
    postgresql_survives(capture, async |scene, _| {
        let client = scene.database.connect().await;
        for _ in 0..4 {
            // The writers' too; all connect anew.
            let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                     where datname = current_database() and pid <> pg_backend_pid()";
            let terminated = client.query_one(terminate, &[]).await.unwrap();
            assert!(terminated.get::<_, i64>(0) > 0);
            follows(scene).await;
        }
    })
    .await;
}

both_captures!(60, postgresql_is_far_away_and_the_line_is_thin);

async fn postgresql_is_far_away_and_the_line_is_thin(capture: CaptureKind) {
    postgresql_survives(capture, async |scene, proxy| {
        for weather in [
            Weather {
                latency: Duration::from_millis(20),
                ..Weather::default()
            },
            Weather {
                bytes_per_second: Some(200_000),
                ..Weather::default()
            },
        ] {
            proxy.set(weather);
            for _ in 0..3 {
                follows(scene).await;
            }
        }
    })
    .await;
}

/// What only the reading connection says.
fn reading(capture: CaptureKind) -> &'static str {
    match capture {
        CaptureKind::Table => "repeatable read read only",
        CaptureKind::Wal => "START_REPLICATION",
    }
}

/// What only the lease's session says.
const LEASE: &str = "outbox-relay lease";

fn stalled(words: &'static str) -> Weather {
    Weather {
        stalled: Stall::Those(words),
        ..Weather::default()
    }
}

both_captures!(60, the_reading_connection_is_in_a_black_hole_for_a_while);

async fn the_reading_connection_is_in_a_black_hole_for_a_while(capture: CaptureKind) {
    postgresql_survives(capture, async |scene, proxy| {
        proxy.set(stalled(reading(capture)));
        sleep(Duration::from_secs(3)).await;
        proxy.set(Weather::default());
        follows(scene).await;
        // It may also break at the end of it.
        proxy.set(stalled(reading(capture)));
        sleep(Duration::from_secs(1)).await;
        assert!(proxy.reset(Some(reading(capture))) > 0);
        proxy.set(Weather::default());
    })
    .await;
}

/// One relay works behind `weather` that comes up, another stands by; the one gives way, and stays away when it is fair again.
async fn gives_way(
    scene: &Scene,
    cut_off: &RelayOf,
    says: Option<&str>,
    set: impl Fn(Weather),
    bad: Weather,
) {
    let writers = few_writers(scene).await;
    let first = cut_off.start().await;
    first.says("active").await;
    follows(scene).await;
    let second = scene.relay.start().await;
    second.says("standing by").await;
    set(bad);
    if let Some(says) = says {
        first.says(says).await;
    }
    second.says("active").await;
    follows(scene).await;
    set(Weather::default());
    first.says("standing by").await;
    writers.more(100).await;
    follows(scene).await;
    writers.stop().await;
    for (relay, which) in [(&first, "first"), (&second, "second")] {
        let active = relay.log().matches("active:").count();
        assert_eq!(active, 1, "no ping-pong: {which} {}", relay.log());
    }
    first.terminate().await;
    second.terminate().await;
    clean(&scene.check().await, 50);
}

both_captures!(90, a_relay_whose_login_gets_no_answer_says_so_and_goes_on);

async fn a_relay_whose_login_gets_no_answer_says_so_and_goes_on(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (proxy, behind) = behind_proxy(&scene).await;
    proxy.set(EVERYTHING);
    let relay = behind.start().await;
    relay.says("no answer to the login within 15 s").await;
    proxy.set(Weather::default());
    relay.says("active").await;
    relay.terminate().await;
    scene.drop_slots().await;
}

both_captures!(
    120,
    a_relay_whose_lease_is_in_a_black_hole_gives_way_and_stays_away
);

/// It hears of it by the lease or by the fence, whichever comes first.
async fn a_relay_whose_lease_is_in_a_black_hole_gives_way_and_stays_away(capture: CaptureKind) {
    gives_way_behind(capture, stalled(LEASE)).await;
}

/// What it was about to read it must not publish, and its walsender, of which the server has not heard that it is gone, must
/// not keep its successor from the slot.
const EVERYTHING: Weather = Weather {
    latency: Duration::ZERO,
    bytes_per_second: None,
    stalled: Stall::Everything,
};

both_captures!(90, a_relay_that_is_cut_off_from_postgresql_gives_way);

async fn a_relay_that_is_cut_off_from_postgresql_gives_way(capture: CaptureKind) {
    gives_way_behind(capture, EVERYTHING).await;
}

/// Between it and PostgreSQL the weather is bad.
async fn gives_way_behind(capture: CaptureKind, bad: Weather) {
    let scene = Scene::of(capture).await;
    let (proxy, cut_off) = behind_proxy(&scene).await;
    gives_way(&scene, &cut_off, None, |weather| proxy.set(weather), bad).await;
}

both_captures!(120, a_relay_that_is_cut_off_from_kafka_gives_way);

/// It holds the lease all the time, so nobody else could take it: it has to let go by itself.
async fn a_relay_that_is_cut_off_from_kafka_gives_way(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let proxy = KafkaProxy::start(&scene.relay.brokers).await.unwrap();
    let mut cut_off = scene
        .relay
        .clone()
        .with(&["--transaction-timeout-ms", "10000"]);
    cut_off.brokers = proxy.brokers();
    let away = "Kafka is not available";
    gives_way(
        &scene,
        &cut_off,
        Some(away),
        |weather| proxy.set(weather),
        EVERYTHING,
    )
    .await;
}
