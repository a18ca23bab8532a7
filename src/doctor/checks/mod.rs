//! The checks: facts in, findings out. Pure.

mod brokers;
mod position;
mod server;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod topics;
mod wal;
mod writers;

pub(super) use self::table::quoted;
use super::facts::{
    Facts, KafkaFacts, Known, PostgresFacts, ServerFacts, TableFacts, Unknown, known, unknown,
};
use super::finding::{Check, Outcome};
use crate::capture::CaptureKind;

/// A check by its line in the table.
macro_rules! checks {
    ($( $code:literal $wanted:literal $judge:path; )+) => {
        /// All of them, in the order in which they are told. The part before the dot is the group.
        pub const CHECKS: &[Check] = &[ $( Check { code: $code, wanted: $wanted, judge: $judge }, )+ ];
    };
}

checks! {
    "pg.reachable"              "PostgreSQL answers, and lets the role in"                        server::reachable;
    "pg.version"                "it is PostgreSQL 14 or newer"                                    server::version;
    "pg.primary"                "it is the primary"                                               server::primary;
    "pg.session"                "a session is the relay's alone and keeps what is set in it"      session::session;
    "pg.connections"            "there is room for the relay's connections"                       session::connections;
    "pg.fsync"                  "what is committed survives a crash"                              server::fsync;
    "pg.synchronous-commit"     "a commit that was answered survives a crash"                     server::synchronous_commit;
    "pg.clock"                  "its clock is ours"                                               server::clock;
    "pg.long-transactions"      "no transaction is open for long"                                 server::long_transactions;
    "pg.prepared-transactions"  "no prepared transaction is forgotten"                            server::prepared_transactions;
    "pg.idle-slots"             "no idle replication slot of others keeps WAL"                    server::idle_slots;

    "outbox.schema"             "schema outbox is there and up to date"                           table::schema;
    "outbox.table"              "the outbox table has the columns that the relay reads"           table::columns;
    "outbox.defaults"           "columns that the relay relies on are filled without the writers" table::defaults;
    "outbox.index"              "an index on (xid, seq) finds what is new"                        table::index;
    "outbox.sequence"           "seq grows in the order of insertion"                             table::sequence;
    "outbox.logged"             "the outbox table survives a crash"                               table::logged;
    "outbox.privileges"         "the role has the privileges that this capture needs"             table::privileges;
    "outbox.row-security"       "the role sees all rows"                                          writers::row_security;
    "outbox.triggers"           "nothing changes or suppresses what writers insert"               writers::triggers;
    "outbox.foreign-rows"       "all rows are of this cluster"                                    writers::foreign_rows;
    "outbox.name"               "one name serves the table"                                       position::name;

    "wal.level"                 "wal_level is logical"                                            wal::level;
    "wal.replication"           "the role may open a replication connection"                      wal::replication;
    "wal.publication"           "the publication publishes each inserted row, whole"              wal::publication;
    "wal.slot"                  "the replication slot is there and has not lost WAL"              wal::slot;
    "wal.older-rows"            "the slot has all rows that are to be published"                  wal::older_rows;
    "wal.slot-limit"            "there is a limit to the WAL that slots keep"                     wal::limit;
    "wal.slot-failover"         "standbys keep the slot too"                                      wal::failover;
    "wal.headroom"              "there is room for the slot and its walsender"                    wal::headroom;

    "kafka.reachable"           "Kafka answers"                                                   brokers::reachable;
    "kafka.version"             "the brokers know transactions"                                   brokers::version;
    "kafka.permissions"         "nothing that the relay may try by reading is forbidden"          brokers::permissions;
    "kafka.transaction-timeout" "the brokers allow transaction-timeout-ms"                        brokers::transaction_timeout;
    "kafka.transaction-state"   "the log of transactions survives a broker"                       brokers::transaction_state;
    "kafka.auto-create"         "a misspelt topic is not made"                                    brokers::auto_create;
    "kafka.position-topic"      "the position topic can't lose the position"                      topics::position_topic;
    "kafka.topics"              "the topics that rows name are there, and are led"                topics::topics;
    "kafka.topic-replicas"      "events survive a broker"                                         topics::replicas;
    "kafka.unclean-election"    "a broker that lags never becomes a leader"                       topics::unclean_election;
    "kafka.message-size"        "the topics take what the relay sends"                            topics::message_size;
    "kafka.timestamps"          "the topics take events that waited for long"                     topics::timestamps;

    "position.fits"             "the stored position can be resumed from here"                    position::fits;
}

impl Facts {
    fn postgres(&self) -> Known<&PostgresFacts> {
        match &self.postgres {
            Ok(facts) => Ok(facts),
            Err(_) => unknown("PostgreSQL does not answer"),
        }
    }

    fn server(&self) -> Known<&ServerFacts> {
        Ok(&self.postgres()?.server)
    }

    fn table(&self) -> Known<&TableFacts> {
        known(&self.postgres()?.table)?
            .as_ref()
            .ok_or_else(|| Unknown(format!("there is no table {}", self.settings.outbox.table)))
    }

    fn captures_wal(&self) -> bool {
        self.settings.capture == CaptureKind::Wal
    }

    /// `None`: the sink is another one.
    fn kafka(&self) -> Known<Option<&KafkaFacts>> {
        match &self.kafka {
            Some(Ok(facts)) => Ok(Some(facts)),
            Some(Err(_)) => unknown("Kafka does not answer"),
            None => Ok(None),
        }
    }
}

/// `$facts.kafka()`, or the check has no meaning.
macro_rules! kafka {
    ($facts:ident) => {
        match $facts.kafka()? {
            Some(kafka) => kafka,
            None => return Ok(super::Outcome::NotAsked),
        }
    };
}
use kafka;

/// The same for checks of capture wal.
macro_rules! only_wal {
    ($facts:ident) => {
        if !$facts.captures_wal() {
            return Ok(super::Outcome::NotAsked);
        }
    };
}
use only_wal;
