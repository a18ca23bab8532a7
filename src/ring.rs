//! `init --partitioned`: the outbox table as a ring of leaves, so that retention truncates instead of deleting.

use crate::database::Database;
use crate::fault::Fault;

/// Leaves of the ring. One is written, one is about to be truncated; the more there are, the less waits for that.
pub const LEAVES: u32 = 16;

/// The SQL that makes the empty table `outbox.events` a ring, with so many rows in a leaf.
#[must_use]
pub fn script(leaf_rows: u32) -> String {
    include_str!("../sql/ring/make.sql")
        .replace("{leaf_rows}", &leaf_rows.to_string())
        .replace("{leaves}", &LEAVES.to_string())
}

/// Makes the table a ring if it is none; answers whether it did. What was granted on the table is gone then.
///
/// # Errors
/// [`Fault::Refused`] if the table holds rows or is published: it is not converted under those who use it.
pub async fn make(database: &Database, leaf_rows: u32) -> Result<bool, Fault> {
    let client = database.connect().await?;
    client
        .batch_execute(include_str!("../sql/ring/lock.sql"))
        .await?;
    let state = include_str!("../sql/ring/state.sql");
    let state = client.query_typed_one(state, &[]).await?;
    let (is_ring, has_rows): (bool, bool) = (state.try_get(0)?, state.try_get(1)?);
    let published: Option<&str> = state.try_get(2)?;
    match (is_ring, has_rows, published) {
        (true, ..) => return Ok(false),
        (_, true, _) => {
            return Err(Fault::Refused(
                "table outbox.events holds rows, and only an empty one is made anew: stop the writers, let the relay catch up and \
                 stop it, save the rows that you want to keep, `truncate outbox.events`, then run this again (docs/retention.md)"
                    .into(),
            ));
        }
        (_, _, Some(publications)) => {
            return Err(Fault::Refused(format!(
                "table outbox.events is in publication {publications}, which would lose it: `alter publication … drop table \
                 outbox.events`, run this again, then `alter publication … add table outbox.events` (docs/retention.md)"
            )));
        }
        (false, false, None) => {}
    }
    client.batch_execute(&script(leaf_rows)).await?;
    client.batch_execute("commit").await?;
    Ok(true)
}
