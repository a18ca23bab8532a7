//! Commands, flags, help, and what is printed.

mod parked;

use std::io::IsTerminal;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::adopt::Plan;
use crate::capture::CaptureKind;
use crate::capture::wal::make;
use crate::config::{ConfigFile, Options, Settings};
use crate::fault::{Fault, exit};
use crate::replay::{Selection, replay};
use crate::roles::Roles;
use crate::{doctor, init, moves, ring, status, supervisor, verify};

/// Exit codes, in every help text.
const EXIT_CODES: &str = "Exit codes:
  0  done
  1  a check found violations, or a defect of outbox-relay
  2  a setting, flag or argument is wrong
  3  refused: the position does not fit, or a server is not set up
  4  a transaction can't be published; its reason is in the message
  5  stopped, but a server did not answer within drain-ms; nothing is lost";

/// Publishes an outbox table of PostgreSQL to Kafka: whole transactions, in order, exactly once.
#[derive(Parser, Debug)]
#[command(name = "outbox-relay", version, about, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look; RUST_LOG chooses which (e.g. RUST_LOG=outbox_relay=debug).
    #[arg(
        long,
        global = true,
        env = "OUTBOX_RELAY_LOG_FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Shows all of it on throw-away servers: writers, a relay that is killed, and the check of what arrived.
    #[cfg(feature = "demo")]
    #[command(
        after_help = "Examples:\n  outbox-relay demo\n  outbox-relay demo --seconds 30 --events-per-second 3000 --keep"
    )]
    Demo(crate::demo::DemoArgs),
    /// Makes schema outbox in the database, or brings it up to date; with --capture wal publication and replication slot
    /// too. May be run again at any time.
    #[command(
        after_help = "Examples:\n  outbox-relay init --database-url postgres://me@127.0.0.1/shop\n  outbox-relay init --print-sql | psql shop\n  outbox-relay init --partitioned --leaf-rows 5000000 --database-url postgres://me@127.0.0.1/shop\n  outbox-relay init --capture wal --name shop --database-url postgres://me@127.0.0.1/shop\n  outbox-relay init --role-prefix shop --database-url postgres://postgres@127.0.0.1/shop"
    )]
    Init(InitArgs),
    /// Publishes until it is stopped.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay run --name shop --database-url postgres://me@127.0.0.1/shop --kafka-brokers 127.0.0.1:9092\n",
        "  outbox-relay run --config relay.toml --until-caught-up\n",
        "  outbox-relay run --config relay.toml --admin-listen 9464      status page at http://127.0.0.1:9464/\n\n",
        "Flags win over the environment, the environment over the file.\n\n",
    ))]
    Run(RunArgs),
    /// Takes a position over after pg_upgrade, after a promotion, or under a new name. Without --apply it only reads.
    #[command(
        after_help = "Examples:\n  outbox-relay adopt --config relay.toml\n  outbox-relay adopt --config relay.toml --from old-name --apply"
    )]
    Adopt(AdoptArgs),
    /// Moves a relay between the captures, without loss or repetition, while writers go on. The relay must be stopped. Cut
    /// off, the same command goes on.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay move --to wal --config relay.toml\n  outbox-relay move --to table --config relay.toml\n\n",
        "Afterwards start the relay with --capture wal or --capture table.",
    ))]
    Move(MoveArgs),
    /// After a lost replication slot: goes on from the rows that the table holds, then with a new slot. Without --apply it only
    /// looks.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay recover --config relay.toml\n  outbox-relay recover --config relay.toml --apply\n\n",
        "What was not published and is not in the table is gone with the WAL: events of outbox.emit, and rows that were deleted.",
    ))]
    Recover(RecoverArgs),
    /// Transactions that can't be published, and those that wait behind them: look, retry, discard. The relay goes on
    /// meanwhile, and acts within a second.
    Parked(parked::ParkedArgs),
    /// Compares the rows that the outbox table still holds with the topics, also beside a running relay. Changes nothing.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay verify --config relay.toml\n  outbox-relay verify --config relay.toml --json | jq .lost\n\n",
        "It ends with 0 if nothing is wrong, with 1 if something is.\n",
        "It needs `select` on the outbox table, outbox.relay and outbox.marks, and READ, DESCRIBE and DESCRIBE_CONFIGS on the topics.",
    ))]
    Verify(VerifyArgs),
    /// Looks at both servers: what is wrong, why it matters, and the statement or setting that cures it. Changes nothing.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay doctor --config relay.toml\n  outbox-relay doctor --config relay.toml --json | jq '.checks[] | select(.verdict == \"error\")'\n\n",
        "Run it with the settings of the relay, beside it or before its first start. It takes 40 s at most, also where a server is away.\n\n",
        "It ends with 0 if nothing is wrong, with 1 if there are warnings alone, with 3 if there are errors, with 2 if a setting is wrong.\n",
        "What it may not look at it says; that alone does not change the exit code.",
    ))]
    Doctor(DoctorArgs),
    /// Publishes retained rows again, marked by the header replay, in one Kafka transaction, also beside a running relay.
    /// Only what the relay has published. Without --apply it only looks.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay replay --config relay.toml --since '2026-03-01 12:00+01' --until '2026-03-01 13:00+01'\n",
        "  outbox-relay replay --config relay.toml --topic orders --key 42 --to-topic orders-repaired --apply\n",
        "  outbox-relay replay --config relay.toml --tx-id 742 --apply --json | jq .replay\n\n",
        "--since, --until and --tx-id select whole transactions; --topic, --key and --id single events of them.\n",
        "It needs WRITE and DESCRIBE on the transactional id outbox-relay-replay.NAME.",
    ))]
    Replay(ReplayArgs),
    /// Shows how a relay is doing: whether one is active, lag, throughput, position, the oldest open writer, the slot. Asks the
    /// database alone, so it works beside any relay or none, and changes nothing.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay status --config relay.toml --watch\n",
        "  outbox-relay status --name shop --database-url postgres://me@127.0.0.1/shop --json | jq .lag.events\n\n",
        "It ends with 0 if a relay is active and its slot is well, with 1 if not or if the database does not answer, and with 3\n",
        "if no relay of the name ever published from the database. Lag is counted up to 50 000 events, then it says \"at least\".\n",
        "It needs `select` on the outbox table and outbox.relay, and role pg_read_all_stats to see the oldest open writer.",
    ))]
    Status(StatusArgs),
}

#[derive(Args, Debug)]
struct StatusArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// Look once a second, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ReplayArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    selection: Selection,
    /// Do it.
    #[arg(long)]
    apply: bool,
    /// Print what was found as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct DoctorArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// Print what was found as one JSON object.
    #[arg(long)]
    json: bool,
    /// Seconds after which an open transaction is told of.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    transaction_age_s: u32,
}

#[derive(Args, Debug)]
struct MoveArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// The capture that the relay is to have.
    #[arg(long, value_name = "CAPTURE")]
    to: CaptureKind,
}

#[derive(Args, Debug)]
struct RecoverArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// Do it.
    #[arg(long)]
    apply: bool,
}

#[derive(Args, Debug)]
struct VerifyArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// Print what was found as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct InitArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// Print the SQL instead of running it.
    #[arg(long)]
    print_sql: bool,
    /// Make outbox.events a ring of 16 leaves, so that retention truncates instead of deleting. Only while it is empty.
    #[arg(long)]
    partitioned: bool,
    /// Rows of one leaf. The ring should hold what is written in twice the retention.
    #[arg(long, value_name = "ROWS", requires = "partitioned", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    leaf_rows: u32,
    /// Make roles with the least privileges too: PREFIX_owner, PREFIX_writer and PREFIX_relay.
    #[arg(long, value_name = "PREFIX")]
    role_prefix: Option<String>,
}

impl InitArgs {
    /// The ring is of our own table; another one belongs to others.
    fn ring(&self, options: &Options) -> Result<Option<u32>, Fault> {
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
struct RunArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// End with 0 when everything that was committed before the start is published.
    #[arg(long)]
    until_caught_up: bool,
}

#[derive(Args, Debug)]
struct AdoptArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    options: Options,
    /// The name whose position is taken over, if it is not --name itself.
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Do it.
    #[arg(long)]
    apply: bool,
}

impl Cli {
    /// Log lines go to standard error; standard output is for results.
    pub fn start_log(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => log
                .with_target(false)
                .with_ansi(std::io::stderr().is_terminal())
                .init(),
            LogFormat::Json => log.json().init(),
        }
    }
}

/// Carries out a command; answers the exit code.
pub async fn call(cli: Cli) -> u8 {
    let end = match cli.command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => crate::demo::demo(&args).await,
        Command::Init(args) => init_schema(args).await,
        Command::Run(args) => run(args).await,
        Command::Adopt(args) => adopt(args).await,
        Command::Move(args) => move_to(args).await,
        Command::Recover(args) => recover(args).await,
        Command::Parked(args) => parked::parked(args).await,
        Command::Verify(args) => verify(args).await,
        Command::Doctor(args) => doctor(args).await,
        Command::Replay(args) => replay_rows(args).await,
        Command::Status(args) => show_status(args).await,
    };
    match end {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("outbox-relay: {fault}");
            fault.exit_code()
        }
    }
}

async fn init_schema(args: InitArgs) -> Result<u8, Fault> {
    let options = args.options.clone();
    let options = options.with_file(args.file.config.as_deref())?;
    let is_wal = options.capture == Some(CaptureKind::Wal);
    let leaf_rows = args.ring(&options)?;
    let capture = options.capture.unwrap_or(CaptureKind::Table);
    let table = options.table()?;
    let roles = args.role_prefix.as_deref();
    let roles = roles.map(|prefix| Roles::new(prefix, capture, &table));
    let roles = roles.transpose()?;
    if args.print_sql {
        let ring = leaf_rows.map(ring::script);
        print!("{}", init::script(ring.as_deref()));
        if let Some(roles) = &roles {
            print!("\n{}", roles.script());
        }
        if is_wal {
            print!("\n{}", make::script(&options.outbox()?));
        }
        return Ok(exit::DONE);
    }
    let database = options.database()?;
    // Checked before anything is made.
    let outbox = is_wal.then(|| options.outbox()).transpose()?;
    let applied = init::init(&database).await?;
    match applied.as_slice() {
        [] => println!("{database}: schema outbox is up to date, nothing to do"),
        names => println!("{database}: applied {}", names.join(", ")),
    }
    if let Some(leaf_rows) = leaf_rows {
        match ring::make(&database, leaf_rows).await? {
            true => println!(
                "{database}: made outbox.events a ring of {} leaves of {leaf_rows} rows",
                ring::LEAVES
            ),
            false => println!("{database}: outbox.events is partitioned already"),
        }
    }
    if let Some(roles) = roles {
        let [owner, writer, relay] = roles.make(&database).await?;
        println!(
            "{database}: roles {owner}, {writer} and {relay} have what they need for capture {}",
            capture.name()
        );
    }
    if let Some(outbox) = outbox {
        match supervisor::make_slot(&database, &outbox).await?.as_slice() {
            [] => println!(
                "{database}: publication and replication slot {} are there",
                outbox.slot
            ),
            made => println!("{database}: made {}", made.join(", ")),
        }
    }
    Ok(exit::DONE)
}

async fn run(args: RunArgs) -> Result<u8, Fault> {
    let settings = settled(args.options, &args.file)?;
    let published = supervisor::run(&settings, args.until_caught_up).await?;
    tracing::info!(
        transactions = published.transactions,
        events = published.events,
        "ended"
    );
    Ok(exit::DONE)
}

async fn adopt(args: AdoptArgs) -> Result<u8, Fault> {
    let settings = settled(args.options, &args.file)?;
    let from = args.from.unwrap_or_else(|| settings.name.clone());
    let Plan {
        from: stored,
        changes,
        ..
    } = supervisor::adopt(&settings, &from, args.apply).await?;
    println!("relay {from} stands at {stored}");
    if changes.is_empty() {
        println!("the position belongs here already; nothing to adopt");
    }
    for change in &changes {
        println!("  {change}");
    }
    match (changes.is_empty(), args.apply) {
        (true, _) => {}
        (false, true) => println!("adopted; the relay may be started"),
        (false, false) => println!("nothing was changed; add --apply to do it"),
    }
    Ok(exit::DONE)
}

async fn move_to(args: MoveArgs) -> Result<u8, Fault> {
    let done = moves::move_to(&settled(args.options, &args.file)?, args.to).await?;
    for line in done {
        println!("{line}");
    }
    println!("done; start the relay with --capture {}", args.to.name());
    Ok(exit::DONE)
}

async fn recover(args: RecoverArgs) -> Result<u8, Fault> {
    let found = moves::recover(&settled(args.options, &args.file)?, args.apply).await?;
    let (events, transactions) = found.rows;
    println!("the relay stood at {}", found.stood_at);
    println!(
        "the table holds {events} events of {transactions} transactions that were not published"
    );
    println!(
        "events of outbox.emit and rows that were deleted since then can't be found, nor counted: their WAL is gone"
    );
    for line in &found.done {
        println!("{line}");
    }
    match args.apply {
        true => println!("done; start the relay with --capture wal"),
        false => println!("nothing was changed; add --apply to do it"),
    }
    Ok(exit::DONE)
}

async fn verify(args: VerifyArgs) -> Result<u8, Fault> {
    let found = verify::verify(&settled(args.options, &args.file)?).await?;
    if args.json {
        let json =
            serde_json::to_string(&found).map_err(|error| Fault::Defect(error.to_string()))?;
        println!("{json}");
    } else {
        println!("{}", found.text());
    }
    Ok(if found.clean {
        exit::DONE
    } else {
        exit::FAILED
    })
}

async fn doctor(args: DoctorArgs) -> Result<u8, Fault> {
    let settings = settled(args.options, &args.file)?;
    let report = doctor::doctor(&settings, args.transaction_age_s).await;
    if args.json {
        let json =
            serde_json::to_string(&report).map_err(|error| Fault::Defect(error.to_string()))?;
        println!("{json}");
    } else {
        let stdout = std::io::stdout();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        println!("{}", report.text(colour));
    }
    Ok(report.exit_code())
}

async fn replay_rows(args: ReplayArgs) -> Result<u8, Fault> {
    let settings = settled(args.options, &args.file)?;
    let replayed = replay(&settings, &args.selection, args.apply).await?;
    if args.json {
        let json =
            serde_json::to_string(&replayed).map_err(|error| Fault::Defect(error.to_string()))?;
        println!("{json}");
    } else {
        println!("{}", replayed.text());
    }
    Ok(exit::DONE)
}

async fn show_status(args: StatusArgs) -> Result<u8, Fault> {
    let options = args.options.with_file(args.file.config.as_deref())?;
    let how = status::How {
        watch: args.watch,
        json: args.json,
    };
    status::status(options.database()?, options.outbox()?, how).await
}

fn settled(options: Options, file: &ConfigFile) -> Result<Settings, Fault> {
    options.with_file(file.config.as_deref())?.settle()
}
