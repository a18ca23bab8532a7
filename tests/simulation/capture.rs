//! The production captures over simulated shells; the scenario says which of them runs.

use std::time::Duration;

use outbox_relay::capture::table::TableCapture;
use outbox_relay::capture::wal::WalCapture;
use outbox_relay::capture::{BatchLimits, CaptureKind, CaptureSettings, Columns, Either};

use crate::mutations::{MutatedTable, MutatedWal, Mutation};
use crate::postgres::shell::{NAME, PostgresShell, TABLE};
use crate::postgres::wal::WalShell;
use crate::process::Process;
use crate::scenario::Scenario;
use crate::world::World;

/// One of them.
pub type AnyCapture = Either<TableCapture<MutatedTable<PostgresShell>>, WalCapture<MutatedWal>>;

/// The one of the scenario.
pub fn capture(world: &World, process: &Process, mutation: Mutation) -> AnyCapture {
    let settings = settings(world.scenario(), process);
    match world.scenario().capture {
        CaptureKind::Table => {
            let shell = MutatedTable::new(PostgresShell::new(world), mutation);
            Either::Table(TableCapture::with_shell(settings, shell).into())
        }
        CaptureKind::Wal => {
            let shell = MutatedWal::new(WalShell::new(world, process), mutation);
            Either::Wal(WalCapture::with_shell(settings, shell).into())
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
            transactions_max: u64::MAX,
        },
        linger: scenario.linger,
        poll_min: Duration::from_millis(5),
        poll_max: Duration::from_millis(100),
        slot: NAME.into(),
    }
}
