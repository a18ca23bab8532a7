//! What a person sees while it runs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines of progress where there is no terminal.
const LINE_EVERY_SECONDS: u64 = 10;

/// A bar on a terminal, lines elsewhere.
pub struct Show(Option<ProgressBar>);

impl Show {
    /// For a run of this length.
    pub fn new(length: Duration) -> Self {
        let bar = || {
            let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(length.as_secs()).with_style(style)
        };
        Self(std::io::stderr().is_terminal().then(bar))
    }

    /// A line of its own.
    pub fn say(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| _ = writeln!(std::io::stdout(), "{line}")),
            // A reader that went away is no reason to end.
            None => _ = writeln!(std::io::stdout(), "{line}"),
        }
    }

    /// Called once a second.
    pub fn tick(&self, seconds: u64, state: impl FnOnce() -> String) {
        match &self.0 {
            Some(bar) => {
                bar.set_position(seconds);
                bar.set_message(state());
            }
            None if seconds.is_multiple_of(LINE_EVERY_SECONDS) => {
                self.say(&format!("{seconds:>5} s   {}", state()));
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
