//! Throw-away PostgreSQL and Kafka servers, for the `demo` command and for the integration tests.
//!
//! A server comes from the first of these that is possible:
//!
//! 1. an address that the caller gives ([`Sources::database_url`], [`Sources::kafka_brokers`]);
//! 2. a container, when a local Docker daemon answers;
//! 3. binaries from Maven Central, pinned by version and SHA-256 and kept in the user's cache folder.
//!
//! Whatever is started here ends with the process that started it, however that one ends: a small
//! process of its own, the reaper, waits for the end of a pipe and then cleans up.

mod broker;
mod child;
mod cluster;
mod docker;
mod fetch;
mod java;
mod kafka;
mod port;
mod postgres;
mod reaper;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use broker::VERSION as KAFKA_VERSION;
pub use docker::docker_answers;
pub use java::{Java, java};
pub use kafka::{Kafka, KafkaLogin};
pub use postgres::{Postgres, PostgresOptions, PostgresVersion};

use docker::Container;
use reaper::Reaper;

/// Why a throw-away server could not be had, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// Neither Docker nor what the pinned binaries need is on this machine.
    #[error("{0}")]
    Missing(String),
    /// A file, folder or process of this machine failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried, as in "cannot …".
        doing: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A pinned file could not be fetched, unpacked or verified.
    #[error("cannot fetch {what}: {reason}")]
    Fetch {
        /// The address or the name of the file.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// A server was started and ended, or did not become ready in time.
    #[error("{server} did not start: {reason}; the end of its log:\n{log_tail}")]
    Start {
        /// "PostgreSQL" or "Kafka".
        server: &'static str,
        /// How it failed.
        reason: String,
        /// The last lines of the server's log.
        log_tail: String,
    },
    /// The Docker daemon refused.
    #[error("Docker cannot {doing}: {reason}")]
    Docker {
        /// What was tried, as in "Docker cannot …".
        doing: String,
        /// The daemon's answer.
        reason: String,
    },
    /// The server was given by its address: it is not ours to stop or to restart.
    #[error("{server} was given by its address, so it cannot be stopped or started from here")]
    Given {
        /// "PostgreSQL" or "Kafka".
        server: &'static str,
    },
    /// The server is not in the state that the call needs.
    #[error("{server} is {state}")]
    State {
        /// "PostgreSQL" or "Kafka".
        server: &'static str,
        /// "not running" or "running already".
        state: &'static str,
    },
}

/// Turns an I/O error into one that says what was tried.
fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> ServersError {
    let doing = doing.into();
    move |source| ServersError::Io { doing, source }
}

/// Where a server came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller gave its address; version and settings are whatever it has.
    Given,
    /// A container of the local Docker daemon.
    Container,
    /// Processes of this machine, from the pinned binaries.
    Binaries,
}

/// What the caller or the environment says about where servers come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A database to use instead of starting one (`OUTBOX_RELAY_TEST_DATABASE_URL`).
    pub database_url: Option<String>,
    /// Brokers to use instead of starting one (`OUTBOX_RELAY_TEST_KAFKA_BROKERS`).
    pub kafka_brokers: Option<String>,
    /// Image instead of `postgres:<version>` (`OUTBOX_RELAY_TEST_POSTGRES_IMAGE`).
    pub postgres_image: Option<String>,
    /// Image instead of `apache/kafka:4.3.1` (`OUTBOX_RELAY_TEST_KAFKA_IMAGE`).
    pub kafka_image: Option<String>,
    /// Base address of a Maven mirror (`OUTBOX_RELAY_MAVEN_BASE_URL`).
    pub maven_base_url: Option<String>,
}

impl Sources {
    /// Reads the variables named at the fields; an empty variable counts as absent.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            database_url: variable("OUTBOX_RELAY_TEST_DATABASE_URL"),
            kafka_brokers: variable("OUTBOX_RELAY_TEST_KAFKA_BROKERS"),
            postgres_image: variable("OUTBOX_RELAY_TEST_POSTGRES_IMAGE"),
            kafka_image: variable("OUTBOX_RELAY_TEST_KAFKA_IMAGE"),
            maven_base_url: variable("OUTBOX_RELAY_MAVEN_BASE_URL"),
        }
    }
}

type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// Tells a person what is going on, one sentence at a time.
#[derive(Clone)]
struct Progress(Option<Listener>);

impl Progress {
    fn say(&self, sentence: &str) {
        tracing::debug!("{sentence}");
        if let Some(listener) = &self.0 {
            listener(sentence);
        }
    }
}

/// Owns every server that was started through it, and their folder.
///
/// [`shutdown`](Self::shutdown) ends all and waits for it. Dropping it, or any end of this
/// process, has the same result a moment later, without waiting.
pub struct Servers {
    sources: Sources,
    progress: Progress,
    reaper: Arc<Reaper>,
    folder: PathBuf,
    started: AtomicU32,
    containers: Mutex<Vec<Arc<Container>>>,
    notes: Mutex<Vec<String>>,
}

impl Servers {
    /// Makes the folder and starts the reaper; no server yet. The sources are the environment's.
    ///
    /// # Errors
    /// When the folder or the reaper cannot be made.
    pub fn new() -> Result<Self, ServersError> {
        Self::with(Sources::from_env(), None::<fn(&str)>)
    }

    /// As [`new`](Self::new), with the caller's sources and a listener for progress sentences such
    /// as "fetching Kafka 4.3.1 (44 MB, once)". The listener is called from several threads.
    ///
    /// # Errors
    /// When the folder or the reaper cannot be made.
    pub fn with(
        sources: Sources,
        progress: Option<impl Fn(&str) + Send + Sync + 'static>,
    ) -> Result<Self, ServersError> {
        let folder = make_folder()?;
        let reaper = Arc::new(Reaper::start(&folder)?);
        Ok(Self {
            sources,
            progress: Progress(progress.map(|listener| Arc::new(listener) as _)),
            reaper,
            folder,
            started: AtomicU32::new(0),
            containers: Mutex::default(),
            notes: Mutex::default(),
        })
    }

    /// Brings up a PostgreSQL server (a new one at each call, unless its address is given) and
    /// waits until it accepts connections. A given server ignores the options.
    ///
    /// # Errors
    /// When no source of servers is possible here, or the server does not start; the error then
    /// has the end of its log.
    pub async fn postgres(&self, options: PostgresOptions) -> Result<Postgres, ServersError> {
        let postgres = postgres::bring_up(self, &options).await?;
        self.note(format!("PostgreSQL at {}", postgres.url()));
        Ok(postgres)
    }

    /// Brings up a PostgreSQL server and a hot standby that streams from it, asynchronously. From binaries, wherever other
    /// servers come from.
    ///
    /// # Errors
    /// When the binaries cannot be had, or a server does not start; the error then has the end of its log.
    pub async fn postgres_with_standby(
        &self,
        options: PostgresOptions,
    ) -> Result<[Postgres; 2], ServersError> {
        let pair = postgres::bring_up_pair(self, &options).await?;
        for server in &pair {
            self.note(format!("PostgreSQL at {}", server.url()));
        }
        Ok(pair)
    }

    /// Brings up a Kafka broker (a new one at each call, unless its address is given) and waits
    /// until it answers. It creates no topics by itself.
    ///
    /// # Errors
    /// When no source of servers is possible here, or the broker does not start; the error then
    /// has the end of its log.
    pub async fn kafka(&self) -> Result<Kafka, ServersError> {
        self.kafka_of(1).await
    }

    /// The same with three nodes, each a broker and a voter among the controllers, and three copies of
    /// each partition, of which two must be in sync. They come from the binaries even where a Docker
    /// daemon answers, so this needs Java, unless addresses are given.
    ///
    /// # Errors
    /// Those of [`kafka`](Self::kafka).
    pub async fn kafka_cluster(&self) -> Result<Kafka, ServersError> {
        self.kafka_of(3).await
    }

    /// One broker that also listens for those who must show a password, encrypted, and who may do only what they were allowed
    /// to. It comes from the binaries, so this needs Java.
    ///
    /// # Errors
    /// Those of [`kafka`](Self::kafka).
    pub async fn strict_kafka(&self, login: KafkaLogin) -> Result<Kafka, ServersError> {
        let kafka = kafka::bring_up_strict(self, &login).await?;
        self.note(format!("Kafka at {}", kafka.brokers()));
        Ok(kafka)
    }

    async fn kafka_of(&self, nodes: usize) -> Result<Kafka, ServersError> {
        let kafka = kafka::bring_up(self, nodes).await?;
        self.note(format!("Kafka at {}", kafka.brokers()));
        Ok(kafka)
    }

    /// The folder of all servers' data and logs; it goes away with them.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has another child process (the relay, say) killed with the servers, however this process
    /// ends. Call [`release`](Self::release) as soon as the child has been waited for.
    pub fn adopt(&self, pid: u32) {
        self.reaper.kill_at_end(pid);
    }

    /// The adopted process has ended: its id may belong to someone else from now on.
    pub fn release(&self, pid: u32) {
        self.reaper.gone(pid);
    }

    /// Has the folder stay when the servers end, as evidence of what went wrong.
    pub fn leave_folder(&self) {
        self.reaper.leave_folder();
    }

    /// Leaves everything running and the folder in place; returns what a person needs to reach the
    /// servers and to end them later, one item per line. Adopted processes stay, too.
    #[must_use]
    pub fn keep(self) -> String {
        let mut lines = std::mem::take(&mut *lock(&self.notes));
        lines.push(format!("data and logs in {}", self.folder.display()));
        let mut commands = Vec::new();
        let pids = self.reaper.keep();
        if !pids.postmasters.is_empty() {
            commands.push(format!("kill -QUIT {}", pids.postmasters.join(" ")));
        }
        if !pids.others.is_empty() {
            commands.push(format!("kill -KILL {}", pids.others.join(" ")));
        }
        for container in lock(&self.containers).drain(..) {
            commands.push(format!("docker rm -fv {}", container.id()));
            container.keep();
        }
        commands.push(format!("rm -rf {}", self.folder.display()));
        lines.push(format!("to end them: {}", commands.join("; ")));
        lines.join("\n")
    }

    /// Ends all servers and adopted processes, removes the folder, and returns when it is done.
    /// Data is not written out in an orderly way, since it goes away as well.
    pub async fn shutdown(self) {
        let containers = std::mem::take(&mut *lock(&self.containers));
        for container in containers {
            container.remove().await;
        }
        let reaper = Arc::clone(&self.reaper);
        // A failed join means that the runtime is going down, and then the reaper works alone.
        let _ = tokio::task::spawn_blocking(move || reaper.finish()).await;
    }

    /// A new folder for one server, readable by the account that the server runs as.
    fn server_folder(&self, prefix: &str) -> Result<PathBuf, ServersError> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(format!("{prefix}{number}"));
        std::fs::create_dir(&folder).map_err(io(format!("create {}", folder.display())))?;
        open_to_others(&folder)?;
        Ok(folder)
    }

    fn own(&self, container: &Arc<Container>) {
        self.reaper.remove_container_at_end(container.id());
        lock(&self.containers).push(Arc::clone(container));
    }

    fn note(&self, line: String) {
        lock(&self.notes).push(line);
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.reaper.begin();
    }
}

/// Locks; a panic of another holder does not matter, the content is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longest base folder that leaves room for `/obr-XXXXXX/pg10/.s.PGSQL.32000` within the 103
/// bytes that macOS allows for a socket path.
const BASE_FOLDER_BYTES_MAX: usize = 65;

fn make_folder() -> Result<PathBuf, ServersError> {
    let mut base = std::env::temp_dir();
    // Root's own temporary folder may be closed to the account that PostgreSQL runs as.
    if is_root() || base.as_os_str().len() > BASE_FOLDER_BYTES_MAX {
        base = PathBuf::from("/tmp");
    }
    let folder = tempfile::Builder::new()
        .prefix("obr-")
        .tempdir_in(&base)
        .map_err(io(format!("create a folder in {}", base.display())))?;
    open_to_others(folder.path())?;
    // From here on the reaper removes it, since our own destructors may never run.
    Ok(folder.keep())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Lets other accounts enter and read, whatever the umask of this process is.
fn open_to_others(folder: &Path) -> Result<(), ServersError> {
    std::fs::set_permissions(folder, Permissions::from_mode(0o755))
        .map_err(io(format!("set the mode of {}", folder.display())))
}

/// The last lines of a log, for an error message.
fn log_tail(log: &Path) -> String {
    const LINES: usize = 20;
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
