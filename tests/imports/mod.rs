//! Imports point one way, see `ARCHITECTURE.md`. Reads the sources; what stands below `#[cfg(test)]` is free.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each module may import of ours. A new module is added here, with a thought for the direction.
const OURS: [(&str, &[&str]); 34] = [
    (
        "cli",
        &[
            "adopt",
            "capture",
            "config",
            "consume",
            "demo",
            "doctor",
            "fault",
            "init",
            "moves",
            "park",
            "produce",
            "replay",
            "ring",
            "roles",
            "signals",
            "status",
            "supervisor",
            "verify",
        ],
    ),
    ("config", &["capture", "database", "fault", "park", "sink"]),
    (
        "supervisor",
        &[
            "admin",
            "adopt",
            "capture",
            "config",
            "database",
            "fault",
            "lease",
            "metrics",
            "park",
            "relay",
            "retention",
            "sampler",
            "signals",
            "sink",
        ],
    ),
    // Beside the loop, which does not know it.
    (
        "retention",
        &["capture", "database", "fault", "lease", "position"],
    ),
    (
        "moves",
        &[
            "capture",
            "config",
            "crash_point",
            "event",
            "fault",
            "lease",
            "park",
            "position",
            "relay",
            "sink",
        ],
    ),
    // The loop knows the seams, never a broker, never SQL.
    (
        "relay",
        &[
            "capture",
            "crash_point",
            "event",
            "fault",
            "lease",
            "metrics",
            "park",
            "position",
            "sink",
        ],
    ),
    (
        "park",
        &["crash_point", "database", "event", "fault", "position"],
    ),
    ("adopt", &["capture", "event", "fault", "position", "sink"]),
    // Capture and sink do not know each other, and neither knows the lease.
    ("capture", &["database", "event", "fault", "position"]),
    (
        "sink",
        &["crash_point", "event", "fault", "metrics", "position"],
    ),
    ("metrics", &["event", "fault", "position"]),
    // What looks on: the relay knows of neither.
    (
        "admin",
        &["fault", "metrics", "position", "sampler", "sink"],
    ),
    ("sampler", &["capture", "database", "fault", "position"]),
    (
        "status",
        &[
            "capture", "database", "fault", "outcome", "sampler", "signals",
        ],
    ),
    ("lease", &["database", "fault"]),
    ("init", &["database", "fault"]),
    ("ring", &["database", "fault"]),
    ("roles", &["capture", "database", "fault"]),
    ("database", &["fault", "position"]),
    ("event", &["fault", "position"]),
    ("fault", &["position"]),
    ("position", &[]),
    ("crash_point", &[]),
    ("ledger", &["position"]),
    ("outcome", &["ledger"]),
    ("scan", &["fault", "ledger", "sink"]),
    // Reads rows as the table capture does, and publishes by the sink's shell: there is no position to keep.
    (
        "replay",
        &[
            "capture", "config", "database", "event", "fault", "park", "position", "sink",
        ],
    ),
    (
        "verify",
        &[
            "capture", "config", "database", "fault", "ledger", "outcome", "park", "position",
            "scan", "sink",
        ],
    ),
    (
        "doctor",
        &[
            "capture", "config", "database", "fault", "init", "park", "position", "sink",
        ],
    ),
    (
        "demo",
        &[
            "database", "fault", "init", "ledger", "outcome", "scan", "servers", "signals",
        ],
    ),
    ("consume", &["fault", "scan", "sink"]),
    ("produce", &["database", "fault"]),
    ("servers", &[]),
    ("signals", &["fault"]),
];

/// Crates that only some may name: files, or folders.
const OTHERS: [(&str, &[&str]); 8] = [
    ("pgwire_replication", &["capture/wal/wire.rs"]),
    ("postgres_protocol", &["capture/wal/wire.rs"]),
    (
        "rdkafka",
        &[
            "sink/kafka/",
            "consume.rs",
            "scan.rs",
            "verify/",
            "demo/",
            "doctor/kafka.rs",
        ],
    ),
    (
        "tokio_postgres",
        &[
            "capture/",
            "database.rs",
            "demo/",
            "doctor/postgres.rs",
            "fault.rs",
            "park/unsettled.rs",
            "init.rs",
            "lease.rs",
            "moves.rs",
            "cli/parked.rs",
            "park/people.rs",
            "park/postgres.rs",
            "position/",
            "produce.rs",
            "replay/",
            "retention/store.rs",
            "sampler/",
            "supervisor.rs",
            "verify/",
        ],
    ),
    ("axum", &["admin/"]),
    ("hyper", &["admin/http.rs"]),
    ("prometheus_client", &["admin/export.rs", "metrics/"]),
    (
        "deadpool_postgres",
        &["capture/", "database.rs", "fault.rs", "park/postgres.rs"],
    ),
];

/// Files without IO and without a clock.
const PURE: [&str; 31] = [
    "admin/health.rs",
    "admin/history.rs",
    "capture/columns.rs",
    "capture/route.rs",
    "capture/wal/layout.rs",
    "capture/wal/pgoutput.rs",
    "capture/wal/published.rs",
    "capture/wal/slot.rs",
    "capture/window.rs",
    "doctor/checks/brokers.rs",
    "doctor/checks/position.rs",
    "doctor/checks/server.rs",
    "doctor/checks/session.rs",
    "doctor/checks/table.rs",
    "doctor/checks/topics.rs",
    "doctor/checks/wal.rs",
    "doctor/checks/writers.rs",
    "doctor/facts.rs",
    "doctor/report.rs",
    "fault.rs",
    "ledger/check.rs",
    "outcome.rs",
    "park/unsettled.rs",
    "position/mod.rs",
    "position/xids.rs",
    "retention/decide.rs",
    "sampler/rate.rs",
    "sink/kafka/machine.rs",
    "sink/kafka/record.rs",
    "status/spark.rs",
    "metrics/window.rs",
];
const IMPURE: [&str; 6] = [
    "tokio::",
    "rdkafka::",
    "std::fs",
    "std::net",
    "std::time::Instant",
    "SystemTime",
];

/// A file under `src`, by its path there, without comments and tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The folder or file right under `src`.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.trim_end_matches(".rs")
    }

    /// Modules of ours that are named after `crate::`, alone or in braces.
    fn imports(&self) -> BTreeSet<&str> {
        let after = self.code.split("crate::").skip(1);
        after.flat_map(named).collect()
    }

    fn names_crate(&self, name: &str) -> bool {
        self.code.contains(&format!("{name}::"))
    }
}

/// `sink::kafka::X` names `sink`; `{init, sink::{A, B}}` names `init` and `sink`.
fn named(rest: &str) -> Vec<&str> {
    let Some(inside) = rest.strip_prefix('{') else {
        return vec![identifier(rest)];
    };
    let (mut depth, mut names) = (0, vec![identifier(inside)]);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(identifier(&inside[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let code = code
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"));
                sources.push(Source {
                    path: path.strip_prefix(&root).unwrap().display().to_string(),
                    code: code.collect::<Vec<_>>().join("\n"),
                });
            }
        }
    }
    sources
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let sources = sources();
    assert!(sources.len() > 30, "the sources are read");
    for source in &sources {
        let module = source.module();
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some((_, allowed)) = OURS.iter().find(|(name, _)| *name == module) else {
            panic!("src/{} is not in the table of this test", source.path);
        };
        for import in source.imports() {
            assert!(
                import == module || allowed.contains(&import),
                "src/{} imports {import}; {module} may import {allowed:?}",
                source.path
            );
        }
    }
    let relay = sources.iter().find(|source| source.path == "relay.rs");
    let relay = relay.expect("src/relay.rs");
    assert!(
        relay.imports().contains("sink"),
        "imports are found: {:?}",
        relay.imports()
    );
    assert!(
        !relay.code.contains("kafka") && !relay.code.contains("memory::"),
        "the loop knows the seams, not what is behind them"
    );
}

#[test]
fn clients_of_the_servers_are_named_only_where_they_belong() {
    for source in sources() {
        for (name, places) in OTHERS {
            let allowed = places.iter().any(|place| source.path.starts_with(place));
            assert!(
                allowed || !source.names_crate(name),
                "src/{} names {name}",
                source.path
            );
        }
    }
}

#[test]
fn decisions_do_no_io() {
    let sources = sources();
    for path in PURE {
        let source = sources.iter().find(|source| source.path == path);
        let source = source.unwrap_or_else(|| panic!("src/{path} is gone; correct this test"));
        for word in IMPURE {
            assert!(!source.code.contains(word), "src/{path} uses {word}");
        }
    }
}

#[test]
fn imports_are_found_in_every_form() {
    assert_eq!(named("sink::kafka::X;"), ["sink"]);
    assert_eq!(
        named("{init, sink::{A, b::C}, fault::Fault};\nuse x::{y, z}"),
        ["init", "sink", "fault"]
    );
    assert_eq!(
        named("{\n    init,\n    supervisor,\n};"),
        ["init", "supervisor"]
    );
}
