//! `outbox-relay parked`.

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use super::args::Given;
use super::print_result;
use crate::fault::{Fault, exit};
use crate::park::people::{self, Parked, Shown};
use crate::park::store::Request;

#[derive(Args, Debug)]
pub(super) struct ParkedArgs {
    #[command(subcommand)]
    command: ParkedCommand,
}

#[derive(Subcommand, Debug)]
enum ParkedCommand {
    /// The transactions that wait, in order.
    #[command(
        after_help = "Examples:\n  outbox-relay parked list --config relay.toml\n  outbox-relay parked list --config relay.toml --json | jq '.[].fault'"
    )]
    List {
        #[command(flatten)]
        given: Given,
        /// Those that are settled too.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// One of them: its events and its history.
    Show {
        #[command(flatten)]
        given: Given,
        /// As `list` shows it.
        id: i64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Has the active relay publish them, and in order what waits behind them.
    #[command(
        after_help = "Examples:\n  outbox-relay parked retry --config relay.toml 17 18\n  outbox-relay parked retry --config relay.toml --all"
    )]
    Retry {
        #[command(flatten)]
        given: Given,
        /// As `list` shows them.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<i64>,
        /// All that are parked.
        #[arg(long)]
        all: bool,
    },
    /// Has the active relay never publish it; what waits behind it goes on. Its events stay in outbox.parked_events.
    #[command(
        after_help = "Example:\n  outbox-relay parked discard --config relay.toml 17 --reason 'a test order, see ticket 4711'"
    )]
    Discard {
        #[command(flatten)]
        given: Given,
        /// As `list` shows it.
        id: i64,
        /// Why; it is kept.
        #[arg(long)]
        reason: String,
    },
}

pub(super) async fn parked(args: ParkedArgs) -> Result<u8, Fault> {
    match args.command {
        ParkedCommand::List { given, all, json } => {
            let (client, relay) = connect(given).await?;
            let found = people::list(&client, &relay, all).await?;
            print_result(json, &found, || match found.is_empty() {
                true => format!("relay {relay}: nothing is parked"),
                false => table(&found).to_string(),
            })?;
        }
        ParkedCommand::Show { given, id, json } => {
            let (client, relay) = connect(given).await?;
            let shown = people::show(&client, &relay, id).await?;
            print_result(json, &shown, || text(&shown))?;
        }
        ParkedCommand::Retry { given, ids, .. } => {
            let asked = request(given, Request::Retry, &ids, None).await?;
            println!("{asked} to be published; see `outbox-relay parked list`");
        }
        ParkedCommand::Discard { given, id, reason } => {
            let asked = request(given, Request::Discard, &[id], Some(&reason)).await?;
            println!("{asked} to be discarded; see `outbox-relay parked list`");
        }
    }
    Ok(exit::DONE)
}

async fn connect(given: Given) -> Result<(tokio_postgres::Client, String), Fault> {
    let options = given.options()?;
    let relay = options.outbox()?.name;
    Ok((options.database()?.connect().await?, relay))
}

async fn request(
    given: Given,
    wish: Request,
    ids: &[i64],
    reason: Option<&str>,
) -> Result<String, Fault> {
    let (mut client, relay) = connect(given).await?;
    let asked = people::request(&mut client, &relay, wish, ids, reason).await?;
    Ok(match asked.len() {
        1 => "relay is asked for 1 transaction".into(),
        count => format!("relay is asked for {count} transactions"),
    })
}

fn table(found: &[Parked]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "id", "state", "tx-id", "events", "bytes", "tries", "since", "why",
    ]);
    for parked in found {
        let state = match &parked.requested {
            Some(requested) => format!("{}, {requested} asked", parked.state),
            None => parked.state.clone(),
        };
        table.add_row([
            parked.id.to_string(),
            state,
            parked.tx_id.clone(),
            parked.events.to_string(),
            parked.bytes.to_string(),
            parked.attempts.to_string(),
            parked.first_at.clone(),
            parked
                .fault
                .clone()
                .unwrap_or_else(|| "shares a key with one before it".into()),
        ]);
    }
    table
}

fn text(shown: &Shown) -> String {
    let mut events = Table::new();
    events.load_preset(presets::UTF8_FULL_CONDENSED);
    events.set_header([
        "index",
        "id",
        "topic",
        "key",
        "type",
        "payload bytes",
        "occurred",
    ]);
    for event in &shown.first_events {
        events.add_row([
            event.index.to_string(),
            event.id.to_string(),
            event.topic.clone(),
            event.key.clone().unwrap_or_default(),
            event.event_type.clone().unwrap_or_default(),
            event
                .payload_bytes
                .map_or_else(String::new, |bytes| bytes.to_string()),
            event.occurred_at.clone(),
        ]);
    }
    let mut history = Table::new();
    history.load_preset(presets::UTF8_FULL_CONDENSED);
    history.set_header(["at", "who", "action", "reason"]);
    for done in &shown.history {
        let reason = done.reason.clone().unwrap_or_default();
        history.add_row([&done.at, &done.who, &done.action, &reason]);
    }
    format!(
        "{}\n{events}\n{history}",
        table(std::slice::from_ref(&shown.parked))
    )
}
