//! `init`: the schema `outbox`, by numbered migrations.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::database::Database;
use crate::fault::Fault;

/// Numbered, never edited after a release: what was applied stays as it is.
const MIGRATIONS: [(i32, &str, &str); 3] = [
    (
        1,
        "001_outbox.sql",
        include_str!("../sql/migrations/001_outbox.sql"),
    ),
    (
        2,
        "002_wal.sql",
        include_str!("../sql/migrations/002_wal.sql"),
    ),
    (
        3,
        "003_parked.sql",
        include_str!("../sql/migrations/003_parked.sql"),
    ),
];

/// The highest number of them.
#[must_use]
pub fn newest() -> i32 {
    MIGRATIONS.last().map_or(0, |(version, ..)| *version)
}

/// The SQL of all migrations in one transaction, and then `more`, for people who may not run DDL from a tool.
#[must_use]
pub fn script(more: Option<&str>) -> String {
    let mut script =
        String::from("-- outbox-relay: all of schema outbox, in one transaction.\nbegin;\n");
    for (version, name, sql) in MIGRATIONS {
        script += &format!(
            "\n-- {name}\n{sql}\ninsert into outbox.migrations (version, name) values ({version}, '{name}');\n"
        );
    }
    if let Some(more) = more {
        script += &format!("\n{more};\n");
    }
    script + "\ncommit;\n"
}

/// Applies what is missing, all in one transaction; answers the names of what it applied.
///
/// # Errors
/// [`Fault::Refused`] if the server is too old, or schema `outbox` is there and is not ours.
pub async fn init(database: &Database) -> Result<Vec<&'static str>, Fault> {
    let client = database.connect().await?;
    client.batch_execute("begin").await?;
    client
        .query_typed(include_str!("../sql/init/lock.sql"), &[])
        .await?;
    let applied = applied(&client).await?;
    let mut done = Vec::new();
    for (version, name, sql) in MIGRATIONS.iter().filter(|(version, ..)| *version > applied) {
        client.batch_execute(sql).await?;
        let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(version, Type::INT4), (name, Type::TEXT)];
        client
            .query_typed(include_str!("../sql/init/record.sql"), &values)
            .await?;
        done.push(*name);
    }
    client.batch_execute("commit").await?;
    Ok(done)
}

async fn applied(client: &Client) -> Result<i32, Fault> {
    let rows = client
        .query_typed(include_str!("../sql/init/exists.sql"), &[])
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| Fault::Defect("no answer about schema outbox".into()))?;
    let (ours, schema, version): (bool, bool, i32) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if version < 140_000 {
        return Err(Fault::Refused(format!(
            "PostgreSQL {} is too old; outbox-relay needs 14 or newer",
            version / 10_000
        )));
    }
    match (ours, schema) {
        (true, _) => {
            let rows = client.query_typed(include_str!("../sql/init/applied.sql"), &[]).await?;
            Ok(rows.first().map_or(Ok(0), |row| row.try_get(0))?)
        }
        (false, true) => Err(Fault::Refused(
            "schema outbox exists and was not made by outbox-relay; rename it, or give this service a database of its own".into(),
        )),
        (false, false) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_gaps_and_all_in_the_script() {
        for (i, (version, name, sql)) in MIGRATIONS.iter().enumerate() {
            assert_eq!(*version, i32::try_from(i).unwrap() + 1);
            assert!(name.starts_with(&format!("{version:03}_")));
            assert!(script(None).contains(sql));
        }
    }
}
