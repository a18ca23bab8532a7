//! Timelines that the server has left. Beyond the place where it left one its WAL is another than the one that a position of
//! that timeline knows.

use super::make::primary;
use crate::database::Database;
use crate::fault::Fault;
use crate::position::Lsn;

/// A timeline, and the place in the WAL where the server left it.
pub type Left = (u32, Lsn);

/// The timelines that led to `present`.
///
/// # Errors
/// [`Fault::Unavailable`] if the server is away; [`Fault::Refused`] if it does not tell.
pub async fn left(database: &Database, present: u32) -> Result<Vec<Left>, Fault> {
    // The first one has no history.
    if present <= 1 {
        return Ok(Vec::new());
    }
    let mut wire = primary(database, async |_| Ok(())).await?;
    let row = wire
        .query_one(&format!("TIMELINE_HISTORY {present}"))
        .await?;
    let text = row.get(1).and_then(Option::as_deref).unwrap_or_default();
    history(text).ok_or_else(|| {
        Fault::Refused(format!(
            "the history of timeline {present} is none that outbox-relay can read"
        ))
    })
}

/// A history file: a line for each timeline, with its number, the place, and a reason; comments and empty lines.
fn history(text: &str) -> Option<Vec<Left>> {
    let lines = text.lines().map(str::trim);
    let told = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let left = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    told.map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_names_each_timeline_and_its_end() {
        let text = "1\t0/3000158\tno recovery target specified\n\n# said by hand\n2\t1/A0\tbefore 2000-01-01 00:00:00+00\n";
        let expected = vec![(1, Lsn::from(0x300_0158)), (2, Lsn::from(0x1_0000_00a0))];
        assert_eq!(history(text), Some(expected));
        assert_eq!(history(""), Some(Vec::new()));
        assert_eq!(history("1\tsomewhere\n"), None);
    }
}
