//! `outbox.parked` in the simulated PostgreSQL, and the store over it.
//!
//! What is committed there is durable at once, as `synchronous_commit = on` has it. A promotion keeps it, so seeds with one
//! have no poison: a standby that lacks the row is the refusal of another test.

use std::collections::BTreeMap;
use std::sync::Arc;

use outbox_relay::event::{Event, Slice};
use outbox_relay::fault::Fault;
use outbox_relay::park::Entry;
use outbox_relay::park::store::{New, Request, Store};
use outbox_relay::position::Xid;

use super::Postgres;
use super::session::{Session, away};
use crate::mutations::Mutation;
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    /// Parked or held.
    Waiting,
    Settled,
}

#[derive(Clone, Debug)]
struct Row {
    state: State,
    place: u64,
    entry: Entry,
    events: Vec<Event>,
}

/// The table.
#[derive(Default)]
pub struct Parked {
    rows: BTreeMap<Arc<str>, Row>,
    next_id: i64,
    next_place: u64,
}

impl Parked {
    /// An operator has the relay try each again.
    pub fn retry_all(&mut self) -> u64 {
        let parked = self
            .rows
            .values_mut()
            .filter(|row| row.state == State::Waiting && row.entry.is_parked);
        let mut asked = 0;
        for row in parked {
            row.entry.request = Some(Request::Retry);
            asked += 1;
        }
        asked
    }

    /// Transactions that are neither published nor known not to have been passed over.
    pub fn unsettled(&self) -> Vec<Xid> {
        let rows = self.rows.iter();
        let waiting = rows.filter(|(_, row)| row.state != State::Settled);
        let xid = |tx_id: &str| tx_id.rsplit_once('-').and_then(|(_, xid)| xid.parse().ok());
        waiting.filter_map(|(tx_id, _)| xid(tx_id)).collect()
    }

    fn confirm(&mut self, passed: &[String], settled: &[String]) {
        for tx_id in passed {
            if let Some(row) = self.rows.get_mut(&**tx_id)
                && row.state == State::Pending
            {
                self.next_place += 1;
                (row.state, row.place) = (State::Waiting, self.next_place);
            }
        }
        for tx_id in settled {
            if let Some(row) = self.rows.get_mut(&**tx_id) {
                row.state = State::Settled;
            }
        }
    }

    fn row_of(&self, id: i64) -> Option<&Row> {
        self.rows.values().find(|row| row.entry.id == id)
    }
}

/// The store of one process.
pub struct ParkStore {
    world: World,
    mutation: Mutation,
    session: Option<Session>,
    /// Added and not committed.
    adding: Vec<Row>,
}

impl ParkStore {
    pub fn new(world: &World, mutation: Mutation) -> Self {
        Self {
            world: world.clone(),
            mutation,
            session: None,
            adding: Vec::new(),
        }
    }

    async fn ask<T>(&mut self, question: impl FnOnce(&mut Postgres) -> T) -> Result<T, Fault> {
        if !self.session.as_ref().is_some_and(Session::is_open) {
            // What was added on the old connection is rolled back.
            if !self.adding.is_empty() {
                self.adding.clear();
                return Err(away("the connection was lost"));
            }
            self.session = Some(Session::connect(&self.world).await?);
        }
        match &mut self.session {
            Some(session) => session.ask(question).await,
            None => Err(away("no connection")),
        }
    }
}

impl Clone for ParkStore {
    fn clone(&self) -> Self {
        Self::new(&self.world, self.mutation)
    }
}

impl Store for ParkStore {
    async fn add(&mut self, new: &New<'_>) -> Result<i64, Fault> {
        let tx_id: Arc<str> = new.tx_id.into();
        let asked = Arc::clone(&tx_id);
        let id = self
            .ask(move |server| {
                let parked = &mut server.parked;
                match parked.rows.get(&asked) {
                    Some(row) if row.state == State::Pending => Some(row.entry.id),
                    Some(_) => None,
                    None => {
                        parked.next_id += 1;
                        Some(parked.next_id)
                    }
                }
            })
            .await?;
        let id = id.ok_or_else(|| Fault::LeaseLost(format!("{tx_id} is settled already")))?;
        self.adding.push(Row {
            state: State::Pending,
            place: 0,
            entry: Entry {
                id,
                tx_id,
                is_parked: new.fault.is_some(),
                request: None,
                events: 0,
                bytes: 0,
                keys: Vec::new(),
            },
            events: Vec::new(),
        });
        Ok(id)
    }

    async fn append(&mut self, entry: &Entry, slice: &Slice) -> Result<(), Fault> {
        let row = self
            .adding
            .last_mut()
            .ok_or_else(|| away("nothing was added"))?;
        row.entry = entry.clone();
        row.events.extend(slice.events.iter().cloned());
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        let rows = self.adding.clone();
        let at_once = self.mutation == Mutation::PendingCounts;
        let committed = self
            .ask(move |server| {
                let parked = &mut server.parked;
                for mut row in rows {
                    let known = parked.rows.get(&row.entry.tx_id);
                    // The real server makes the second who inserts wait, and shows it the first one's row.
                    if known.is_some_and(|known| {
                        known.state != State::Pending || known.entry.id != row.entry.id
                    }) {
                        return false;
                    }
                    if at_once {
                        parked.next_place += 1;
                        (row.state, row.place) = (State::Waiting, parked.next_place);
                    }
                    parked.rows.insert(Arc::clone(&row.entry.tx_id), row);
                }
                true
            })
            .await;
        self.adding.clear();
        match committed? {
            true => Ok(()),
            false => Err(away("another relay keeps it too")),
        }
    }

    async fn confirm(&mut self, passed: &[String], settled: &[String]) -> Result<(), Fault> {
        self.adding.clear();
        let forgets = self.mutation == Mutation::NoSettled;
        if passed.is_empty() && settled.is_empty() {
            return Ok(());
        }
        self.ask(|server| {
            server
                .parked
                .confirm(passed, if forgets { &[] } else { settled });
        })
        .await
    }

    async fn unsettled(&mut self) -> Result<Vec<Entry>, Fault> {
        self.ask(|server| {
            let rows = server.parked.rows.values();
            let mut waiting: Vec<&Row> = rows.filter(|row| row.state == State::Waiting).collect();
            waiting.sort_by_key(|row| row.place);
            waiting.into_iter().map(|row| row.entry.clone()).collect()
        })
        .await
    }

    async fn requests(&mut self) -> Result<Vec<(i64, Request)>, Fault> {
        self.ask(|server| {
            let rows = server.parked.rows.values();
            let waiting = rows.filter(|row| row.state == State::Waiting);
            waiting
                .filter_map(|row| Some((row.entry.id, row.entry.request?)))
                .collect()
        })
        .await
    }

    async fn failed_again(&mut self, id: i64, _: &str) -> Result<(), Fault> {
        self.ask(|server| {
            let mut rows = server.parked.rows.values_mut();
            if let Some(row) = rows.find(|row| row.entry.id == id && row.state == State::Waiting) {
                (row.entry.request, row.entry.is_parked) = (None, true);
            }
        })
        .await
    }

    async fn torn(&mut self, _: &[i64]) -> Result<Vec<i64>, Fault> {
        // Nobody deletes rows here.
        Ok(Vec::new())
    }

    async fn events(
        &self,
        id: i64,
        index: u64,
        events_max: u64,
    ) -> Result<Vec<(u64, Event)>, Fault> {
        let mut session = Session::connect(&self.world).await?;
        session
            .ask(|server| {
                let events = server.parked.row_of(id).map(|row| &row.events[..]);
                let all = (0..).zip(events.unwrap_or_default().iter().cloned());
                let rest = all.skip(index as usize);
                rest.take(events_max as usize).collect()
            })
            .await
    }
}
