//! `consume`: message printers on one topic, one group, `read_committed`: what a consumer of the relay's topics sees.

use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fault::Fault;
use crate::scan::{Brokers, POLL, QuietConsumer, away};
use crate::sink::kafka::{KafkaSettings, topic};

/// Who reads what.
#[derive(Args, Clone, Debug)]
pub struct Printers {
    /// The topic; it is made, with three partitions or --topic-partitions, if it is not there.
    #[arg(long, default_value = "messages")]
    pub topic: String,
    /// Message printers, which share the partitions.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub printers: u16,
    /// Their consumer group. Kafka keeps how far it came: the next one of the name goes on there, the first one begins at the
    /// beginning.
    #[arg(long, default_value = "outbox-relay-consume")]
    pub group: String,
    /// End after so many messages, instead of by Ctrl-C.
    #[arg(long, value_name = "N")]
    pub messages_max: Option<u64>,
}

/// A message as it is printed.
#[derive(Debug, Serialize)]
pub struct Printed {
    /// Number of the printer.
    pub printer: u16,
    /// Where it stands.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970 UTC.
    pub timestamp_ms: Option<i64>,
    /// Key; what is no UTF-8 is replaced by `U+FFFD`, here and below.
    pub key: Option<String>,
    /// Headers, in order; of one name the last.
    pub headers: Map<String, Value>,
    /// Value; none: a tombstone.
    pub value: Option<String>,
}

impl Printed {
    fn of(printer: u16, message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().map(|headers| {
            let header = |it: rdkafka::message::Header<'_, &[u8]>| {
                (it.key.to_owned(), it.value.map(text).into())
            };
            headers.iter().map(header).collect()
        });
        Self {
            printer,
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(text),
            headers: headers.unwrap_or_default(),
            value: message.payload().map(text),
        }
    }

    /// A line for people. Nothing in it drives a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let header = |name| self.headers.get(name).and_then(Value::as_str);
        let number = |name| header(name)?.parse::<u64>().ok();
        let (tx_index, tx_count) = (number("tx-index"), number("tx-count"));
        let place = tx_index.zip(tx_count).map_or_else(String::new, |(n, of)| {
            format!("  {}/{of} of {}", n + 1, header("tx-id").unwrap_or("?"))
        });
        let line = format!(
            "printer {}  {}[{}]@{}  {}  {}{place}  {}",
            self.printer,
            self.topic,
            self.partition,
            self.offset,
            self.key.as_deref().unwrap_or("-"),
            header("type").unwrap_or("-"),
            self.value.as_deref().unwrap_or("(tombstone)"),
        );
        let harmless = |c: char| match c.is_control() {
            true => '\u{fffd}',
            false => c,
        };
        line.chars().map(harmless).collect()
    }
}

/// Reads until `stop`, until so many messages are told, or until `tell` says `false`; answers how many were told.
///
/// # Errors
/// [`Fault::Setting`] if the topic can have no such name; [`Fault::Refused`] if it must not be read;
/// [`Fault::Unavailable`] if no broker answers at the start.
pub async fn consume(
    settings: &KafkaSettings,
    wish: &Printers,
    tell: impl Fn(&Printed) -> bool + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<u64, Fault> {
    topic::make(settings, &wish.topic).await?;
    let all = Arc::new(All {
        wish: wish.clone(),
        tell,
        told: Mutex::new(0),
        stop,
    });
    let mut printers = JoinSet::new();
    for printer in 1..=wish.printers {
        let consumer = Brokers::from(settings).in_group(&wish.group)?;
        let all = Arc::clone(&all);
        printers.spawn_blocking(move || {
            // One that must not read ends them all.
            let _end = all.stop.clone().drop_guard();
            all.print(printer, &consumer)
        });
    }
    while let Some(end) = printers.join_next().await {
        end.map_err(|error| Fault::Defect(format!("a printer ended: {error}")))??;
    }
    let told = *all.told.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(told)
}

/// What the printers share.
struct All<T> {
    wish: Printers,
    tell: T,
    told: Mutex<u64>,
    stop: CancellationToken,
}

impl<T: Fn(&Printed) -> bool> All<T> {
    fn print(&self, printer: u16, consumer: &QuietConsumer) -> Result<(), Fault> {
        let most = self.wish.messages_max.unwrap_or(u64::MAX);
        let topic = self.wish.topic.as_str();
        consumer.subscribe(&[topic]).map_err(|error| away(&error))?;
        while !self.stop.is_cancelled() {
            let message = match consumer.poll(POLL) {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    may_go_on(topic, &error)?;
                    continue;
                }
                None => continue,
            };
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if *told >= most || self.stop.is_cancelled() {
                break;
            }
            let goes_on = (self.tell)(&Printed::of(printer, &message));
            *told += 1;
            // Only what was told is committed, when the consumer is closed at the latest.
            let stored = consumer.store_offset_from_message(&message);
            stored.map_err(|error| away(&error))?;
            if !goes_on || *told >= most {
                self.stop.cancel();
            }
        }
        Ok(())
    }
}

/// The client gets over a broker that is away by itself.
fn may_go_on(topic: &str, error: &KafkaError) -> Result<(), Fault> {
    match error.rdkafka_error_code() {
        Some(
            code @ (RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopicOrPartition),
        ) => Err(Fault::Refused(format!(
            "topic {topic} can't be read: {code}"
        ))),
        _ => {
            tracing::debug!("while reading {topic}: {error}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_place_in_the_transaction_and_drives_no_terminal() {
        let header = |name: &str, value: &str| (name.to_owned(), Value::from(value));
        let mut printed = Printed {
            printer: 2,
            topic: "messages".into(),
            partition: 1,
            offset: 42,
            timestamp_ms: None,
            key: Some("key-7".into()),
            headers: Map::from_iter([
                header("type", "Produced"),
                header("tx-id", "7-1-812"),
                header("tx-index", "0"),
                header("tx-count", "3"),
            ]),
            value: Some("\u{1b}[31m{}\n".into()),
        };
        assert_eq!(
            printed.text(),
            "printer 2  messages[1]@42  key-7  Produced  1/3 of 7-1-812  \u{fffd}[31m{}\u{fffd}"
        );
        (printed.key, printed.value, printed.headers) = (None, None, Map::new());
        assert_eq!(
            printed.text(),
            "printer 2  messages[1]@42  -  -  (tombstone)"
        );
    }
}
