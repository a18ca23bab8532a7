//! What a replay selects.

use clap::Args;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::fault::Fault;

/// Which events; all conditions that are given must hold.
#[derive(Args, Clone, Debug, Default)]
pub struct Selection {
    /// Transactions whose last event occurred at this time or later, such as '2026-03-01 12:00+01'.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Transactions whose last event occurred before this time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// One transaction: its header tx-id, or its number alone.
    #[arg(long, value_name = "TX_ID")]
    pub tx_id: Option<String>,
    /// Events of this topic.
    #[arg(long)]
    pub topic: Option<String>,
    /// Events of this key; with --topic.
    #[arg(long, requires = "topic")]
    pub key: Option<String>,
    /// One event: its header id.
    #[arg(long, value_name = "UUID")]
    pub id: Option<Uuid>,
    /// The topic that they all go to, instead of their own.
    #[arg(long, value_name = "TOPIC")]
    pub to_topic: Option<String>,
}

impl Selection {
    /// # Errors
    /// [`Fault::Setting`] if nothing is selected: the whole table is no default.
    pub fn check(&self) -> Result<(), Fault> {
        let given = [&self.since, &self.until, &self.tx_id, &self.topic];
        match given.iter().any(|it| it.is_some()) || self.id.is_some() {
            true => Ok(()),
            false => Err(Fault::Setting(
                "replay needs to know what: give --since, --until, --tx-id, --topic (and --key) or --id".into(),
            )),
        }
    }

    /// Lets PostgreSQL read the times.
    ///
    /// # Errors
    /// [`Fault::Setting`] for one that is none.
    pub async fn check_times(&self, client: &Client) -> Result<(), Fault> {
        for (flag, time) in [("since", &self.since), ("until", &self.until)] {
            let Some(time) = time else { continue };
            let sql = include_str!("../../sql/replay/time.sql");
            let read = client.query_typed(sql, &[(time, Type::TEXT)]).await;
            if read.is_err_and(|error| error.as_db_error().is_some()) {
                return Err(Fault::Setting(format!(
                    "--{flag} {time:?} is no time; it would look like 2026-03-01T12:00:00Z"
                )));
            }
        }
        Ok(())
    }

    /// Whether events of this topic are meant.
    #[must_use]
    pub fn is_of(&self, topic: &str) -> bool {
        self.topic.as_ref().is_none_or(|meant| meant == topic)
    }

    /// The values of `sql/replay/rows.sql`.
    ///
    /// # Errors
    /// [`Fault::Setting`] for a transaction of another cluster, or none at all.
    pub fn values(&self, system_id: &str) -> Result<[(Option<String>, Type); 5], Fault> {
        let xid = self
            .tx_id
            .as_ref()
            .map(|it| xid_of(it, system_id))
            .transpose()?;
        let id = self.id.map(|id| id.to_string());
        Ok([
            xid,
            self.since.clone(),
            self.until.clone(),
            id,
            self.key.clone(),
        ]
        .map(|value| (value, Type::TEXT)))
    }
}

/// `<system identifier>-<timeline>-<number>`, or the number.
fn xid_of(tx_id: &str, system_id: &str) -> Result<String, Fault> {
    let (number, is_ours) = match tx_id.rsplit_once('-') {
        Some((place, number)) => (number, place.starts_with(&format!("{system_id}-"))),
        None => (tx_id, true),
    };
    match number.parse::<u64>() {
        Ok(xid) if is_ours => Ok(xid.to_string()),
        _ => Err(Fault::Setting(format!(
            "--tx-id {tx_id:?} is no transaction of this cluster; it would look like {system_id}-1-742, or 742"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_named_by_its_header_or_its_number() {
        assert_eq!(xid_of("7-1-42", "7").unwrap(), "42");
        assert_eq!(xid_of("42", "7").unwrap(), "42");
        for wrong in ["8-1-42", "77-1-42", "7-1-x", "", "-", "7-42x"] {
            assert!(
                matches!(xid_of(wrong, "7"), Err(Fault::Setting(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn nothing_selected_is_not_everything() {
        let mut selection = Selection::default();
        assert!(selection.check().is_err());
        selection.topic = Some("t".into());
        assert!(selection.check().is_ok() && selection.is_of("t") && !selection.is_of("u"));
    }
}
