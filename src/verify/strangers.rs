//! Records without a row: phantoms, or not.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::Unjudged;
use super::retained::Retained;
use crate::database::xid;
use crate::fault::Fault;
use crate::ledger::{Check, Offender, SeenRecord};
use crate::position::Xid;

/// How many are gathered before PostgreSQL is asked about their transactions.
const GATHERED_MAX: usize = 10_000;

/// A record of our cluster whose id no retained row has.
pub struct Stranger {
    topic: String,
    partition: i32,
    offset: i64,
    id: Uuid,
    xid: Xid,
    tx_count: u32,
}

impl Stranger {
    /// `None` if it is no record of this cluster.
    pub fn of(seen: &SeenRecord<'_>, system_id: &str) -> Option<Self> {
        let (system, rest) = seen.tx_id.split_once('-')?;
        let (_timeline, xid) = rest.split_once('-')?;
        let xid = xid.parse().ok()?;
        (system == system_id).then(|| Self {
            topic: seen.topic.to_owned(),
            partition: seen.partition,
            offset: seen.offset,
            id: seen.id,
            xid,
            tx_count: seen.tx_count,
        })
    }
}

/// Some of them.
#[derive(Default)]
pub struct Strangers(Vec<Stranger>);

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Phantom(String),
    RowGone,
    CommittedMeanwhile,
}

impl Strangers {
    pub fn add(&mut self, stranger: Stranger) {
        self.0.push(stranger);
    }

    /// Whether it is time to settle them.
    pub fn are_enough(&self) -> bool {
        self.0.len() >= GATHERED_MAX
    }

    /// Asks what became of their transactions, and judges them.
    pub async fn settle(
        &mut self,
        client: &Client,
        retained: &Retained,
        check: &mut Check<'_>,
        unjudged: &mut Unjudged,
    ) -> Result<(), Fault> {
        let status = status(client, &self.0).await?;
        for stranger in self.0.drain(..) {
            let verdict = verdict(
                status.get(&stranger.xid).map(String::as_str),
                retained.snapshot.sees(stranger.xid),
                retained.rows_of(stranger.xid),
                stranger.tx_count.into(),
            );
            match verdict {
                Verdict::RowGone => unjudged.rows_gone += 1,
                Verdict::CommittedMeanwhile => unjudged.committed_meanwhile += 1,
                Verdict::Phantom(what) => _ = check.convict(offender(stranger, what)),
            }
        }
        Ok(())
    }
}

/// Of each transaction that PostgreSQL remembers.
async fn status(client: &Client, strangers: &[Stranger]) -> Result<HashMap<Xid, String>, Fault> {
    let xids: BTreeSet<Xid> = strangers.iter().map(|stranger| stranger.xid).collect();
    let xids: Vec<String> = xids.iter().map(ToString::to_string).collect();
    if xids.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = include_str!("../../sql/verify/status.sql");
    let rows = client
        .query_typed(sql, &[(&xids, Type::TEXT_ARRAY)])
        .await?;
    let mut known = HashMap::new();
    for row in &rows {
        if let Some(status) = row.try_get(1)? {
            known.insert(xid(row.try_get(0)?)?, status);
        }
    }
    Ok(known)
}

/// `seen`: the transaction had ended when the table was read. `rows`: so many of it are retained.
fn verdict(status: Option<&str>, seen: bool, rows: u64, tx_count: u64) -> Verdict {
    match status {
        Some("committed") if !seen => Verdict::CommittedMeanwhile,
        Some("committed") if rows > 0 && rows >= tx_count => Verdict::Phantom(format!(
            "all {rows} rows of its transaction are in the table, and it is none of them"
        )),
        Some("committed") | None => Verdict::RowGone,
        Some(other) => Verdict::Phantom(format!("its transaction is {other}, not committed")),
    }
}

fn offender(stranger: Stranger, what: String) -> Offender {
    Offender {
        event: Some(stranger.id),
        transaction: Some(stranger.xid.to_string()),
        topic: Some(stranger.topic),
        partition: Some(stranger.partition),
        offset: Some(stranger.offset),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_a_phantom() {
        let phantom = |verdict| matches!(verdict, Verdict::Phantom(_));
        assert!(phantom(verdict(Some("aborted"), true, 0, 1)));
        assert!(phantom(verdict(Some("in progress"), false, 0, 1)));
        assert!(phantom(verdict(Some("committed"), true, 2, 2)));
        assert_eq!(verdict(Some("committed"), true, 1, 2), Verdict::RowGone);
        assert_eq!(verdict(Some("committed"), true, 0, 1), Verdict::RowGone);
        assert_eq!(verdict(None, true, 0, 1), Verdict::RowGone);
        let meanwhile = verdict(Some("committed"), false, 0, 1);
        assert_eq!(meanwhile, Verdict::CommittedMeanwhile);
    }

    #[test]
    fn a_record_of_another_producer_or_cluster_is_not_ours() {
        let of = |tx_id| {
            let seen = SeenRecord {
                topic: "t",
                partition: 0,
                offset: 0,
                id: Uuid::nil(),
                key: "",
                tx_id,
                tx_index: 0,
                tx_count: 1,
            };
            Stranger::of(&seen, "7").map(|stranger| stranger.xid)
        };
        assert_eq!(of("7-1-42"), Some(42));
        assert!(
            ["", "8-1-42", "7-1", "7-1-x"]
                .map(of)
                .iter()
                .all(Option::is_none)
        );
    }
}
