//! The capture that a setting names.

use clap::ValueEnum;
use serde::Deserialize;

use super::table::TableCapture;
use super::wal::WalCapture;
use super::{Capture, CaptureSettings, Start};
use crate::database::Database;
use crate::event::Batch;
use crate::fault::Fault;
use crate::position::Position;

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureKind {
    /// The outbox table, by snapshot difference.
    Table,
    /// The write-ahead log, by a replication slot.
    Wal,
}

impl CaptureKind {
    /// As positions name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Wal => "wal",
        }
    }
}

/// One of the two, for those who need not know which.
pub enum Either<T = TableCapture, W = WalCapture> {
    /// From the table.
    Table(Box<T>),
    /// From the WAL.
    Wal(Box<W>),
}

impl Either {
    /// The capture of this kind.
    ///
    /// # Errors
    /// [`Fault::Defect`] if no pool can be built.
    pub fn new(
        kind: CaptureKind,
        settings: CaptureSettings,
        database: &Database,
    ) -> Result<Self, Fault> {
        Ok(match kind {
            CaptureKind::Table => Self::Table(TableCapture::new(settings, database)?.into()),
            CaptureKind::Wal => Self::Wal(WalCapture::new(settings, database)?.into()),
        })
    }
}

impl<T: Capture, W: Capture> Capture for Either<T, W> {
    async fn prepare(&mut self) {
        match self {
            Self::Table(capture) => capture.prepare().await,
            Self::Wal(capture) => capture.prepare().await,
        }
    }

    async fn genesis(&mut self, start: Start) -> Result<Position, Fault> {
        match self {
            Self::Table(capture) => capture.genesis(start).await,
            Self::Wal(capture) => capture.genesis(start).await,
        }
    }

    async fn next(&mut self, after: &Position) -> Result<Option<Batch>, Fault> {
        match self {
            Self::Table(capture) => capture.next(after).await,
            Self::Wal(capture) => capture.next(after).await,
        }
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<(), Fault> {
        match self {
            Self::Table(capture) => capture.acknowledge(position).await,
            Self::Wal(capture) => capture.acknowledge(position).await,
        }
    }

    fn limit(&mut self, transactions_max: u64) {
        match self {
            Self::Table(capture) => capture.limit(transactions_max),
            Self::Wal(capture) => capture.limit(transactions_max),
        }
    }

    fn close(&mut self) {
        match self {
            Self::Table(capture) => capture.close(),
            Self::Wal(capture) => capture.close(),
        }
    }
}
