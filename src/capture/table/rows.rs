//! Rows of the outbox table made into events.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

use crate::event::Event;
use crate::fault::Fault;

/// Makes events of rows: topic from the row or the template.
pub(crate) struct Route {
    before: String,
    after: String,
}

impl Route {
    pub fn new(template: &str) -> Self {
        let (before, after) = template
            .split_once("{aggregate_type}")
            .unwrap_or((template, ""));
        Self {
            before: before.to_owned(),
            after: after.to_owned(),
        }
    }

    /// The topic of a row: its own, or that of its aggregate type.
    pub fn topic(&self, own: Option<&str>, aggregate_type: Option<&str>) -> Arc<str> {
        match own {
            Some(topic) => Arc::from(topic),
            None => Arc::from(format!(
                "{}{}{}",
                self.before,
                aggregate_type.unwrap_or_default(),
                self.after
            )),
        }
    }

    /// The columns in the order of `columns::select_list`, after the xid.
    pub fn event(&self, row: &Row) -> Result<Event, Fault> {
        let topic = self.topic(row.try_get(3)?, row.try_get(4)?);
        let bytes = |column: Option<&[u8]>| column.map(Bytes::copy_from_slice);
        Ok(Event {
            seq: row.try_get(1)?,
            id: row.try_get::<_, Uuid>(2)?,
            topic,
            key: bytes(row.try_get::<_, Option<&str>>(5)?.map(str::as_bytes)),
            event_type: row.try_get(6)?,
            payload: bytes(row.try_get(7)?),
            headers: headers(row.try_get(8)?),
            occurred_at_ms: row.try_get::<_, Milliseconds>(9)?.0,
        })
    }
}

/// Strings as they are, null as null, all else as JSON.
fn headers(text: Option<&str>) -> Vec<(String, Option<Bytes>)> {
    use serde_json::{Map, Value};
    let Some(Ok(map)) = text.map(serde_json::from_str::<Map<String, Value>>) else {
        return Vec::new();
    };
    map.into_iter()
        .map(|(name, value)| {
            let value = match value {
                Value::Null => None,
                Value::String(text) => Some(Bytes::from(text)),
                other => Some(Bytes::from(other.to_string())),
            };
            (name, value)
        })
        .collect()
}

/// A `timestamptz` in milliseconds since 1970, held within what Kafka takes.
struct Milliseconds(i64);

impl<'a> FromSql<'a> for Milliseconds {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        /// PostgreSQL counts microseconds from 2000-01-01.
        const EPOCH_2000_MS: i64 = 946_684_800_000;
        /// The year 9999; `infinity` ends here.
        const LATEST_MS: i64 = 253_402_300_799_999;
        let micros = i64::from_be_bytes(raw.try_into()?);
        // From 1 on: to librdkafka 0 means "now", and the broker refuses negative times.
        Ok(Self(
            (micros.div_euclid(1000))
                .saturating_add(EPOCH_2000_MS)
                .clamp(1, LATEST_MS),
        ))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_from_the_template() {
        let route = Route::new("outbox.event.{aggregate_type}.v1");
        assert_eq!(
            (route.before.as_str(), route.after.as_str()),
            ("outbox.event.", ".v1")
        );
    }

    #[test]
    fn header_values_keep_their_form() {
        let read = headers(Some(
            r#"{"traceparent": "00-ab", "n": 1, "none": null, "o": {"a": [1]}}"#,
        ));
        let expected = [
            ("traceparent", Some("00-ab")),
            ("n", Some("1")),
            ("none", None),
            ("o", Some(r#"{"a":[1]}"#)),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.map(Bytes::from_static_str)))
            .collect();
        assert_eq!(read, expected);
        assert!(headers(None).is_empty());
    }

    trait FromStaticStr {
        fn from_static_str(text: &'static str) -> Bytes;
    }
    impl FromStaticStr for Bytes {
        fn from_static_str(text: &'static str) -> Bytes {
            Bytes::from_static(text.as_bytes())
        }
    }

    #[test]
    fn times_are_milliseconds_and_stay_in_range() {
        let read = |micros: i64| {
            Milliseconds::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes())
                .unwrap()
                .0
        };
        assert_eq!(read(0), 946_684_800_000);
        assert_eq!(read(1_999), 946_684_800_001);
        assert_eq!(read(i64::MIN), 1);
        assert_eq!(read(i64::MAX), 253_402_300_799_999);
    }
}
