//! A transaction that is too large for memory, page by page.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::shell::Pages;
use crate::capture::window::{BatchLimits, Planned};
use crate::event::{Slice, SliceSource};
use crate::fault::Fault;

/// The transaction with the place that has been reached in it.
pub(super) struct LargeTransaction<P> {
    pages: P,
    tx_id: Arc<str>,
    planned: Planned,
    page_events: u64,
    last_seq: i64,
    index: u64,
}

impl<P: Pages> LargeTransaction<P> {
    /// Pages of about half of what a batch may hold.
    pub fn new(pages: P, tx_id: Arc<str>, planned: Planned, batch: BatchLimits) -> Self {
        let fitting = planned.events.saturating_mul(batch.bytes_max) / planned.bytes.max(1);
        let page_events = fitting.clamp(1, batch.events_max) / 2 + 1;
        Self {
            pages,
            tx_id,
            planned,
            page_events,
            last_seq: i64::MIN,
            index: 0,
        }
    }

    async fn page(&mut self) -> Result<Option<Slice>, Fault> {
        if self.index == self.planned.events {
            return Ok(None);
        }
        let xid = self.planned.xid;
        let events = self
            .pages
            .page(xid, self.last_seq, self.page_events)
            .await?;
        let Some(last) = events.last() else {
            return Err(Fault::Refused(format!(
                "rows of transaction {} were deleted while it was being published; writers must not delete rows",
                self.tx_id
            )));
        };
        self.last_seq = last.seq;
        let first_index = self.index;
        self.index += events.len() as u64;
        Ok(Some(Slice {
            tx_id: self.tx_id.clone(),
            tx_count: self.planned.events,
            first_index,
            events,
        }))
    }
}

impl<P: Pages> SliceSource for LargeTransaction<P> {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Slice>, Fault>> + Send + '_>> {
        Box::pin(self.page())
    }
}
