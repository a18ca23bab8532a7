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
use crate::signals::asked_to_stop;
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
    if !how.watch {
        return Look::new(database, settings, how).look().await;
    }
    let asked_to_stop = asked_to_stop()?;
    let mut look = Look::new(database, settings, how);
    let mut code = exit::DONE;
    let watch = async {
        loop {
            code = look.look().await?;
            sleep(EVERY).await;
        }
    };
    tokio::select! {
        _ = asked_to_stop => Ok(code),
        end = watch => end,
    }
}

/// One look after the other.
struct Look {
    name: String,
    slot: String,
    how: How,
    sampler: Sampler,
    rate: Rate,
    view: View,
}

impl Look {
    fn new(database: Database, settings: CaptureSettings, how: How) -> Self {
        Self {
            name: settings.name.clone(),
            slot: settings.slot.clone(),
            how,
            sampler: Sampler::new(database, settings),
            rate: Rate::default(),
            view: View::default(),
        }
    }

    async fn look(&mut self) -> Result<u8, Fault> {
        let (name, how) = (&self.name, self.how);
        let sample = match self.sampler.sample(None).await {
            Err(fault) if how.watch && !how.json => {
                self.view.draw(&format!("{name}: {fault}"));
                return Ok(exit::FAILED);
            }
            sample => sample?,
        };
        if sample.registration.is_none() && !how.watch {
            return Err(Fault::Refused(format!(
                "no relay named {name} has published from this database; is it the right --name and --database-url?"
            )));
        }
        let registration = sample.registration.as_ref();
        let found = Found {
            name,
            events_per_second: self.rate.of(registration, sample.now_ms),
            troubles: troubles(&sample, &self.slot),
            sample: &sample,
        };
        let code = match found.troubles.is_empty() {
            true => exit::DONE,
            false => exit::FAILED,
        };
        if how.json {
            let json = serde_json::to_string(&found);
            let json = json.map_err(|error| Fault::Defect(error.to_string()))?;
            println!("{json}");
            return Ok(code);
        }
        self.view.add(&found);
        match how.watch {
            true => self.view.draw(&self.view.text(&found)),
            false => println!("{}", self.view.text(&found)),
        }
        Ok(code)
    }
}

/// What a person should look at. Pure.
fn troubles(sample: &Sample, slot: &str) -> Vec<String> {
    let mut troubles = Vec::new();
    if !sample.lease_held {
        troubles.push("no relay of this name is active".to_owned());
    }
    match &sample.slot {
        None if sample.has_no_slot => {
            troubles.push(format!("there is no replication slot {slot}"));
        }
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
        let origin = Origin::of_test(capture);
        let seen: Snapshot = "110:120:112,115".parse().unwrap();
        let position = match capture {
            "wal" => Position::at_lsn(origin, 9.into(), seen, Some(Xids::default())),
            _ => Position::at(origin, seen),
        };
        Sample {
            now_ms: 10_000,
            at: tokio::time::Instant::now(),
            has_no_slot: false,
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
        assert!(troubles(&lost, "s").is_empty(), "nothing could be told");
        lost.has_no_slot = true;
        assert_eq!(troubles(&lost, "s"), ["there is no replication slot s"]);
    }
}
