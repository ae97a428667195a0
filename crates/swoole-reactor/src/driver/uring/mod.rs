//! Completions from the kernel itself.
//!
//! Accepting and receiving are multishot: armed once, they complete again and again. Bytes arrive in
//! provided buffers, which only a stream with input holds; streams with much input are polled and read as
//! with epoll instead (`reading`). A stream has at most one send operation at a time, which owns its bytes
//! until it is over and gathers all that was queued meanwhile into the next; what is long and need not wait
//! is sent at once (`output`). Everything else that the handlers of a turn ask for goes to the kernel in one
//! call, together with the next wait. Datagrams and signals are polled and then read as with epoll: a
//! datagram may be longer than a provided buffer.
//!
//! The state of a source says what should be with the kernel, and [`Uring::settle`] makes it so: it arms,
//! cancels, and releases a closed source once its last operation is over, not before. So neither memory nor
//! a descriptor is taken from under an operation, and no completion can meet the next owner of a slot.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fd};
use rustix::event::PollFlags;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use swoole_sys::signal::SignalFd;

use self::buffers::Piece;
use self::flight::Flight;
use self::ring::{Completion, Ring};
use self::source::{Closing, Kind, Source, Stream};
use super::{Driver, Pending, PendingQueue, Scratch};
use crate::datagram;
use crate::fork::ForkGuard;
use crate::stream::{self, Rooms, SendQueue};
use crate::token::Slots;
use crate::{Close, DatagramPeer, Error, Event, FileRange, Interest, Token, Trigger, Waker};

mod buffers;
mod flight;
mod input;
mod output;
mod reading;
mod ring;
mod source;

pub(super) use self::buffers::Buffers;

/// Bytes in the pool of provided buffers, in receive buffers.
const POOL: usize = 4;

/// How long dropping the driver waits for the kernel to let go of its memory; it takes microseconds.
const QUIESCE_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Uring {
    // Before what its operations point to, so that it is dropped first.
    ring: Ring,
    sources: Slots<Source>,
    buffers: Rc<Buffers>,
    waker: Waker,
    budget: usize,
    /// What the last wait returned, and how far it is handled.
    completions: Vec<Completion>,
    handled: usize,
    /// A stream, datagram socket or signals being read, and how often it may be read in this turn.
    current: Option<(Token, usize)>,
    /// The buffer that the last event borrowed.
    lent: Option<Piece>,
    /// Streams that are to be read from in the next turn, whatever the ring says, and those of this turn.
    ready: Vec<Token>,
    due: Vec<Token>,
    /// Streams with output that waits for the next submission.
    dirty: Vec<Token>,
    /// Streams that go on with a file in the next turn.
    sending: Vec<Token>,
    /// Where small parts become one.
    gathered: Vec<u8>,
    /// Empty ones for the next sends.
    flights: Vec<Flight>,
    rooms: Rooms,
    /// Sources that were resumed with something held back.
    replay: VecDeque<Token>,
    pending: PendingQueue,
}

/// What an operation's user data says besides its slot.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    /// Accept, receive or poll.
    Input = 1,
    Send = 2,
    Cancel = 3,
    Waker = 4,
    /// The last cancellation, for everything.
    Quiesce = 5,
    /// A poll for room for more of a file.
    Room = 6,
}

/// Slot, kind, and as much of the generation as fits, to notice what cannot be.
fn user_data(token: Token, operation: Operation) -> u64 {
    u64::from(token.slot()) << 32 | u64::from(token.generation() & 0x00ff_ffff) << 8 | operation as u64
}

impl Uring {
    /// A driver, and what is to be said of it.
    pub(crate) fn new(
        waker: Waker,
        budget: usize,
        receive_buffer: usize,
        fork: Rc<ForkGuard>,
    ) -> Result<(Self, String), Error> {
        let unavailable = |reason| Error::Unavailable { reason };
        let (ring, features) = Ring::new(fork).map_err(unavailable)?;
        // SAFETY: both go into the driver, which drops the ring first and, should the kernel not let go of
        // it, never the buffers.
        let buffers =
            unsafe { Buffers::register(receive_buffer.saturating_mul(POOL), &ring.submitter(), true) };
        let buffers = buffers.map_err(|error| {
            unavailable(format!("no provided buffers (io_uring_register: {error}): it takes Linux 6.0"))
        })?;
        let description = format!("{features}, {}", buffers.description());
        let mut driver = Self {
            ring,
            sources: Slots::new(),
            buffers: Rc::new(buffers),
            waker,
            budget,
            completions: Vec::new(),
            handled: 0,
            current: None,
            lent: None,
            ready: Vec::new(),
            due: Vec::new(),
            dirty: Vec::new(),
            sending: Vec::new(),
            gathered: Vec::new(),
            flights: Vec::new(),
            rooms: Rooms::default(),
            replay: VecDeque::new(),
            pending: PendingQueue::new(),
        };
        driver.arm_waker();
        Ok((driver, description))
    }

    /// Whether receives share buffers, which Linux knows from 6.12 on.
    pub(crate) fn shares_buffers(&self) -> bool {
        self.buffers.is_shared()
    }

    fn arm_waker(&mut self) {
        let fd = Fd(self.waker.eventfd().as_raw_fd());
        let poll = opcode::PollAdd::new(fd, PollFlags::IN.bits().into()).multi(true).build();
        // SAFETY: it points to no memory, and the driver keeps the eventfd open.
        unsafe { self.ring.push(poll.user_data(Operation::Waker as u64)) };
    }

    fn insert(&mut self, kind: Kind) -> Result<Token, Error> {
        let source =
            Source { kind, operations: 0, armed: false, cancelling: false, cancelled: false, closing: None };
        let token = self.sources.insert(source).ok_or(Error::Full)?;
        self.settle(token);
        Ok(token)
    }

    /// A source that is not closed.
    fn source(&mut self, token: Token) -> Result<&mut Source, Error> {
        let source = self.sources.get_mut(token).filter(|source| source.closing.is_none());
        source.ok_or(Error::NoSuchToken(token))
    }

    /// Brings what the kernel works on in line with the state of the source.
    fn settle(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token) else { return };
        if let Some(Closing::Now { gracefully, silent }) = source.closing
            && source.operations == 0
        {
            if gracefully {
                stream::finish(source.fd());
            }
            self.sources.remove(token);
            if !silent {
                self.pending.push_back(Pending::Closed(token));
            }
            return;
        }
        let is_told = !matches!(&source.kind, Kind::Listener { held, .. } if !held.is_empty());
        if source.closing == Some(Closing::Detach) && source.operations == 0 && is_told {
            let detached = self.sources.remove(token).and_then(|source| source.kind.detached());
            return self.pending.extend(detached.map(|detached| Pending::Detached(token, detached)));
        }
        let fd = Fd(source.fd().as_raw_fd());
        let wanted = source.wanted();
        let is_closing = matches!(source.closing, Some(Closing::Now { .. } | Closing::Detach));
        let entry = if is_closing {
            if source.cancelling {
                return;
            }
            // By descriptor, for all operations at once, the send among them.
            source.cancelling = true;
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(fd).all()).build();
            cancel.user_data(user_data(token, Operation::Cancel))
        } else if let Some(entry) = wanted.filter(|_| !source.armed || source.is_suited()) {
            if source.armed {
                return;
            }
            if let Kind::Stream(stream) = &mut source.kind {
                stream.is_polled = stream.reads;
                (stream.readable, stream.hung_up) = (false, false);
            }
            source.armed = true;
            source.cancelled = false;
            entry.user_data(user_data(token, Operation::Input))
        } else if source.armed && !source.cancelling && !source.cancelled {
            source.cancelling = true;
            let cancel = CancelBuilder::user_data(user_data(token, Operation::Input));
            opcode::AsyncCancel2::new(cancel).build().user_data(user_data(token, Operation::Cancel))
        } else {
            return;
        };
        source.operations += 1;
        // SAFETY: none of these operations points to memory of ours, and the source, which owns the
        // descriptor, is kept until `operations` is 0.
        unsafe { self.ring.push(entry) };
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
    fn fail(&mut self, token: Token, error: Errno) {
        let Some(source) = self.sources.get_mut(token) else { return };
        match &mut source.kind {
            Kind::Stream(stream) if !stream.failed => {
                stream.failed = true;
                stream.queue.clear();
                stream.held.clear();
            }
            Kind::Datagram { deaf, .. } if !*deaf => *deaf = true,
            _ => return,
        }
        match source.closing {
            None => self.pending.push_back(Pending::Failed(token, error.into())),
            Some(Closing::AfterSend) => {
                source.closing = Some(Closing::Now { gracefully: false, silent: false });
            }
            Some(Closing::Now { .. } | Closing::Detach) => {}
        }
        self.settle(token);
    }
}

impl Driver for Uring {
    fn accept(&mut self, socket: OwnedFd, shared: bool) -> Result<Token, Error> {
        self.insert(Kind::Listener { socket, accepting: true, shared, held: VecDeque::new() })
    }

    fn set_accepting(&mut self, token: Token, on: bool) {
        let Ok(Source { kind: Kind::Listener { accepting, held, .. }, .. }) = self.source(token) else {
            return;
        };
        *accepting = on;
        if on && !held.is_empty() {
            self.replay.push_back(token);
        }
        self.settle(token);
    }

    fn stream(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.insert(Kind::Stream(Stream {
            socket,
            queue: SendQueue::default(),
            flight: None,
            waits_for_room: false,
            dirty: false,
            receiving: false,
            asks: false,
            reads: false,
            is_polled: false,
            readable: false,
            hung_up: false,
            listed: false,
            calm: 0,
            held: VecDeque::new(),
            ended: false,
            failed: false,
        }))
    }

    fn receive(&mut self, token: Token, asks: bool) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        (stream.receiving, stream.asks) = (true, asks);
        if !stream.held.is_empty() {
            self.replay.push_back(token);
        }
        self.settle(token);
        self.list(token);
        Ok(())
    }

    fn has_hung_up(&self, token: Token) -> bool {
        // What the kernel reads by itself it reads ahead, and tells at once.
        matches!(self.sources.get(token), Some(Source { kind: Kind::Stream(stream), .. }) if stream.hung_up)
    }

    fn read(&mut self, token: Token, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        self.source(token)?.stream(token)?;
        let length = self.read_now(token, buffer);
        self.settle(token);
        Ok(length)
    }

    fn pause(&mut self, token: Token) {
        let Ok(source) = self.source(token) else { return };
        if let Kind::Datagram { deaf, .. } = &mut source.kind {
            *deaf = true;
        } else if let Ok(stream) = source.stream(token) {
            stream.receiving = false;
        }
        self.settle(token);
    }

    fn send(&mut self, token: Token, bytes: Vec<u8>) -> Result<(), Error> {
        self.enqueue(token, |queue, _| queue.push(bytes))
    }

    fn send_slices(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        self.send_or_queue(token, parts)
    }

    fn queued(&self, token: Token) -> usize {
        match self.sources.get(token).map(|source| &source.kind) {
            Some(Kind::Stream(stream)) if !stream.failed => {
                stream.queue.len() + stream.flight.as_ref().map_or(0, Flight::remaining)
            }
            _ => 0,
        }
    }

    fn send_file(&mut self, token: Token, range: FileRange) -> Result<(), Error> {
        self.enqueue(token, |queue, _| queue.push_file(range))
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
        // io_uring takes what cannot be polled for always ready; epoll's answer is the better one.
        let operation = "watch a descriptor (fstat)";
        let kind = FileType::from_raw_mode(fstat(&fd).map_err(Error::system(operation))?.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(Error::system("watch a file that cannot be polled")(Errno::PERM));
        }
        self.insert(Kind::Watch { fd, interest, trigger })
    }

    fn signals(&mut self, fd: SignalFd) -> Result<Token, Error> {
        self.insert(Kind::Signals(fd))
    }

    fn close(&mut self, token: Token, how: Close, silent: bool) {
        let Some(source) = self.sources.get_mut(token) else { return };
        if matches!(source.closing, Some(Closing::Now { .. } | Closing::Detach)) {
            return;
        }
        let mut closing = Closing::Now { gracefully: false, silent };
        if let Kind::Stream(stream) = &mut source.kind {
            let is_sent = stream.flight.is_none() && stream.queue.is_empty();
            match how {
                Close::AfterSend if stream.failed => {}
                Close::AfterSend if is_sent => closing = Closing::Now { gracefully: true, silent },
                Close::AfterSend => closing = Closing::AfterSend,
                Close::Now => {}
                Close::Reset => stream::reset(stream.socket.as_fd()),
            }
            stream.held.clear();
        }
        source.closing = Some(closing);
        self.settle(token);
    }

    fn detach(&mut self, token: Token) -> Result<(), Error> {
        let source = self.sources.get_mut(token);
        let source = source.filter(|source| matches!(source.closing, None | Some(Closing::AfterSend)));
        let source = source.ok_or(Error::NoSuchToken(token))?;
        match &source.kind {
            Kind::Stream(_) => {}
            Kind::Listener { held, .. } if held.is_empty() => {}
            // Those that were accepted while it was paused are told of first.
            Kind::Listener { .. } => self.replay.push_back(token),
            _ => return Err(Error::WrongKind { token, expected: "stream or listener" }),
        }
        source.closing = Some(Closing::Detach);
        self.settle(token);
        Ok(())
    }

    fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        self.sources.get(token).filter(|source| source.closing.is_none()).map(Source::fd)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.write_all();
        let is_ready = !self.pending.is_empty() || !self.replay.is_empty() || !self.ready.is_empty();
        let is_ready = is_ready || !self.sending.is_empty();
        self.dirty.append(&mut self.sending);
        mem::swap(&mut self.ready, &mut self.due);
        let timeout = if is_ready { Some(Duration::ZERO) } else { timeout };
        self.ring.enter(timeout).map_err(Error::system("wait for events (io_uring_enter)"))?;
        self.completions.clear();
        self.handled = 0;
        self.ring.completions(&mut self.completions);
        Ok(())
    }

    fn next<'a>(&mut self, scratch: &'a mut Scratch) -> Option<Event<'a>> {
        let lent = self.lent.take();
        self.give_back(lent);
        loop {
            if let Some(event) = self.next_pending() {
                return Some(event);
            }
            let found = if let Some(token) = self.replay.pop_front() {
                self.replay(token)
            } else if let Some((token, left)) = self.current {
                self.read(token, left, scratch.room())
            } else if let Some(&completion) = self.completions.get(self.handled) {
                self.handled += 1;
                self.complete(completion)
            } else if self.next_listed() {
                continue;
            } else {
                return None;
            };
            if let Some(found) = found {
                return Some(self.lend(found, scratch));
            }
        }
    }

    fn flush(&mut self) {}

    fn submit(&mut self) {
        self.write_all();
        self.ring.submit();
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
            let is_stale = matches!(event, Event::Sent { .. })
                && (self.queued(token) > 0 || self.queued_of_files(token) > 0);
            if !is_stale && self.source(token).is_ok() {
                return Some(event);
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.ring.has_forked() {
            return;
        }
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: it points to no memory and no descriptor.
        unsafe { self.ring.push(cancel.user_data(Operation::Quiesce as u64)) };
        let deadline = Instant::now() + QUIESCE_MAX;
        loop {
            for completion in self.completions.drain(mem::take(&mut self.handled)..) {
                let token = self.sources.current((completion.user_data >> 32) as u32);
                let kind = token.and_then(|token| self.sources.get(token)).map(|source| &source.kind);
                if completion.user_data as u8 == Operation::Input as u8
                    && let (Some(Kind::Listener { .. }), Ok(fd)) = (kind, completion.result())
                {
                    // A connection that nobody has been told of.
                    // SAFETY: an accept's result is a new descriptor, which nobody else owns.
                    drop(unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) });
                }
            }
            self.completions.clear();
            let left = deadline.saturating_duration_since(Instant::now());
            if self.ring.in_flight() == 0 || left.is_zero() || self.ring.enter(Some(left)).is_err() {
                break;
            }
            self.ring.completions(&mut self.completions);
        }
        if self.ring.in_flight() > 0 {
            // The kernel may still write to the buffers and read what is being sent.
            mem::forget(mem::replace(&mut self.sources, Slots::new()));
            mem::forget(Rc::clone(&self.buffers));
        }
    }
}
