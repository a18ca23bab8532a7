//! Messages of the `pgoutput` plugin, encoded as a walsender does (PostgreSQL manual, "Logical Replication Message Formats").

use bytes::Bytes;
use outbox_relay::position::{Lsn, Xid};
use tokio_postgres::types::Type;

use super::Row;
use super::shell::TABLE;

/// Oid of the table.
const RELATION: u32 = 16_400;

/// A transaction follows.
pub fn begin(xid: Xid, end: Lsn) -> Bytes {
    let mut to = vec![b'B'];
    to.extend(u64::from(end).to_be_bytes());
    to.extend(0i64.to_be_bytes());
    to.extend((xid as u32).to_be_bytes());
    to.into()
}

/// All of it was sent.
pub fn commit(end: Lsn) -> Bytes {
    let mut to = vec![b'C', 0];
    to.extend(u64::from(end).to_be_bytes());
    to.extend(u64::from(end).to_be_bytes());
    to.extend(0i64.to_be_bytes());
    to.into()
}

/// The end in a message, if it is that of a transaction.
pub fn end_of(message: &[u8]) -> Option<Lsn> {
    let end = message.get(10..18).filter(|_| message[0] == b'C')?;
    let end: [u8; 8] = end.try_into().ok()?;
    Some(u64::from_be_bytes(end).into())
}

/// The shape of the table, as far as an event needs it.
pub fn relation() -> Bytes {
    let columns = [
        ("seq", Type::INT8),
        ("id", Type::UUID),
        ("topic", Type::TEXT),
        ("aggregate_id", Type::TEXT),
        ("payload", Type::BYTEA),
    ];
    let (schema, name) = TABLE.split_once('.').expect("a schema");
    let mut to = vec![b'R'];
    to.extend(RELATION.to_be_bytes());
    for text in [schema, name] {
        to.extend(text.bytes().chain([0]));
    }
    to.push(b'd');
    to.extend((columns.len() as u16).to_be_bytes());
    for (name, kind) in columns {
        to.push(0);
        to.extend(name.bytes().chain([0]));
        to.extend(kind.oid().to_be_bytes());
        to.extend((-1i32).to_be_bytes());
    }
    to.into()
}

/// A row was inserted.
pub fn insert(row: &Row, topic: &str) -> Bytes {
    let (seq, key) = (row.seq.to_be_bytes(), row.key.to_string());
    let columns: [Option<&[u8]>; 5] = [
        Some(&seq),
        Some(row.id.as_bytes()),
        Some(topic.as_bytes()),
        Some(key.as_bytes()),
        None,
    ];
    let mut to = vec![b'I'];
    to.extend(RELATION.to_be_bytes());
    to.push(b'N');
    to.extend((columns.len() as u16).to_be_bytes());
    for value in columns {
        match value {
            None => to.push(b'n'),
            Some(value) => {
                to.push(b'b');
                to.extend((value.len() as u32).to_be_bytes());
                to.extend(value);
            }
        }
    }
    to.into()
}
