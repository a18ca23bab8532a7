//! Proxies on loopback that stand between the relay and its servers and do what networks do.
//!
//! [`TcpProxy`] passes bytes; [`KafkaProxy`] knows requests and replies, so that a test says which one is held, lost or
//! cut off. Both have [`Weather`]: latency, a throttle, a black hole. No test macros here and nothing of the rest of the
//! tests, so that other binaries include this folder by path.

#![allow(
    unused_imports,
    reason = "the tests and the soak use different parts of it"
)]

pub mod frame;
mod kafka;
mod link;
pub mod pooler;
mod tcp;

pub use frame::Api;
pub use kafka::{Act, At, KafkaProxy};
pub use link::{Stall, Weather};
pub use tcp::TcpProxy;
