//! `produce` and `consume`, and a relay between them.

use std::collections::BTreeMap;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::scan::Scan;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::process::{RelayOf, binary};
use crate::support::servers::TestDatabase;
use crate::support::{unique, until, within};

fn consume(relay: &RelayOf, topic: &str, group: &str, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["consume", "--kafka-brokers", &relay.brokers])
        .args(["--topic", topic, "--group", group])
        .args(more)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn produce(relay: &RelayOf, topic: &str, more: &[&str]) -> String {
    let output = Command::new(binary())
        .args(["produce", "--database-url", &relay.database_url])
        .args(["--topic", topic, "--delay-ms", "10"])
        .args(more)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).unwrap();
    text.lines().map(line).collect()
}

#[test]
fn printers_print_what_producers_produce_whole_and_once() {
    within(180, async {
        let database = TestDatabase::new().await;
        // The relay makes no topic: consume does.
        let mut relay = RelayOf::new(&unique("relay"), &database).await;
        relay.more.clear();
        let (topic, group) = (unique("messages"), unique("group"));
        let sixty = ["--messages-max", "60", "--json"];
        let printers = consume(&relay, &topic, &group, &sixty).spawn().unwrap();
        let (brokers, wanted) = (relay.brokers.clone(), topic.clone());
        until("the topic has three partitions", 30, async || {
            let (brokers, wanted) = (brokers.clone(), wanted.clone());
            let extents = move || Scan::of(&brokers)?.extents(&wanted);
            let extents = tokio::task::spawn_blocking(extents).await.unwrap();
            extents.is_ok_and(|extents| extents.len() == 3)
        })
        .await;
        let process = relay.start().await;
        let produced = produce(&relay, &topic, &["--transactions-max", "20", "--json"]).await;
        let mut committed: Vec<String> = lines(&produced)
            .iter()
            .map(|it| {
                assert_eq!(it["events"], 3);
                it["xid"].as_str().unwrap().to_owned()
            })
            .collect();
        let output = printers.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = lines(std::str::from_utf8(&output.stdout).unwrap());
        let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for it in &printed {
            let header = |name: &str| it["headers"][name].as_str().unwrap();
            let (_, xid) = header("tx-id").rsplit_once('-').unwrap();
            let index = header("tx-index").parse().unwrap();
            seen.entry(xid.to_owned()).or_default().push(index);
        }
        committed.sort();
        let mut transactions: Vec<_> = seen.keys().cloned().collect();
        transactions.sort();
        assert_eq!(transactions, committed);
        assert!(
            seen.values().all(|indexes| indexes == &[0, 1, 2]),
            "{seen:?}"
        );

        // The group goes on where it was; nobody is told a message twice.
        produce(&relay, &topic, &["--transactions-max", "1"]).await;
        let mut printers = consume(&relay, &topic, &group, &[]).spawn().unwrap();
        let mut lines = BufReader::new(printers.stdout.take().unwrap()).lines();
        for place in ["  1/3 of ", "  2/3 of ", "  3/3 of "] {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(line.contains(place) && line.contains("Produced"), "{line}");
        }
        let pid = Pid::from_raw(i32::try_from(printers.id().unwrap()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(printers.wait().await.unwrap().success());
        assert_eq!(lines.next_line().await.unwrap(), None);
        process.terminate().await;
    });
}

#[test]
fn what_can_not_be_is_said() {
    within(60, async {
        let database = TestDatabase::new().await;
        let relay = RelayOf::new(&unique("relay"), &database).await;
        let mut printers = consume(&relay, "a b", "group", &[]);
        let output = printers.stderr(Stdio::piped()).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("topic \"a b\" is not usable"), "{said}");
        let output = relay.ask(&["produce", "--table", "public.outbox"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("produce writes outbox.events"), "{said}");
    });
}
