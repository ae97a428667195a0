//! From the kernel's events to those of the reactor.

use std::os::fd::AsFd as _;

use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::super::{WAKER, accept_one};
use super::Epoll;
use super::source::{Kind, Source};
use crate::datagram::{self, Received};
use crate::{Event, Interest, Token};

/// What epoll reports on a source that can be read.
const READABLE: EventFlags =
    EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::HUP).union(EventFlags::ERR);

/// What epoll reports on a source that can be written.
const WRITABLE: EventFlags = EventFlags::OUT.union(EventFlags::HUP).union(EventFlags::ERR);

/// What a read found; its bytes stand at the start of the buffer.
pub(super) enum Found {
    Event(Event<'static>),
    Data { token: Token, length: usize },
    Datagram { token: Token, received: Received },
}

impl Found {
    pub(super) fn event(self, buffer: &[u8]) -> Event<'_> {
        match self {
            Self::Event(event) => event,
            Self::Data { token, length } => Event::Data { token, bytes: &buffer[..length] },
            Self::Datagram { token, received: Received { length, truncated, peer } } => {
                Event::Datagram { token, peer, bytes: &buffer[..length], truncated }
            }
        }
    }
}

impl Epoll {
    /// Acts on one event of the kernel; input is left to `step`.
    pub(super) fn begin(&mut self, event: epoll::Event) -> Option<Event<'static>> {
        let (data, flags) = (event.data.u64(), event.flags);
        if data == WAKER {
            return self.waker.take().then_some(Event::Woken);
        }
        let token = Token::from_u64(data);
        let budget = self.budget;
        match &self.sources.get(token)?.kind {
            Kind::Watch { interest, .. } => {
                let readable = interest.contains(Interest::READABLE) && flags.intersects(READABLE);
                let writable = interest.contains(Interest::WRITABLE) && flags.intersects(WRITABLE);
                return (readable || writable).then_some(Event::Ready { token, readable, writable });
            }
            Kind::Stream(stream) => {
                if stream.blocked && flags.intersects(WRITABLE) {
                    self.write(token);
                }
                if let Some(Source { kind: Kind::Stream(stream), .. }) = self.sources.get_mut(token)
                    && flags.intersects(READABLE)
                {
                    stream.readable = true;
                    stream.hung_up |= flags.intersects(READABLE.difference(EventFlags::IN));
                    // What is listed has its turn anyway.
                    if stream.is_due() && !stream.listed {
                        self.current = Some((token, budget));
                    }
                }
            }
            Kind::Listener { .. } | Kind::Datagram { .. } | Kind::Signals(_) => {
                self.current = Some((token, budget));
            }
        }
        None
    }

    /// Reads once from the source in hand. `None` when there was nothing for the caller.
    pub(super) fn step(&mut self, token: Token, left: usize, buffer: &mut [u8]) -> Option<Found> {
        // Put back below where another read may find more.
        self.current = None;
        let more = left.checked_sub(1).map(|left| (token, left));
        match &mut self.sources.get_mut(token)?.kind {
            Kind::Stream(stream) => {
                if !stream.is_due() {
                    return None;
                }
                if more.is_none() {
                    self.list(token);
                    return None;
                }
                if stream.asks {
                    self.current = more;
                    return Some(Found::Event(Event::Readable { token }));
                }
                let size = buffer.len();
                match recv(&stream.socket, buffer, RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => {
                        stream.eof = true;
                        Some(Found::Event(Event::Eof { token }))
                    }
                    Ok((_, length)) => {
                        stream.has_read(length, size);
                        self.current = more;
                        Some(Found::Data { token, length })
                    }
                    Err(Errno::AGAIN) => {
                        stream.readable = false;
                        None
                    }
                    Err(Errno::INTR) => {
                        self.current = more;
                        None
                    }
                    Err(error) => {
                        self.fail(token, error.into());
                        None
                    }
                }
            }
            Kind::Listener { .. } | Kind::Datagram { .. } | Kind::Signals(_) if more.is_none() => None,
            Kind::Listener { accepting: false, .. } => None,
            Kind::Listener { socket, accepting } => {
                let event = accept_one(token, socket, accepting);
                if *accepting {
                    self.current = more.filter(|_| event.is_some());
                } else {
                    // Taking a descriptor out of the set cannot fail while both are open.
                    let _infallible = self.update(token);
                }
                event.map(Found::Event)
            }
            Kind::Datagram { deaf: true, .. } => None,
            Kind::Datagram { socket, .. } => match datagram::receive(socket.as_fd(), buffer) {
                Ok(Some(received)) => {
                    self.current = more;
                    Some(Found::Datagram { token, received })
                }
                Ok(None) => None,
                Err(error) => {
                    self.fail(token, error.into());
                    None
                }
            },
            Kind::Signals(fd) => {
                let info = fd.read().ok()??;
                self.current = more;
                Some(Found::Event(Event::Signal { info }))
            }
            Kind::Watch { .. } => None,
        }
    }
}
