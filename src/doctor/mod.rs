//! `doctor`: looks at both servers and says what is wrong, why it matters, and what cures it. It changes nothing.
//!
//! `postgres` and `kafka` ask, as the relay's own role and principal, each within its time; what they may not or can't find
//! out they say so. `facts` is what they bring, `checks` the one table of checks, each a pure function of the facts, and
//! `report` what is printed.

mod checks;
mod facts;
mod finding;
mod kafka;
mod postgres;
mod report;

use std::collections::BTreeSet;

use self::facts::Facts;
pub use self::finding::{Cure, Finding, Severity};
pub use self::report::{Report, Told, Verdict};
use crate::config::{Settings, SinkKind};

/// Looks at everything. `old_after_s`: a transaction that is open for longer is told.
pub async fn doctor(settings: &Settings, old_after_s: u32) -> Report {
    let postgres = postgres::gather(settings, old_after_s.into()).await;
    let topics: BTreeSet<String> = postgres
        .iter()
        .flat_map(|it| it.destinations.iter().flatten())
        .map(|it| it.name(&settings.outbox.route))
        .collect();
    let kafka = match settings.sink {
        SinkKind::Kafka => Some(kafka::gather(&settings.kafka, topics).await),
        SinkKind::Memory => None,
    };
    Report::of(&Facts {
        settings: settings.clone(),
        postgres,
        kafka,
    })
}
