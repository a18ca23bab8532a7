//! A pooler in transaction mode, as small as can be: all clients share one session of PostgreSQL, a transaction at a time.

use std::io::Result;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use url::Url;

const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
/// Authenticated, and ready for a query outside a transaction.
const WELCOME: [u8; 15] = *b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

/// Stands before one database; ends when dropped.
pub struct Pooler {
    /// Where clients connect, `host:port`.
    pub address: String,
    /// Where the server is.
    pub server: String,
    accepting: JoinHandle<()>,
}

impl Pooler {
    pub async fn before(database_url: &str) -> Self {
        let url = Url::parse(database_url).expect("a url");
        let port = url.port().expect("a port");
        let server = format!("{}:{port}", url.host_str().expect("a host"));
        let session = session(&server, url.username(), url.path().trim_start_matches('/')).await;
        let session = Arc::new(Mutex::new(session.expect("a session")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&session)));
            }
        });
        Self {
            address,
            server,
            accepting,
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The one session, ready for a query; the server must trust whoever comes.
async fn session(server: &str, user: &str, database: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    let parameters = format!("user\0{user}\0database\0{database}\0\0");
    let length = u32::try_from(parameters.len() + 8).expect("a short message");
    stream.write_u32(length).await?;
    stream.write_u32(3 << 16).await?;
    stream.write_all(parameters.as_bytes()).await?;
    while message(&mut stream).await?.0 != b'Z' {}
    Ok(stream)
}

/// A message with its tag: the tag, and all of it.
async fn message(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let tag = stream.read_u8().await?;
    let length = stream.read_u32().await?;
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await?;
    let head = [&[tag][..], &length.to_be_bytes()].concat();
    Ok((tag, [head, body].concat()))
}

async fn serve(mut client: TcpStream, session: Arc<Mutex<TcpStream>>) -> Result<()> {
    loop {
        let length = client.read_u32().await?;
        let mut startup = vec![0; length as usize - 4];
        client.read_exact(&mut startup).await?;
        if startup != SSL_REQUEST {
            break;
        }
        client.write_u8(b'N').await?;
    }
    client.write_all(&WELCOME).await?;
    loop {
        let first = message(&mut client).await?;
        transaction(&mut client, &mut *session.lock().await, first).await?;
    }
}

/// Passes messages to and fro until the server is outside a transaction again.
async fn transaction(
    client: &mut TcpStream,
    server: &mut TcpStream,
    first: (u8, Vec<u8>),
) -> Result<()> {
    let (mut tag, mut bytes) = first;
    loop {
        if tag == b'X' {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        server.write_all(&bytes).await?;
        if matches!(tag, b'Q' | b'S') {
            loop {
                let (answer, bytes) = message(server).await?;
                client.write_all(&bytes).await?;
                if answer == b'Z' {
                    if bytes.ends_with(b"I") {
                        return Ok(());
                    }
                    break;
                }
            }
        }
        (tag, bytes) = message(client).await?;
    }
}
