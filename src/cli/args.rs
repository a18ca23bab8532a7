//! Arguments of the commands.

use clap::Args;

use crate::capture::CaptureKind;
use crate::config::{ConfigFile, Options, Settings};
use crate::consume::Printers;
use crate::fault::Fault;
use crate::produce::Producers;
use crate::replay::Selection;

/// What every command that has settings takes.
#[derive(Args, Clone, Debug)]
pub(super) struct Given {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Box<Options>,
}

impl Given {
    /// The options over those of the file.
    pub(super) fn options(self) -> Result<Options, Fault> {
        self.options.with_file(self.file.config.as_deref())
    }

    /// All settings, checked.
    pub(super) fn settings(self) -> Result<Settings, Fault> {
        self.options()?.settle()
    }
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// Look once a second, until Ctrl-C.
    #[arg(long)]
    pub(super) watch: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    pub(super) given: Given,
    #[command(flatten)]
    pub(super) selection: Selection,
    /// Do it.
    #[arg(long)]
    pub(super) apply: bool,
    /// Print what was found as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// Print what was found as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Seconds after which an open transaction is told of.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(super) transaction_age_s: u32,
}

#[derive(Args, Debug)]
pub(super) struct MoveArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// The capture that the relay is to have.
    #[arg(long, value_name = "CAPTURE")]
    pub(super) to: CaptureKind,
}

#[derive(Args, Debug)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// Do it.
    #[arg(long)]
    pub(super) apply: bool,
}

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// Print what was found as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// Print the SQL instead of running it.
    #[arg(long)]
    pub(super) print_sql: bool,
    /// Make outbox.events a ring of 16 leaves, so that retention truncates instead of deleting. Only while it is empty.
    #[arg(long)]
    pub(super) partitioned: bool,
    /// Rows of one leaf. The ring should hold what is written in twice the retention.
    #[arg(long, value_name = "ROWS", requires = "partitioned", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) leaf_rows: u32,
    /// Make roles with the least privileges too: PREFIX_owner, PREFIX_writer and PREFIX_relay.
    #[arg(long, value_name = "PREFIX")]
    pub(super) role_prefix: Option<String>,
}

impl InitArgs {
    /// The ring is of our own table; another one belongs to others.
    pub(super) fn ring(&self, options: &Options) -> Result<Option<u32>, Fault> {
        match options.table.as_deref() {
            Some(table) if self.partitioned && table != "outbox.events" => {
                Err(Fault::Setting(format!(
                    "--partitioned makes outbox.events, but table is {table:?}; leave one of the two out"
                )))
            }
            _ => Ok(self.partitioned.then_some(self.leaf_rows)),
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// End with 0 when everything that was committed before the start is published.
    #[arg(long)]
    pub(super) until_caught_up: bool,
}

#[derive(Args, Debug)]
pub(super) struct AdoptArgs {
    #[command(flatten)]
    pub(super) given: Given,
    /// The name whose position is taken over, if it is not --name itself.
    #[arg(long, value_name = "NAME")]
    pub(super) from: Option<String>,
    /// Do it.
    #[arg(long)]
    pub(super) apply: bool,
}

#[derive(Args, Debug)]
pub(super) struct ConsumeArgs {
    #[command(flatten)]
    pub(super) given: Given,
    #[command(flatten)]
    pub(super) printers: Printers,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct ProduceArgs {
    #[command(flatten)]
    pub(super) given: Given,
    #[command(flatten)]
    pub(super) producers: Producers,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}
