//! Commands, flags, help, and what is printed.

mod args;
mod parked;

use std::io::{IsTerminal, Write as _};

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use self::args::{
    AdoptArgs, ConsumeArgs, DoctorArgs, InitArgs, MoveArgs, ProduceArgs, RecoverArgs, ReplayArgs,
    RunArgs, StatusArgs, VerifyArgs,
};
use crate::adopt::Plan;
use crate::capture::CaptureKind;
use crate::capture::wal::make;
use crate::consume::{Printed, consume};
use crate::fault::{Fault, exit};
use crate::produce::{Produced, produce};
use crate::replay::replay;
use crate::roles::Roles;
use crate::signals::asked_to_stop;
use crate::{doctor, init, moves, ring, status, supervisor, verify};

/// Exit codes, in the help of the program.
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
        "Flags win over the environment, the environment over the file. `outbox-relay --help` lists the exit codes.",
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
        "It needs `select` on the outbox table, outbox.relay, outbox.marks and outbox.parked, and READ, DESCRIBE and DESCRIBE_CONFIGS on the topics.",
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
    /// Prints the messages of a topic as a consumer sees them, read_committed. Makes the topic, with three partitions, if it is
    /// not there.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay consume --kafka-brokers 127.0.0.1:9092\n",
        "  outbox-relay consume --config relay.toml --topic orders --group look --messages-max 100 --json | jq .headers\n\n",
        "It needs no database. With --json each message is one line.",
    ))]
    Consume(ConsumeArgs),
    /// Writes events into outbox.events as use cases would: ten producers, each a transaction of three events a second or so.
    #[command(after_help = concat!(
        "Examples:\n  outbox-relay produce --database-url postgres://me@127.0.0.1/shop\n",
        "  outbox-relay produce --config relay.toml --topic orders --producers 2 --delay-ms 10 --transactions-max 1000\n\n",
        "A running relay publishes them; watch it with `outbox-relay consume`. It needs no Kafka.",
    ))]
    Produce(ProduceArgs),
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
        Command::Consume(args) => consume_messages(args).await,
        Command::Produce(args) => produce_events(args).await,
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
    let options = args.given.clone().options()?;
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
    let settings = args.given.settings()?;
    let published = supervisor::run(&settings, args.until_caught_up).await?;
    tracing::info!(
        transactions = published.transactions,
        events = published.events,
        "ended"
    );
    Ok(exit::DONE)
}

async fn adopt(args: AdoptArgs) -> Result<u8, Fault> {
    let settings = args.given.settings()?;
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
    let done = moves::move_to(&args.given.settings()?, args.to).await?;
    for line in done {
        println!("{line}");
    }
    println!("done; start the relay with --capture {}", args.to.name());
    Ok(exit::DONE)
}

async fn recover(args: RecoverArgs) -> Result<u8, Fault> {
    let found = moves::recover(&args.given.settings()?, args.apply).await?;
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
    let found = verify::verify(&args.given.settings()?).await?;
    print_result(args.json, &found, || found.text())?;
    Ok(if found.clean {
        exit::DONE
    } else {
        exit::FAILED
    })
}

async fn doctor(args: DoctorArgs) -> Result<u8, Fault> {
    let settings = args.given.settings()?;
    let report = doctor::doctor(&settings, args.transaction_age_s).await;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    print_result(args.json, &report, || report.text(colour))?;
    Ok(report.exit_code())
}

async fn replay_rows(args: ReplayArgs) -> Result<u8, Fault> {
    let settings = args.given.settings()?;
    let replayed = replay(&settings, &args.selection, args.apply).await?;
    print_result(args.json, &replayed, || replayed.text())?;
    Ok(exit::DONE)
}

async fn show_status(args: StatusArgs) -> Result<u8, Fault> {
    let options = args.given.options()?;
    let how = status::How {
        watch: args.watch,
        json: args.json,
    };
    status::status(options.database()?, options.outbox()?, how).await
}

async fn consume_messages(args: ConsumeArgs) -> Result<u8, Fault> {
    let options = args.given.options()?;
    let kafka = options.kafka("consume".into(), String::new())?;
    let stop = CancellationToken::new();
    tokio::spawn({
        let (asked_to_stop, stop) = (asked_to_stop()?, stop.clone());
        async move {
            asked_to_stop.await;
            stop.cancel();
        }
    });
    let json = args.json;
    let tell = move |printed: &Printed| tell(json, printed, || printed.text());
    let told = consume(&kafka, &args.printers, tell, stop).await?;
    tracing::info!(messages = told, "ended");
    Ok(exit::DONE)
}

async fn produce_events(args: ProduceArgs) -> Result<u8, Fault> {
    let options = args.given.options()?;
    let database = options.database()?;
    if options.table()? != "outbox.events" {
        return Err(Fault::Setting(
            "produce writes outbox.events; leave table out".into(),
        ));
    }
    let json = args.json;
    let tell = |produced: &Produced| tell(json, produced, || produced.text());
    tokio::select! {
        transactions = produce(&database, &args.producers, tell) => {
            tracing::info!(transactions = transactions?, "ended");
        }
        _ = asked_to_stop()? => {}
    }
    Ok(exit::DONE)
}

/// The same where there is a line after the other; `false` once nobody reads them any more.
fn tell(json: bool, line: &impl Serialize, text: impl FnOnce() -> String) -> bool {
    let line = match json {
        true => serde_json::to_string(line).unwrap_or_default(),
        false => text(),
    };
    writeln!(std::io::stdout().lock(), "{line}").is_ok()
}

/// One line of JSON for a script, or the text for people.
fn print_result(
    json: bool,
    result: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Fault> {
    match json {
        true => {
            let json = serde_json::to_string(result);
            println!(
                "{}",
                json.map_err(|error| Fault::Defect(error.to_string()))?
            );
        }
        false => println!("{}", text()),
    }
    Ok(())
}
