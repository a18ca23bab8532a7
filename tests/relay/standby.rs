//! One active relay per name.

use std::time::Duration;

use outbox_relay::capture::CaptureKind;

use crate::support::scene::Scene;
use crate::support::until;

both_captures!(
    120,
    two_relays_at_once_one_stands_by_without_holding_back_vacuum
);

async fn two_relays_at_once_one_stands_by_without_holding_back_vacuum(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let (database, relay) = (&scene.database, &scene.relay);
    let first = relay.start().await;
    first.says("active").await;
    let second = relay.start().await;
    second.says("standing by").await;
    let client = database.connect().await;
    for _ in 0..100 {
        let row = client
            .query_one(
                "select count(*), count(*) filter (where backend_xmin is not null and state <> 'active'),
                        count(*) filter (where wait_event = 'advisory')
                 from pg_stat_activity where application_name = 'outbox-relay lease' and datname = current_database()",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(
            (
                row.get::<_, i64>(0),
                row.get::<_, i64>(1),
                row.get::<_, i64>(2)
            ),
            (2, 0, 0)
        );
    }
    first.kill9().await;
    second.says("active").await;
    second.terminate().await;
    scene.drop_slots().await;
}

both_captures!(120, the_lease_passes_on_at_a_clean_stop);

async fn the_lease_passes_on_at_a_clean_stop(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let relay = &scene.relay;
    let first = relay.start().await;
    first.says("active").await;
    let second = relay.start().await;
    second.says("standing by").await;
    first.terminate().await;
    second.says("active").await;
    second.terminate().await;
    scene.drop_slots().await;
}

both_captures!(60, sigterm_is_obeyed_from_the_first_line_of_the_log_on);

async fn sigterm_is_obeyed_from_the_first_line_of_the_log_on(capture: CaptureKind) {
    let scene = Scene::of(capture).await;
    let relay = &scene.relay;
    for _ in 0..10 {
        let process = relay.start().await;
        process.begins().await;
        process.terminate().await;
    }
    scene.drop_slots().await;
}

both_captures!(120, the_server_ends_the_session_of_a_silent_holder);

async fn the_server_ends_the_session_of_a_silent_holder(capture: CaptureKind) {
    let mut scene = Scene::of(capture).await;
    scene.relay = scene.relay.with(&["--lease-ms", "4000"]);
    let (database, relay) = (&scene.database, &scene.relay);
    let holder = relay.start().await;
    holder.says("active").await;
    let client = database.connect().await;
    let since = tokio::time::Instant::now();
    holder.signal(nix::sys::signal::Signal::SIGSTOP);
    until("the lock is free", 10, async || {
        let sessions = "select count(*) from pg_stat_activity where application_name = 'outbox-relay lease' and datname = current_database()";
        client.query_one(sessions, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    assert!(
        since.elapsed() > Duration::from_secs(2),
        "it is held until the lease runs out"
    );
    holder.kill9().await;
    scene.drop_slots().await;
}
