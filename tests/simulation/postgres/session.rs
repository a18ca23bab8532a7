//! A connection to the simulated PostgreSQL, with what can happen to a request on it.

use std::time::Duration;

use outbox_relay::fault::{Fault, Server};
use tokio::time::sleep;

use super::Postgres;
use crate::world::World;

/// How long a client waits on a connection that has gone silent (`tcp_user_timeout`, scaled down).
const SILENCE: Duration = Duration::from_millis(1_500);

/// What happens to one request.
enum Fate {
    Answered,
    Slow(Duration),
    LostBefore,
    LostAfter,
    Silent,
}

/// One connection.
pub struct Session {
    world: World,
    life: u64,
    broken: bool,
}

/// PostgreSQL is away, and why.
pub fn away(why: &str) -> Fault {
    Fault::Unavailable(Server::Postgres, why.to_owned())
}

impl Session {
    /// Connects, if the server is up.
    pub async fn connect(world: &World) -> Result<Self, Fault> {
        world.pass(0..=2).await;
        let broken = world.trouble(world.scenario().query_faults);
        let (up, life) = {
            let server = world.postgres();
            (server.up, server.life)
        };
        if !up || broken {
            return Err(away("it does not listen"));
        }
        Ok(Self {
            world: world.clone(),
            life,
            broken: false,
        })
    }

    /// The life of the server that it belongs to.
    pub fn life(&self) -> u64 {
        self.life
    }

    pub fn is_open(&self) -> bool {
        let server = self.world.postgres();
        !self.broken && server.up && server.life == self.life
    }

    /// One request. Dropped before it arrived it never happened, dropped later it did.
    pub async fn ask<T>(&mut self, apply: impl FnOnce(&mut Postgres) -> T) -> Result<T, Fault> {
        let world = self.world.clone();
        let fate = self.fate();
        world.pass(0..=1).await;
        if let Fate::Slow(time) = fate {
            sleep(time).await;
        }
        if !self.is_open() || matches!(fate, Fate::LostBefore) {
            return self.lost();
        }
        if let Fate::Silent = fate {
            sleep(SILENCE).await;
            return self.lost();
        }
        let answer = apply(&mut world.postgres());
        world.pass(0..=1).await;
        if !self.is_open() || matches!(fate, Fate::LostAfter) {
            return self.lost();
        }
        Ok(answer)
    }

    fn lost<T>(&mut self) -> Result<T, Fault> {
        self.broken = true;
        Err(away("the connection was lost"))
    }

    fn fate(&self) -> Fate {
        let world = &self.world;
        if !world.trouble(world.scenario().query_faults) {
            return Fate::Answered;
        }
        let (fate, name) = match world.number(0..=3) {
            0 => (
                Fate::Slow(world.time(1..=600)),
                "PostgreSQL: delayed answer",
            ),
            1 => (Fate::LostBefore, "PostgreSQL: connection lost, not done"),
            2 => (Fate::LostAfter, "PostgreSQL: connection lost, done"),
            _ => (Fate::Silent, "PostgreSQL: connection silent"),
        };
        world.count(name);
        world.tell(|| name);
        fate
    }
}
