//! Parse, trace, call, exit code.

use std::process::ExitCode;

use clap::Parser;
use outbox_relay::cli::{Cli, call};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.start_log();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("outbox-relay: the runtime can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(call(cli));
    // A thread that still waits for a broker must not hold up the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}
