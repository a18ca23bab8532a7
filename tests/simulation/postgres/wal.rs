//! The WAL capture's shell over the simulated PostgreSQL.

use outbox_relay::capture::registry::Registration;
use outbox_relay::capture::wal::shell::{Here, Present, Shell, SlotMade};
use outbox_relay::capture::wal::slot::Slot;
use outbox_relay::fault::Fault;
use outbox_relay::position::{Lsn, Origin, Position};

use super::Postgres;
use super::session::{Session, away};
use super::shell::{origin, registrations};
use super::stream::SimulatedStream;
use crate::process::Process;
use crate::world::World;
use outbox_relay::capture::CaptureKind;

/// The place at which the slot was made: nothing had committed by then.
pub const SLOT_MADE: usize = 1;

/// The connection for questions.
pub struct WalShell {
    world: World,
    process: Process,
    session: Option<Session>,
}

impl WalShell {
    pub fn new(world: &World, process: &Process) -> Self {
        Self {
            world: world.clone(),
            process: process.clone(),
            session: None,
        }
    }

    async fn ask<T>(&mut self, question: impl FnOnce(&mut Postgres) -> T) -> Result<T, Fault> {
        let session = self.session.as_mut();
        let session = session.ok_or_else(|| Fault::Defect("no connection".into()))?;
        session.ask(question).await
    }
}

fn slot(server: &mut Postgres) -> Slot {
    Slot {
        plugin: "pgoutput".into(),
        is_of_this_database: true,
        inactive_since: None,
        wal_status: "reserved".into(),
        invalidation: None,
        confirmed: server.lsn(server.slot.confirmed()),
        retained_bytes: 0,
        safe_bytes: None,
    }
}

impl Shell for WalShell {
    type Stream = SimulatedStream;

    fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_open)
    }

    async fn connect(&mut self) -> Result<Here, Fault> {
        self.session = None;
        self.session = Some(Session::connect(&self.world).await?);
        let origin = self.ask(|server| origin(server, CaptureKind::Wal)).await?;
        let written = |server: &mut Postgres| server.lsn(server.written());
        let committed = self.ask(written).await?;
        self.ask(Postgres::nudge).await?;
        let found = |server: &mut Postgres| (slot(server), server.snapshot().xmax());
        let (slot, next_xid) = self.ask(found).await?;
        Ok(Here {
            origin,
            next_xid,
            committed,
            slot: Some(slot),
            warnings: Vec::new(),
            published: true,
        })
    }

    fn disconnect(&mut self) {
        self.session = None;
    }

    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault> {
        self.ask(registrations).await
    }

    async fn present(&mut self) -> Result<Present, Fault> {
        let look = |server: &mut Postgres| {
            let snapshot = server.snapshot();
            // A position may come to speak of all that it shows.
            server.hand_out(&snapshot);
            let highest = server.visible(&snapshot).map(|row| row.xid).max();
            Present {
                snapshot,
                highest,
                written: server.lsn(server.written()),
            }
        };
        self.ask(look).await
    }

    async fn left(&mut self, _: &Origin) -> Result<Vec<(u32, Lsn)>, Fault> {
        self.ask(|server| server.timelines_left()).await
    }

    async fn let_go(&mut self) -> Result<(), Fault> {
        self.ask(|_| ()).await
    }

    async fn slot_made(&mut self) -> Result<Option<SlotMade>, Fault> {
        let made = |server: &mut Postgres| SlotMade {
            consistent: server.lsn(SLOT_MADE),
            older_rows: false,
            seen: None,
        };
        self.ask(made).await.map(Some)
    }

    async fn stream(&mut self, at: &Origin, from: Lsn) -> Result<SimulatedStream, Fault> {
        let mut session = Session::connect(&self.world).await?;
        let found =
            |server: &mut Postgres| (origin(server, CaptureKind::Wal), server.slot.is_taken());
        let (here, taken) = session.ask(found).await?;
        if here != *at {
            return Err(away("the replication connection reached another server"));
        }
        if taken {
            self.world.count("WAL: the slot is taken over");
            // A walsender that had the slot before is told to end.
            self.world.pass(50..=350).await;
        }
        let start = |server: &mut Postgres| {
            let after = server.place(from).max(server.slot.confirmed());
            (server.slot.take(), after)
        };
        let (number, after) = session.ask(start).await?;
        let (world, process) = (&self.world, &self.process);
        world.count("WAL: a stream begins");
        world.tell(|| format!("{} streams from {from}", process.name()));
        Ok(SimulatedStream::new(
            world, process, session, number, after, from,
        ))
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        let mut session = Session::connect(&self.world).await?;
        session.ask(|server| server.register(position)).await
    }
}
