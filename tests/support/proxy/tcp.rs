//! A proxy that passes bytes, for PostgreSQL.

use std::io::Result;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::link::{Connection, Listener, Network, Pump, Weather, listen};

const PIECE_BYTES: usize = 64 << 10;

/// Stands before one server.
pub struct TcpProxy {
    network: Arc<Network>,
    listener: Listener,
}

impl TcpProxy {
    /// Before `upstream`, `host:port`.
    pub async fn start(upstream: &str) -> Result<Self> {
        let network = Network::new();
        let listener = listen(upstream.to_owned(), Arc::clone(&network), Bytes).await?;
        Ok(Self { network, listener })
    }

    pub fn port(&self) -> u16 {
        self.listener.port
    }

    pub fn set(&self, weather: Weather) {
        self.network.set(weather);
    }

    /// Resets all connections, or those whose client said `words` in its first 64 KiB; how many.
    pub fn reset(&self, words: Option<&str>) -> usize {
        self.network.reset(words)
    }
}

#[derive(Clone)]
struct Bytes;

impl Pump for Bytes {
    async fn run(
        &self,
        connection: &Connection,
        client: &mut TcpStream,
        server: &mut TcpStream,
    ) -> Result<()> {
        let ((client_in, client_out), (server_in, server_out)) = (client.split(), server.split());
        tokio::try_join!(
            pass(connection, client_in, server_out, true),
            pass(connection, server_in, client_out, false),
        )?;
        Ok(())
    }
}

/// One direction, until its sender ends it.
async fn pass(
    connection: &Connection,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_clients: bool,
) -> Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut piece).await?;
        if is_clients {
            connection.hear(&piece[..length]);
        }
        connection.travel(length).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..length]).await?;
    }
}
