//! One active relay per name: the lease.
//!
//! The protocol, with its reasons:
//!
//! 1. The lease is a session advisory lock of PostgreSQL, keyed by the relay's name, on a direct connection of its own
//!    (a pooler in transaction mode would hand the session to somebody else).
//! 2. A standby *polls* `pg_try_advisory_lock` outside any transaction. Waiting inside the statement would pin the
//!    server's xmin for as long as the standby waits: VACUUM and CREATE INDEX CONCURRENTLY stall (measured).
//! 3. The session sets `idle_session_timeout` to the lease time and pings three times in it. A holder that is stopped,
//!    or cut off, loses the lock when the server ends its session; TCP alone may keep a dead session for hours.
//! 4. The holder counts itself out earlier than the server does: it stops publishing when its last good ping was *sent*
//!    longer ago than the lease time.
//! 5. The lock is no fence: a stopped holder may wake up in the middle of a step. The fence is Kafka's producer epoch.
//!    Because every `init_transactions` fences whoever is active, the lease is proven by a round trip before *and* after
//!    it. Without that, a zombie that recycles its producer fences the rightful successor, and they fence each other
//!    for ever.
//! 6. A holder that ends lets go as soon as its last batch is decided and acknowledged, and disconnects from Kafka
//!    meanwhile. A holder that has not reached Kafka for some seconds lets go too, and pauses long enough for the others to
//!    try: perhaps it is only this one that is cut off.
//!
//! A succession, step by step:
//!
//! | the old one | the server | the new one |
//! |---|---|---|
//! | is killed, cut off, stopped, or lets go | ends its session, at once or after the lease time; the lock is free | polls, and gets it |
//! | may still write to its open Kafka transaction | | proves the lease, takes the epoch: the broker aborts what the old one left open, and refuses all that it sends from now on |
//! | | | proves the lease again, then reads the position; nothing can move that any more but itself |
//! | wakes up: its next request is refused, or its clock says that the lease is over; it stands by | | reads from the position, publishes |
//!
//! Why it is safe: two that believe they hold the lease can't both publish, because of two epochs the broker knows the newer
//! (KIP-98, "Fencing zombies"); and the newer read its position after the older was fenced, so nothing was published that
//! it does not know of. The lease only decides who *tries*. What time it takes is in docs/guarantees.md.
//!
//! Sources: PostgreSQL manual, "Advisory Locks", "idle_session_timeout"; KIP-98; the simulator's mutation `NoProofAfterInit`
//! shows what the second proof is for.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::database::{Database, Value};
use crate::fault::{Fault, Server};

/// The right to be the active relay of a name. Clones share one lease.
pub trait Lease: Clone {
    /// Tries once. `Ok(false)`: somebody else holds it.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if PostgreSQL is away.
    fn try_acquire(&self) -> impl Future<Output = Result<bool, Fault>>;

    /// Whether the last good ping is recent enough to publish. Costs nothing.
    ///
    /// # Errors
    /// [`Fault::LeaseLost`] if not.
    fn held(&self) -> Result<(), Fault>;

    /// A round trip on the lease's own session.
    ///
    /// # Errors
    /// [`Fault::LeaseLost`] if it is not held any more or gave no answer within the lease time.
    fn prove(&self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Gives it back at once.
    fn release(&self) -> impl Future<Output = ()>;
}

/// The lease as an advisory lock; see the module's text.
#[derive(Clone)]
pub struct AdvisoryLease {
    database: Database,
    name: Arc<str>,
    lease_time: Duration,
    holding: Arc<Mutex<Option<Holding>>>,
    /// The session of a standby, kept between its tries.
    standby: Arc<tokio::sync::Mutex<Option<Client>>>,
}

/// The keeper task owns the session; we ask it.
struct Holding {
    last_good_ping: Arc<Mutex<Option<Instant>>>,
    asks: mpsc::Sender<oneshot::Sender<bool>>,
    keeper: JoinHandle<()>,
}

impl AdvisoryLease {
    /// A lease on `name` that a silent holder loses after `lease_time`.
    #[must_use]
    pub fn new(database: Database, name: &str, lease_time: Duration) -> Self {
        Self {
            database,
            name: name.into(),
            lease_time,
            holding: Arc::default(),
            standby: Arc::default(),
        }
    }

    async fn session(&self) -> Result<Client, Fault> {
        let client = self.database.connect().await?;
        let settings = include_str!("../sql/lease/session.sql")
            .replace("{lease_ms}", &self.lease_time.as_millis().to_string());
        client.batch_execute(&settings).await?;
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Holding>> {
        self.holding
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Lease for AdvisoryLease {
    async fn try_acquire(&self) -> Result<bool, Fault> {
        let mut standby = self.standby.lock().await;
        let client = match standby.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.session().await?,
        };
        let sent = Instant::now();
        let name: &str = &self.name;
        let values: [Value; 1] = [(&name, Type::TEXT)];
        let asked = client.query_typed_one(include_str!("../sql/lease/try.sql"), &values);
        let row = timeout(self.lease_time, asked).await.map_err(|_| {
            Fault::Unavailable(
                Server::Postgres,
                "no answer to the try for the lease".into(),
            )
        })??;
        if !row.try_get::<_, bool>(0)? {
            *standby = Some(client);
            return Ok(false);
        }
        let last_good_ping = Arc::new(Mutex::new(Some(sent)));
        let (asks, questions) = mpsc::channel(8);
        let keeper = Keeper {
            client,
            name: self.name.clone(),
            lease_time: self.lease_time,
            last_good_ping: last_good_ping.clone(),
        };
        let keeper = tokio::spawn(keeper.keep(questions));
        *self.lock() = Some(Holding {
            last_good_ping,
            asks,
            keeper,
        });
        Ok(true)
    }

    fn held(&self) -> Result<(), Fault> {
        let last = self
            .lock()
            .as_ref()
            .and_then(|holding| *ping_of(&holding.last_good_ping));
        match last {
            Some(sent) if sent.elapsed() < self.lease_time => Ok(()),
            Some(_) => Err(Fault::LeaseLost(
                "PostgreSQL has not answered a ping within the lease time".into(),
            )),
            None => Err(Fault::LeaseLost("its session has ended".into())),
        }
    }

    async fn prove(&self) -> Result<(), Fault> {
        let (answer, answered) = oneshot::channel();
        let asks = self.lock().as_ref().map(|holding| holding.asks.clone());
        let Some(asks) = asks else {
            return Err(Fault::LeaseLost("it is not held".into()));
        };
        let proof = async {
            asks.send(answer).await.ok()?;
            answered.await.ok()
        };
        match timeout(self.lease_time, proof).await {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false) | None) => Err(Fault::LeaseLost("its session has ended".into())),
            Err(_) => Err(Fault::LeaseLost(
                "PostgreSQL did not answer within the lease time".into(),
            )),
        }
    }

    async fn release(&self) {
        let holding = self.lock().take();
        if let Some(holding) = holding {
            holding.keeper.abort();
            // The session ends with the client that the task owned.
            let _ = holding.keeper.await;
        }
        *self.standby.lock().await = None;
    }
}

fn ping_of(cell: &Mutex<Option<Instant>>) -> std::sync::MutexGuard<'_, Option<Instant>> {
    cell.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Keeper {
    client: Client,
    name: Arc<str>,
    lease_time: Duration,
    last_good_ping: Arc<Mutex<Option<Instant>>>,
}

impl Keeper {
    /// Pings three times in a lease time, and whenever asked, until the session ends or nobody is left to ask.
    async fn keep(self, mut questions: mpsc::Receiver<oneshot::Sender<bool>>) {
        loop {
            let question = tokio::select! {
                biased;
                question = questions.recv() => match question {
                    Some(question) => Some(question),
                    None => return,
                },
                () = sleep(self.lease_time / 3) => None,
            };
            let alive = self.ping().await;
            if let Some(question) = question {
                let _ = question.send(alive);
            }
            if !alive {
                *ping_of(&self.last_good_ping) = None;
                return;
            }
        }
    }

    async fn ping(&self) -> bool {
        // The time of sending counts: the server starts its own clock no earlier than that.
        let sent = Instant::now();
        let name: &str = &self.name;
        let values: [Value; 1] = [(&name, Type::TEXT)];
        let asked = self
            .client
            .query_typed_one(include_str!("../sql/lease/ping.sql"), &values);
        let answer = timeout(self.lease_time, asked).await;
        let alive = matches!(answer, Ok(Ok(row)) if row.try_get(0).unwrap_or(false));
        if alive {
            *ping_of(&self.last_good_ping) = Some(sent);
        }
        alive
    }
}

/// Time between two tries of a standby: a successor publishes within it after the holder's session ended.
pub const STANDBY_POLL: Duration = Duration::from_millis(50);
