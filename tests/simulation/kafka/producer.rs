//! The sink's shell over the simulated Kafka. It behaves as librdkafka does: it retries on a new connection what had no
//! answer, tells so in its log, and answers OK in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use outbox_relay::event::Slice;
use outbox_relay::fault::{Fault, Server};
use outbox_relay::sink::kafka::machine::{Committed, Signal};
use outbox_relay::sink::kafka::producer::Shell;
use outbox_relay::sink::kafka::record::{Partitions, PositionRecord};
use tokio::time::{Instant, sleep};

use super::network::request;
use super::{Answer, Content, POSITIONS, Partition, Request, Written};
use crate::process::Process;
use crate::world::World;

/// librdkafka's wait before it repeats a request that was answered "not now".
const RETRY: Duration = Duration::from_millis(20);

/// A process' producer.
pub struct Producer {
    world: World,
    process: Process,
    instance: Arc<str>,
    life: Option<Life>,
}

/// What one producer knows, from its creation to its end.
#[derive(Default)]
struct Life {
    epoch: i64,
    term: u64,
    sequences: BTreeMap<Partition, u64>,
    registered: BTreeSet<Partition>,
    queue: BTreeMap<Partition, Vec<Written>>,
    delivered: Partitions,
    signals: Vec<Signal>,
    /// In the Kafka transaction.
    transactions: BTreeSet<Arc<str>>,
}

fn away(why: &str) -> Fault {
    Fault::Unavailable(Server::Kafka, why.to_owned())
}

/// What an answer means that is no success.
fn refused(answer: &Answer) -> Fault {
    Fault::Recycle(format!("{answer:?}"))
}

impl Producer {
    pub fn new(world: &World, process: &Process) -> Self {
        Self {
            world: world.clone(),
            process: process.clone(),
            instance: process.name().into(),
            life: None,
        }
    }

    fn life(&mut self) -> Result<&mut Life, Fault> {
        self.life
            .as_mut()
            .ok_or_else(|| Fault::Defect("no producer".into()))
    }

    fn request_time(&self) -> Duration {
        Duration::from_millis(self.world.scenario().socket_timeout_ms.into())
    }

    fn transaction_time(&self) -> Duration {
        Duration::from_millis(self.world.scenario().transaction_timeout_ms.into())
    }

    /// Repeats a request until it is answered with anything but "not now".
    pub async fn exchange(&mut self, ask: Request, time: Duration) -> Result<Answer, Fault> {
        let until = Instant::now() + time;
        loop {
            let up = self.world.kafka().up;
            let outcome = match up {
                true => request(&self.world, ask.clone()).await,
                false => Err(vec![Signal::Error("ALL_BROKERS_DOWN".into())]),
            };
            let end = matches!(ask, Request::EndTxn { .. });
            match outcome {
                Ok(Answer::Concurrent) => {
                    if end {
                        let failed = Signal::EndTxnFailed("CONCURRENT_TRANSACTIONS".into());
                        self.life()?.signals.push(failed);
                    }
                    sleep(RETRY).await;
                }
                Ok(answer) => return Ok(answer),
                Err(signals) => {
                    self.life()?.signals.extend(signals);
                    self.world.pass(1..=50).await;
                }
            }
            if Instant::now() >= until {
                return Err(away("timed out"));
            }
        }
    }

    async fn done(&mut self, ask: Request, time: Duration) -> Result<(), Fault> {
        match self.exchange(ask, time).await? {
            Answer::Done => Ok(()),
            answer => Err(refused(&answer)),
        }
    }

    /// Ends the transaction; not what the relay does to abort, but a mutation.
    pub async fn end(&mut self, commit: bool) -> Result<(), Fault> {
        let (epoch, time) = (self.life()?.epoch, self.transaction_time());
        self.done(Request::EndTxn { epoch, commit }, time).await
    }

    fn written(&mut self, content: Content) -> Result<Written, Fault> {
        let instance = Arc::clone(&self.instance);
        let term = self.life()?.term;
        Ok(Written {
            content,
            term,
            instance,
        })
    }

    /// A record outside of the transaction, for a mutation.
    pub async fn plain(&mut self, record: &PositionRecord) -> Result<(), Fault> {
        let written = self.written(Content::Position(Box::new(record.clone())))?;
        let time = self.request_time();
        self.done(Request::Plain(Box::new(written)), time).await
    }

    /// A poisoned transaction is so for all who try, until all is calm. Sometimes the broker does not say which one it was.
    fn is_publishable(&mut self, slice: &Slice) -> Result<(), Fault> {
        let life = self.life()?;
        life.transactions.insert(Arc::clone(&slice.tx_id));
        let alone = life.transactions.len() == 1;
        if !self.world.is_poisoned(&slice.tx_id) {
            return Ok(());
        }
        let named = alone || self.world.chance(0.5);
        Err(Fault::Unpublishable {
            tx_id: if named {
                slice.tx_id.to_string()
            } else {
                "?".into()
            },
            topic: None,
            why: "it is poisoned".into(),
        })
    }

    /// Sends what is queued, partition by partition.
    async fn send(&mut self) -> Result<(), Fault> {
        let queue = std::mem::take(&mut self.life()?.queue);
        for (partition, mut records) in queue {
            self.register(partition).await?;
            while !records.is_empty() {
                let most = self.world.number(1..=8) as usize;
                let rest = records.split_off(most.min(records.len()));
                self.send_batch(partition, std::mem::replace(&mut records, rest))
                    .await?;
            }
        }
        Ok(())
    }

    async fn register(&mut self, partition: Partition) -> Result<(), Fault> {
        let time = self.transaction_time();
        let life = self.life()?;
        if life.registered.contains(&partition) {
            return Ok(());
        }
        let epoch = life.epoch;
        self.done(Request::AddPartition { epoch, partition }, time)
            .await?;
        self.life()?.registered.insert(partition);
        Ok(())
    }

    async fn send_batch(
        &mut self,
        partition: Partition,
        records: Vec<Written>,
    ) -> Result<(), Fault> {
        let (time, count) = (self.transaction_time(), records.len() as u64);
        let life = self.life()?;
        let sequence = *life.sequences.entry(partition).or_default();
        let produce = Request::Produce {
            epoch: life.epoch,
            partition,
            sequence,
            records,
        };
        let first = match self.exchange(produce, time).await? {
            Answer::FirstOffset(first) => first,
            answer => return Err(refused(&answer)),
        };
        self.life()?.sequences.insert(partition, sequence + count);
        if partition != POSITIONS {
            let (topic, number) = self.world.partition_name(partition);
            let last = first + count as i64 - 1;
            let delivered = self.life()?.delivered.entry(topic).or_default();
            let range = delivered.entry(number).or_insert([first, last, 0]);
            *range = [
                range[0].min(first),
                range[1].max(last),
                range[2] + count as i64,
            ];
        }
        Ok(())
    }
}

impl Shell for Producer {
    async fn create(&mut self) -> Result<(), Fault> {
        self.world.pass(0..=20).await;
        self.life = Some(Life {
            term: self.process.term(),
            ..Life::default()
        });
        Ok(())
    }

    async fn init_transactions(&mut self) -> Result<(), Fault> {
        self.process.opens().await;
        let time = self.request_time() * 2;
        match self.exchange(Request::InitProducerId, time).await? {
            Answer::Epoch(epoch) => self.life()?.epoch = epoch,
            answer => return Err(refused(&answer)),
        }
        Ok(())
    }

    async fn read_position(&mut self, _: bool) -> Result<Option<PositionRecord>, Fault> {
        let time = self.request_time() * 2;
        let until = Instant::now() + time;
        let mut end = None;
        loop {
            let Answer::Ends { high, stable } = self.exchange(Request::Ends, time).await? else {
                return Err(away("an answer to something else"));
            };
            if stable >= *end.get_or_insert(high) {
                break;
            }
            if Instant::now() >= until {
                return Err(away("an open transaction does not end"));
            }
            sleep(Duration::from_millis(5)).await;
        }
        match self.exchange(Request::LastPosition, time).await? {
            Answer::Position(found) => Ok(found.map(|record| *record)),
            answer => Err(refused(&answer)),
        }
    }

    async fn begin(&mut self) -> Result<(), Fault> {
        let life = self.life()?;
        life.signals.clear();
        life.registered.clear();
        life.delivered.clear();
        life.queue.clear();
        life.transactions.clear();
        Ok(())
    }

    async fn produce(&mut self, slices: Vec<Slice>) -> Result<(), Fault> {
        for slice in &slices {
            self.is_publishable(slice)?;
            for (index, event) in slice.events.iter().enumerate() {
                let key = event
                    .key
                    .as_deref()
                    .map(String::from_utf8_lossy)
                    .unwrap_or_default();
                let partition = self.world.partition_of(&event.topic, &key);
                let written = self.written(Content::Event {
                    id: event.id,
                    key: key.into_owned(),
                    tx_id: Arc::clone(&slice.tx_id),
                    tx_index: (slice.first_index + index as u64) as u32,
                    tx_count: slice.tx_count as u32,
                })?;
                self.life()?
                    .queue
                    .entry(partition)
                    .or_default()
                    .push(written);
            }
        }
        // The client sends as it likes.
        match self.world.chance(0.5) {
            true => self.send().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<Partitions, Fault> {
        self.send().await?;
        Ok(self.life()?.delivered.clone())
    }

    async fn produce_position(&mut self, record: &PositionRecord) -> Result<(), Fault> {
        // Through its stored form, as in production.
        let record = PositionRecord::decode(&record.encode()?)?;
        let written = self.written(Content::Position(Box::new(record)))?;
        self.life()?
            .queue
            .entry(POSITIONS)
            .or_default()
            .push(written);
        Ok(())
    }

    async fn commit(&mut self) -> Result<Committed, Fault> {
        let start = Instant::now();
        self.end(true).await?;
        let life = self.life()?;
        life.signals.push(Signal::EndTxnOk);
        Ok(Committed {
            signals: std::mem::take(&mut life.signals),
            elapsed_ms: start.elapsed().as_millis() as u64,
        })
    }

    async fn drop_producer(&mut self) {
        self.life = None;
    }
}
