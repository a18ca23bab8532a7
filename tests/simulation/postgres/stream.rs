//! The replication stream of the simulated PostgreSQL: a walsender and the connection to it.

use std::collections::VecDeque;

use outbox_relay::capture::wal::shell::{Feedback, Sent, Stream};
use outbox_relay::fault::Fault;
use outbox_relay::position::Lsn;
use tokio::sync::watch;

use super::Postgres;
use super::pgoutput;
use super::session::{Session, away};
use super::shell::topic_of;
use super::slot::Decoded;
use crate::process::Process;
use crate::world::World;

/// A stream. It is read by a task of its own, which stands still with its process.
pub struct SimulatedStream {
    world: World,
    process: Process,
    session: Session,
    /// Of the streams of the slot.
    number: u64,
    /// All up to this place was sent.
    at: usize,
    /// Up to this place that was said.
    told: usize,
    described: bool,
    on_its_way: VecDeque<Sent>,
    feedback: Feedback,
    acknowledged: watch::Receiver<Lsn>,
    /// A walsender that does not wait for the flush; there is none, but for a mutation.
    pub unflushed: bool,
}

impl SimulatedStream {
    pub fn new(
        world: &World,
        process: &Process,
        session: Session,
        number: u64,
        after: usize,
        from: Lsn,
    ) -> Self {
        let (feedback, acknowledged) = watch::channel(from);
        Self {
            world: world.clone(),
            process: process.clone(),
            session,
            number,
            at: after,
            told: 0,
            described: false,
            on_its_way: VecDeque::new(),
            feedback,
            acknowledged,
            unflushed: false,
        }
    }

    async fn sent(&mut self) -> Result<Sent, Fault> {
        if self.world.chance(0.1) {
            self.world.pass(0..=2).await;
        }
        while self.on_its_way.is_empty() {
            self.read_on().await?;
        }
        // What is on its way may still arrive when the connection is gone.
        let lost = !self.session.is_open() && self.world.chance(0.3);
        if lost {
            self.world.count("WAL: a stream breaks in what it sent");
        }
        let sent = self.on_its_way.pop_front().filter(|_| !lost);
        sent.ok_or_else(|| away("the stream broke"))
    }

    /// The walsender hears what was acknowledged, and reads on to the next commit or to the end.
    async fn read_on(&mut self) -> Result<(), Fault> {
        let (number, at, unflushed) = (self.number, self.at, self.unflushed);
        let acknowledged = *self.acknowledged.borrow_and_update();
        let world = self.world.clone();
        let read = move |server: &mut Postgres| {
            if !server.slot.is_of(number) {
                return None;
            }
            hear(&world, server, acknowledged);
            let end = match unflushed {
                true => server.written(),
                false => server.flushed(),
            };
            Some((server.decode(at, end), end))
        };
        let read = self.session.ask(read).await?;
        match read.ok_or_else(|| away("another stream has the slot"))? {
            (Some(decoded), _) => self.send(&decoded),
            (None, end) if end > self.told => {
                (self.at, self.told) = (end, end);
                let reached = self.world.postgres().lsn(end);
                self.on_its_way.push_back(Sent::Reached(reached));
            }
            (None, _) => self.world.pass(1..=20).await,
        }
        Ok(())
    }

    fn send(&mut self, decoded: &Decoded) {
        self.at = decoded.end;
        // Before version 15 what has no rows of ours is sent too.
        if decoded.rows.is_empty() && !self.world.scenario().sends_empty {
            return;
        }
        let end = self.world.postgres().lsn(decoded.end);
        let (xid, rows) = (decoded.xid, decoded.rows.len());
        self.world
            .tell(|| format!("    slot: transaction {xid} of {rows} rows ends at {end}"));
        let mut send = |message| self.on_its_way.push_back(Sent::Message(message));
        send(pgoutput::begin(decoded.xid, end));
        for row in &decoded.rows {
            if !std::mem::replace(&mut self.described, true) {
                send(pgoutput::relation());
            }
            send(pgoutput::insert(row, &topic_of(&self.world, row.key)));
        }
        if self.world.chance(0.1) {
            // A keepalive in the middle says nothing of the transaction around it.
            self.on_its_way.push_back(Sent::Reached(end));
        }
        self.on_its_way
            .push_back(Sent::Message(pgoutput::commit(end)));
    }
}

/// The slot need not keep what was acknowledged. Whether the sink has stored so much is for the judge.
fn hear(world: &World, server: &mut Postgres, acknowledged: Lsn) {
    let place = server.place(acknowledged);
    if !server.slot.confirm(place) {
        return;
    }
    world.tell(|| format!("    slot: confirmed up to {acknowledged}"));
    let stored = world.kafka().stored_place();
    if stored.is_none_or(|stored| stored < acknowledged) {
        let ahead = || format!("the slot stands at {acknowledged}, the position at {stored:?}");
        server.slot.ahead.get_or_insert_with(ahead);
    }
    if world.chance(0.3) {
        server.slot.save();
    }
}

impl Stream for SimulatedStream {
    async fn next(&mut self) -> Result<Sent, Fault> {
        let process = self.process.clone();
        let sent = process.run(self.sent()).await;
        sent.ok_or_else(|| away("nobody reads any more"))?
    }

    fn feedback(&self) -> Feedback {
        self.feedback.clone()
    }
}

impl Drop for SimulatedStream {
    fn drop(&mut self) {
        self.world.postgres().slot.leave(self.number);
    }
}
