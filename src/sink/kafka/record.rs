//! What is written to Kafka: the headers of an event's record, and the position record. Pure.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Slice};
use crate::fault::Fault;
use crate::position::Position;

/// Header: event id.
pub const ID: &str = "id";
/// Header: event type.
pub const TYPE: &str = "type";
/// Header: database transaction, `<system identifier>-<timeline>-<transaction id>`.
pub const TX_ID: &str = "tx-id";
/// Header: index of the event in its transaction, from 0.
pub const TX_INDEX: &str = "tx-index";
/// Header: number of events in the transaction.
pub const TX_COUNT: &str = "tx-count";
/// Header: the record was published again on purpose, so that it is no repetition. Its value names the replay.
pub const REPLAY: &str = "replay";

/// Names that the relay itself writes; a row's own header with one of them is left out.
const OURS: [&str; 6] = [ID, TYPE, TX_ID, TX_INDEX, TX_COUNT, REPLAY];

/// Walks over the headers of `slice.events[index]` in the order in which they are published: `id`, `type` (where the
/// row has one), `tx-id`, `tx-index`, `tx-count`, then the row's own.
///
/// A fold, so that nothing is allocated for each of the 150 000 events a second.
pub fn headers<A>(
    slice: &Slice,
    index: usize,
    event: &Event,
    start: A,
    mut add: impl FnMut(A, &str, Option<&[u8]>) -> A,
) -> A {
    let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
    let id: &str = event.id.hyphenated().encode_lower(&mut id);
    let mut acc = add(start, ID, Some(id.as_bytes()));
    if let Some(event_type) = &event.event_type {
        acc = add(acc, TYPE, Some(event_type.as_bytes()));
    }
    acc = add(acc, TX_ID, Some(slice.tx_id.as_bytes()));
    acc = add(
        acc,
        TX_INDEX,
        Some(Digits::of(slice.first_index + index as u64).bytes()),
    );
    acc = add(acc, TX_COUNT, Some(Digits::of(slice.tx_count).bytes()));
    for (name, value) in &event.headers {
        if !OURS.contains(&name.as_str()) {
            acc = add(acc, name, value.as_deref());
        }
    }
    acc
}

/// A number in decimal, on the stack.
struct Digits {
    text: [u8; 20],
    length: usize,
}

impl Digits {
    fn of(number: u64) -> Self {
        let mut text = [0; 20];
        let mut rest = &mut text[..];
        // Can't fail: no u64 has more than 20 digits.
        let _ = write!(rest, "{number}");
        let length = 20 - rest.len();
        Self { text, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

/// First offset, last offset and count of the records of one Kafka transaction: by topic, by partition.
///
/// Between first and last may lie control records and records of other producers, so the count says how many are ours.
pub type Partitions = BTreeMap<String, BTreeMap<i32, [i64; 3]>>;

/// The last record of every Kafka transaction: where the relay stands, and which records the transaction holds.
///
/// Key: the relay's name. Value: this as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionRecord {
    /// See [`PositionRecord::format_of`].
    pub format: u64,
    /// Where the capture stands when all records of this Kafka transaction are published.
    pub position: Position,
    /// Number of the Kafka transaction in this relay's life, from 1.
    pub kafka_transaction: u64,
    /// The process that published, and the number of its producer: `host:pid:random#2`. A relay that lost the lease and got
    /// it back has made another one.
    pub instance: String,
    /// Events in the Kafka transaction, without this record.
    pub records: u64,
    /// Where they are; `verify` attributes records to Kafka transactions by it.
    pub partitions: Partitions,
}

#[derive(Deserialize)]
struct Format {
    format: u64,
}

impl PositionRecord {
    /// The newest format. Format 1 knows nothing of transactions that were passed over.
    pub const FORMAT: u64 = 2;

    /// The oldest format that can say it, so that an older release may take over where it can.
    #[must_use]
    pub fn format_of(position: &Position) -> u64 {
        match position.unsettled.is_none() {
            true => 1,
            false => 2,
        }
    }

    /// The record's value.
    ///
    /// # Errors
    /// [`Fault::Defect`]: there is nothing in it that JSON can't hold.
    pub fn encode(&self) -> Result<Vec<u8>, Fault> {
        serde_json::to_vec(self)
            .map_err(|error| Fault::Defect(format!("a position record is no JSON: {error}")))
    }

    /// Reads a record's value.
    ///
    /// # Errors
    /// [`Fault::Refused`] for a format that this version doesn't know: going on from a guess would lose or repeat events.
    pub fn decode(value: &[u8]) -> Result<Self, Fault> {
        let Format { format } =
            serde_json::from_slice(value).map_err(|error| unreadable(&error))?;
        if !(1..=Self::FORMAT).contains(&format) {
            return Err(Fault::Refused(format!(
                "the position record in Kafka has format {format}, this version reads formats up to {}: \
                 run a newer outbox-relay, at least as new as the one that wrote it",
                Self::FORMAT
            )));
        }
        serde_json::from_slice(value).map_err(|error| unreadable(&error))
    }
}

fn unreadable(error: &serde_json::Error) -> Fault {
    Fault::Refused(format!(
        "the position record in Kafka can't be read ({error}): something else wrote to the position topic"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::position::{Origin, Snapshot, Unsettled};

    fn event(event_type: Option<&str>, own: &[(&str, Option<&str>)]) -> Event {
        Event {
            seq: 1,
            id: Uuid::from_u128(0xAB),
            topic: Arc::from("t"),
            key: None,
            event_type: event_type.map(str::to_owned),
            payload: None,
            headers: own
                .iter()
                .map(|(name, value)| {
                    (
                        (*name).to_owned(),
                        value.map(|v| Bytes::copy_from_slice(v.as_bytes())),
                    )
                })
                .collect(),
            occurred_at_ms: 0,
        }
    }

    fn check(event: &Event, expected: &[(&str, Option<&str>)]) {
        let slice = Slice {
            tx_id: Arc::from("7-1-10"),
            tx_count: u64::MAX,
            first_index: 40,
            events: Vec::new(),
        };
        let collected = headers(&slice, 2, event, Vec::new(), |mut all, name, value| {
            all.push((
                name.to_owned(),
                value.map(|v| String::from_utf8_lossy(v).into_owned()),
            ));
            all
        });
        let expected: Vec<_> = expected
            .iter()
            .map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned)))
            .collect();
        assert_eq!(collected, expected);
    }

    #[test]
    fn headers_come_in_their_order_and_ours_win() {
        let ours = [
            ("id", Some("00000000-0000-0000-0000-0000000000ab")),
            ("type", Some("Placed")),
            ("tx-id", Some("7-1-10")),
            ("tx-index", Some("42")),
            ("tx-count", Some("18446744073709551615")),
        ];
        let own = [
            ("traceparent", Some("00-1")),
            ("tx-id", Some("forged")),
            ("flag", None),
            ("id", None),
            ("replay", Some("forged")),
        ];
        let all = [&ours[..], &[("traceparent", Some("00-1")), ("flag", None)]].concat();
        check(&event(Some("Placed"), &own), &all);
        let untyped: Vec<_> = ours
            .into_iter()
            .filter(|(name, _)| *name != "type")
            .collect();
        check(&event(None, &[]), &untyped);
        // A row without a type of its own can't smuggle one in.
        check(&event(None, &[("type", Some("x"))]), &untyped);
    }

    fn record() -> PositionRecord {
        let origin = Origin::of_test("table");
        PositionRecord {
            format: 1,
            position: Position::at(origin, Snapshot::empty()),
            kafka_transaction: 9,
            instance: "a".into(),
            records: 3,
            partitions: [("t".to_owned(), [(0, [5, 7, 3])].into())].into(),
        }
    }

    #[test]
    fn the_stored_form_is_stable() {
        let json = concat!(
            r#"{"format":1,"position":{"system_id":"7","timeline":1,"database_oid":5,"table":"outbox.events","#,
            r#""capture":"table","seen":"1:1:","tally":{"events":0,"ids":0}},"kafka_transaction":9,"instance":"a","records":3,"#,
            r#""partitions":{"t":{"0":[5,7,3]}}}"#
        );
        assert_eq!(String::from_utf8(record().encode().unwrap()).unwrap(), json);
        assert_eq!(PositionRecord::decode(json.as_bytes()).unwrap(), record());
    }

    #[test]
    fn what_was_passed_over_needs_the_second_format() {
        let mut record = record();
        record.position.unsettled = Unsettled {
            transactions: 1,
            ids: -2,
            passed: vec!["7-1-10".into()],
            settled: Vec::new(),
        };
        record.format = PositionRecord::format_of(&record.position);
        let json = String::from_utf8(record.encode().unwrap()).unwrap();
        let stored = r#""unsettled":{"transactions":1,"ids":-2,"passed":["7-1-10"]}"#;
        assert!(
            json.starts_with(r#"{"format":2,"#) && json.contains(stored),
            "{json}"
        );
        assert_eq!(PositionRecord::decode(json.as_bytes()).unwrap(), record);
    }

    #[test]
    fn a_later_format_is_refused_by_its_number_whatever_else_it_holds() {
        let fault = PositionRecord::decode(br#"{"format":3,"something":"else"}"#).unwrap_err();
        let text = fault.to_string();
        assert!(matches!(fault, Fault::Refused(_)), "{text}");
        assert!(
            text.contains("format 3") && text.contains("newer outbox-relay"),
            "{text}"
        );
        for broken in ["", "{}", "null", r#"{"format":1}"#, r#"{"format":"1"}"#] {
            assert!(
                matches!(
                    PositionRecord::decode(broken.as_bytes()),
                    Err(Fault::Refused(_))
                ),
                "{broken}"
            );
        }
    }
}
