//! `outbox-relay status`: how the relay of a name is doing, told by the database alone.
//!
//! So it works from wherever the database is reached, beside any relay or none, and asks no process that may be the one that
//! is in trouble. What only the process knows (latency, faults) is on its admin endpoint.

mod spark;
mod view;

use serde::Serialize;
use tokio::time::{Duration, sleep};

use crate::capture::CaptureSettings;
use crate::database::Database;
use crate::fault::{Fault, exit};
use crate::sampler::{Rate, Sample, Sampler};
use view::View;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Again and again, until it is ended.
    pub watch: bool,
    /// As a JSON object a line.
    pub json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Found<'a> {
    name: &'a str,
    events_per_second: Option<f64>,
    troubles: Vec<String>,
    #[serde(flatten)]
    sample: &'a Sample,
}

/// Looks, and prints what it sees; answers the exit code.
///
/// # Errors
/// [`Fault::Refused`] if no relay of the name ever ran here, [`Fault::Unavailable`] if the database does not answer.
pub async fn status(database: Database, settings: CaptureSettings, how: How) -> Result<u8, Fault> {
    let (name, slot) = (settings.name.clone(), settings.slot.clone());
    let mut sampler = Sampler::new(database, settings);
    let (mut rate, mut view) = (Rate::default(), View::default());
    loop {
        let sample = match sampler.sample(None).await {
            Err(fault) if how.watch && !how.json => {
                view.draw(&format!("{name}: {fault}"));
                sleep(EVERY).await;
                continue;
            }
            sample => sample?,
        };
        if sample.registration.is_none() && !how.watch {
            return Err(Fault::Refused(format!(
                "no relay named {name} has published from this database; is it the right --name and --database-url?"
            )));
        }
        let found = Found {
            name: &name,
            events_per_second: rate.of(sample.registration.as_ref(), sample.now_ms),
            troubles: troubles(&sample, &slot),
            sample: &sample,
        };
        let code = match found.troubles.is_empty() {
            true => exit::DONE,
            false => exit::FAILED,
        };
        if how.json {
            let json =
                serde_json::to_string(&found).map_err(|error| Fault::Defect(error.to_string()))?;
            println!("{json}");
        } else {
            view.add(&found);
            match how.watch {
                true => view.draw(&view.text(&found)),
                false => println!("{}", view.text(&found)),
            }
        }
        if !how.watch {
            return Ok(code);
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(code),
            () = sleep(EVERY) => {}
        }
    }
}

/// What a person should look at. Pure.
fn troubles(sample: &Sample, slot: &str) -> Vec<String> {
    let mut troubles = Vec::new();
    if !sample.lease_held {
        troubles.push("no relay of this name is active".to_owned());
    }
    let streams = sample
        .registration
        .as_ref()
        .is_some_and(|it| it.position.streamed.is_some());
    match &sample.slot {
        None if streams => troubles.push(format!("there is no replication slot {slot}")),
        Some(it) if ["lost", "unreserved"].contains(&it.wal_status.as_str()) => {
            troubles.push(format!("replication slot {slot} is {}", it.wal_status));
        }
        _ => {}
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Origin, Position, Snapshot, Xids};
    use crate::sampler::{Lag, Parked, Registration, SlotState, Writer};

    pub fn sample(capture: &str) -> Sample {
        let origin = Origin {
            system_id: "7".into(),
            timeline: 1,
            database_oid: 5,
            table: "outbox.events".into(),
            capture: capture.into(),
        };
        let seen: Snapshot = "110:120:112,115".parse().unwrap();
        let position = match capture {
            "wal" => Position::at_lsn(origin, 9.into(), seen, Some(Xids::default())),
            _ => Position::at(origin, seen),
        };
        Sample {
            now_ms: 10_000,
            lease_held: true,
            registration: Some(Registration {
                table: "outbox.events".into(),
                instance: "host:1:a".into(),
                position,
                acknowledged_at_ms: 9_600,
            }),
            lag: Some(Lag {
                events: 12_345,
                at_least: true,
                seconds: Some(3.21),
            }),
            wal_lag_bytes: None,
            oldest_writer: Some(Writer {
                seconds: 61.0,
                who: Some("pid 7 (psql)".into()),
            }),
            slot: (capture == "wal").then(|| SlotState {
                active: true,
                wal_status: "reserved".into(),
                safe_wal_bytes: None,
                retained_wal_bytes: 3 << 20,
                inactive_seconds: None,
            }),
            parked: Some(Parked {
                transactions: 1,
                held_transactions: 2,
                events: 9,
                seconds: 90.0,
            }),
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(troubles(&sample("table"), "s").is_empty());
        assert!(troubles(&sample("wal"), "s").is_empty());
        let mut away = sample("table");
        away.lease_held = false;
        assert_eq!(troubles(&away, "s"), ["no relay of this name is active"]);
        let mut lost = sample("wal");
        lost.slot.as_mut().unwrap().wal_status = "lost".into();
        assert_eq!(troubles(&lost, "s"), ["replication slot s is lost"]);
        lost.slot = None;
        assert_eq!(troubles(&lost, "s"), ["there is no replication slot s"]);
    }
}
