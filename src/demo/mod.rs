//! `demo`: the whole of it on throw-away servers. Writers, a relay that is killed in mid-stream, and the check of what
//! arrived.

mod show;
mod story;
mod watch;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::fault::{Fault, exit};
use crate::init;
use crate::ledger::Report;
use crate::servers::{Kafka, Origin, PostgresOptions, Servers, ServersError, Sources};
use crate::signals::asked_to_stop;
use crate::{outcome, scan};
use show::Show;
use story::Plot;
use watch::Seen;

/// When the relay is killed, in hundredths of the story.
const KILLS: [u32; 2] = [40, 70];
/// How long a kill waits for a relay, on a slow machine, that has published nothing yet.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long the relay may need, after the writers stopped, to publish the rest.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// How long the relay may need to end after SIGTERM: its own drain-ms and some more.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Partitions of a topic on the mock cluster, as many as the relay would make.
const MOCK_PARTITIONS: i32 = 3;

/// Arguments of `demo`.
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Seconds during which the writers write.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Events that the writers commit in a second, all together.
    #[arg(long, value_name = "N", default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub events_per_second: u32,
    /// Leave the servers running at the end, and print how to reach and how to end them.
    #[arg(long)]
    pub keep: bool,
    /// Brokers to use instead of a throw-away one; the demo's topics get names of their own there.
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka_brokers: Option<String>,
}

/// Plays the story, and judges what arrived. Answers 0 if everything is as it must be, else 1.
///
/// # Errors
/// When a server can't be brought up, or a part of the demo itself fails.
pub async fn demo(args: &DemoArgs) -> Result<u8, Fault> {
    let show = Show::new();
    let teller = show.clone();
    let sources = Sources {
        // The demo makes a schema of its own: never in a database that holds something.
        database_url: None,
        kafka_brokers: args.kafka_brokers.clone(),
        ..Sources::from_env()
    };
    let servers =
        Servers::with(sources, Some(move |line: &str| teller.say(line))).map_err(refused)?;
    let asked_to_stop = asked_to_stop()?;
    let end = tokio::select! {
        end = play(args, &servers, &show) => end.map(Some),
        _ = asked_to_stop => Ok(None),
    };
    match end {
        Ok(Some(code)) if args.keep => {
            show.say(&servers.keep());
            return Ok(code);
        }
        Ok(None) => show.say("stopped; ending the servers"),
        _ => {}
    }
    servers.shutdown().await;
    end.map(|code| code.unwrap_or(exit::FAILED))
}

fn refused(error: ServersError) -> Fault {
    Fault::Refused(error.to_string())
}

/// The broker that the story is told to.
enum Broker {
    Real(Kafka),
    /// Ends with this process.
    Mock(MockCluster<'static, DefaultProducerContext>),
}

impl Broker {
    /// A real one wherever one can be had.
    async fn bring_up(servers: &Servers, show: &Show) -> Result<Self, Fault> {
        let why = match servers.kafka().await {
            Ok(kafka) => return Ok(Self::Real(kafka)),
            Err(ServersError::Missing(why)) => why,
            Err(error) => return Err(refused(error)),
        };
        show.say(&format!(
            "No real Kafka here ({why}). What follows uses librdkafka's mock cluster instead. It shows that every \
             event arrives, once. It can't show that transactions are whole, that their order holds, or that nothing \
             rolled back is seen, because the mock keeps no transactions; so the relay is not killed either."
        ));
        let mock = MockCluster::new(1)
            .map_err(|error| Fault::Refused(format!("the mock cluster does not start: {error}")))?;
        Ok(Self::Mock(mock))
    }

    fn address(&self) -> String {
        match self {
            Self::Real(kafka) => kafka.brokers().to_owned(),
            Self::Mock(mock) => mock.bootstrap_servers(),
        }
    }

    fn is_mock(&self) -> bool {
        matches!(self, Self::Mock(_))
    }

    /// The mock has no request to make topics by, so they are made here.
    fn make_topics(&self, names: &Names) -> Result<(), Fault> {
        let Self::Mock(mock) = self else {
            return Ok(());
        };
        let topics = names
            .topics()
            .into_iter()
            .map(|topic| (topic, MOCK_PARTITIONS));
        for (topic, partitions) in topics.chain([(names.position_topic(), 1)]) {
            mock.create_topic(&topic, partitions, 1).map_err(|error| {
                Fault::Refused(format!("the mock cluster makes no topic: {error}"))
            })?;
        }
        Ok(())
    }
}

/// Names of this run.
struct Names {
    relay: String,
    requests: String,
    replies: String,
}

impl Names {
    /// On brokers that stay, each run has names of its own: what an older run left there is none of its business.
    fn of(broker: &Broker) -> Self {
        let given = matches!(broker, Broker::Real(kafka) if kafka.origin() == Origin::Given);
        Self::with(&if given {
            format!("-{:08x}", fastrand::u32(..))
        } else {
            String::new()
        })
    }

    fn with(suffix: &str) -> Self {
        Self {
            relay: format!("demo{suffix}"),
            requests: format!("backup.requests{suffix}"),
            replies: format!("backup.replies{suffix}"),
        }
    }

    fn topics(&self) -> Vec<String> {
        vec![self.requests.clone(), self.replies.clone()]
    }

    fn position_topic(&self) -> String {
        format!("outbox-relay.position.{}", self.relay)
    }
}

async fn play(args: &DemoArgs, servers: &Servers, show: &Show) -> Result<u8, Fault> {
    let postgres = async {
        servers
            .postgres(PostgresOptions::default())
            .await
            .map_err(refused)
    };
    let (postgres, broker) = tokio::try_join!(postgres, Broker::bring_up(servers, show))?;
    let names = Names::of(&broker);
    broker.make_topics(&names)?;
    let database = Database::parse(postgres.url())?;
    init::init(&database).await?;
    story::prepare(&database).await?;
    show.say(&format!(
        "PostgreSQL at {database}, Kafka at {}, topics {} and {}",
        broker.address(),
        names.requests,
        names.replies
    ));

    let stop_watching = CancellationToken::new();
    let _stop_at_end = stop_watching.clone().drop_guard();
    let seen = Arc::new(Seen::default());
    watch::watch(
        broker.address(),
        names.topics(),
        Arc::clone(&seen),
        stop_watching,
    );
    let mut relay = Relay::start(
        servers,
        postgres.url(),
        &broker.address(),
        &names.relay,
        broker.is_mock(),
    )?;
    let run = Run {
        args,
        show,
        seen,
        database: &database,
        mock: broker.is_mock(),
    };
    let plot = run.stream(&mut relay, &names).await?;
    relay.stop().await?;
    relay.catch_up().await?;
    let report = run.judge(&broker.address(), &names).await?;
    Ok(run.conclude(&report, &plot))
}

/// The story under way.
struct Run<'a> {
    args: &'a DemoArgs,
    show: &'a Show,
    seen: Arc<Seen>,
    database: &'a Database,
    mock: bool,
}

impl Run<'_> {
    /// Plays the story, kills the relay meanwhile, and waits until all is visible.
    async fn stream(&self, relay: &mut Relay<'_>, names: &Names) -> Result<Arc<Plot>, Fault> {
        let (start, length) = (
            Instant::now(),
            Duration::from_secs(u64::from(self.args.seconds)),
        );
        let plot = Arc::new(Plot {
            requests_topic: names.requests.clone(),
            replies_topic: names.replies.clone(),
            start,
            end: start + length,
            events_per_second: self.args.events_per_second,
            done: story::Done::default(),
        });
        let expected = u64::from(self.args.seconds) * u64::from(self.args.events_per_second);
        let kills = if self.mock { &[][..] } else { &KILLS[..] };
        let act = async {
            let kills = kills.iter().map(|at| start + length * *at / 100);
            tokio::try_join!(
                story::play(self.database, &plot),
                relay.suffer(kills, &self.seen, self.show)
            )?;
            self.all_visible(relay, &plot).await
        };
        let counts = || {
            (
                plot.done.events.load(Ordering::Relaxed),
                self.seen.so_far().0,
            )
        };
        tokio::select! {
            end = act => end?,
            () = self.show.progress(expected, counts) => {}
        }
        Ok(plot)
    }

    /// Waits until the live consumer has seen as many events as were committed. If it never does, the check will say
    /// which are missing.
    async fn all_visible(&self, relay: &mut Relay<'_>, plot: &Plot) -> Result<(), Fault> {
        let committed = plot.done.events.load(Ordering::Relaxed);
        let visible = async {
            while self.seen.so_far().0 < committed {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            waited = timeout(CATCH_UP_MAX, visible) => {
                if waited.is_err() {
                    self.show.say("not all events became visible; the check will say which");
                }
                Ok(())
            }
            fault = relay.ended() => Err(fault),
        }
    }

    async fn judge(&self, brokers: &str, names: &Names) -> Result<Report, Fault> {
        self.show
            .say("reading all of Kafka from the beginning, read_committed, and comparing");
        let ledger = story::ledger(self.database).await?;
        let (brokers, topics, positions) =
            (brokers.to_owned(), names.topics(), names.position_topic());
        let judge = move || scan::judge(&brokers, &topics, &positions, &ledger);
        tokio::task::spawn_blocking(judge)
            .await
            .map_err(|error| Fault::Defect(format!("the check of the demo ended: {error}")))?
    }

    /// Prints the table; answers the exit code.
    fn conclude(&self, report: &Report, plot: &Plot) -> u8 {
        let (_, last) = self.seen.so_far();
        let seconds = last.map(|last| last.duration_since(plot.start).as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = seconds
            .filter(|s| *s > 0.0)
            .map(|s| report.events as f64 / s);
        self.show.say(&outcome::table(report, rate, self.mock));
        self.show.say(&format!(
            "events/s: from the writers' start to the last event visible to a read_committed consumer, {:.1} s. \
             The writers also rolled back {} transactions and {} savepoints with events in them.",
            seconds.unwrap_or_default(),
            outcome::grouped(plot.done.rolled_back.load(Ordering::Relaxed)),
            outcome::grouped(plot.done.savepoints.load(Ordering::Relaxed)),
        ));
        let clean = outcome::clean(report, self.mock) && report.events > 0;
        if clean {
            return exit::DONE;
        }
        self.show.say(&outcome::offenders(report, self.mock));
        if report.events == 0 {
            self.show.say("nothing was written, so nothing was shown");
        }
        exit::FAILED
    }
}

/// The relay as a child process, under the name of this run.
struct Relay<'s> {
    servers: &'s Servers,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
    pid: u32,
}

impl<'s> Relay<'s> {
    fn start(
        servers: &'s Servers,
        database_url: &str,
        brokers: &str,
        name: &str,
        mock: bool,
    ) -> Result<Self, Fault> {
        // The mock answers no question about a topic's configuration.
        let check = if mock { "false" } else { "true" };
        let arguments = [
            "run",
            "--name",
            name,
            "--database-url",
            database_url,
            "--kafka-brokers",
            brokers,
            "--create-topics",
            "true",
            "--check-position-topic",
            check,
        ];
        let arguments: Vec<String> = arguments.map(str::to_owned).into();
        let log = servers.folder().join("relay.log");
        let (child, pid) = spawn(servers, &arguments, &log)?;
        Ok(Self {
            servers,
            arguments,
            log,
            child,
            pid,
        })
    }

    fn start_again(&mut self) -> Result<(), Fault> {
        (self.child, self.pid) = spawn(self.servers, &self.arguments, &self.log)?;
        Ok(())
    }

    /// SIGKILL at each of the moments, or later, when it has published something; and a new start at once.
    async fn suffer(
        &mut self,
        moments: impl Iterator<Item = Instant>,
        seen: &Seen,
        show: &Show,
    ) -> Result<(), Fault> {
        for moment in moments {
            let before = seen.so_far().0;
            let in_stream = async {
                sleep_until(moment).await;
                while seen.so_far().0 == before && moment.elapsed() < STREAM_WAIT_MAX {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                () = in_stream => {}
                fault = self.ended() => return Err(fault),
            }
            let killed = self.pid;
            self.signal(Signal::SIGKILL)?;
            self.wait().await?;
            self.start_again()?;
            show.say(&format!(
                "SIGKILL to the relay (process {killed}) in mid-stream; started again as process {}",
                self.pid
            ));
        }
        Ok(())
    }

    /// Waits for an end that nobody asked for.
    async fn ended(&mut self) -> Fault {
        match self.wait().await {
            Ok(status) => self.unexpected(status),
            Err(fault) => fault,
        }
    }

    fn unexpected(&self, status: ExitStatus) -> Fault {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = last_lines(&String::from_utf8_lossy(&log));
        Fault::Refused(format!(
            "the relay ended by itself ({status}); the end of its log:\n{tail}"
        ))
    }

    fn signal(&self, which: Signal) -> Result<(), Fault> {
        let pid = i32::try_from(self.pid)
            .map_err(|_| Fault::Defect(format!("{} is no process id", self.pid)))?;
        kill(Pid::from_raw(pid), which)
            .map_err(|errno| Fault::Defect(format!("{which} can't be sent to the relay: {errno}")))
    }

    async fn wait(&mut self) -> Result<ExitStatus, Fault> {
        let status = self.child.wait().await;
        // From here on the number may become another process's.
        self.servers.release(self.pid);
        status.map_err(|error| Fault::Defect(format!("the relay can't be waited for: {error}")))
    }

    /// SIGTERM, as an orchestrator would end it.
    async fn stop(&mut self) -> Result<(), Fault> {
        self.signal(Signal::SIGTERM)?;
        match timeout(STOP_MAX, self.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.unexpected(status)),
            Ok(Err(fault)) => Err(fault),
            Err(_) => Err(Fault::Defect("the relay did not end after SIGTERM".into())),
        }
    }

    /// Once more, until it says itself that nothing is left: what the live consumer counted does not decide.
    async fn catch_up(&mut self) -> Result<(), Fault> {
        self.arguments.push("--until-caught-up".into());
        self.start_again()?;
        match timeout(CATCH_UP_MAX, self.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.unexpected(status)),
            Ok(Err(fault)) => Err(fault),
            Err(_) => Err(Fault::Defect(
                "the relay did not catch up with writers that had stopped".into(),
            )),
        }
    }
}

/// Starts the relay, known to the reaper, its log appended to a file.
fn spawn(servers: &Servers, arguments: &[String], log: &PathBuf) -> Result<(Child, u32), Fault> {
    let failed =
        |error: std::io::Error| Fault::Refused(format!("the relay can't be started: {error}"));
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output);
    // Ctrl-C at a terminal goes to the whole group; here the demo alone decides when the relay ends.
    command.process_group(0).kill_on_drop(true);
    // Settings for somebody's own relay must not reach this one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OUTBOX_RELAY_") {
            command.env_remove(name);
        }
    }
    let child = command.spawn().map_err(failed)?;
    let pid = child
        .id()
        .ok_or_else(|| Fault::Defect("the relay has no process id".into()))?;
    servers.adopt(pid);
    Ok((child, pid))
}

fn last_lines(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_run_do_not_meet_those_of_another() {
        let (one, other) = (Names::with("-1"), Names::with("-2"));
        assert_ne!(one.topics(), other.topics());
        assert_eq!(one.position_topic(), "outbox-relay.position.demo-1");
    }

    #[test]
    fn the_last_lines_are_the_last() {
        let text: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let tail = last_lines(&text.join("\n"));
        assert!(tail.starts_with("10\n") && tail.ends_with("\n29"));
    }
}
