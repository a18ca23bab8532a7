//! What a person sees: sentences, progress, and the table at the end. All of it goes to standard output.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::ledger::{Report, Violations};

/// Between two redraws of the bars.
const REDRAW: Duration = Duration::from_millis(100);
/// Between two lines of progress where there is no terminal.
const LINE: Duration = Duration::from_secs(2);

/// Standard output, with bars on it if it is a terminal.
#[derive(Clone)]
pub struct Show {
    bars: Option<MultiProgress>,
}

impl Show {
    /// Looks whether standard output is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let bars = || MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        Self {
            bars: std::io::stdout().is_terminal().then(bars),
        }
    }

    /// A line of its own, above the bars if there are any.
    pub fn say(&self, line: &str) {
        // A reader that went away (`| head`) is no reason to leave servers behind by a panic.
        match &self.bars {
            Some(bars) => _ = bars.suspend(|| writeln!(std::io::stdout(), "{line}")),
            None => _ = writeln!(std::io::stdout(), "{line}"),
        }
    }

    /// Shows `counts` (committed in PostgreSQL, visible in Kafka) until it is dropped; never ends by itself.
    pub async fn progress(&self, expected: u64, counts: impl Fn() -> (u64, u64)) {
        match &self.bars {
            Some(bars) => draw(bars, expected, counts).await,
            None => self.count_in_lines(counts).await,
        }
    }

    async fn count_in_lines(&self, counts: impl Fn() -> (u64, u64)) {
        let start = Instant::now();
        let mut ticks = tokio::time::interval_at(start + LINE, LINE);
        loop {
            ticks.tick().await;
            let (committed, visible) = counts();
            self.say(&format!(
                "{:>4} s   committed in PostgreSQL {:>9}   visible in Kafka {:>9}",
                start.elapsed().as_secs(),
                grouped(committed),
                grouped(visible),
            ));
        }
    }
}

/// Takes its bars off the screen when it is dropped, because the future that draws is cancelled, not ended.
struct Bars([ProgressBar; 2]);

impl Drop for Bars {
    fn drop(&mut self) {
        self.0.iter().for_each(ProgressBar::finish_and_clear);
    }
}

async fn draw(all: &MultiProgress, expected: u64, counts: impl Fn() -> (u64, u64)) {
    let style = ProgressStyle::with_template("{msg:24} {wide_bar} {human_pos:>9}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = |label| {
        all.add(
            ProgressBar::new(expected)
                .with_style(style.clone())
                .with_message(label),
        )
    };
    let bars = Bars([bar("committed in PostgreSQL"), bar("visible in Kafka")]);
    let mut ticks = tokio::time::interval(REDRAW);
    loop {
        ticks.tick().await;
        let (committed, visible) = counts();
        for (bar, count) in bars.0.iter().zip([committed, visible]) {
            bar.set_length(expected.max(committed));
            bar.set_position(count);
        }
    }
}

/// The table at the end. A kind that a mock broker can't show is `-`.
#[must_use]
pub fn table(report: &Report, events_per_second: Option<f64>, mock: bool) -> String {
    let found = |violations: &Violations| grouped(violations.count);
    let on_a_real_broker = |violations| {
        if mock {
            "-".to_owned()
        } else {
            found(violations)
        }
    };
    // Only whole events: a fraction of one means nothing.
    let rate = events_per_second.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
    let columns = [
        ("transactions", grouped(report.transactions)),
        ("events", grouped(report.events)),
        ("lost", found(&report.lost)),
        ("doubled", found(&report.doubled)),
        ("torn", on_a_real_broker(&report.torn)),
        ("out of order", on_a_real_broker(&report.out_of_order)),
        ("phantoms", on_a_real_broker(&report.phantoms)),
        ("events/s", rate),
    ];
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(columns.iter().map(|(name, _)| *name));
    table.add_row(columns.iter().map(|(_, value)| value.as_str()));
    table
        .column_iter_mut()
        .for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}

/// The kinds that count, by name.
fn kinds(report: &Report, mock: bool) -> Vec<(&'static str, &Violations)> {
    let mut kinds = vec![("lost", &report.lost), ("doubled", &report.doubled)];
    if !mock {
        kinds.push(("torn", &report.torn));
        kinds.push(("out of order", &report.out_of_order));
        kinds.push(("phantoms", &report.phantoms));
    }
    kinds
}

/// Whether none of the kinds that count was found.
#[must_use]
pub fn clean(report: &Report, mock: bool) -> bool {
    kinds(report, mock)
        .iter()
        .all(|(_, violations)| violations.count == 0)
}

/// The first offenders of each kind, a line each.
#[must_use]
pub fn offenders(report: &Report, mock: bool) -> String {
    let mut lines = Vec::new();
    for (name, violations) in kinds(report, mock) {
        for offender in &violations.first {
            lines.push(format!("{name}: {offender}"));
        }
    }
    lines.join("\n")
}

/// A number with its digits in groups of three.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let found = |count| Violations {
            count,
            first: Vec::new(),
        };
        Report {
            transactions: 4321,
            events: 12_345,
            lost: found(0),
            torn: found(7),
            ..Report::default()
        }
    }

    #[test]
    fn numbers_are_grouped() {
        let all = [0, 12, 123, 1234, 123_456, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "12", "123", "1 234", "123 456", "1 234 567"]);
    }

    #[test]
    fn the_table_has_what_was_found() {
        let text = table(&report(), Some(1499.7), false);
        for part in ["4 321", "12 345", "torn", "7", "1500"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!clean(&report(), false));
    }

    #[test]
    fn a_mock_is_not_asked_about_atomicity() {
        assert!(clean(&report(), true));
        assert!(!table(&report(), None, true).contains('7'));
    }
}
