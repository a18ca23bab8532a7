//! Capture from the outbox table, by snapshot difference. Needs no slot, no `wal_level`, no superuser.
//!
//! A *window* is what a new snapshot sees and the position's snapshot did not. Its transactions are listed once, by a
//! cursor, in order of `max(seq)`; the rows of each batch are then read by transaction id, through the one index. A
//! window that is larger than a batch is cut between transactions; the position names the window until it is done.
//!
//! Here are the decisions; `shell` is what they ask of a database, `postgres` the one of production, `rows` makes events
//! of its rows, `large` streams a transaction that is too large for memory.

mod large;
mod postgres;
mod rows;
pub mod shell;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use self::large::LargeTransaction;
pub(crate) use self::postgres::shape;
pub use self::postgres::{PostgresShell, origin};
pub(crate) use self::rows::event;
use self::shell::{Opened, Shell};
pub use super::window::Planned;
use super::window::{Cut, assemble, cut};
use super::{Capture, CaptureSettings, Start, registry};
use crate::database::Database;
use crate::event::{Batch, Slice};
use crate::fault::Fault;
use crate::position::{Mismatch, Origin, Position, Snapshot, Tally, Window, Xid};

/// Transactions fetched from the plan at a time: ids and sizes only, 32 bytes each.
const PLAN_ROWS: u64 = 5_000;
/// An open window pins the server's xmin, so it is closed after this time and opened again from the position.
const WINDOW_OPEN_MAX: Duration = Duration::from_secs(10);
/// How long WAL may take to be flushed by itself before a synchronous commit of ours nudges it.
const FLUSH_PATIENCE: Duration = Duration::from_millis(5);

/// See the module's text.
pub struct TableCapture<S = PostgresShell> {
    settings: CaptureSettings,
    shell: S,
    session: Option<Session>,
    poll: Duration,
}

/// What holds for as long as the reading connection lives.
struct Session {
    origin: Origin,
    window: Option<OpenWindow>,
    /// A transaction may be open on the connection: set before BEGIN, so that a cancelled call is cleaned up.
    in_transaction: bool,
    /// The snapshot in which nothing was found, and the position that looked.
    nothing_at: Option<(Snapshot, Position)>,
}

/// A window with its plan under way.
struct OpenWindow {
    seen: Snapshot,
    until: Snapshot,
    /// The end of WAL that must be flushed before anything of the window is handed out; none once it was.
    written: Option<String>,
    /// Opened anew at the server's present, not resumed in its middle.
    fresh: bool,
    planned: VecDeque<Planned>,
    plan_exhausted: bool,
    opened: Instant,
    stands_at: Position,
}

impl TableCapture {
    /// Connects at the first call of [`Capture::next`] or [`Capture::genesis`].
    ///
    /// # Errors
    /// [`Fault::Defect`] if no pool can be built.
    pub fn new(settings: CaptureSettings, database: &Database) -> Result<Self, Fault> {
        let shell = PostgresShell::new(settings.clone(), database)?;
        Ok(Self::with_shell(settings, shell))
    }
}

impl<S: Shell> TableCapture<S> {
    /// A capture over another shell, for a simulator.
    pub fn with_shell(settings: CaptureSettings, shell: S) -> Self {
        let poll = settings.poll_min;
        Self {
            settings,
            shell,
            session: None,
            poll,
        }
    }

    async fn reading(&mut self) -> Result<Reading<'_, S>, Fault> {
        let live = match self.session.take() {
            Some(session) if self.shell.is_connected() => session,
            _ => Session::open(&self.settings, &mut self.shell).await?,
        };
        Ok(Reading {
            settings: &self.settings,
            shell: &mut self.shell,
            session: self.session.insert(live),
        })
    }

    async fn look(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        let batch = self.reading().await?.look(after).await;
        if batch.is_err() {
            // A failed statement leaves the connection in a state that is not worth knowing.
            self.close();
        }
        batch
    }
}

impl<S: Shell> Capture for TableCapture<S> {
    async fn prepare(&mut self) {
        self.shell.prepare().await;
    }

    async fn genesis(&mut self, start: Start) -> Result<Position, Fault> {
        let mut reading = self.reading().await?;
        let name = &reading.settings.name;
        if reading.settings.registers && registered(reading.settings, reading.shell).await? {
            return Err(registry::lost_position(name));
        }
        let seen = match start {
            Start::Beginning => Snapshot::empty(),
            Start::Now => reading.present().await?,
        };
        Ok(Position::at(reading.session.origin.clone(), seen))
    }

    async fn next(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        let mut batch = self.look(after).await?;
        if batch.is_none() {
            sleep(self.poll).await;
            batch = self.look(after).await?;
        }
        self.poll = match batch {
            Some(_) => self.settings.poll_min,
            None => (self.poll * 2).min(self.settings.poll_max),
        };
        Ok(batch)
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        if !self.settings.registers {
            return Ok(());
        }
        self.shell.acknowledge(position).await
    }

    fn limit(&mut self, transactions_max: u64) {
        self.settings.batch.transactions_max = transactions_max;
    }

    fn close(&mut self) {
        self.session = None;
        self.shell.disconnect();
    }
}

/// Whether the name is registered for the table; a conflict with another name or table is a fault.
async fn registered<S: Shell>(settings: &CaptureSettings, shell: &mut S) -> Result<bool, Fault> {
    registry::registered(settings, &shell.registrations().await?)
}

impl Session {
    async fn open<S: Shell>(settings: &CaptureSettings, shell: &mut S) -> Result<Self, Fault> {
        let origin = shell.connect().await?;
        if settings.registers {
            registered(settings, shell).await?;
        }
        if let Some(xid) = shell.foreign().await? {
            return Err(Fault::Refused(format!(
                "table {} holds rows of transaction {xid}, which this server has not reached: they came from another cluster \
                 (a restored dump, logical replication); publish or remove them, see the README, \"Rows of another cluster\"",
                settings.table
            )));
        }
        Ok(Self {
            origin,
            window: None,
            in_transaction: false,
            nothing_at: None,
        })
    }
}

/// A session with the connection that it holds for.
///
/// Cancellation: what an await may leave behind is an open transaction, which `in_transaction` remembers; a window is
/// kept only from one finished call to the next.
struct Reading<'a, S> {
    settings: &'a CaptureSettings,
    shell: &'a mut S,
    session: &'a mut Session,
}

impl<S: Shell> Reading<'_, S> {
    /// All that is committed and durable now, as a position may claim it.
    async fn present(&mut self) -> Result<Snapshot, Fault> {
        let opened = self.open(&Snapshot::empty()).await?;
        self.end().await?;
        self.durable(&opened.written).await?;
        Ok(opened.snapshot.trimmed(&Snapshot::empty(), opened.highest))
    }

    async fn look(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        if after.origin.timeline < self.session.origin.timeline {
            let goes_on = self.promoted(after).await?;
            return Ok(Some(Batch::of(Vec::new(), goes_on, false)));
        }
        let usable = self
            .session
            .window
            .as_ref()
            .is_some_and(|w| w.stands_at == *after && w.opened.elapsed() < WINDOW_OPEN_MAX);
        if !usable {
            self.end().await?;
            self.session.window = self.open_window(after).await?;
        }
        // Taken out while it is used: a cancelled call leaves no window behind, and the next one opens it anew.
        let Some(mut window) = self.session.window.take() else {
            return Ok(None);
        };
        let batch = self.next_batch(&mut window).await?;
        if let Some(written) = window.written.take().filter(|_| batch.is_some()) {
            // Asked last: by now the flush is done more often than not.
            self.durable(&written).await?;
        }
        if window.stands_at.window.is_some() {
            self.session.window = Some(window);
        } else {
            self.end().await?;
        }
        Ok(batch)
    }

    /// `after` on a server that was promoted, if that has all that was published.
    ///
    /// What the last acknowledged position covers was committed before that was written, so a server that has the one has the
    /// other. What was published since must be in the table: so many events, with these ids. And nothing that the position
    /// takes for ended may still be open here: a prepared transaction whose end did not come along.
    async fn promoted(&mut self, after: &Position) -> Result<Position, Fault> {
        let here = self.session.origin.clone();
        let (theirs, ours) = (after.origin.timeline, here.timeline);
        let goes_on = Position {
            origin: Origin {
                timeline: ours,
                ..after.origin.clone()
            },
            ..after.clone()
        };
        self.end().await?;
        let opened = self.open(&after.seen).await?;
        here.accepts(&goes_on, opened.snapshot.xmax())?;
        if *after == Position::at(after.origin.clone(), Snapshot::empty()) {
            // Nothing was published.
            self.end().await?;
            return Ok(goes_on);
        }
        let unproven = Mismatch::Timeline(theirs, ours);
        let acknowledged = self.shell.acknowledged().await?.ok_or(unproven.clone())?;
        let published = match acknowledged.streamed {
            None => after.tally.since(acknowledged.tally),
            Some(_) => None,
        };
        let published = published.ok_or(unproven.clone())?;
        let found = self
            .found_between(&acknowledged, after, &opened.snapshot)
            .await?;
        if found != published {
            return Err(Mismatch::Missing(theirs, ours, published.events, found.events).into());
        }
        let mut open = opened.snapshot.in_progress().iter();
        if open.any(|xid| after.covers(*xid, i64::MIN)) {
            return Err(unproven.into());
        }
        info!(
            "a standby was promoted: timeline {ours} goes on after {theirs}, and has all {} events that were published last",
            found.events
        );
        Ok(goes_on)
    }

    /// What is there of what `after` covers and `before` did not. Ends the transaction.
    async fn found_between(
        &mut self,
        before: &Position,
        after: &Position,
        now: &Snapshot,
    ) -> Result<Tally, Fault> {
        let between = |it: &&Planned| {
            after.covers(it.xid, it.last_seq) && !before.covers(it.xid, it.last_seq)
        };
        let all = i64::MIN + 1;
        let mut found = Tally::default();
        let mut planned = self.shell.plan(&before.seen, now, all, PLAN_ROWS).await?;
        loop {
            let covered = planned.iter().filter(between);
            found = covered.fold(found, |found, planned| found.and(planned.tally()));
            if (planned.len() as u64) < PLAN_ROWS {
                break;
            }
            planned = self.shell.planned(PLAN_ROWS).await?;
        }
        self.end().await?;
        Ok(found)
    }

    /// `None` if there is nothing after the position.
    async fn open_window(&mut self, after: &Position) -> Result<Option<OpenWindow>, Fault> {
        let resumed = after.window.as_ref();
        if resumed.is_none() && self.unchanged(after).await? {
            return Ok(None);
        }
        let mut opened = self.open(&after.seen).await?;
        if resumed.is_none() && !self.settings.linger.is_zero() && opened.found() {
            self.end().await?;
            sleep(self.settings.linger).await;
            opened = self.open(&after.seen).await?;
        }
        self.session.origin.accepts(after, opened.snapshot.xmax())?;
        if resumed.is_none() && !opened.found() {
            self.end().await?;
            self.session.nothing_at = Some((opened.snapshot, after.clone()));
            return Ok(None);
        }
        let (until, last_seq) = match resumed {
            Some(window) => (window.until.clone(), window.last_seq),
            None => (
                opened.snapshot.trimmed(&after.seen, opened.highest),
                i64::MIN + 1,
            ),
        };
        let planned = self.shell.plan(&after.seen, &until, last_seq, PLAN_ROWS);
        let planned: VecDeque<Planned> = planned.await?.into();
        Ok(Some(OpenWindow {
            seen: after.seen.clone(),
            until,
            written: Some(opened.written),
            fresh: resumed.is_none(),
            plan_exhausted: (planned.len() as u64) < PLAN_ROWS,
            planned,
            opened: Instant::now(),
            stands_at: after.clone(),
        }))
    }

    /// Idle cost: one statement that touches no table.
    async fn unchanged(&mut self, after: &Position) -> Result<bool, Fault> {
        match &self.session.nothing_at {
            Some((snapshot, position)) if position == after => {
                Ok(self.shell.snapshot().await? == *snapshot)
            }
            _ => Ok(false),
        }
    }

    async fn next_batch(&mut self, window: &mut OpenWindow) -> Result<Option<Batch>, Fault> {
        let origin = self.session.origin.clone();
        self.fetch_plan(window).await?;
        let Some(cut) = cut(&mut window.planned, self.settings.batch) else {
            // Only a resumed window can turn out empty: its rows were deleted. It is done.
            window.stands_at = Position {
                tally: window.stands_at.tally,
                ..Position::at(origin, window.until.clone())
            };
            return Ok(
                (!window.fresh).then(|| Batch::of(Vec::new(), window.stands_at.clone(), false))
            );
        };
        self.fetch_plan(window).await?;
        let last = match &cut {
            Cut::Whole(whole) => whole.last().map_or(0, |planned| planned.last_seq),
            Cut::Large(one) => one.last_seq,
        };
        let done = window.plan_exhausted && window.planned.is_empty();
        let whole = match &cut {
            Cut::Whole(whole) => whole.as_slice(),
            Cut::Large(one) => std::slice::from_ref(one),
        };
        let tally = whole.iter().fold(window.stands_at.tally, |tally, planned| {
            tally.and(planned.tally())
        });
        window.stands_at = match done {
            true => Position::at(origin, window.until.clone()),
            false => Position {
                window: Some(Window {
                    until: window.until.clone(),
                    last_seq: last,
                }),
                ..Position::at(origin, window.seen.clone())
            },
        };
        window.stands_at.tally = tally;
        let (after, catches_up) = (window.stands_at.clone(), done && window.fresh);
        Ok(Some(match cut {
            Cut::Whole(whole) => Batch::of(self.read_whole(&whole, done).await?, after, catches_up),
            Cut::Large(one) => {
                let rest = LargeTransaction::new(
                    self.shell.pages(&self.session.origin),
                    self.session.origin.tx_id(one.xid),
                    one,
                    self.settings.batch,
                );
                Batch::streaming(Box::new(rest), one.events, after, catches_up)
            }
        }))
    }

    /// Fills the plan up to a batch's worth.
    async fn fetch_plan(&mut self, window: &mut OpenWindow) -> Result<(), Fault> {
        let enough = self.settings.batch.events_max.min(PLAN_ROWS) + 1;
        while !window.plan_exhausted && (window.planned.len() as u64) < enough {
            let planned = self.shell.planned(PLAN_ROWS).await?;
            window.plan_exhausted = (planned.len() as u64) < PLAN_ROWS;
            window.planned.extend(planned);
        }
        Ok(())
    }

    /// These transactions; the transaction of our own ends with them if they are the `last` of the window.
    async fn read_whole(&mut self, whole: &[Planned], last: bool) -> Result<Vec<Slice>, Fault> {
        let xids: Vec<Xid> = whole.iter().map(|planned| planned.xid).collect();
        let rows = self.shell.rows(&xids, last).await?;
        self.session.in_transaction &= !last;
        let transactions = assemble(whole, rows).ok_or_else(|| {
            Fault::Defect("a snapshot showed other rows than its plan counted".into())
        })?;
        Ok(transactions
            .into_iter()
            .map(|(xid, events)| Slice {
                tx_id: self.session.origin.tx_id(xid),
                tx_count: events.len() as u64,
                first_index: 0,
                events,
            })
            .collect())
    }

    async fn open(&mut self, seen: &Snapshot) -> Result<Opened, Fault> {
        self.session.in_transaction = true;
        self.shell.open(seen).await
    }

    async fn end(&mut self) -> Result<(), Fault> {
        self.session.window = None;
        if self.session.in_transaction {
            self.shell.rollback().await?;
            self.session.in_transaction = false;
        }
        Ok(())
    }

    /// Waits until all WAL up to `written` is flushed: a visible row of an asynchronous commit can still vanish.
    async fn durable(&mut self, written: &str) -> Result<(), Fault> {
        let since = Instant::now();
        while !self.shell.is_flushed(written).await? {
            if since.elapsed() >= FLUSH_PATIENCE {
                self.shell.nudge().await?;
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}
