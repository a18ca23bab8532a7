//! Reads a stream ahead: a task that puts transactions together and queues them, within limits, while others are published.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::assembly::{Assembled, Assembly, Body, Committed};
use super::shell::{Feedback, Sent, Stream};
use crate::event::Event;
use crate::fault::{Fault, Server};
use crate::position::Lsn;

/// Places in the WAL without events are told this far apart.
const TELL_EVERY_BYTES: u64 = 1 << 20;

/// What comes out.
pub(super) enum Item {
    Transaction(Committed),
    /// All that committed up to here came before.
    Reached(Lsn),
}

/// An item, with the room that it takes until it is handed out.
struct Queued {
    item: Item,
    _room: Option<OwnedSemaphorePermit>,
}

/// The task with its queue. Dropping it ends the stream.
pub(super) struct Pump {
    queue: mpsc::UnboundedReceiver<Result<Queued, Fault>>,
    feedback: Feedback,
    _task: AbortOnDropHandle<()>,
}

impl Pump {
    /// `room_bytes`: how much may wait in the queue. `goal` is told as soon as it is reached.
    pub fn start(
        stream: impl Stream + 'static,
        assembly: Assembly,
        room_bytes: u64,
        goal: Lsn,
    ) -> Self {
        let (items, queue) = mpsc::unbounded_channel();
        let feedback = stream.feedback();
        let room = u32::try_from(room_bytes).unwrap_or(u32::MAX).max(1);
        let mut pipe = Pipe {
            room: Arc::new(Semaphore::new(room as usize)),
            room_bytes: room,
            items: items.clone(),
            goal,
            told: Lsn::from(0),
        };
        let task = tokio::spawn(async move {
            if let Err(fault) = pipe.run(stream, assembly).await {
                // Nobody is there to hear it once the capture has dropped the queue.
                let _ = items.send(Err(fault));
            }
        });
        Self {
            queue,
            feedback,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The next item; waits for it.
    pub async fn next(&mut self) -> Result<Item, Fault> {
        match self.queue.recv().await {
            Some(queued) => Ok(queued?.item),
            None => Err(ended()),
        }
    }

    /// The next item, if it is there.
    pub fn ready(&mut self) -> Result<Option<Item>, Fault> {
        match self.queue.try_recv() {
            Ok(queued) => Ok(Some(queued?.item)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(ended()),
        }
    }

    /// The slot need not keep what lies below.
    pub fn acknowledge(&self, lsn: Lsn) {
        self.feedback.send_if_modified(|known| {
            let news = lsn > *known;
            *known = lsn.max(*known);
            news
        });
    }
}

fn ended() -> Fault {
    Fault::Unavailable(Server::Postgres, "the stream has ended".into())
}

/// The task's part.
struct Pipe {
    room: Arc<Semaphore>,
    room_bytes: u32,
    items: mpsc::UnboundedSender<Result<Queued, Fault>>,
    goal: Lsn,
    told: Lsn,
}

impl Pipe {
    async fn run(&mut self, mut stream: impl Stream, mut assembly: Assembly) -> Result<(), Fault> {
        loop {
            let assembled = match stream.next().await? {
                Sent::Message(bytes) => assembly.take(bytes).await?,
                Sent::Reached(lsn) if !assembly.is_open() => Some(Assembled::Nothing(lsn)),
                Sent::Reached(_) => None,
            };
            match assembled {
                Some(Assembled::Transaction(committed)) => self.queue(committed).await?,
                Some(Assembled::Nothing(lsn)) => self.reached(lsn),
                None => {}
            }
        }
    }

    /// Waits for room. What is on disk takes all of it: one such transaction waits at a time.
    async fn queue(&mut self, committed: Committed) -> Result<(), Fault> {
        let bytes = match &committed.body {
            Body::Whole(events) => events.iter().map(Event::bytes).sum(),
            Body::Large(_) => usize::MAX,
        };
        let bytes = u32::try_from(bytes)
            .unwrap_or(u32::MAX)
            .min(self.room_bytes);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await;
        let room = room.map_err(|_| ended())?;
        self.send(Item::Transaction(committed), Some(room));
        Ok(())
    }

    fn reached(&mut self, lsn: Lsn) {
        let (before, now) = (u64::from(self.told), u64::from(lsn));
        let is_goal = self.told < self.goal && self.goal <= lsn;
        if is_goal || now >= before.saturating_add(TELL_EVERY_BYTES) {
            self.told = lsn;
            self.send(Item::Reached(lsn), None);
        }
    }

    fn send(&self, item: Item, room: Option<OwnedSemaphorePermit>) {
        let _ = self.items.send(Ok(Queued { item, _room: room }));
    }
}
