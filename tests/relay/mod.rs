//! The relay as users run it: the binary, real servers, injected faults, and the ledger check at the end.

mod cluster;
mod commands;
#[cfg(debug_assertions)]
mod crash_points;
mod failover;
mod faults;
mod network;
mod prepared;
mod privileges;
mod settings;
mod sizes;
mod stale_frames;
mod standby;
mod topics;
mod verify;
