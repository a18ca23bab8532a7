//! One run: a world, its relays, its faults, then calm, then the judgement.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_relay::adopt::{self, Here, Names};
use outbox_relay::capture::Start;
use outbox_relay::capture::table::shell::Shell as _;
use outbox_relay::fault::Fault;
use outbox_relay::lease::Lease as _;
use outbox_relay::ledger::Report;
use outbox_relay::park::{OnFault, Park, ParkSettings};
use outbox_relay::position::{Mismatch, Origin};
use outbox_relay::relay::{Published, Relay, RelaySettings};
use outbox_relay::sink::Sink as _;
use outbox_relay::sink::kafka::KafkaSink;
use outbox_relay::sink::kafka::machine::Machine;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::capture::{AnyCapture, capture};
use crate::faults;
use crate::judge::{Violation, judge};
use crate::kafka::{Content, network, producer::Producer};
use crate::lease::SimulatedLease;
use crate::mutations::{MutatedProducer, MutatedProof, Mutation};
use crate::postgres::parked::ParkStore;
use crate::postgres::shell::{NAME, PostgresShell};
use crate::process::Process;
use crate::scenario::Scenario;
use crate::world::World;
use crate::writers;
use outbox_relay::capture::CaptureKind;

/// After the last fault healed, all must be published within this time.
const LAG_MAX: Duration = Duration::from_secs(60);

/// What became of a run.
pub struct Outcome {
    pub report: Report,
    pub violations: Vec<Violation>,
    pub counts: BTreeMap<&'static str, u64>,
    pub virtual_time: Duration,
    pub trace: Vec<String>,
}

/// Runs a seed; the same seed is the same run.
pub fn run(seed: u64, mutation: Mutation, traced: bool) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| run_unguarded(seed, mutation, traced)));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome {
            report: Report::default(),
            violations: vec![Violation::new("panic", text.unwrap_or_default())],
            counts: BTreeMap::new(),
            virtual_time: Duration::ZERO,
            trace: Vec::new(),
        }
    })
}

fn run_unguarded(seed: u64, mutation: Mutation, traced: bool) -> Outcome {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let tasks = LocalSet::new();
    let outcome = tasks.block_on(&runtime, live(Scenario::of(seed), mutation, traced));
    // The tasks that are left end while their world is still there.
    runtime.block_on(async { drop(tasks) });
    outcome
}

async fn live(scenario: Scenario, mutation: Mutation, traced: bool) -> Outcome {
    let world = World::new(scenario, traced);
    world.tell(|| format!("{:?}", world.scenario()));
    world.count(match world.scenario().capture {
        CaptureKind::Table => "seed of capture table",
        CaptureKind::Wal => "seed of capture wal",
    });
    world.spawn(writers::write_wal(world.clone()));
    world.spawn(writers::resolve_prepared(world.clone()));
    world.spawn(network::time_out_transactions(world.clone()));
    world.spawn(faults::retry(world.clone()));
    if world.scenario().retains {
        world.spawn(faults::retain(world.clone(), mutation));
    }
    let writers: Vec<_> = (0..world.scenario().writers)
        .map(|_| tokio::task::spawn_local(writers::write(world.clone())))
        .collect();
    let fleet = Fleet::new(&world, mutation);
    for number in 0..world.scenario().relays {
        world.spawn(fleet.clone().supervise(number as usize));
    }
    faults::happen(&world, &fleet).await;
    world.calm_down();
    faults::heal(&world, &fleet);
    let mut violations = Vec::new();
    for writer in writers {
        writer.await.expect("a writer's end");
    }
    let complete = settle(&world, &fleet, &mut violations).await;
    let (report, broken) = judge(&world, complete);
    violations.extend(broken);
    violations.extend(fleet.faults());
    for violation in &violations {
        world.tell(|| format!("VIOLATION {}: {}", violation.invariant, violation.what));
    }
    Outcome {
        report,
        violations,
        counts: world.counts(),
        virtual_time: world.elapsed(),
        trace: world.trace(),
    }
}

/// I6. Whether all had to be published.
async fn settle(world: &World, fleet: &Fleet, violations: &mut Vec<Violation>) -> bool {
    // Late frames and prepared transactions come to their end first.
    world.frames_arrive().await;
    while !world.postgres().prepared().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let healed = world.elapsed();
    loop {
        if fleet.abandoned.load(Ordering::Relaxed) {
            return false;
        }
        if missing(world) == 0 {
            break;
        }
        if world.elapsed() > healed + LAG_MAX {
            let what = format!(
                "{} events are not visible after {LAG_MAX:?}",
                missing(world)
            );
            violations.push(Violation::new("I6", what));
            return true;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    fleet.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    true
}

/// Committed events that no consumer sees.
fn missing(world: &World) -> usize {
    let kafka = world.kafka();
    let seen: std::collections::HashSet<Uuid> = kafka
        .visible()
        .iter()
        .filter_map(|visible| match &visible.written.content {
            Content::Event { id, .. } => Some(*id),
            Content::Position(_) => None,
        })
        .collect();
    let server = world.postgres();
    let missing = server.present_rows().filter(|row| !seen.contains(&row.id));
    missing.count()
}

type Parts = (
    AnyCapture,
    KafkaSink<MutatedProof<SimulatedLease>, MutatedProducer>,
    SimulatedLease,
);

/// The relays of one name.
#[derive(Clone)]
pub struct Fleet {
    world: World,
    mutation: Mutation,
    members: Arc<Mutex<BTreeMap<usize, (Process, CancellationToken)>>>,
    faults: Arc<Mutex<Vec<Violation>>>,
    abandoned: Arc<AtomicBool>,
    stopping: CancellationToken,
}

impl Fleet {
    fn new(world: &World, mutation: Mutation) -> Self {
        Self {
            world: world.clone(),
            mutation,
            members: Arc::default(),
            faults: Arc::default(),
            abandoned: Arc::default(),
            stopping: CancellationToken::new(),
        }
    }

    /// The process of a relay that runs now.
    pub fn member(&self, number: usize) -> Option<(Process, CancellationToken)> {
        self.members.lock().expect("no panic").get(&number).cloned()
    }

    pub fn members(&self) -> Vec<Process> {
        let members = self.members.lock().expect("no panic");
        members
            .values()
            .map(|(process, _)| process.clone())
            .collect()
    }

    fn faults(&self) -> Vec<Violation> {
        self.faults.lock().expect("no panic").clone()
    }

    /// The server lost transactions that had committed, and no position can be adopted there.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.stopping.cancel();
        for (_, stop) in self.members.lock().expect("no panic").values() {
            stop.cancel();
        }
    }

    /// Starts a relay again and again, as a service manager does.
    async fn supervise(self, number: usize) {
        for start in 0.. {
            self.world.pass(0..=50).await;
            if self.stopping.is_cancelled() {
                return;
            }
            let process = Process::new(format!("{number}.{start}"));
            let stop = CancellationToken::new();
            let member = (process.clone(), stop.clone());
            self.members
                .lock()
                .expect("no panic")
                .insert(number, member);
            self.world.tell(|| format!("{} starts", process.name()));
            let end = process.run(self.relay(&process, stop)).await;
            let Some(end) = end else {
                self.world.tell(|| format!("{} is killed", process.name()));
                self.world.pass(0..=300).await;
                continue;
            };
            self.world
                .tell(|| format!("{} ends: {end:?}", process.name()));
            let promoted = self.world.postgres().timeline > 1;
            match end {
                Ok(_) => {}
                // Stopped until a person has adopted the position.
                Err(Fault::Position(Mismatch::Timeline(..))) if promoted => {
                    self.world.pass(100..=500).await;
                }
                Err(fault) => {
                    let violation = Violation::new("I12", fault.to_string());
                    self.faults.lock().expect("no panic").push(violation);
                    return;
                }
            }
        }
    }

    /// The production relay over simulated shells.
    async fn relay(&self, process: &Process, stop: CancellationToken) -> Result<Published, Fault> {
        let (capture, sink, lease) = self.parts(process);
        let how = RelaySettings {
            start: Start::Beginning,
            until_caught_up: false,
        };
        let settings = ParkSettings {
            on_fault: OnFault::Park,
            events_max: u64::MAX,
            bytes_max: u64::MAX,
            dead_letter_topic: None,
            batch_events_max: self.world.scenario().events_max,
            batch_bytes_max: 1 << 20,
        };
        let park = Park::new(ParkStore::new(&self.world, self.mutation), settings);
        let relay = Relay::new(capture, sink, lease, how, stop);
        relay.parking(park).run().await
    }

    /// `outbox-relay adopt`: a person vouches for the position.
    pub async fn adopt(&self, try_number: usize) -> Result<(), Fault> {
        let process = Process::new(format!("adopt.{try_number}"));
        let (mut capture, mut sink, lease) = self.parts(&process);
        if !lease.try_acquire().await? {
            return Err(Fault::Refused("the relay is active".into()));
        }
        let mut table = PostgresShell::new(&self.world);
        let here = Here {
            origin: Origin {
                capture: self.world.scenario().capture.name().into(),
                ..table.connect().await?
            },
            next_xid: table.snapshot().await?.xmax(),
            left: self.world.postgres().timelines_left(),
        };
        let names = Names {
            from: NAME,
            to: NAME,
        };
        let adopted = async {
            let plan = adopt::plan(sink.open().await?, names, &here)?;
            match plan.changes.is_empty() {
                true => Ok(()),
                false => adopt::carry_out(&plan, &mut sink, &mut capture).await,
            }
        };
        let adopted = adopted.await;
        sink.close().await;
        lease.release().await;
        adopted
    }

    /// The production capture and sink over simulated shells, and the lease.
    fn parts(&self, process: &Process) -> Parts {
        let (world, scenario) = (&self.world, self.world.scenario());
        let lease = SimulatedLease::new(world, process);
        let capture = capture(world, process, self.mutation);
        let machine = Machine::new(process.name().into(), scenario.socket_timeout_ms);
        let producer = MutatedProducer::new(Producer::new(world, process), self.mutation);
        let proof = MutatedProof::new(lease.clone(), &producer);
        let sink = KafkaSink::with_shell(machine, proof, producer);
        (capture, sink, lease)
    }
}
