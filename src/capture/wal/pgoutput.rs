//! Messages of the `pgoutput` plugin, protocol version 1, decoded. Pure; any bytes give a value or an error.
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats". Version 1 streams committed transactions only, each
//! from its Begin to its Commit.

use bytes::{Buf, Bytes};

use crate::position::Lsn;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction follows.
    Begin {
        /// Its id without the epoch.
        xid: u32,
        /// When it committed, microseconds since 2000-01-01.
        committed_at_micros: i64,
    },
    /// All of the transaction was sent.
    Commit {
        /// The end of its commit record, where the next record begins.
        end: Lsn,
    },
    /// The shape of a table, before the first row of it and after each change.
    Relation(Relation),
    /// A row was inserted.
    Insert {
        /// [`Relation::id`].
        relation: u32,
        /// Its columns, in the relation's order.
        row: Vec<Column>,
    },
    /// `pg_logical_emit_message`.
    Emitted {
        /// Whether it belongs to the transaction.
        transactional: bool,
        /// Its prefix.
        prefix: Bytes,
        /// Its content.
        content: Bytes,
    },
    /// Any other, by its tag: origins, types, and what the publication does not publish.
    Other(u8),
}

/// The shape of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Oid of the table.
    pub id: u32,
    /// Its schema; empty: `pg_catalog`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Names of its columns with the oids of their types.
    pub columns: Vec<(String, u32)>,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// Null.
    Null,
    /// Not sent: a large value that did not change. Never of an insert.
    Unchanged,
    /// As PostgreSQL prints it.
    Text(Bytes),
    /// As its type is sent in binary.
    Binary(Bytes),
}

/// The bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of pgoutput ends early or holds something else than it says")]
pub struct Malformed;

impl Message {
    /// Reads one message. Values are slices of `bytes`, not copies.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let from = &mut bytes;
        let message = match from.try_get_u8().map_err(|_| Malformed)? {
            b'B' => {
                skip(from, 8)?;
                Self::Begin {
                    committed_at_micros: i64::from_be_bytes(array(from)?),
                    xid: u32::from_be_bytes(array(from)?),
                }
            }
            b'C' => {
                skip(from, 1 + 8)?;
                let end = Lsn::from(u64::from_be_bytes(array(from)?));
                skip(from, 8)?;
                Self::Commit { end }
            }
            b'R' => Self::Relation(relation(from)?),
            b'I' => {
                let relation = u32::from_be_bytes(array(from)?);
                match from.try_get_u8() {
                    Ok(b'N') => Self::Insert {
                        relation,
                        row: row(from)?,
                    },
                    _ => return Err(Malformed),
                }
            }
            b'M' => {
                let flags = u8::from_be_bytes(array(from)?);
                skip(from, 8)?;
                let prefix = text(from)?;
                let length = u32::from_be_bytes(array(from)?);
                Self::Emitted {
                    transactional: flags & 1 == 1,
                    prefix,
                    content: taken(from, length)?,
                }
            }
            other => return Ok(Self::Other(other)),
        };
        match from.is_empty() {
            true => Ok(message),
            false => Err(Malformed),
        }
    }
}

fn relation(from: &mut Bytes) -> Result<Relation, Malformed> {
    let id = u32::from_be_bytes(array(from)?);
    let (schema, name) = (string(from)?, string(from)?);
    // Replica identity.
    skip(from, 1)?;
    let count = u16::from_be_bytes(array(from)?);
    let column = |_| {
        // Flags before the name, the type's modifier after it.
        skip(from, 1)?;
        let column = (string(from)?, u32::from_be_bytes(array(from)?));
        skip(from, 4)?;
        Ok(column)
    };
    let columns = (0..count).map(column).collect::<Result<_, _>>()?;
    Ok(Relation {
        id,
        schema,
        name,
        columns,
    })
}

fn row(from: &mut Bytes) -> Result<Vec<Column>, Malformed> {
    let count = u16::from_be_bytes(array(from)?);
    let mut row = Vec::with_capacity(usize::from(count).min(64));
    for _ in 0..count {
        let kind = from.try_get_u8().map_err(|_| Malformed)?;
        row.push(match kind {
            b'n' => Column::Null,
            b'u' => Column::Unchanged,
            b't' => Column::Text(sized(from)?),
            b'b' => Column::Binary(sized(from)?),
            _ => return Err(Malformed),
        });
    }
    Ok(row)
}

/// A value behind its length.
fn sized(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = u32::from_be_bytes(array(from)?);
    taken(from, length)
}

fn taken(from: &mut Bytes, length: u32) -> Result<Bytes, Malformed> {
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    match length <= from.len() {
        true => Ok(from.split_to(length)),
        false => Err(Malformed),
    }
}

fn skip(from: &mut Bytes, count: usize) -> Result<(), Malformed> {
    if count > from.len() {
        return Err(Malformed);
    }
    from.advance(count);
    Ok(())
}

fn array<const N: usize>(from: &mut Bytes) -> Result<[u8; N], Malformed> {
    let mut array = [0; N];
    from.try_copy_to_slice(&mut array).map_err(|_| Malformed)?;
    Ok(array)
}

/// Up to a zero byte.
fn text(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let end = from.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
    let text = from.split_to(end);
    from.advance(1);
    Ok(text)
}

fn string(from: &mut Bytes) -> Result<String, Malformed> {
    String::from_utf8(text(from)?.to_vec()).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The other direction, for the tests.
    fn encode(message: &Message) -> Vec<u8> {
        let mut to = Vec::new();
        let zero_ended = |to: &mut Vec<u8>, text: &[u8]| {
            to.extend(text);
            to.push(0);
        };
        match message {
            Message::Begin {
                xid,
                committed_at_micros,
            } => {
                to.push(b'B');
                to.extend([7; 8]);
                to.extend(committed_at_micros.to_be_bytes());
                to.extend(xid.to_be_bytes());
            }
            Message::Commit { end } => {
                to.push(b'C');
                to.extend([0; 9]);
                to.extend(u64::from(*end).to_be_bytes());
                to.extend([9; 8]);
            }
            Message::Relation(relation) => {
                to.push(b'R');
                to.extend(relation.id.to_be_bytes());
                zero_ended(&mut to, relation.schema.as_bytes());
                zero_ended(&mut to, relation.name.as_bytes());
                to.push(b'd');
                to.extend(u16::try_from(relation.columns.len()).unwrap().to_be_bytes());
                for (name, kind) in &relation.columns {
                    to.push(1);
                    zero_ended(&mut to, name.as_bytes());
                    to.extend(kind.to_be_bytes());
                    to.extend([255; 4]);
                }
            }
            Message::Insert { relation, row } => {
                to.push(b'I');
                to.extend(relation.to_be_bytes());
                to.push(b'N');
                to.extend(u16::try_from(row.len()).unwrap().to_be_bytes());
                for column in row {
                    let (kind, value) = match column {
                        Column::Null => (b'n', None),
                        Column::Unchanged => (b'u', None),
                        Column::Text(value) => (b't', Some(value)),
                        Column::Binary(value) => (b'b', Some(value)),
                    };
                    to.push(kind);
                    if let Some(value) = value {
                        to.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                        to.extend(value);
                    }
                }
            }
            Message::Emitted {
                transactional,
                prefix,
                content,
            } => {
                to.extend([b'M', u8::from(*transactional)]);
                to.extend([3; 8]);
                zero_ended(&mut to, prefix);
                to.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
                to.extend(content);
            }
            Message::Other(tag) => to.extend([*tag, 1, 2, 3]),
        }
        to
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn messages() -> impl Strategy<Value = Message> {
        let column = prop_oneof![
            Just(Column::Null),
            Just(Column::Unchanged),
            bytes().prop_map(Column::Text),
            bytes().prop_map(Column::Binary),
        ];
        let relation = (
            any::<u32>(),
            "[a-z]{0,8}",
            "[a-zé]{1,8}",
            proptest::collection::vec(("[a-z_]{1,8}", any::<u32>()), 0..12),
        );
        prop_oneof![
            (any::<u32>(), any::<i64>()).prop_map(|(xid, committed_at_micros)| Message::Begin {
                xid,
                committed_at_micros
            }),
            any::<u64>().prop_map(|end| Message::Commit { end: end.into() }),
            relation.prop_map(|(id, schema, name, columns)| Message::Relation(Relation {
                id,
                schema,
                name,
                columns
            })),
            (any::<u32>(), proptest::collection::vec(column, 0..12))
                .prop_map(|(relation, row)| Message::Insert { relation, row }),
            (any::<bool>(), "[a-z]{0,9}", bytes()).prop_map(|(transactional, prefix, content)| {
                Message::Emitted {
                    transactional,
                    prefix: prefix.into(),
                    content,
                }
            }),
            Just(Message::Other(b'Y')),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(message in messages()) {
            prop_assert_eq!(Message::decode(encode(&message).into()), Ok(message));
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(bytes.into());
        }

        #[test]
        fn a_damaged_message_gives_a_value_or_an_error(
            message in messages(), cut in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), with in any::<u8>(),
        ) {
            let mut bytes = encode(&message);
            let place = at.index(bytes.len());
            bytes[place] = with;
            let _ = Message::decode(bytes.clone().into());
            bytes.truncate(cut.index(bytes.len()));
            let cut = Message::decode(bytes.into());
            prop_assert!(cut.is_err() || matches!(cut, Ok(Message::Other(_))) || place == 0, "{cut:?}");
        }
    }
}
