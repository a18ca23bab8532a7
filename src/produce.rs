//! `produce`: producers that write events into the outbox table as use cases would, for a look at one's own servers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::database::{Database, Value};
use crate::fault::Fault;

/// Who writes what.
#[derive(Args, Clone, Debug)]
pub struct Producers {
    /// Topic of the events.
    #[arg(long, default_value = "messages")]
    pub topic: String,
    /// Producers, each with a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub producers: u16,
    /// Milliseconds from one transaction of a producer to its next, on average.
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    pub delay_ms: u32,
    /// Events of one transaction.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..))]
    pub events: i32,
    /// Keys that the producers write for.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// End after so many transactions, instead of by Ctrl-C.
    #[arg(long, value_name = "N")]
    pub transactions_max: Option<u64>,
}

/// A committed transaction.
#[derive(Debug, Serialize)]
pub struct Produced {
    /// Number of the producer.
    pub producer: u16,
    /// The transaction's id, as it ends the header `tx-id`.
    pub xid: String,
    /// Topic of its events.
    pub topic: String,
    /// Their key.
    pub key: String,
    /// How many there are.
    pub events: i64,
}

impl Produced {
    /// A line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            producer,
            xid,
            topic,
            key,
            events,
        } = self;
        format!("producer {producer:>2}  transaction {xid}  {events} events  {topic}  {key}")
    }
}

/// Writes until all is written, or `tell` says `false`; answers how many transactions there were.
///
/// # Errors
/// The first fault of the database.
pub async fn produce(
    database: &Database,
    wish: &Producers,
    tell: impl Fn(&Produced) -> bool,
) -> Result<u64, Fault> {
    let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let most = wish.transactions_max.unwrap_or(u64::MAX);
    let work = async |producer: u16| -> Result<(), Fault> {
        let client = database.connect().await?;
        while begun.fetch_add(1, Ordering::Relaxed) < most {
            // So that they do not march in step.
            let share = fastrand::f64() + 0.5;
            sleep(Duration::from_millis(wish.delay_ms.into()).mul_f64(share)).await;
            let produced = one(&client, producer, wish).await?;
            done.fetch_add(1, Ordering::Relaxed);
            if !tell(&produced) {
                begun.store(most, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    try_join_all((1..=wish.producers).map(work)).await?;
    Ok(done.into_inner())
}

async fn one(client: &Client, producer: u16, wish: &Producers) -> Result<Produced, Fault> {
    let key = format!("key-{}", fastrand::u32(1..=wish.keys));
    let values: [Value; 4] = [
        (&wish.topic, Type::TEXT),
        (&key, Type::TEXT),
        (&i32::from(producer), Type::INT4),
        (&wish.events, Type::INT4),
    ];
    let publish = include_str!("../sql/produce/publish.sql");
    let row = client.query_typed_one(publish, &values).await?;
    Ok(Produced {
        producer,
        xid: row.try_get(0)?,
        topic: wish.topic.clone(),
        key,
        events: row.try_get(1)?,
    })
}
