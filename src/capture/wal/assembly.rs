//! Messages of a stream put together to whole transactions.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::layout::{Layout, emitted};
use super::pgoutput::{Message, Relation};
use super::spill::{Spill, Spilled};
use crate::capture::route::Route;
use crate::capture::{BatchLimits, CaptureSettings, Columns};
use crate::event::Event;
use crate::fault::Fault;
use crate::position::{Lsn, Xid};

/// Prefix of the messages of `outbox.emit`.
const PREFIX: &[u8] = b"outbox";

/// Reads events out of messages.
#[derive(Clone)]
pub(super) struct Reading {
    table: Arc<str>,
    columns: Arc<Columns>,
    route: Route,
    /// Layouts of the relations met so far; `None`: another table than ours.
    relations: Arc<HashMap<u32, Option<Layout>>>,
}

impl Reading {
    pub fn new(settings: &CaptureSettings) -> Self {
        Self {
            table: settings.table.as_str().into(),
            columns: Arc::new(settings.columns.clone()),
            route: Route::new(&settings.route),
            relations: Arc::default(),
        }
    }

    /// The event of a message; none if it holds none.
    pub fn event(
        &mut self,
        message: Message,
        committed_at_micros: i64,
    ) -> Result<Option<Event>, Fault> {
        match message {
            Message::Relation(relation) => self.meet(&relation).map(|()| None),
            Message::Insert { relation, row } => {
                let known = self.relations.get(&relation).ok_or_else(|| {
                    Fault::Defect("a row came before its relation was described".into())
                })?;
                let route = &mut self.route;
                let event = |layout: &Layout| layout.event(&row, route, committed_at_micros);
                known.as_ref().map(event).transpose()
            }
            Message::Emitted {
                transactional: true,
                prefix,
                content,
            } if prefix == PREFIX => emitted(content, &mut self.route).map(Some),
            Message::Emitted { .. }
            | Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Other(_) => Ok(None),
        }
    }

    fn meet(&mut self, relation: &Relation) -> Result<(), Fault> {
        let name = format!("{}.{}", relation.schema, relation.name);
        let layout = match name == *self.table {
            true => Some(Layout::new(relation, &self.columns)?),
            false => None,
        };
        Arc::make_mut(&mut self.relations).insert(relation.id, layout);
        Ok(())
    }
}

/// A committed transaction with at least one event.
pub(super) struct Committed {
    pub xid: Xid,
    /// The end of its commit record.
    pub end: Lsn,
    /// Microseconds since 2000 UTC.
    pub committed_at_micros: i64,
    pub events: u64,
    pub bytes: u64,
    pub body: Body,
}

/// Its events: in memory if they are within the limits of a batch.
pub(super) enum Body {
    Whole(Vec<Event>),
    Large(Box<Spilled>),
}

/// What came of a message.
pub(super) enum Assembled {
    /// A transaction is complete.
    Transaction(Committed),
    /// All that committed up to here came before; the transaction that ended here had no events.
    Nothing(Lsn),
}

/// The transaction under way.
struct Open {
    xid: Xid,
    committed_at_micros: i64,
    /// What the messages of the transaction are read with from its beginning.
    reading: Reading,
    events: Vec<Event>,
    /// The same as they came, for the case that they turn out to be too many.
    messages: Vec<Bytes>,
    count: u64,
    bytes: u64,
    spill: Option<Spill>,
}

/// Takes messages, gives transactions.
pub(super) struct Assembly {
    reading: Reading,
    limits: BatchLimits,
    /// A transaction id near those that come: they come without their upper half.
    near: Xid,
    open: Option<Open>,
}

impl Assembly {
    pub fn new(settings: &CaptureSettings, near: Xid) -> Self {
        Self {
            reading: Reading::new(settings),
            limits: settings.batch,
            near,
            open: None,
        }
    }

    /// Whether a transaction is under way.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub async fn take(&mut self, bytes: Bytes) -> Result<Option<Assembled>, Fault> {
        let message =
            Message::decode(bytes.clone()).map_err(|error| Fault::Defect(error.to_string()))?;
        match message {
            Message::Begin {
                xid,
                committed_at_micros,
            } => {
                self.near = widened(self.near, xid);
                self.open = Some(Open {
                    xid: self.near,
                    committed_at_micros,
                    reading: self.reading.clone(),
                    events: Vec::new(),
                    messages: Vec::new(),
                    count: 0,
                    bytes: 0,
                    spill: None,
                });
                Ok(None)
            }
            Message::Commit { end } => {
                let open = self.open.take().ok_or_else(|| {
                    Fault::Defect("the stream ends a transaction that it did not begin".into())
                })?;
                open.committed(end).await.map(Some)
            }
            other => {
                let committed_at = self
                    .open
                    .as_ref()
                    .map_or(0, |open| open.committed_at_micros);
                let is_relation = matches!(other, Message::Relation(_));
                let event = self.reading.event(other, committed_at)?;
                match &mut self.open {
                    Some(open) if event.is_some() || is_relation => {
                        open.add(bytes, event, self.limits).await?;
                    }
                    _ => {}
                }
                Ok(None)
            }
        }
    }
}

impl Open {
    async fn add(
        &mut self,
        message: Bytes,
        event: Option<Event>,
        limits: BatchLimits,
    ) -> Result<(), Fault> {
        if let Some(event) = &event {
            self.count += 1;
            self.bytes += event.payload.as_ref().map_or(0, Bytes::len) as u64;
        }
        if let Some(spill) = &mut self.spill {
            return spill.write(&message).await;
        }
        self.messages.push(message);
        self.events.extend(event);
        if self.count > limits.events_max || self.bytes > limits.bytes_max {
            self.events = Vec::new();
            let spill = self.spill.insert(Spill::new()?);
            for message in std::mem::take(&mut self.messages) {
                spill.write(&message).await?;
            }
        }
        Ok(())
    }

    async fn committed(self, end: Lsn) -> Result<Assembled, Fault> {
        if self.count == 0 {
            return Ok(Assembled::Nothing(end));
        }
        let body = match self.spill {
            None => Body::Whole(self.events),
            Some(spill) => {
                let spilled = spill.written(self.reading, self.committed_at_micros);
                Body::Large(Box::new(spilled.await?))
            }
        };
        Ok(Assembled::Transaction(Committed {
            xid: self.xid,
            end,
            committed_at_micros: self.committed_at_micros,
            events: self.count,
            bytes: self.bytes,
            body,
        }))
    }
}

/// The transaction id whose lower half is `xid`, next to `near`: all that a server knows lie within half of their number
/// from each other (PostgreSQL manual, "Preventing Transaction ID Wraparound Failures").
fn widened(near: Xid, xid: u32) -> Xid {
    let lower = near as u32;
    let step = i64::from(xid.wrapping_sub(lower) as i32);
    near.saturating_add_signed(step)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_transaction_id_gets_its_upper_half_back(near in 3u64..u64::MAX / 2, step in -0x7fff_ffffi64..0x7fff_ffff) {
            let xid = near.saturating_add_signed(step);
            prop_assume!(xid > 0);
            prop_assert_eq!(widened(near, xid as u32), xid);
        }
    }
}
