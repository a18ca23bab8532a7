//! What was found, for people and for programs. Pure.

use serde::Serialize;

use super::checks::CHECKS;
use super::facts::{Facts, Unknown};
use super::finding::{Cure, Finding, Outcome, Severity};
use crate::fault::exit;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it ought to be.
    Fine,
    /// Something may hurt.
    Warning,
    /// Something is wrong.
    Error,
    /// The check could not be made.
    Unknown,
}

/// One check, as it is told.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// Its stable name.
    pub code: &'static str,
    /// What ought to be.
    pub wanted: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// How it is, or why that is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// All that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing wrong was found.
    pub healthy: bool,
    /// Name of the relay.
    pub relay: String,
    /// How it captures.
    pub capture: &'static str,
    /// Findings that keep the relay from working, or its guarantee from holding.
    pub errors: usize,
    /// Findings that may hurt.
    pub warnings: usize,
    /// Checks that could not be made.
    pub unknown: usize,
    /// All checks that have a meaning with these settings.
    pub checks: Vec<Told>,
}

impl Report {
    pub(super) fn of(facts: &Facts) -> Self {
        let checks: Vec<Told> = CHECKS
            .iter()
            .filter_map(|check| {
                let (verdict, detail, findings) = match (check.judge)(facts) {
                    Ok(Outcome::NotAsked) => return None,
                    Ok(Outcome::Fine(how)) => (Verdict::Fine, how, Vec::new()),
                    Ok(Outcome::Found(findings)) => (worst(&findings), String::new(), findings),
                    Err(Unknown(why)) => (Verdict::Unknown, why, Vec::new()),
                };
                Some(Told {
                    code: check.code,
                    wanted: check.wanted,
                    verdict,
                    detail,
                    findings,
                })
            })
            .collect();
        let of = |severity| {
            let findings = checks.iter().flat_map(|it| &it.findings);
            findings.filter(|it| it.severity == severity).count()
        };
        let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
        Self {
            healthy: errors + warnings == 0,
            relay: facts.settings.name.clone(),
            capture: facts.settings.capture.name(),
            errors,
            warnings,
            unknown: checks
                .iter()
                .filter(|it| it.verdict == Verdict::Unknown)
                .count(),
            checks,
        }
    }

    /// What the command ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.errors, self.warnings) {
            (0, 0) => exit::DONE,
            (0, _) => exit::FAILED,
            _ => exit::REFUSED,
        }
    }

    /// A line for each check, in groups; then what is wrong. Ends without a line break.
    #[must_use]
    pub fn text(&self, colour: bool) -> String {
        let paint = Paint { colour };
        let mut lines = Vec::new();
        let mut group = "";
        for told in &self.checks {
            let (of, _) = told.code.split_once('.').unwrap_or((told.code, ""));
            if of != group {
                group = of;
                lines.push(format!("\n{}", paint.bold(title(of))));
            }
            lines.push(paint.check(told));
        }
        for told in self.checks.iter().filter(|it| !it.findings.is_empty()) {
            lines.extend(told.findings.iter().map(|it| paint.finding(told.code, it)));
        }
        lines.push(format!("\n{}", self.summary(paint)));
        lines.join("\n").trim_start().to_owned()
    }

    fn summary(&self, paint: Paint) -> String {
        let unknown = match self.unknown {
            0 => String::new(),
            count => format!("; {count} could not be checked"),
        };
        match (self.errors, self.warnings) {
            (0, 0) => format!("{}{unknown}", paint.of(Verdict::Fine, "nothing is wrong")),
            (errors, warnings) => {
                let worst = if errors > 0 {
                    Verdict::Error
                } else {
                    Verdict::Warning
                };
                let found = format!(
                    "{}, {}",
                    counted(errors, "error"),
                    counted(warnings, "warning")
                );
                format!("{}{unknown}", paint.of(worst, &found))
            }
        }
    }
}

fn worst(findings: &[Finding]) -> Verdict {
    match findings.iter().map(|it| it.severity).max() {
        Some(Severity::Error) => Verdict::Error,
        _ => Verdict::Warning,
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn title(group: &str) -> &str {
    match group {
        "pg" => "PostgreSQL",
        "outbox" => "Outbox",
        "wal" => "Capture from the WAL",
        "kafka" => "Kafka",
        "position" => "Position",
        other => other,
    }
}

/// Colours, on a terminal.
#[derive(Clone, Copy)]
struct Paint {
    colour: bool,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self.colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn of(self, verdict: Verdict, text: &str) -> String {
        let code = match verdict {
            Verdict::Fine => "32",
            Verdict::Warning => "33",
            Verdict::Error => "31",
            Verdict::Unknown => "2",
        };
        self.with(code, text)
    }

    fn check(self, told: &Told) -> String {
        let (mark, text) = match told.verdict {
            Verdict::Fine if told.detail.is_empty() => ("✓", told.wanted.to_owned()),
            Verdict::Fine => ("✓", format!("{}: {}", told.wanted, told.detail)),
            Verdict::Warning => ("!", format!("not so: {}", told.wanted)),
            Verdict::Error => ("✗", format!("not so: {}", told.wanted)),
            Verdict::Unknown => ("?", format!("could not be checked: {}", told.detail)),
        };
        let code = format!("{:<25}", told.code);
        format!(
            "  {} {} {text}",
            self.of(told.verdict, mark),
            self.of(told.verdict, &code)
        )
    }

    fn finding(self, code: &str, finding: &Finding) -> String {
        let (mark, verdict) = match finding.severity {
            Severity::Warning => ("!", Verdict::Warning),
            Severity::Error => ("✗", Verdict::Error),
        };
        let head = self.of(verdict, &format!("{mark} {code}"));
        let mut text = format!(
            "\n{head}  {}\n    {}",
            self.bold(&finding.what),
            finding.why
        );
        for cure in &finding.cure {
            text += &match cure {
                Cure::Sql(sql) => format!("\n    → {sql};"),
                Cure::Shell(line) => format!("\n    → {line}"),
                Cure::Do(what) => format!("\n    · {what}"),
            };
        }
        text
    }
}
