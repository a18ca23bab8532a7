//! What asks a process to end.

use tokio::signal::unix::{SignalKind, signal};

use crate::fault::Fault;

/// SIGTERM or Ctrl-C, by name. From the call on neither ends the process by itself.
///
/// # Errors
/// [`Fault::Defect`] if the system does not let them be received.
pub fn asked_to_stop() -> Result<impl Future<Output = &'static str>, Fault> {
    let no_signals =
        |error: std::io::Error| Fault::Defect(format!("signals can't be received: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "Ctrl-C",
        }
    })
}
