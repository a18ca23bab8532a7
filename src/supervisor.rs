//! Puts the parts together: the only place that names concrete captures, sinks and leases.

use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::{About, Admin};
use crate::adopt::{self, Here, Names, Plan};
use crate::capture::table::origin;
use crate::capture::wal::{make, timeline};
use crate::capture::{CaptureKind, CaptureSettings, Either};
use crate::config::{Settings, SinkKind};
use crate::database::{Database, Value};
use crate::fault::Fault;
use crate::lease::{AdvisoryLease, Lease};
use crate::metrics::Metrics;
use crate::park::postgres::PostgresStore;
use crate::park::{self, Park, Store};
use crate::relay::{Published, Relay, RelaySettings};
use crate::retention::{self, RetentionSettings};
use crate::sampler::Sampler;
use crate::signals::asked_to_stop;
use crate::sink::Sink;
use crate::sink::kafka::probe::Probe;
use crate::sink::kafka::{KafkaSettings, KafkaSink, Proof, last_position};
use crate::sink::memory::{MemorySink, MemoryStore};

/// Runs a relay until a signal, until it has caught up, or until a fault that only a person can cure.
///
/// # Errors
/// That fault.
pub async fn run(settings: &Settings, until_caught_up: bool) -> Result<Published, Fault> {
    let asked_to_stop = asked_to_stop()?;
    let lease = AdvisoryLease::new(
        settings.database.clone(),
        &settings.name,
        settings.lease_time,
    );
    info!(name = settings.name, database = %settings.database, "outbox-relay {}", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::default();
    let _admin = admin(settings, &metrics)?;
    let ends = Ends {
        until_caught_up,
        asked_to_stop,
    };
    match settings.sink {
        SinkKind::Kafka => {
            let sink = KafkaSink::new(settings.kafka.clone(), lease.clone())?;
            let sink = sink.with_metrics(metrics.clone());
            let store = PostgresStore::new(&settings.name, &settings.database)?;
            let park = Park::new(store, settings.park.clone());
            supervise(settings, ends, sink, park, lease, metrics).await
        }
        SinkKind::Memory => {
            let sink = MemorySink::new(MemoryStore::default());
            // It knows nothing of what the relay of this name has parked.
            supervise(settings, ends, sink, Park::none(), lease, metrics).await
        }
    }
}

/// The admin endpoint, if one is asked for.
fn admin(settings: &Settings, metrics: &Metrics) -> Result<Option<Admin>, Fault> {
    let Some(listen) = settings.admin_listen else {
        return Ok(None);
    };
    let probe = match settings.sink {
        SinkKind::Kafka => Some(Probe::new(&settings.kafka)?),
        SinkKind::Memory => None,
    };
    let about = About {
        name: settings.name.clone(),
        instance: settings.outbox.instance.clone(),
        capture: settings.capture.name(),
        table: settings.outbox.table.clone(),
        sink: settings.sink.name(),
        stalled: settings.stalled_time,
    };
    let sampler = Sampler::new(settings.database.clone(), settings.outbox.clone());
    let admin = Admin::start(listen, about, metrics.clone(), sampler, probe)?;
    info!("admin endpoint at http://{}/", admin.address);
    Ok(Some(admin))
}

/// What ends a relay.
struct Ends<F> {
    until_caught_up: bool,
    asked_to_stop: F,
}

fn capture(settings: &Settings) -> Result<Either, Fault> {
    Either::new(
        settings.capture,
        settings.outbox.clone(),
        &settings.database,
    )
}

fn retention(settings: &Settings) -> Option<RetentionSettings> {
    settings.retention_minutes.map(|minutes| RetentionSettings {
        minutes,
        outbox: settings.outbox.clone(),
        database: settings.database.clone(),
    })
}

async fn supervise<P: Store>(
    settings: &Settings,
    ends: Ends<impl Future<Output = &'static str>>,
    sink: impl Sink,
    park: Park<P>,
    lease: AdvisoryLease,
    metrics: Metrics,
) -> Result<Published, Fault> {
    let capture = capture(settings)?;
    let stop = CancellationToken::new();
    let how = RelaySettings {
        start: settings.start,
        until_caught_up: ends.until_caught_up,
    };
    let _retention = retention(settings).map(|it| retention::start(it, lease.clone()));
    let relay = Relay::new(capture, sink, lease, how, stop.clone());
    let relay = relay.parking(park).with_metrics(metrics).run();
    tokio::pin!(relay);
    tokio::select! {
        end = &mut relay => return end,
        named = ends.asked_to_stop => info!("{named}: finishing the batch under way"),
    }
    stop.cancel();
    match timeout(settings.drain_time, relay).await {
        Ok(end) => end,
        Err(_) => Err(Fault::DrainDeadline(settings.drain_time)),
    }
}

/// Makes what capture wal needs; answers what was made, a line each.
///
/// # Errors
/// As those of [`make`].
pub async fn make_slot(
    database: &Database,
    outbox: &CaptureSettings,
) -> Result<Vec<String>, Fault> {
    let mut done = Vec::new();
    if make::make_publication(database, outbox).await? {
        done.push(format!("publication {}", outbox.slot));
    }
    if let Some(made) = make::make_slot(database, outbox, |text| info!("{text}")).await? {
        let (slot, lsn) = (&outbox.slot, made.consistent);
        done.push(format!("replication slot {slot} at {lsn}"));
    }
    Ok(done)
}

impl Proof for AdvisoryLease {
    async fn prove(&self) -> Result<(), Fault> {
        Lease::prove(self).await
    }
}

/// What `adopt` would do, and, if `apply`, does it. `from` is the name whose position is taken over.
///
/// A dry run reads only: it fences nobody and makes no topic. It holds the leases all the same, for as long as it looks,
/// because it speaks of a relay that stands still.
///
/// # Errors
/// [`Fault::Refused`] if a relay of either name is active, or there is no position to adopt.
pub async fn adopt(settings: &Settings, from: &str, apply: bool) -> Result<Plan, Fault> {
    if settings.sink != SinkKind::Kafka {
        return Err(Fault::Setting(
            "adopt needs sink kafka: no other sink keeps a position".into(),
        ));
    }
    let names = Names {
        from,
        to: &settings.name,
    };
    let old = idle(settings, names.from).await?;
    let new = match names.differ() {
        true => idle(settings, names.to).await?,
        false => old.clone(),
    };
    let client = settings.database.connect().await?;
    let (origin, next_xid) =
        origin(&client, &settings.outbox.table, settings.capture.name()).await?;
    let left = match settings.capture {
        CaptureKind::Table => Vec::new(),
        CaptureKind::Wal => timeline::left(&settings.database, origin.timeline).await?,
    };
    let here = Here {
        origin,
        next_xid,
        left,
    };
    match apply {
        true => take_over(settings, names, [old, new], &client, &here).await,
        false => look(settings, names, &here).await,
    }
}

/// The lease of a relay that is not active.
async fn idle(settings: &Settings, name: &str) -> Result<AdvisoryLease, Fault> {
    let lease = AdvisoryLease::new(settings.database.clone(), name, settings.lease_time);
    match lease.try_acquire().await? {
        true => Ok(lease),
        false => Err(Fault::Refused(format!(
            "relay {name} is active; stop it first"
        ))),
    }
}

/// The Kafka settings of another relay than ours.
fn kafka_of(settings: &Settings, name: &str) -> KafkaSettings {
    KafkaSettings {
        name: name.to_owned(),
        ..settings.kafka.clone()
    }
}

/// What taking over would do, by reading alone.
async fn look(settings: &Settings, names: Names<'_>, here: &Here) -> Result<Plan, Fault> {
    let stored = last_position(&kafka_of(settings, names.from)).await?;
    let mut plan = adopt::plan(stored, names, here)?;
    if names.differ() {
        adopt::must_be_new(names.to, last_position(&settings.kafka).await?)?;
    }
    let store = PostgresStore::new(names.from, &settings.database)?;
    plan.goes_on_with(store.would_wait(&plan.to.unsettled).await?);
    Ok(plan)
}

/// Fences relay `names.from` and goes on from the position that stands then.
async fn take_over(
    settings: &Settings,
    names: Names<'_>,
    [old, new]: [AdvisoryLease; 2],
    client: &Client,
    here: &Here,
) -> Result<Plan, Fault> {
    let mut sink = KafkaSink::new(kafka_of(settings, names.from), old)?;
    let mut plan = adopt::plan(sink.open().await?, names, here)?;
    if names.differ() {
        sink.close().await;
        sink = KafkaSink::new(settings.kafka.clone(), new)?;
        adopt::must_be_new(names.to, sink.open().await?)?;
        rename(client, names).await?;
    }
    let mut store = PostgresStore::new(names.to, &settings.database)?;
    let waiting = park::apply(&mut store, &plan.to.unsettled).await?;
    plan.goes_on_with(waiting);
    if !plan.changes.is_empty() {
        let mut capture = capture(settings)?;
        adopt::carry_out(&plan, &mut sink, &mut capture).await?;
    }
    sink.close().await;
    Ok(plan)
}

async fn rename(client: &Client, names: Names<'_>) -> Result<(), Fault> {
    let values: [Value; 2] = [(&names.from, Type::TEXT), (&names.to, Type::TEXT)];
    for rename in [
        include_str!("../sql/relay/rename.sql"),
        include_str!("../sql/park/rename.sql"),
    ] {
        client.query_typed(rename, &values).await?;
    }
    Ok(())
}
