//! Puts the parts together: the only place that names concrete captures, sinks and leases.

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::adopt::{self, Plan};
use crate::capture::table::{TableCapture, origin};
use crate::config::{Settings, SinkKind};
use crate::fault::{Fault, exit};
use crate::lease::{AdvisoryLease, Lease};
use crate::relay::{Published, Relay, RelaySettings};
use crate::sink::Sink;
use crate::sink::kafka::{KafkaSink, Proof};
use crate::sink::memory::{MemorySink, MemoryStore};

/// Runs a relay until a signal, until it has caught up, or until a fault that only a person can cure.
///
/// # Errors
/// That fault.
pub async fn run(settings: &Settings, until_caught_up: bool) -> Result<Published, Fault> {
    let stop = CancellationToken::new();
    let lease = AdvisoryLease::new(
        settings.database.clone(),
        &settings.name,
        settings.lease_time,
    );
    info!(name = settings.name, database = %settings.database, "outbox-relay {}", env!("CARGO_PKG_VERSION"));
    match settings.sink {
        SinkKind::Kafka => {
            let sink = KafkaSink::new(settings.kafka.clone(), lease.clone())?;
            supervise(settings, until_caught_up, sink, lease, stop).await
        }
        SinkKind::Memory => {
            supervise(
                settings,
                until_caught_up,
                MemorySink::new(MemoryStore::default()),
                lease,
                stop,
            )
            .await
        }
    }
}

async fn supervise<S: Sink>(
    settings: &Settings,
    until_caught_up: bool,
    sink: S,
    lease: AdvisoryLease,
    stop: CancellationToken,
) -> Result<Published, Fault> {
    let capture = TableCapture::new(settings.table.clone(), &settings.database)?;
    let how = RelaySettings {
        start: settings.start,
        until_caught_up,
    };
    let relay = Relay::new(capture, sink, lease, how, stop.clone()).run();
    tokio::pin!(relay);
    tokio::select! {
        end = &mut relay => return end,
        named = asked_to_stop() => info!("{}: finishing the batch under way", named?),
    }
    stop.cancel();
    match timeout(settings.drain_time, relay).await {
        Ok(end) => end,
        Err(_) => Err(Fault::DrainDeadline(settings.drain_time)),
    }
}

impl Proof for AdvisoryLease {
    async fn prove(&self) -> Result<(), Fault> {
        Lease::prove(self).await
    }
}

/// SIGTERM or Ctrl-C, by name.
async fn asked_to_stop() -> Result<&'static str, Fault> {
    let no_signals =
        |error: std::io::Error| Fault::Defect(format!("signals can't be received: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "Ctrl-C",
    })
}

/// What `adopt` would do, and, if `apply`, does it. `from` is the name whose position is taken over.
///
/// # Errors
/// [`Fault::Refused`] if a relay of either name is active, or there is no position to adopt.
pub async fn adopt(settings: &Settings, from: &str, apply: bool) -> Result<Plan, Fault> {
    if settings.sink != SinkKind::Kafka {
        return Err(Fault::Setting(
            "adopt needs sink kafka: no other sink keeps a position".into(),
        ));
    }
    let leases = [from, settings.name.as_str()];
    let ours = AdvisoryLease::new(
        settings.database.clone(),
        &settings.name,
        settings.lease_time,
    );
    let theirs = AdvisoryLease::new(settings.database.clone(), from, settings.lease_time);
    for (lease, name) in [(&theirs, from), (&ours, settings.name.as_str())]
        .into_iter()
        .take(if leases[0] == leases[1] { 1 } else { 2 })
    {
        if !lease.try_acquire().await? {
            return Err(Fault::Refused(format!(
                "relay {name} is active; stop it first"
            )));
        }
    }
    let held = if from == settings.name {
        theirs.clone()
    } else {
        ours
    };
    let mut named = settings.kafka.clone();
    from.clone_into(&mut named.name);
    let mut sink = KafkaSink::new(named, theirs)?;
    let position = sink.open().await?.ok_or_else(|| {
        Fault::Refused(format!(
            "relay {from} has no position in this Kafka; there is nothing to adopt"
        ))
    })?;
    let client = settings.database.connect().await?;
    let (here, next_xid) = origin(&client, &settings.table.table).await?;
    let mut plan = adopt::plan(&position, &here, next_xid)?;
    if from != settings.name {
        plan.changes
            .push(format!("name: {from} becomes {}", settings.name));
        sink.close().await;
        sink = KafkaSink::new(settings.kafka.clone(), held)?;
        if let Some(position) = sink.open().await? {
            return Err(Fault::Refused(format!(
                "relay {} has a position of its own, {}; nothing was changed",
                settings.name, position.seen
            )));
        }
    }
    if apply && !plan.changes.is_empty() {
        if from != settings.name {
            rename(&client, from, &settings.name).await?;
        }
        let mut capture = TableCapture::new(settings.table.clone(), &settings.database)?;
        adopt::carry_out(&plan, &mut sink, &mut capture).await?;
    }
    sink.close().await;
    Ok(plan)
}

async fn rename(client: &tokio_postgres::Client, from: &str, to: &str) -> Result<(), Fault> {
    use tokio_postgres::types::Type;
    client
        .query_typed(
            include_str!("../sql/relay/rename.sql"),
            &[(&from, Type::TEXT), (&to, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// The exit code of an end.
#[must_use]
pub fn exit_code<T>(end: &Result<T, Fault>) -> u8 {
    end.as_ref().err().map_or(exit::DONE, Fault::exit_code)
}
