//! All integration tests, in one binary: against a real PostgreSQL and a real Kafka, which are started once.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that can not go on fails"
)]

mod support;

mod contracts;
mod documents;
mod imports;
mod relay;

#[path = "soak/order.rs"]
mod soak_order;
#[path = "soak/plan.rs"]
mod soak_plan;
