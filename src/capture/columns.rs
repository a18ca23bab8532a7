//! The shape of an outbox table: which column plays which part, and the SQL that follows. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::fault::Fault;

/// Column names of an outbox table. The defaults are those of `outbox.events`; Debezium's table works with
/// `aggregate_type = "aggregatetype"`, `aggregate_id = "aggregateid"`, `event_type = "type"`, and `xid` and `seq` added.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// `bigint generated always as identity`; required.
    pub seq: String,
    /// `xid8 default pg_current_xact_id()`; required.
    pub xid: String,
    /// `uuid`; required.
    pub id: String,
    /// `text`; where the table has none, topics come from the route template.
    pub topic: String,
    /// `text`, for the route template.
    pub aggregate_type: String,
    /// Record key, any type, as PostgreSQL prints it.
    pub aggregate_id: String,
    /// Header `type`, any type, as PostgreSQL prints it.
    pub event_type: String,
    /// Record value: `bytea` byte for byte, any other type as PostgreSQL prints it; required.
    pub payload: String,
    /// `jsonb` or `json` object; where the table has none, no extra headers.
    pub headers: String,
    /// `timestamptz`; where the table has none, the time of reading.
    pub occurred_at: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            seq: "seq".into(),
            xid: "xid".into(),
            id: "id".into(),
            topic: "topic".into(),
            aggregate_type: "aggregate_type".into(),
            aggregate_id: "aggregate_id".into(),
            event_type: "event_type".into(),
            payload: "payload".into(),
            headers: "headers".into(),
            occurred_at: "occurred_at".into(),
        }
    }
}

/// One table's names, quoted, to be filled into statements.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    table: String,
    xid: String,
    seq: String,
    id: String,
    payload: String,
    /// When an event occurred; null where the table does not say.
    occurred_at: String,
    /// What says where an event goes: `seq`, `id`, topic, aggregate type and key.
    place: String,
    /// The same and the rest.
    columns: String,
    key: String,
}

impl Shape {
    /// `table` is `schema.table` as the server spells it, `found` its columns with their types.
    pub fn new(
        table: &str,
        columns: &Columns,
        found: &BTreeMap<String, String>,
    ) -> Result<Self, Fault> {
        let list = select_list(table, columns, found)?;
        Ok(Self {
            table: table.split('.').map(quoted).collect::<Vec<_>>().join("."),
            xid: quoted(&columns.xid),
            seq: quoted(&columns.seq),
            id: quoted(&columns.id),
            payload: payload(&columns.payload, found),
            occurred_at: match found.contains_key(&columns.occurred_at) {
                true => format!("{}::timestamptz", quoted(&columns.occurred_at)),
                false => "null::timestamptz".to_owned(),
            },
            place: list[..PLACE].join(", "),
            columns: list.join(", "),
            key: list[4].clone(),
        })
    }

    /// The statement for this table.
    pub fn fill(&self, sql: &str) -> String {
        sql.replace("{table}", &self.table)
            .replace("{xid}", &self.xid)
            .replace("{seq}", &self.seq)
            .replace("{id}", &self.id)
            .replace("{payload}", &self.payload)
            .replace("{occurred_at}", &self.occurred_at)
            .replace("{place}", &self.place)
            .replace("{columns}", &self.columns)
            .replace("{key}", &self.key)
    }
}

/// Fills in the table and its columns for transaction and order; whether they are there is another question.
pub(super) fn names(table: &str, columns: &Columns, sql: &str) -> String {
    let table = table.split('.').map(quoted).collect::<Vec<_>>().join(".");
    sql.replace("{table}", &table)
        .replace("{xid}", &quoted(&columns.xid))
        .replace("{seq}", &quoted(&columns.seq))
}

/// The statements of one table.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub open: String,
    pub rows: String,
    pub rows_of_one: String,
    pub foreign: String,
    plan: String,
}

impl Statements {
    pub fn new(shape: &Shape) -> Self {
        let fill = |sql: &str| shape.fill(sql);
        Self {
            open: fill(include_str!("../../sql/table/open.sql")),
            rows: fill(include_str!("../../sql/table/rows.sql")),
            rows_of_one: fill(include_str!("../../sql/table/rows_of_one.sql")),
            foreign: fill(include_str!("../../sql/table/foreign.sql")),
            plan: fill(include_str!("../../sql/table/plan.sql")),
        }
    }

    /// The cursor over the transactions that `seen` has not seen and `until` has, above `last_seq`.
    pub fn plan(
        &self,
        seen: &crate::position::Snapshot,
        until: &crate::position::Snapshot,
        last_seq: i64,
    ) -> String {
        let open: Vec<String> = seen.in_progress().iter().map(ToString::to_string).collect();
        self.plan
            .replace("{xmax}", &seen.xmax().to_string())
            .replace("{in_progress}", &format!("{{{}}}", open.join(",")))
            .replace("{until}", &until.to_string())
            .replace("{last_seq}", &last_seq.to_string())
    }
}

/// How many columns of the list say where an event goes.
const PLACE: usize = 5;

/// In the order in which `table/rows.rs` reads them.
fn select_list(
    table: &str,
    columns: &Columns,
    found: &BTreeMap<String, String>,
) -> Result<[String; 9], Fault> {
    for (part, column, type_needed) in [
        ("seq", &columns.seq, Some("bigint")),
        ("xid", &columns.xid, Some("xid8")),
        ("id", &columns.id, None),
        ("payload", &columns.payload, None),
    ] {
        match (found.get(column), type_needed) {
            (None, _) => {
                return Err(Fault::Refused(format!(
                    "table {table} has no column {column:?} for {part}; add it, or name the right one under [columns] in the configuration file"
                )));
            }
            (Some(actual), Some(needed)) if actual != needed => {
                return Err(Fault::Refused(format!(
                    "column {column:?} of table {table} is {actual}; {part} must be {needed}"
                )));
            }
            _ => {}
        }
    }
    let text = |column: &String| match found.contains_key(column) {
        true => format!("{}::text", quoted(column)),
        false => "null::text".to_owned(),
    };
    let occurred_at = match found.contains_key(&columns.occurred_at) {
        true => format!("{}::timestamptz", quoted(&columns.occurred_at)),
        false => "clock_timestamp()".to_owned(),
    };
    Ok([
        quoted(&columns.seq),
        format!("{}::uuid", quoted(&columns.id)),
        text(&columns.topic),
        text(&columns.aggregate_type),
        text(&columns.aggregate_id),
        text(&columns.event_type),
        payload(&columns.payload, found),
        text(&columns.headers),
        occurred_at,
    ])
}

fn payload(column: &str, found: &BTreeMap<String, String>) -> String {
    match found.get(column).map(String::as_str) {
        Some("bytea") | None => quoted(column),
        Some(_) => format!("convert_to({}::text, 'UTF8')", quoted(column)),
    }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(columns: &[(&str, &str)]) -> BTreeMap<String, String> {
        columns
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()))
            .collect()
    }

    #[test]
    fn a_debezium_table_works_by_names() {
        let columns = Columns {
            aggregate_type: "aggregatetype".into(),
            aggregate_id: "aggregateid".into(),
            event_type: "type".into(),
            ..Columns::default()
        };
        let table = found(&[
            ("id", "uuid"),
            ("aggregatetype", "character varying"),
            ("aggregateid", "character varying"),
            ("type", "character varying"),
            ("payload", "jsonb"),
            ("xid", "xid8"),
            ("seq", "bigint"),
        ]);
        let list = select_list("public.outbox", &columns, &table)
            .unwrap()
            .join(", ");
        assert_eq!(
            list,
            "\"seq\", \"id\"::uuid, null::text, \"aggregatetype\"::text, \"aggregateid\"::text, \"type\"::text, \
             convert_to(\"payload\"::text, 'UTF8'), null::text, clock_timestamp()"
        );
    }

    #[test]
    fn a_missing_or_mistyped_column_is_named() {
        let mut table = found(&[("id", "uuid"), ("payload", "bytea"), ("seq", "bigint")]);
        let fault = select_list("a.b", &Columns::default(), &table)
            .unwrap_err()
            .to_string();
        assert!(fault.contains("no column \"xid\""), "{fault}");
        table.insert("xid".into(), "bigint".into());
        let fault = select_list("a.b", &Columns::default(), &table)
            .unwrap_err()
            .to_string();
        assert!(fault.contains("xid must be xid8"), "{fault}");
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"; drop table b"), "\"a\"\"; drop table b\"");
    }
}
