//! One connection of the load: what it has sent, what it has got.

use super::traffic::Traffic;
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

/// A connection with its requests under way.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// Positions in the stream of requests: written so far, and up to where it may be written.
    written: u64,
    granted: u64,
    /// Position in the stream of replies.
    read: u64,
    /// When each request under way began.
    started: VecDeque<Instant>,
    /// Whether it is registered to learn when there is room to write again.
    pub(super) waits_for_room: bool,
}

impl Connection {
    pub(super) fn open(address: SocketAddr, index: usize, traffic: &Traffic) -> Result<Connection> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect {index} to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (first, requests, replies) = (traffic.first(index), traffic.requests(), traffic.replies());
        Ok(Connection {
            stream,
            written: first * requests.message(),
            granted: first * requests.message(),
            read: first * replies.message(),
            started: VecDeque::with_capacity(32),
            waits_for_room: false,
        })
    }

    /// Requests without a complete reply.
    pub(super) fn under_way(&self) -> usize {
        self.started.len()
    }

    /// Adds a request that begins at `start` to what [`send`](Connection::send) writes next.
    pub(super) fn grant(&mut self, start: Instant, traffic: &Traffic) {
        self.granted += traffic.requests().message();
        self.started.push_back(start);
    }

    /// Writes what was granted, as far as the socket takes it. True if something is left.
    pub(super) fn send(&mut self, traffic: &Traffic) -> Result<bool> {
        while self.written < self.granted {
            let piece = traffic.requests().from(self.written);
            let len = piece.len().min((self.granted - self.written) as usize);
            match self.stream.write(&piece[..len]) {
                Ok(written) => self.written += written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        Ok(false)
    }

    /// Reads once, compares, and tells the start of each request that is complete now, as of the time it returns.
    pub(super) fn receive(
        &mut self,
        scratch: &mut [u8],
        traffic: &Traffic,
        mut complete: impl FnMut(Instant, Instant) -> Result<()>,
    ) -> Result<Received> {
        let read = match self.stream.read(scratch) {
            Ok(0) => bail!("closed by the server with {} requests under way", self.started.len()),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error).context("receive"),
        };
        let now = Instant::now();
        let replies = traffic.replies();
        ensure!(
            replies.matches(self.read, &scratch[..read]),
            "wrong bytes in reply {}",
            self.read / replies.message()
        );
        let before = self.read / replies.message();
        self.read += read as u64;
        let count = (self.read / replies.message() - before) as usize;
        ensure!(count <= self.started.len(), "more replies than requests");
        for started in self.started.drain(..count) {
            complete(started, now)?;
        }
        Ok(Received { replies: count, now })
    }
}

/// What one read brought.
pub(super) struct Received {
    pub(super) replies: usize,
    pub(super) now: Instant,
}
