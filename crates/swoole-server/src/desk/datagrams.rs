//! Sockets that datagrams come to and leave by. Nothing is kept of who sends them.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::sockopt::socket_recv_buffer_size;
use swoole_reactor::{Close, DatagramPeer, Error as ReactorError, Reactor, Token};

use super::{Desk, Replies, Taker};
use crate::board::Counter;
use crate::config::Listen;
use crate::datagram::{self, Assembly, DatagramClient, Misplaced};
use crate::session::Session;

/// Bytes that the kernel counts at least for a datagram that waits in a socket (more, in fact).
const COST_MIN: usize = 512;

/// Those of one reactor.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    sockets: Vec<Socket>,
    /// What workers send in pieces.
    assembly: Assembly,
}

#[derive(Debug)]
struct Socket {
    token: Token,
    listener: u16,
    /// In a stop: so many datagrams more can have been there when it began, at most.
    left: Option<usize>,
}

impl Desk {
    /// Takes the socket of this listener on.
    pub(crate) fn open_datagrams(
        &mut self,
        reactor: &mut Reactor,
        socket: OwnedFd,
        listener: u16,
    ) -> Result<(), ReactorError> {
        let token = reactor.datagram(socket)?;
        self.datagrams.sockets.push(Socket { token, listener, left: None });
        Ok(())
    }

    /// This listener is removed: its socket is closed here, with what was not read.
    pub(crate) fn close_datagrams(&mut self, reactor: &mut Reactor, listener: u16) {
        for gone in self.datagrams.sockets.extract_if(.., |socket| socket.listener == listener) {
            reactor.close(gone.token, Close::Now);
        }
    }

    /// A datagram has come.
    pub(crate) fn datagram(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        token: Token,
        peer: DatagramPeer,
        (bytes, truncated): (&[u8], bool),
    ) {
        let Some(socket) = self.datagrams.sockets.iter_mut().find(|socket| socket.token == token) else {
            return;
        };
        let client = DatagramClient::new(socket.listener, peer);
        if let Some(left) = &mut socket.left {
            *left = left.saturating_sub(1);
        }
        self.count(Counter::Datagrams, 1);
        self.count(Counter::Received, bytes.len() as u64);
        if truncated {
            return self.count(Counter::DatagramsTruncated, 1);
        }
        let taken = taker.datagram(self, reactor, &client, bytes);
        self.count(if taken { Counter::Packets } else { Counter::DatagramsDropped }, 1);
        taker.deliver(self, reactor);
    }

    /// Whether this is the socket of a listener; it receives nothing any more.
    pub(crate) fn datagrams_failed(&mut self, token: Token, error: &dyn std::fmt::Display) -> bool {
        let socket = self.datagrams.sockets.iter_mut().find(|socket| socket.token == token);
        let Some(Socket { listener, left, .. }) = socket else { return false };
        // A stop is not to wait for what nobody reads.
        *left = Some(0);
        let listen = self.listening.address(*listener).map(Listen::url).unwrap_or_default();
        tracing::error!("no datagrams are received on {listen} any more: {error}");
        true
    }

    /// A stop begins: datagrams that come from now on are not answered.
    pub(crate) fn bound_datagrams(&mut self, reactor: &Reactor) {
        for socket in &mut self.datagrams.sockets {
            let size = reactor.socket(socket.token).and_then(|fd| socket_recv_buffer_size(fd).ok());
            socket.left.get_or_insert(size.unwrap_or(0) / COST_MIN);
        }
    }

    /// Whether there may be datagrams that have come before that.
    pub(crate) fn has_datagrams(&self, reactor: &Reactor) -> bool {
        let left = self.datagrams.sockets.iter().filter(|socket| socket.left != Some(0));
        left.filter_map(|socket| reactor.socket(socket.token)).any(|fd| {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        })
    }

    /// Receives no more; what is sent still goes out. What waits in the kernel is for whoever else has the socket.
    pub(crate) fn pause_datagrams(&mut self, reactor: &mut Reactor) {
        self.datagrams.sockets.iter().for_each(|socket| reactor.pause(socket.token));
    }
}

impl Replies<'_> {
    /// A piece of a datagram from a worker.
    pub(super) fn piece_of_datagram(&mut self, listener: Session, piece: &[u8]) {
        let mut assembly = std::mem::take(&mut self.desk.datagrams.assembly);
        match assembly.add(piece) {
            Ok(Some(datagram)) => self.send_to(listener, datagram),
            Ok(None) => {}
            Err(Misplaced) => tracing::error!("a datagram that a worker sends is malformed"),
        }
        self.desk.datagrams.assembly = assembly;
    }

    /// Sends a datagram, if the kernel takes it now: nobody waits for who does not read.
    pub(crate) fn send_to(&mut self, listener: Session, datagram: &[u8]) {
        let (Some(listener), Some((peer, bytes))) = (listener.listener(), datagram::decode(datagram)) else {
            return tracing::error!("a datagram to be sent is malformed ({} bytes)", datagram.len());
        };
        let socket = self.desk.datagrams.sockets.iter().find(|socket| socket.listener == listener);
        let sent = socket.map(|socket| self.reactor.send_to(socket.token, &peer, bytes));
        match sent {
            Some(Ok(())) => {
                self.desk.count(Counter::DatagramsSent, 1);
                return self.desk.count(Counter::Sent, bytes.len() as u64);
            }
            Some(Err(error)) => tracing::debug!("{error} ({} bytes to {peer})", bytes.len()),
            None => tracing::debug!("a datagram to {peer} is not sent: listener {listener} is not open here"),
        }
        self.desk.count(Counter::DatagramsUnsent, 1);
    }
}
