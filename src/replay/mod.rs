//! `replay`: publishes retained rows again, marked as such.
//!
//! * **Only what was published.** A row is replayed if the relay's position covers its transaction, and it is not parked;
//!   else the relay itself is still to publish it, or nobody is.
//! * **All or nothing.** One Kafka transaction holds the whole replay, under a transactional id that no relay has: it
//!   fences no relay, and what fails leaves nothing.
//! * **In order.** Transactions in the order of their last insert, which respects all that depend on each other, and rows in
//!   theirs.
//! * **Marked.** Each record has the header `replay` with the id of the replay beside the headers that it had, so a
//!   consumer, and `verify`, can tell it from a repetition. The relay's position stays.
//!
//! Times are those of `occurred_at`, which every record shows as its timestamp; `outbox.marks` knows minutes only, and is
//! thinned out. A transaction is selected by its last event, and as a whole.

mod publisher;
mod selection;

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

use futures_util::TryStreamExt;
use serde::Serialize;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use self::publisher::Publisher;
pub use self::selection::Selection;
use crate::capture::route::Route;
use crate::capture::table::{event, origin, shape};
use crate::config::{Settings, SinkKind};
use crate::database::{unsigned, xid};
use crate::event::{Event, Slice};
use crate::fault::Fault;
use crate::park::people::set_aside;
use crate::position::{Origin, Position, Xid};
use crate::sink::kafka::last_position;

/// Each topic that refused a batch makes them smaller.
const TRIES: u32 = 10;
/// Events that are shown.
const SAMPLE: usize = 10;

/// What is replayed, or would be.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// Value of the header `replay`.
    pub replay: String,
    /// Whether it was done.
    pub applied: bool,
    /// Database transactions of which there are events.
    pub transactions: u64,
    /// Events.
    pub events: u64,
    /// Events by the topic that they go to.
    pub topics: BTreeMap<String, u64>,
    /// Selected events that are left out, because they are not known to be published.
    pub not_published: u64,
    /// The first of them.
    pub sample: Vec<Sample>,
}

/// One event, for a person.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// Its transaction.
    pub tx_id: String,
    /// Its index there.
    pub tx_index: u64,
    /// Its id.
    pub id: Uuid,
    /// The topic that it goes to.
    pub topic: String,
    /// Its key.
    pub key: Option<String>,
    /// Its type.
    pub event_type: Option<String>,
}

/// Looks what `selection` selects, and publishes it again if `apply`.
///
/// # Errors
/// [`Fault::Refused`] if the relay has no position; else whatever kept a server from answering. Then nothing was published,
/// unless it came from the commit: then a record with the header says whether all was.
pub async fn replay(
    settings: &Settings,
    selection: &Selection,
    apply: bool,
) -> Result<Replayed, Fault> {
    if settings.sink != SinkKind::Kafka {
        return Err(Fault::Setting("replay needs sink kafka".into()));
    }
    selection.check()?;
    // Before the rows: what the position covers is in the table by then, or gone.
    let position = last_position(&settings.kafka).await?.ok_or_else(|| {
        let name = &settings.name;
        Fault::Refused(format!(
            "relay {name} has no position in this Kafka, so it published nothing"
        ))
    })?;
    let client = settings.database.connect().await?;
    let table = &settings.outbox.table;
    let (here, next_xid) = origin(&client, table, &position.origin.capture).await?;
    here.accepts(&position, next_xid)?;
    selection.check_times(&client).await?;
    let id = format!("replay-{}", Uuid::new_v4().simple());
    let reading = Reading {
        set_aside: set_aside(&client, &settings.name, &position.unsettled).await?,
        settings,
        selection,
        position: &position,
        here: &here,
    };
    match apply {
        true => reading.publish(&client, id).await,
        false => reading.rows(&client, id, &mut None).await,
    }
}

struct Reading<'a> {
    set_aside: HashMap<Xid, bool>,
    settings: &'a Settings,
    selection: &'a Selection,
    position: &'a Position,
    here: &'a Origin,
}

impl Reading<'_> {
    /// In one Kafka transaction, at a later try if the producer has to be made anew.
    async fn publish(&self, client: &Client, id: String) -> Result<Replayed, Fault> {
        let mut shell = Publisher::shell(&self.settings.kafka, &id);
        let mut tries = 1;
        loop {
            let mut publisher = Some(Publisher::open(shell).await?);
            let read = self.rows(client, id.clone(), &mut publisher).await;
            let Some(mut publisher) = publisher else {
                return read;
            };
            let flushed = match read {
                Ok(found) => publisher.flush().await.map(|()| found),
                Err(fault) => Err(fault),
            };
            match flushed {
                Ok(mut found) => {
                    publisher.commit(found.events > 0).await?;
                    found.applied = true;
                    return Ok(found);
                }
                Err(fault) => {
                    shell = publisher.abandon().await;
                    if !matches!(fault, Fault::Recycle(_)) || tries == TRIES {
                        return Err(fault);
                    }
                    tracing::info!("{fault}; trying again");
                    tries += 1;
                }
            }
        }
    }

    /// One pass over the selected rows.
    async fn rows(
        &self,
        client: &Client,
        replay: String,
        publisher: &mut Option<Publisher>,
    ) -> Result<Replayed, Fault> {
        let mut found = Replayed {
            replay,
            applied: false,
            transactions: 0,
            events: 0,
            topics: BTreeMap::new(),
            not_published: 0,
            sample: Vec::new(),
        };
        let (_, shape) = shape(client, &self.settings.outbox).await?;
        let sql = shape.fill(include_str!("../../sql/replay/rows.sql"));
        let values = self.selection.values(&self.here.system_id)?;
        let mut rows = pin!(client.query_typed_raw(&sql, values).await?);
        let mut route = Route::new(&self.settings.outbox.route);
        let mut last = None;
        while let Some(row) = rows.try_next().await? {
            let place = Place::of(&row)?;
            let mut event = event(&mut route, &row)?;
            if !self.selection.is_of(&event.topic) {
                continue;
            }
            let passed = self.position.covers(place.xid, place.last_seq);
            if !passed || self.set_aside.get(&place.xid) == Some(&true) {
                found.not_published += 1;
                continue;
            }
            if let Some(to) = &self.selection.to_topic {
                event.topic = to.as_str().into();
            }
            let slice = place.slice(self.here, event);
            found.add(&slice, last.replace(place.xid) != Some(place.xid));
            if let Some(publisher) = publisher {
                publisher.publish(slice).await?;
            }
        }
        Ok(found)
    }
}

/// Where a row stands, from the columns behind the event's.
struct Place {
    xid: Xid,
    index: u64,
    count: u64,
    last_seq: i64,
}

impl Place {
    fn of(row: &Row) -> Result<Self, Fault> {
        Ok(Self {
            xid: xid(row.try_get(0)?)?,
            index: unsigned(row.try_get(10)?),
            count: unsigned(row.try_get(11)?),
            last_seq: row.try_get(12)?,
        })
    }

    fn slice(&self, here: &Origin, event: Event) -> Slice {
        Slice {
            tx_id: here.tx_id(self.xid),
            tx_count: self.count,
            first_index: self.index,
            events: vec![event],
        }
    }
}

impl Replayed {
    fn add(&mut self, slice: &Slice, is_new: bool) {
        self.transactions += u64::from(is_new);
        for event in &slice.events {
            self.events += 1;
            *self.topics.entry(event.topic.to_string()).or_default() += 1;
            if self.sample.len() < SAMPLE {
                self.sample.push(Sample {
                    tx_id: slice.tx_id.to_string(),
                    tx_index: slice.first_index,
                    id: event.id,
                    topic: event.topic.to_string(),
                    key: (event.key.as_deref())
                        .map(|key| String::from_utf8_lossy(key).into_owned()),
                    event_type: event.event_type.clone(),
                });
            }
        }
    }

    /// For a person. Ends without a line break.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header(["transaction", "index", "id", "topic", "key", "type"]);
        for it in &self.sample {
            let (index, id) = (it.tx_index.to_string(), it.id.to_string());
            let (key, kind) = (it.key.as_deref(), it.event_type.as_deref());
            let cells = [
                &*it.tx_id,
                &index,
                &id,
                &it.topic,
                key.unwrap_or(""),
                kind.unwrap_or(""),
            ];
            table.add_row(cells);
        }
        let mut lines = vec![format!(
            "{} events of {} transactions",
            self.events, self.transactions
        )];
        lines.extend(
            self.topics
                .iter()
                .map(|(topic, events)| format!("  {events} to topic {topic}")),
        );
        if !self.sample.is_empty() {
            lines.push(format!("the first of them:\n{table}"));
        }
        if self.not_published > 0 {
            lines.push(format!(
                "left out: {} events that the relay has not published yet, as far as its position says",
                self.not_published
            ));
        }
        lines.push(match (self.applied, self.events) {
            (_, 0) => "nothing to replay".into(),
            (true, _) => format!("published again, with header replay = {}", self.replay),
            (false, _) => "nothing was published; add --apply to do it".into(),
        });
        lines.join("\n")
    }
}
