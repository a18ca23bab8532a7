//! Kafka's framing, as far as a proxy needs it: a length, then a request or a reply. Pure but for reading and writing.
//!
//! A request begins with API key, API version and correlation id, a reply with the correlation id, in every version.

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What brokers take by default is 100 MiB; anything above is not Kafka.
const BYTES_MAX: usize = 128 << 20;

/// The end of a Fetch reply that may name three brokers: 20 bytes each, and what is around them.
const FETCH_TAIL_BYTES: usize = 80;

/// The requests that faults are aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    Produce,
    Fetch,
    Metadata,
    FindCoordinator,
    InitProducerId,
    AddPartitionsToTxn,
    EndTxn,
    Other(i16),
}

impl Api {
    fn of_key(key: i16) -> Self {
        match key {
            0 => Self::Produce,
            1 => Self::Fetch,
            3 => Self::Metadata,
            10 => Self::FindCoordinator,
            22 => Self::InitProducerId,
            24 => Self::AddPartitionsToTxn,
            26 => Self::EndTxn,
            other => Self::Other(other),
        }
    }
}

/// A request, without its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub api: Api,
    pub version: i16,
    pub correlation: i32,
    pub bytes: Vec<u8>,
}

impl Request {
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let &[k0, k1, v0, v1, c0, c1, c2, c3, ..] = bytes.as_slice() else {
            return Err(malformed("a request without a header"));
        };
        Ok(Self {
            api: Api::of_key(i16::from_be_bytes([k0, k1])),
            version: i16::from_be_bytes([v0, v1]),
            correlation: i32::from_be_bytes([c0, c1, c2, c3]),
            bytes,
        })
    }

    /// Whether this text stands in it anywhere. Topics of Produce and AddPartitionsToTxn do, up to the versions that
    /// librdkafka 2.12 sends.
    pub fn mentions(&self, text: &str) -> bool {
        contains(&self.bytes, text.as_bytes())
    }

    /// EndTxn(commit) as the same producer would have sent it to abort: the flag is the last byte before version 3.
    pub fn into_abort(mut self) -> Result<Self> {
        let flag = self.bytes.last_mut();
        match (self.api, self.version, flag) {
            (Api::EndTxn, 0..=2, Some(flag @ 1)) => *flag = 0,
            _ => return Err(malformed("no EndTxn(commit) of version 0 to 2")),
        }
        Ok(self)
    }
}

/// A reply, without its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub correlation: i32,
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let head = bytes
            .first_chunk::<4>()
            .ok_or_else(|| malformed("a reply without a header"))?;
        Ok(Self {
            correlation: i32::from_be_bytes(*head),
            bytes,
        })
    }

    /// The error code of an EndTxn reply, version 0 to 2: after correlation id and throttle time.
    pub fn end_txn_error(&self) -> Result<i16> {
        match self.bytes.as_slice() {
            &[_, _, _, _, _, _, _, _, e0, e1] => Ok(i16::from_be_bytes([e0, e1])),
            _ => Err(malformed("no EndTxn reply of version 0 to 2")),
        }
    }

    /// Replaces `host:from` by `host:to` wherever the reply names it, as a host and a 32-bit port. The length stays.
    /// `api` is what it replies to.
    pub fn move_broker(&mut self, api: Api, host: &str, from: u16, to: u16) {
        let wanted = [host.as_bytes(), &i32::from(from).to_be_bytes()].concat();
        let port = host.len()..wanted.len();
        let begin = match api {
            // Records may hold any bytes. The leaders that a broker tells of, when it leads no more, come after them.
            Api::Fetch => self.bytes.len().saturating_sub(FETCH_TAIL_BYTES),
            _ => 0,
        };
        for at in begin..self.bytes.len().saturating_sub(wanted.len() - 1) {
            let place = &mut self.bytes[at..at + wanted.len()];
            if place == wanted {
                place[port.clone()].copy_from_slice(&i32::from(to).to_be_bytes());
            }
        }
    }
}

/// The next frame; `None` at the end of the stream.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > BYTES_MAX {
        return Err(malformed("a frame too long to be Kafka's"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

/// Writes a frame with its length, in one piece.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| malformed("a frame too long"))?;
    to.write_all(&[&length.to_be_bytes(), bytes].concat()).await
}

pub fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EndTxn version 1, correlation 7, client id "rd", transactional id "tx", producer 9, epoch 3, commit.
    fn end_txn() -> Vec<u8> {
        let header = [0, 26, 0, 1, 0, 0, 0, 7, 0, 2, b'r', b'd'];
        let body = [
            0, 2, b't', b'x', 0, 0, 0, 0, 0, 0, 0, 9, 0, 3, /* commit */ 1,
        ];
        [&header[..], &body[..]].concat()
    }

    #[test]
    fn a_request_is_read_from_its_header() {
        let request = Request::parse(end_txn()).unwrap();
        assert_eq!(
            (request.api, request.version, request.correlation),
            (Api::EndTxn, 1, 7)
        );
        assert!(request.mentions("tx") && !request.mentions("ty"));
        assert!(Request::parse(vec![0; 7]).is_err());
    }

    #[test]
    fn only_the_flag_differs_in_an_abort() {
        let commit = Request::parse(end_txn()).unwrap();
        let abort = commit.clone().into_abort().unwrap();
        let (flag, rest) = abort.bytes.split_last().unwrap();
        assert_eq!((*flag, rest), (0, &commit.bytes[..commit.bytes.len() - 1]));
        assert!(abort.into_abort().is_err(), "it is one already");
        let flexible = [&[0, 26, 0, 3], &end_txn()[4..]].concat();
        assert!(Request::parse(flexible).unwrap().into_abort().is_err());
    }

    #[test]
    fn the_error_of_an_end_txn_reply_comes_after_the_throttle_time() {
        let reply = Reply::parse(vec![0, 0, 0, 7, 0, 0, 0, 5, 0, 47]).unwrap();
        assert_eq!((reply.correlation, reply.end_txn_error().unwrap()), (7, 47));
        assert!(Reply::parse(vec![0; 11]).unwrap().end_txn_error().is_err());
        assert!(Reply::parse(vec![0; 3]).is_err());
    }

    #[test]
    fn an_address_in_a_reply_is_moved_and_others_are_not() {
        let broker = |port: i32| [b"\0\x09127.0.0.1", &port.to_be_bytes()[..]].concat();
        let bytes = |port| [&[0, 0, 0, 1][..], &broker(port), &broker(9093)].concat();
        let moved = |api, bytes| {
            let mut reply = Reply::parse(bytes).unwrap();
            reply.move_broker(api, "127.0.0.1", 9092, 40_000);
            reply.bytes
        };
        assert_eq!(moved(Api::Metadata, bytes(9092)), bytes(40_000));
        assert_eq!(moved(Api::Metadata, vec![0; 4]), [0; 4]);
        // Records stay as they are; the new leaders behind them are moved.
        let fetched = |port| [bytes(9092), vec![0; FETCH_TAIL_BYTES], broker(port)].concat();
        assert_eq!(moved(Api::Fetch, fetched(9092)), fetched(40_000));
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let mut wire = Vec::new();
        write(&mut wire, b"one").await.unwrap();
        write(&mut wire, b"").await.unwrap();
        let mut from = wire.as_slice();
        assert_eq!(read(&mut from).await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(read(&mut from).await.unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(read(&mut from).await.unwrap(), None);
        assert!(read(&mut &wire[..5]).await.is_err(), "cut in its middle");
        assert!(read(&mut &[0xff; 8][..]).await.is_err(), "not Kafka");
    }
}
