//! A replication connection: the streaming replication protocol, over a connection that `database` made.
//!
//! The client library for everything else does not speak it. Framing and codec are those of `pgwire-replication`; its own
//! client is not used, because it queues by messages, not by bytes, and brings a second TLS policy.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol".

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use pgwire_replication::PgWireError;
use pgwire_replication::protocol::framing::{
    BackendMessage, MessageReader, write_copy_data, write_password_message, write_query,
    write_startup_message,
};
use pgwire_replication::protocol::messages::{ErrorFields, auth, parse_auth_request};
use pgwire_replication::protocol::replication::{
    ReplicationCopyData, encode_standby_status_update, parse_copy_data,
};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tokio::io::{BufReader, ReadHalf, WriteHalf, split};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::shell::{Feedback, Sent, Stream};
use crate::database::{Credentials, Duplex};
use crate::fault::{Fault, Server};
use crate::position::Lsn;

/// Large reads cost the walsender half of what small ones do (measured).
const READ_BYTES: usize = 256 << 10;
/// Protocol version 3.0.
const PROTOCOL: i32 = 3 << 16;
/// How often the server hears from us, come what may.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// The walsender of a relay that fell silent lets its slot go after this.
const OPTIONS: &str = "-c wal_sender_timeout=10s";

type Io = BufReader<Box<dyn Duplex>>;

/// A row of text values.
pub(super) type TextRow = Vec<Option<String>>;

/// A session that has not begun to stream.
pub(super) struct Wire {
    io: Io,
    reader: MessageReader,
}

impl Wire {
    /// Logs in over a connection of bytes.
    pub async fn login(io: Box<dyn Duplex>, who: &Credentials) -> Result<Self, Fault> {
        let mut wire = Self {
            io: BufReader::with_capacity(READ_BYTES, io),
            reader: MessageReader::new(),
        };
        let parameters = [
            ("user", who.user.as_str()),
            ("database", &who.database),
            ("replication", "database"),
            ("application_name", "outbox-relay"),
            ("client_encoding", "UTF8"),
            ("options", OPTIONS),
        ];
        write_startup_message(&mut wire.io, PROTOCOL, &parameters)
            .await
            .map_err(gone)?;
        loop {
            let message = wire.read().await?;
            match message.tag {
                b'R' => wire.authenticate(&message.payload, who).await?,
                b'Z' => return Ok(wire),
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, request: &[u8], who: &Credentials) -> Result<(), Fault> {
        let (kind, rest) = parse_auth_request(request).map_err(gone)?;
        match kind {
            auth::OK => Ok(()),
            auth::CLEARTEXT_PASSWORD => self.answer(zero_ended(&who.password)).await,
            auth::MD5_PASSWORD => {
                let salt = rest
                    .try_into()
                    .map_err(|_| odd("a salt of another length"))?;
                let hash = md5_hash(who.user.as_bytes(), &who.password, salt);
                self.answer(zero_ended(hash.as_bytes())).await
            }
            auth::SASL => self.scram(who).await,
            other => Err(Fault::Refused(format!(
                "PostgreSQL asks for authentication method {other} on the replication connection, which outbox-relay does not \
                 know; allow scram-sha-256 in pg_hba.conf"
            ))),
        }
    }

    /// SCRAM without channel binding, as for the other connections: the client library does that alike.
    async fn scram(&mut self, who: &Credentials) -> Result<(), Fault> {
        let wrong = |error: std::io::Error| {
            Fault::Refused(format!("PostgreSQL refuses the login: {error}"))
        };
        let mut scram = ScramSha256::new(&who.password, ChannelBinding::unsupported());
        let mut first = zero_ended(SCRAM_SHA_256.as_bytes());
        let length = u32::try_from(scram.message().len()).map_err(|_| odd("a long login"))?;
        first.extend(length.to_be_bytes());
        first.extend(scram.message());
        self.answer(first).await?;
        scram
            .update(&self.sasl(auth::SASL_CONTINUE).await?)
            .map_err(wrong)?;
        self.answer(scram.message().to_vec()).await?;
        scram
            .finish(&self.sasl(auth::SASL_FINAL).await?)
            .map_err(wrong)
    }

    async fn sasl(&mut self, expected: i32) -> Result<Vec<u8>, Fault> {
        let message = self.read().await?;
        match (message.tag, parse_auth_request(&message.payload)) {
            (b'R', Ok((kind, rest))) if kind == expected => Ok(rest.to_vec()),
            _ => Err(odd("something else than an answer to the login")),
        }
    }

    async fn answer(&mut self, payload: Vec<u8>) -> Result<(), Fault> {
        write_password_message(&mut self.io, &payload)
            .await
            .map_err(gone)
    }

    /// A statement or a replication command.
    pub async fn query(&mut self, text: &str) -> Result<Vec<TextRow>, Fault> {
        write_query(&mut self.io, text).await.map_err(gone)?;
        let mut rows = Vec::new();
        loop {
            let message = self.read().await?;
            match message.tag {
                b'D' => rows
                    .push(text_row(message.payload).ok_or_else(|| odd("a row that ends early"))?),
                b'Z' => return Ok(rows),
                _ => {}
            }
        }
    }

    /// The same, for one row.
    pub async fn query_one(&mut self, text: &str) -> Result<TextRow, Fault> {
        let mut rows = self.query(text).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(odd("another number of rows than one")),
        }
    }

    /// Begins to stream; `command` is a START_REPLICATION from `from`.
    pub async fn start(mut self, command: &str, from: Lsn) -> Result<WireStream, Fault> {
        write_query(&mut self.io, command).await.map_err(gone)?;
        while self.read().await?.tag != b'W' {}
        let (read, write) = split(self.io);
        let (feedback, acknowledged) = watch::channel(from);
        let asked = Arc::new(Notify::new());
        let status = tokio::spawn(status(write, acknowledged, Arc::clone(&asked)));
        Ok(WireStream {
            read,
            reader: self.reader,
            feedback,
            asked,
            _status: AbortOnDropHandle::new(status),
        })
    }

    async fn read(&mut self) -> Result<BackendMessage, Fault> {
        read(&mut self.reader, &mut self.io).await
    }
}

/// An error of the server is a fault, whatever it comes in place of.
async fn read<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut MessageReader,
    io: &mut R,
) -> Result<BackendMessage, Fault> {
    let message = reader.read(io).await.map_err(gone)?;
    match message.tag {
        b'E' => Err(refused(&ErrorFields::parse(&message.payload))),
        _ => Ok(message),
    }
}

/// Errors of replication commands mean more than the same codes elsewhere.
fn refused(error: &ErrorFields) -> Fault {
    let code = error.code.as_deref().unwrap_or_default();
    let message = error
        .message
        .as_deref()
        .unwrap_or("an error without a message");
    match code {
        // object_not_in_prerequisite_state: wal_level is too low, or the slot has lost its WAL.
        "55000" => Fault::Refused(format!(
            "PostgreSQL can't stream: {message} (SQLSTATE {code}); capture wal needs wal_level = logical, and a slot that has \
             all WAL since the position: after a lost slot run `outbox-relay recover`"
        )),
        "42704" => Fault::Refused(format!(
            "PostgreSQL can't stream: {message} (SQLSTATE {code}); run `outbox-relay init --capture wal`"
        )),
        _ => Fault::of_sqlstate(code, message),
    }
}

/// Tells the server what it need not keep: now and then, when there is news, and when it asks.
async fn status(mut io: WriteHalf<Io>, mut acknowledged: watch::Receiver<Lsn>, asked: Arc<Notify>) {
    loop {
        let lsn = u64::from(*acknowledged.borrow_and_update());
        // The server does nothing with our clock.
        let status = encode_standby_status_update(pgwire_replication::Lsn(lsn), 0, false);
        // A broken connection is found by the one who reads.
        if write_copy_data(&mut io, &status).await.is_err() {
            return;
        }
        tokio::select! {
            news = acknowledged.changed() => if news.is_err() { return },
            () = asked.notified() => {}
            () = tokio::time::sleep(STATUS_EVERY) => {}
        }
    }
}

/// A session that streams.
pub struct WireStream {
    read: ReadHalf<Io>,
    reader: MessageReader,
    feedback: Feedback,
    asked: Arc<Notify>,
    _status: AbortOnDropHandle<()>,
}

/// The server speaks at least this often: it asks for a reply at half of its `wal_sender_timeout`.
const SILENCE_MAX: Duration = Duration::from_secs(15);

impl Stream for WireStream {
    async fn next(&mut self) -> Result<Sent, Fault> {
        loop {
            // Most often it is there: then no clock is asked. Reading may be dropped at any point.
            let message = match read(&mut self.reader, &mut self.read).now_or_never() {
                Some(message) => message?,
                None => timeout(SILENCE_MAX, read(&mut self.reader, &mut self.read))
                    .await
                    .map_err(|_| silent())??,
            };
            match message.tag {
                b'd' => {}
                b'c' => return Err(odd("the end of the stream")),
                _ => continue,
            }
            return Ok(match parse_copy_data(message.payload).map_err(gone)? {
                ReplicationCopyData::XLogData { data, .. } => Sent::Message(data),
                ReplicationCopyData::KeepAlive {
                    wal_end,
                    reply_requested,
                    ..
                } => {
                    if reply_requested {
                        self.asked.notify_one();
                    }
                    Sent::Reached(wal_end.as_u64().into())
                }
            });
        }
    }

    fn feedback(&self) -> Feedback {
        self.feedback.clone()
    }
}

fn silent() -> Fault {
    let silent = format!("its walsender was silent for {} s", SILENCE_MAX.as_secs());
    Fault::Unavailable(Server::Postgres, silent)
}

fn zero_ended(text: &[u8]) -> Vec<u8> {
    [text, &[0]].concat()
}

fn text_row(mut payload: Bytes) -> Option<TextRow> {
    let count = payload.try_get_u16().ok()?;
    let value = |_| {
        let length = payload.try_get_i32().ok()?;
        let Ok(length) = usize::try_from(length) else {
            return Some(None);
        };
        let value = (length <= payload.len()).then(|| payload.split_to(length))?;
        String::from_utf8(value.into()).ok().map(Some)
    };
    (0..count).map(value).collect()
}

fn odd(what: &str) -> Fault {
    Fault::Unavailable(
        Server::Postgres,
        format!("it sent {what} on the replication connection"),
    )
}

fn gone(error: PgWireError) -> Fault {
    Fault::Unavailable(
        Server::Postgres,
        format!("the replication connection broke: {error}"),
    )
}
