//! Connections to PostgreSQL: address, TLS, pool.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::fault::{Fault, Server};
use crate::position::Xid;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// With the login, for each host: the client's own limit, which is for each address, ends when the connection is there.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// A value of a statement, with its type: so nothing need be prepared, which would be a round trip more.
pub type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// A transaction id as the server prints it.
///
/// # Errors
/// [`Fault::Defect`] if it is none.
pub fn xid(text: &str) -> Result<Xid, Fault> {
    text.parse()
        .map_err(|_| Fault::Defect(format!("{text:?} is not a transaction id")))
}

/// A number that the server knows as signed and that is never below 0.
#[must_use]
pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Where the database is and how to get there. Its `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: MakeRustlsConnect,
    shown: String,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Database {
    /// Reads a `postgres://user:password@host:port/database` URL or a `key=value` string. `sslmode` is `disable`,
    /// `prefer` (encrypted where the server offers it, not verified, as libpq does), or `require`, `verify-ca`,
    /// `verify-full` (all three verified, against `sslrootcert` or the system's roots).
    ///
    /// # Errors
    /// [`Fault::Setting`], without repeating the text, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let wrong = |why: String| {
            Fault::Setting(format!(
                "database-url is not usable: {why}; it would look like postgres://user:password@127.0.0.1:5432/shop"
            ))
        };
        let (text, options) = take_tls_options(text).map_err(&wrong)?;
        let mut config: Config = text.parse().map_err(|error: tokio_postgres::Error| {
            wrong(
                std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), ToString::to_string),
            )
        })?;
        if config.get_hosts().is_empty() {
            return Err(wrong("it names no host".into()));
        }
        let verified = options.verified || config.get_ssl_mode() == SslMode::Require;
        if options.verified {
            config.ssl_mode(SslMode::Require);
        }
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(Duration::from_secs(10));
        if config.get_application_name().is_none() {
            config.application_name("outbox-relay");
        }
        let tls = tls(verified, options.root_cert).map_err(wrong)?;
        let shown = shown(&config);
        Ok(Self { config, tls, shown })
    }

    /// A connection of its own, outside the pool.
    ///
    /// # Errors
    /// As classified in [`Fault`].
    pub async fn connect(&self) -> Result<Client, Fault> {
        let patience = self.login_time();
        let login = timeout(patience, self.config.connect(self.tls.clone()));
        let (client, connection) = login.await.map_err(|_| no_answer(patience))??;
        tokio::spawn(async move {
            // Its errors reach the client's pending and next calls.
            let _ = connection.await;
        });
        Ok(client)
    }

    fn login_time(&self) -> Duration {
        LOGIN_TIMEOUT * u32::try_from(self.hosts()).unwrap_or(1)
    }

    /// How many hosts the address names.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.config.get_hosts().len()
    }

    /// Who logs in to what, for a protocol that the client library does not speak.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        let own_name = || nix::unistd::User::from_uid(nix::unistd::Uid::effective());
        let user = match self.config.get_user() {
            Some(user) => user.to_owned(),
            None => own_name()
                .ok()
                .flatten()
                .map_or_else(String::new, |user| user.name),
        };
        Credentials {
            database: self.config.get_dbname().unwrap_or(&user).to_owned(),
            password: self.config.get_password().unwrap_or_default().to_vec(),
            user,
        }
    }

    /// A connection of bytes to one of the hosts, encrypted as the address says, nothing sent yet.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the host does not answer, [`Fault::Refused`] if it has no TLS and must have.
    pub async fn dial(&self, host: usize) -> Result<Box<dyn Duplex>, Fault> {
        let away = |error: io::Error| Fault::Unavailable(Server::Postgres, error.to_string());
        let ports = self.config.get_ports();
        let port = ports.get(host).or(ports.first()).copied().unwrap_or(5432);
        let patience = self
            .config
            .get_connect_timeout()
            .copied()
            .unwrap_or(CONNECT_TIMEOUT);
        let late = |_| Fault::Unavailable(Server::Postgres, "connecting took too long".into());
        match self.config.get_hosts().get(host) {
            Some(Host::Tcp(name)) => {
                let connect = TcpStream::connect((name.as_str(), port));
                let tcp = timeout(patience, connect)
                    .await
                    .map_err(late)?
                    .map_err(away)?;
                tcp.set_nodelay(true).map_err(away)?;
                timeout(patience, self.secured(tcp, name))
                    .await
                    .map_err(late)?
            }
            Some(Host::Unix(folder)) => {
                let socket = folder.join(format!(".s.PGSQL.{port}"));
                let connect = UnixStream::connect(socket);
                let unix = timeout(patience, connect)
                    .await
                    .map_err(late)?
                    .map_err(away)?;
                Ok(Box::new(unix))
            }
            None => Err(Fault::Defect(
                "a host that the address does not name".into(),
            )),
        }
    }

    /// Asks for TLS as the address says (PostgreSQL manual, "SSL Session Encryption").
    async fn secured(&self, mut tcp: TcpStream, name: &str) -> Result<Box<dyn Duplex>, Fault> {
        const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
        let away = |error: io::Error| Fault::Unavailable(Server::Postgres, error.to_string());
        if self.config.get_ssl_mode() == SslMode::Disable {
            return Ok(Box::new(tcp));
        }
        tcp.write_all(&SSL_REQUEST).await.map_err(away)?;
        if tcp.read_u8().await.map_err(away)? == b'S' {
            let mut tls = self.tls.clone();
            let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, name);
            return Ok(Box::new(tls.connect(tcp).await.map_err(away)?));
        }
        match self.config.get_ssl_mode() {
            SslMode::Require => Err(Fault::Refused(
                "PostgreSQL does not offer TLS, and sslmode demands it".into(),
            )),
            _ => Ok(Box::new(tcp)),
        }
    }

    /// A pool of at most `connections`.
    ///
    /// # Errors
    /// [`Fault::Defect`] if the pool can't be built.
    pub fn pool(&self, connections: usize) -> Result<Pool, Fault> {
        let manager = Manager::from_config(
            self.config.clone(),
            self.tls.clone(),
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(self.login_time()))
            .build()
            .map_err(|error| Fault::Defect(error.to_string()))
    }
}

fn no_answer(patience: Duration) -> Fault {
    let seconds = patience.as_secs();
    Fault::Unavailable(
        Server::Postgres,
        format!("no answer to the login within {seconds} s"),
    )
}

/// A connection of bytes.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Who logs in to what.
pub struct Credentials {
    /// Role.
    pub user: String,
    /// Its password; empty: none was given.
    pub password: Vec<u8>,
    /// Database.
    pub database: String,
}

struct TlsOptions {
    verified: bool,
    root_cert: Option<PathBuf>,
}

/// `verify-ca`, `verify-full` and `sslrootcert` are libpq's; the client library does not know them.
fn take_tls_options(text: &str) -> Result<(String, TlsOptions), String> {
    let mut options = TlsOptions {
        verified: false,
        root_cert: None,
    };
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        if text.contains("://") {
            return Err("its scheme is not postgres".into());
        }
        return Ok((text.to_owned(), options));
    }
    let Some((base, query)) = text.split_once('?') else {
        return Ok((text.to_owned(), options));
    };
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("sslmode", "verify-ca" | "verify-full")) => options.verified = true,
            Some(("sslrootcert", path)) => {
                let path =
                    percent_decoded(path).ok_or("sslrootcert is not valid percent-encoded text")?;
                options.root_cert = Some(path.into());
            }
            _ => kept.push(pair),
        }
    }
    let rest = if kept.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", kept.join("&"))
    };
    Ok((rest, options))
}

fn percent_decoded(text: &str) -> Option<String> {
    url::form_urlencoded::parse(format!("v={}", text.replace('+', "%2B")).as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
}

fn shown(config: &Config) -> String {
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let port = config
                .get_ports()
                .get(i)
                .or(config.get_ports().first())
                .copied()
                .unwrap_or(5432);
            match host {
                tokio_postgres::config::Host::Tcp(name) => format!("{name}:{port}"),
                #[cfg(unix)]
                tokio_postgres::config::Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        })
        .collect();
    format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or("?"))
}

fn tls(verified: bool, root_cert: Option<PathBuf>) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    if !verified {
        let config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)));
        return Ok(MakeRustlsConnect::new(config.with_no_client_auth()));
    }
    let mut roots = RootCertStore::empty();
    match root_cert {
        Some(path) => {
            let certs = CertificateDer::pem_file_iter(&path)
                .map_err(|error| format!("sslrootcert {}: {error}", path.display()))?;
            for cert in certs {
                let cert =
                    cert.map_err(|error| format!("sslrootcert {}: {error}", path.display()))?;
                roots
                    .add(cert)
                    .map_err(|error| format!("sslrootcert {}: {error}", path.display()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(MakeRustlsConnect::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}

/// `sslmode=prefer` encrypts against listeners, and trusts whoever answers, as libpq documents it.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_one_sentence_without_the_password() {
        for text in [
            "",
            "mysql://u:topsecret@h/d",
            "postgres://u:topsecret@h:notaport/d",
            "postgres://u:topsecret@h/d?nonsense=1",
            "host=",
        ] {
            let fault = Database::parse(text).unwrap_err().to_string();
            assert!(fault.starts_with("database-url is not usable: "), "{fault}");
            assert!(
                !fault.contains("topsecret") && !fault.contains('\n'),
                "{fault}"
            );
        }
    }

    #[test]
    fn shows_the_address_only() {
        let database =
            Database::parse("postgres://u:topsecret@db.example:5433/shop?sslmode=verify-full")
                .unwrap();
        assert_eq!(
            format!("{database} {database:?}"),
            "db.example:5433/shop db.example:5433/shop"
        );
    }

    #[test]
    fn a_unix_socket_is_an_address() {
        let database = Database::parse("postgres://postgres@%2Ftmp%2Fpg/shop").unwrap();
        assert_eq!(database.to_string(), "/tmp/pg:5432/shop");
    }
}
