//! From completions to events.

use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::rc::Rc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::getpeername;

use super::super::{Scratch, accept_one, is_accept_transient};
use super::buffers::Piece;
use super::ring::Completion;
use super::source::{Closing, Held, Kind, Source};
use super::{Operation, Uring, user_data};
use crate::datagram::{self, Received};
use crate::{Event, Interest, Token};

/// What a step found for the caller.
pub(super) enum Found {
    Event(Event<'static>),
    /// In a provided buffer.
    Provided {
        token: Token,
        piece: Piece,
    },
    /// In the scratch buffer.
    Read {
        token: Token,
        length: usize,
    },
    Held {
        token: Token,
        bytes: Vec<u8>,
    },
    Datagram {
        token: Token,
        received: Received,
    },
}

impl Uring {
    /// Acts on one completion.
    pub(super) fn complete(&mut self, completion: Completion) -> Option<Found> {
        let operation = completion.user_data as u8;
        if operation == Operation::Waker as u8 {
            if !completion.is_more() {
                self.arm_waker();
            }
            return self.waker.take().then_some(Found::Event(Event::Woken));
        }
        let slot = (completion.user_data >> 32) as u32;
        let token = self.sources.current(slot)?;
        debug_assert_eq!(user_data(token, Operation::Input) >> 8, completion.user_data >> 8);
        let source = self.sources.get_mut(token)?;
        if !completion.is_more() {
            source.operations -= 1;
        }
        if operation == Operation::Send as u8 {
            self.sent(token, completion.result());
            return None;
        }
        if operation == Operation::Room as u8 {
            self.has_room(token);
            return None;
        }
        if operation == Operation::Cancel as u8 {
            source.cancelling = false;
            source.cancelled = true;
            self.settle(token);
            return None;
        }
        source.armed = completion.is_more();
        source.cancelled = false;
        let found = match &source.kind {
            Kind::Listener { shared: false, .. } => self.accepted(token, completion.result()),
            Kind::Stream(stream) if stream.is_polled => {
                self.readable(token, completion.result());
                None
            }
            Kind::Stream(_) => self.received(token, completion),
            Kind::Listener { .. } | Kind::Datagram { .. } | Kind::Signals(_) => {
                // Read first and polled again after that.
                if source.closing.is_none() {
                    self.current = Some((token, self.budget));
                    return None;
                }
                None
            }
            Kind::Watch { .. } => self.polled(token, completion.result()),
        };
        self.settle(token);
        found
    }

    fn accepted(&mut self, token: Token, result: Result<u32, Errno>) -> Option<Found> {
        // SAFETY: an accept's result is a new descriptor, which nobody else owns.
        let result = result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) });
        // Of a listener that is closed, the connection is closed too.
        let source = self.sources.get_mut(token)?;
        let is_detaching = source.closing == Some(Closing::Detach);
        let Kind::Listener { accepting, held, .. } = &mut source.kind else { return None };
        if source.closing.is_some() && !is_detaching {
            return None;
        }
        match result {
            Ok(socket) if (*accepting || is_detaching) && held.is_empty() => {
                Some(Found::Event(accepted(token, socket)))
            }
            Ok(socket) => {
                held.push_back(socket);
                None
            }
            Err(Errno::CANCELED | Errno::AGAIN) => None,
            Err(error) if is_accept_transient(error) => None,
            Err(error) if *accepting && !is_detaching => {
                *accepting = false;
                Some(Found::Event(Event::AcceptFailed { listener: token, error: error.into() }))
            }
            Err(_) => None,
        }
    }

    fn received(&mut self, token: Token, completion: Completion) -> Option<Found> {
        let buffers = Rc::clone(&self.buffers);
        let piece = completion.buffer().map(|number| {
            buffers.take(number, completion.result().unwrap_or(0), !completion.is_buffer_more())
        });
        let source = self.sources.get_mut(token).filter(|source| {
            matches!(source.closing, None | Some(Closing::Detach)) && matches!(source.kind, Kind::Stream(_))
        });
        let Some(Source { kind: Kind::Stream(stream), closing, .. }) = source else {
            self.give_back(piece);
            return None;
        };
        let is_due = stream.receiving && stream.held.is_empty() && !stream.failed && closing.is_none();
        match (completion.result(), piece) {
            (Ok(length), Some(piece)) if length > 0 => {
                stream.has_received(length as usize);
                if is_due {
                    return Some(Found::Provided { token, piece });
                }
                if !stream.failed {
                    // SAFETY: it is given back below.
                    let bytes = unsafe { buffers.bytes(piece) };
                    stream.held.push_back(Held::Data(bytes.to_vec()));
                }
                self.give_back(Some(piece));
                None
            }
            (Ok(_), piece) => {
                stream.ended = true;
                if !is_due {
                    stream.held.push_back(Held::Eof);
                }
                self.give_back(piece);
                is_due.then_some(Found::Event(Event::Eof { token }))
            }
            // There is more than the pool holds.
            (Err(Errno::NOBUFS), _) => {
                stream.has_received(usize::MAX);
                None
            }
            // Armed again by the caller.
            (Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR), _) => None,
            (Err(error), _) => {
                stream.ended = true;
                if is_due {
                    self.fail(token, error);
                } else {
                    stream.held.push_back(Held::Failed(error));
                }
                None
            }
        }
    }

    fn polled(&mut self, token: Token, result: Result<u32, Errno>) -> Option<Found> {
        let Kind::Watch { interest, .. } = self.source(token).ok()?.kind else { return None };
        let flags = match result {
            Ok(flags) => PollFlags::from_bits_retain(flags as u16),
            Err(Errno::CANCELED) => return None,
            Err(_) => PollFlags::ERR,
        };
        let broken = PollFlags::HUP | PollFlags::ERR;
        let readable = interest.contains(Interest::READABLE)
            && flags.intersects(PollFlags::IN | PollFlags::RDHUP | broken);
        let writable = interest.contains(Interest::WRITABLE) && flags.intersects(PollFlags::OUT | broken);
        (readable || writable).then_some(Found::Event(Event::Ready { token, readable, writable }))
    }

    /// Reads once from the datagram socket or the signals in hand, or accepts once.
    pub(super) fn read(&mut self, token: Token, left: usize, buffer: &mut [u8]) -> Option<Found> {
        if let Some(Source { kind: Kind::Stream(_), .. }) = self.sources.get(token) {
            return self.step(token, left, buffer);
        }
        self.current = None;
        let found = match &mut self.source(token).ok()?.kind {
            Kind::Listener { accepting: false, .. } => return None,
            Kind::Listener { socket, accepting, .. } => {
                accept_one(token, socket, accepting).map(Found::Event)
            }
            Kind::Datagram { deaf: true, .. } => {
                self.settle(token);
                return None;
            }
            Kind::Datagram { socket, .. } => match datagram::receive(socket.as_fd(), buffer) {
                Ok(received) => received.map(|received| Found::Datagram { token, received }),
                Err(error) => {
                    self.fail(token, error);
                    return None;
                }
            },
            Kind::Signals(fd) => fd.read().ok().flatten().map(|info| Found::Event(Event::Signal { info })),
            _ => return None,
        };
        if found.is_some() && left > 1 {
            self.current = Some((token, left - 1));
        } else {
            self.settle(token);
        }
        found
    }

    /// The next thing that a source which was resumed has held back.
    pub(super) fn replay(&mut self, token: Token) -> Option<Found> {
        let source = self.sources.get_mut(token)?;
        let is_detaching = source.closing == Some(Closing::Detach);
        if source.closing.is_some() && !is_detaching {
            return None;
        }
        let (found, is_empty) = match &mut source.kind {
            Kind::Listener { accepting, held, .. } if *accepting || is_detaching => {
                let socket = held.pop_front()?;
                (Some(Found::Event(accepted(token, socket))), held.is_empty())
            }
            Kind::Stream(stream) if stream.receiving && !stream.failed && !is_detaching => {
                match stream.held.pop_front()? {
                    Held::Data(bytes) => (Some(Found::Held { token, bytes }), stream.held.is_empty()),
                    Held::Eof => (Some(Found::Event(Event::Eof { token })), true),
                    Held::Failed(error) => {
                        self.fail(token, error);
                        return None;
                    }
                }
            }
            _ => return None,
        };
        if is_empty {
            self.settle(token);
            self.list(token);
        } else {
            self.replay.push_front(token);
        }
        found
    }

    pub(super) fn give_back(&mut self, piece: Option<Piece>) {
        if let Some(piece) = piece {
            // SAFETY: it was taken out of a completion, whose turn has come: those before it are given back.
            unsafe { self.buffers.give_back(piece) };
        }
    }

    pub(super) fn lend<'a>(&mut self, found: Found, scratch: &'a mut Scratch) -> Event<'a> {
        match found {
            Found::Event(event) => event,
            Found::Read { token, length } => Event::Data { token, bytes: &scratch.buffer[..length] },
            Found::Provided { token, piece } => {
                self.lent = Some(piece);
                let buffers = scratch.provided.insert(Rc::clone(&self.buffers));
                // SAFETY: the completion has handed it over. `next` gives it back; it takes the scratch,
                // which the event borrows, so it cannot be called before the event is gone.
                Event::Data { token, bytes: unsafe { buffers.bytes(piece) } }
            }
            Found::Held { token, bytes } => {
                scratch.held = bytes;
                Event::Data { token, bytes: &scratch.held }
            }
            Found::Datagram { token, received: Received { length, truncated, peer } } => {
                Event::Datagram { token, peer, bytes: &scratch.buffer[..length], truncated }
            }
        }
    }
}

fn accepted(listener: Token, socket: OwnedFd) -> Event<'static> {
    // A multishot accept has no place for addresses.
    let peer = getpeername(&socket).ok().flatten().and_then(|peer| peer.try_into().ok());
    Event::Accepted { listener, socket, peer }
}
