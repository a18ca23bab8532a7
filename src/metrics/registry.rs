//! The names under which Prometheus knows the metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::registry::{Registry, Unit};

use super::Metrics;
use crate::fault::Fault;

/// Labels of a fault.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FaultLabels {
    /// What went wrong.
    pub fault: &'static str,
    /// What the relay does about it.
    pub verdict: &'static str,
}

impl FaultLabels {
    /// Those that a relay gets over. The others end it, so nobody would come to read them.
    pub(super) const SURVIVED: [Self; 5] = [
        Self::PARKED,
        Self::new("postgres_unavailable", "back_off"),
        Self::new("kafka_unavailable", "back_off"),
        Self::new("recycle", "reopen"),
        Self::new("lease_lost", "stand_by"),
    ];

    /// Parking is no verdict: it keeps the relay from having to stop.
    pub(super) const PARKED: Self = Self::new("unpublishable", "park");

    const fn new(fault: &'static str, verdict: &'static str) -> Self {
        Self { fault, verdict }
    }

    pub(super) fn of(fault: &Fault) -> Self {
        Self {
            fault: fault.code(),
            verdict: fault.verdict().code(),
        }
    }
}

/// Labels of a producer that was made anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RecycleLabels {
    /// What made the commit suspicious.
    pub reason: &'static str,
}

impl RecycleLabels {
    /// As `sink/kafka/machine.rs` tells them apart.
    pub(super) const ALL: [Self; 6] = [
        Self { reason: "answer" },
        Self {
            reason: "request_timeout",
        },
        Self {
            reason: "connection_lost",
        },
        Self {
            reason: "client_error",
        },
        Self { reason: "slow" },
        Self {
            reason: "no_answer",
        },
    ];
}

impl Metrics {
    /// Names them. The registry adds the prefix and, to counters, `_total`.
    pub fn register(&self, registry: &mut Registry) {
        let inner = &self.0;
        registry.register(
            "published_transactions",
            "Database transactions published by this process",
            inner.transactions.clone(),
        );
        registry.register(
            "published_events",
            "Events published by this process",
            inner.events.clone(),
        );
        registry.register_with_unit(
            "published",
            "Bytes of payloads and keys published by this process",
            Unit::Bytes,
            inner.bytes.clone(),
        );
        registry.register(
            "batch_events",
            "Events in one Kafka transaction",
            inner.batch_events.clone(),
        );
        registry.register_with_unit(
            "kafka_transaction",
            "Time from the beginning of a Kafka transaction to its end",
            Unit::Seconds,
            inner.kafka_transaction_seconds.clone(),
        );
        registry.register_with_unit(
            "latency",
            "Time from the commit of a database transaction to the end of its Kafka transaction",
            Unit::Seconds,
            inner.latency_seconds.clone(),
        );
        registry.register(
            "recycles",
            "Kafka producers made anew after a suspicious commit",
            inner.recycles.clone(),
        );
        registry.register("faults", "Faults that the relay met", inner.faults.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Server;

    #[test]
    fn what_a_relay_gets_over_is_there_from_the_beginning() {
        let faults = [
            Fault::Unavailable(Server::Postgres, String::new()),
            Fault::Unavailable(Server::Kafka, String::new()),
            Fault::Recycle(String::new()),
            Fault::LeaseLost(String::new()),
        ];
        assert_eq!(
            FaultLabels::SURVIVED[1..],
            faults.map(|it| FaultLabels::of(&it))
        );
    }
}
