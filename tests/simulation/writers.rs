//! Writers: concurrent transactions on a few keys, as applications write them.
//!
//! Each locks the aggregate before it inserts the aggregate's events. It may take its transaction id long before (lock
//! inversion), undo a savepoint, roll back, prepare, or commit without waiting for the disk.

use std::time::Duration;

use outbox_relay::fault::Fault;
use outbox_relay::position::Xid;
use tokio::time::sleep;
use uuid::Uuid;

use crate::postgres::Postgres;
use crate::postgres::session::Session;
use crate::scenario::KEYS_OF_A_TRANSACTION;
use crate::world::World;

/// One client's life.
pub async fn write(world: World) {
    for _ in 0..world.scenario().transactions_of_each_writer {
        world.pass(0..=60).await;
        // A failed transaction is the application's to repeat; here the next one takes its place.
        if transaction(&world).await.is_err() {
            world.count("writer lost its connection");
            world.pass(5..=100).await;
        }
    }
}

async fn transaction(world: &World) -> Result<(), Fault> {
    let mut backend = Backend {
        session: Session::connect(world).await?,
        world: world.clone(),
        xid: None,
        rows: Vec::new(),
    };
    let scenario = world.scenario();
    if world.chance(0.5) {
        backend.xid().await?;
        backend.pause().await;
    }
    let mut keys: Vec<u64> = (0..scenario.keys).collect();
    world.shuffle(&mut keys);
    keys.truncate(world.number(1..=KEYS_OF_A_TRANSACTION) as usize);
    // In one order, so that nobody waits in a circle.
    keys.sort_unstable();
    for key in keys {
        let version = backend.lock(key).await?;
        backend.pause().await;
        let events = if world.chance(0.1) {
            world.number(5..=scenario.events_of_a_key)
        } else {
            world.number(1..=3)
        };
        if world.chance(0.15) {
            backend.undone_savepoint(key, version + 1).await?;
        }
        for version in version + 1..=version + events {
            backend.insert(key, version).await?;
        }
    }
    if world.chance(scenario.long_writers) {
        world.count("long writer");
        world.pass(100..=1_500).await;
    }
    backend.end().await
}

/// A session with its transaction. When the client goes away, the server rolls back.
struct Backend {
    world: World,
    session: Session,
    xid: Option<Xid>,
    rows: Vec<i64>,
}

impl Backend {
    async fn pause(&self) {
        if self.world.chance(0.3) {
            self.world.pass(0..=30).await;
        }
    }

    async fn xid(&mut self) -> Result<Xid, Fault> {
        if let Some(xid) = self.xid {
            return Ok(xid);
        }
        let taken = &mut self.xid;
        let take = |server: &mut Postgres| *taken.insert(server.take_xid());
        self.session.ask(take).await
    }

    /// Waits for the aggregate's row lock; its version.
    async fn lock(&mut self, key: u64) -> Result<u64, Fault> {
        let xid = self.xid().await?;
        loop {
            let version = self.session.ask(|server| server.try_lock(xid, key)).await?;
            if let Some(version) = version {
                return Ok(version);
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn insert(&mut self, key: u64, version: u64) -> Result<i64, Fault> {
        let xid = self.xid().await?;
        let id =
            Uuid::from_u128(u128::from(self.world.number(0..=u64::MAX)) << 64 | u128::from(xid));
        let bytes = self.world.number(1..=100);
        let rows = &mut self.rows;
        let insert = |server: &mut Postgres| {
            let seq = server.insert(xid, id, key, version, bytes);
            rows.push(seq);
            seq
        };
        self.session.ask(insert).await
    }

    async fn undone_savepoint(&mut self, key: u64, version: u64) -> Result<(), Fault> {
        let xid = self.xid().await?;
        self.world.count("savepoint undone");
        self.session.ask(|server| server.take_subxid(xid)).await?;
        let undone = self.insert(key, version).await?;
        self.rows.retain(|seq| *seq != undone);
        Ok(())
    }

    async fn end(mut self) -> Result<(), Fault> {
        let (world, xid) = (self.world.clone(), self.xid().await?);
        let scenario = world.scenario();
        let rows = std::mem::take(&mut self.rows);
        if world.chance(scenario.rollbacks) {
            world.count("rollback");
            self.session.ask(|server| server.abort(xid)).await
        } else if world.chance(scenario.prepared) {
            world.count("prepared transaction");
            self.session.ask(|server| server.prepare(xid, rows)).await
        } else if world.chance(scenario.asynchronous_commits) {
            world.count("asynchronous commit");
            let commit = |server: &mut Postgres| {
                server.log_commit(xid, rows.clone());
                server.finish_commit(xid, &rows);
            };
            self.session.ask(commit).await
        } else {
            self.commit(xid, rows).await
        }
    }

    /// The server waits for the disk before the transaction becomes visible, whether or not its client still waits.
    async fn commit(&mut self, xid: Xid, rows: Vec<i64>) -> Result<(), Fault> {
        let (world, taken) = (self.world.clone(), &mut self.xid);
        let log = |server: &mut Postgres| {
            *taken = None;
            let (end, life) = (server.log_commit(xid, rows.clone()), server.life);
            world.spawn(finish(world.clone(), life, xid, end, rows));
        };
        self.session.ask(log).await?;
        while self.world.postgres().is_running(xid) && self.session.is_open() {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

async fn finish(world: World, life: u64, xid: Xid, end: usize, rows: Vec<i64>) {
    world.pass(0..=3).await;
    let running = |server: &Postgres| server.up && server.life == life;
    if running(&world.postgres()) {
        world.postgres().flush(end);
    }
    let standby = world.scenario().standby_ms;
    if standby > 0 {
        world.pass(0..=standby).await;
    }
    let mut server = world.postgres();
    if running(&server) {
        server.finish_commit(xid, &rows);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(xid) = self.xid {
            let mut server = self.world.postgres();
            if server.up && server.life == self.session.life() {
                server.end_backend(xid);
            }
        }
    }
}

/// Somebody ends what was prepared, sooner or later.
pub async fn resolve_prepared(world: World) {
    loop {
        world.pass(20..=400).await;
        let mut server = world.postgres();
        if !server.up {
            continue;
        }
        let prepared = server.prepared();
        let Some((xid, rows)) = prepared.into_iter().next() else {
            continue;
        };
        if world.chance(0.7) {
            let end = server.log_commit(xid, rows.clone());
            server.flush(end);
            server.finish_commit(xid, &rows);
        } else {
            server.abort(xid);
        }
    }
}

/// The WAL writer and the checkpointer.
pub async fn write_wal(world: World) {
    loop {
        world.pass(1..=world.scenario().wal_writer_ms).await;
        let mut server = world.postgres();
        if !server.up {
            continue;
        }
        let part = world.number(0..=server.unflushed() as u64) as usize;
        let end = server.written();
        let up_to = if world.chance(0.5) { end } else { end - part };
        server.flush(up_to);
        if world.chance(0.05) {
            server.checkpoint();
        }
    }
}
