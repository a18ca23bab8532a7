//! One Kafka transaction for all of a replay.

use std::sync::Arc;

use crate::event::{Event, Slice};
use crate::fault::{Fault, Server};
use crate::sink::kafka::producer::{Shell as _, ThreadShell};
use crate::sink::kafka::{KafkaSettings, PIECE_BYTES, PIECE_EVENTS};

/// An open Kafka transaction. Dropped, it is never committed.
pub struct Publisher {
    shell: ThreadShell,
    piece: Vec<Slice>,
    /// Of the piece.
    bytes: usize,
}

impl Publisher {
    /// The client's side, which learns from one try for the next.
    pub fn shell(settings: &KafkaSettings, replay: &str) -> ThreadShell {
        ThreadShell::new(Arc::new(KafkaSettings {
            replay: Some(replay.into()),
            ..settings.clone()
        }))
    }

    /// Takes the epoch of the replays of this relay, so two at a time are not possible, and begins.
    pub async fn open(mut shell: ThreadShell) -> Result<Self, Fault> {
        shell.create().await?;
        shell.init_transactions().await?;
        shell.begin().await?;
        Ok(Self {
            shell,
            piece: Vec::new(),
            bytes: 0,
        })
    }

    pub async fn publish(&mut self, slice: Slice) -> Result<(), Fault> {
        self.bytes += slice.events.iter().map(Event::bytes).sum::<usize>();
        self.piece.push(slice);
        if self.piece.len() >= PIECE_EVENTS || self.bytes >= PIECE_BYTES {
            self.bytes = 0;
            self.shell.produce(std::mem::take(&mut self.piece)).await?;
        }
        Ok(())
    }

    /// Waits until the brokers have all that was published: what they refuse is known then.
    pub async fn flush(&mut self) -> Result<(), Fault> {
        self.shell.produce(std::mem::take(&mut self.piece)).await?;
        self.shell.flush().await.map(|_| ())
    }

    /// Ends the transaction without a trace: a new producer's epoch makes the broker abort it. Else consumers would wait for its
    /// timeout.
    pub async fn abandon(mut self) -> ThreadShell {
        self.shell.drop_producer().await;
        if self.shell.create().await.is_ok() {
            // What kept the replay from its end was told already.
            let _ = self.shell.init_transactions().await;
        }
        self.shell.drop_producer().await;
        self.shell
    }

    /// The producer does nothing after it, so no frame of it that is late can meet another transaction.
    pub async fn commit(mut self, any: bool) -> Result<(), Fault> {
        if any {
            self.shell.commit().await.map_err(|fault| {
                Fault::Unavailable(
                    Server::Kafka,
                    format!("{fault}; the replay is published as a whole or not at all, its header tells which"),
                )
            })?;
        }
        self.shell.drop_producer().await;
        Ok(())
    }
}
