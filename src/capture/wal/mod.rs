//! Capture from the write-ahead log, by logical decoding: PostgreSQL's own commit order, no polling.
//!
//! A replication slot keeps the WAL that was not acknowledged; `pgoutput` streams what the publication publishes, whole
//! committed transactions one after the other, and nothing that is not flushed. A *position* is the end of a commit record.
//! A slot's own place goes back when the server crashes (measured), so what ends at or below the position is skipped.
//!
//! Beside its place a position says which transactions it stands for, so that the table can be read on from there when the
//! slot is lost: a snapshot taken now and then, and the transactions beyond it.
//!
//! Here are the decisions; `shell` is what they ask of a database, `postgres` the one of production over a `wire`; `pump`
//! reads ahead, `assembly` makes transactions of messages, `pgoutput` decodes these, `layout` makes events of rows, `spill`
//! holds a transaction that is too large for memory, `published` keeps the list, `slot` judges the slot, `make` makes it, `timeline` knows the
//! timelines that the server has left.

mod assembly;
mod layout;
pub mod make;
pub mod pgoutput;
mod postgres;
mod published;
mod pump;
pub mod shell;
pub mod slot;
mod spill;
pub mod timeline;
mod wire;

use std::collections::BTreeSet;

use tokio::time::{Duration, Instant, sleep, timeout};
use tracing::{info, warn};

use self::assembly::{Assembly, Body, Committed};
pub use self::postgres::PostgresShell;
use self::published::Published;
use self::pump::{Item, Pump};
use self::shell::{Here, Present, Shell};
use super::route::milliseconds;
use super::{Capture, CaptureSettings, Start, registry};
use crate::database::Database;
use crate::event::{Batch, Slice};
use crate::fault::Fault;
use crate::position::{Lsn, Mismatch, Origin, Position, Snapshot, Streamed, Xid, Xids};

/// An idle outbox must not keep WAL that others write: after so much of it the position moves on without events, and the
/// slot is helped to let go.
const ADVANCE_BYTES: u64 = 8 << 20;
/// How often a new snapshot takes the place of the list of transactions beyond the old one.
const REBASE_EVERY: Duration = Duration::from_secs(1);
/// Bytes that are read ahead for each byte of a batch: what is published, what comes next, and their overhead.
const ROOM: u64 = 1;

/// See the module's text.
pub struct WalCapture<S = PostgresShell> {
    settings: CaptureSettings,
    shell: S,
    session: Option<Session>,
    /// Said already, each once.
    warned: BTreeSet<String>,
}

/// A stream under way.
struct Session {
    here: Here,
    stands_at: Position,
    /// All that committed up to here was handed out, or had no events.
    reached: Lsn,
    /// Where the slot was last helped to let go.
    let_go: Lsn,
    /// The position is of an earlier timeline, and goes on here: that is stored before anything else.
    adopted: Option<Position>,
    pump: Pump,
    /// Did not fit into the last batch.
    held_back: Option<Committed>,
    published: Published,
    /// A snapshot that will take the place of the list of transactions.
    rebase: Option<Present>,
    rebased: Instant,
}

/// What a batch begins with.
enum First {
    Transaction(Committed),
    /// No events for long: the position alone goes on to here.
    Advance(Lsn),
}

impl WalCapture {
    /// Connects at the first call of [`Capture::next`] or [`Capture::genesis`].
    ///
    /// # Errors
    /// [`Fault::Defect`] if no pool can be built.
    pub fn new(settings: CaptureSettings, database: &Database) -> Result<Self, Fault> {
        let shell = PostgresShell::new(settings.clone(), database)?;
        Ok(Self::with_shell(settings, shell))
    }
}

impl<S: Shell> WalCapture<S> {
    /// A capture over another shell, for a simulator.
    pub fn with_shell(settings: CaptureSettings, shell: S) -> Self {
        Self {
            settings,
            shell,
            session: None,
            warned: BTreeSet::new(),
        }
    }

    /// Connects, and refuses what can't be streamed.
    async fn connect(&mut self) -> Result<(Here, bool), Fault> {
        self.session = None;
        let here = self.shell.connect().await?;
        let registered = match self.settings.registers {
            true => registry::registered(&self.settings, &self.shell.registrations().await?)?,
            false => false,
        };
        if !here.published {
            return Err(Fault::Refused(format!(
                "there is no publication {} that publishes inserts into {}; run `outbox-relay init --capture wal`",
                self.settings.slot, self.settings.table
            )));
        }
        Ok((here, registered))
    }

    /// Streams from `after`.
    async fn open(&mut self, after: &Position) -> Result<Session, Fault> {
        let (here, _) = self.connect().await?;
        let goes_on = self.accept(after, &here).await?;
        let streamed = streamed(&goes_on)?;
        let from = streamed.lsn;
        if from > here.committed {
            return Err(Mismatch::AheadInWal(from, here.committed).into());
        }
        slot::check(&self.settings.slot, here.slot.as_ref(), from)?;
        for warning in &here.warnings {
            if self.warned.insert(warning.clone()) {
                warn!("{warning}");
            }
        }
        if let Some(slot) = &here.slot {
            info!("replication slot {}: {slot}", self.settings.slot);
        }
        let stream = self.shell.stream(&here.origin, from).await?;
        let assembly = Assembly::new(&self.settings, here.next_xid);
        let room = self.settings.batch.bytes_max.saturating_mul(ROOM);
        Ok(Session {
            reached: from,
            let_go: from,
            stands_at: after.clone(),
            pump: Pump::start(stream, assembly, room, here.committed),
            held_back: None,
            published: Published::resumed(after.seen.clone(), streamed, here.next_xid),
            rebase: None,
            rebased: Instant::now(),
            adopted: (goes_on != *after).then_some(goes_on),
            here,
        })
    }

    /// The same position as it goes on here, on a server that was promoted meanwhile perhaps.
    ///
    /// # Errors
    /// [`Fault::Position`] if it does not.
    pub async fn carried_over(&mut self, position: &Position) -> Result<Position, Fault> {
        let (here, _) = self.connect().await?;
        self.accept(position, &here).await
    }

    /// `after` as it goes on here.
    ///
    /// A standby that was promoted has the WAL of the old timeline up to the place where that was left. If all that was
    /// published lies before, it is there, and nobody need be asked; what follows is streamed from there at the latest. If
    /// not, other transactions have taken those places.
    async fn accept(&mut self, after: &Position, here: &Here) -> Result<Position, Fault> {
        let theirs = after.origin.timeline;
        let mut moved = Position {
            origin: Origin {
                timeline: here.origin.timeline,
                ..after.origin.clone()
            },
            ..after.clone()
        };
        if theirs >= here.origin.timeline {
            here.origin.accepts(after, here.next_xid)?;
            return Ok(moved);
        }
        here.origin.is_where(&moved.origin)?;
        let ours = here.origin.timeline;
        let left = self.shell.left(&here.origin).await?;
        let left = left.iter().find(|(timeline, _)| *timeline == theirs);
        let (_, left_at) = *left.ok_or(Mismatch::Timeline(theirs, ours))?;
        let published = streamed(after)?.published;
        if published > left_at {
            return Err(Mismatch::Diverged(theirs, left_at, published).into());
        }
        here.origin.reaches(&moved, here.next_xid)?;
        info!(
            "a standby was promoted: timeline {theirs} was left at {left_at} for {ours}, after all that was published"
        );
        if let Some(streamed) = &mut moved.streamed {
            streamed.lsn = streamed.lsn.min(left_at);
        }
        Ok(moved)
    }

    async fn read(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        // Taken out while it is used: a cancelled call leaves none behind, and the next one streams from `after` anew.
        let session = self.session.take();
        let goes_on = |it: &Session| it.stands_at == *after && self.shell.is_connected();
        let session = session.filter(goes_on);
        let mut session = match session {
            Some(session) => session,
            None => self.open(after).await?,
        };
        if session.is_rebase_due() {
            let present = self.shell.present().await?;
            session.published.asked(&present);
            (session.rebase, session.rebased) = (Some(present), Instant::now());
        }
        let batch = session.batch(&self.settings).await?;
        if session.caught_up() && behind(session.let_go, session.reached) {
            session.let_go = session.reached;
            self.shell.let_go().await?;
        }
        self.session = Some(session);
        Ok(batch)
    }
}

impl<S: Shell> Capture for WalCapture<S> {
    async fn prepare(&mut self) {
        self.shell.prepare().await;
    }

    async fn genesis(&mut self, start: Start) -> Result<Position, Fault> {
        let (here, registered) = self.connect().await?;
        if registered {
            return Err(registry::lost_position(&self.settings.name));
        }
        let present = self.shell.present().await?;
        let (from, seen) = match start {
            Start::Now => {
                let seen = present
                    .snapshot
                    .trimmed(&Snapshot::empty(), present.highest);
                (here.committed, seen)
            }
            Start::Beginning => self.beginning(&here).await?,
        };
        slot::check(&self.settings.slot, here.slot.as_ref(), from)?;
        Ok(Position::at_lsn(
            here.origin,
            from,
            seen,
            Some(Xids::default()),
        ))
    }

    async fn next(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        let batch = self.read(after).await;
        if batch.is_err() {
            self.close();
        }
        batch
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        if !self.settings.registers {
            return Ok(());
        }
        self.shell.acknowledge(position).await?;
        if let Some(session) = &self.session {
            session.pump.acknowledge(streamed(position)?.lsn);
        }
        Ok(())
    }

    fn limit(&mut self, transactions_max: u64) {
        self.settings.batch.transactions_max = transactions_max;
    }

    fn close(&mut self) {
        self.session = None;
        self.shell.disconnect();
    }
}

impl<S: Shell> WalCapture<S> {
    /// Where the stream begins, if no row is older than that, and what had ended by then.
    async fn beginning(&mut self, here: &Here) -> Result<(Lsn, Snapshot), Fault> {
        let Some(made) = self.shell.slot_made().await? else {
            let slot = &self.settings.slot;
            slot::check(slot, here.slot.as_ref(), here.committed)?;
            return Err(Fault::Refused(format!(
                "replication slot {slot} was not made by outbox-relay, so it is not known which rows are older; drop it and run \
                 `outbox-relay init --capture wal`, or start with --start now"
            )));
        };
        match made.older_rows {
            false => Ok((made.consistent, made.seen.unwrap_or_else(Snapshot::empty))),
            true => Err(Fault::Refused(format!(
                "table {} holds rows that are older than replication slot {}, so the stream does not have them; start with \
                 capture table and then `outbox-relay move --to wal`, or leave them out with --start now",
                self.settings.table, self.settings.slot
            ))),
        }
    }
}

/// Whether so much WAL lies between that an idle outbox must not keep it.
fn behind(at: Lsn, reached: Lsn) -> bool {
    u64::from(reached) >= u64::from(at).saturating_add(ADVANCE_BYTES)
}

/// Milliseconds since 1970 UTC.
fn committed_at_ms(committed: &Committed) -> i64 {
    milliseconds(committed.committed_at_micros)
}

fn streamed(position: &Position) -> Result<&Streamed, Fault> {
    let streamed = position.streamed.as_ref();
    streamed
        .ok_or_else(|| Fault::Defect("a position of capture wal without a place in the WAL".into()))
}

impl Session {
    fn is_rebase_due(&self) -> bool {
        let waits = self.rebase.is_some() || self.rebased.elapsed() < REBASE_EVERY;
        !waits && self.published.has_list()
    }

    async fn batch(&mut self, settings: &CaptureSettings) -> Result<Option<Batch>, Fault> {
        let batch = match self.first(settings.poll_max).await? {
            None => return Ok(None),
            Some(First::Advance(lsn)) => {
                self.move_to(lsn, []);
                Batch::of(Vec::new(), self.stands_at.clone(), self.caught_up())
            }
            Some(First::Transaction(first)) => match first.body {
                Body::Whole(_) => {
                    if !settings.linger.is_zero() {
                        sleep(settings.linger).await;
                    }
                    let whole = self.collect(first, settings)?;
                    self.whole(whole)
                }
                Body::Large(_) => self.large(first, settings)?,
            },
        };
        Ok(Some(batch))
    }

    /// What comes next. `None`: nothing for a while, and all that was committed before the connection was handed out.
    async fn first(&mut self, patience: Duration) -> Result<Option<First>, Fault> {
        if let Some(goes_on) = self.adopted.take() {
            self.stands_at = goes_on;
            return Ok(Some(First::Advance(streamed(&self.stands_at)?.lsn)));
        }
        if let Some(held_back) = self.held_back.take() {
            return Ok(Some(First::Transaction(held_back)));
        }
        let stood_at = streamed(&self.stands_at)?.lsn;
        loop {
            let item = match timeout(patience, self.pump.next()).await {
                Ok(item) => item?,
                Err(_) if self.caught_up() => return Ok(None),
                Err(_) => continue,
            };
            match item {
                Item::Transaction(committed) if self.is_old(&committed) => {
                    self.reached = self.reached.max(committed.end);
                }
                Item::Transaction(committed) => return Ok(Some(First::Transaction(committed))),
                Item::Reached(lsn) => {
                    let was_behind = !self.caught_up();
                    self.reached = self.reached.max(lsn);
                    if behind(stood_at, lsn) {
                        return Ok(Some(First::Advance(lsn)));
                    }
                    if was_behind && self.caught_up() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// All that is there and fits into one batch with `first`.
    fn collect(
        &mut self,
        first: Committed,
        settings: &CaptureSettings,
    ) -> Result<Vec<Committed>, Fault> {
        let (mut events, mut bytes) = (first.events, first.bytes);
        let mut whole = vec![first];
        while (whole.len() as u64) < settings.batch.transactions_max
            && let Some(item) = self.pump.ready()?
        {
            let committed = match item {
                Item::Reached(lsn) => {
                    self.reached = self.reached.max(lsn);
                    continue;
                }
                Item::Transaction(committed) if self.is_old(&committed) => continue,
                Item::Transaction(committed) => committed,
            };
            events += committed.events;
            bytes += committed.bytes;
            let fits = events <= settings.batch.events_max && bytes <= settings.batch.bytes_max;
            if !fits || matches!(committed.body, Body::Large(_)) {
                self.held_back = Some(committed);
                break;
            }
            whole.push(committed);
        }
        Ok(whole)
    }

    fn whole(&mut self, whole: Vec<Committed>) -> Batch {
        let end = whole.last().map_or(self.reached, |last| last.end);
        self.move_to(end, whole.iter().map(|committed| committed.xid));
        let times = whole.iter().map(committed_at_ms).collect();
        let origin = &self.here.origin;
        let slices = whole
            .into_iter()
            .filter_map(|committed| match committed.body {
                Body::Whole(events) => Some(Slice {
                    tx_id: origin.tx_id(committed.xid),
                    tx_count: committed.events,
                    first_index: 0,
                    events,
                }),
                Body::Large(_) => None,
            });
        let slices = slices.collect();
        Batch::of(slices, self.stands_at.clone(), self.caught_up()).committed_at_ms(times)
    }

    fn large(&mut self, one: Committed, settings: &CaptureSettings) -> Result<Batch, Fault> {
        self.move_to(one.end, [one.xid]);
        let tx_id = self.here.origin.tx_id(one.xid);
        let times = vec![committed_at_ms(&one)];
        let Body::Large(spilled) = one.body else {
            return Err(Fault::Defect("a transaction that is not large".into()));
        };
        let slices = spilled.slices(tx_id, one.events, settings.batch);
        let after = self.stands_at.clone();
        let batch = Batch::streaming(Box::new(slices), one.events, after, self.caught_up());
        Ok(batch.committed_at_ms(times))
    }

    /// The slot of a server that crashed goes back; and after a move the stream begins with what the table brought already.
    fn is_old(&self, committed: &Committed) -> bool {
        let done = |streamed: &Streamed| committed.end <= streamed.lsn;
        self.stands_at.streamed.as_ref().is_some_and(done)
            || self.stands_at.seen.sees(committed.xid)
    }

    /// Whether all that was committed before the connection was handed out.
    fn caught_up(&self) -> bool {
        self.reached >= self.here.committed
    }

    /// The position goes on to `lsn`, over these transactions.
    fn move_to(&mut self, lsn: Lsn, xids: impl IntoIterator<Item = Xid>) {
        self.reached = self.reached.max(lsn);
        let mut published = self
            .stands_at
            .streamed
            .as_ref()
            .map_or(lsn, |it| it.published);
        for xid in xids {
            self.published.add(xid);
            published = lsn;
        }
        if let Some(present) = self.rebase.take_if(|present| present.written <= lsn) {
            self.published.rebase(&present);
        }
        let (seen, beyond) = self.published.stored();
        let streamed = Streamed {
            lsn,
            published,
            beyond,
        };
        self.stands_at = Position {
            streamed: Some(streamed),
            ..Position::at(self.here.origin.clone(), seen)
        };
    }
}
