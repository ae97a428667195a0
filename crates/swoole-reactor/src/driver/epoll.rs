//! Completions out of readiness.
//!
//! Level-triggered, because that costs the fewest calls: a short read says that the socket is drained, so
//! the usual turn is one `epoll_wait`, and one `recv` for each readable stream. The set is changed only when
//! a stream starts, stops, or blocks on output; a source with nothing to wait for is taken out of the set,
//! because epoll reports errors and hang-ups also to those who did not ask, again and again.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, acceptfrom_with, recv, send, sendmsg,
};
use swoole_sys::signal::SignalFd;

use super::{Driver, Pending, PendingQueue, Scratch, WAKER};
use crate::datagram::{self, Received};
use crate::stream::{self, PARTS_MAX, SendQueue};
use crate::token::Slots;
use crate::{Close, DatagramPeer, Error, Event, Interest, Token, Trigger, Waker};

/// Events taken from the kernel in one call.
const EVENTS_MAX: usize = 512;

/// What epoll reports on a source that can be read.
const READABLE: EventFlags =
    EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::HUP).union(EventFlags::ERR);

/// What epoll reports on a source that can be written.
const WRITABLE: EventFlags = EventFlags::OUT.union(EventFlags::HUP).union(EventFlags::ERR);

pub(crate) struct Epoll {
    epoll: OwnedFd,
    waker: Waker,
    budget: usize,
    sources: Slots<Source>,
    /// What the last wait returned, and how far it is handled.
    events: Vec<epoll::Event>,
    handled: usize,
    /// The source whose input is being read, and how often it may be read in this turn.
    current: Option<(Token, usize)>,
    /// Streams with output that was not tried yet.
    dirty: Vec<Token>,
    pending: PendingQueue,
}

struct Source {
    kind: Kind,
    /// The events it is in the epoll set for; empty when it is not in the set.
    registered: EventFlags,
}

enum Kind {
    Listener { socket: OwnedFd, accepting: bool },
    Stream(Stream),
    Datagram { socket: OwnedFd, failed: bool },
    Watch { fd: OwnedFd, interest: Interest, trigger: Trigger },
    Signals(SignalFd),
}

struct Stream {
    socket: OwnedFd,
    queue: SendQueue,
    /// The caller wants data.
    receiving: bool,
    /// The kernel would not take all of the queue: wait until it is writable.
    blocked: bool,
    /// Listed in `Epoll::dirty`.
    dirty: bool,
    /// Nothing more can be received.
    eof: bool,
    /// Nothing can be done with it but close it.
    failed: bool,
    /// Closed with `AfterSend`, with output left.
    closing: bool,
}

/// What a read found; its bytes stand at the start of the buffer.
enum Found {
    Event(Event<'static>),
    Data { token: Token, length: usize },
    Datagram { token: Token, received: Received },
}

impl Found {
    fn event(self, buffer: &[u8]) -> Event<'_> {
        match self {
            Self::Event(event) => event,
            Self::Data { token, length } => Event::Data { token, bytes: &buffer[..length] },
            Self::Datagram { token, received: Received { length, truncated, peer } } => {
                Event::Datagram { token, peer, bytes: &buffer[..length], truncated }
            }
        }
    }
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Listener { socket, .. } | Kind::Datagram { socket, .. } => socket.as_fd(),
            Kind::Stream(stream) => stream.socket.as_fd(),
            Kind::Watch { fd, .. } => fd.as_fd(),
            Kind::Signals(fd) => fd.as_fd(),
        }
    }

    /// The events that it must be in the epoll set for.
    fn wanted(&self) -> EventFlags {
        let when = |condition, flags| if condition { flags } else { EventFlags::empty() };
        match &self.kind {
            Kind::Listener { accepting, .. } => when(*accepting, EventFlags::IN),
            Kind::Stream(stream) => {
                when(stream.receiving && !stream.eof && !stream.failed, EventFlags::IN)
                    | when(stream.blocked && !stream.failed, EventFlags::OUT)
            }
            Kind::Datagram { failed, .. } => when(!failed, EventFlags::IN),
            Kind::Watch { interest, trigger, .. } => {
                when(interest.contains(Interest::READABLE), EventFlags::IN | EventFlags::RDHUP)
                    | when(interest.contains(Interest::WRITABLE), EventFlags::OUT)
                    | when(*trigger == Trigger::Edge, EventFlags::ET)
            }
            Kind::Signals(_) => EventFlags::IN,
        }
    }

    /// As a stream that is not closed.
    fn stream(&mut self, token: Token) -> Result<&mut Stream, Error> {
        match &mut self.kind {
            Kind::Stream(stream) if stream.closing => Err(Error::NoSuchToken(token)),
            Kind::Stream(stream) => Ok(stream),
            _ => Err(Error::WrongKind { token, expected: "stream" }),
        }
    }
}

impl Epoll {
    pub(crate) fn new(waker: Waker, budget: usize) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("epoll_create1"))?;
        // Edge-triggered: each write is a new edge, so the counter need never be read.
        epoll::add(&epoll, waker.eventfd(), EventData::new_u64(WAKER), EventFlags::IN | EventFlags::ET)
            .map_err(Error::system("watch the waker (epoll_ctl)"))?;
        Ok(Self {
            epoll,
            waker,
            budget,
            sources: Slots::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            handled: 0,
            current: None,
            dirty: Vec::new(),
            pending: PendingQueue::new(),
        })
    }

    fn insert(&mut self, kind: Kind) -> Result<Token, Error> {
        let source = Source { kind, registered: EventFlags::empty() };
        let token = self.sources.insert(source).ok_or(Error::Full)?;
        self.update(token).inspect_err(|_| {
            self.sources.remove(token);
        })?;
        Ok(token)
    }

    fn source(&mut self, token: Token) -> Result<&mut Source, Error> {
        self.sources.get_mut(token).ok_or(Error::NoSuchToken(token))
    }

    /// Brings the epoll set in line with what the source waits for.
    fn update(&mut self, token: Token) -> Result<(), Error> {
        let Some(source) = self.sources.get_mut(token) else { return Ok(()) };
        let wanted = source.wanted();
        if wanted == source.registered {
            return Ok(());
        }
        let data = EventData::new_u64(token.as_u64());
        let result = if wanted.is_empty() {
            epoll::delete(&self.epoll, source.fd())
        } else if source.registered.is_empty() {
            epoll::add(&self.epoll, source.fd(), data, wanted)
        } else {
            epoll::modify(&self.epoll, source.fd(), data, wanted)
        };
        result.map_err(Error::system("wait for a descriptor (epoll_ctl)"))?;
        source.registered = wanted;
        Ok(())
    }

    /// As `update`, where a failure is the stream's, not the caller's.
    fn update_stream(&mut self, token: Token) {
        if let Err(Error::System { source, .. }) = self.update(token) {
            self.fail(token, source);
        }
    }

    /// Ends a stream or datagram socket that met an error, and reports it.
    fn fail(&mut self, token: Token, error: std::io::Error) {
        let Some(source) = self.sources.get_mut(token) else { return };
        match &mut source.kind {
            Kind::Stream(stream) => {
                stream.failed = true;
                stream.blocked = false;
                stream.queue.clear();
                if stream.closing {
                    return self.release(token, false);
                }
            }
            Kind::Datagram { failed, .. } => *failed = true,
            Kind::Listener { .. } | Kind::Watch { .. } | Kind::Signals(_) => return,
        }
        // Taking a descriptor out of the set cannot fail while both are open.
        let _infallible = self.update(token);
        self.pending.push_back(Pending::Failed(token, error));
    }

    fn release(&mut self, token: Token, silent: bool) {
        let Some(source) = self.sources.remove(token) else { return };
        if !source.registered.is_empty() {
            // To close the descriptor would not do if a forked child holds a copy: the set would keep it.
            let _infallible = epoll::delete(&self.epoll, source.fd());
        }
        if !silent {
            self.pending.push_back(Pending::Closed(token));
        }
    }

    /// Sends as much of the queue as the kernel takes.
    fn write(&mut self, token: Token) {
        let Ok(Source { kind: Kind::Stream(stream), .. }) = self.source(token) else { return };
        stream.dirty = false;
        if stream.failed {
            return;
        }
        while !stream.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); PARTS_MAX];
            let count = stream.queue.slices(&mut slices);
            let offered: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            match send_now(stream.socket.as_fd(), &slices[..count]) {
                Ok(taken) => {
                    stream.queue.advance(taken);
                    if taken < offered {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(token, error.into()),
            }
        }
        stream.blocked = !stream.queue.is_empty();
        if stream.blocked {
            self.update_stream(token);
        } else if stream.closing {
            stream::finish(stream.socket.as_fd());
            self.release(token, false);
        } else {
            self.pending.push_back(Pending::Sent(token));
            self.update_stream(token);
        }
    }

    /// Acts on one event of the kernel; input is left to `step`.
    fn begin(&mut self, event: epoll::Event) -> Option<Event<'static>> {
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
                let (blocked, receiving) = (stream.blocked, stream.receiving);
                if blocked && flags.intersects(WRITABLE) {
                    self.write(token);
                }
                if receiving && flags.intersects(READABLE) {
                    self.current = Some((token, budget));
                }
            }
            Kind::Listener { .. } | Kind::Datagram { .. } | Kind::Signals(_) => {
                self.current = Some((token, budget));
            }
        }
        None
    }

    /// Reads once from the source in hand. `None` when there was nothing for the caller.
    fn step(&mut self, token: Token, left: usize, buffer: &mut [u8]) -> Option<Found> {
        // Put back below where another read may find more.
        self.current = None;
        let more = Some((token, left - 1)).filter(|&(_, left)| left > 0);
        match &mut self.sources.get_mut(token)?.kind {
            Kind::Stream(stream) => {
                if !stream.receiving || stream.eof || stream.failed {
                    return None;
                }
                let size = buffer.len();
                match recv(&stream.socket, buffer, RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => {
                        stream.eof = true;
                        self.update_stream(token);
                        Some(Found::Event(Event::Eof { token }))
                    }
                    Ok((_, length)) => {
                        // A short read has drained the socket.
                        if length == size {
                            self.current = more;
                        }
                        Some(Found::Data { token, length })
                    }
                    Err(Errno::AGAIN) => None,
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
            Kind::Listener { accepting: false, .. } => None,
            Kind::Listener { socket, accepting } => {
                match acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    Ok((socket, peer)) => {
                        self.current = more;
                        let peer = peer.and_then(|peer| peer.try_into().ok());
                        Some(Found::Event(Event::Accepted { listener: token, socket, peer }))
                    }
                    Err(Errno::AGAIN) => None,
                    Err(error) if super::is_accept_transient(error) => {
                        self.current = more;
                        None
                    }
                    Err(error) => {
                        *accepting = false;
                        // Taking a descriptor out of the set cannot fail while both are open.
                        let _infallible = self.update(token);
                        Some(Found::Event(Event::AcceptFailed { listener: token, error: error.into() }))
                    }
                }
            }
            Kind::Datagram { failed: true, .. } => None,
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

impl Driver for Epoll {
    fn accept(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.insert(Kind::Listener { socket, accepting: true })
    }

    fn set_accepting(&mut self, token: Token, on: bool) {
        let Ok(Source { kind: Kind::Listener { accepting, .. }, .. }) = self.source(token) else { return };
        *accepting = on;
        if let Err(Error::System { source, .. }) = self.update(token) {
            self.pending.push_back(Pending::AcceptFailed(token, source));
        }
    }

    fn stream(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.insert(Kind::Stream(Stream {
            socket,
            queue: SendQueue::default(),
            receiving: false,
            blocked: false,
            dirty: false,
            eof: false,
            failed: false,
            closing: false,
        }))
    }

    fn receive(&mut self, token: Token) -> Result<(), Error> {
        self.source(token)?.stream(token)?.receiving = true;
        self.update(token)
    }

    fn pause(&mut self, token: Token) {
        if let Ok(stream) = self.source(token).and_then(|source| source.stream(token)) {
            stream.receiving = false;
            self.update_stream(token);
        }
    }

    fn send(&mut self, token: Token, bytes: Vec<u8>) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        if stream.failed {
            return Err(Error::Ended(token));
        }
        stream.queue.push(bytes);
        if !stream.queue.is_empty() && !stream.blocked && !stream.dirty {
            stream.dirty = true;
            self.dirty.push(token);
        }
        Ok(())
    }

    fn send_slices(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        if stream.failed {
            return Err(Error::Ended(token));
        }
        if !stream.queue.is_empty() {
            stream.queue.push_slices(parts, 0);
            return Ok(());
        }
        let first = &parts[..parts.len().min(PARTS_MAX)];
        let taken = loop {
            match send_now(stream.socket.as_fd(), first) {
                Ok(taken) => break taken,
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.fail(token, error.into());
                    return Ok(());
                }
            }
        };
        stream.queue.push_slices(parts, taken);
        if !stream.queue.is_empty() {
            if taken < first.iter().map(|part| part.len()).sum() {
                stream.blocked = true;
                self.update_stream(token);
            } else if !stream.dirty {
                stream.dirty = true;
                self.dirty.push(token);
            }
        }
        Ok(())
    }

    fn queued(&self, token: Token) -> usize {
        match self.sources.get(token).map(|source| &source.kind) {
            Some(Kind::Stream(stream)) => stream.queue.len(),
            _ => 0,
        }
    }

    fn datagram(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.insert(Kind::Datagram { socket, failed: false })
    }

    fn send_to(&mut self, token: Token, peer: &DatagramPeer, bytes: &[u8]) -> Result<(), Error> {
        match &self.source(token)?.kind {
            Kind::Datagram { socket, .. } => {
                datagram::send_to(socket.as_fd(), peer, bytes).map_err(|error| Error::datagram(error, peer))
            }
            _ => Err(Error::WrongKind { token, expected: "datagram socket" }),
        }
    }

    fn watch(&mut self, fd: OwnedFd, interest: Interest, trigger: Trigger) -> Result<Token, Error> {
        self.insert(Kind::Watch { fd, interest, trigger })
    }

    fn signals(&mut self, fd: SignalFd) -> Result<Token, Error> {
        self.insert(Kind::Signals(fd))
    }

    fn close(&mut self, token: Token, how: Close, silent: bool) {
        if let Ok(Source { kind: Kind::Stream(stream), .. }) = self.source(token) {
            match how {
                Close::AfterSend if !stream.queue.is_empty() => {
                    stream.closing = true;
                    stream.receiving = false;
                    return self.update_stream(token);
                }
                Close::AfterSend if !stream.failed => stream::finish(stream.socket.as_fd()),
                Close::AfterSend | Close::Now => {}
                Close::Reset => stream::reset(stream.socket.as_fd()),
            }
        }
        self.release(token, silent);
    }

    fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        let source = self.sources.get(token)?;
        match &source.kind {
            Kind::Stream(stream) if stream.closing => None,
            _ => Some(source.fd()),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.flush();
        let timeout = if self.pending.is_empty() { timeout } else { Some(Duration::ZERO) };
        // A wait may end early, so one that is too long for the kernel's milliseconds is cut.
        let timeout = timeout.map(|timeout| timeout.min(Duration::from_secs(1 << 20)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        self.handled = 0;
        self.current = None;
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::system("wait for events (epoll_wait)")(error)),
        }
    }

    fn next<'a>(&mut self, scratch: &'a mut Scratch) -> Option<Event<'a>> {
        loop {
            if let Some(event) = self.next_pending() {
                return Some(event);
            }
            if let Some((token, left)) = self.current {
                match self.step(token, left, &mut scratch.buffer) {
                    Some(found) => return Some(found.event(&scratch.buffer)),
                    None => continue,
                }
            }
            let event = *self.events.get(self.handled)?;
            self.handled += 1;
            if let Some(event) = self.begin(event) {
                return Some(event);
            }
        }
    }

    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for token in dirty.drain(..) {
            self.write(token);
        }
        // Nothing became dirty meanwhile: only the caller makes streams dirty. Keep the allocation.
        self.dirty = dirty;
    }

    fn pending(&self) -> usize {
        self.pending.len()
    }

    fn next_pending(&mut self) -> Option<Event<'static>> {
        loop {
            let (token, event) = match self.pending.pop_front()? {
                Pending::Closed(token) => return Some(Event::Closed { token }),
                Pending::Sent(token) => (token, Event::Sent { token }),
                Pending::Failed(token, error) => (token, Event::Failed { token, error }),
                Pending::AcceptFailed(listener, error) => (listener, Event::AcceptFailed { listener, error }),
            };
            // What happened to it before it was closed concerns nobody; a queue that was filled again will
            // be reported when it is empty again.
            match self.sources.get(token).map(|source| &source.kind) {
                Some(Kind::Stream(stream)) if stream.closing => {}
                Some(Kind::Stream(stream))
                    if matches!(event, Event::Sent { .. }) && !stream.queue.is_empty() => {}
                Some(_) => return Some(event),
                None => {}
            }
        }
    }
}

/// One system call, the cheapest for the number of parts.
fn send_now(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match parts {
        [part] => send(socket, part, flags),
        parts => sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags),
    }
}
