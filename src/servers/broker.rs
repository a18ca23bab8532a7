//! Kafka nodes from pinned jars: fetch, format, run. Each is a broker and a voter among the controllers.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::child::Child;
use super::fetch::{self, fetch_error};
use super::java::{MAJOR_MIN, java};
use super::kafka::{Strict, settings};
use super::reaper::{Reaper, Role};
use super::{Progress, Servers, ServersError, Sources, io, log_tail, open_to_others};

const SERVER: &str = "Kafka";
const MANIFEST: &str = include_str!("kafka.sha256");

/// The version of the pinned jars and of the default image.
pub const VERSION: &str = "4.3.1";

/// What the broker's log says last when it starts. Its port accepts connections earlier.
const STARTED: &str = "Kafka Server started";
/// A cold start on two busy cores, with room.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

const LOGGING: &str = r#"<Configuration status="ERROR">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d %p %m (%c{1})%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="out"/></Root>
    <Logger name="org.apache.kafka.common.config.AbstractConfig" level="WARN"/>
  </Loggers>
</Configuration>
"#;

/// What a node that is alone in its cluster is run with.
const ALONE: &[&str] = &["-Xmx512m"];
/// One of several shares the machine with the others, and is started anew again and again: the second compiler would not
/// pay off. So a start takes 4.6 s of processor time in place of 8.1 s (measured).
const ONE_OF_SEVERAL: &[&str] = &["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];

/// A formatted data folder with the node that runs on it.
pub(super) struct Broker {
    java: PathBuf,
    jars: OsString,
    options: &'static [&'static str],
    folder: PathBuf,
    log: PathBuf,
    starts: u32,
    child: Option<Child>,
    reaper: Arc<Reaper>,
}

impl Broker {
    /// Fetches the jars if need be, formats new data folders, and starts a cluster with a node on each of `ports`, which
    /// speak with each other on `controllers`.
    pub(super) async fn create(
        servers: &Servers,
        ports: &[u16],
        controllers: &[u16],
        strict: Option<Strict>,
    ) -> Result<Vec<Self>, ServersError> {
        let folder_of = |_| servers.server_folder("kafka");
        let folders: Vec<PathBuf> = ports.iter().map(folder_of).collect::<Result<_, _>>()?;
        let (sources, progress) = (servers.sources.clone(), servers.progress.clone());
        let (data_parents, ports) = (folders.clone(), ports.to_vec());
        let controllers = controllers.to_vec();
        let options = if ports.len() > 1 {
            ONE_OF_SEVERAL
        } else {
            ALONE
        };
        let prepare = move || {
            let java = java().ok_or_else(|| no_java(ports.len()))?.program;
            let jars = jars(&sources, &progress)?;
            progress.say(&format!("starting Kafka {VERSION}"));
            let cluster = cluster_id();
            for (index, folder) in data_parents.iter().enumerate() {
                configure(folder, index, &ports, &controllers, strict.as_ref())?;
                format(&java, &jars, folder, &cluster, strict.as_ref())?;
            }
            Ok((java, jars))
        };
        let (java, jars) = tokio::task::spawn_blocking(prepare)
            .await
            .unwrap_or_else(|error| Err(fetch_error("Kafka's jars", error)))?;
        let formatted = |folder: PathBuf| Self {
            java: java.clone(),
            jars: jars.clone(),
            options,
            log: folder.join("log"),
            folder,
            starts: 0,
            child: None,
            reaper: Arc::clone(&servers.reaper),
        };
        let mut nodes: Vec<Self> = folders.into_iter().map(formatted).collect();
        // Together: a node is ready only when most of them are there.
        try_join_all(nodes.iter_mut().map(Self::start)).await?;
        Ok(nodes)
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) async fn start(&mut self) -> Result<(), ServersError> {
        if self.running().is_ok() {
            let state = "running already";
            return Err(ServersError::State {
                server: SERVER,
                state,
            });
        }
        self.starts += 1;
        // A file for each start, so that the line that says "started" is this start's.
        self.log = self.folder.join(format!("log.{}", self.starts));
        let log = File::create(&self.log).map_err(io(format!("create {}", self.log.display())))?;
        let copy = log.try_clone().map_err(io("duplicate a log file"))?;
        let logging = self.folder.join("log4j2.xml");
        let mut command = jvm(&self.java, &self.jars, &self.folder);
        command
            .args(self.options)
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
            .args(["kafka.Kafka", "server.properties"])
            .stdout(log)
            .stderr(copy);
        self.child = Some(Child::start(&mut command, Role::Other, &self.reaper)?);
        self.wait_until_ready().await
    }

    pub(super) async fn kill9(&mut self) -> Result<(), ServersError> {
        self.running()?.signal(Signal::SIGKILL)?;
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if child.wait(STOP_TIMEOUT).await {
            return Ok(());
        }
        Err(ServersError::State {
            server: SERVER,
            state: "still running long after it was killed",
        })
    }

    /// It ends its transactions and its session with the controller first. One that hangs is killed.
    pub(super) async fn stop(&mut self) -> Result<(), ServersError> {
        self.running()?.signal(Signal::SIGTERM)?;
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if child.wait(STOP_TIMEOUT).await {
            return Ok(());
        }
        self.kill9().await
    }

    pub(super) fn sigstop(&self) -> Result<(), ServersError> {
        self.running()?.signal(Signal::SIGSTOP)
    }

    pub(super) fn sigcont(&self) -> Result<(), ServersError> {
        self.running()?.signal(Signal::SIGCONT)
    }

    fn running(&self) -> Result<&Child, ServersError> {
        let child = self.child.as_ref().filter(|child| child.ended().is_none());
        child.ok_or(ServersError::State {
            server: SERVER,
            state: "not running",
        })
    }

    async fn wait_until_ready(&self) -> Result<(), ServersError> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let log = std::fs::read(&self.log).unwrap_or_default();
            if String::from_utf8_lossy(&log).contains(STARTED) {
                return Ok(());
            }
            let reason = match child.ended() {
                Some(how) => how,
                None if Instant::now() > deadline => {
                    format!("it was not ready within {} s", READY_TIMEOUT.as_secs())
                }
                None => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            };
            return Err(ServersError::Start {
                server: SERVER,
                reason,
                log_tail: log_tail(&self.log),
            });
        }
    }
}

fn no_java(nodes: usize) -> ServersError {
    let java = format!("Java {MAJOR_MIN} or newer (in JAVA_HOME or the PATH)");
    ServersError::Missing(match nodes {
        1 => format!("Kafka needs {java} or a running Docker daemon: install one of them"),
        _ => format!("a cluster of {nodes} Kafka nodes needs {java}"),
    })
}

/// The class path, after fetching the jars that are not in the cache.
fn jars(sources: &Sources, progress: &Progress) -> Result<OsString, ServersError> {
    let artifacts = fetch::parse_manifest(MANIFEST);
    let folder = fetch::cache_folder()?.join(format!("kafka-{VERSION}"));
    std::fs::create_dir_all(&folder).map_err(io(format!("create {}", folder.display())))?;
    open_to_others(&folder)?;
    let missing = fetch::missing(&artifacts, &folder);
    if !missing.is_empty() {
        progress.say(&format!("fetching Kafka {VERSION} (44 MB, once)"));
        fetch::fetch(&missing, &folder, sources.maven_base_url.as_deref())?;
    }
    let paths = artifacts
        .iter()
        .map(|artifact| folder.join(artifact.file_name()));
    std::env::join_paths(paths).map_err(|error| fetch_error("Kafka's jars", error))
}

fn jvm(java: &Path, jars: &OsString, folder: &Path) -> Command {
    let mut command = Command::new(java);
    command.current_dir(folder).arg("-cp").arg(jars);
    command
}

/// Writes what the node at `index` reads. All ports of the cluster are known before the first node starts.
fn configure(
    folder: &Path,
    index: usize,
    ports: &[u16],
    controllers: &[u16],
    strict: Option<&Strict>,
) -> Result<(), ServersError> {
    let (port, controller) = (ports[index], controllers[index]);
    let voters: Vec<String> = (1..)
        .zip(controllers)
        .map(|(node, port)| format!("{node}@127.0.0.1:{port}"))
        .collect();
    let places = [
        (
            "listeners",
            format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
        ),
        (
            "advertised.listeners",
            format!("PLAINTEXT://127.0.0.1:{port}"),
        ),
        ("controller.quorum.voters", voters.join(",")),
        ("log.dirs", folder.join("data").display().to_string()),
    ];
    let key = folder.join("broker.pem");
    let strict_ones = strict.map(|it| it.settings(port, controller, &key));
    // Of two of one name the last counts.
    let properties: String = settings(index + 1, ports.len())
        .into_iter()
        .chain(places)
        .chain(strict_ones.into_iter().flatten())
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    let key = strict.map_or("", |it| &it.login.key_and_certificate);
    for (name, text) in [
        ("server.properties", properties.as_str()),
        ("log4j2.xml", LOGGING),
        ("broker.pem", key),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(io(format!("write {}", path.display())))?;
    }
    Ok(())
}

fn format(
    java: &Path,
    jars: &OsString,
    folder: &Path,
    cluster: &str,
    strict: Option<&Strict>,
) -> Result<(), ServersError> {
    let user = strict.map(|it| ["--add-scram".to_owned(), it.format_argument()]);
    let output = jvm(java, jars, folder)
        // It runs for a second: the second compiler would not pay off.
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .args(["kafka.tools.StorageTool", "format", "-t", cluster])
        .args(["-c", "server.properties"])
        .args(user.into_iter().flatten())
        .stdin(Stdio::null())
        .output()
        .map_err(io(format!("run {}", java.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(ServersError::Start {
        server: SERVER,
        reason: format!("formatting its folder ended with {}", output.status),
        log_tail: String::from_utf8_lossy(&printed).into_owned(),
    })
}

/// A random cluster id: the 16 bytes of a UUID as 22 digits of URL-safe base 64.
fn cluster_id() -> String {
    // Without its two highest bits: an id that starts with '-' would be read as a flag.
    let id = uuid::Uuid::new_v4().as_u128() >> 2;
    base64(id)
}

fn base64(id: u128) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // 128 bits are 21 digits of 6 bits, and 2 bits that go to the top of the last digit.
    let digit = |index: u32| {
        let bits = if index < 21 {
            id >> (122 - 6 * index)
        } else {
            id << 4
        };
        char::from(DIGITS[(bits & 63) as usize])
    };
    (0..22).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn cluster_ids_are_url_safe_base64() {
        assert_eq!(base64(0), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(base64(u128::MAX), "_____________________w");
        assert_eq!(base64(1), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(base64(1 << 127), "gAAAAAAAAAAAAAAAAAAAAA");
    }
}
