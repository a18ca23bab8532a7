//! What a row's own words become in Kafka: topic, headers, timestamp. Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

/// Topics: a row's own, or that of its aggregate type.
#[derive(Clone)]
pub(crate) struct Route {
    before: Arc<str>,
    after: Arc<str>,
    /// The last one: the next event most often goes there too.
    last: Arc<str>,
}

impl Route {
    /// `{aggregate_type}` in the template stands for the row's.
    pub fn new(template: &str) -> Self {
        let (before, after) = template
            .split_once("{aggregate_type}")
            .unwrap_or((template, ""));
        Self {
            before: before.into(),
            after: after.into(),
            last: "".into(),
        }
    }

    /// The topic of a row.
    pub fn topic(&mut self, own: Option<&str>, aggregate_type: Option<&str>) -> Arc<str> {
        match own {
            Some(own) if *own == *self.last => {}
            Some(own) => self.last = own.into(),
            None => {
                let of_type = aggregate_type.unwrap_or_default();
                self.last = format!("{}{of_type}{}", self.before, self.after).into();
            }
        }
        Arc::clone(&self.last)
    }
}

/// Headers of the text of a JSON object.
pub(crate) fn headers(text: Option<&str>) -> Vec<(String, Option<Bytes>)> {
    match text.map(serde_json::from_str) {
        Some(Ok(object)) => headers_of(object),
        _ => Vec::new(),
    }
}

/// Headers of a JSON object: strings as they are, null as null, all else as JSON.
pub(crate) fn headers_of(object: Map<String, Value>) -> Vec<(String, Option<Bytes>)> {
    object
        .into_iter()
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

/// PostgreSQL's microseconds since 2000-01-01 in milliseconds since 1970, held within what Kafka takes.
pub(crate) fn milliseconds(micros_since_2000: i64) -> i64 {
    const EPOCH_2000_MS: i64 = 946_684_800_000;
    /// The year 9999; `infinity` ends here.
    const LATEST_MS: i64 = 253_402_300_799_999;
    // From 1 on: to librdkafka 0 means "now", and the broker refuses negative times.
    (micros_since_2000.div_euclid(1000))
        .saturating_add(EPOCH_2000_MS)
        .clamp(1, LATEST_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_from_the_template() {
        let mut route = Route::new("outbox.event.{aggregate_type}.v1");
        assert_eq!(&*route.topic(None, Some("order")), "outbox.event.order.v1");
        for own in ["own", "own", "other", "own"] {
            assert_eq!(&*route.topic(Some(own), Some("order")), own);
        }
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
            .map(|(k, v)| ((*k).to_owned(), v.map(|v| Bytes::from_static(v.as_bytes()))))
            .collect();
        assert_eq!(read, expected);
        assert!(headers(None).is_empty());
    }

    #[test]
    fn times_are_milliseconds_and_stay_in_range() {
        assert_eq!(milliseconds(0), 946_684_800_000);
        assert_eq!(milliseconds(1_999), 946_684_800_001);
        assert_eq!(milliseconds(i64::MIN), 1);
        assert_eq!(milliseconds(i64::MAX), 253_402_300_799_999);
    }
}
