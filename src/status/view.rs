//! What a person sees in a terminal.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stdout};

use comfy_table::{Table, presets};

use super::Found;
use super::spark::spark;
use crate::outcome::grouped;
use crate::sampler::{Lag, Parked, SlotState, Writer};

/// Looks that a sparkline shows.
const WIDTH: usize = 40;
/// To the top left, and clear what is below: no flicker.
const HOME: &str = "\x1b[H";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_ALL: &str = "\x1b[2J";

/// The last looks.
#[derive(Default)]
pub struct View {
    lag: VecDeque<Option<f64>>,
    rate: VecDeque<Option<f64>>,
    drawn: bool,
}

impl View {
    pub fn add(&mut self, found: &Found<'_>) {
        let lag = found.sample.lag.map(|lag| lag.events as f64);
        for (values, value) in [
            (&mut self.lag, lag),
            (&mut self.rate, found.events_per_second),
        ] {
            values.push_back(value);
            values.drain(..values.len().saturating_sub(WIDTH));
        }
    }

    pub fn text(&self, found: &Found<'_>) -> String {
        let sample = found.sample;
        let known = sample.registration.as_ref();
        let state = match (sample.lease_held, known) {
            (true, Some(known)) => format!("active on {}", known.instance),
            (true, None) => "active, nothing acknowledged yet".to_owned(),
            (false, _) => "NOT ACTIVE".to_owned(),
        };
        let acknowledged = known.map_or_else(String::new, |known| {
            let age_ms = (sample.now_ms - known.acknowledged_at_ms).max(0);
            format!("{} ago", age(age_ms as f64 / 1000.0))
        });
        let mut rows = vec![
            ["state".to_owned(), state, String::new()],
            [
                "position".to_owned(),
                known.map_or_else(String::new, |it| shortened(&it.position.to_string())),
                acknowledged,
            ],
            [
                "lag".to_owned(),
                lag(sample.lag),
                spark(self.lag.iter().copied()),
            ],
            [
                "throughput".to_owned(),
                found
                    .events_per_second
                    .map_or_else(unknown, |rate| format!("{} events/s", count(rate))),
                spark(self.rate.iter().copied()),
            ],
        ];
        if let Some(bytes) = sample.wal_lag_bytes {
            let behind = format!("{} behind the end of WAL", size(bytes as f64));
            rows.push(["wal".to_owned(), behind, String::new()]);
        }
        let [open, who] = writer(sample.oldest_writer.as_ref());
        rows.push(["oldest open writer".to_owned(), open, who]);
        if let Some(it) = &sample.slot {
            let [status, kept] = slot(it);
            rows.push(["slot".to_owned(), status, kept]);
        }
        if let Some(it) = sample.parked.filter(|it| it.transactions > 0) {
            let [transactions, held] = parked(it);
            rows.push(["parked".to_owned(), transactions, held]);
        }
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.set_header(["relay", found.name, known.map_or("", |it| &it.table)]);
        table.add_rows(rows);
        let troubles = found
            .troubles
            .iter()
            .map(|trouble| format!("\n✗ {trouble}"));
        table.to_string() + &troubles.collect::<String>()
    }

    /// Over what was drawn before.
    pub fn draw(&mut self, text: &str) {
        let mut out = stdout();
        if !out.is_terminal() {
            let _ = writeln!(out, "{text}");
            return;
        }
        let begin = match std::mem::replace(&mut self.drawn, true) {
            true => HOME.to_owned(),
            false => format!("{CLEAR_ALL}{HOME}"),
        };
        let text = text.replace('\n', &format!("{CLEAR_LINE}\n"));
        let _ = write!(out, "{begin}{text}{CLEAR_LINE}\n{CLEAR_BELOW}");
        let _ = out.flush();
    }
}

fn unknown() -> String {
    "not known".to_owned()
}

fn count(value: f64) -> String {
    grouped(value.round().max(0.0) as u64)
}

/// The beginning says where it is; a long list of open transactions does not fit.
fn shortened(position: &str) -> String {
    const MOST: usize = 44;
    match position.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &position[..at]),
        None => position.to_owned(),
    }
}

fn lag(lag: Option<Lag>) -> String {
    let Some(lag) = lag else { return unknown() };
    let least = if lag.at_least { "at least " } else { "" };
    let events = grouped(lag.events);
    match lag.seconds {
        Some(seconds) if lag.events > 0 => {
            format!("{least}{events} events, oldest {}", age(seconds))
        }
        _ => format!("{least}{events} events"),
    }
}

fn writer(writer: Option<&Writer>) -> [String; 2] {
    match writer {
        None => [unknown(), "grant pg_read_all_stats".to_owned()],
        Some(Writer { who: None, .. }) => ["none".to_owned(), String::new()],
        Some(Writer {
            seconds,
            who: Some(who),
        }) => [age(*seconds), who.clone()],
    }
}

fn slot(slot: &SlotState) -> [String; 2] {
    let streamed = if slot.active {
        "streamed"
    } else {
        "not streamed"
    };
    let safe = slot.safe_wal_bytes.map_or_else(String::new, |bytes| {
        format!(", safe for {} more", size(bytes as f64))
    });
    [
        format!("{}, {streamed}", slot.wal_status),
        format!("keeps {}{safe}", size(slot.retained_wal_bytes as f64)),
    ]
}

fn parked(parked: Parked) -> [String; 2] {
    let transactions = grouped(parked.transactions);
    let held = grouped(parked.held_transactions);
    [
        format!(
            "{transactions} transactions, oldest {}",
            age(parked.seconds)
        ),
        format!("{held} wait behind them"),
    ]
}

fn age(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn size(bytes: f64) -> String {
    const MIB: f64 = 1_048_576.0;
    match bytes {
        b if b.abs() < MIB => format!("{:.0} KiB", b / 1024.0),
        b if b.abs() < 1024.0 * MIB => format!("{:.1} MiB", b / MIB),
        b => format!("{:.1} GiB", b / MIB / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;

    #[test]
    fn a_person_sees_what_matters() {
        let sample = sample("wal");
        let found = Found {
            name: "shop",
            events_per_second: Some(1_480.2),
            troubles: vec!["no relay of this name is active".to_owned()],
            sample: &sample,
        };
        let mut view = View::default();
        (0..50).for_each(|_| view.add(&found));
        let text = view.text(&found);
        for says in [
            "active on host:1:a",
            "at least 12 345 events, oldest 3.2 s",
            "1 480 events/s",
            "1 min",
            "pid 7 (psql)",
            "reserved, streamed",
            "keeps 3.0 MiB",
            "1 transactions, oldest 2 min",
            "2 wait behind them",
            "✗ no relay of this name is active",
        ] {
            assert!(text.contains(says), "{says} in\n{text}");
        }
        assert_eq!(view.lag.len(), WIDTH);
    }
}
