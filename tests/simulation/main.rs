//! The deterministic simulator: the production relay loop over simulated time, PostgreSQL and Kafka.
//!
//! `cargo test --test simulation -- --seeds 1000000` runs many worlds; `-- --seed S --trace` shows one.

#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::await_holding_lock,
    clippy::let_and_return,
    reason = "a test on one thread; the numbers are small, and locks of the world end before anybody waits"
)]

mod capture;
mod faults;
mod judge;
mod kafka;
mod lease;
mod mutations;
mod postgres;
mod process;
mod run;
mod scenario;
mod world;
mod writers;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;

use crate::mutations::Mutation;
use crate::run::{Outcome, run};

/// Seeds in which each mutation must be caught.
const SEEDS_OF_A_MUTATION: u64 = 20_000;
/// Seeds that are run twice: the traces must be equal.
const SEEDS_RUN_TWICE: u64 = 50;
/// Failing seeds that are told; all of them count.
const TOLD_MAX: u64 = 10;

#[derive(Parser)]
struct Arguments {
    /// Number of seeds.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens; with --seed.
    #[arg(long)]
    trace: bool,
    /// With this defence switched off; with --seed.
    #[arg(long)]
    mutation: Option<String>,
    /// Leave the mutations out.
    #[arg(long)]
    no_mutations: bool,
    /// What cargo passes to every test binary.
    #[arg(hide = true)]
    _rest: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return replay(seed, &arguments);
    }
    let same = runs_are_repeatable();
    let caught = arguments.no_mutations || mutations_are_caught();
    let total = run_seeds(arguments.from, arguments.seeds);
    total.print();
    match same && caught && total.violations == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn replay(seed: u64, arguments: &Arguments) -> ExitCode {
    let named = |mutation: &Mutation| Some(format!("{mutation:?}")) == arguments.mutation;
    let mutation = match Mutation::ALL.into_iter().find(named) {
        None if arguments.mutation.is_some() => {
            eprintln!("no such mutation; there are {:?}", Mutation::ALL);
            return ExitCode::from(2);
        }
        found => found.unwrap_or(Mutation::None),
    };
    let outcome = run(seed, mutation, arguments.trace);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("\n{}", outcome.report);
    for violation in &outcome.violations {
        println!("{}: {}", violation.invariant, violation.what);
    }
    match outcome.violations.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn runs_are_repeatable() -> bool {
    let differs = |seed: &u64| {
        let [one, two] = [0, 1].map(|_| run(*seed, Mutation::None, true).trace);
        one != two
    };
    match (0..SEEDS_RUN_TWICE).find(differs) {
        Some(seed) => println!("seed {seed} run twice gives two traces"),
        None => return true,
    }
    false
}

/// Each defence, switched off, must be missed.
fn mutations_are_caught() -> bool {
    let mut all = true;
    for mutation in Mutation::ALL {
        let first = first_caught(mutation);
        match first {
            Some((seed, invariant)) => println!(
                "mutation {mutation:?}: caught by {invariant} after {} seeds (--seed {seed} --mutation {mutation:?} --trace)",
                seed + 1
            ),
            None => {
                println!("mutation {mutation:?}: NOT caught in {SEEDS_OF_A_MUTATION} seeds");
                all = false;
            }
        }
    }
    all
}

/// The least seed that shows a violation, and what it violates.
fn first_caught(mutation: Mutation) -> Option<(u64, &'static str)> {
    let caught = Mutex::new(None::<(u64, &'static str)>);
    let least_so_far = || caught.lock().expect("no panic").map(|(least, _)| least);
    in_parallel(0..SEEDS_OF_A_MUTATION, |seed| {
        if least_so_far().is_some_and(|least| least < seed) {
            return ControlFlow::Break(());
        }
        let violation = run(seed, mutation, false).violations.into_iter().next();
        if let Some(violation) = violation {
            let mut caught = caught.lock().expect("no panic");
            if caught.is_none_or(|(least, _)| seed < least) {
                *caught = Some((seed, violation.invariant));
            }
        }
        ControlFlow::Continue(())
    });
    caught.into_inner().expect("no panic")
}

/// Gives the seeds in their order to one thread per core, until one of them has enough.
fn in_parallel(seeds: Range<u64>, visit: impl Fn(u64) -> ControlFlow<()> + Sync) {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || visit(seed).is_break() {
                        return;
                    }
                }
            });
        }
    });
}

#[derive(Default)]
struct Total {
    seeds: u64,
    transactions: u64,
    events: u64,
    violations: u64,
    virtual_time: Duration,
    counts: BTreeMap<&'static str, u64>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.transactions += outcome.report.transactions;
        self.events += outcome.report.events;
        self.virtual_time += outcome.virtual_time;
        for (name, count) in &outcome.counts {
            *self.counts.entry(name).or_default() += count;
        }
        if !outcome.violations.is_empty() {
            self.violations += 1;
            if self.violations <= TOLD_MAX {
                for violation in &outcome.violations {
                    println!("{}: {}", violation.invariant, violation.what);
                }
                println!("cargo test --test simulation -- --seed {seed} --trace");
            }
        }
        if self.seeds.is_multiple_of(10_000) {
            println!("{} seeds, {} with violations", self.seeds, self.violations);
        }
    }

    fn print(&self) {
        println!("seeds                 {:>12}", self.seeds);
        println!("transactions          {:>12}", self.transactions);
        println!("events                {:>12}", self.events);
        println!(
            "virtual time          {:>10} h",
            self.virtual_time.as_secs() / 3600
        );
        for (name, count) in &self.counts {
            println!("  {name:<36}{count:>12}");
        }
        println!("seeds with violations {:>12}", self.violations);
    }
}

fn run_seeds(from: u64, seeds: u64) -> Total {
    let total = Mutex::new(Total::default());
    in_parallel(from..from + seeds, |seed| {
        let outcome = run(seed, Mutation::None, false);
        total.lock().expect("no panic").add(seed, &outcome);
        ControlFlow::Continue(())
    });
    total.into_inner().expect("no panic")
}
