//! A transaction that is too large for memory, on disk: its messages as they came, each behind its length.
//!
//! The file has no name, so it is gone with the process. It lies in the temporary folder (`TMPDIR`).

use std::future::Future;
use std::io::SeekFrom;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader};

use super::assembly::Reading;
use super::pgoutput::Message;
use crate::capture::BatchLimits;
use crate::event::{Event, Slice, SliceSource};
use crate::fault::Fault;

/// Written, and read, at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// A file under way.
pub(super) struct Spill {
    file: File,
    chunk: Vec<u8>,
}

impl Spill {
    pub fn new() -> Result<Self, Fault> {
        let file = tempfile::tempfile().map_err(no_room)?;
        Ok(Self {
            file: File::from_std(file),
            chunk: Vec::with_capacity(CHUNK_BYTES),
        })
    }

    pub async fn write(&mut self, message: &Bytes) -> Result<(), Fault> {
        let length = u32::try_from(message.len())
            .map_err(|_| Fault::Defect("a message of 4 GiB in the stream".into()))?;
        self.chunk.extend(length.to_be_bytes());
        self.chunk.extend(message);
        match self.chunk.len() >= CHUNK_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.file.write_all(&self.chunk).await.map_err(no_room)?;
        self.chunk.clear();
        Ok(())
    }

    /// Everything was written; it is read with `reading`, from its beginning.
    pub async fn written(
        mut self,
        reading: Reading,
        committed_at_micros: i64,
    ) -> Result<Spilled, Fault> {
        self.flush().await?;
        self.file.flush().await.map_err(no_room)?;
        let mut file = self.file;
        file.seek(SeekFrom::Start(0)).await.map_err(no_room)?;
        Ok(Spilled {
            file: BufReader::with_capacity(CHUNK_BYTES, file),
            reading,
            committed_at_micros,
        })
    }
}

/// A file to read.
pub(super) struct Spilled {
    file: BufReader<File>,
    reading: Reading,
    committed_at_micros: i64,
}

impl Spilled {
    /// Slices of about half of what a batch may hold.
    pub fn slices(self, tx_id: Arc<str>, tx_count: u64, batch: BatchLimits) -> impl SliceSource {
        Slices {
            spilled: self,
            tx_id,
            tx_count,
            events_max: batch.events_max / 2 + 1,
            bytes_max: batch.bytes_max / 2 + 1,
            index: 0,
        }
    }

    async fn event(&mut self) -> Result<Event, Fault> {
        loop {
            let length = self.file.read_u32().await.map_err(no_room)?;
            let mut message = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            self.file.read_exact(&mut message).await.map_err(no_room)?;
            let message = Message::decode(message.into())
                .map_err(|error| Fault::Defect(error.to_string()))?;
            if let Some(event) = self.reading.event(message, self.committed_at_micros)? {
                return Ok(event);
            }
        }
    }
}

fn no_room(error: std::io::Error) -> Fault {
    Fault::Refused(format!(
        "a transaction that is too large for memory can't be kept in the temporary folder {}: {error}; make room there, or set \
         TMPDIR to a folder on a disk with room",
        std::env::temp_dir().display()
    ))
}

struct Slices {
    spilled: Spilled,
    tx_id: Arc<str>,
    tx_count: u64,
    events_max: u64,
    bytes_max: u64,
    index: u64,
}

impl Slices {
    async fn slice(&mut self) -> Result<Option<Slice>, Fault> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        let left = (self.tx_count - self.index).min(self.events_max);
        while (events.len() as u64) < left && bytes < self.bytes_max {
            let event = self.spilled.event().await?;
            bytes += event.payload.as_ref().map_or(0, Bytes::len) as u64;
            events.push(event);
        }
        let first_index = self.index;
        self.index += events.len() as u64;
        Ok((!events.is_empty()).then(|| Slice {
            tx_id: self.tx_id.clone(),
            tx_count: self.tx_count,
            first_index,
            events,
        }))
    }
}

impl SliceSource for Slices {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Slice>, Fault>> + Send + '_>> {
        Box::pin(self.slice())
    }
}
