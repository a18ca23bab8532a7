//! The last minutes, a point a second, so that a page that is opened now has something to show. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Five minutes.
const POINTS_MAX: usize = 300;

/// One second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Events that are committed and not published.
    pub lag_events: Option<u64>,
    /// How old the oldest of them is.
    pub lag_seconds: Option<f64>,
    /// Events that were published.
    pub events_per_second: Option<f64>,
    /// Latency of half of them.
    pub latency_p50_ms: Option<u64>,
    /// Latency of 99 of a hundred.
    pub latency_p99_ms: Option<u64>,
    /// Transactions that were set aside.
    pub parked_transactions: Option<u64>,
}

/// The points, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<Point>);

/// As plots read it.
#[derive(Serialize)]
struct Columns {
    every_seconds: u64,
    lag_events: Vec<Option<u64>>,
    lag_seconds: Vec<Option<f64>>,
    events_per_second: Vec<Option<f64>>,
    latency_p50_ms: Vec<Option<u64>>,
    latency_p99_ms: Vec<Option<u64>>,
    parked_transactions: Vec<Option<u64>>,
}

impl History {
    /// Adds what was found, so long after the point before it; nothing is known of the seconds between. The oldest points go
    /// when there are too many.
    pub fn add(&mut self, since: Duration, point: Point) {
        let every = super::SAMPLE_EVERY.as_secs_f64();
        let missing = ((since.as_secs_f64() / every).round() as usize).saturating_sub(1);
        for _ in 0..missing.min(POINTS_MAX) {
            self.push(Point::default());
        }
        self.push(point);
    }

    fn push(&mut self, point: Point) {
        if self.0.len() == POINTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(point);
    }
}

impl Serialize for History {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let points = || self.0.iter();
        Columns {
            every_seconds: super::SAMPLE_EVERY.as_secs(),
            lag_events: points().map(|it| it.lag_events).collect(),
            lag_seconds: points().map(|it| it.lag_seconds.map(tenths)).collect(),
            events_per_second: points()
                .map(|it| it.events_per_second.map(tenths))
                .collect(),
            latency_p50_ms: points().map(|it| it.latency_p50_ms).collect(),
            latency_p99_ms: points().map(|it| it.latency_p99_ms).collect(),
            parked_transactions: points().map(|it| it.parked_transactions).collect(),
        }
        .serialize(to)
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lag_of(events: u64) -> Point {
        Point {
            lag_events: Some(events),
            events_per_second: Some(1.26),
            ..Point::default()
        }
    }

    #[test]
    fn the_oldest_point_goes_and_columns_come_out() {
        let mut history = History::default();
        for lag in 0..=POINTS_MAX as u64 {
            history.add(Duration::from_millis(1_100), lag_of(lag));
        }
        let json = serde_json::to_value(&history).unwrap();
        assert_eq!(json["lag_events"].as_array().unwrap().len(), POINTS_MAX);
        assert_eq!(json["lag_events"][0], 1);
        assert_eq!(json["events_per_second"][0], 1.3);
        assert!(json["latency_p99_ms"][0].is_null());
    }

    #[test]
    fn a_look_that_took_long_leaves_a_gap() {
        let mut history = History::default();
        history.add(Duration::ZERO, lag_of(1));
        history.add(Duration::from_secs(4), lag_of(2));
        let json = serde_json::to_value(&history).unwrap();
        assert_eq!(json["lag_events"], json!([1, null, null, null, 2]));
        history.add(Duration::from_secs(100_000), lag_of(3));
        let json = serde_json::to_value(&history).unwrap();
        let lags = json["lag_events"].as_array().unwrap();
        assert_eq!(lags.iter().filter(|lag| !lag.is_null()).count(), 1);
    }
}
