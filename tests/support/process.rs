//! The relay as a process, to be stopped, continued and killed.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::capture::CaptureKind;
use outbox_relay::config::Options;
use tokio::process::{Child, Command};

use super::BUSY;
use super::servers::{TestDatabase, own, shared};

/// The relay's program: cargo names it to a test; other programs of ours have it beside them.
pub fn binary() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_outbox-relay") {
        Some(path) => path.into(),
        None => std::env::current_exe()
            .expect("the path of this program")
            .with_file_name("outbox-relay"),
    }
}

/// The target folder of the tests; a program that has none takes the system's.
fn log_folder() -> PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// How a relay is started.
#[derive(Clone)]
pub struct RelayOf {
    pub program: PathBuf,
    pub name: String,
    pub database_url: String,
    pub brokers: String,
    pub capture: CaptureKind,
    pub more: Vec<String>,
    /// Where it kills itself, see `outbox_relay::crash_point`.
    pub crash_at: Option<String>,
}

impl RelayOf {
    /// A relay named `name` between `database` and the shared Kafka.
    pub async fn new(name: &str, database: &TestDatabase) -> Self {
        Self {
            program: binary(),
            name: name.to_owned(),
            database_url: database.url.clone(),
            brokers: shared().await.kafka.brokers().to_owned(),
            capture: CaptureKind::Table,
            more: vec!["--create-topics".into(), "true".into()],
            crash_at: None,
        }
    }

    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.more
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The same for a relay inside the test.
    pub fn options(&self) -> Options {
        Options {
            name: Some(self.name.clone()),
            database_url: Some(self.database_url.clone()),
            kafka_brokers: Some(self.brokers.clone()),
            capture: Some(self.capture),
            create_topics: Some(true),
            ..Options::default()
        }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([
                "run",
                "--name",
                &self.name,
                "--database-url",
                &self.database_url,
                "--kafka-brokers",
                &self.brokers,
                "--capture",
                self.capture.name(),
            ])
            .args(&self.more)
            .envs(self.crash_at.iter().map(|at| ("OUTBOX_RELAY_CRASH_AT", at)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Another command with its settings.
    pub async fn ask(&self, words: &[&str]) -> Output {
        Command::new(&self.program)
            .args(words)
            .args(["--name", &self.name])
            .args(["--database-url", &self.database_url])
            .args(["--kafka-brokers", &self.brokers])
            .kill_on_drop(true)
            .output()
            .await
            .expect("the program")
    }

    /// Starts it; its log goes to a file, which stays under `target` if the test fails.
    pub async fn start(&self) -> RelayProcess {
        let log = tempfile::Builder::new()
            .prefix("relay-")
            .suffix(".log")
            .tempfile_in(log_folder())
            .expect("a log file");
        let (file, path) = log.keep().expect("a log file");
        self.spawn(file, path, true)
    }

    /// Starts it; its log is appended to this file, which stays.
    pub fn start_with_log(&self, log: &Path) -> RelayProcess {
        let file = OpenOptions::new().create(true).append(true).open(log);
        self.spawn(file.expect("a log file"), log.to_owned(), false)
    }

    fn spawn(&self, file: File, log: PathBuf, log_goes: bool) -> RelayProcess {
        let log_begin = file.metadata().map_or(0, |it| it.len());
        let child = self
            .command()
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .spawn()
            .expect("the relay");
        let pid = child.id().expect("a process id");
        own().adopt(pid);
        RelayProcess {
            child,
            pid,
            log,
            log_begin,
            log_goes,
        }
    }

    /// Runs it until everything that was committed before is published.
    pub async fn catch_up(&self) {
        let mut relay = self.clone().with(&["--until-caught-up"]).start().await;
        let status = relay.wait().await;
        assert!(
            status.success(),
            "catching up ended with {status}: {}",
            relay.log()
        );
    }
}

/// A running relay.
pub struct RelayProcess {
    child: Child,
    pid: u32,
    log: PathBuf,
    /// Length of the log before this process.
    log_begin: u64,
    log_goes: bool,
}

impl RelayProcess {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The most memory that it ever had, where the system tells it.
    pub fn peak_rss_kb(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// How it ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("a status")?;
        own().release(self.pid);
        Some(status)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said anything. Before that a signal ends it, as it does any program that is being loaded.
    pub async fn begins(&self) {
        while std::fs::metadata(&self.log).map_or(0, |it| it.len()) <= self.log_begin {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.pid).expect("a process id")),
            signal,
        )
        .expect("a signal");
    }

    /// kill -9, and gone.
    pub async fn kill9(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait().await;
    }

    /// SIGTERM; it must drain and end with 0.
    pub async fn terminate(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait().await;
        assert!(
            status.success(),
            "SIGTERM ended with {status}: {}",
            self.log()
        );
    }

    /// Waits for its own end.
    pub async fn ended(mut self) -> ExitStatus {
        self.wait().await
    }

    /// The same, when its log is still to be read.
    pub async fn wait(&mut self) -> ExitStatus {
        let status = tokio::time::timeout(Duration::from_secs(90 * BUSY), self.child.wait()).await;
        let status = status
            .unwrap_or_else(|_| panic!("the relay does not end: {}", self.log()))
            .expect("a status");
        own().release(self.pid);
        status
    }

    /// Waits until its log says this.
    pub async fn says(&self, text: &str) {
        let said = tokio::time::timeout(Duration::from_secs(60 * BUSY), async {
            while !self.log().contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(
            said.await.is_ok(),
            "the relay does not say {text:?}; it says {}",
            self.log()
        );
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        if self.log_goes && !std::thread::panicking() {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}
