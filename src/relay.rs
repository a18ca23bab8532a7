//! The loop: hold the lease, open the sink, read, publish, acknowledge. It knows the seams, never a broker, never SQL.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::capture::{Capture, Start};
use crate::crash_point::crash_point;
use crate::event::Batch;
use crate::fault::{Backoff, Fault, Server, Verdict};
use crate::lease::{Lease, STANDBY_POLL};
use crate::metrics::{Done, Metrics, State};
use crate::park::{NoStore, Park, Store};
use crate::position::Position;
use crate::sink::Sink;

/// Acknowledgements are a copy for people and retention, so one a second is enough while events flow.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);
/// How often an active relay says in the log what it did.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How often is looked whether all is well while a batch is published, and after how long that is a line in the log.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const SILENT: Duration = Duration::from_secs(5);
/// A relay that has not reached Kafka for so long lets another one try: perhaps it is only this one that is cut off.
const GIVE_WAY: Duration = Duration::from_secs(5);
/// Long enough for any other to find the lease free.
const OTHERS_TRY: Duration = STANDBY_POLL.saturating_mul(4);
/// Waiting times while a server is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// How a relay runs.
#[derive(Clone, Copy, Debug)]
pub struct RelaySettings {
    /// Where it starts when it has no position yet.
    pub start: Start,
    /// End when everything that was committed before the start is published.
    pub until_caught_up: bool,
}

/// What a relay published since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Database transactions.
    pub transactions: u64,
    /// Events in them.
    pub events: u64,
}

/// Whether a backlog is read ahead while a batch is published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    Read,
    Leave,
}

/// One relay of one name.
pub struct Relay<C, S, L, P = NoStore> {
    capture: C,
    park: Park<P>,
    sink: S,
    lease: L,
    settings: RelaySettings,
    stop: CancellationToken,
    published: Published,
    metrics: Metrics,
    /// What the log was told last: each change is one line.
    state: State,
    backoff: Backoff,
    /// The first fault since the last success.
    failing_since: Option<Instant>,
    /// The sink was opened anew since the last success.
    reopened: bool,
}

impl<C, S, L> Relay<C, S, L> {
    /// `stop` lets it drain: the batch under way is finished, then [`Relay::run`] returns.
    pub fn new(
        capture: C,
        sink: S,
        lease: L,
        settings: RelaySettings,
        stop: CancellationToken,
    ) -> Self {
        let (least, most) = BACKOFF;
        Self {
            capture,
            park: Park::none(),
            sink,
            lease,
            settings,
            stop,
            published: Published::default(),
            metrics: Metrics::default(),
            state: State::Starting,
            backoff: Backoff::new(least, most),
            failing_since: None,
            reopened: false,
        }
    }

    /// With a place for transactions that can't be published.
    pub fn parking<P>(self, park: Park<P>) -> Relay<C, S, L, P> {
        Relay {
            capture: self.capture,
            park,
            sink: self.sink,
            lease: self.lease,
            settings: self.settings,
            stop: self.stop,
            published: self.published,
            metrics: self.metrics,
            state: self.state,
            backoff: self.backoff,
            failing_since: self.failing_since,
            reopened: self.reopened,
        }
    }
}

impl<C: Capture, S: Sink, L: Lease, P: Store> Relay<C, S, L, P> {
    /// Tells these metrics what it does.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Runs until it is stopped, caught up (if that is the order), or must not go on.
    ///
    /// # Errors
    /// The fault that must be put right by a person; all others it gets over by itself.
    pub async fn run(mut self) -> Result<Published, Fault> {
        let end = loop {
            let Err(fault) = self.turn().await else {
                break Ok(self.published);
            };
            self.close().await;
            // Again: letting go may have taken long, and the store must not be told by one whose lease is lost.
            let fault = match fault {
                Fault::Unpublishable { .. } => self.own(fault).await,
                fault => fault,
            };
            let Err(fault) = self.park.failed(fault).await else {
                self.metrics.set_aside();
                continue;
            };
            self.metrics.met(&fault);
            if let Verdict::Stop(_) = fault.verdict() {
                break Err(fault);
            }
            if self.stop.is_cancelled() {
                break Ok(self.published);
            }
            self.get_over(&fault).await;
        };
        // It publishes no more, so its successor need not wait until it is disconnected: what may still be on its way to
        // Kafka is fenced.
        self.capture.close();
        tokio::join!(self.lease.release(), self.sink.close());
        crash_point("relay.closed");
        end
    }

    /// A relay that waits, for whatever it is, holds neither server.
    async fn close(&mut self) {
        self.capture.close();
        self.sink.close().await;
    }

    /// From the lease to the end, or to the first fault.
    async fn turn(&mut self) -> Result<(), Fault> {
        if !self.stand_by().await? {
            return Ok(());
        }
        crash_point("relay.leased");
        match self.serve().await {
            Err(fault) => Err(self.own(fault).await),
            Ok(()) => Ok(()),
        }
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        let position = self.open().await?;
        self.enter(State::Active, || {
            info!("active: publishing from {position}")
        });
        self.metrics.stands_at(&position);
        self.relay_from(position).await
    }

    /// Waits for the lease; `false` if it was stopped before.
    async fn stand_by(&mut self) -> Result<bool, Fault> {
        if self.lease.held().is_ok() {
            return Ok(true);
        }
        self.lease.release().await;
        while !self.stop.is_cancelled() {
            self.metrics.turned();
            if self.lease.try_acquire().await? {
                return Ok(true);
            }
            self.enter(State::StandBy, || {
                info!("standing by: another relay of this name holds the lease")
            });
            self.pause(STANDBY_POLL).await;
        }
        Ok(false)
    }

    /// The position to go on from. The first start of all writes one before anything else.
    async fn open(&mut self) -> Result<Position, Fault> {
        let (opened, ()) = tokio::join!(self.sink.open(), self.capture.prepare());
        if let Some(position) = opened? {
            return Ok(position);
        }
        let genesis = self.capture.genesis(self.settings.start).await?;
        info!("first start of this relay: beginning at {genesis}");
        self.sink.publish(Batch::genesis(genesis.clone())).await?;
        crash_point("relay.genesis");
        Ok(genesis)
    }

    /// One that stood still since it opened must not take what its successor did for a reason to stop: a registration for a
    /// lost position, a slot that has moved on for one that was made anew, parked transactions that it does not know.
    async fn own(&self, fault: Fault) -> Fault {
        match fault.verdict() {
            Verdict::Stop(_) => self.lease.prove().await.err().unwrap_or(fault),
            _ => fault,
        }
    }

    async fn relay_from(&mut self, mut position: Position) -> Result<(), Fault> {
        self.park.open(&position).await?;
        // The first acknowledgement waits for the first look: only that tells whether the position belongs here.
        let mut acknowledged: Option<(Instant, Position)> = None;
        let mut report = Report::new(self.published);
        let (mut read_ahead, mut looked) = (None, false);
        while !self.stop.is_cancelled() {
            self.metrics.turned();
            if looked && self.release(&mut position).await? {
                continue;
            }
            let batch = match read_ahead.take() {
                Some(batch) => Some(batch),
                None => self.next(&position).await?,
            };
            // What an operator asked for comes before it: it makes room for what must wait.
            if !std::mem::replace(&mut looked, true) && batch.is_some() {
                read_ahead = batch;
                continue;
            }
            let batch = match batch {
                None => None,
                Some(batch) => {
                    let Some(sifted) = self.park.sift(batch).await? else {
                        continue;
                    };
                    Some(sifted)
                }
            };
            // A position without events is there to be acknowledged.
            let idle = batch.as_ref().is_none_or(|batch| batch.events == 0);
            let caught_up = batch.as_ref().is_none_or(|batch: &Batch| batch.catches_up);
            if let Some(batch) = batch {
                (position, read_ahead) = self.publish(&position, batch, Ahead::Read).await?;
                crash_point("relay.published");
            }
            let due = acknowledged.as_ref().is_none_or(|(at, known)| {
                *known != position && (idle || at.elapsed() >= ACKNOWLEDGE_EVERY)
            });
            if due {
                self.capture.acknowledge(&position).await?;
                crash_point("relay.acknowledged");
                acknowledged = Some((Instant::now(), position.clone()));
            }
            report.tell(self.published);
            if caught_up && self.settings.until_caught_up {
                break;
            }
        }
        crash_point("relay.drained");
        if acknowledged.is_some_and(|(_, known)| known != position) {
            self.capture.acknowledge(&position).await?;
        }
        Ok(())
    }

    async fn next(&mut self, position: &Position) -> Result<Option<Batch>, Fault> {
        self.capture.limit(self.park.transactions_max());
        next_or_stop(&mut self.capture, &position.place(), &self.stop).await
    }

    /// Publishes what waited and is free now; whether there was anything. What was read ahead stays good: the place is the
    /// same.
    async fn release(&mut self, position: &mut Position) -> Result<bool, Fault> {
        let Some(batch) = self.park.release(position).await? else {
            return Ok(false);
        };
        (*position, _) = self.publish(position, batch, Ahead::Leave).await?;
        crash_point("relay.released");
        Ok(true)
    }

    /// Group commit: a backlog is read ahead while a batch is published. Without one the next look waits until the batch
    /// is visible, and finds all that came meanwhile: read earlier, that would have waited one Kafka transaction more.
    async fn publish(
        &mut self,
        before: &Position,
        mut batch: Batch,
        ahead: Ahead,
    ) -> Result<(Position, Option<Batch>), Fault> {
        self.lease.held()?;
        let place = batch.after.clone();
        batch.after.unsettled = self.park.said();
        let after = batch.after.clone();
        if !before.precedes(&after) {
            return Err(Fault::Defect(format!(
                "the position would go back from {before:?} to {after:?}"
            )));
        }
        let (transactions, events) = (batch.transactions, batch.events);
        let (meter, began) = (batch.meter(), Instant::now());
        let published = CancellationToken::new();
        let publish = async {
            let end = self.sink.publish(batch).await;
            published.cancel();
            end.map(|()| began.elapsed())
        };
        let (capture, stop) = (&mut self.capture, &self.stop);
        capture.limit(self.park.transactions_max_then());
        let beside = async {
            let next = match (ahead, &place.window) {
                (Ahead::Read, Some(_)) => next_or_stop(capture, &place, stop).await,
                _ => Ok(None),
            };
            let _ = (published.run_until_cancelled(take_care(capture, &self.lease))).await;
            next
        };
        let (end, next) = tokio::join!(publish, beside);
        let took = end?;
        self.park.published().await?;
        self.metrics.published(Done {
            transactions,
            events,
            took,
            passed: meter.read(),
            after: after.clone(),
        });
        self.backoff.reset();
        self.failing_since = None;
        self.reopened = false;
        self.published.transactions += transactions;
        self.published.events += events;
        Ok((after, next?))
    }

    async fn get_over(&mut self, fault: &Fault) {
        match (fault.verdict(), fault) {
            (Verdict::BackOff, Fault::Unavailable(server, _)) => {
                self.enter(State::Waiting(*server), || {
                    warn!("{fault}; waiting for it, nothing is lost")
                });
                let mut wait = self.backoff.next(fastrand::f64());
                let since = *self.failing_since.get_or_insert_with(Instant::now);
                if *server == Server::Kafka && since.elapsed() >= GIVE_WAY {
                    self.lease.release().await;
                    wait = wait.max(OTHERS_TRY);
                }
                self.pause(wait).await;
            }
            (Verdict::StandBy, _) => {
                warn!("{fault}");
                self.lease.release().await;
            }
            _ => {
                info!("{fault}");
                // Once at once; again and again without a success in between is no cure.
                if std::mem::replace(&mut self.reopened, true) {
                    let wait = self.backoff.next(fastrand::f64());
                    self.pause(wait).await;
                }
            }
        }
    }

    fn enter(&mut self, state: State, say: impl FnOnce()) {
        if self.state != state {
            self.state = state;
            self.metrics.entered(state);
            say();
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            biased;
            () = sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// While Kafka is silent: says so, and lets go of a PostgreSQL that shuts down. The lease is the first to hear of that.
async fn take_care<C: Capture, L: Lease>(capture: &mut C, lease: &L) {
    let since = Instant::now();
    let (mut said, mut closed) = (false, false);
    loop {
        sleep(LOOK_EVERY).await;
        let took = since.elapsed();
        if took >= SILENT && !std::mem::replace(&mut said, true) {
            let seconds = took.as_secs();
            warn!(
                "publishing takes long, {seconds} s so far: a large transaction, or Kafka does not answer; nothing is lost"
            );
        }
        if lease.held().is_err() && !std::mem::replace(&mut closed, true) {
            capture.close();
        }
    }
}

/// A stop does not wait for something to come.
async fn next_or_stop<C: Capture>(
    capture: &mut C,
    after: &Position,
    stop: &CancellationToken,
) -> Result<Option<Batch>, Fault> {
    let batch = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(None),
        next = capture.next(after) => next?,
    };
    if batch.is_some() {
        crash_point("relay.read");
    }
    Ok(batch)
}

/// One log line each [`REPORT_EVERY`] while events flow.
struct Report {
    told: Published,
    at: Instant,
}

impl Report {
    fn new(now: Published) -> Self {
        Self {
            told: now,
            at: Instant::now(),
        }
    }

    fn tell(&mut self, now: Published) {
        let elapsed = self.at.elapsed();
        if elapsed < REPORT_EVERY {
            return;
        }
        let events = now.events - self.told.events;
        if events > 0 {
            let per_second = u128::from(events) * 1000 / elapsed.as_millis().max(1);
            info!(
                events,
                transactions = now.transactions - self.told.transactions,
                "published {per_second} events/s"
            );
        }
        *self = Self::new(now);
    }
}
