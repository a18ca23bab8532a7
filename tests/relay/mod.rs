//! The relay as users run it: the binary, real servers, injected faults, and the ledger check at the end.

mod commands;
mod faults;
mod settings;
mod standby;
