//! Rows of the outbox table made into events.

use std::error::Error;

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

use crate::capture::route::{Route, headers, milliseconds};
use crate::event::Event;
use crate::fault::Fault;

/// The columns in the order of `columns::select_list`, after the xid.
pub(crate) fn event(route: &mut Route, row: &Row) -> Result<Event, Fault> {
    let topic = route.topic(row.try_get(3)?, row.try_get(4)?);
    let bytes = |column: Option<&[u8]>| column.map(Bytes::copy_from_slice);
    Ok(Event {
        seq: row.try_get(1)?,
        id: row.try_get::<_, Uuid>(2)?,
        topic,
        key: bytes(row.try_get::<_, Option<&str>>(5)?.map(str::as_bytes)),
        event_type: row.try_get(6)?,
        payload: bytes(row.try_get(7)?),
        headers: headers(row.try_get(8)?),
        occurred_at_ms: milliseconds(row.try_get::<_, Micros>(9)?.0),
    })
}

/// A `timestamptz` as it is sent: microseconds since 2000-01-01.
struct Micros(i64);

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}
