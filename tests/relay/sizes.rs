//! Transactions that are unusual in size.

use outbox_relay::capture::CaptureKind;

use crate::support::proxy::{KafkaProxy, Weather};
use crate::support::scene::{Scene, clean};
use crate::support::writers::{Load, Writers, set_up, use_case};

/// Of a relay that publishes a transaction of any size.
const PEAK_KB_MAX: u64 = 64 << 10;

async fn few_writers(scene: &Scene) -> Writers {
    let load = Load {
        writers: 4,
        ..Load::default()
    };
    Writers::start(&scene.database, &scene.prefix, load).await
}

both_captures!(
    120,
    a_transaction_of_ten_thousand_subtransactions_while_others_commit
);

async fn a_transaction_of_ten_thousand_subtransactions_while_others_commit(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let writers = few_writers(&scene).await;
    let relay = scene.relay.start().await;
    writers.more(20).await;
    let client = scene.database.connect().await;
    let own_key = "insert into aggregate (id) values (1000)";
    client.batch_execute(own_key).await.unwrap();
    client.batch_execute("begin").await.unwrap();
    let call = use_case("many", &scene.prefix, 1_000, 10_000, true);
    client.batch_execute(&call).await.unwrap();
    // A snapshot with so many of them in progress lists none: it is overflown.
    writers.more(50).await;
    client.batch_execute("commit").await.unwrap();
    writers.more(20).await;
    writers.stop().await;
    relay.terminate().await;
    clean(&scene.check().await, 90);
}

both_captures!(
    180,
    a_transaction_of_300_000_events_goes_into_one_kafka_transaction_in_little_memory
);

async fn a_transaction_of_300_000_events_goes_into_one_kafka_transaction_in_little_memory(
    capture: CaptureKind,
) {
    let scene = Scene::of(capture).await;
    let writers = few_writers(&scene).await;
    let relay = scene.relay.start().await;
    writers.more(20).await;
    let client = scene.database.connect().await;
    let large = "begin;
            insert into outbox.events (topic, aggregate_id, payload)
            select $P || i % 3, 'large' || i % 300, convert_to('event ' || i, 'UTF8') from generate_series(300, 300299) i;
            insert into ledger select 'large', seq, id, topic, aggregate_id, seq
            from outbox.events where xid = pg_current_xact_id();
            commit";
    let large = large.replace("$P", &format!("'{}'", scene.prefix));
    client.batch_execute(&large).await.unwrap();
    writers.more(20).await;
    writers.stop().await;
    scene.caught_up().await;
    if let Some(peak_kb) = relay.peak_rss_kb() {
        assert!(peak_kb < PEAK_KB_MAX, "{peak_kb} kB");
    }
    relay.terminate().await;
    // Whole, in one Kafka transaction, with tx-count and rising tx-index: the ledger judges it.
    clean(&scene.check().await, 40);
}

both_captures!(
    120,
    a_transaction_that_needs_longer_than_the_transaction_timeout_is_refused_by_name
);

async fn a_transaction_that_needs_longer_than_the_transaction_timeout_is_refused_by_name(
    capture: CaptureKind,
) {
    let scene = Scene::of(capture).await;
    set_up(&scene.database, 3).await;
    scene.commit("before", 1, 2).await;
    scene.relay.catch_up().await;
    scene.commit("large", 1, 20_000).await;
    let proxy = KafkaProxy::start(&scene.relay.brokers).await.unwrap();
    proxy.set(Weather {
        bytes_per_second: Some(150_000),
        ..Weather::default()
    });
    let mut slow = scene.relay.clone();
    slow.brokers = proxy.brokers();
    let relay = slow
        .with(&["--transaction-timeout-ms", "10000"])
        .start()
        .await;
    relay.says("raise transaction-timeout-ms").await;
    assert_eq!(relay.ended().await.code(), Some(3));
    // Nothing is lost: where there is time enough, it is published.
    clean(&scene.check().await, 2);
}
