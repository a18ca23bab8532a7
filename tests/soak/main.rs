//! The long soak: writers, relays, and faults of all kinds together, from a seed; then the check of everything.
//!
//! `cargo run --release --bin soak -- --minutes 60 --seed 1`. It brings up its own servers, and all of it ends with it.

#![allow(
    clippy::unwrap_used,
    reason = "what can't go on ends the run as failed"
)]

mod brokers;
mod fleet;
mod network;
mod order;
mod plan;
mod program;
mod report;
mod run;
mod show;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use outbox_relay::capture::CaptureKind;

/// Runs the relay under writers and faults for a while, and then checks every event. Ctrl-C ends the faults early and
/// checks; a second Ctrl-C ends at once.
#[derive(Parser, Debug)]
#[command(
    name = "soak",
    max_term_width = 110,
    after_help = "Exit codes:\n  0  clean\n  1  violations, or the run could not be finished"
)]
pub struct Args {
    /// Length of the faults, in minutes.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Decides the faults and their moments; drawn if it is not given.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Transactions that all writers start in a second.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    transactions_per_second: u32,
    /// Kafka brokers. Some kinds of faults come with three only.
    #[arg(long, value_name = "N", default_value = "3", value_parser = one_or_three())]
    brokers: usize,
    /// How the relay finds committed events.
    #[arg(long, value_enum, default_value_t = CaptureKind::Table)]
    capture: CaptureKind,
    /// Writes the report to this file as well.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn one_or_three() -> impl TypedValueParser<Value = usize> {
    PossibleValuesParser::new(["1", "3"]).map(|count| if count == "1" { 1 } else { 3 })
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(why) = program::build_relay() {
        eprintln!("soak: {why}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let clean = runtime.block_on(run::run(args));
    runtime.shutdown_background();
    if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
