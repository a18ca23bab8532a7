//! outbox-relay: what a use case inserted into its outbox table, in the same PostgreSQL transaction as its aggregate
//! change, reaches Kafka: whole transactions, in order, exactly once.
//!
//! The modules stand in the order in which data flows. `ARCHITECTURE.md` is the map.

pub mod cli;
pub mod config;
pub mod moves;
pub mod supervisor;

pub mod admin;
pub mod relay;
pub mod sampler;

pub mod capture;
pub mod lease;
pub mod park;
pub mod retention;
pub mod sink;

pub mod adopt;
pub mod database;
pub mod init;
pub mod ring;
pub mod roles;

pub mod crash_point;
pub mod event;
pub mod fault;
pub mod metrics;
pub mod position;
pub mod signals;

pub mod consume;
pub mod doctor;
pub mod ledger;
pub mod outcome;
pub mod produce;
pub mod replay;
pub mod scan;
pub mod status;
pub mod verify;

#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "demo")]
pub mod servers;
