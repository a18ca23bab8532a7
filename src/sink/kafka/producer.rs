//! The thin shell around librdkafka: carries out the machine's commands in a thread of its own, because the transaction
//! calls block.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::event::{Event, Slice};
use crate::fault::{Fault, Server};
use crate::sink::kafka::batches::Batches;
use crate::sink::kafka::classify::{At, fault_of, of_code, redacted};
use crate::sink::kafka::late::{Late, Try};
use crate::sink::kafka::machine::{Committed, Signal};
use crate::sink::kafka::position_topic::{self, Readers, topic_of};
use crate::sink::kafka::record::{Partitions, PositionRecord, REPLAY, headers};
use crate::sink::kafka::topic::{Admin, LEGAL, discard, is_absence, is_legal, pause};
use crate::sink::kafka::{KafkaSettings, secrets};

/// Memory that queued records may take; a full queue makes `produce` wait.
const QUEUE_KBYTES_MAX: u32 = 32_768;
/// Signals kept of one transaction. More add nothing: any that is kept but the good one makes the commit suspicious.
const SIGNALS_MAX: usize = 64;
/// How long the line with the answer to EndTxn is waited for. It is queued before the commit call returns.
const ANSWER_WAIT: Duration = Duration::from_millis(100);
/// How often is looked whether the broker gave the epoch, or said "not yet".
const INIT_LOOK_EVERY: Duration = Duration::from_millis(5);
/// Longest pause before it is asked anew.
const INIT_WAIT_MAX: Duration = Duration::from_millis(100);
/// How often an idle producer's log is emptied.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// How long a dropped producer is waited for; then its thread ends by itself. Its epoch is fenced anyway.
const DROP_WAIT: Duration = Duration::from_secs(2);
/// Records between two looks at the delivery reports.
const SERVE_EVERY: u64 = 1_024;
/// How long the reports of a failed transaction are waited for, to find the one that says why.
const REPORTS_WAIT: Duration = Duration::from_secs(1);
/// How long deliveries may take before the topics are looked for.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(2);
/// Opaque of the position record; events have the index of their topic.
const POSITION_RECORD: usize = usize::MAX;
/// Beside the index of its topic: it is a letter about a parked transaction, and no position record claims it.
const LETTER: usize = 1 << (usize::BITS - 2);

/// What a delivery report is about.
fn is_letter(opaque: usize) -> bool {
    opaque != POSITION_RECORD && opaque & LETTER != 0
}

fn refused_letter(why: &str) -> Fault {
    Fault::Refused(format!(
        "the dead-letter topic: {why}; or leave dead-letter-topic out"
    ))
}

/// Carries out commands of the machine. A simulator implements it too.
///
/// A future that is dropped must leave the shell so that `drop_producer` works.
#[allow(
    async_fn_in_trait,
    reason = "driven by the sink, which runs in the relay's one task"
)]
pub trait Shell {
    /// Makes a producer.
    ///
    /// # Errors
    /// [`Fault::Setting`] if the client library refuses its settings.
    async fn create(&mut self) -> Result<(), Fault>;

    /// Takes the epoch.
    ///
    /// # Errors
    /// By the broker's answer.
    async fn init_transactions(&mut self) -> Result<(), Fault>;

    /// Reads the last committed position record; `check_topic`: creates or checks the position topic first.
    ///
    /// # Errors
    /// [`Fault::Refused`] for a topic that may lose the position, or a record that can't be read;
    /// [`Fault::Unavailable`] if it could not be read in time.
    async fn read_position(&mut self, check_topic: bool) -> Result<Option<PositionRecord>, Fault>;

    /// Begins a transaction and forgets the signals so far.
    ///
    /// # Errors
    /// By the client library's answer.
    async fn begin(&mut self) -> Result<(), Fault>;

    /// Accepts slices. They may be queued after it returns: an error then comes with the next call.
    ///
    /// # Errors
    /// [`Fault::Unpublishable`] for an event that no try would publish.
    async fn produce(&mut self, slices: Vec<Slice>) -> Result<(), Fault>;

    /// Waits until all is acknowledged; answers where the events of this transaction are.
    ///
    /// # Errors
    /// By the first delivery that failed.
    async fn flush(&mut self) -> Result<Partitions, Fault>;

    /// Queues the position record.
    ///
    /// # Errors
    /// By the client library's answer.
    async fn produce_position(&mut self, record: &PositionRecord) -> Result<(), Fault>;

    /// Commits.
    ///
    /// # Errors
    /// By the broker's answer; the outcome is unknown then.
    async fn commit(&mut self) -> Result<Committed, Fault>;

    /// Lets go of the producer, if there is one.
    async fn drop_producer(&mut self);
}

type Work = Box<dyn FnOnce(&mut Worker) + Send>;

/// The [`Shell`] of production: one thread for each producer's life.
///
/// A thread of its own for each, so that a call that blocks (its caller went away, the broker does not answer) can't keep
/// the next producer from being made. Dropping the shell closes the channel; the thread then drops its producer and ends.
pub struct ThreadShell {
    settings: Arc<KafkaSettings>,
    late: Late,
    batches: Batches,
    life: Option<Life>,
}

struct Life {
    orders: mpsc::Sender<Work>,
    /// Resolves when the thread has ended.
    gone: oneshot::Receiver<()>,
    /// The slices that the thread is queueing while the next ones are gathered.
    producing: Option<oneshot::Receiver<Result<(), Fault>>>,
}

impl ThreadShell {
    /// No producer yet.
    #[must_use]
    pub fn new(settings: Arc<KafkaSettings>) -> Self {
        Self {
            batches: Batches::new(settings.properties.get("batch.size")),
            settings,
            late: Late::default(),
            life: None,
        }
    }

    /// Sends work to the thread; the receiver may be dropped.
    fn order<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, Fault> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, Fault>> {
        let (reply, answer) = oneshot::channel();
        if let Some(life) = &self.life {
            // If the thread is gone, so is `reply`, which the receiver notices. A receiver that went away does not matter.
            let _ = life.orders.send(Box::new(move |worker| {
                let _ = reply.send(work(worker));
            }));
        }
        answer
    }

    /// The same, after what was ordered before, with the answer.
    async fn ask<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Worker) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.produced().await?;
        answer_of(self.order(work)).await
    }

    async fn produced(&mut self) -> Result<(), Fault> {
        match self.life.as_mut().and_then(|life| life.producing.take()) {
            Some(answer) => answer_of(answer).await,
            None => Ok(()),
        }
    }
}

async fn answer_of<T>(answer: oneshot::Receiver<Result<T, Fault>>) -> Result<T, Fault> {
    answer
        .await
        .unwrap_or_else(|_| Err(Fault::Defect("the Kafka producer's thread is gone".into())))
}

impl Shell for ThreadShell {
    async fn create(&mut self) -> Result<(), Fault> {
        let (orders, inbox) = mpsc::channel::<Work>();
        let (end, gone) = oneshot::channel();
        let (reply, created) = oneshot::channel();
        let (settings, runtime) = (Arc::clone(&self.settings), Handle::current());
        let (late, batches) = (self.late.clone(), self.batches.clone());
        let run = move || {
            let _end = end;
            match Worker::new(settings, runtime, late, batches) {
                Ok(worker) => {
                    let _ = reply.send(Ok(()));
                    worker.run(&inbox);
                }
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            }
        };
        std::thread::Builder::new()
            .name("kafka-producer".into())
            .spawn(run)
            .map_err(|error| {
                Fault::Unavailable(
                    Server::Kafka,
                    format!("no thread for the producer: {error}"),
                )
            })?;
        self.life = Some(Life {
            orders,
            gone,
            producing: None,
        });
        answer_of(created).await
    }

    async fn init_transactions(&mut self) -> Result<(), Fault> {
        self.ask(Worker::init_transactions).await
    }

    async fn read_position(&mut self, check_topic: bool) -> Result<Option<PositionRecord>, Fault> {
        self.ask(move |worker| worker.read_position(check_topic))
            .await
    }

    async fn begin(&mut self) -> Result<(), Fault> {
        self.ask(Worker::begin).await
    }

    async fn produce(&mut self, slices: Vec<Slice>) -> Result<(), Fault> {
        self.produced().await?;
        let answer = self.order(move |worker| worker.produce(&slices));
        if let Some(life) = &mut self.life {
            life.producing = Some(answer);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<Partitions, Fault> {
        self.ask(Worker::flush).await
    }

    async fn produce_position(&mut self, record: &PositionRecord) -> Result<(), Fault> {
        let value = record.encode()?;
        self.ask(move |worker| worker.produce_position(&value))
            .await
    }

    async fn commit(&mut self) -> Result<Committed, Fault> {
        self.ask(Worker::commit).await
    }

    async fn drop_producer(&mut self) {
        if let Some(Life { orders, gone, .. }) = self.life.take() {
            drop(orders);
            if tokio::time::timeout(DROP_WAIT, gone).await.is_err() {
                tracing::warn!(
                    "the Kafka producer's thread is still in a call; going on without it"
                );
            }
        }
    }
}

/// What the callbacks saw since `begin`. They run inside `poll`, in the worker's thread, so the lock is never contended.
#[derive(Default)]
struct Seen {
    /// Callbacks of any kind, ever: tells whether a poll did something.
    callbacks: u64,
    delivered: u64,
    undelivered: u64,
    failed: Option<(RDKafkaErrorCode, usize)>,
    ranges: BTreeMap<(usize, i32), [i64; 3]>,
    /// The range that the last delivery went to; deliveries come in runs of one partition.
    run: Option<((usize, i32), [i64; 3])>,
    signals: Vec<Signal>,
    last_error: Option<String>,
    /// The first partition that the broker would not take into the transaction, as the log says it. Only shown.
    not_added: Option<String>,
}

impl Seen {
    fn begin(&mut self) {
        *self = Self {
            callbacks: self.callbacks,
            ..Self::default()
        };
    }

    fn signal(&mut self, signal: Signal) {
        if self.signals.len() < SIGNALS_MAX {
            self.signals.push(signal);
        }
    }

    fn delivered(&mut self, topic: usize, partition: i32, offset: i64) {
        self.delivered += 1;
        if topic == POSITION_RECORD || is_letter(topic) {
            return;
        }
        let at = (topic, partition);
        match &mut self.run {
            Some((run, range)) if *run == at => merge(range, [offset, offset, 1]),
            _ => {
                self.end_run();
                self.run = Some((at, [offset, offset, 1]));
            }
        }
    }

    /// The first that failed by itself is the cause; the rest were purged, some of them before.
    fn undelivered(&mut self, code: RDKafkaErrorCode, topic: usize) {
        self.undelivered += 1;
        let failed = self.failed.get_or_insert((code, topic));
        if is_consequence(failed.0) {
            *failed = (code, topic);
        }
    }

    fn cause(&self) -> Option<(RDKafkaErrorCode, usize)> {
        self.failed.filter(|(code, _)| !is_consequence(*code))
    }

    fn end_run(&mut self) {
        if let Some((at, range)) = self.run.take() {
            self.ranges
                .entry(at)
                .and_modify(|known| merge(known, range))
                .or_insert(range);
        }
    }
}

fn merge(known: &mut [i64; 3], [first, last, count]: [i64; 3]) {
    *known = [known[0].min(first), known[1].max(last), known[2] + count];
}

#[derive(Default)]
struct Context(Mutex<Seen>);

impl Context {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let mut seen = self.seen();
        seen.callbacks += 1;
        if let Some(signal) = Signal::of_log_line(facility, line) {
            seen.signal(signal);
        }
        if facility == "TXNERR" {
            seen.last_error = Some(line.to_owned());
        }
        if facility == "ADDPARTS" && is_refusal(line) {
            seen.not_added.get_or_insert_with(|| line.to_owned());
        }
        drop(seen);
        forward_log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut seen = self.seen();
        seen.callbacks += 1;
        // Every kind: what is known to be harmless today may not be with the next version.
        seen.signal(Signal::Error(format!("{error}: {reason}")));
        seen.last_error = Some(reason.to_owned());
        drop(seen);
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, topic: usize) {
        let mut seen = self.seen();
        seen.callbacks += 1;
        match result {
            // A retry that the broker knew already has no offset; the position record would lie.
            Ok(message) if message.offset() < 0 => {
                seen.undelivered(RDKafkaErrorCode::Inconsistent, topic);
            }
            Ok(message) => seen.delivered(topic, message.partition(), message.offset()),
            Err((error, _)) => {
                let code = error
                    .rdkafka_error_code()
                    .unwrap_or(RDKafkaErrorCode::Unknown);
                seen.undelivered(code, topic);
            }
        }
    }
}

/// The client's log, at levels that suit a service: the relay tells itself what it does about an error.
pub(super) fn forward_log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        // That a property is for the other kind of client: the consumers get the producer's properties too.
        _ if facility == "CONFWARN" => tracing::trace!(target: "librdkafka", "{facility} {line}"),
        RDKafkaLogLevel::Debug => tracing::trace!(target: "librdkafka", "{facility} {line}"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
            tracing::debug!(target: "librdkafka", "{facility} {line}")
        }
        _ => tracing::warn!(target: "librdkafka", "{facility} {line}"),
    }
}

/// A producer and what belongs to its thread.
struct Worker {
    settings: Arc<KafkaSettings>,
    runtime: Handle,
    config: ClientConfig,
    producer: BaseProducer<Context>,
    /// They connect while the epoch is taken.
    readers: Option<Readers>,
    /// Topics that exist, with their index in `names`.
    topics: HashMap<Arc<str>, usize>,
    names: Vec<Arc<str>>,
    /// Records queued since `begin`.
    sent: u64,
    /// The topics that events went to since `begin`.
    sent_to: BTreeSet<usize>,
    /// The database transaction, as long as there is only one in this Kafka transaction: then a fault can name it.
    tx_id: Option<Arc<str>>,
    transactions: u64,
    begun: Instant,
    late: Late,
    batches: Batches,
}

impl Worker {
    fn new(
        settings: Arc<KafkaSettings>,
        runtime: Handle,
        late: Late,
        batches: Batches,
    ) -> Result<Self, Fault> {
        let config = settings.client_config();
        let producer = producer(&settings, &batches)?;
        let readers = Some(Readers::new(&settings)?);
        Ok(Self {
            settings,
            readers,
            runtime,
            config,
            producer,
            topics: HashMap::new(),
            names: Vec::new(),
            sent: 0,
            sent_to: BTreeSet::new(),
            tx_id: None,
            transactions: 0,
            begun: Instant::now(),
            late,
            batches,
        })
    }

    /// Until the shell lets go. The log is served when idle too, else it would pile up while a broker is away.
    fn run(mut self, inbox: &mpsc::Receiver<Work>) {
        loop {
            match inbox.recv_timeout(IDLE_EVERY) {
                Ok(work) => work(&mut self),
                Err(RecvTimeoutError::Timeout) => self.drain(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.producer.context().seen()
    }

    /// The lock is free again when it answers: whoever judges the failure takes it anew.
    fn failed(&self) -> Option<(RDKafkaErrorCode, usize)> {
        self.seen().failed
    }

    fn fault(&self, error: &KafkaError, at: At<'_>) -> Fault {
        let last_error = self.seen().last_error.clone();
        fault_of(error, at, last_error.as_deref())
    }

    /// Serves one event of the client's queue; whether there was one. `poll` with a time goes on until that has passed,
    /// and burns the last millisecond.
    fn serve(&self) -> bool {
        let before = self.seen().callbacks;
        self.producer.poll(Duration::ZERO);
        self.seen().callbacks != before
    }

    fn drain(&self) {
        while self.serve() {}
    }

    /// Serves the queue until `done` answers; `None` if that takes longer than `time`.
    fn serve_until<T>(&self, time: Duration, done: impl Fn(&mut Seen) -> Option<T>) -> Option<T> {
        const LEAST: Duration = Duration::from_micros(50);
        const MOST: Duration = Duration::from_millis(1);
        let until = Instant::now() + time;
        let mut wait = LEAST;
        loop {
            if let Some(answer) = done(&mut self.seen()) {
                return Some(answer);
            }
            if self.serve() {
                wait = LEAST;
            } else if Instant::now() >= until {
                return None;
            } else {
                pause(wait);
                wait = (wait * 5 / 4).min(MOST);
            }
        }
    }

    /// Takes the epoch, as soon as the broker gives it.
    ///
    /// While the coordinator ends what an older producer left open, or loads, it says "not yet". The client then waits for
    /// half a second, always, before it asks again (`rd_kafka_idemp_pid_timer_restart`); a new one asks at once.
    fn init_transactions(&mut self) -> Result<(), Fault> {
        let until = Instant::now() + self.settings.request_time() * 2;
        let mut wait = INIT_LOOK_EVERY;
        loop {
            self.connect();
            let Err(error) = self.init_or_refusal(until) else {
                self.drain();
                return Ok(());
            };
            if Instant::now() >= until || !is_retriable(&error) {
                self.drain();
                return Err(self.fault(&error, At::Cluster));
            }
            pause(wait);
            wait = (wait * 2).min(INIT_WAIT_MAX);
            let asked =
                std::mem::replace(&mut self.producer, producer(&self.settings, &self.batches)?);
            discard(asked);
        }
    }

    /// A call that was cut short is resumed by the next one, and says what the broker said meanwhile.
    fn init_or_refusal(&self, until: Instant) -> Result<(), KafkaError> {
        loop {
            let result = self.producer.init_transactions(INIT_LOOK_EVERY);
            let timed_out = |error: &KafkaError| {
                error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut)
            };
            if !result.as_ref().is_err_and(timed_out) || Instant::now() >= until {
                return result;
            }
        }
    }

    /// A client keeps the connection to a broker by its address only until it knows the broker by its number; asked for the
    /// coordinator without a connection, it looks again after half a second or a whole one. This request makes one.
    fn connect(&self) {
        let topic = topic_of(&self.settings.name);
        // What is wrong, if it is, the next call says better.
        let _ = self.trouble_with(&topic, self.settings.request_time());
    }

    /// The settings of the topic are asked for while it is read: a successor must not wait for both.
    fn read_position(&mut self, check_topic: bool) -> Result<Option<PositionRecord>, Fault> {
        let topic = topic_of(&self.settings.name);
        let readers = match self.readers.take() {
            Some(readers) => readers,
            None => Readers::new(&self.settings)?,
        };
        if !check_topic || !self.settings.check_position_topic {
            return self.last_record(&topic, readers);
        }
        let found = position_topic::find_or_create(&topic, &readers, &self.admin())?;
        let Some(found) = found else {
            return self.last_record(&topic, readers);
        };
        let (checked, last) = std::thread::scope(|scope| {
            let checking = scope.spawn(|| found.check(&topic, &self.admin()));
            let last = self.last_record(&topic, readers);
            let died = |_| Err(Fault::Defect("the check of the position topic died".into()));
            (checking.join().unwrap_or_else(died), last)
        });
        checked.and(last)
    }

    fn last_record(&self, topic: &str, readers: Readers) -> Result<Option<PositionRecord>, Fault> {
        let time = self.settings.request_time() * 2;
        let last = position_topic::read(topic, &readers, &self.settings.name, time);
        discard(readers);
        last
    }

    fn admin(&self) -> Admin<'_> {
        Admin {
            config: &self.config,
            runtime: &self.runtime,
            timeout: self.settings.request_time(),
        }
    }

    fn begin(&mut self) -> Result<(), Fault> {
        // What came before can't be about this transaction: the one before it ended cleanly.
        self.drain();
        self.seen().begin();
        (self.sent, self.tx_id, self.transactions) = (0, None, 0);
        self.begun = Instant::now();
        self.sent_to.clear();
        self.producer
            .begin_transaction()
            .map_err(|error| self.fault(&error, At::Cluster))
    }

    fn produce(&mut self, slices: &[Slice]) -> Result<(), Fault> {
        for slice in slices {
            if self.tx_id.as_ref() != Some(&slice.tx_id) {
                self.transactions += 1;
                self.tx_id = Some(Arc::clone(&slice.tx_id));
            }
            for (index, event) in slice.events.iter().enumerate() {
                let topic = self.topic(slice, event)?;
                self.send(slice, index, event, topic)?;
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        slice: &Slice,
        index: usize,
        event: &Event,
        topic: usize,
    ) -> Result<(), Fault> {
        let start = OwnedHeaders::new_with_capacity(5 + event.headers.len());
        let headers = headers(slice, index, event, start, |headers, key, value| {
            headers.insert(Header { key, value })
        });
        let replay = self.settings.replay.as_deref();
        let headers = replay.into_iter().fold(headers, |headers, value| {
            let value = Some(value);
            headers.insert(Header { key: REPLAY, value })
        });
        let record = BaseRecord {
            topic: &event.topic,
            partition: None,
            payload: event.payload.as_deref(),
            key: event.key.as_deref(),
            timestamp: Some(event.occurred_at_ms),
            headers: Some(headers),
            delivery_opaque: match slice.is_letter() {
                true => topic | LETTER,
                false => topic,
            },
        };
        let at = At::Event {
            topic: &event.topic,
            tx_id: &slice.tx_id,
        };
        self.queue(record, at).map_err(|fault| match fault {
            Fault::Unpublishable { why, .. } if slice.is_letter() => refused_letter(&why),
            fault => fault,
        })?;
        self.sent += 1;
        self.sent_to.insert(topic);
        if self.sent.is_multiple_of(SERVE_EVERY) {
            self.drain();
            if let Some(failed) = self.failed() {
                return Err(self.delivery_fault(failed));
            }
        }
        Ok(())
    }

    /// Hands a record to the client; while its queue is full, waits for deliveries.
    fn queue(&self, record: BaseRecord<'_, [u8], [u8], usize>, at: At<'_>) -> Result<(), Fault> {
        let mut record = record;
        let until = Instant::now() + self.settings.transaction_time();
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < until =>
                {
                    record = back;
                    self.wait_for_room()?;
                }
                // The transaction has failed, by what was queued before.
                Err((
                    KafkaError::MessageProduction(code @ RDKafkaErrorCode::State),
                    BaseRecord {
                        delivery_opaque, ..
                    },
                )) => return Err(self.delivery_fault((code, delivery_opaque))),
                Err((error, _)) => return Err(self.fault(&error, at)),
            }
        }
    }

    /// Waits for a delivery; if none comes for long, looks for the topics.
    fn wait_for_room(&self) -> Result<(), Fault> {
        let before = self.seen().delivered;
        let outcome = self.serve_until(DELIVERY_PATIENCE, |seen| match seen.failed {
            Some(failed) => Some(Err(failed)),
            None => (seen.delivered > before).then_some(Ok(())),
        });
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(failed)) => Err(self.delivery_fault(failed)),
            None => self.topics_are_there(),
        }
    }

    /// Index of the event's topic, which is known to exist then.
    fn topic(&mut self, slice: &Slice, event: &Event) -> Result<usize, Fault> {
        if let Some(index) = self.topics.get(&event.topic) {
            return Ok(*index);
        }
        self.ensure_topic(&event.topic, &slice.tx_id)?;
        self.names.push(Arc::clone(&event.topic));
        self.topics
            .insert(Arc::clone(&event.topic), self.names.len() - 1);
        Ok(self.names.len() - 1)
    }

    fn ensure_topic(&self, topic: &str, tx_id: &str) -> Result<(), Fault> {
        let unpublishable = |why: String| {
            Err(Fault::Unpublishable {
                tx_id: tx_id.to_owned(),
                topic: Some(topic.to_owned()),
                why,
            })
        };
        if !is_legal(topic) {
            return unpublishable(format!("{topic:?} is no topic name: {LEGAL}"));
        }
        let at = At::Event { topic, tx_id };
        let trouble = self.trouble_with(topic, self.settings.request_time());
        match trouble.map_err(|error| self.fault(&error, At::Cluster))? {
            None => return Ok(()),
            Some(code) if is_absence(code) => {}
            Some(code) => return Err(of_code(code, at, code.to_string())),
        }
        if !self.settings.create_topics {
            return unpublishable(format!(
                "topic {topic} does not exist; create it, or set create_topics"
            ));
        }
        tracing::info!(topic, "creating the topic");
        let factor = TopicReplication::Fixed(self.settings.topic_replication_factor);
        self.admin().create(
            &NewTopic::new(topic, self.settings.topic_partitions, factor),
            at,
        )
    }

    /// What the brokers say is wrong with a topic, if anything.
    fn trouble_with(
        &self,
        topic: &str,
        time: Duration,
    ) -> Result<Option<RDKafkaErrorCode>, KafkaError> {
        let metadata = self.producer.client().fetch_metadata(Some(topic), time)?;
        Ok(match metadata.topics().first() {
            Some(found) => found.error().map(RDKafkaErrorCode::from),
            None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
        })
    }

    /// The client waits for a topic that was deleted as for one that has no leader at the moment, in silence and up to the
    /// end of the transaction's time (measured). A new producer looks for each topic anew, and finds what is to be said.
    fn topics_are_there(&self) -> Result<(), Fault> {
        let position_topic = topic_of(&self.settings.name);
        let sent_to = self
            .sent_to
            .iter()
            .filter_map(|topic| self.names.get(*topic));
        for topic in sent_to.map(|name| &**name).chain([&*position_topic]) {
            match self.trouble_with(topic, DELIVERY_PATIENCE) {
                Ok(Some(code)) if is_absence(code) => {
                    return Err(Fault::Recycle(format!("topic {topic} was deleted")));
                }
                Ok(_) => {}
                // Brokers that do not answer are no proof of anything, and will be as silent about the next topic.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// A transaction that failed purges its records and takes no more. Which record was the first, some report says; if they
    /// were all purged, what the client answers to a call that does not suit a failed transaction says why it failed. Some
    /// causes no new producer will cure.
    fn cause(&self, failed: (RDKafkaErrorCode, usize)) -> (RDKafkaErrorCode, usize) {
        let (code, topic) = failed;
        if !is_consequence(code) {
            return failed;
        }
        let reported = self.serve_until(REPORTS_WAIT, |seen| {
            let all = seen.delivered + seen.undelivered >= self.sent;
            seen.cause().map(Some).or(all.then_some(None))
        });
        if let Some(Some(cause)) = reported {
            return cause;
        }
        let refused = self.producer.begin_transaction().err();
        let cause = refused.and_then(|error| error.rdkafka_error_code());
        (cause.unwrap_or(code), topic)
    }

    fn delivery_fault(&self, failed: (RDKafkaErrorCode, usize)) -> Fault {
        if let Some(fault) = self.lateness() {
            return fault;
        }
        let (code, opaque) = self.cause(failed);
        let topic = match is_letter(opaque) {
            true => opaque & !LETTER,
            false => opaque,
        };
        if let Some(fault) = self.batch_was_too_large(code, topic) {
            return fault;
        }
        let seen = self.seen();
        let last_error = seen.last_error.clone().unwrap_or_default();
        // A record that failed by itself has its own topic to blame.
        let blamed = (is_consequence(failed.0) && seen.cause().is_none())
            .then_some(seen.not_added.as_ref())
            .flatten()
            .and_then(|line| named_in(line, &self.names));
        drop(seen);
        let position_topic = topic_of(&self.settings.name);
        let tx_id = self
            .tx_id
            .as_deref()
            .filter(|_| self.transactions == 1)
            .unwrap_or("?");
        let at = match self.names.get(topic) {
            Some(topic) => At::Event {
                topic: blamed.unwrap_or(topic),
                tx_id,
            },
            None => At::PositionTopic(&position_topic),
        };
        // Another topic of the same Kafka transaction may be to blame.
        let is_letter = is_letter(opaque)
            && blamed.is_none_or(|it| Some(it) == self.names.get(topic).map(|it| &**it));
        let text = format!("a record was not delivered: {code} ({last_error})");
        match of_code(code, at, text) {
            Fault::Unpublishable { why, .. } if is_letter => refused_letter(&why),
            fault => fault,
        }
    }

    /// Whether a batch was refused that may have been too many records.
    fn batch_was_too_large(&self, code: RDKafkaErrorCode, topic: usize) -> Option<Fault> {
        let topic = self.names.get(topic)?;
        let too_large = [
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::MessageBatchTooLarge,
        ];
        if !too_large.contains(&code) {
            return None;
        }
        let limits = self
            .admin()
            .settings(topic, ["max.message.bytes", "max.message.bytes"]);
        let limit = limits.ok().and_then(|[limit, _]| limit?.parse().ok());
        self.batches.refused(limit).then(|| {
            let (bytes_max, limit) = (self.batches.bytes_max(), limit.map_or_else(
                || "which may not be asked for (DescribeConfigs)".to_owned(),
                |limit: usize| limit.to_string(),
            ));
            Fault::Recycle(format!(
                "topic {topic} refused a batch: its max.message.bytes is {limit}; batches have {bytes_max} bytes from now on"
            ))
        })
    }

    /// Whether the one transaction that failed needs more time than there is.
    fn lateness(&self) -> Option<Fault> {
        let tx_id = self.tx_id.as_ref().filter(|_| self.transactions == 1)?;
        self.late.judge(&Try {
            tx_id,
            took: self.begun.elapsed(),
            limit: self.settings.transaction_time(),
            delivered: self.seen().delivered,
        })
    }

    /// Waits for all deliveries, and stops at the first that failed.
    fn flush(&mut self) -> Result<Partitions, Fault> {
        let until = Instant::now() + self.settings.transaction_time();
        let sent = self.sent;
        loop {
            let outcome = self.serve_until(DELIVERY_PATIENCE, |seen| match seen.failed {
                Some(failed) => Some(Err(failed)),
                None => (seen.delivered == sent).then_some(Ok(())),
            });
            match outcome {
                Some(Ok(())) => return Ok(self.partitions()),
                Some(Err(failed)) => return Err(self.delivery_fault(failed)),
                None if Instant::now() < until => self.topics_are_there()?,
                None => {
                    let late = (RDKafkaErrorCode::MessageTimedOut, POSITION_RECORD);
                    return Err(self.delivery_fault(late));
                }
            }
        }
    }

    fn partitions(&self) -> Partitions {
        let mut seen = self.seen();
        seen.end_run();
        let mut partitions = Partitions::new();
        for ((topic, partition), range) in &seen.ranges {
            if let Some(name) = self.names.get(*topic) {
                partitions
                    .entry(name.to_string())
                    .or_default()
                    .insert(*partition, *range);
            }
        }
        partitions
    }

    fn produce_position(&mut self, value: &[u8]) -> Result<(), Fault> {
        let topic = topic_of(&self.settings.name);
        let record = BaseRecord {
            topic: &topic,
            partition: Some(0),
            payload: Some(value),
            key: Some(self.settings.name.as_bytes()),
            timestamp: None,
            headers: None,
            delivery_opaque: POSITION_RECORD,
        };
        self.queue(record, At::PositionTopic(&topic))?;
        self.sent += 1;
        Ok(())
    }

    /// The flush before it has emptied the queue: else the crate's commit would poll it in steps of 100 ms.
    fn commit(&mut self) -> Result<Committed, Fault> {
        self.drain();
        let start = Instant::now();
        let result = self
            .producer
            .commit_transaction(self.settings.transaction_time());
        let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Err(error) = result {
            self.drain();
            return Err(self.fault(&error, At::Cluster));
        }
        // The queue is first in, first out: what the client logged before the answer is served before it. No answer in
        // time: the machine takes that for suspicious.
        let _ = self.serve_until(ANSWER_WAIT, |seen| {
            seen.signals.contains(&Signal::EndTxnOk).then_some(())
        });
        self.drain();
        let signals = std::mem::take(&mut self.seen().signals);
        Ok(Committed {
            signals,
            elapsed_ms,
        })
    }
}

/// Whether the broker would not take the partition into the transaction, and not only left it aside because of another.
fn is_refusal(line: &str) -> bool {
    line.contains("Failed to add partition") && !line.contains("Operation not attempted")
}

/// The topic that stands in the line, in quotes.
fn named_in<'n>(line: &str, names: &'n [Arc<str>]) -> Option<&'n str> {
    let mut names = names.iter().map(|name| &**name);
    names.find(|name| line.contains(&format!("\"{name}\"")))
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(error) if error.is_retriable())
}

/// What a record or a call is answered because the transaction has failed already.
fn is_consequence(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::State
    )
}

pub(super) fn creation_fault(settings: &KafkaSettings, error: KafkaError) -> Fault {
    let error = match error {
        KafkaError::ClientCreation(text) => {
            KafkaError::ClientCreation(redacted(&text, &secrets(settings)))
        }
        other => other,
    };
    fault_of(&error, At::Cluster, None)
}

fn producer(settings: &KafkaSettings, batches: &Batches) -> Result<BaseProducer<Context>, Fault> {
    let mut config = producer_config(settings);
    config.set("batch.size", batches.bytes_max().to_string());
    BaseProducer::from_config_and_context(&config, Context::default())
        .map_err(|error| creation_fault(settings, error))
}

fn producer_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = settings.client_config();
    // No name of a relay makes the one the other: that would fence it.
    let role = match settings.replay {
        Some(_) => "outbox-relay-replay",
        None => "outbox-relay",
    };
    config
        .set("transactional.id", format!("{role}.{}", settings.name))
        .set(
            "transaction.timeout.ms",
            settings.transaction_timeout_ms.to_string(),
        )
        .set("enable.idempotence", "true")
        // As the Java clients do it, so that a key has one partition whoever writes it.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", settings.linger_ms.to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KBYTES_MAX.to_string())
        // The lines that the recycling rule reads.
        .set("debug", "eos")
        .set_log_level(RDKafkaLogLevel::Debug);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_gathered_by_topic_and_partition() {
        let mut seen = Seen::default();
        for (topic, partition, offset) in [
            (0, 1, 7),
            (0, 1, 8),
            (1, 0, 3),
            (0, 1, 5),
            (POSITION_RECORD, 0, 9),
        ] {
            seen.delivered(topic, partition, offset);
        }
        seen.end_run();
        assert_eq!(
            seen.ranges,
            [((0, 1), [5, 8, 3]), ((1, 0), [3, 3, 1])].into()
        );
        assert_eq!(seen.delivered, 5);
    }

    #[test]
    fn the_record_that_failed_by_itself_is_the_cause() {
        use RDKafkaErrorCode as Code;
        let mut seen = Seen::default();
        for (code, topic) in [
            (Code::PurgeQueue, 0),
            (Code::TopicAuthorizationFailed, 1),
            (Code::PurgeInflight, 2),
            (Code::MessageTimedOut, 3),
        ] {
            assert_eq!(seen.cause().is_some(), topic > 1);
            seen.undelivered(code, topic);
        }
        assert_eq!(seen.cause(), Some((Code::TopicAuthorizationFailed, 1)));
        assert_eq!(seen.undelivered, 4);
    }

    #[test]
    fn the_topic_to_blame_is_the_one_that_was_refused() {
        let line = |topic, why| {
            format!(
                "[thrd:main]: TxnCoordinator/1: Failed to add partition \"{topic}\" [2] to transaction: Broker: {why}"
            )
        };
        let refused = line("a.b", "Topic authorization failed");
        assert!(is_refusal(&refused) && !is_refusal(&line("a", "Operation not attempted")));
        let names = ["a", "b", "a.b"].map(Arc::from);
        assert_eq!(named_in(&refused, &names), Some("a.b"));
        assert_eq!(named_in(&refused, &names[..2]), None);
    }
}
