//! The process that cleans up after us, however we end.
//!
//! Destructors do not run on SIGKILL, on `exit` or (for statics) at the end of a test program. What
//! always happens is that the system closes our end of a pipe. So a shell reads process ids from
//! that pipe, and at its end it kills them and removes the folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use super::{ServersError, io, lock};

const SCRIPT: &str = include_str!("reaper.sh");

/// How the reaper ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// By SIGQUIT first, so that it ends its own children and frees its shared memory.
    Postmaster,
    /// By SIGKILL.
    Other,
}

/// The processes that stay when the servers are kept.
pub(super) struct Kept {
    pub(super) postmasters: Vec<String>,
    pub(super) others: Vec<String>,
}

/// Our end of the pipe, and what we wrote to it.
pub(super) struct Reaper {
    pipe: Mutex<Option<ChildStdin>>,
    process: Mutex<Child>,
    pids: Mutex<BTreeMap<u32, Role>>,
}

impl Reaper {
    /// Starts the shell. It will remove `folder`.
    pub(super) fn start(folder: &Path) -> Result<Self, ServersError> {
        let mut process = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "outbox-relay-reaper"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal reaches our group only; the reaper must outlive us.
            .process_group(0)
            .spawn()
            .map_err(io("start /bin/sh as the reaper"))?;
        let pipe = process.stdin.take();
        Ok(Self {
            pipe: Mutex::new(pipe),
            process: Mutex::new(process),
            pids: Mutex::default(),
        })
    }

    /// Registers a process that has just been started.
    pub(super) fn register(&self, pid: u32, role: Role) {
        // 0 would mean a whole process group, and 1 is never ours.
        if pid <= 1 {
            return;
        }
        let word = match role {
            Role::Postmaster => "pg",
            Role::Other => "kill",
        };
        lock(&self.pids).insert(pid, role);
        self.tell(word, &pid.to_string());
    }

    pub(super) fn kill_at_end(&self, pid: u32) {
        self.register(pid, Role::Other);
    }

    pub(super) fn remove_container_at_end(&self, id: &str) {
        self.tell("container", id);
    }

    /// The process has ended and been waited for: its id must not be signalled any more.
    pub(super) fn gone(&self, pid: u32) {
        if lock(&self.pids).remove(&pid).is_some() {
            self.tell("gone", &pid.to_string());
        }
    }

    /// The folder is left in place at the end, for a person to look at.
    pub(super) fn leave_folder(&self) {
        self.tell("folder-stays", "-");
    }

    /// Dismisses the reaper: it ends without touching anything.
    pub(super) fn keep(&self) -> Kept {
        self.tell("keep", "-");
        self.begin();
        let pids = lock(&self.pids);
        let of = |wanted| {
            pids.iter()
                .filter(|(_, role)| **role == wanted)
                .map(|(pid, _)| pid.to_string())
                .collect()
        };
        Kept {
            postmasters: of(Role::Postmaster),
            others: of(Role::Other),
        }
    }

    /// Closes the pipe, so that the reaper begins its work, and does not wait.
    pub(super) fn begin(&self) {
        drop(lock(&self.pipe).take());
    }

    /// Closes the pipe and waits until the reaper has done its work. The script bounds the wait.
    pub(super) fn finish(&self) {
        self.begin();
        if let Err(error) = lock(&self.process).wait() {
            tracing::warn!("cannot wait for the reaper of the throw-away servers: {error}");
        }
    }

    fn tell(&self, word: &str, id: &str) {
        let mut pipe = lock(&self.pipe);
        let Some(pipe) = pipe.as_mut() else { return };
        // One write per line: shorter than a pipe's atomic size, so never torn.
        if let Err(error) = pipe.write_all(format!("{word} {id}\n").as_bytes()) {
            tracing::warn!("the reaper of the throw-away servers does not listen: {error}");
        }
    }
}
