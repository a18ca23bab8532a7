//! Connections to the simulated Kafka: each request is a frame that may be late, be lost, or outlive its connection.
//!
//! A frame that its sender gave up may still arrive, after the same request on another connection. This is the only way
//! in which a frame is doubled: TCP itself repeats nothing.

use std::time::Duration;

use outbox_relay::sink::kafka::machine::Signal;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{Answer, Kafka, Request};
use crate::world::World;

/// What happens to one frame. Times are between sending and arriving.
#[derive(Clone, Copy)]
struct Fate {
    /// `None`: it never arrives.
    arrives: Option<Duration>,
    /// `None`: the answer never arrives.
    answered: Option<Duration>,
    /// The connection breaks then.
    broken: Option<Duration>,
}

/// Why there is no answer, as the client's log tells it.
pub type Lost = Vec<Signal>;

/// Sends one request on a connection; what the client sees if no answer comes.
pub async fn request(world: &World, request: Request) -> Result<Answer, Lost> {
    let fate = fate(world, &request);
    let (reply, answer) = oneshot::channel();
    if let Some(time) = fate.arrives {
        world.spawn(deliver(
            world.clone(),
            request.clone(),
            time,
            fate.answered,
            reply,
        ));
    } else {
        // Held until the connection is given up, so that its loss goes unnoticed.
        world.spawn(hold(world.clone(), reply));
    }
    let socket_timeout = Duration::from_millis(world.scenario().socket_timeout_ms.into());
    let patience = fate.broken.unwrap_or(socket_timeout).min(socket_timeout);
    match timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Err(_) if fate.broken.is_none() => {
            world.tell(|| format!("   {} has no answer in time", name(&request)));
            let text = format!("Timed out {}", name(&request));
            Err(vec![
                Signal::RequestTimeout(text.clone()),
                Signal::ConnectionLost(text),
            ])
        }
        Ok(Err(_)) | Err(_) => {
            world.tell(|| format!("   {} loses its connection", name(&request)));
            Err(vec![Signal::ConnectionLost("Connection reset".into())])
        }
    }
}

async fn hold(world: World, reply: oneshot::Sender<Answer>) {
    sleep(Duration::from_millis(world.scenario().socket_timeout_ms.into()) * 2).await;
    drop(reply);
}

async fn deliver(
    world: World,
    request: Request,
    arrives: Duration,
    answered: Option<Duration>,
    reply: oneshot::Sender<Answer>,
) {
    let life = world.kafka().life;
    world.travel(arrives).await;
    let served = |kafka: &Kafka| kafka.up && kafka.life == life;
    // A broker that went away took its connections with it.
    if !served(&world.kafka()) {
        return;
    }
    let stale = reply.is_closed();
    let answer = world.kafka().apply(request.clone());
    world.tell(|| {
        let stale = if stale { "STALE " } else { "" };
        format!("   kafka: {stale}{} -> {answer:?}", name(&request))
    });
    if stale && let Request::EndTxn { .. } = request {
        world.count("Kafka: stale EndTxn arrived");
    }
    if matches!(request, Request::EndTxn { .. } | Request::InitProducerId) {
        world.spawn(write_markers(world.clone()));
    }
    match answered {
        Some(time) => {
            sleep(time).await;
            if served(&world.kafka()) {
                let _ = reply.send(answer);
            }
        }
        None => hold(world, reply).await,
    }
}

/// The coordinator writes a marker to each partition of the transaction that was ended, then it is complete.
pub async fn write_markers(world: World) {
    loop {
        world.pass(0..=2).await;
        let mut kafka = world.kafka();
        if !kafka.up {
            drop(kafka);
            world.pass(5..=5).await;
            continue;
        }
        match kafka.next_marker() {
            Some(Some(partition)) => kafka.write_marker(partition),
            Some(None) => kafka.complete(),
            None => return,
        }
    }
}

/// Aborts transactions that are open for too long.
pub async fn time_out_transactions(world: World) {
    loop {
        world.pass(20..=50).await;
        let timed_out = world.kafka().time_out();
        if timed_out {
            world.count("Kafka: transaction timed out");
            world.tell(|| "   kafka: the transaction timed out");
            world.spawn(write_markers(world.clone()));
        }
    }
}

fn fate(world: &World, request: &Request) -> Fate {
    let normal = Fate {
        arrives: Some(world.time(0..=2)),
        answered: Some(world.time(0..=2)),
        broken: None,
    };
    // Ends of transactions are few, and the interesting ones.
    let weight = if let Request::EndTxn { .. } = request {
        3.0
    } else {
        1.0
    };
    if !world.trouble(world.scenario().frame_faults * weight) {
        return normal;
    }
    let socket_timeout = u64::from(world.scenario().socket_timeout_ms);
    let late = Some(world.time(0..=socket_timeout * 3));
    let soon = Some(world.time(0..=socket_timeout / 4));
    let (fate, name) = match world.number(0..=6) {
        0 => (
            Fate {
                arrives: late,
                ..normal
            },
            "Kafka: frame delayed",
        ),
        1 => (
            Fate {
                answered: late,
                ..normal
            },
            "Kafka: answer delayed",
        ),
        2 => (
            Fate {
                arrives: None,
                ..normal
            },
            "Kafka: frame lost in silence",
        ),
        3 => (
            Fate {
                answered: None,
                ..normal
            },
            "Kafka: answer lost in silence",
        ),
        4 => (
            Fate {
                arrives: None,
                answered: None,
                broken: soon,
            },
            "Kafka: reset, frame lost",
        ),
        5 => (
            Fate {
                arrives: late,
                answered: None,
                broken: soon,
            },
            "Kafka: reset, frame on its way",
        ),
        _ => (
            Fate {
                answered: None,
                broken: soon,
                ..normal
            },
            "Kafka: reset, answer lost",
        ),
    };
    world.count(name);
    world.tell(|| name);
    fate
}

/// How the trace calls a request.
pub fn name(request: &Request) -> String {
    match request {
        Request::InitProducerId => "InitProducerId".into(),
        Request::AddPartition { epoch, partition } => {
            format!("AddPartitionsToTxn(epoch {epoch}, partition {partition})")
        }
        Request::Produce {
            epoch,
            partition,
            sequence,
            records,
        } => format!(
            "Produce(epoch {epoch}, partition {partition}, sequence {sequence}, {} records)",
            records.len()
        ),
        Request::EndTxn { epoch, commit } => {
            let end = if *commit { "commit" } else { "abort" };
            format!("EndTxn(epoch {epoch}, {end})")
        }
        Request::Ends => "ListOffsets".into(),
        Request::LastPosition => "Fetch".into(),
        Request::Plain(_) => "Produce(no transaction)".into(),
    }
}
