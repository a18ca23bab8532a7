//! The latencies of a short while, for people who look now. Prometheus has the histogram.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Three digits up to an hour; what took longer counts as an hour.
const MOST_MS: u64 = 3_600_000;
const DIGITS: u8 = 2;

/// Latencies that were added since they were taken.
#[derive(Debug, Default)]
pub(super) struct Window(Option<Histogram<u64>>);

/// Quantiles of latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many there were.
    pub count: u64,
    /// Half of them took so long at most.
    pub p50_ms: u64,
    /// 99 of a hundred.
    pub p99_ms: u64,
}

impl Window {
    pub fn add(&mut self, latency_ms: u64) {
        if self.0.is_none() {
            // The bounds are good ones, so there always is a histogram.
            self.0 = Histogram::new_with_bounds(1, MOST_MS, DIGITS).ok();
        }
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(latency_ms);
        }
    }

    pub fn take(&mut self) -> Option<Quantiles> {
        let histogram = self.0.as_mut().filter(|it| !it.is_empty())?;
        // A quantile is the upper end of its bucket; the greatest value is exact.
        let quantile = |of: f64| histogram.value_at_quantile(of).min(histogram.max());
        let quantiles = Quantiles {
            count: histogram.len(),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
        };
        histogram.reset();
        Some(quantiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_hundredth() {
        let mut window = Window::default();
        assert_eq!(window.take(), None);
        (1..=1_000).for_each(|latency| window.add(latency));
        let Quantiles {
            count,
            p50_ms,
            p99_ms,
        } = window.take().unwrap();
        assert_eq!(count, 1_000);
        assert!((495..=505).contains(&p50_ms), "{p50_ms}");
        assert!((980..=1_000).contains(&p99_ms), "{p99_ms}");
        window.add(u64::MAX);
        assert!(window.take().unwrap().p50_ms >= MOST_MS);
    }
}
