//! The relay as users run it: the binary, real servers, injected faults, and the ledger check at the end.

/// One test for each capture: `$test::table` and `$test::wal`.
macro_rules! both_captures {
    ($seconds:literal, $test:ident) => {
        mod $test {
            use outbox_relay::capture::CaptureKind;

            #[test]
            fn table() {
                crate::support::within($seconds, super::$test(CaptureKind::Table));
            }

            #[test]
            fn wal() {
                crate::support::within($seconds, super::$test(CaptureKind::Wal));
            }
        }
    };
}

mod by_hand;
mod cluster;
mod commands;
#[cfg(debug_assertions)]
mod crash_points;
mod doctor;
mod failover;
mod faults;
#[cfg(debug_assertions)]
mod moves;
mod network;
mod observe;
mod parking;
mod prepared;
mod privileges;
mod replay;
mod retention;
mod roles;
mod settings;
mod sizes;
mod stale_frames;
mod standby;
mod strict;
mod topics;
mod upgrade;
mod verify;
