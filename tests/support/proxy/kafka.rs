//! A proxy that knows Kafka's requests and replies.
//!
//! Clients learn addresses from the brokers' replies. Those are moved to the proxy's ports, one for each broker; host
//! and length stay, so no message has to be decoded.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex};

use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{oneshot, watch};

use super::frame::{Api, Reply, Request, read, write};
use super::link::{Connection, Listener, Network, Pump, Weather, listen, lock};

/// Which request a fault waits for: the first that fits, after some that are let through.
#[derive(Clone, Debug)]
pub struct At {
    api: Api,
    mentions: Option<String>,
    skip: usize,
}

impl At {
    pub fn api(api: Api) -> Self {
        Self {
            api,
            mentions: None,
            skip: 0,
        }
    }

    /// Only requests with this text in them, such as a topic's name.
    pub fn mentioning(mut self, text: &str) -> Self {
        self.mentions = Some(text.to_owned());
        self
    }

    /// Lets this many pass first.
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    fn fits(&self, request: &Request) -> bool {
        let mentions = self.mentions.as_deref();
        request.api == self.api && mentions.is_none_or(|text| request.mentions(text))
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It is kept, with all that follows on its connection, until it is [`Sent::release`]d, whether or not its client
    /// is still there.
    Hold,
    /// The broker carries it out; the connection is reset in place of the reply.
    LoseReply,
    /// The broker carries it out; its reply and all later ones on this connection are swallowed. The half-open
    /// connection looks alive.
    SwallowReplies,
    /// The connection is reset before the broker sees it.
    Reset,
}

/// How a held request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    AsItIs,
    AsAbort,
}

/// A fault that was ordered.
struct Order {
    at: At,
    act: Act,
    caught: oneshot::Sender<()>,
    release: oneshot::Receiver<Release>,
    reply: oneshot::Sender<Reply>,
}

/// The other end of an ordered fault.
pub struct Sent {
    caught: Option<oneshot::Receiver<()>>,
    release: Option<oneshot::Sender<Release>>,
    reply: oneshot::Receiver<Reply>,
}

impl Sent {
    /// Waits until the request has come.
    pub async fn caught(&mut self) -> Result<()> {
        match self.caught.take() {
            Some(caught) => caught.await.map_err(|_| gone()),
            None => Ok(()),
        }
    }

    /// Lets a held request go on; the broker's reply to it.
    pub async fn release(mut self) -> Result<Reply> {
        self.go_on(Release::AsItIs).await
    }

    /// The same, but a held EndTxn(commit) has become an abort.
    pub async fn release_as_abort(mut self) -> Result<Reply> {
        self.go_on(Release::AsAbort).await
    }

    async fn go_on(&mut self, how: Release) -> Result<Reply> {
        self.caught().await?;
        if let Some(release) = self.release.take() {
            let _ = release.send(how);
        }
        (&mut self.reply).await.map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::BrokenPipe, "its connection or proxy is gone")
}

/// A broker, and the port of the proxy before it.
#[derive(Debug)]
struct Moved {
    host: String,
    from: u16,
    to: u16,
}

#[derive(Default)]
struct Script {
    orders: Mutex<Vec<Order>>,
    brokers: Mutex<Vec<Moved>>,
    /// Replies so far, by API, whether or not they came through.
    answered: watch::Sender<HashMap<Api, u64>>,
}

/// Stands before all brokers of a cluster.
pub struct KafkaProxy {
    network: Arc<Network>,
    script: Arc<Script>,
    listeners: Vec<Listener>,
}

impl KafkaProxy {
    /// Before these brokers, `127.0.0.1:port`, comma separated: all of the cluster, as they advertise themselves.
    pub async fn start(brokers: &str) -> Result<Self> {
        let (network, script) = (Network::new(), Arc::new(Script::default()));
        let mut listeners = Vec::new();
        for broker in brokers.split(',').map(str::trim) {
            let address = broker.rsplit_once(':').and_then(|(host, port)| {
                let host = Some(host).filter(|host| *host == "127.0.0.1")?;
                Some((host.to_owned(), port.parse::<u16>().ok()?))
            });
            let (host, from) = address.ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, "no broker at 127.0.0.1:port")
            })?;
            let pump = Arc::clone(&script);
            let listener = listen(broker.to_owned(), Arc::clone(&network), pump).await?;
            let to = listener.port;
            lock(&script.brokers).push(Moved { host, from, to });
            listeners.push(listener);
        }
        Ok(Self {
            network,
            script,
            listeners,
        })
    }

    /// The brokers as clients shall know them.
    pub fn brokers(&self) -> String {
        let ports = self.listeners.iter().map(|each| each.port);
        let addresses: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        addresses.join(",")
    }

    /// Orders a fault for one request. Dropping the answer of a held one cuts its connection.
    pub fn order(&self, act: Act, at: At) -> Sent {
        let (caught, has_caught) = oneshot::channel();
        let (go, release) = oneshot::channel();
        let (reply, replied) = oneshot::channel();
        lock(&self.script.orders).push(Order {
            at,
            act,
            caught,
            release,
            reply,
        });
        Sent {
            caught: Some(has_caught),
            release: Some(go),
            reply: replied,
        }
    }

    /// How many requests of this kind the brokers have answered.
    pub fn answered(&self, api: Api) -> u64 {
        let answered = self.script.answered.borrow();
        answered.get(&api).copied().unwrap_or_default()
    }

    /// Waits until they have answered this many more.
    pub async fn more(&self, api: Api, count: u64) -> Result<()> {
        let goal = self.answered(api) + count;
        let mut answered = self.script.answered.subscribe();
        let enough = |now: &HashMap<Api, u64>| now.get(&api).is_some_and(|now| *now >= goal);
        answered.wait_for(enough).await.map_err(|_| gone())?;
        Ok(())
    }

    pub fn set(&self, weather: Weather) {
        self.network.set(weather);
    }

    /// Resets all connections; how many.
    pub fn reset(&self) -> usize {
        self.network.reset(None)
    }
}

impl Script {
    /// The order that this request fulfils.
    fn take(&self, request: &Request) -> Option<Order> {
        let mut orders = lock(&self.orders);
        let mut fulfilled = None;
        for (index, order) in orders.iter_mut().enumerate() {
            if order.at.fits(request) {
                if order.at.skip == 0 {
                    fulfilled.get_or_insert(index);
                } else {
                    order.at.skip -= 1;
                }
            }
        }
        fulfilled.map(|index| orders.remove(index))
    }

    fn count(&self, api: Api) {
        self.answered
            .send_modify(|answered| *answered.entry(api).or_default() += 1);
    }

    fn move_brokers(&self, api: Api, reply: &mut Reply) {
        for Moved { host, from, to } in lock(&self.brokers).iter() {
            reply.move_broker(api, host, *from, *to);
        }
    }
}

/// What is to be done with a reply.
struct Awaited {
    api: Api,
    act: Option<Act>,
    tell: Option<oneshot::Sender<Reply>>,
    /// Resolves when the reply was seen.
    seen: Option<oneshot::Sender<()>>,
}

type InFlight = Mutex<HashMap<i32, Awaited>>;

impl Pump for Arc<Script> {
    /// A connection lives until its broker ends it, or its client does and nothing of it is held.
    async fn run(
        &self,
        connection: &Connection,
        client: &mut TcpStream,
        server: &mut TcpStream,
    ) -> Result<()> {
        let ((client_in, client_out), (server_in, server_out)) = (client.split(), server.split());
        let in_flight = InFlight::default();
        tokio::select! {
            end = requests(self, connection, &in_flight, client_in, server_out) => end,
            end = replies(self, connection, &in_flight, server_in, client_out) => end,
        }
    }
}

async fn requests(
    script: &Script,
    connection: &Connection,
    in_flight: &InFlight,
    mut client: ReadHalf<'_>,
    mut server: WriteHalf<'_>,
) -> Result<()> {
    while let Some(bytes) = read(&mut client).await? {
        connection.hear(&bytes);
        connection.travel(bytes.len()).await;
        let mut request = Request::parse(bytes)?;
        let (seen, reply_seen) = oneshot::channel();
        let mut awaited = Awaited {
            api: request.api,
            act: None,
            tell: None,
            seen: None,
        };
        let order = script.take(&request);
        let act = order.as_ref().map(|order| order.act);
        if let Some(order) = order {
            let _ = order.caught.send(());
            if act == Some(Act::Reset) {
                return Err(gone());
            }
            if act == Some(Act::Hold) {
                match order.release.await.map_err(|_| gone())? {
                    Release::AsItIs => {}
                    Release::AsAbort => request = request.into_abort()?,
                }
                awaited.seen = Some(seen);
            }
            (awaited.act, awaited.tell) = (act, Some(order.reply));
        }
        let held = awaited.seen.is_some();
        lock(in_flight).insert(request.correlation, awaited);
        write(&mut server, &request.bytes).await?;
        if held {
            // Its client may be gone; it must not end the connection before the broker has answered.
            let _ = reply_seen.await;
        }
    }
    Ok(())
}

async fn replies(
    script: &Script,
    connection: &Connection,
    in_flight: &InFlight,
    mut server: ReadHalf<'_>,
    mut client: WriteHalf<'_>,
) -> Result<()> {
    let mut swallowing = false;
    while let Some(bytes) = read(&mut server).await? {
        let mut reply = Reply::parse(bytes)?;
        let awaited = lock(in_flight).remove(&reply.correlation);
        let awaited = awaited.ok_or_else(gone)?;
        script.count(awaited.api);
        if let Some(tell) = awaited.tell {
            let _ = tell.send(reply.clone());
        }
        if let Some(seen) = awaited.seen {
            let _ = seen.send(());
        }
        match awaited.act {
            Some(Act::LoseReply) => return Err(gone()),
            Some(Act::SwallowReplies) => swallowing = true,
            Some(Act::Hold | Act::Reset) | None => {}
        }
        script.move_brokers(awaited.api, &mut reply);
        connection.travel(reply.bytes.len()).await;
        if !swallowing {
            // A client that went away does not keep the broker from answering a held request.
            let _ = write(&mut client, &reply.bytes).await;
        }
    }
    Ok(())
}
