//! What the driver knows of a source, and what follows for its operations.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use swoole_sys::signal::SignalFd;

use super::buffers::GROUP;
use super::flight::Flight;
use crate::stream::SendQueue;
use crate::{Detached, Error, Interest, Token, Trigger};

pub(super) struct Source {
    pub(super) kind: Kind,
    /// Operations in the kernel, cancellations among them. Nothing is released before it is 0.
    pub(super) operations: u32,
    /// Its accept, receive or poll is with the kernel.
    pub(super) armed: bool,
    /// A cancellation is with the kernel.
    pub(super) cancelling: bool,
    /// A cancellation of the input has ended. It is repeated only if the operation shows up and goes on: then it
    /// had met nothing.
    pub(super) cancelled: bool,
    pub(super) closing: Option<Closing>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// Output is still to be sent.
    AfterSend,
    /// As soon as no operation is left; if `gracefully`, with an end-of-file for the peer.
    Now { gracefully: bool, silent: bool },
    /// As soon as no operation is left, but the descriptor stays open.
    Detach,
}

pub(super) enum Kind {
    Listener {
        socket: OwnedFd,
        accepting: bool,
        /// The kernel tells that somebody is there, and the driver accepts. An accept in the kernel waits exclusively: the
        /// kernel wakes one of those that wait and no other, and that may be a process that is stopped, or the ring of a
        /// dead one, which is taken apart some time later.
        shared: bool,
        /// Accepted by the kernel while it was paused.
        held: VecDeque<OwnedFd>,
    },
    Stream(Stream),
    /// Nothing is received any more from one that is `deaf`: it has failed, or is paused.
    Datagram {
        socket: OwnedFd,
        deaf: bool,
    },
    Watch {
        fd: OwnedFd,
        interest: Interest,
        trigger: Trigger,
    },
    Signals(SignalFd),
}

pub(super) struct Stream {
    pub(super) socket: OwnedFd,
    pub(super) queue: SendQueue,
    pub(super) flight: Option<Flight>,
    /// The kernel had no room for more of a file: a poll waits for some.
    pub(super) waits_for_room: bool,
    /// Listed in `Uring::dirty` or `Uring::sending`.
    pub(super) dirty: bool,
    /// The caller wants data; with `asks`, it wants to be asked where to.
    pub(super) receiving: bool,
    pub(super) asks: bool,
    /// The driver reads, when a poll says so; else the kernel receives.
    pub(super) reads: bool,
    /// The input operation that was armed last is a poll.
    pub(super) is_polled: bool,
    /// There may be something to read: the poll has said so, and no read since has found otherwise.
    pub(super) readable: bool,
    /// The peer has closed or failed: a short read is not yet the end of what can be read.
    pub(super) hung_up: bool,
    /// Listed in `Uring::ready` or `Uring::due`.
    pub(super) listed: bool,
    /// Reads in a row that found little.
    pub(super) calm: u32,
    /// Came while the stream was paused, or after something that is still held.
    pub(super) held: VecDeque<Held>,
    /// The kernel has reported end-of-file or an error: there is nothing to arm any more.
    pub(super) ended: bool,
    pub(super) failed: bool,
}

pub(super) enum Held {
    Data(Vec<u8>),
    Eof,
    Failed(Errno),
}

impl Kind {
    /// What is left of a source that is detached; `None` for those that cannot be.
    pub(super) fn detached(self) -> Option<Detached> {
        match self {
            Kind::Listener { socket, .. } => {
                Some(Detached { socket, unread: Vec::new(), unsent: Vec::new(), files: Vec::new() })
            }
            Kind::Stream(Stream { socket, queue, flight, held, .. }) => {
                let mut unsent = flight.map_or_else(Vec::new, Flight::into_bytes);
                let (rest, files) = queue.into_rest();
                unsent.extend(rest);
                // An end or an error is met again by whoever reads next.
                let unread = held.into_iter().filter_map(|held| match held {
                    Held::Data(bytes) => Some(bytes),
                    Held::Eof | Held::Failed(_) => None,
                });
                Some(Detached { socket, unread: unread.flatten().collect(), unsent, files })
            }
            _ => None,
        }
    }
}

impl Source {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Listener { socket, .. } | Kind::Datagram { socket, .. } => socket.as_fd(),
            Kind::Stream(stream) => stream.socket.as_fd(),
            Kind::Watch { fd, .. } => fd.as_fd(),
            Kind::Signals(fd) => fd.as_fd(),
        }
    }

    /// The input operation that should be with the kernel.
    pub(super) fn wanted(&self) -> Option<squeue::Entry> {
        if self.closing.is_some() {
            return None;
        }
        let fd = Fd(self.fd().as_raw_fd());
        let poll =
            |flags: PollFlags, multi| opcode::PollAdd::new(fd, flags.bits().into()).multi(multi).build();
        match &self.kind {
            Kind::Listener { accepting, shared: true, .. } => accepting.then(|| poll(PollFlags::IN, false)),
            Kind::Listener { accepting, held, .. } => (*accepting && held.is_empty()).then(|| {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                opcode::AcceptMulti::new(fd).flags(flags.bits().cast_signed()).build()
            }),
            Kind::Stream(stream) if stream.ended || stream.failed => None,
            // Once there it stays: an edge that comes too early is remembered. After a hang-up there is no other.
            Kind::Stream(stream) if stream.reads => {
                let is_there = self.armed && stream.is_polled;
                (is_there || stream.receiving && !stream.hung_up)
                    .then(|| poll(PollFlags::IN | PollFlags::RDHUP, true))
            }
            Kind::Stream(stream) => (stream.receiving && stream.held.is_empty())
                .then(|| opcode::RecvMulti::new(fd, GROUP).build()),
            Kind::Datagram { deaf, .. } => (!deaf).then(|| poll(PollFlags::IN, false)),
            Kind::Signals(_) => Some(poll(PollFlags::IN, false)),
            Kind::Watch { interest, trigger, .. } => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN | PollFlags::RDHUP, interest.contains(Interest::READABLE));
                flags.set(PollFlags::OUT, interest.contains(Interest::WRITABLE));
                // Level: polled anew after each report, which finds at once what is still ready.
                Some(poll(flags, *trigger == Trigger::Edge))
            }
        }
    }

    /// What is armed is of the kind that is wanted.
    pub(super) fn is_suited(&self) -> bool {
        !matches!(&self.kind, Kind::Stream(stream) if stream.is_polled != stream.reads)
    }

    pub(super) fn stream(&mut self, token: Token) -> Result<&mut Stream, Error> {
        match &mut self.kind {
            Kind::Stream(stream) => Ok(stream),
            _ => Err(Error::WrongKind { token, expected: "stream" }),
        }
    }
}
