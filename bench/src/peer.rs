//! What the peers of this crate have in common: their command line, and packets with a length before them.

use crate::Protocol;
use anyhow::{Result, bail};
use lexopt::prelude::*;
use std::io;
use std::net::SocketAddr;

/// How a peer is to serve.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where.
    pub listen: SocketAddr,
    /// With how many threads.
    pub threads: usize,
    /// Whether it echoes bytes or whole packets.
    pub protocol: Protocol,
    /// Bytes of the largest packet.
    pub packet_max: usize,
    /// So many microseconds a thread of `bare_echo` yields its core before it sleeps.
    pub yield_us: u64,
}

const HELP: &str = "\
[--listen tcp://127.0.0.1:0] [--threads 2] [--framing raw|length] [--packet-max BYTES] [--yield-us N]

A peer for the benchmark. Prints `ready listen=tcp://HOST:PORT`, and ends on SIGTERM. --framing is for those that echo:
raw gives back what comes, length whole packets with a header of 4 bytes. --yield-us is for bare_echo: so long a thread
yields its core in a loop before it sleeps.";

/// Reads at least so much at once.
pub const READ_SIZE: usize = 64 * 1024;
/// Bytes before a packet, which hold its length.
const HEADER: usize = 4;

/// Reads the command line of a peer; `None` if it asked for help, which was printed.
///
/// # Errors
/// It has an unknown flag or a value that makes no sense.
pub fn options() -> Result<Option<Options>> {
    let mut options = Options {
        listen: ([127, 0, 0, 1], 0).into(),
        threads: 2,
        protocol: Protocol::Raw,
        packet_max: 2 << 20,
        yield_us: 0,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("listen") => match args.value()?.string()?.strip_prefix("tcp://") {
                Some(address) => options.listen = address.parse()?,
                None => bail!("--listen takes tcp://HOST:PORT"),
            },
            Long("threads") => options.threads = args.value()?.parse()?,
            Long("framing") => options.protocol = args.value()?.parse()?,
            Long("packet-max") => options.packet_max = args.value()?.parse()?,
            Long("yield-us") => options.yield_us = args.value()?.parse()?,
            Long("help") | Short('h') => {
                println!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// Tells whoever has started a peer where it listens.
pub fn say_ready(address: SocketAddr) {
    println!("ready listen=tcp://{address}");
}

impl Options {
    /// How many bytes at the front of `buffer` are to be given back, and how many the packet behind them lacks at least.
    ///
    /// # Errors
    /// A packet is too large.
    pub fn whole(&self, buffer: &[u8]) -> io::Result<(usize, usize)> {
        if self.protocol == Protocol::Raw {
            return Ok((buffer.len(), 1));
        }
        let mut whole = 0;
        while let Some(&header) = buffer[whole..].first_chunk::<HEADER>() {
            let length = u32::from_be_bytes(header) as usize;
            if length > self.packet_max {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("packet of {length} bytes")));
            }
            let (total, there) = (HEADER + length, buffer.len() - whole);
            if there < total {
                return Ok((whole, total - there));
            }
            whole += total;
        }
        Ok((whole, HEADER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_packets_are_counted() {
        let listen = ([127, 0, 0, 1], 0).into();
        let options = Options { listen, threads: 1, protocol: Protocol::Length, packet_max: 8, yield_us: 0 };
        let packets = b"\0\0\0\x02ab\0\0\0\0\0\0\0\x03ab";
        assert_eq!(options.whole(packets).unwrap(), (10, 1));
        assert_eq!(options.whole(&packets[..3]).unwrap(), (0, HEADER));
        assert!(options.whole(b"\0\0\0\x09").is_err());
        assert_eq!(Options { protocol: Protocol::Raw, ..options }.whole(packets).unwrap().0, packets.len());
    }
}
