//! The rows that the table holds, read in one snapshot, row by row.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::Client;
use uuid::Uuid;

use super::history::{History, Published};
use crate::capture::columns::Shape;
use crate::capture::route::Route;
use crate::database::{unsigned, xid};
use crate::fault::Fault;
use crate::ledger::{CommittedEvent, Ledger};
use crate::position::{NotASnapshot, Snapshot, Xid};

/// What the table holds.
pub struct Retained {
    /// Its events.
    pub ledger: Ledger,
    /// What the reading saw.
    pub snapshot: Snapshot,
    /// Rows whose id another row has; only one of them is in the ledger.
    pub rows_of_one_id: u64,
    /// The transactions by id, with the number of their rows.
    transactions: Vec<(Xid, u64)>,
}

impl Retained {
    /// Number of retained rows of a transaction.
    pub fn rows_of(&self, xid: Xid) -> u64 {
        self.transactions
            .binary_search_by_key(&xid, |(xid, _)| *xid)
            .map_or(0, |index| self.transactions[index].1)
    }
}

/// Reads them.
///
/// # Errors
/// When the database does not answer.
pub async fn read(
    client: &Client,
    shape: &Shape,
    route: &str,
    history: &History<'_>,
    set_aside: &HashMap<Xid, bool>,
) -> Result<Retained, Fault> {
    client
        .batch_execute("begin isolation level repeatable read read only")
        .await?;
    let snapshot = client
        .query_typed_one(include_str!("../../sql/table/snapshot.sql"), &[])
        .await?
        .try_get::<_, &str>(0)?
        .parse()
        .map_err(|error: NotASnapshot| Fault::Defect(error.to_string()))?;
    let planned = transactions(client, shape, history).await?;
    let order = order_of(&planned);
    let mut retained = Retained {
        ledger: Ledger::of_retained_rows(),
        snapshot,
        rows_of_one_id: 0,
        transactions: planned.iter().map(|(xid, rows, _)| (*xid, *rows)).collect(),
    };
    let sql = shape.fill(include_str!("../../sql/verify/rows.sql"));
    let mut route = Route::new(route);
    let no_values: [(&(dyn tokio_postgres::types::ToSql + Sync), _); 0] = [];
    let mut rows = pin!(client.query_typed_raw(&sql, no_values).await?);
    for ((id, rows_of_it, published), order) in planned.iter().zip(order) {
        let (mut events, mut ids) = (Vec::new(), HashSet::new());
        for _ in 0..*rows_of_it {
            let Some(row) = rows.try_next().await? else {
                return Err(changed());
            };
            if xid(row.try_get(0)?)? != *id {
                return Err(changed());
            }
            let event = CommittedEvent {
                id: row.try_get::<_, Uuid>(2)?,
                topic: route.topic(row.try_get(3)?, row.try_get(4)?).to_string(),
                key: row.try_get::<_, Option<String>>(5)?.unwrap_or_default(),
                version: order,
            };
            match retained.ledger.holds(&event.id) || !ids.insert(event.id) {
                true => retained.rows_of_one_id += 1,
                false => events.push(event),
            }
        }
        // What was set aside is published late or never.
        let waits = set_aside.get(id);
        let added = match history.is_due(*published) && waits != Some(&true) {
            true => retained.ledger.commit(id.to_string(), events),
            false => retained.ledger.commit_undue(id.to_string(), events),
        };
        if waits.is_some() {
            added.late();
        }
    }
    client.batch_execute("rollback").await?;
    Ok(retained)
}

fn changed() -> Fault {
    Fault::Defect("a snapshot showed other rows than it counted".into())
}

/// Id, number of rows, and when it was published, by id.
async fn transactions(
    client: &Client,
    shape: &Shape,
    history: &History<'_>,
) -> Result<Vec<(Xid, u64, Published)>, Fault> {
    let sql = shape.fill(include_str!("../../sql/verify/transactions.sql"));
    let no_values: [(&(dyn tokio_postgres::types::ToSql + Sync), _); 0] = [];
    let mut rows = pin!(client.query_typed_raw(&sql, no_values).await?);
    let mut transactions = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let xid = xid(row.try_get(0)?)?;
        let published = history.published(xid, row.try_get(1)?);
        transactions.push((xid, unsigned(row.try_get(2)?), published));
    }
    Ok(transactions)
}

/// For each transaction its place in the order of publication; equal where that is not known.
fn order_of(transactions: &[(Xid, u64, Published)]) -> Vec<u64> {
    let mut by_time: Vec<usize> = (0..transactions.len()).collect();
    by_time.sort_unstable_by_key(|index| transactions[*index].2);
    let mut order = vec![0; transactions.len()];
    let mut place = 0;
    for pair in by_time.windows(2) {
        place += u64::from(transactions[pair[0]].2 != transactions[pair[1]].2);
        order[pair[1]] = place;
    }
    order
}
