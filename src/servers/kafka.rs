//! Throw-away Kafka, wherever it comes from: one node, or a cluster of three.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::broker::{Broker, VERSION};
use super::docker::{self, Container, Recipe};
use super::{Origin, Servers, ServersError, port};

const SERVER: &str = "Kafka";

/// A Kafka cluster of one or three nodes, which are numbered from 1 as Kafka itself numbers them.
/// Dropping this leaves them running until their [`Servers`] ends.
pub struct Kafka {
    brokers: String,
    /// Of the listener that demands a login.
    strict: Option<String>,
    nodes: Vec<Node>,
}

enum Node {
    Given,
    Container(Arc<Container>, u16),
    Binaries(Broker),
}

/// So many nodes. A container only ever holds a cluster of one.
pub(super) async fn bring_up(servers: &Servers, count: usize) -> Result<Kafka, ServersError> {
    if let Some(brokers) = &servers.sources.kafka_brokers {
        return Ok(Kafka {
            strict: None,
            brokers: brokers.clone(),
            nodes: (0..count).map(|_| Node::Given).collect(),
        });
    }
    let all = port::free_ones(2 * count)?;
    let (ports, controllers) = all.split_at(count);
    let nodes = match contained(servers, ports).await? {
        Some(node) => vec![node],
        None => {
            let nodes = Broker::create(servers, ports, controllers, None).await?;
            nodes.into_iter().map(Node::Binaries).collect()
        }
    };
    let addresses: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    Ok(Kafka {
        brokers: addresses.join(","),
        strict: None,
        nodes,
    })
}

/// Who may log in to a strict broker, and how that shows who it is.
#[derive(Clone)]
pub struct KafkaLogin {
    /// Private key and certificate for `localhost`, as PEM.
    pub key_and_certificate: String,
    /// Name, for SCRAM-SHA-512.
    pub user: String,
    /// Password.
    pub password: String,
}

/// A broker with two listeners. Who comes by the plain one, without a name, is its administrator.
pub(super) async fn bring_up_strict(
    servers: &Servers,
    login: &KafkaLogin,
) -> Result<Kafka, ServersError> {
    let ports = port::free_ones(3)?;
    let [plain, controller, strict] = ports[..] else {
        return Err(ServersError::Given { server: SERVER });
    };
    let strict = Strict {
        port: strict,
        login: login.clone(),
    };
    let address = format!("localhost:{}", strict.port);
    let nodes = Broker::create(servers, &[plain], &[controller], Some(strict)).await?;
    Ok(Kafka {
        brokers: format!("127.0.0.1:{plain}"),
        strict: Some(address),
        nodes: nodes.into_iter().map(Node::Binaries).collect(),
    })
}

/// The listener that demands a login.
#[derive(Clone)]
pub(super) struct Strict {
    pub port: u16,
    pub login: KafkaLogin,
}

impl Strict {
    /// Settings that replace those of an open broker. `key` is the file with key and certificate.
    pub fn settings(&self, plain: u16, controller: u16, key: &Path) -> Vec<(&'static str, String)> {
        let port = self.port;
        vec![
            (
                "listeners",
                format!(
                    "PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"
                ),
            ),
            (
                "advertised.listeners",
                format!("PLAINTEXT://127.0.0.1:{plain},SASL_SSL://localhost:{port}"),
            ),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT".into(),
            ),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512".into()),
            (
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;".into(),
            ),
            ("ssl.keystore.type", "PEM".into()),
            ("ssl.keystore.location", key.display().to_string()),
            ("allow.everyone.if.no.acl.found", "false".into()),
            ("super.users", "User:ANONYMOUS".into()),
        ]
    }

    /// How the storage is formatted, so that the user is there from the beginning.
    pub fn format_argument(&self) -> String {
        let KafkaLogin { user, password, .. } = &self.login;
        format!("SCRAM-SHA-512=[name={user},password={password}]")
    }
}

async fn contained(servers: &Servers, ports: &[u16]) -> Result<Option<Node>, ServersError> {
    let &[port] = ports else { return Ok(None) };
    let named = servers.sources.kafka_image.is_some();
    let Some(container) = docker::container(servers, recipe(servers, port), named).await? else {
        return Ok(None);
    };
    container.wait_until(|| answers(port)).await?;
    Ok(Some(Node::Container(container, port)))
}

/// Most copies of a partition.
const COPIES_MAX: usize = 3;

/// Settings of one of `nodes`, wherever it runs.
pub(super) fn settings(node: usize, nodes: usize) -> Vec<(&'static str, String)> {
    let copies = nodes.min(COPIES_MAX);
    // Of three copies one may be away, and what is acknowledged meanwhile is still on two.
    let in_sync = copies.div_ceil(2);
    let numbers = [
        ("node.id", node),
        ("default.replication.factor", copies),
        ("min.insync.replicas", in_sync),
        ("offsets.topic.replication.factor", copies),
        ("transaction.state.log.replication.factor", copies),
        ("transaction.state.log.min.isr", in_sync),
        // So that transactional ids have different coordinators.
        ("transaction.state.log.num.partitions", nodes),
    ];
    let common = SETTINGS
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let numbers = numbers.map(|(name, number)| (name, number.to_string()));
    let alone = AUTHORIZER.iter().filter(|_| nodes == 1);
    let alone = alone.map(|(name, value)| (*name, (*value).to_owned()));
    common.chain(numbers).chain(alone).collect()
}

/// Everybody may do everything, until a test says otherwise. Not for a cluster: a node would deny the votes of the others
/// until it has read the rules, for which it needs their votes.
const AUTHORIZER: &[(&str, &str)] = &[
    (
        "authorizer.class.name",
        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    ),
    ("allow.everyone.if.no.acl.found", "true"),
];

/// Those that are the same everywhere: small internal topics, failures seen soon.
const SETTINGS: &[(&str, &str)] = &[
    // Records have the times of their events, which may be old: by age they would be deleted within half a minute.
    ("log.retention.ms", "-1"),
    ("process.roles", "broker,controller"),
    ("controller.listener.names", "CONTROLLER"),
    (
        "listener.security.protocol.map",
        "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    ),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("offsets.topic.num.partitions", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    // A killed broker that comes back is refused until its old session is over, after 9 s by
    // default.
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    // A wrong topic name must be an error, not a new topic.
    ("auto.create.topics.enable", "false"),
    // 128 MiB by default, a third of the heap, for topics that are far smaller.
    ("log.cleaner.dedupe.buffer.size", "16777216"),
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
    let variables = settings(1, 1).into_iter().chain(places);
    let variables = variables.map(|(name, value)| (variable(name), value));
    let image = servers.sources.kafka_image.clone();
    Recipe {
        server: SERVER,
        image: image.unwrap_or_else(|| format!("apache/kafka:{VERSION}")),
        inner_port: port,
        host_port: port,
        variables: variables.collect(),
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
    /// The address of the listener that demands a login, where there is one.
    #[must_use]
    pub fn strict_brokers(&self) -> Option<&str> {
        self.strict.as_deref()
    }

    /// The addresses of all nodes, `127.0.0.1:PORT` for those that were started here, separated by commas. They stay the
    /// same over a restart.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Where it came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.nodes.first() {
            None | Some(Node::Given) => Origin::Given,
            Some(Node::Container(..)) => Origin::Container,
            Some(Node::Binaries(_)) => Origin::Binaries,
        }
    }

    /// The numbers of its nodes.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        1..=self.nodes.len()
    }

    /// The log file of a node since its last start, when it runs from binaries.
    #[must_use]
    pub fn log(&self, number: usize) -> Option<&Path> {
        match self.nodes.get(number.checked_sub(1)?)? {
            Node::Binaries(broker) => Some(broker.log()),
            Node::Given | Node::Container(..) => None,
        }
    }

    fn node(&mut self, number: usize) -> Result<&mut Node, ServersError> {
        let index = number.checked_sub(1);
        let node = index.and_then(|index| self.nodes.get_mut(index));
        node.ok_or(ServersError::State {
            server: SERVER,
            state: "a cluster without a node of this number",
        })
    }

    /// Orderly: SIGTERM to a node; returns when it has stopped. One that does not stop in time is killed.
    ///
    /// # Errors
    /// When the node was given, is not there, or is not running.
    pub async fn stop(&mut self, number: usize) -> Result<(), ServersError> {
        match self.node(number)? {
            Node::Given => Err(ServersError::Given { server: SERVER }),
            Node::Container(container, _) => container.stop().await,
            Node::Binaries(broker) => broker.stop().await,
        }
    }

    /// SIGKILL to a node; returns when it is gone.
    ///
    /// # Errors
    /// When the node was given, is not there, or is not running.
    pub async fn kill9(&mut self, number: usize) -> Result<(), ServersError> {
        match self.node(number)? {
            Node::Given => Err(ServersError::Given { server: SERVER }),
            Node::Container(container, _) => container.kill9().await,
            Node::Binaries(broker) => broker.kill9().await,
        }
    }

    /// Starts a node again after [`stop`](Self::stop) or [`kill9`](Self::kill9), with the same data and address, and
    /// waits until it serves. A node of three serves only beside a second one.
    ///
    /// # Errors
    /// When the node was given, is not there, is running, or does not start.
    pub async fn start(&mut self, number: usize) -> Result<(), ServersError> {
        match self.node(number)? {
            Node::Given => Err(ServersError::Given { server: SERVER }),
            Node::Container(container, port) => {
                container.start().await?;
                container.wait_until(|| answers(*port)).await
            }
            Node::Binaries(broker) => broker.start().await,
        }
    }

    /// SIGSTOP to a node: connections stay open and silent.
    ///
    /// # Errors
    /// When the node was given, is not there, or is not running.
    pub async fn sigstop(&mut self, number: usize) -> Result<(), ServersError> {
        match self.node(number)? {
            Node::Given => Err(ServersError::Given { server: SERVER }),
            Node::Container(container, _) => container.freeze().await,
            Node::Binaries(broker) => broker.sigstop(),
        }
    }

    /// SIGCONT to a node.
    ///
    /// # Errors
    /// When the node was given, is not there, or is not running.
    pub async fn sigcont(&mut self, number: usize) -> Result<(), ServersError> {
        match self.node(number)? {
            Node::Given => Err(ServersError::Given { server: SERVER }),
            Node::Container(container, _) => container.thaw().await,
            Node::Binaries(broker) => broker.sigcont(),
        }
    }
}
