//! What the driver knows of a source, and what follows for the epoll set.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use swoole_sys::signal::SignalFd;

use crate::stream::SendQueue;
use crate::{Error, Interest, Token, Trigger};

pub(super) struct Source {
    pub(super) kind: Kind,
    /// The events it is in the epoll set for; empty when it is not in the set.
    pub(super) registered: EventFlags,
}

pub(super) enum Kind {
    Listener {
        socket: OwnedFd,
        accepting: bool,
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
    /// The caller wants data; with `asks`, it wants to be asked where to.
    pub(super) receiving: bool,
    pub(super) asks: bool,
    /// There may be something to read: epoll has said so, and no read since has found otherwise.
    pub(super) readable: bool,
    /// The peer has closed or failed: a short read is not yet the end of what can be read.
    pub(super) hung_up: bool,
    /// Listed in `Epoll::ready`.
    pub(super) listed: bool,
    /// The kernel would not take all of the queue: wait until it is writable.
    pub(super) blocked: bool,
    /// It was blocked once, and so is in the set for output, too, from then on.
    pub(super) was_blocked: bool,
    /// Listed in `Epoll::dirty`.
    pub(super) dirty: bool,
    /// Nothing more can be received.
    pub(super) eof: bool,
    /// Nothing can be done with it but close it.
    pub(super) failed: bool,
    /// Closed with `AfterSend`, with output left.
    pub(super) closing: bool,
}

impl Stream {
    /// Whether it is to be read from.
    pub(super) fn is_due(&self) -> bool {
        self.receiving && self.readable && !self.eof && !self.failed
    }

    /// A read has found `length` bytes where there was room for `size`: less says that there is no more, unless the
    /// peer has closed, of which no other edge will tell.
    pub(super) fn has_read(&mut self, length: usize, size: usize) {
        self.readable = length == size || self.hung_up;
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

    /// The events that it must be in the epoll set for.
    pub(super) fn wanted(&self) -> EventFlags {
        let when = |condition, flags| if condition { flags } else { EventFlags::empty() };
        match &self.kind {
            Kind::Listener { accepting, .. } => when(*accepting, EventFlags::IN),
            // What was once in the set stays there: an edge that comes too early is remembered, or means nothing.
            Kind::Stream(stream) => {
                let input = stream.receiving || self.registered.contains(EventFlags::IN);
                let output = stream.was_blocked;
                when(input, EventFlags::IN | EventFlags::RDHUP)
                    | when(output, EventFlags::OUT)
                    | when(input || output, EventFlags::ET)
            }
            Kind::Datagram { deaf, .. } => when(!deaf, EventFlags::IN),
            Kind::Watch { interest, trigger, .. } => {
                when(interest.contains(Interest::READABLE), EventFlags::IN | EventFlags::RDHUP)
                    | when(interest.contains(Interest::WRITABLE), EventFlags::OUT)
                    | when(*trigger == Trigger::Edge, EventFlags::ET)
            }
            Kind::Signals(_) => EventFlags::IN,
        }
    }

    /// As a stream that is not closed.
    pub(super) fn stream(&mut self, token: Token) -> Result<&mut Stream, Error> {
        match &mut self.kind {
            Kind::Stream(stream) if stream.closing => Err(Error::NoSuchToken(token)),
            Kind::Stream(stream) => Ok(stream),
            _ => Err(Error::WrongKind { token, expected: "stream" }),
        }
    }
}
