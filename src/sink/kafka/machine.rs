//! The Kafka sink as a state machine: inputs in, commands out. Pure: no IO, no clock, no type of the client library, so
//! that the simulator drives the same code as production.
//!
//! ```text
//! opening     Create → ProveLease → InitTransactions → ProveLease → ReadPosition → ready
//! publishing  Begin → Produce … → Flush → ProducePosition → Flush → Commit → verdict
//! verdict     clean → ready; suspicious → DropProducer → opening, and the position must be the batch's
//! any failure DropProducer → closed
//! ```
//!
//! **Why recycling.** librdkafka speaks version 1 of the transaction protocol: all transactions of one producer have one
//! epoch. An `EndTxn` frame that was delayed on a dying connection, and retried on another, ends whatever transaction is
//! open when it arrives; every call answers OK and events are lost (measured). A new producer with the same
//! `transactional.id` has a new epoch, so the stale frame is fenced. So whenever such a frame may be on its way the
//! producer is made anew *before the next begin*.
//!
//! **Why nothing is ever aborted.** An abort is one more `EndTxn` frame that may go astray, and after an abort the
//! sequence numbers of the client may not fit any more (measured). A transaction that failed is ended by
//! `InitTransactions` of the next producer: the broker aborts it before it answers.
//!
//! **Why the lease is proven twice.** `InitTransactions` fences whoever is active. A zombie that recycles would fence the
//! rightful relay; the proof before keeps most zombies away, the one after it stops a zombie that was suspended in
//! between, before it reads a position or publishes.

use crate::fault::Fault;
use crate::position::Position;
use crate::sink::kafka::record::{Partitions, PositionRecord};

/// Something that was seen on the producer's log or error channel and bears on the outcome of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The broker said that it ended the transaction.
    EndTxnOk,
    /// A request to end the transaction had another answer, or none: the name of the error.
    EndTxnFailed(String),
    /// A request had no answer in time.
    RequestTimeout(String),
    /// A connection broke.
    ConnectionLost(String),
    /// An error without a request: all brokers down, a transport or authentication failure.
    Error(String),
}

impl Signal {
    /// Reads one log line of librdkafka; `None` for a line that says nothing about the outcome.
    ///
    /// `facility` and texts as in librdkafka 2.12: `rdkafka_txnmgr.c` (ENDTXN), `rdkafka_broker.c` (REQTMOUT, FAIL). A
    /// changed text can only make the relay recycle too often: without [`Signal::EndTxnOk`] no commit counts as clean.
    #[must_use]
    pub fn of_log_line(facility: &str, line: &str) -> Option<Self> {
        let text = || without_thread(line).to_owned();
        match facility {
            "ENDTXN" => Some(match end_txn_answer(line) {
                Some("NO_ERROR") => Self::EndTxnOk,
                Some(error) => Self::EndTxnFailed(error.to_owned()),
                // "Not sending EndTxn", "No partitions registered", and whatever a later version says.
                None => Self::EndTxnFailed(text()),
            }),
            "REQTMOUT" => Some(Self::RequestTimeout(text())),
            "FAIL" => Some(Self::ConnectionLost(text())),
            _ if line.contains("Disconnected") => Some(Self::ConnectionLost(text())),
            _ if line.contains("ALL_BROKERS_DOWN") => Some(Self::Error(text())),
            _ => None,
        }
    }
}

/// `… EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=true)` → `NO_ERROR`.
fn end_txn_answer(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("EndTxn returned ")?;
    rest.split_once(" in state ").map(|(answer, _)| answer)
}

/// librdkafka puts `[thrd:NAME]: ` before each line.
fn without_thread(line: &str) -> &str {
    match line.split_once("]: ") {
        Some((thread, rest)) if thread.starts_with("[thrd:") => rest,
        _ => line,
    }
}

/// Why a commit that answered OK can't be trusted to have left nothing behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// One of a few words, for metrics.
    pub reason: &'static str,
    /// What was seen.
    pub text: String,
}

/// Why the commit is suspicious; `None` if it is not.
///
/// `signals` are those since `Begin`, up to and with the end of the commit. A commit that took half of the socket timeout
/// may have been retried without a line that says so. Fails closed: silence is suspicious too.
#[must_use]
pub fn suspicion(
    signals: &[Signal],
    commit_elapsed_ms: u64,
    socket_timeout_ms: u32,
) -> Option<Suspicion> {
    let suspicion = |reason, text| Some(Suspicion { reason, text });
    for signal in signals {
        match signal {
            Signal::EndTxnOk => {}
            Signal::EndTxnFailed(text) => {
                return suspicion("answer", format!("EndTxn was answered by {text}"));
            }
            Signal::RequestTimeout(text) => return suspicion("request_timeout", text.clone()),
            Signal::ConnectionLost(text) => return suspicion("connection_lost", text.clone()),
            Signal::Error(text) => return suspicion("client_error", text.clone()),
        }
    }
    if commit_elapsed_ms >= u64::from(socket_timeout_ms) / 2 {
        return suspicion("slow", format!("the commit took {commit_elapsed_ms} ms"));
    }
    if !signals.contains(&Signal::EndTxnOk) {
        let text = "the broker's answer to EndTxn was not seen".into();
        return suspicion("no_answer", text);
    }
    None
}

/// What the shell shall do next. Each is answered by one [`Input`].
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Make a producer; there is none. Answer: [`Input::Done`].
    Create,
    /// A round trip on the lease's connection. Answer: [`Input::Done`].
    ProveLease,
    /// Take the epoch: fences older producers and aborts what they left open. Answer: [`Input::Done`].
    InitTransactions,
    /// Read the last position record. Answer: [`Input::Read`].
    ReadPosition {
        /// Create and check the position topic first: at an opening, not when recycling.
        check_topic: bool,
    },
    /// Begin a Kafka transaction; signals are gathered from here. Answer: [`Input::Done`].
    Begin,
    /// Queue the next slices of the batch. Answer: [`Input::Done`], or [`Input::Exhausted`] if there were none.
    Produce,
    /// Wait until all queued records are acknowledged. Answer: [`Input::Delivered`].
    Flush,
    /// Queue the position record. Answer: [`Input::Done`].
    ProducePosition(Box<PositionRecord>),
    /// Commit. Answer: [`Input::Committed`].
    Commit,
    /// Let go of the producer, if there is one, whatever state it is in. Answer: [`Input::Done`].
    DropProducer,
}

impl Command {
    /// The name of the step; a crash point lies behind each.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create => "kafka.create",
            Self::ProveLease => "kafka.prove_lease",
            Self::InitTransactions => "kafka.init_transactions",
            Self::ReadPosition { .. } => "kafka.read_position",
            Self::Begin => "kafka.begin",
            Self::Produce => "kafka.produce",
            Self::Flush => "kafka.flush",
            Self::ProducePosition(_) => "kafka.produce_position",
            Self::Commit => "kafka.commit",
            Self::DropProducer => "kafka.drop_producer",
        }
    }
}

/// What the machine is told.
#[derive(Debug)]
pub enum Input {
    /// The relay wants to open. Allowed in every state, also in the middle of a script whose caller went away.
    Open,
    /// The relay wants to publish a batch after which it stands here.
    Publish {
        /// The batch's position.
        after: Box<Position>,
    },
    /// The relay wants to close. Allowed in every state.
    Close,
    /// The command was carried out.
    Done,
    /// There are no more slices.
    Exhausted,
    /// The last position record; `None` if the topic holds none.
    Read(Option<Box<PositionRecord>>),
    /// All records queued so far in this transaction are acknowledged, the position record not counted.
    Delivered(Partitions),
    /// The commit answered OK.
    Committed(Committed),
    /// The command failed.
    Failed(Fault),
}

/// What was seen of a commit that answered OK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Since `Begin`, in order.
    pub signals: Vec<Signal>,
    /// Time that the commit call took.
    pub elapsed_ms: u64,
}

/// What the machine answers.
#[derive(Debug)]
pub enum Step {
    /// Carry this out and tell the outcome.
    Do(Command),
    /// Open; the last position.
    Opened(Option<Box<Position>>),
    /// The batch and its position are visible, and no stale frame can touch what comes next.
    Published {
        /// Why the producer was made anew on the way.
        recycled: Option<Suspicion>,
    },
    /// Closed, because the caller said so.
    Closed,
    /// Closed, because of this.
    Failed(Fault),
}

/// What a new producer is made for.
#[derive(Debug)]
enum Purpose {
    Open,
    Recycle {
        expected: Box<PositionRecord>,
        why: Suspicion,
    },
}

#[derive(Debug)]
enum After {
    Open(Purpose),
    Close,
    Fail(Fault),
}

/// Each state waits for the answer to the command that it is named after.
#[derive(Debug)]
enum State {
    Closed,
    Creating(Purpose),
    ProvingBefore(Purpose),
    Initializing(Purpose),
    ProvingAfter(Purpose),
    Reading(Purpose),
    Ready,
    Beginning(Box<Position>),
    Producing(Box<Position>),
    FlushingEvents(Box<Position>),
    ProducingPosition(Box<PositionRecord>),
    FlushingPosition(Box<PositionRecord>),
    Committing(Box<PositionRecord>),
    Dropping(After),
}

/// The machine of one sink.
#[derive(Debug)]
pub struct Machine {
    instance: String,
    /// How many producers it has made.
    producers: u64,
    socket_timeout_ms: u32,
    /// Number of the last Kafka transaction that is known to be committed.
    kafka_transaction: u64,
    state: State,
}

impl Machine {
    /// Closed. `instance` names the process; with the number of the producer it goes into every position record.
    #[must_use]
    pub fn new(instance: String, socket_timeout_ms: u32) -> Self {
        Self {
            instance,
            producers: 0,
            socket_timeout_ms,
            kafka_transaction: 0,
            state: State::Closed,
        }
    }

    /// Whether a batch may be published.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// One input, one answer.
    #[must_use]
    pub fn step(&mut self, input: Input) -> Step {
        let state = std::mem::replace(&mut self.state, State::Closed);
        match (input, state) {
            (Input::Open, State::Closed) => self.create(Purpose::Open),
            (Input::Open, _) => self.drop_then(After::Open(Purpose::Open)),
            (Input::Close, State::Closed) => Step::Closed,
            (Input::Close, _) => self.drop_then(After::Close),
            (Input::Publish { after }, State::Ready) => {
                self.to(State::Beginning(after), Command::Begin)
            }
            (Input::Publish { .. }, state) => self.not_ready(&state),
            (Input::Failed(fault), _) => self.drop_then(After::Fail(fault)),
            (
                input,
                state @ (State::Creating(_) | State::ProvingBefore(_) | State::Initializing(_)),
            ) => self.opening(input, state),
            (input, state @ (State::ProvingAfter(_) | State::Reading(_))) => {
                self.opening(input, state)
            }
            (Input::Done, State::Dropping(after)) => self.dropped(after),
            (input, state) => self.publishing(input, state),
        }
    }

    fn opening(&mut self, input: Input, state: State) -> Step {
        match (input, state) {
            (Input::Done, State::Creating(purpose)) => {
                self.to(State::ProvingBefore(purpose), Command::ProveLease)
            }
            (Input::Done, State::ProvingBefore(purpose)) => {
                self.to(State::Initializing(purpose), Command::InitTransactions)
            }
            (Input::Done, State::Initializing(purpose)) => {
                self.to(State::ProvingAfter(purpose), Command::ProveLease)
            }
            (Input::Done, State::ProvingAfter(purpose)) => {
                let check_topic = matches!(purpose, Purpose::Open);
                self.to(
                    State::Reading(purpose),
                    Command::ReadPosition { check_topic },
                )
            }
            (Input::Read(found), State::Reading(Purpose::Open)) => {
                self.kafka_transaction =
                    found.as_ref().map_or(0, |record| record.kafka_transaction);
                self.state = State::Ready;
                Step::Opened(found.map(|record| Box::new(record.position)))
            }
            (Input::Read(found), State::Reading(Purpose::Recycle { expected, why })) => {
                self.recycled(found, &expected, why)
            }
            (input, state) => self.out_of_turn(&input, &state),
        }
    }

    /// The new producer's first sight decides what became of the transaction that was in doubt.
    fn recycled(
        &mut self,
        found: Option<Box<PositionRecord>>,
        expected: &PositionRecord,
        why: Suspicion,
    ) -> Step {
        if found.as_deref() == Some(expected) {
            self.kafka_transaction = expected.kafka_transaction;
            self.state = State::Ready;
            return Step::Published {
                recycled: Some(why),
            };
        }
        self.drop_then(After::Fail(Fault::Recycle(format!(
            "Kafka transaction {} is not there although its commit answered OK ({})",
            expected.kafka_transaction, why.text
        ))))
    }

    fn publishing(&mut self, input: Input, state: State) -> Step {
        match (input, state) {
            (Input::Done, State::Beginning(after) | State::Producing(after)) => {
                self.to(State::Producing(after), Command::Produce)
            }
            (Input::Exhausted, State::Producing(after)) => {
                self.to(State::FlushingEvents(after), Command::Flush)
            }
            (Input::Delivered(partitions), State::FlushingEvents(after)) => {
                let record = Box::new(self.record(*after, partitions));
                self.to(
                    State::ProducingPosition(record.clone()),
                    Command::ProducePosition(record),
                )
            }
            (Input::Done, State::ProducingPosition(record)) => {
                self.to(State::FlushingPosition(record), Command::Flush)
            }
            (Input::Delivered(_), State::FlushingPosition(record)) => {
                self.to(State::Committing(record), Command::Commit)
            }
            (Input::Committed(commit), State::Committing(record)) => {
                self.committed(&commit, record)
            }
            (input, state) => self.out_of_turn(&input, &state),
        }
    }

    /// THE RECYCLING RULE. Mutation check: with `None` in the place of the call, the simulator must find lost events.
    fn committed(&mut self, commit: &Committed, record: Box<PositionRecord>) -> Step {
        match suspicion(&commit.signals, commit.elapsed_ms, self.socket_timeout_ms) {
            None => {
                self.kafka_transaction = record.kafka_transaction;
                self.state = State::Ready;
                Step::Published { recycled: None }
            }
            Some(why) => self.drop_then(After::Open(Purpose::Recycle {
                expected: record,
                why,
            })),
        }
    }

    fn dropped(&mut self, after: After) -> Step {
        match after {
            After::Open(purpose) => self.create(purpose),
            After::Close => Step::Closed,
            After::Fail(fault) => Step::Failed(fault),
        }
    }

    fn create(&mut self, purpose: Purpose) -> Step {
        self.producers += 1;
        self.to(State::Creating(purpose), Command::Create)
    }

    fn record(&self, position: Position, partitions: Partitions) -> PositionRecord {
        let count: i64 = partitions
            .values()
            .flat_map(|topic| topic.values())
            .map(|[_, _, count]| count)
            .sum();
        PositionRecord {
            format: PositionRecord::format_of(&position),
            position,
            kafka_transaction: self.kafka_transaction + 1,
            instance: format!("{}#{}", self.instance, self.producers),
            records: count.unsigned_abs(),
            partitions,
        }
    }

    fn to(&mut self, state: State, command: Command) -> Step {
        self.state = state;
        Step::Do(command)
    }

    fn drop_then(&mut self, after: After) -> Step {
        self.to(State::Dropping(after), Command::DropProducer)
    }

    /// An earlier call failed, or its future was dropped half way: nothing is known about the transaction.
    fn not_ready(&mut self, state: &State) -> Step {
        let fault = Fault::Recycle("the sink is not open".into());
        match state {
            State::Closed => Step::Failed(fault),
            _ => self.drop_then(After::Fail(fault)),
        }
    }

    fn out_of_turn(&mut self, input: &Input, state: &State) -> Step {
        let fault = Fault::Defect(format!("the Kafka sink was told {input:?} while {state:?}"));
        match state {
            State::Closed | State::Dropping(_) => Step::Failed(fault),
            _ => self.drop_then(After::Fail(fault)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Server;
    use crate::position::{Origin, Snapshot};

    const OK_LINE: &str =
        "[thrd:main]: EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=true)";

    fn position(xmax: u64) -> Position {
        let origin = Origin::of_test("table");
        Position::at(
            origin,
            format!("{xmax}:{xmax}:").parse::<Snapshot>().unwrap(),
        )
    }

    fn partitions() -> Partitions {
        [("t".to_owned(), [(0, [0, 4, 5]), (1, [8, 9, 2])].into())].into()
    }

    fn clean() -> Input {
        Input::Committed(Committed {
            signals: vec![Signal::EndTxnOk],
            elapsed_ms: 5,
        })
    }

    fn suspicious() -> Input {
        let signals = vec![Signal::EndTxnFailed("_TIMED_OUT".into()), Signal::EndTxnOk];
        Input::Committed(Committed {
            signals,
            elapsed_ms: 5,
        })
    }

    /// Plays inputs and gives the names of the answers.
    fn play(machine: &mut Machine, inputs: Vec<Input>) -> Vec<String> {
        inputs
            .into_iter()
            .map(|input| match machine.step(input) {
                Step::Do(Command::ReadPosition { check_topic: true }) => {
                    "CheckAndReadPosition".into()
                }
                Step::Do(Command::ReadPosition { check_topic: false }) => "ReadPosition".into(),
                Step::Do(Command::ProducePosition(record)) => {
                    format!(
                        "ProducePosition {} {}",
                        record.kafka_transaction, record.records
                    )
                }
                Step::Do(command) => format!("{command:?}"),
                Step::Opened(found) => format!("Opened {:?}", found.map(|p| p.seen.xmax())),
                Step::Published { recycled } => {
                    if recycled.is_some() {
                        "PublishedRecycled".into()
                    } else {
                        "Published".into()
                    }
                }
                Step::Closed => "Closed".into(),
                Step::Failed(Fault::Recycle(_)) => "Failed Recycle".into(),
                Step::Failed(Fault::Defect(_)) => "Failed Defect".into(),
                Step::Failed(Fault::Unavailable(..)) => "Failed Unavailable".into(),
                Step::Failed(fault) => format!("Failed {fault}"),
            })
            .collect()
    }

    fn opening(found: Option<Box<PositionRecord>>) -> Vec<Input> {
        vec![
            Input::Open,
            Input::Done,
            Input::Done,
            Input::Done,
            Input::Done,
            Input::Read(found),
        ]
    }

    fn publishing(commit: Input) -> Vec<Input> {
        vec![
            Input::Publish {
                after: Box::new(position(20)),
            },
            Input::Done,
            Input::Done,
            Input::Done,
            Input::Exhausted,
            Input::Delivered(partitions()),
            Input::Done,
            Input::Delivered(partitions()),
            commit,
        ]
    }

    fn stored(kafka_transaction: u64, xmax: u64) -> Box<PositionRecord> {
        Box::new(PositionRecord {
            format: 1,
            position: position(xmax),
            kafka_transaction,
            instance: "me#1".into(),
            records: 7,
            partitions: partitions(),
        })
    }

    fn opened() -> Machine {
        let mut machine = Machine::new("me".into(), 10_000);
        play(&mut machine, opening(Some(stored(4, 10))));
        assert!(machine.is_ready());
        machine
    }

    #[test]
    fn opening_proves_the_lease_before_and_after_it_takes_the_epoch() {
        let mut machine = Machine::new("me".into(), 10_000);
        let script = [
            "Create",
            "ProveLease",
            "InitTransactions",
            "ProveLease",
            "CheckAndReadPosition",
            "Opened Some(10)",
        ];
        assert_eq!(play(&mut machine, opening(Some(stored(4, 10)))), script);
        let mut machine = Machine::new("me".into(), 10_000);
        assert_eq!(play(&mut machine, opening(None))[5], "Opened None");
    }

    #[test]
    fn publishing_writes_the_position_last() {
        let script = [
            "Begin",
            "Produce",
            "Produce",
            "Produce",
            "Flush",
            "ProducePosition 5 7",
            "Flush",
            "Commit",
            "Published",
        ];
        let mut machine = opened();
        assert_eq!(play(&mut machine, publishing(clean())), script);
        assert!(
            play(&mut machine, publishing(clean())).contains(&"ProducePosition 6 7".to_owned())
        );
    }

    #[test]
    fn a_suspicious_commit_recycles_before_it_answers() {
        let mut machine = opened();
        play(
            &mut machine,
            publishing(Input::Close).into_iter().take(8).collect(),
        );
        let mut inputs = vec![
            suspicious(),
            Input::Done,
            Input::Done,
            Input::Done,
            Input::Done,
            Input::Done,
        ];
        inputs.push(Input::Read(Some(stored(5, 20))));
        let script = [
            "DropProducer",
            "Create",
            "ProveLease",
            "InitTransactions",
            "ProveLease",
            "ReadPosition",
        ];
        let answers = play(&mut machine, inputs);
        assert_eq!(answers[..6], script);
        assert_eq!(answers[6], "PublishedRecycled");
        assert!(
            play(&mut machine, publishing(clean())).contains(&"ProducePosition 6 7".to_owned())
        );
    }

    #[test]
    fn each_producer_has_a_number_so_that_a_relay_that_comes_back_to_power_is_told_apart() {
        let mut machine = opened();
        assert_eq!(machine.record(position(20), partitions()).instance, "me#1");
        play(
            &mut machine,
            vec![Input::Failed(Fault::LeaseLost("".into())), Input::Done],
        );
        play(&mut machine, opening(Some(stored(4, 10))));
        assert_eq!(machine.record(position(20), partitions()).instance, "me#2");
    }

    #[test]
    fn a_recycled_producer_that_reads_another_position_fails() {
        let mut another = stored(5, 20);
        another.instance = "other#1".into();
        for found in [
            None,
            Some(stored(4, 10)),
            Some(stored(5, 10)),
            Some(stored(6, 20)),
            Some(another),
        ] {
            let mut machine = opened();
            play(&mut machine, publishing(suspicious()));
            let mut inputs: Vec<_> = (0..5).map(|_| Input::Done).collect();
            inputs.extend([Input::Read(found), Input::Done]);
            let answers = play(&mut machine, inputs);
            assert_eq!(answers[5..], ["DropProducer", "Failed Recycle"]);
            assert_eq!(play(&mut machine, opening(None))[0], "Create");
        }
    }

    /// Every step of every script: a failure drops the producer, closes, and tells the fault; then it opens afresh.
    #[test]
    fn a_failure_at_any_point_closes() {
        type Script = (fn() -> Machine, fn() -> Vec<Input>);
        let scripts: [Script; 3] = [
            (|| Machine::new("me".into(), 10_000), || opening(None)),
            (opened, || publishing(clean())),
            (
                || {
                    let mut machine = opened();
                    play(
                        &mut machine,
                        publishing(Input::Done).into_iter().take(8).collect(),
                    );
                    machine
                },
                || {
                    let mut inputs = vec![suspicious()];
                    inputs.extend((0..5).map(|_| Input::Done));
                    inputs
                },
            ),
        ];
        for (machine, script) in scripts {
            for point in 1..=script().len() {
                let mut machine = machine();
                let answers = play(&mut machine, script().into_iter().take(point).collect());
                if !matches!(machine.state, State::Ready) {
                    let fault = Fault::Unavailable(Server::Kafka, "gone".into());
                    let after = play(&mut machine, vec![Input::Failed(fault), Input::Done]);
                    assert_eq!(
                        after,
                        ["DropProducer", "Failed Unavailable"],
                        "after {answers:?}"
                    );
                    let publish = Input::Publish {
                        after: Box::new(position(1)),
                    };
                    assert_eq!(play(&mut machine, vec![publish]), ["Failed Recycle"]);
                    assert_eq!(play(&mut machine, opening(None))[0], "Create");
                }
            }
        }
    }

    /// A future that was dropped leaves the machine in the middle of a script.
    #[test]
    fn open_close_and_publish_are_answered_in_the_middle_of_a_script() {
        for point in 1..=8 {
            let middle = || {
                let mut machine = opened();
                play(
                    &mut machine,
                    publishing(clean()).into_iter().take(point).collect(),
                );
                machine
            };
            assert_eq!(
                play(&mut middle(), vec![Input::Open, Input::Done]),
                ["DropProducer", "Create"]
            );
            assert_eq!(
                play(&mut middle(), vec![Input::Close, Input::Done]),
                ["DropProducer", "Closed"]
            );
            let publish = Input::Publish {
                after: Box::new(position(1)),
            };
            assert_eq!(
                play(&mut middle(), vec![publish, Input::Done]),
                ["DropProducer", "Failed Recycle"]
            );
        }
        assert_eq!(
            play(&mut Machine::new("me".into(), 1), vec![Input::Close]),
            ["Closed"]
        );
    }

    #[test]
    fn an_answer_out_of_turn_is_a_defect_and_closes() {
        let mut machine = opened();
        assert_eq!(
            play(&mut machine, vec![clean(), Input::Done]),
            ["DropProducer", "Failed Defect"]
        );
        let mut machine = Machine::new("me".into(), 1);
        assert_eq!(
            play(&mut machine, vec![Input::Open, Input::Exhausted]),
            ["Create", "DropProducer"]
        );
    }

    #[test]
    fn reads_log_lines() {
        let check = |facility, line, expected| {
            assert_eq!(Signal::of_log_line(facility, line), expected, "{line}")
        };
        check("ENDTXN", OK_LINE, Some(Signal::EndTxnOk));
        check(
            "ENDTXN",
            "[thrd:main]: EndTxn returned _TIMED_OUT in state CommittingTransaction (may_retry=true)",
            Some(Signal::EndTxnFailed("_TIMED_OUT".into())),
        );
        check(
            "ENDTXN",
            "[thrd:main]: EndTxn returned _OUTDATED in state Ready (may_retry=false)",
            Some(Signal::EndTxnFailed("_OUTDATED".into())),
        );
        check(
            "ENDTXN",
            "something NO_ERROR new",
            Some(Signal::EndTxnFailed("something NO_ERROR new".into())),
        );
        check(
            "REQTMOUT",
            "[thrd:h:1/1]: h:1/1: Timed out EndTxnRequest in flight (after 10000ms, timeout #0)",
            Some(Signal::RequestTimeout(
                "h:1/1: Timed out EndTxnRequest in flight (after 10000ms, timeout #0)".into(),
            )),
        );
        check(
            "FAIL",
            "[thrd:h:1/1]: h:1/1: Connection reset (after 9ms in state UP)",
            Some(Signal::ConnectionLost(
                "h:1/1: Connection reset (after 9ms in state UP)".into(),
            )),
        );
        check(
            "X",
            "Disconnected while",
            Some(Signal::ConnectionLost("Disconnected while".into())),
        );
        check(
            "ERROR",
            "_ALL_BROKERS_DOWN",
            Some(Signal::Error("_ALL_BROKERS_DOWN".into())),
        );
        check(
            "TXNSTATE",
            "[thrd:main]: Transaction state change Ready -> InTransaction",
            None,
        );
    }

    #[test]
    fn only_a_commit_with_its_answer_and_nothing_else_is_clean() {
        let other = [
            Signal::EndTxnFailed("x".into()),
            Signal::RequestTimeout("x".into()),
            Signal::ConnectionLost("x".into()),
            Signal::Error("x".into()),
        ];
        assert_eq!(suspicion(&[Signal::EndTxnOk], 4_999, 10_000), None);
        assert!(suspicion(&[Signal::EndTxnOk], 5_000, 10_000).is_some());
        assert!(suspicion(&[], 1, 10_000).is_some());
        for signal in other {
            assert!(
                suspicion(&[signal.clone(), Signal::EndTxnOk], 1, 10_000).is_some(),
                "{signal:?}"
            );
            assert!(
                suspicion(&[Signal::EndTxnOk, signal.clone()], 1, 10_000).is_some(),
                "{signal:?}"
            );
        }
    }
}
