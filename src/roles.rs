//! Roles with the least privileges: an owner, writers, and the relay.
//!
//! What the relay needs is one list, `sql/roles/relay.sql`, for which `doctor` looks too.

use crate::capture::CaptureKind;
use crate::capture::columns::quoted;
use crate::database::Database;
use crate::fault::Fault;

/// For whom roles are made.
#[derive(Clone, Debug)]
pub struct Roles {
    prefix: String,
    capture: CaptureKind,
    table: String,
}

impl Roles {
    /// `table` is `schema.table`.
    ///
    /// # Errors
    /// [`Fault::Setting`] if the prefix makes no plain names.
    pub fn new(prefix: &str, capture: CaptureKind, table: &str) -> Result<Self, Fault> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let begins = prefix.starts_with(|c: char| c.is_ascii_lowercase());
        // pg_ is PostgreSQL's own.
        let is_ours = begins && prefix.len() <= 50 && !prefix.starts_with("pg_");
        match is_ours && prefix.chars().all(legal) {
            true => Ok(Self {
                prefix: prefix.to_owned(),
                capture,
                table: table.to_owned(),
            }),
            false => Err(Fault::Setting(format!(
                "role-prefix {prefix:?} is not usable: 1 to 50 lower-case letters, digits or '_', a letter first, not pg_"
            ))),
        }
    }

    /// The SQL, in one transaction.
    #[must_use]
    pub fn script(&self) -> String {
        let literal = |name: String| name.replace('\'', "''");
        let (schema, table) = self.table.split_once('.').unwrap_or(("", &self.table));
        let (schema, table) = (quoted(schema), quoted(table));
        let needs = include_str!("../sql/roles/relay.sql")
            .replace("{table}", &literal(format!("{schema}.{table}")))
            .replace("{schema}", &literal(schema));
        include_str!("../sql/roles/roles.sql")
            .replace("{needs}", needs.trim_end())
            .replace("{prefix}", &self.prefix)
            .replace("{capture}", self.capture.name())
    }

    /// Makes them; answers their names.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the role that asks may not.
    pub async fn make(&self, database: &Database) -> Result<[String; 3], Fault> {
        let client = database.connect().await?;
        client.batch_execute(&self.script()).await?;
        Ok(["owner", "writer", "relay"].map(|role| format!("{}_{role}", self.prefix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_needs_quotes_is_refused() {
        let new = |prefix| Roles::new(prefix, CaptureKind::Table, "outbox.events");
        for prefix in ["", "Shop", "1shop", "pg_shop", "a\"; drop role b", "a-b"] {
            assert!(matches!(new(prefix), Err(Fault::Setting(_))), "{prefix}");
        }
        let script = new("shop").unwrap().script();
        assert!(script.contains("create role shop_relay login") && !script.contains('{'));
    }
}
