//! The production captures over simulated shells; the scenario says which of them runs.

use std::time::Duration;

use outbox_relay::capture::table::TableCapture;
use outbox_relay::capture::wal::WalCapture;
use outbox_relay::capture::{BatchLimits, Capture, CaptureSettings, Columns, Start};
use outbox_relay::event::Batch;
use outbox_relay::fault::Fault;
use outbox_relay::position::Position;

use crate::mutations::{MutatedTable, MutatedWal, Mutation};
use crate::postgres::shell::{NAME, PostgresShell, TABLE};
use crate::postgres::wal::WalShell;
use crate::process::Process;
use crate::scenario::{Kind, Scenario};
use crate::world::World;

/// One of them.
pub enum AnyCapture {
    Table(Box<TableCapture<MutatedTable<PostgresShell>>>),
    Wal(Box<WalCapture<MutatedWal>>),
}

impl AnyCapture {
    pub fn new(world: &World, process: &Process, mutation: Mutation) -> Self {
        let settings = settings(world.scenario(), process);
        match world.scenario().capture {
            Kind::Table => {
                let shell = MutatedTable::new(PostgresShell::new(world), mutation);
                Self::Table(TableCapture::with_shell(settings, shell).into())
            }
            Kind::Wal => {
                let shell = MutatedWal::new(WalShell::new(world, process), mutation);
                Self::Wal(WalCapture::with_shell(settings, shell).into())
            }
        }
    }
}

fn settings(scenario: &Scenario, process: &Process) -> CaptureSettings {
    CaptureSettings {
        name: NAME.into(),
        instance: process.name().into(),
        registers: true,
        table: TABLE.into(),
        columns: Columns::default(),
        route: "topic-0".into(),
        batch: BatchLimits {
            events_max: scenario.events_max,
            bytes_max: 1 << 20,
        },
        linger: scenario.linger,
        poll_min: Duration::from_millis(5),
        poll_max: Duration::from_millis(100),
        slot: NAME.into(),
    }
}

impl Capture for AnyCapture {
    async fn genesis(&mut self, start: Start) -> Result<Position, Fault> {
        match self {
            Self::Table(capture) => capture.genesis(start).await,
            Self::Wal(capture) => capture.genesis(start).await,
        }
    }

    async fn next(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        match self {
            Self::Table(capture) => capture.next(after).await,
            Self::Wal(capture) => capture.next(after).await,
        }
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        match self {
            Self::Table(capture) => capture.acknowledge(position).await,
            Self::Wal(capture) => capture.acknowledge(position).await,
        }
    }
}
