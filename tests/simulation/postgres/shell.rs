//! The table capture's shell over the simulated PostgreSQL.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use outbox_relay::capture::registry::Registration;
use outbox_relay::capture::table::Planned;
use outbox_relay::capture::table::shell::{Opened, Pages, Shell};
use outbox_relay::event::Event;
use outbox_relay::fault::Fault;
use outbox_relay::position::{Origin, Position, Snapshot, Xid};

use super::plan::{news, plan};
use super::session::{Session, away};
use super::{Postgres, Row};
use crate::world::World;
use outbox_relay::capture::CaptureKind;

pub const TABLE: &str = "outbox.events";
pub const NAME: &str = "sim";

/// One reading connection.
pub struct PostgresShell {
    world: World,
    session: Option<Session>,
    /// The transaction's snapshot; set by its first statement.
    transaction: Option<Option<Snapshot>>,
    plan: Option<VecDeque<Planned>>,
}

impl PostgresShell {
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            session: None,
            transaction: None,
            plan: None,
        }
    }

    fn session(&mut self) -> Result<&mut Session, Fault> {
        self.session
            .as_mut()
            .ok_or_else(|| Fault::Defect("no connection".into()))
    }
}

/// The snapshot of a statement: the transaction's, or a new one.
fn snapshot_of(server: &Postgres, transaction: &mut Option<Option<Snapshot>>) -> Snapshot {
    match transaction {
        Some(kept) => kept.get_or_insert_with(|| server.snapshot()).clone(),
        None => server.snapshot(),
    }
}

/// The next `count` of a cursor.
pub fn drained(plan: &mut VecDeque<Planned>, count: u64) -> Vec<Planned> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    plan.drain(..count.min(plan.len())).collect()
}

impl Shell for PostgresShell {
    type Pages = SimulatedPages;

    fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_open)
    }

    async fn connect(&mut self) -> Result<Origin, Fault> {
        (self.session, self.transaction, self.plan) = (None, None, None);
        let mut session = Session::connect(&self.world).await?;
        let origin = session
            .ask(|server| origin(server, CaptureKind::Table))
            .await?;
        self.session = Some(session);
        Ok(origin)
    }

    fn disconnect(&mut self) {
        self.session = None;
    }

    async fn registrations(&mut self) -> Result<Vec<Registration>, Fault> {
        self.session()?.ask(registrations).await
    }

    async fn acknowledged(&mut self) -> Result<Option<Position>, Fault> {
        self.session()?
            .ask(|server| server.registered.clone())
            .await
    }

    async fn foreign(&mut self) -> Result<Option<Xid>, Fault> {
        let above = |server: &mut Postgres| {
            let end = server.snapshot().xmax();
            let found = server
                .kept_rows()
                .map(|row| row.xid)
                .find(|xid| *xid >= end);
            found
        };
        self.session()?.ask(above).await
    }

    async fn rollback(&mut self) -> Result<(), Fault> {
        self.session()?.ask(|_| ()).await?;
        (self.transaction, self.plan) = (None, None);
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<Snapshot, Fault> {
        self.session()?.ask(|server| server.snapshot()).await
    }

    async fn open(&mut self, seen: &Snapshot) -> Result<Opened, Fault> {
        let Self {
            session,
            transaction,
            ..
        } = self;
        let look = |server: &mut Postgres| {
            transaction.get_or_insert(None);
            let snapshot = snapshot_of(server, transaction);
            let (highest, late) = news(server.sizes(&snapshot), seen);
            Opened {
                snapshot,
                written: server.written().to_string(),
                highest,
                late,
            }
        };
        let session = session.as_mut().ok_or_else(|| away("no connection"))?;
        session.ask(look).await
    }

    async fn plan(
        &mut self,
        seen: &Snapshot,
        until: &Snapshot,
        last_seq: i64,
        count: u64,
    ) -> Result<Vec<Planned>, Fault> {
        let Self {
            session,
            transaction,
            plan: cursor,
            ..
        } = self;
        if cursor.is_some() || transaction.is_none() {
            return Err(Fault::Defect("a plan in the wrong place".into()));
        }
        let declare = |server: &mut Postgres| {
            let snapshot = snapshot_of(server, transaction);
            let planned = plan(server.sizes(&snapshot), seen, until, last_seq);
            drained(cursor.insert(planned.into()), count)
        };
        let session = session.as_mut().ok_or_else(|| away("no connection"))?;
        session.ask(declare).await
    }

    async fn planned(&mut self, count: u64) -> Result<Vec<Planned>, Fault> {
        let Self { session, plan, .. } = self;
        let fetch = |_: &mut Postgres| Some(drained(plan.as_mut()?, count));
        let session = session.as_mut().ok_or_else(|| away("no connection"))?;
        let fetched: Option<Vec<Planned>> = session.ask(fetch).await?;
        fetched.ok_or_else(|| Fault::Defect("there is no plan".into()))
    }

    async fn rows(&mut self, xids: &[Xid], last: bool) -> Result<Vec<(Xid, Event)>, Fault> {
        let Self {
            world,
            session,
            transaction,
            plan,
        } = self;
        let read = |server: &mut Postgres| {
            let snapshot = snapshot_of(server, transaction);
            server.hand_out(&snapshot);
            if last {
                (*transaction, *plan) = (None, None);
            }
            let rows = server.visible(&snapshot);
            rows.filter(|row| xids.contains(&row.xid))
                .cloned()
                .collect()
        };
        let session = session.as_mut().ok_or_else(|| away("no connection"))?;
        let mut rows: Vec<Row> = session.ask(read).await?;
        world.shuffle(&mut rows);
        Ok(rows
            .iter()
            .map(|row| (row.xid, event(world, row)))
            .collect())
    }

    async fn is_flushed(&mut self, written: &str) -> Result<bool, Fault> {
        let written = written.parse().unwrap_or(usize::MAX);
        self.session()?
            .ask(|server| server.is_flushed(written))
            .await
    }

    async fn nudge(&mut self) -> Result<(), Fault> {
        let mut session = Session::connect(&self.world).await?;
        session.ask(Postgres::nudge).await
    }

    fn pages(&self, origin: &Origin) -> SimulatedPages {
        let snapshot = self.transaction.clone().flatten();
        SimulatedPages {
            world: self.world.clone(),
            planned_at: origin.clone(),
            snapshot: snapshot.unwrap_or_else(Snapshot::empty),
            session: None,
        }
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        let mut session = Session::connect(&self.world).await?;
        session.ask(|server| server.register(position)).await
    }
}

pub fn registrations(server: &mut Postgres) -> Vec<Registration> {
    let registration = || Registration {
        name: NAME.into(),
        table: TABLE.into(),
    };
    server
        .registered
        .as_ref()
        .map(|_| registration())
        .into_iter()
        .collect()
}

pub fn origin(server: &mut Postgres, capture: CaptureKind) -> Origin {
    Origin {
        system_id: "7".into(),
        timeline: server.timeline,
        database_oid: 5,
        table: TABLE.into(),
        capture: capture.name().into(),
    }
}

/// Pages of a large transaction, on a connection of their own.
pub struct SimulatedPages {
    world: World,
    planned_at: Origin,
    /// In which the transaction was planned.
    snapshot: Snapshot,
    session: Option<Session>,
}

impl SimulatedPages {
    async fn connect(&self) -> Result<Session, Fault> {
        let mut session = Session::connect(&self.world).await?;
        let here = session
            .ask(|server| origin(server, CaptureKind::Table))
            .await?;
        here.is_where(&self.planned_at)?;
        Ok(session)
    }
}

impl Pages for SimulatedPages {
    async fn page(&mut self, xid: Xid, after_seq: i64, events: u64) -> Result<Vec<Event>, Fault> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.connect().await?,
        };
        let session = self.session.insert(session);
        let read = |server: &mut Postgres| {
            server.hand_out(&self.snapshot);
            let rows = server.kept_rows();
            let mut rows: Vec<Row> = rows
                .filter(|row| row.xid == xid && row.seq > after_seq)
                .cloned()
                .collect();
            rows.sort_by_key(|row| row.seq);
            rows.truncate(usize::try_from(events).unwrap_or(usize::MAX));
            rows
        };
        let rows = session.ask(read).await?;
        Ok(rows.iter().map(|row| event(&self.world, row)).collect())
    }
}

/// The topic of a key.
pub fn topic_of(world: &World, key: u64) -> String {
    format!("topic-{}", key % world.scenario().topics)
}

fn event(world: &World, row: &Row) -> Event {
    Event {
        seq: row.seq,
        id: row.id,
        topic: Arc::from(topic_of(world, row.key)),
        key: Some(Bytes::from(row.key.to_string())),
        event_type: None,
        payload: None,
        headers: Vec::new(),
        occurred_at_ms: 1,
    }
}
