//! One server process of ours: in its own group, known to the reaper, waited for by a thread.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::reaper::{Reaper, Role};
use super::{ServersError, io};

/// A started process.
pub(super) struct Child {
    pid: u32,
    ended: watch::Receiver<Option<String>>,
}

impl Child {
    /// Starts `command` without a terminal. The thread that waits for it also tells the reaper, so
    /// that an id is on its list only while it is this process's.
    pub(super) fn start(
        command: &mut Command,
        role: Role,
        reaper: &Arc<Reaper>,
    ) -> Result<Self, ServersError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut process = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(io(format!("start {program}")))?;
        let pid = process.id();
        reaper.register(pid, role);
        let (sender, ended) = watch::channel(None);
        let reaper = Arc::clone(reaper);
        std::thread::spawn(move || {
            let how = match process.wait() {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            reaper.gone(pid);
            sender.send_replace(Some(how));
        });
        Ok(Self { pid, ended })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended ("exit status: 1"), or nothing while it runs.
    pub(super) fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits for its end; false when `limit` is over first.
    pub(super) async fn wait(&mut self, limit: Duration) -> bool {
        let end = self.ended.wait_for(Option::is_some);
        tokio::time::timeout(limit, end).await.is_ok()
    }

    /// Sends a signal, unless the process has ended already.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), ServersError> {
        if self.ended().is_some() {
            return Ok(());
        }
        signal_pid(self.pid, signal)
    }
}

/// Sends a signal to a process by its id.
pub(super) fn signal_pid(pid: u32, signal: Signal) -> Result<(), ServersError> {
    let Ok(raw) = i32::try_from(pid) else {
        return Ok(());
    };
    match kill(Pid::from_raw(raw), signal) {
        // It has just ended, which is no error of ours.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(io(format!("send {signal} to process {pid}"))(errno.into())),
    }
}
