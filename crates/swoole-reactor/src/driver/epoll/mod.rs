//! Completions out of readiness.
//!
//! Streams are edge-triggered and stay in the set, so that to pause and to resume one, or to wait for room for its
//! output, takes no system call: what the edges said is remembered with the stream. A short read says that the socket
//! is drained (`epoll(7)`), so the usual turn is one `epoll_wait`, and one `recv` for each readable stream. A stream
//! that has more than its turn allows, or is resumed with something left, is listed for the next turn.
//!
//! All other sources are level-triggered, and those with nothing to wait for taken out of the set, because epoll
//! reports errors and hang-ups also to those who did not ask, again and again.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use swoole_sys::signal::SignalFd;

use self::source::{Kind, Source, Stream};
use super::{Driver, Pending, PendingQueue, Scratch, WAKER};
use crate::datagram;
use crate::stream::{self, PARTS_MAX, Rooms, SendQueue};
use crate::token::Slots;
use crate::{Close, DatagramPeer, Detached, Error, Event, FileRange, Interest, Token, Trigger, Waker};

mod input;
mod source;

/// Events taken from the kernel in one call.
const EVENTS_MAX: usize = 512;

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
    /// Streams that are to be read from in the next turn, whatever epoll says, and those of this turn.
    ready: Vec<Token>,
    due: Vec<Token>,
    /// Streams with output that was not tried yet.
    dirty: Vec<Token>,
    /// Streams that go on with a file in the next turn.
    sending: Vec<Token>,
    /// Where small parts become one.
    gathered: Vec<u8>,
    pending: PendingQueue,
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
            ready: Vec::new(),
            due: Vec::new(),
            dirty: Vec::new(),
            sending: Vec::new(),
            gathered: Vec::new(),
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

    /// Has a stream read from in the next turn, if there may be something.
    fn list(&mut self, token: Token) {
        if let Some(Source { kind: Kind::Stream(stream), .. }) = self.sources.get_mut(token)
            && stream.is_due()
            && !std::mem::replace(&mut stream.listed, true)
        {
            self.ready.push(token);
        }
    }

    /// Tells of it if no more is queued than somebody waits for.
    pub(super) fn tell_if_low(&mut self, token: Token) {
        let queued = self.queued(token);
        let stream = self.source(token).and_then(|source| source.stream(token));
        if stream.is_ok_and(|stream| stream.queue.is_low(queued)) {
            self.pending.push_back(Pending::Low(token));
        }
    }

    /// Ends a stream or datagram socket that met an error, and reports it.
    fn fail(&mut self, token: Token, error: std::io::Error) {
        let Some(source) = self.sources.get_mut(token) else { return };
        match &mut source.kind {
            Kind::Stream(stream) => {
                stream.failed = true;
                stream.queue.clear();
                if stream.closing {
                    return self.release(token, false);
                }
            }
            Kind::Datagram { deaf, .. } => *deaf = true,
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

    /// Queues something by `push`.
    fn enqueue(&mut self, token: Token, push: impl FnOnce(&mut SendQueue)) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        if stream.failed {
            return Err(Error::Ended(token));
        }
        push(&mut stream.queue);
        if !stream.queue.is_empty() && !stream.blocked && !stream.dirty {
            stream.dirty = true;
            self.dirty.push(token);
        }
        Ok(())
    }

    /// Sends as much of the queue as the kernel takes, of a file one piece.
    fn write(&mut self, token: Token) {
        let Ok(Source { kind: Kind::Stream(stream), .. }) = self.source(token) else { return };
        stream.dirty = false;
        if stream.failed {
            return;
        }
        let (mut has_turn, mut goes_on) = (true, false);
        while !stream.queue.is_empty() {
            if stream.queue.is_at_file() {
                if !std::mem::take(&mut has_turn) {
                    goes_on = true;
                    break;
                }
                match stream.queue.send_file(stream.socket.as_fd()) {
                    Ok(()) => continue,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {
                        has_turn = true;
                        continue;
                    }
                    Err(error) => return self.fail(token, error.into()),
                }
            }
            let mut slices = [IoSlice::new(&[]); PARTS_MAX];
            let count = stream.queue.slices(&mut slices);
            let offered: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            match stream::send_parts(stream.socket.as_fd(), &slices[..count]) {
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
        stream.blocked = !stream.queue.is_empty() && !goes_on;
        stream.was_blocked |= stream.blocked;
        stream.dirty = goes_on;
        let tells = stream.queue.awaits_low();
        if stream.blocked {
            self.update_stream(token);
        } else if goes_on {
            self.sending.push(token);
        } else if stream.closing {
            stream::finish(stream.socket.as_fd());
            self.release(token, false);
        } else {
            self.pending.push_back(Pending::Sent(token));
        }
        if tells {
            self.tell_if_low(token);
        }
    }
}

impl Driver for Epoll {
    fn accept(&mut self, socket: OwnedFd, _shared: bool) -> Result<Token, Error> {
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
            asks: false,
            readable: false,
            hung_up: false,
            listed: false,
            blocked: false,
            was_blocked: false,
            dirty: false,
            eof: false,
            failed: false,
            closing: false,
        }))
    }

    fn receive(&mut self, token: Token, asks: bool) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        (stream.receiving, stream.asks) = (true, asks);
        self.list(token);
        self.update(token)
    }

    fn pause(&mut self, token: Token) {
        match self.source(token) {
            Ok(Source { kind: Kind::Datagram { deaf, .. }, .. }) => {
                *deaf = true;
                // Taking a descriptor out of the set cannot fail while both are open.
                let _infallible = self.update(token);
            }
            Ok(source) => {
                if let Ok(stream) = source.stream(token) {
                    stream.receiving = false;
                }
            }
            Err(_) => {}
        }
    }

    fn has_hung_up(&self, token: Token) -> bool {
        matches!(self.sources.get(token), Some(Source { kind: Kind::Stream(stream), .. }) if stream.hung_up)
    }

    fn read(&mut self, token: Token, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let stream = self.source(token)?.stream(token)?;
        if stream.eof || stream.failed || buffer.is_empty() {
            return Ok(None);
        }
        loop {
            match recv(&stream.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    stream.eof = true;
                    self.pending.push_back(Pending::Eof(token));
                    return Ok(None);
                }
                Ok((_, length)) => {
                    stream.has_read(length, buffer.len());
                    return Ok(Some(length));
                }
                Err(Errno::AGAIN) => {
                    stream.readable = false;
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.fail(token, error.into());
                    return Ok(None);
                }
            }
        }
    }

    fn send(&mut self, token: Token, bytes: Vec<u8>) -> Result<(), Error> {
        self.enqueue(token, |queue| queue.push(bytes))
    }

    fn send_slices(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        let Self { sources, gathered, .. } = self;
        let stream = sources.get_mut(token).ok_or(Error::NoSuchToken(token))?.stream(token)?;
        if stream.failed {
            return Err(Error::Ended(token));
        }
        if !stream.queue.is_empty() {
            stream.queue.push_slices(parts, 0, &mut Rooms::default());
            return Ok(());
        }
        let first = &parts[..parts.len().min(PARTS_MAX)];
        let len: usize = first.iter().map(|part| part.len()).sum();
        let taken = loop {
            match stream::send_now(stream.socket.as_fd(), first, gathered) {
                Ok(taken) => break taken,
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.fail(token, error.into());
                    return Ok(());
                }
            }
        };
        stream.queue.push_slices(parts, taken, &mut Rooms::default());
        if !stream.queue.is_empty() {
            if taken < len {
                (stream.blocked, stream.was_blocked) = (true, true);
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

    fn send_file(&mut self, token: Token, range: FileRange) -> Result<(), Error> {
        self.enqueue(token, |queue| queue.push_file(range))
    }

    fn queued_of_files(&self, token: Token) -> u64 {
        match self.sources.get(token).map(|source| &source.kind) {
            Some(Kind::Stream(stream)) => stream.queue.file_bytes(),
            _ => 0,
        }
    }

    fn tell_low(&mut self, token: Token, bytes: usize) {
        if let Ok(stream) = self.source(token).and_then(|source| source.stream(token)) {
            stream.queue.await_low(bytes);
            self.tell_if_low(token);
        }
    }

    fn datagram(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.insert(Kind::Datagram { socket, deaf: false })
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

    fn detach(&mut self, token: Token) -> Result<(), Error> {
        match &self.source(token)?.kind {
            Kind::Stream(_) | Kind::Listener { .. } => {}
            _ => return Err(Error::WrongKind { token, expected: "stream or listener" }),
        }
        let Some(source) = self.sources.remove(token) else { return Err(Error::NoSuchToken(token)) };
        if !source.registered.is_empty() {
            let _infallible = epoll::delete(&self.epoll, source.fd());
        }
        let (socket, (unsent, files)) = match source.kind {
            Kind::Stream(stream) => (stream.socket, stream.queue.into_rest()),
            Kind::Listener { socket, .. } => (socket, (Vec::new(), Vec::new())),
            _ => return Err(Error::NoSuchToken(token)),
        };
        let detached = Detached { socket, unread: Vec::new(), unsent, files };
        self.pending.push_back(Pending::Detached(token, detached));
        Ok(())
    }

    fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        let source = self.sources.get(token)?;
        match &source.kind {
            Kind::Stream(stream) if stream.closing => None,
            _ => Some(source.fd()),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.flush();
        let idle = self.pending.is_empty() && self.ready.is_empty() && self.sending.is_empty();
        self.dirty.append(&mut self.sending);
        let timeout = if idle { timeout } else { Some(Duration::ZERO) };
        // A wait may end early, so one that is too long for the kernel's milliseconds is cut.
        let timeout = timeout.map(|timeout| timeout.min(Duration::from_secs(1 << 20)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        self.handled = 0;
        self.current = None;
        std::mem::swap(&mut self.ready, &mut self.due);
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
                match self.step(token, left, scratch.room()) {
                    Some(found) => return Some(found.event(&scratch.buffer)),
                    None => continue,
                }
            }
            if let Some(&event) = self.events.get(self.handled) {
                self.handled += 1;
                if let Some(event) = self.begin(event) {
                    return Some(event);
                }
                continue;
            }
            let token = self.due.pop()?;
            if let Some(Source { kind: Kind::Stream(stream), .. }) = self.sources.get_mut(token) {
                stream.listed = false;
                self.current = stream.is_due().then_some((token, self.budget));
            }
        }
    }

    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for token in dirty.drain(..) {
            self.write(token);
        }
        // Nothing became dirty meanwhile: only the caller makes streams dirty, and the next turn. Keep the allocation.
        self.dirty = dirty;
    }

    fn submit(&mut self) {
        self.flush();
    }

    fn pending(&self) -> usize {
        self.pending.len()
    }

    fn next_pending(&mut self) -> Option<Event<'static>> {
        loop {
            let (token, event) = match self.pending.pop_front()? {
                Pending::Closed(token) => return Some(Event::Closed { token }),
                Pending::Detached(token, detached) => return Some(Event::Detached { token, detached }),
                Pending::Sent(token) => (token, Event::Sent { token }),
                Pending::Low(token) => (token, Event::Low { token }),
                Pending::Eof(token) => (token, Event::Eof { token }),
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
