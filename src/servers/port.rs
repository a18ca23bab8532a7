//! Free ports of the loopback interface.

use std::net::{Ipv4Addr, TcpListener};

use super::{ServersError, io};

/// Below the ranges that Linux and macOS give to outgoing connections. While a server is down for a
/// restart, its port could otherwise be taken by somebody's connection, even by a client of ours
/// that connects to itself.
const LOWEST: u16 = 15_000;
const HIGHEST: u16 = 31_999;
const ATTEMPTS: usize = 100;

/// A port of 127.0.0.1 that nobody listens on at this moment.
pub(super) fn free() -> Result<u16, ServersError> {
    port_of(&bind()?)
}

/// So many of them, all different.
pub(super) fn free_ones(count: usize) -> Result<Vec<u16>, ServersError> {
    // All are held until the last one is found.
    let held: Vec<TcpListener> = (0..count).map(|_| bind()).collect::<Result<_, _>>()?;
    held.iter().map(port_of).collect()
}

fn port_of(listener: &TcpListener) -> Result<u16, ServersError> {
    let address = listener.local_addr().map_err(io("ask for a port"))?;
    Ok(address.port())
}

fn bind() -> Result<TcpListener, ServersError> {
    let mut last = std::io::Error::other("no port tried");
    for _ in 0..ATTEMPTS {
        let [high, low, ..] = uuid::Uuid::new_v4().into_bytes();
        let port = LOWEST + u16::from_be_bytes([high, low]) % (HIGHEST - LOWEST);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(io("find a free port on 127.0.0.1")(last))
}
