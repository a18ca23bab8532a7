//! Which column of a relation plays which part, and rows made into events. Pure.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::pgoutput::{Column, Relation};
use crate::capture::Columns;
use crate::capture::route::{Route, headers, headers_of, milliseconds};
use crate::event::Event;
use crate::fault::Fault;

/// How a value is read. Values come in binary: a payload in bytes is half as long so, and needs no parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The characters themselves.
    Text,
    /// The same behind a version byte.
    Jsonb,
    Bytes,
    Uuid,
    Int,
    Bool,
    Micros,
}

/// A part, where it is, and its form.
#[derive(Clone, Copy, Debug)]
struct Part {
    index: usize,
    form: Form,
}

/// Where the parts of an event are in the rows of one relation.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    seq: Option<Part>,
    id: Part,
    topic: Option<Part>,
    aggregate_type: Option<Part>,
    aggregate_id: Option<Part>,
    event_type: Option<Part>,
    payload: Part,
    headers: Option<Part>,
    occurred_at: Option<Part>,
}

impl Layout {
    /// # Errors
    /// [`Fault::Refused`] if a column is missing or of a type that is not read in binary.
    pub fn new(relation: &Relation, columns: &Columns) -> Result<Self, Fault> {
        let table = format!("{}.{}", relation.schema, relation.name);
        let find = |name: &str| -> Result<Option<Part>, Fault> {
            let place = relation.columns.iter().position(|(it, _)| it == name);
            let Some((index, oid)) = place.map(|index| (index, relation.columns[index].1)) else {
                return Ok(None);
            };
            let form = form(oid).ok_or_else(|| {
                Fault::Refused(format!(
                    "column {name:?} of table {table} has type {}, which capture wal does not read; make it text, or use capture table",
                    Type::from_oid(oid).map_or_else(|| format!("number {oid}"), |it| it.to_string())
                ))
            })?;
            Ok(Some(Part { index, form }))
        };
        let needed = |part: &str, name: &str| {
            find(name)?.ok_or_else(|| {
                Fault::Refused(format!(
                    "table {table} has no column {name:?} for {part}; add it, or name the right one under [columns] in the configuration file"
                ))
            })
        };
        Ok(Self {
            seq: find(&columns.seq)?,
            id: needed("id", &columns.id)?,
            topic: find(&columns.topic)?,
            aggregate_type: find(&columns.aggregate_type)?,
            aggregate_id: find(&columns.aggregate_id)?,
            event_type: find(&columns.event_type)?,
            payload: needed("payload", &columns.payload)?,
            headers: find(&columns.headers)?,
            occurred_at: find(&columns.occurred_at)?,
        })
    }

    /// The row as an event. `committed_at_micros` stands in for a time that the table does not have.
    ///
    /// # Errors
    /// [`Fault::Defect`] if a value is not of the form that its type has.
    pub fn event(
        &self,
        row: &[Column],
        route: &mut Route,
        committed_at_micros: i64,
    ) -> Result<Event, Fault> {
        let read = |part: &Option<Part>| part.map_or(Ok(None), |part| printed(row, part));
        let text = |part: &Option<Part>| -> Result<Option<String>, Fault> {
            read(part)?.map(utf8).transpose()
        };
        let (topic, aggregate_type) = (text(&self.topic)?, text(&self.aggregate_type)?);
        let micros = match self.occurred_at {
            Some(part) => integer(row, part)?,
            None => None,
        };
        Ok(Event {
            seq: self
                .seq
                .map_or(Ok(None), |seq| integer(row, seq))?
                .unwrap_or(0),
            id: uuid(row, self.id)?,
            topic: route.topic(topic.as_deref(), aggregate_type.as_deref()),
            key: read(&self.aggregate_id)?,
            event_type: text(&self.event_type)?,
            payload: printed(row, self.payload)?,
            headers: headers(text(&self.headers)?.as_deref()),
            occurred_at_ms: milliseconds(micros.unwrap_or(committed_at_micros)),
        })
    }
}

fn form(oid: u32) -> Option<Form> {
    Some(match Type::from_oid(oid)? {
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON => Form::Text,
        Type::JSONB => Form::Jsonb,
        Type::BYTEA => Form::Bytes,
        Type::UUID => Form::Uuid,
        Type::INT2 | Type::INT4 | Type::INT8 => Form::Int,
        Type::BOOL => Form::Bool,
        Type::TIMESTAMPTZ => Form::Micros,
        _ => return None,
    })
}

fn defect(what: &str) -> Fault {
    Fault::Defect(format!("a row of the stream holds {what}"))
}

/// The value's bytes; `None` for null.
fn value(row: &[Column], part: Part) -> Result<Option<Bytes>, Fault> {
    match row.get(part.index) {
        Some(Column::Binary(value)) => Ok(Some(value.clone())),
        Some(Column::Null) => Ok(None),
        Some(Column::Text(_)) => Err(defect("a value as text that was asked for in binary")),
        Some(Column::Unchanged) | None => Err(defect("fewer values than its relation has columns")),
    }
}

/// As PostgreSQL prints it; bytes as they are.
fn printed(row: &[Column], part: Part) -> Result<Option<Bytes>, Fault> {
    let Some(mut value) = value(row, part)? else {
        return Ok(None);
    };
    Ok(Some(match part.form {
        Form::Text | Form::Bytes => value,
        Form::Jsonb => match value.try_get_u8() {
            Ok(1) => value,
            _ => return Err(defect("a jsonb of another version than 1")),
        },
        Form::Uuid => uuid(row, part)?.to_string().into(),
        Form::Bool => Bytes::from_static(match value.as_ref() {
            [0] => b"false",
            [1] => b"true",
            _ => return Err(defect("a bool that is none")),
        }),
        Form::Int => match integer(row, part)? {
            Some(number) => number.to_string().into(),
            None => return Ok(None),
        },
        Form::Micros => return Err(defect("a time where text is needed")),
    }))
}

fn utf8(value: Bytes) -> Result<String, Fault> {
    String::from_utf8(value.into()).map_err(|_| defect("text that is not UTF-8"))
}

fn integer(row: &[Column], part: Part) -> Result<Option<i64>, Fault> {
    let Some(value) = value(row, part)? else {
        return Ok(None);
    };
    let number = match *value.as_ref() {
        [a, b] => i16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(defect("a number that is none")),
    };
    Ok(Some(number))
}

fn uuid(row: &[Column], part: Part) -> Result<Uuid, Fault> {
    let Some(value) = value(row, part)? else {
        return Err(Fault::Refused(
            "a row of the outbox table has no event id; make the id column not null".into(),
        ));
    };
    let read = match part.form {
        Form::Uuid => Uuid::from_slice(&value),
        _ => Uuid::try_parse_ascii(&value),
    };
    read.map_err(|_| defect("an event id that is no uuid"))
}

/// What `outbox.emit` writes before the payload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Emitted {
    id: Uuid,
    topic: Option<String>,
    aggregate_type: Option<String>,
    key: Option<String>,
    event_type: Option<String>,
    headers: Option<Map<String, Value>>,
    occurred_at_ms: i64,
    tombstone: bool,
}

/// A message of `outbox.emit` as an event: four bytes with the length of a JSON object, the object, the payload.
///
/// # Errors
/// [`Fault::Refused`] if something else wrote it.
pub(super) fn emitted(mut content: Bytes, route: &mut Route) -> Result<Event, Fault> {
    let foreign = |why: &str| {
        Fault::Refused(format!(
            "a logical message with prefix 'outbox' was not written by outbox.emit ({why}); use another prefix for other messages"
        ))
    };
    let length = content
        .try_get_u32()
        .map_err(|_| foreign("it is too short"))?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > content.len() {
        return Err(foreign("it is too short"));
    }
    let about = content.split_to(length);
    let about: Emitted =
        serde_json::from_slice(&about).map_err(|error| foreign(&error.to_string()))?;
    let topic: Arc<str> = route.topic(about.topic.as_deref(), about.aggregate_type.as_deref());
    Ok(Event {
        seq: 0,
        id: about.id,
        topic,
        key: about.key.map(Bytes::from),
        event_type: about.event_type,
        payload: (!about.tombstone).then_some(content),
        headers: about.headers.map(headers_of).unwrap_or_default(),
        occurred_at_ms: about.occurred_at_ms.max(1),
    })
}
