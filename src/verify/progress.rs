//! How far it is, on standard error: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::outcome::grouped;

/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(2);

/// Progress of one reading.
pub struct Progress {
    /// Where standard error is a terminal.
    bar: Option<ProgressBar>,
    read: AtomicU64,
    to_read: AtomicU64,
    last_line: Mutex<Instant>,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            bar: std::io::stderr().is_terminal().then(ProgressBar::no_length),
            read: AtomicU64::new(0),
            to_read: AtomicU64::new(0),
            last_line: Mutex::new(Instant::now()),
        }
    }

    /// A sentence about what comes now.
    pub fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{what}"),
        }
    }

    /// So many offsets are to be read.
    pub fn expect(&self, offsets: u64) {
        self.to_read.store(offsets, Ordering::Relaxed);
        self.say("reading the topics");
        if let Some(bar) = &self.bar {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos} of {human_len}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.set_length(offsets);
        }
    }

    /// So many more are read.
    pub fn further(&self, offsets: u64) {
        let read = self.read.fetch_add(offsets, Ordering::Relaxed) + offsets;
        if let Some(bar) = &self.bar {
            return bar.set_position(read);
        }
        let mut last = self
            .last_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE {
            *last = Instant::now();
            let to_read = self.to_read.load(Ordering::Relaxed);
            eprintln!("{} of {} offsets read", grouped(read), grouped(to_read));
        }
    }

    /// All is read.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
