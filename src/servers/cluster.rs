//! PostgreSQL from pinned binaries: unpack, `initdb`, run.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::child::{Child, signal_pid};
use super::fetch::{self, Artifact, fetch_error};
use super::postgres::{PostgresOptions, PostgresVersion, settings};
use super::reaper::{Reaper, Role};
use super::{Progress, Servers, ServersError, Sources, io, is_root, log_tail, open_to_others};

const SERVER: &str = "PostgreSQL";
const MANIFEST: &str = include_str!("postgres.sha256");

/// PostgreSQL refuses to run as root, so for root it runs as nobody.
const NOBODY: u32 = 65_534;

/// Recovery after a kill is part of it.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// It ends what hangs: a checkpoint takes its time on a busy disk.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);
/// Orphaned children end by themselves when they next wait for something; a busy one may not.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// A data folder with the server that runs on it.
pub(super) struct Cluster {
    programs: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    reaper: Arc<Reaper>,
}

impl Cluster {
    /// Fetches the binaries if need be, makes a new data folder, and starts the server on `port`.
    pub(super) async fn create(
        servers: &Servers,
        options: &PostgresOptions,
        port: u16,
    ) -> Result<Self, ServersError> {
        let folder = servers.server_folder("pg")?;
        let (sources, progress) = (servers.sources.clone(), servers.progress.clone());
        let options = options.clone();
        let data_parent = folder.clone();
        let prepare = move || {
            let programs = programs(options.version, &sources, &progress)?;
            progress.say("starting PostgreSQL");
            initialise(&programs, &data_parent)?;
            configure(&data_parent, port, &options)?;
            Ok(programs)
        };
        let programs = tokio::task::spawn_blocking(prepare)
            .await
            .unwrap_or_else(|error| Err(fetch_error("the PostgreSQL binaries", error)))?;
        let mut cluster = Self::stopped(servers, programs, folder);
        cluster.start().await?;
        Ok(cluster)
    }

    fn stopped(servers: &Servers, programs: PathBuf, folder: PathBuf) -> Self {
        Self {
            programs,
            log: folder.join("log"),
            folder,
            child: None,
            reaper: Arc::clone(&servers.reaper),
        }
    }

    /// Starts a standby on `port` that streams from the server on `primary_port`, whose data folder it begins with. The
    /// primary is stopped for the copy.
    pub(super) async fn standby(
        &mut self,
        servers: &Servers,
        primary_port: u16,
        port: u16,
    ) -> Result<Self, ServersError> {
        let folder = servers.server_folder("pg")?;
        self.stop_fast().await?;
        let (data, target) = (self.data(), folder.clone());
        tokio::task::spawn_blocking(move || copy(&data, &target))
            .await
            .unwrap_or_else(|error| Err(io("copy a data folder")(error.into())))?;
        self.start().await?;
        let standby = [
            (
                "primary_conninfo",
                format!("host=127.0.0.1 port={primary_port} user=postgres"),
            ),
            ("wal_retrieve_retry_interval", "100ms".to_owned()),
        ];
        let standby = standby.map(|(name, value)| (name.to_owned(), value));
        write_settings(&folder, places(&folder, port).into_iter().chain(standby))?;
        let signal = folder.join("data/standby.signal");
        File::create(&signal).map_err(io(format!("create {}", signal.display())))?;
        let mut cluster = Self::stopped(servers, self.programs.clone(), folder);
        cluster.start().await?;
        Ok(cluster)
    }

    pub(super) fn socket_dir(&self) -> &Path {
        &self.folder
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
        let mut command = program(&self.programs, "postgres", &self.folder);
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(io(format!("open {}", self.log.display())))?;
        let copy = log.try_clone().map_err(io("duplicate a log file"))?;
        command.arg("-D").arg(self.data()).stdout(log).stderr(copy);
        let child = Child::start(&mut command, Role::Postmaster, &self.reaper)?;
        self.child = Some(child);
        self.wait_until_ready().await
    }

    pub(super) async fn stop_fast(&mut self) -> Result<(), ServersError> {
        self.running()?.signal(Signal::SIGINT)?;
        self.wait_for_end().await
    }

    pub(super) async fn kill9(&mut self) -> Result<(), ServersError> {
        let postmaster = self.running()?;
        let orphans = children_of(postmaster.pid());
        postmaster.signal(Signal::SIGKILL)?;
        self.wait_for_end().await?;
        let deadline = Instant::now() + ORPHAN_TIMEOUT;
        // A new postmaster refuses to start while one of them holds the shared memory.
        while orphans.iter().any(|pid| is_alive(*pid)) {
            if Instant::now() > deadline {
                for pid in orphans.iter().filter(|pid| is_alive(**pid)) {
                    signal_pid(*pid, Signal::SIGKILL)?;
                }
                tokio::time::sleep(POLL * 5).await;
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub(super) fn sigstop(&self) -> Result<(), ServersError> {
        // The postmaster first, so that it has no new children meanwhile.
        self.signal_all(Signal::SIGSTOP)
    }

    pub(super) fn sigcont(&self) -> Result<(), ServersError> {
        self.signal_all(Signal::SIGCONT)
    }

    fn signal_all(&self, signal: Signal) -> Result<(), ServersError> {
        let postmaster = self.running()?;
        postmaster.signal(signal)?;
        children_of(postmaster.pid())
            .into_iter()
            .try_for_each(|pid| signal_pid(pid, signal))
    }

    fn running(&self) -> Result<&Child, ServersError> {
        let child = self.child.as_ref().filter(|child| child.ended().is_none());
        child.ok_or(ServersError::State {
            server: SERVER,
            state: "not running",
        })
    }

    async fn wait_for_end(&mut self) -> Result<(), ServersError> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if child.wait(STOP_TIMEOUT).await {
            return Ok(());
        }
        Err(ServersError::State {
            server: SERVER,
            state: "still running long after it was told to stop",
        })
    }

    async fn wait_until_ready(&self) -> Result<(), ServersError> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        let pid_file = self.data().join("postmaster.pid");
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
            if says_ready(&text, child.pid()) {
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

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

/// Line 1 of `postmaster.pid` has the process id, line 8 the state; a standby that may be asked is none the worse. The id
/// tells this server's file from one that a killed server left behind.
fn says_ready(pid_file: &str, pid: u32) -> bool {
    let mut lines = pid_file.lines().map(str::trim);
    let ours = lines.next() == Some(pid.to_string().as_str());
    ours && matches!(lines.nth(6), Some("ready" | "standby"))
}

/// A command of the installation, under an account that PostgreSQL accepts.
fn program(programs: &Path, name: &str, folder: &Path) -> Command {
    let mut command = Command::new(programs.join("bin").join(name));
    command
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Lets the account that the server runs as write into the folder.
fn hand_over(folder: &Path) -> Result<(), ServersError> {
    if !is_root() {
        return Ok(());
    }
    std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY))
        .map_err(io(format!("change the owner of {}", folder.display())))
}

/// Copies the data folder of a stopped server into `folder`, with its owner and modes.
fn copy(data: &Path, folder: &Path) -> Result<(), ServersError> {
    hand_over(folder)?;
    let doing = || format!("copy {} to {}", data.display(), folder.display());
    let mut command = Command::new("cp");
    let copied = command.arg("-Rp").args([data, folder]).status();
    match copied.map_err(io(doing()))?.success() {
        true => Ok(()),
        false => Err(io(doing())(std::io::ErrorKind::Other.into())),
    }
}

fn initialise(programs: &Path, folder: &Path) -> Result<(), ServersError> {
    hand_over(folder)?;
    let output = program(programs, "initdb", folder)
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale"])
        // Whoever loses power now has no use for the folder. The server itself does sync.
        .arg("--no-sync")
        .arg("-D")
        .arg(folder.join("data"))
        .output()
        .map_err(io(format!("run initdb of {}", programs.display())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ServersError::Start {
        server: SERVER,
        reason: format!("initdb ended with {}", output.status),
        log_tail: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn configure(folder: &Path, port: u16, options: &PostgresOptions) -> Result<(), ServersError> {
    let all = places(folder, port).into_iter().chain(settings(options));
    write_settings(folder, all)
}

/// Where the server is reached.
fn places(folder: &Path, port: u16) -> [(String, String); 3] {
    let places = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", folder.display().to_string()),
    ];
    places.map(|(name, value)| (name.to_owned(), value))
}

/// Adds settings to those that are there. The last of a name wins.
fn write_settings(
    folder: &Path,
    settings: impl Iterator<Item = (String, String)>,
) -> Result<(), ServersError> {
    let path = folder.join("data/postgresql.conf");
    let mut text = String::from("\n");
    for (name, value) in settings {
        text += &format!("{name} = '{}'\n", value.replace('\'', "''"));
    }
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(io(format!("open {}", path.display())))?;
    file.write_all(text.as_bytes())
        .map_err(io(format!("write {}", path.display())))
}

/// The folder of the unpacked binaries, fetched first if they are not in the cache.
fn programs(
    version: PostgresVersion,
    sources: &Sources,
    progress: &Progress,
) -> Result<PathBuf, ServersError> {
    let artifact = artifact(version)?;
    let cache = fetch::cache_folder()?;
    let name = artifact.file_name().trim_end_matches(".jar");
    let target = cache.join(name.trim_start_matches("embedded-"));
    if target.is_dir() {
        return Ok(target);
    }
    progress.say(&format!("fetching PostgreSQL {} (once)", version.major()));
    let scratch = tempfile::Builder::new()
        .prefix("unpack-")
        .tempdir_in(&cache)
        .map_err(io(format!("create a folder in {}", cache.display())))?;
    let base = sources.maven_base_url.as_deref();
    fetch::fetch(std::slice::from_ref(&artifact), scratch.path(), base)?;
    let unpacked = scratch.path().join("unpacked");
    unpack(&scratch.path().join(artifact.file_name()), &unpacked)
        .map_err(|reason| fetch_error(artifact.file_name(), reason))?;
    open_folders(&unpacked)?;
    match std::fs::rename(&unpacked, &target) {
        // Another process was faster; its folder has the same content.
        Err(_) if target.is_dir() => Ok(target),
        result => result
            .map(|()| target.clone())
            .map_err(io(format!("create {}", target.display()))),
    }
}

fn artifact(version: PostgresVersion) -> Result<Artifact, ServersError> {
    let platform = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "linux-amd64",
        ("linux", "aarch64") => "linux-arm64v8",
        ("macos", "x86_64") => "darwin-amd64",
        ("macos", "aarch64") => "darwin-arm64v8",
        (os, arch) => {
            return Err(ServersError::Missing(format!(
                "there are no pinned PostgreSQL binaries for {os} on {arch}: start Docker, or set \
                 OUTBOX_RELAY_TEST_DATABASE_URL to a server that may be used"
            )));
        }
    };
    let wanted = format!("binaries-{platform}/{}.", version.major());
    fetch::parse_manifest(MANIFEST)
        .into_iter()
        .find(|artifact| artifact.path.contains(&wanted))
        .ok_or_else(|| ServersError::Missing(format!("no binaries are pinned for {wanted}*")))
}

/// A jar is a zip archive with one `.txz` in it, which is a tar archive compressed by xz.
fn unpack(jar: &Path, target: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut zip = zip::ZipArchive::new(File::open(jar)?)?;
    let name = zip
        .file_names()
        .find(|name| name.ends_with(".txz"))
        .ok_or("there is no .txz in it")?
        .to_owned();
    let entry = zip.by_name(&name)?;
    let tar = liblzma::read::XzDecoder::new(entry);
    tar::Archive::new(tar).unpack(target)?;
    Ok(())
}

/// Folders that the archive does not list get the umask's mode, which may shut the server out.
fn open_folders(folder: &Path) -> Result<(), ServersError> {
    open_to_others(folder)?;
    let doing = || format!("list {}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(io(doing()))? {
        let entry = entry.map_err(io(doing()))?;
        if entry.file_type().map_err(io(doing()))?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

/// The ids of a process's direct children. Portable, since it runs a few times per test at most.
fn children_of(pid: u32) -> Vec<u32> {
    let output = Command::new("ps").args(["-A", "-o", "ppid=,pid="]).output();
    let Ok(output) = output else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| child_in(line, pid))
        .collect()
}

fn child_in(line: &str, parent: u32) -> Option<u32> {
    let mut numbers = line.split_whitespace().map(str::parse::<u32>);
    let of_parent = numbers.next()?.ok()? == parent;
    let pid = numbers.next()?.ok()?;
    of_parent.then_some(pid)
}

/// True when the process exists and is not a zombie. After an orphan's end the system's first
/// process should wait for it; in some containers nobody does.
fn is_alive(pid: u32) -> bool {
    let output = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output();
    output.is_ok_and(|output| {
        let state = String::from_utf8_lossy(&output.stdout);
        let state = state.trim();
        !state.is_empty() && !state.starts_with('Z')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_our_process_and_the_state() {
        let file = "41\n/data\n1\n5432\n/s\n127.0.0.1\n  1  2\nready   \n";
        assert!(says_ready(file, 41));
        assert!(!says_ready(file, 42));
        assert!(!says_ready(&file.replace("ready", "starting"), 41));
        assert!(!says_ready("41\n", 41));
        assert!(!says_ready("", 41));
    }

    #[test]
    fn every_version_has_binaries_here() {
        for version in [
            PostgresVersion::V14,
            PostgresVersion::V15,
            PostgresVersion::V17,
            PostgresVersion::V18,
        ] {
            assert!(artifact(version).is_ok());
        }
    }

    #[test]
    fn reads_a_line_of_processes() {
        assert_eq!(child_in("  10   12", 10), Some(12));
        assert_eq!(child_in("  11   12", 10), None);
        assert_eq!(child_in("", 10), None);
    }
}
