//! The course of a run: set up, writers, faults, the rest, the check.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::Args;
use crate::fleet::Violations;
use crate::plan::{Fault, Planned, plan};
use crate::report::Outcome;
use crate::show::Show;
use crate::stage::Stage;
use crate::support::scan::{check, position_gaps};
use crate::support::servers::own;
use crate::support::writers::{Load, Writers, finish_prepared, ledger};
use crate::watch::Watch;

/// Longest time from the end of a fault to a new event. Other faults may come meanwhile.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// Longest time for the writers to end, and for the relay to publish the rest.
const END_MAX: Duration = Duration::from_secs(80);
const WRITERS: u32 = 200;

/// Answers whether it was clean.
pub async fn run(args: Args) -> bool {
    let interrupted = CancellationToken::new();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let run = tokio::spawn(Run::play(args, seed, interrupted.clone()));
    let abort = run.abort_handle();
    let signals = async {
        let _ = tokio::signal::ctrl_c().await;
        println!(
            "stopped: no further faults, checking what was published; Ctrl-C again ends at once"
        );
        interrupted.cancel();
        let _ = tokio::signal::ctrl_c().await;
        abort.abort();
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        end = run => end,
        () = signals => unreachable!("it waits for ever"),
    };
    end.unwrap_or_else(|error| {
        println!("the run could not be finished: {error}");
        if error.is_panic() {
            keep_evidence();
        }
        false
    })
}

struct Run {
    stage: Arc<Stage>,
    watch: Arc<Watch>,
    violations: Violations,
    show: Show,
    outcome: Outcome,
    interrupted: CancellationToken,
}

impl Run {
    async fn play(args: Args, seed: u64, interrupted: CancellationToken) -> bool {
        let length = Duration::from_secs(args.minutes * 60);
        let show = Show::new(length);
        show.say(&format!(
            "seed {seed}; starting PostgreSQL and Kafka, brokers: {}",
            args.brokers
        ));
        let violations = Violations::default();
        let stage =
            Arc::new(Stage::set_up(args.capture, args.brokers, Arc::clone(&violations)).await);
        show.say(&format!("data and logs in {}", own().folder().display()));
        let stop_watching = CancellationToken::new();
        let _watching = stop_watching.clone().drop_guard();
        let mut run = Self {
            watch: Watch::start(stage.brokers.addresses(), &Stage::topics(), stop_watching),
            outcome: Outcome {
                command: format!(
                    "soak --minutes {} --seed {seed} --transactions-per-second {} --brokers {} --capture {}",
                    args.minutes,
                    args.transactions_per_second,
                    args.brokers,
                    args.capture.name()
                ),
                seed,
                postgres_version: stage.postgres_version().await,
                ..Outcome::default()
            },
            stage,
            violations,
            show,
            interrupted,
        };
        let load = Load {
            writers: WRITERS as usize,
            pause: Duration::from_secs(1) * WRITERS / args.transactions_per_second,
            asynchronous_percent: 40,
            long_writers: 4,
            long_max: Duration::from_secs(40),
            ..Load::default()
        };
        let stage = Arc::clone(&run.stage);
        let writers = Writers::start(&stage.database, Stage::prefix(), load).await;
        let play = async {
            run.suffer(plan(seed, args.minutes, args.brokers), length, &writers)
                .await;
            run.judge(writers).await;
        };
        tokio::select! {
            () = play => {}
            () = stage.fleet.look_after() => unreachable!("it looks for ever"),
        }
        run.conclude(args.report.as_deref()).await
    }

    /// Injects the faults, each at its time, and waits until all are over.
    async fn suffer(&mut self, plan: Vec<Planned>, length: Duration, writers: &Writers) {
        let start = Instant::now();
        let mut ticks = interval(Duration::from_secs(1));
        let mut planned = plan.into_iter().peekable();
        let mut under_way = JoinSet::new();
        let end = start + length;
        while !self.interrupted.is_cancelled() && Instant::now() < end {
            let next = planned
                .peek()
                .map_or(end, |next| start + Duration::from_millis(next.at_ms));
            tokio::select! {
                () = self.interrupted.cancelled() => break,
                () = sleep_until(next) => {
                    if let Some(next) = planned.next() {
                        under_way.spawn(suffer_one(Arc::clone(&self.stage), Arc::clone(&self.watch), next.fault));
                    }
                }
                Some(over) = under_way.join_next() => self.note(over.expect("a fault that is over")),
                _ = ticks.tick() => self.tick(start, writers),
            }
        }
        self.outcome.length = start.elapsed();
        while let Some(over) = under_way.join_next().await {
            self.note(over.expect("a fault that is over"));
        }
    }

    fn note(&mut self, (fault, over): (Fault, Result<Option<Duration>, String>)) {
        match over {
            Ok(recovery) => {
                self.outcome.injected(fault, recovery);
                if recovery.is_none() {
                    let seconds = RECOVERY_MAX.as_secs();
                    let what = format!("no new event within {seconds} s after {}", fault.kind());
                    self.violation("I6", what);
                }
            }
            Err(why) => self.violation("the soak itself", format!("{}: {why}", fault.kind())),
        }
    }

    fn violation(&self, invariant: &'static str, what: String) {
        self.show.say(&format!("violation of {invariant}: {what}"));
        let mut violations = self
            .violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        violations.push((invariant, what));
    }

    fn tick(&self, start: Instant, writers: &Writers) {
        self.show.tick(start.elapsed().as_secs(), || {
            let faults: u64 = self.outcome.faults.values().map(|kind| kind.count).sum();
            let violations = self
                .violations
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            format!(
                "transactions {}, visible events {}, faults {faults}, violations {}",
                writers.committed(),
                self.watch.events(),
                violations.len() as u64 + self.watch.violations().0,
            )
        });
    }

    /// Publishes what is left, reads everything, and compares.
    async fn judge(&mut self, writers: Writers) {
        self.show.say("the faults are over; publishing the rest");
        if timeout(END_MAX, writers.stop()).await.is_err() {
            self.violation("the soak itself", "the writers do not end".to_owned());
        }
        let client = self.stage.database.connect().await;
        finish_prepared(&client, &self.stage.database.name).await;
        let since = Instant::now();
        self.stage.fleet.finish(END_MAX).await;
        self.outcome.catching_up = since.elapsed();
        self.show
            .say("reading all of Kafka from the beginning, read_committed, and comparing");
        let ledger = ledger(&self.stage.database).await;
        let (brokers, name) = (self.stage.brokers.addresses(), Stage::relay_name());
        let (records, gaps) = position_gaps(brokers, name).await;
        self.outcome.position_records = records;
        for gap in gaps {
            self.violation("I7, I8", gap);
        }
        self.outcome.judged = Some(check(brokers, Stage::prefix(), name, ledger).await);
    }

    /// Prints and writes the report; keeps the evidence where there is something to look at.
    async fn conclude(mut self, file: Option<&std::path::Path>) -> bool {
        let (count, live) = self.watch.violations();
        if count > 0 {
            let what = format!("{count} seen live, the first:\n{}", live.join("\n"));
            self.violation("I1 to I3", what);
        }
        self.show.clear();
        let violations = std::mem::take(&mut self.violations);
        let others =
            std::mem::take(&mut *violations.lock().unwrap_or_else(PoisonError::into_inner));
        self.outcome.others = others;
        self.outcome.longest_silence = self.watch.longest_silence();
        self.outcome.peak_rss_kb = self.stage.fleet.peak_rss_kb();
        let report = self.outcome.markdown();
        println!("\n{report}");
        if let Some(file) = file
            && let Err(error) = std::fs::write(file, &report)
        {
            println!("the report can't be written to {}: {error}", file.display());
        }
        let clean = self.outcome.is_clean();
        if !clean {
            keep_evidence();
        }
        clean
    }
}

fn keep_evidence() {
    own().leave_folder();
    let folder = own().folder().display();
    println!("the servers' data and logs and the relays' logs stay in {folder}");
}

/// Injects one fault, heals it, and waits for a new event.
async fn suffer_one(
    stage: Arc<Stage>,
    watch: Arc<Watch>,
    fault: Fault,
) -> (Fault, Result<Option<Duration>, String>) {
    let over = match stage.inject(fault).await {
        Ok(()) => Ok(watch.recovery(RECOVERY_MAX).await),
        Err(why) => Err(why),
    };
    (fault, over)
}
