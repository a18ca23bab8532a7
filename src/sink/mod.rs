//! Sinks: where transactions become visible.

pub mod kafka;
pub mod memory;

use crate::event::Batch;
use crate::fault::Fault;
use crate::position::Position;

/// The target seam. One suite in `tests/contracts` runs against every implementation.
///
/// * The sink owns the position: it publishes a batch *and* the position after it, together or not at all.
/// * `open` fences every older instance of the same name before it reads the position.
/// * An older instance can never publish after a newer one has opened.
/// * After any error the outcome of the batch is unknown: open again and go on from the position that it answers.
#[allow(
    async_fn_in_trait,
    reason = "the relay runs its sinks in one task; no caller needs Send"
)]
pub trait Sink {
    /// Fences older instances and answers the last published position; `None` if there never was one.
    ///
    /// # Errors
    /// [`Fault::LeaseLost`] if the lease could not be proven after fencing; else whatever kept it from opening.
    async fn open(&mut self) -> Result<Option<Position>, Fault>;

    /// Publishes the whole batch and its position.
    ///
    /// # Errors
    /// See [`Fault`]; the batch may or may not be visible, as a whole.
    async fn publish(&mut self, batch: Batch) -> Result<(), Fault>;

    /// Lets go of the connection, so that a standby may open. Never fails; the next call must be `open`.
    async fn close(&mut self);
}
