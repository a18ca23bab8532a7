//! The report: what was done, what was found, how long it took to recover. Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use outbox_relay::ledger::Report as Judged;
use outbox_relay::servers::KAFKA_VERSION;

use crate::plan::Fault;

/// Everything that a run has to tell.
#[derive(Debug, Default)]
pub struct Outcome {
    pub command: String,
    pub seed: u64,
    pub length: Duration,
    pub postgres_version: String,
    pub faults: BTreeMap<&'static str, Injected>,
    pub relay_kills: u64,
    pub broker_kills: u64,
    /// The check of everything; nothing if it could not be made.
    pub judged: Option<Judged>,
    /// Position records that were read.
    pub position_records: u64,
    /// Violations that the ledger check does not know: invariant and what was seen.
    pub others: Vec<(&'static str, String)>,
    pub longest_silence: Duration,
    pub catching_up: Duration,
    pub peak_rss_kb: u64,
}

/// The faults of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injected {
    pub count: u64,
    /// From the end of the fault to the first event that was inserted after it.
    pub longest_recovery: Duration,
}

impl Outcome {
    /// Notes a fault that is over.
    pub fn injected(&mut self, fault: Fault, recovery: Option<Duration>) {
        self.relay_kills += fault.relay_kills();
        self.broker_kills += fault.broker_kills();
        let of_kind = self.faults.entry(fault.kind()).or_default();
        of_kind.count += 1;
        of_kind.longest_recovery = of_kind.longest_recovery.max(recovery.unwrap_or_default());
    }

    /// Whether everything was checked and all is as it must be.
    pub fn is_clean(&self) -> bool {
        let judged = self.judged.as_ref();
        judged.is_some_and(|judged| judged.is_clean() && judged.events > 0)
            && self.others.is_empty()
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let verdict = if self.is_clean() {
            "CLEAN"
        } else {
            "NOT CLEAN"
        };
        writeln!(text, "# Soak: {verdict}\n")?;
        writeln!(text, "* Command: `{}`", self.command)?;
        writeln!(text, "* Seed: {}", self.seed)?;
        writeln!(
            text,
            "* Versions: outbox-relay {}, PostgreSQL {}, Kafka {KAFKA_VERSION}, librdkafka {}",
            env!("CARGO_PKG_VERSION"),
            self.postgres_version,
            rdkafka::util::get_rdkafka_version().1,
        )?;
        writeln!(text, "* Duration of the faults: {}", seconds(self.length))?;
        if let Some(judged) = &self.judged {
            writeln!(
                text,
                "* Checked: {} transactions with {} events, {} Kafka transactions",
                judged.transactions, judged.events, self.position_records
            )?;
        }
        writeln!(
            text,
            "* Longest time without a visible event: {}; publishing the rest at the end: {}",
            seconds(self.longest_silence),
            seconds(self.catching_up)
        )?;
        let megabytes = self.peak_rss_kb / 1024;
        writeln!(text, "* Peak resident memory of a relay: {megabytes} MB\n")?;
        self.write_faults(text)?;
        self.write_violations(text)
    }

    fn write_faults(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "## Faults\n")?;
        writeln!(
            text,
            "Recovery is the time from the end of a fault (the server accepts connections again, the relay is started"
        )?;
        writeln!(
            text,
            "again or goes on) to the first visible event that was inserted after it; other faults may lie in it.\n"
        )?;
        writeln!(
            text,
            "| fault | times | longest recovery |\n|---|---:|---:|"
        )?;
        for (kind, of_kind) in &self.faults {
            let recovery = seconds(of_kind.longest_recovery);
            writeln!(text, "| {kind} | {} | {recovery} |", of_kind.count)?;
        }
        writeln!(
            text,
            "\nA relay was killed (SIGKILL) {} times, a broker {} times.\n",
            self.relay_kills, self.broker_kills
        )
    }

    fn write_violations(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "## Violations\n\n| invariant | violations |\n|---|---:|"
        )?;
        match &self.judged {
            None => writeln!(text, "| I1 to I5 | not checked |")?,
            Some(judged) => {
                for (kind, found) in [
                    ("I1 lost", &judged.lost),
                    ("I2 doubled", &judged.doubled),
                    ("I3 out of order", &judged.out_of_order),
                    ("I4 torn", &judged.torn),
                    ("I5 phantoms", &judged.phantoms),
                ] {
                    writeln!(text, "| {kind} | {} |", found.count)?;
                }
            }
        }
        writeln!(text, "| all others | {} |", self.others.len())?;
        if let Some(judged) = self.judged.as_ref().filter(|judged| !judged.is_clean()) {
            writeln!(text, "\n```\n{judged}\n```")?;
        }
        for (invariant, what) in &self.others {
            writeln!(text, "\n**{invariant}**\n\n```\n{what}\n```")?;
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
