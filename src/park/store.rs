//! What parking asks of a database: the seam between its decisions and its IO.

use std::future::Future;

use super::Entry;
use crate::event::{Event, Slice};
use crate::fault::Fault;

/// What an operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Publish it now.
    Retry,
    /// Never publish it.
    Discard,
}

/// A transaction that is to be kept.
pub struct New<'a> {
    /// Header `tx-id`.
    pub tx_id: &'a str,
    /// Why it can't be published; `None`: it is held.
    pub fault: Option<&'a str>,
    /// Its events.
    pub events: u64,
}

/// Keeps transactions that wait. Clones share what is kept. A simulator implements it too.
///
/// All but [`Store::events`] are called by the relay alone, one after the other.
///
/// # Errors
/// All of them: [`Fault::Unavailable`] if the server is away, [`Fault::Refused`] if a person must act.
pub trait Store: Clone + Send + 'static {
    /// Begins to keep a transaction, as `pending`; answers the row's id. One that is pending already is kept again.
    fn add(&mut self, new: &New<'_>) -> impl Future<Output = Result<i64, Fault>> + Send;

    /// Keeps the next events of the transaction that was added last; `entry` is what it is with them.
    fn append(
        &mut self,
        entry: &Entry,
        slice: &Slice,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// All that was added is durable then, or nothing of it.
    fn commit(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// `passed` are parked or held from here on, `settled` published, or discarded where that was asked for. What has been
    /// confirmed is left as it is.
    fn confirm(
        &mut self,
        passed: &[String],
        settled: &[String],
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// All that are parked or held.
    fn unsettled(&mut self) -> impl Future<Output = Result<Vec<Entry>, Fault>> + Send;

    /// What was asked for since, by id.
    fn requests(&mut self) -> impl Future<Output = Result<Vec<(i64, Request)>, Fault>> + Send;

    /// A try that was asked for, or was due, failed: it is parked, for this reason.
    fn failed_again(
        &mut self,
        id: i64,
        why: &str,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Those of these transactions that have not all their events any more.
    fn torn(&mut self, ids: &[i64]) -> impl Future<Output = Result<Vec<i64>, Fault>> + Send;

    /// The events of a transaction from `index` on, each with its own index, `events_max` of them at most.
    fn events(
        &self,
        id: i64,
        index: u64,
        events_max: u64,
    ) -> impl Future<Output = Result<Vec<(u64, Event)>, Fault>> + Send;
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoStore;

impl Store for NoStore {
    async fn add(&mut self, _: &New<'_>) -> Result<i64, Fault> {
        Err(Fault::Defect("there is no place to park".into()))
    }

    async fn append(&mut self, _: &Entry, _: &Slice) -> Result<(), Fault> {
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    async fn confirm(&mut self, _: &[String], _: &[String]) -> Result<(), Fault> {
        Ok(())
    }

    async fn unsettled(&mut self) -> Result<Vec<Entry>, Fault> {
        Ok(Vec::new())
    }

    async fn requests(&mut self) -> Result<Vec<(i64, Request)>, Fault> {
        Ok(Vec::new())
    }

    async fn failed_again(&mut self, _: i64, _: &str) -> Result<(), Fault> {
        Ok(())
    }

    async fn torn(&mut self, _: &[i64]) -> Result<Vec<i64>, Fault> {
        Ok(Vec::new())
    }

    async fn events(&self, _: i64, _: u64, _: u64) -> Result<Vec<(u64, Event)>, Fault> {
        Ok(Vec::new())
    }
}
