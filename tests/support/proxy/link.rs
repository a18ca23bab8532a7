//! What both proxies share: a listener, its connections, and the weather on them.

use std::future::Future;
use std::io::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::frame::contains;

/// What a client said first is kept up to this size, to tell its connections apart.
const SAID_BYTES: usize = 64 << 10;

/// How the network is. The default is fair.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Added to each piece, in each direction.
    pub latency: Duration,
    /// Of each connection, in each direction.
    pub bytes_per_second: Option<u64>,
    /// Where nothing comes through.
    pub stalled: Stall,
}

impl Weather {
    fn time_of(&self, bytes: usize) -> Duration {
        let sending = |per_second| Duration::from_secs_f64(bytes as f64 / per_second as f64);
        self.latency + self.bytes_per_second.map_or(Duration::ZERO, sending)
    }
}

/// A black hole. Nothing is lost in it: as with TCP, what was sent into it arrives when it heals, however late.
#[derive(Clone, Debug, Default)]
pub enum Stall {
    #[default]
    Nothing,
    Everything,
    /// The connections whose client said this in its first 64 KiB.
    Those(&'static str),
}

/// The weather and the connections of one proxy. Dropped, it cuts them all.
#[derive(Debug)]
pub struct Network {
    weather: watch::Sender<Weather>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// One connection, for its two pumps.
#[derive(Debug)]
pub struct Connection {
    weather: watch::Receiver<Weather>,
    said: Mutex<Vec<u8>>,
    cut: CancellationToken,
}

impl Network {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            weather: watch::channel(Weather::default()).0,
            connections: Mutex::default(),
        })
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets all connections, or those whose client said `words`. How many they were.
    pub fn reset(&self, words: Option<&str>) -> usize {
        let connections = lock(&self.connections);
        let open = connections.iter().filter(|each| !each.cut.is_cancelled());
        let hit = open.filter(|each| words.is_none_or(|words| each.has_said(words)));
        hit.map(|each| each.cut.cancel()).count()
    }

    fn connect(&self) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            weather: self.weather.subscribe(),
            said: Mutex::default(),
            cut: CancellationToken::new(),
        });
        let mut connections = lock(&self.connections);
        connections.retain(|each| !each.cut.is_cancelled());
        connections.push(Arc::clone(&connection));
        connection
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.reset(None);
    }
}

impl Connection {
    /// Notes what the client says.
    pub fn hear(&self, bytes: &[u8]) {
        let mut said = lock(&self.said);
        let room = SAID_BYTES - said.len();
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn has_said(&self, words: &str) -> bool {
        contains(&lock(&self.said), words.as_bytes())
    }

    /// Takes as long as the weather wants for a piece of `bytes`.
    pub async fn travel(&self, bytes: usize) {
        let mut weather = self.weather.clone();
        let stalled = |weather: &Weather| match weather.stalled {
            Stall::Nothing => false,
            Stall::Everything => true,
            Stall::Those(words) => self.has_said(words),
        };
        // An error says that the proxy is gone; then this connection is cut, too.
        let time = match weather.wait_for(|weather| !stalled(weather)).await {
            Ok(fair) => fair.time_of(bytes),
            Err(_) => return,
        };
        if !time.is_zero() {
            sleep(time).await;
        }
    }
}

/// A listening port of a proxy; dropped, it listens no more.
#[derive(Debug)]
pub struct Listener {
    pub port: u16,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries bytes between a client and a server.
pub trait Pump: Send + 'static {
    /// Until both are done. After an error, and when the network cuts the connection, both ends are reset.
    fn run(
        &self,
        connection: &Connection,
        client: &mut TcpStream,
        server: &mut TcpStream,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Listens on a free port of loopback, for connections to `upstream`.
pub async fn listen<P: Pump + Clone>(
    upstream: String,
    network: Arc<Network>,
    pump: P,
) -> Result<Listener> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let accept = async move {
        while let Ok((client, _)) = listener.accept().await {
            // Without an upstream the client sees a connection that ends at once.
            if let Ok(server) = TcpStream::connect(&upstream).await {
                tokio::spawn(carry(pump.clone(), network.connect(), client, server));
            }
        }
    };
    let task = tokio::spawn(accept).abort_handle();
    Ok(Listener { port, task })
}

async fn carry<P: Pump>(
    pump: P,
    connection: Arc<Connection>,
    mut client: TcpStream,
    mut server: TcpStream,
) {
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let pumping = pump.run(&connection, &mut client, &mut server);
    let end = connection.cut.run_until_cancelled(pumping).await;
    if !matches!(end, Some(Ok(()))) {
        for stream in [&client, &server] {
            let _ = stream.set_zero_linger();
        }
    }
    connection.cut.cancel();
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
