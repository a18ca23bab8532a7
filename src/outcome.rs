//! What a check found, as a person sees it.

use comfy_table::{CellAlignment, Table, presets};

use crate::ledger::{Report, Violations};

/// The table. A kind that a mock broker can't show is `-`; the position's kinds have columns only where there is something
/// to show.
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
    let mut columns = vec![
        ("transactions", grouped(report.transactions)),
        ("events", grouped(report.events)),
        ("lost", found(&report.lost)),
        ("doubled", found(&report.doubled)),
        ("torn", on_a_real_broker(&report.torn)),
        ("out of order", on_a_real_broker(&report.out_of_order)),
        ("phantoms", on_a_real_broker(&report.phantoms)),
    ];
    let rare = [
        ("went back", &report.went_back),
        ("interleaved", &report.interleaved),
    ];
    let rare = rare.iter().filter(|(_, violations)| violations.count > 0);
    columns.extend(rare.map(|(name, violations)| (*name, found(violations))));
    // Only whole events: a fraction of one means nothing.
    columns.extend(events_per_second.map(|rate| ("events/s", format!("{rate:.0}"))));
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
        kinds.push(("went back", &report.went_back));
        kinds.push(("interleaved", &report.interleaved));
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
