//! The contract between the reactor and what drives it.
//!
//! A driver owns the sources and their descriptors, talks to the kernel, and hands out what happened one
//! event at a time. The reactor owns timers, the waker and the turn. Both drivers pass the same test suite;
//! where the contract leaves a choice, the methods below say so.
//!
//! One turn: [`wait`](Driver::wait) once, [`next`](Driver::next) until it returns `None` (the handler may
//! call everything else between two events), timers, [`flush`](Driver::flush), as many
//! [`next_pending`](Driver::next_pending) as there are, `flush` again.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use swoole_sys::signal::SignalFd;

use crate::{Close, DatagramPeer, Detached, Error, Event, FileRange, Interest, Token, Trigger};

pub(crate) mod epoll;
pub(crate) mod uring;

/// The number of the slot that stands for the waker; no source ever has it.
pub(crate) const WAKER: u64 = u64::MAX;

/// Memory that events borrow from while the handler has the reactor, and the driver with it, for itself.
pub(crate) struct Scratch {
    /// What was read last. Empty until something is read: not every reactor has streams.
    buffer: Vec<u8>,
    /// Bytes that it has then.
    receive_buffer: usize,
    /// io_uring: what was held back while a stream was paused.
    held: Vec<u8>,
    /// io_uring: the pool that the kernel reads into.
    provided: Option<Rc<uring::Buffers>>,
}

impl Scratch {
    pub(crate) fn new(receive_buffer: usize) -> Self {
        Self { buffer: Vec::new(), receive_buffer, held: Vec::new(), provided: None }
    }

    /// Where to read into.
    #[inline]
    fn room(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = vec![0; self.receive_buffer];
        }
        &mut self.buffer
    }
}

pub(crate) trait Driver {
    /// Adopts a listening socket and starts to accept; where `shared`, other processes may accept on it, too.
    fn accept(&mut self, socket: OwnedFd, shared: bool) -> Result<Token, Error>;
    /// Off: no `Accepted` from now on; connections that the driver has accepted already it keeps. On: undoes
    /// that, and the pause that `AcceptFailed` brings.
    fn set_accepting(&mut self, token: Token, on: bool);

    /// Adopts a connected stream, paused.
    fn stream(&mut self, socket: OwnedFd) -> Result<Token, Error>;
    /// Delivers `Data` and at last `Eof` from now on; a driver that reads on demand delivers `Readable` instead of
    /// `Data` to those who want to be asked. Nothing happens after end-of-file or a failure.
    fn receive(&mut self, token: Token, asks: bool) -> Result<(), Error>;
    /// Reads, in answer to `Readable`. An end and a failure are events of their own.
    fn read(&mut self, token: Token, buffer: &mut [u8]) -> Result<Option<usize>, Error>;
    /// Whether the peer is known to have closed or failed, although that may not have been delivered yet.
    fn has_hung_up(&self, token: Token) -> bool;
    /// No `Data` and no `Eof` from now on. What the driver has read already it keeps, in order.
    fn pause(&mut self, token: Token);
    /// Queues bytes; they go out at the next `flush` or `wait`.
    fn send(&mut self, token: Token, bytes: Vec<u8>) -> Result<(), Error>;
    /// As `send`, but may send at once what it would otherwise have to copy.
    fn send_slices(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error>;
    /// Bytes accepted and not taken by the kernel, also of a stream that is closing; 0 without a stream.
    fn queued(&self, token: Token) -> usize;

    /// Queues part of a file; the socket is nonblocking.
    fn send_file(&mut self, token: Token, range: FileRange) -> Result<(), Error>;
    /// Bytes of files that are queued.
    fn queued_of_files(&self, token: Token) -> u64;
    /// `Low` once when so many bytes are queued at most.
    fn tell_low(&mut self, token: Token, bytes: usize);

    /// Adopts a datagram socket and starts to receive.
    fn datagram(&mut self, socket: OwnedFd) -> Result<Token, Error>;
    /// One datagram, now.
    fn send_to(&mut self, token: Token, peer: &DatagramPeer, bytes: &[u8]) -> Result<(), Error>;

    /// Watches a descriptor, which the driver owns.
    fn watch(&mut self, fd: OwnedFd, interest: Interest, trigger: Trigger) -> Result<Token, Error>;
    /// Reads signals.
    fn signals(&mut self, fd: SignalFd) -> Result<Token, Error>;

    /// Ends any source. No event of it follows but one `Closed`, unless it is `silent`. A stream that is
    /// closing with `AfterSend` may be closed again with something faster; else a second call does nothing.
    fn close(&mut self, token: Token, how: Close, silent: bool);
    /// Ends a listener or a stream, also one that closes `AfterSend`, without closing its descriptor, which `Detached` gives back when no operation of
    /// it is under way. Until then, a listener may still have `Accepted`; else no event of it follows.
    fn detach(&mut self, token: Token) -> Result<(), Error>;
    /// The descriptor of a source that is not closed.
    fn socket(&self, token: Token) -> Option<BorrowedFd<'_>>;

    /// Readable when the next wait would find something; `None` if there is no such descriptor.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Flushes, then waits until something happened or `timeout` is over, not at all while an event is at
    /// hand. An interrupting signal may end the wait early.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error>;
    /// The next thing that happened.
    fn next<'a>(&mut self, scratch: &'a mut Scratch) -> Option<Event<'a>>;
    /// Starts what can be started without waiting. A driver that starts everything in `wait`, together with
    /// the wait, does nothing here.
    fn flush(&mut self);
    /// Lets the kernel begin all that was asked for, without waiting.
    fn submit(&mut self);
    /// How many pending events there are at most.
    fn pending(&self) -> usize;
    /// The next event that the driver itself made, as in `flush`.
    fn next_pending(&mut self) -> Option<Event<'static>>;
}

/// An event that is not the kernel's immediate answer and waits for its delivery.
#[derive(Debug)]
pub(crate) enum Pending {
    Sent(Token),
    Low(Token),
    Eof(Token),
    Failed(Token, io::Error),
    AcceptFailed(Token, io::Error),
    Closed(Token),
    Detached(Token, Detached),
}

/// Pending events, in order.
pub(crate) type PendingQueue = VecDeque<Pending>;

/// A connection, or why none can be accepted, which ends the accepting; `None` when nobody is there.
pub(crate) fn accept_one(listener: Token, socket: impl AsFd, accepting: &mut bool) -> Option<Event<'static>> {
    loop {
        match acceptfrom_with(&socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((socket, peer)) => {
                let peer = peer.and_then(|peer| peer.try_into().ok());
                return Some(Event::Accepted { listener, socket, peer });
            }
            Err(Errno::AGAIN) => return None,
            Err(error) if is_accept_transient(error) => {}
            Err(error) => {
                *accepting = false;
                return Some(Event::AcceptFailed { listener, error: error.into() });
            }
        }
    }
}

/// Whether a failed `accept4` concerns one connection that is gone, not the listener: `accept(2)` says to
/// treat these like `EAGAIN`.
pub(crate) fn is_accept_transient(error: Errno) -> bool {
    matches!(
        error,
        Errno::INTR
            | Errno::CONNABORTED
            | Errno::PERM
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
            | Errno::OPNOTSUPP
            | Errno::TIMEDOUT
    )
}
