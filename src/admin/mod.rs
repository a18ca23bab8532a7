//! The admin endpoint: probes, metrics, and the status page. It reads only.
//!
//! It lives in a thread with a runtime of its own. So a client that is slow, or a sampler that waits, takes nothing from
//! the relay; and a relay that stands still can't keep it from saying so.

mod board;
mod export;
mod health;
mod history;
mod http;
mod page;
mod status;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::board::About;
use self::board::Board;
use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::sampler::Sampler;
use crate::sink::kafka::probe::Probe;

/// Time between two looks at PostgreSQL.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// The longest such time, when looking takes long.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Time between two questions to Kafka.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// The endpoint; it ends when this is dropped.
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    _stop: DropGuard,
}

impl Admin {
    /// Listens. Sinks without brokers have no probe.
    ///
    /// # Errors
    /// [`Fault::Setting`] if it can't listen there.
    pub fn start(
        listen: SocketAddr,
        about: About,
        metrics: Metrics,
        sampler: Sampler,
        probe: Option<Probe>,
    ) -> Result<Self, Fault> {
        let listener = TcpListener::bind(listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|error| {
            Fault::Setting(format!(
                "admin-listen: {listen} can't be listened on: {error}; choose a free port of this machine"
            ))
        })?;
        let defect = |error: std::io::Error| Fault::Defect(error.to_string());
        let address = listener.local_addr().map_err(defect)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(defect)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let board = Arc::new(Board::new(about, metrics, probe.is_some()));
        let run = move || {
            runtime.block_on(stopped.run_until_cancelled(work(listener, board, sampler, probe)));
            // A question to Kafka that is under way must not hold up the end.
            runtime.shutdown_background();
        };
        std::thread::Builder::new()
            .name("admin".into())
            .spawn(run)
            .map_err(defect)?;
        Ok(Self {
            address,
            _stop: stop.drop_guard(),
        })
    }
}

async fn work(listener: TcpListener, board: Arc<Board>, sampler: Sampler, probe: Option<Probe>) {
    let probing = async {
        if let Some(probe) = probe {
            board.probe(probe).await;
        }
    };
    let serving = http::serve(listener, Arc::clone(&board));
    tokio::join!(serving, board.sample(sampler), probing);
}
