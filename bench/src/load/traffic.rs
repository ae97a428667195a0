//! What a connection sends and what it must get back: two endless streams of bytes, each a table that repeats.
//!
//! Connections start at different requests of the table, so that a reply which went astray is recognised. As streams
//! lie in memory as they go over the wire, many requests are one write without a copy, and many replies one compare.

use crate::Protocol;
use anyhow::{Context, Result};

/// Tables have at least so many bytes, so that neighbours differ, and few more, so that they stay in the cache.
const TABLE_BYTES: usize = 64 * 1024;
/// Large requests are a table of so many.
const REQUESTS_MIN: usize = 5;
/// Above this, the table's memory counts more than different neighbours.
const LARGE: usize = 1024 * 1024;

/// Requests, and the replies to them.
#[derive(Debug)]
pub(crate) struct Traffic {
    requests: Table,
    /// `None`: replies are the requests.
    replies: Option<Table>,
    count: usize,
}

impl Traffic {
    pub(crate) fn new(protocol: Protocol, size: usize) -> Result<Traffic> {
        let count = match size {
            LARGE.. => 2,
            _ => (TABLE_BYTES / size).max(REQUESTS_MIN),
        };
        let mut random = fastrand::Rng::with_seed(1);
        let payloads = (0..count).map(|_| {
            let mut payload = vec![0; size];
            random.fill(&mut payload);
            payload
        });
        let (requests, replies) = match protocol {
            Protocol::Raw => (Table::framed(payloads, b"", b""), None),
            Protocol::Length => {
                let header = u32::try_from(size).context("the size does not fit its header")?.to_be_bytes();
                (Table::framed(payloads, &header, b""), None)
            }
            Protocol::Redis => {
                let payloads: Vec<_> = payloads.collect();
                let reply = format!("${size}\r\n");
                let request = format!("*2\r\n$4\r\nECHO\r\n{reply}");
                (
                    Table::framed(payloads.iter().cloned(), request.as_bytes(), b"\r\n"),
                    Some(Table::framed(payloads, reply.as_bytes(), b"\r\n")),
                )
            }
        };
        Ok(Traffic { requests, replies, count })
    }

    pub(crate) fn requests(&self) -> &Table {
        &self.requests
    }

    pub(crate) fn replies(&self) -> &Table {
        self.replies.as_ref().unwrap_or(&self.requests)
    }

    /// The request that a connection starts with.
    pub(crate) fn first(&self, connection: usize) -> u64 {
        // A prime, so that neighbours are far apart whatever the count is.
        (connection * 7_919 % self.count) as u64
    }
}

/// Messages of one length, one behind the other, over and over again.
#[derive(Debug)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    message: usize,
}

impl Table {
    fn framed(payloads: impl IntoIterator<Item = Vec<u8>>, head: &[u8], tail: &[u8]) -> Table {
        let mut bytes = Vec::new();
        let mut message = 0;
        for payload in payloads {
            message = head.len() + payload.len() + tail.len();
            bytes.extend_from_slice(head);
            bytes.extend_from_slice(&payload);
            bytes.extend_from_slice(tail);
        }
        Table { bytes, message }
    }

    /// Bytes of one message.
    pub(crate) fn message(&self) -> u64 {
        self.message as u64
    }

    /// The stream's bytes from `at` on, as many of them as lie in one piece, at least one.
    pub(crate) fn from(&self, at: u64) -> &[u8] {
        &self.bytes[(at % self.bytes.len() as u64) as usize..]
    }

    /// Whether `bytes` are what the stream has at `at`.
    pub(crate) fn matches(&self, mut at: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let piece = self.from(at);
            let len = piece.len().min(bytes.len());
            if piece[..len] != bytes[..len] {
                return false;
            }
            bytes = &bytes[len..];
            at += len as u64;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_and_is_compared_across_its_end() {
        let traffic = Traffic::new(Protocol::Raw, 100).unwrap();
        let table = traffic.requests();
        let len = table.bytes.len() as u64;
        assert_eq!(len % 100, 0);
        let mut across = table.from(len - 3).to_vec();
        across.extend_from_slice(&table.from(0)[..5]);
        assert!(table.matches(len - 3, &across) && table.matches(3 * len - 3, &across));
        across[7] ^= 1;
        assert!(!table.matches(len - 3, &across));
    }

    #[test]
    fn neighbours_and_connections_differ() {
        for size in [1000, 64 * 1024] {
            let traffic = Traffic::new(Protocol::Raw, size).unwrap();
            let table = traffic.requests();
            assert_ne!(table.from(0)[..size], table.from(table.message())[..size]);
            assert_ne!(traffic.first(1), traffic.first(2));
        }
    }

    #[test]
    fn protocols_frame_the_same_payload() {
        let length = Traffic::new(Protocol::Length, 128).unwrap();
        assert_eq!(length.requests().from(132)[..4], [0, 0, 0, 128]);
        let redis = Traffic::new(Protocol::Redis, 128).unwrap();
        let reply = &redis.replies().from(0)[..redis.replies().message() as usize];
        assert!(reply.starts_with(b"$128\r\n") && reply.ends_with(b"\r\n"));
        let request = &redis.requests().from(0)[..redis.requests().message() as usize];
        assert_eq!(request, [b"*2\r\n$4\r\nECHO\r\n", reply].concat());
    }
}
