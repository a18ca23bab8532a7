//! A throw-away PostgreSQL server, wherever it comes from.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::Cluster;
use super::docker::{self, Container, Recipe};
use super::{Origin, Servers, ServersError, port};

const SERVER: &str = "PostgreSQL";

/// The versions that can be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PostgresVersion {
    /// 14, the oldest that is supported.
    V14,
    /// 15.
    V15,
    /// 17.
    #[default]
    V17,
    /// 18.
    V18,
}

impl PostgresVersion {
    /// The major version as a number.
    #[must_use]
    pub fn major(self) -> u32 {
        match self {
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }
}

/// What kind of PostgreSQL server is wanted.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Without effect on a server that is given, or on an image that the environment names.
    pub version: PostgresVersion,
    /// Server settings, such as (`wal_level`, `logical`). They win over the defaults here:
    /// `max_connections` 300, `max_prepared_transactions` 50, `wal_level` replica,
    /// `shared_buffers` 128 MB. `fsync` stays on.
    pub settings: Vec<(String, String)>,
}

/// A PostgreSQL server. Dropping this leaves the server running until its [`Servers`] ends.
pub struct Postgres {
    url: String,
    body: Body,
}

enum Body {
    Given,
    Container(Arc<Container>, u16),
    Binaries(Box<Cluster>),
}

pub(super) async fn bring_up(
    servers: &Servers,
    options: &PostgresOptions,
) -> Result<Postgres, ServersError> {
    if let Some(url) = &servers.sources.database_url {
        let url = url.clone();
        return Ok(Postgres {
            url,
            body: Body::Given,
        });
    }
    let port = port::free()?;
    let named = servers.sources.postgres_image.is_some();
    let container = docker::container(servers, recipe(servers, options, port), named).await?;
    let body = if let Some(container) = container {
        container.wait_until(|| accepts_sessions(port)).await?;
        Body::Container(container, port)
    } else {
        Body::Binaries(Box::new(Cluster::create(servers, options, port).await?))
    };
    Ok(Postgres {
        url: url(port),
        body,
    })
}

/// A primary and a standby that streams from it. Always from binaries: the standby begins with a copy of the primary's data
/// folder.
pub(super) async fn bring_up_pair(
    servers: &Servers,
    options: &PostgresOptions,
) -> Result<[Postgres; 2], ServersError> {
    let ports = port::free_ones(2)?;
    let (port, standby_port) = (ports[0], ports[1]);
    let mut primary = Cluster::create(servers, options, port).await?;
    let standby = primary.standby(servers, port, standby_port).await?;
    Ok(
        [(primary, port), (standby, standby_port)].map(|(cluster, port)| Postgres {
            url: url(port),
            body: Body::Binaries(Box::new(cluster)),
        }),
    )
}

fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// The settings of every server here; those of the options come after them and win.
pub(super) fn settings(options: &PostgresOptions) -> Vec<(String, String)> {
    let defaults = [
        ("max_connections", "300"),
        ("max_prepared_transactions", "50"),
        ("wal_level", "replica"),
        ("shared_buffers", "128MB"),
    ];
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut settings: Vec<_> = defaults.map(own).into();
    settings.extend(options.settings.iter().cloned());
    settings
}

fn recipe(servers: &Servers, options: &PostgresOptions, port: u16) -> Recipe {
    let image = servers.sources.postgres_image.clone();
    let arguments = settings(options)
        .into_iter()
        .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    Recipe {
        server: SERVER,
        image: image.unwrap_or_else(|| format!("postgres:{}", options.version.major())),
        inner_port: 5432,
        host_port: port,
        variables: vec![("POSTGRES_HOST_AUTH_METHOD".to_owned(), "trust".to_owned())],
        arguments: ["postgres".to_owned()]
            .into_iter()
            .chain(arguments)
            .collect(),
    }
}

/// Opens a session as far as the server's first answer: `R` when it lets us in. While it starts or
/// recovers, it answers `E`; and Docker's proxy accepts connections long before the server does.
async fn accepts_sessions(port: u16) -> bool {
    const STARTUP: &[u8] = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";
    let talk = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(STARTUP).await?;
        stream.read_u8().await
    };
    matches!(talk.await, Ok(b'R'))
}

impl Postgres {
    /// Its address; for one that was started here `postgres://postgres@127.0.0.1:PORT/postgres`,
    /// without a password. It stays the same over a restart.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder of its unix socket, when it runs from binaries.
    #[must_use]
    pub fn socket_dir(&self) -> Option<&Path> {
        match &self.body {
            Body::Binaries(cluster) => Some(cluster.socket_dir()),
            Body::Given | Body::Container(..) => None,
        }
    }

    /// Its log file, when it runs from binaries.
    #[must_use]
    pub fn log(&self) -> Option<&Path> {
        match &self.body {
            Body::Binaries(cluster) => Some(cluster.log()),
            Body::Given | Body::Container(..) => None,
        }
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

    /// Orderly and quick: ends all sessions, writes a checkpoint, and returns when it has stopped.
    ///
    /// # Errors
    /// When the server was given, is not running, or does not stop in time.
    pub async fn stop_fast(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.stop().await,
            Body::Binaries(cluster) => cluster.stop_fast().await,
        }
    }

    /// SIGKILL to the postmaster; its children notice and end. Returns when all are gone.
    ///
    /// # Errors
    /// When the server was given or is not running.
    pub async fn kill9(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.kill9().await,
            Body::Binaries(cluster) => cluster.kill9().await,
        }
    }

    /// Starts it again after [`stop_fast`](Self::stop_fast) or [`kill9`](Self::kill9), with the
    /// same data and address, and waits until it accepts connections.
    ///
    /// # Errors
    /// When the server was given, is running, or does not start.
    pub async fn start(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, port) => {
                container.start().await?;
                container.wait_until(|| accepts_sessions(*port)).await
            }
            Body::Binaries(cluster) => cluster.start().await,
        }
    }

    /// SIGSTOP to the postmaster and all its children: connections stay open and silent.
    ///
    /// # Errors
    /// When the server was given or is not running.
    pub async fn sigstop(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.freeze().await,
            Body::Binaries(cluster) => cluster.sigstop(),
        }
    }

    /// SIGCONT to all of them.
    ///
    /// # Errors
    /// When the server was given or is not running.
    pub async fn sigcont(&mut self) -> Result<(), ServersError> {
        match &mut self.body {
            Body::Given => Err(ServersError::Given { server: SERVER }),
            Body::Container(container, _) => container.thaw().await,
            Body::Binaries(cluster) => cluster.sigcont(),
        }
    }
}
