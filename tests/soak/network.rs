//! The network between the relays and their servers, and what it does to them.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::plan::{Asked, Link};
use crate::support::proxy::{Act, Api, At, KafkaProxy, Stall, TcpProxy, Weather};

/// Longest wait for a request that a fault is meant for. The relay may be away meanwhile.
const CAUGHT_MAX: Duration = Duration::from_secs(30);
/// A client gives up a request after 10 s, makes a new connection and goes on; longer than that nobody waits.
const NEXT_TRANSACTION_MAX: Duration = Duration::from_secs(25);

/// The proxies before both servers.
pub struct Network {
    pub kafka: KafkaProxy,
    postgres: TcpProxy,
    /// The database by way of the proxy.
    pub database_url: String,
    /// One black hole at a time on each link, so that none ends another's.
    stalls: [Mutex<()>; 2],
    /// One held frame at a time.
    held: Mutex<()>,
}

impl Network {
    pub async fn before(brokers: &str, database_url: &str) -> Self {
        let kafka = KafkaProxy::start(brokers).await.expect("a proxy");
        let (head, tail) = database_url
            .rsplit_once('/')
            .expect("a URL with a database");
        let (user, server) = head.rsplit_once('@').expect("a URL with a user");
        let postgres = TcpProxy::start(server).await.expect("a proxy");
        Self {
            database_url: format!("{user}@127.0.0.1:{}/{tail}", postgres.port()),
            kafka,
            postgres,
            stalls: Default::default(),
            held: Mutex::default(),
        }
    }

    pub fn reset(&self, link: Link) {
        match link {
            Link::Kafka => self.kafka.reset(),
            Link::Postgres => self.postgres.reset(None),
        };
    }

    pub async fn stall(&self, link: Link, time: Duration) {
        let _one = self.stalls[link as usize].lock().await;
        self.set(link, Stall::Everything);
        sleep(time).await;
        self.set(link, Stall::Nothing);
    }

    fn set(&self, link: Link, stalled: Stall) {
        let weather = Weather {
            stalled,
            ..Weather::default()
        };
        match link {
            Link::Kafka => self.kafka.set(weather),
            Link::Postgres => self.postgres.set(weather),
        }
    }

    pub async fn lose_reply(&self, of: Asked, silently: bool) {
        let act = if silently {
            Act::SwallowReplies
        } else {
            Act::LoseReply
        };
        let api = match of {
            Asked::Produce => Api::Produce,
            Asked::EndTxn => Api::EndTxn,
            Asked::InitProducerId => Api::InitProducerId,
        };
        let mut sent = self.kafka.order(act, At::api(api));
        let _ = timeout(CAUGHT_MAX, sent.caught()).await;
    }

    /// Held until a later transaction is under way: the client has then given up this frame and sent it again.
    pub async fn late_end_txn(&self, as_abort: bool) {
        let _one = self.held.lock().await;
        let mut sent = self.kafka.order(Act::Hold, At::api(Api::EndTxn));
        if !matches!(timeout(CAUGHT_MAX, sent.caught()).await, Ok(Ok(()))) {
            return;
        }
        let _ = timeout(NEXT_TRANSACTION_MAX, self.kafka.more(Api::Produce, 1)).await;
        let released = async {
            match as_abort {
                true => sent.release_as_abort().await,
                false => sent.release().await,
            }
        };
        let _ = timeout(CAUGHT_MAX, released).await;
    }
}
