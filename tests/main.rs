//! All integration tests, in one binary: against a real PostgreSQL and a real Kafka, which are started once.

mod support;

mod contracts;
mod relay;
