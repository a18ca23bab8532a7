//! A throw-away Kafka broker, wherever it comes from.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::broker::{Broker, VERSION};
use super::docker::{self, Container, Recipe};
use super::{Origin, Servers, ServersError, port};

const SERVER: &str = "Kafka";

/// A Kafka broker, alone in its cluster. Dropping this leaves it running until its [`Servers`]
/// ends.
pub struct Kafka {
    brokers: String,
    body: Body,
}

enum Body {
    Given,
    Container(Arc<Container>, u16),
    Binaries(Box<Broker>),
}

pub(super) async fn bring_up(servers: &Servers) -> Result<Kafka, ServersError> {
    if let Some(brokers) = &servers.sources.kafka_brokers {
        let brokers = brokers.clone();
        return Ok(Kafka {
            brokers,
            body: Body::Given,
        });
    }
    let port = port::free()?;
    let named = servers.sources.kafka_image.is_some();
    let container = docker::container(servers, recipe(servers, port), named).await?;
    let body = if let Some(container) = container {
        container.wait_until(|| answers(port)).await?;
        Body::Container(container, port)
    } else {
        Body::Binaries(Box::new(Broker::create(servers, port).await?))
    };
    Ok(Kafka {
        brokers: format!("127.0.0.1:{port}"),
        body,
    })
}

/// Settings that do not depend on where the broker runs: one node, small internal topics.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    (
        "listener.security.protocol.map",
        "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    ),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    // A killed broker that comes back is refused until its old session is over, after 9 s by
    // default.
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    // Everybody may do everything, until a test says otherwise.
    (
        "authorizer.class.name",
        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    ),
    ("allow.everyone.if.no.acl.found", "true"),
    // A wrong topic name must be an error, not a new topic.
    ("auto.create.topics.enable", "false"),
];

fn recipe(servers: &Servers, port: u16) -> Recipe {
    // The image takes a setting from a variable: transaction.state as KAFKA_TRANSACTION_STATE.
    let variable = |name: &str| format!("KAFKA_{}", name.replace('.', "_").to_uppercase());
    // The broker connects to itself by its advertised address, to end transactions. So it listens
    // on the same port inside the container as the one that is mapped outside.
    let places = [
        (
            "listeners",
            format!("PLAINTEXT://0.0.0.0:{port},CONTROLLER://127.0.0.1:9093"),
        ),
        (
            "advertised.listeners",
            format!("PLAINTEXT://127.0.0.1:{port}"),
        ),
        ("controller.quorum.voters", "1@127.0.0.1:9093".to_owned()),
    ];
    let common = SETTINGS
        .iter()
        .map(|(name, value)| (variable(name), (*value).to_owned()));
    let places = places.map(|(name, value)| (variable(name), value));
    let image = servers.sources.kafka_image.clone();
    Recipe {
        server: SERVER,
        image: image.unwrap_or_else(|| format!("apache/kafka:{VERSION}")),
        inner_port: port,
        host_port: port,
        variables: common.chain(places).collect(),
        arguments: Vec::new(),
    }
}

/// Sends an `ApiVersions` request (version 0, correlation id 1, no client id); any answer will do.
async fn answers(port: u16) -> bool {
    const REQUEST: &[u8] = b"\0\0\0\x0a\0\x12\0\0\0\0\0\x01\xff\xff";
    let talk = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(REQUEST).await?;
        stream.read_u32().await
    };
    talk.await.is_ok()
}

impl Kafka {
    /// Its address, `127.0.0.1:PORT` for one that was started here. It stays the same over a
    /// restart.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Where it came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match &self.body {
            Body::Given => Origin::Given,
            Body::Container(..) => Origin::Container,
            Body::Binaries(_) => Origin::Binaries,
        }
    }

    /// Its log file since the last start, when it runs from binaries.
    #[must_use]
    pub fn log(&self) -> Option<&Path> {
        match &self.body {
            Body::Binaries(broker) => Some(broker.log()),
            Body::Given | Body::Container(..) => None,
        }
    }

    /// Orderly: SIGTERM; returns when it has stopped. One that does not stop in time is killed.
    ///
    /// # Errors
    /// When the broker was given or is not running.
    pub async fn stop(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.stop().await,
            Body::Binaries(broker) => broker.stop().await,
        }
    }

    /// SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// When the broker was given or is not running.
    pub async fn kill9(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.kill9().await,
            Body::Binaries(broker) => broker.kill9().await,
        }
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill9`](Self::kill9), with the same data and address, and waits
    /// until it answers.
    ///
    /// # Errors
    /// When the broker was given, is running, or does not start.
    pub async fn start(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, port) => {
                container.start().await?;
                container.wait_until(|| answers(*port)).await
            }
            Body::Binaries(broker) => broker.start().await,
        }
    }

    /// SIGSTOP: connections stay open and silent.
    ///
    /// # Errors
    /// When the broker was given or is not running.
    pub async fn sigstop(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.freeze().await,
            Body::Binaries(broker) => broker.sigstop(),
        }
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the broker was given or is not running.
    pub async fn sigcont(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.thaw().await,
            Body::Binaries(broker) => broker.sigcont(),
        }
    }
}
