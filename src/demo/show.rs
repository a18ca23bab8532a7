//! What a person sees: sentences and progress. All of it goes to standard output.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::outcome::grouped;

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
