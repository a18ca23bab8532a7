//! The lease over the simulated PostgreSQL: the same protocol as `AdvisoryLease`, with both views of time. The server ends
//! a session that was silent for the lease time; the holder counts from the moment in which it *sent* its last good ping,
//! by a clock that stands still while its machine is suspended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox_relay::fault::{Fault, Server};
use outbox_relay::lease::Lease;
use outbox_relay::sink::kafka::Proof;
use tokio::time::{Instant, timeout};

use crate::postgres::session::Session;
use crate::process::Process;
use crate::world::World;

/// One process' right to be active.
#[derive(Clone)]
pub struct SimulatedLease {
    world: World,
    process: Process,
    lease_time: Duration,
    holding: Arc<Mutex<Option<Arc<Holding>>>>,
}

/// A session that got the lock. When the process ends, or lets go, the server learns of it, or only by silence.
struct Holding {
    world: World,
    process: Process,
    session: u64,
    connection: tokio::sync::Mutex<Session>,
    last_good_ping: Mutex<Option<Instant>>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let world = &self.world;
        let unheard = world.trouble(0.1);
        if !unheard {
            let notices = Instant::now() + world.time(0..=5);
            world.postgres().end_session(self.session, notices);
        }
    }
}

fn locked<T>(cell: &Mutex<T>) -> MutexGuard<'_, T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost(why: &str) -> Fault {
    Fault::LeaseLost(why.to_owned())
}

impl SimulatedLease {
    pub fn new(world: &World, process: &Process) -> Self {
        Self {
            world: world.clone(),
            process: process.clone(),
            lease_time: world.scenario().lease_time,
            holding: Arc::default(),
        }
    }

    fn holding(&self) -> Option<Arc<Holding>> {
        locked(&self.holding).clone()
    }
}

impl Holding {
    async fn ping(&self, lease_time: Duration) -> bool {
        let sent = self.process.clock();
        let ask = async {
            let mut connection = self.connection.lock().await;
            connection
                .ask(|server| server.ping_lease(self.session, lease_time))
                .await
        };
        let alive = matches!(timeout(lease_time, ask).await, Ok(Ok(true)));
        *locked(&self.last_good_ping) = alive.then_some(sent);
        alive
    }
}

/// Pings three times in a lease time, until the lease is let go or lost.
async fn keep(process: Process, holding: std::sync::Weak<Holding>, lease_time: Duration) {
    loop {
        process.sleep(lease_time / 3).await;
        let Some(holding) = holding.upgrade() else {
            return;
        };
        if !holding.ping(lease_time).await {
            return;
        }
    }
}

impl Lease for SimulatedLease {
    async fn try_acquire(&self) -> Result<bool, Fault> {
        let (world, lease_time) = (&self.world, self.lease_time);
        let sent = self.process.clock();
        let ask = async {
            let mut connection = Session::connect(world).await?;
            let session = world.postgres().new_session();
            let term = connection
                .ask(|server| server.try_lease(session, lease_time))
                .await;
            // An answer that is lost leaves a lock without a holder, until the silence is noticed.
            Ok::<_, Fault>(term?.map(|term| (connection, session, term)))
        };
        let silent = |_| Fault::Unavailable(Server::Postgres, "no answer".into());
        let Some((connection, session, term)) =
            timeout(lease_time, ask).await.map_err(silent)??
        else {
            return Ok(false);
        };
        world.tell(|| format!("{} holds the lease, term {term}", self.process.name()));
        self.process.set_term(term);
        let holding = Arc::new(Holding {
            world: world.clone(),
            process: self.process.clone(),
            session,
            connection: connection.into(),
            last_good_ping: Some(sent).into(),
        });
        let keeper = keep(self.process.clone(), Arc::downgrade(&holding), lease_time);
        *locked(&self.holding) = Some(holding);
        let governed = self.process.run(keeper);
        world.spawn(async {
            governed.await;
        });
        Ok(true)
    }

    fn held(&self) -> Result<(), Fault> {
        let last = self
            .holding()
            .and_then(|holding| *locked(&holding.last_good_ping));
        match last {
            Some(sent) if self.process.clock() < sent + self.lease_time => Ok(()),
            Some(_) => Err(lost("no ping was answered within the lease time")),
            None => Err(lost("its session has ended")),
        }
    }

    async fn prove(&self) -> Result<(), Fault> {
        let Some(holding) = self.holding() else {
            return Err(lost("it is not held"));
        };
        if holding.ping(self.lease_time).await {
            Ok(())
        } else {
            Err(lost("it could not be proven"))
        }
    }

    async fn release(&self) {
        let holding = locked(&self.holding).take();
        if holding.is_some() {
            self.world
                .tell(|| format!("{} lets go of the lease", self.process.name()));
        }
    }
}

impl Proof for SimulatedLease {
    async fn prove(&self) -> Result<(), Fault> {
        Lease::prove(self).await
    }
}
