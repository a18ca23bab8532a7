//! What a check answers: all is well, what is wrong with its cure, or why it could not be made. Pure.

use serde::Serialize;

use super::facts::{Facts, Known};

/// One line of the table of checks.
pub struct Check {
    /// Stable: scripts and docs/doctor.md name it.
    pub code: &'static str,
    /// What ought to be.
    pub wanted: &'static str,
    pub judge: fn(&Facts) -> Known<Outcome>,
}

/// What a check that was made answers.
#[derive(Debug)]
pub enum Outcome {
    /// As it ought to be; how it is.
    Fine(String),
    /// It has no meaning with these settings.
    NotAsked,
    Found(Vec<Finding>),
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, and may hurt.
    Warning,
    /// The relay can't work, or its guarantee does not hold.
    Error,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do, step by step.
    pub cure: Vec<Cure>,
}

/// A step that helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cure {
    /// One statement, to be run by the owner or an administrator.
    Sql(String),
    /// A command line.
    Shell(String),
    /// Something that a person does, or decides.
    Do(String),
}

pub(super) fn sql(text: impl Into<String>) -> Cure {
    Cure::Sql(text.into())
}

pub(super) fn shell(text: impl Into<String>) -> Cure {
    Cure::Shell(text.into())
}

pub(super) fn person(text: impl Into<String>) -> Cure {
    Cure::Do(text.into())
}

pub(super) fn error(what: impl Into<String>, why: impl Into<String>) -> Finding {
    finding(Severity::Error, what, why)
}

pub(super) fn warning(what: impl Into<String>, why: impl Into<String>) -> Finding {
    finding(Severity::Warning, what, why)
}

fn finding(severity: Severity, what: impl Into<String>, why: impl Into<String>) -> Finding {
    Finding {
        severity,
        what: what.into(),
        why: why.into(),
        cure: Vec::new(),
    }
}

impl Finding {
    /// With one step more.
    pub(super) fn cure(mut self, step: Cure) -> Self {
        self.cure.push(step);
        self
    }

    /// With a setting of the server, which counts when the server has read it again.
    pub(super) fn alter_system(self, setting: &str) -> Self {
        self.cure(sql(format!("alter system set {setting}")))
            .cure(sql("select pg_reload_conf()"))
    }
}

pub(super) fn fine(how: impl Into<String>) -> Known<Outcome> {
    Ok(Outcome::Fine(how.into()))
}

pub(super) fn found(finding: Finding) -> Known<Outcome> {
    Ok(Outcome::Found(vec![finding]))
}

/// What was found, or how it is.
pub(super) fn unless(found: Vec<Finding>, fine: impl Into<String>) -> Known<Outcome> {
    Ok(match found.is_empty() {
        true => Outcome::Fine(fine.into()),
        false => Outcome::Found(found),
    })
}
