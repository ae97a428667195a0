//! Completions from the kernel itself.
//!
//! Accepting and receiving are multishot: armed once, they complete again and again. Bytes arrive in
//! provided buffers, which only a stream with input holds. A stream has at most one send operation at a
//! time, which owns its bytes until it is over and gathers all that was queued meanwhile into the next.
//! Everything that the handlers of a turn ask for goes to the kernel in one call, together with the next
//! wait. Datagrams and signals are polled and then read as with epoll: a datagram may be longer than a
//! provided buffer.
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

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{opcode, squeue};
use rustix::event::PollFlags;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::net::{SocketFlags, getpeername};
use swoole_sys::signal::SignalFd;

use self::buffers::{COUNT, GROUP};
use self::flight::Flight;
use self::ring::{Completion, Ring};
use super::{Driver, Pending, PendingQueue, Scratch};
use crate::datagram::{self, Received};
use crate::fork::ForkGuard;
use crate::stream::{self, SendQueue};
use crate::token::Slots;
use crate::{Close, DatagramPeer, Error, Event, Interest, Token, Trigger, Waker};

mod buffers;
mod flight;
mod ring;

pub(super) use self::buffers::Buffers;

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
    /// A datagram socket or signals being read, and how often it may be read in this turn.
    current: Option<(Token, usize)>,
    /// The buffer that the last event borrowed.
    lent: Option<u16>,
    /// Streams with output that waits for the next submission.
    dirty: Vec<Token>,
    /// Sources that were resumed with something held back.
    replay: VecDeque<Token>,
    pending: PendingQueue,
}

struct Source {
    kind: Kind,
    /// Operations in the kernel, cancellations among them. Nothing is released before it is 0.
    operations: u32,
    /// Its accept, receive or poll is with the kernel.
    armed: bool,
    /// A cancellation is with the kernel.
    cancelling: bool,
    /// The cancellation of the input met nothing: it is repeated when the operation shows up.
    missed: bool,
    closing: Option<Closing>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Output is still to be sent.
    AfterSend,
    /// As soon as no operation is left; if `gracefully`, with an end-of-file for the peer.
    Now { gracefully: bool, silent: bool },
}

enum Kind {
    Listener {
        socket: OwnedFd,
        accepting: bool,
        /// Accepted by the kernel while it was paused.
        held: VecDeque<OwnedFd>,
    },
    Stream(Stream),
    Datagram {
        socket: OwnedFd,
        failed: bool,
    },
    Watch {
        fd: OwnedFd,
        interest: Interest,
        trigger: Trigger,
    },
    Signals(SignalFd),
}

struct Stream {
    socket: OwnedFd,
    queue: SendQueue,
    flight: Option<Flight>,
    /// Listed in `Uring::dirty`.
    dirty: bool,
    receiving: bool,
    /// Came while the stream was paused, or after something that is still held.
    held: VecDeque<Held>,
    /// The kernel has reported end-of-file or an error: there is nothing to arm any more.
    ended: bool,
    failed: bool,
}

enum Held {
    Data(Vec<u8>),
    Eof,
    Failed(Errno),
}

/// What a step found for the caller.
enum Found {
    Event(Event<'static>),
    /// In a provided buffer.
    Provided {
        token: Token,
        number: u16,
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
}

/// Slot, kind, and as much of the generation as fits, to notice what cannot be.
fn user_data(token: Token, operation: Operation) -> u64 {
    u64::from(token.slot()) << 32 | u64::from(token.generation() & 0x00ff_ffff) << 8 | operation as u64
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

    /// The input operation that should be with the kernel.
    fn wanted(&self) -> Option<squeue::Entry> {
        if self.closing.is_some() {
            return None;
        }
        let fd = Fd(self.fd().as_raw_fd());
        let poll =
            |flags: PollFlags, multi| opcode::PollAdd::new(fd, flags.bits().into()).multi(multi).build();
        match &self.kind {
            Kind::Listener { accepting, held, .. } => (*accepting && held.is_empty()).then(|| {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                opcode::AcceptMulti::new(fd).flags(flags.bits().cast_signed()).build()
            }),
            Kind::Stream(stream) => {
                (stream.receiving && stream.held.is_empty() && !stream.ended && !stream.failed)
                    .then(|| opcode::RecvMulti::new(fd, GROUP).build())
            }
            Kind::Datagram { failed, .. } => (!failed).then(|| poll(PollFlags::IN, false)),
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

    fn stream(&mut self, token: Token) -> Result<&mut Stream, Error> {
        match &mut self.kind {
            Kind::Stream(stream) => Ok(stream),
            _ => Err(Error::WrongKind { token, expected: "stream" }),
        }
    }
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
        let buffers = Buffers::new((receive_buffer / 4).max(1))
            .map_err(|error| unavailable(format!("no memory for receive buffers: {error}")))?;
        // SAFETY: both go into the driver, which drops the ring first and, should the kernel not let go of
        // it, never the buffers.
        unsafe { buffers.register(&ring.submitter()) }.map_err(|error| {
            unavailable(format!("no provided buffers (io_uring_register: {error}): it takes Linux 6.0"))
        })?;
        let description = format!("{features}, {COUNT} receive buffers of {} bytes", buffers.size());
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
            dirty: Vec::new(),
            replay: VecDeque::new(),
            pending: PendingQueue::new(),
        };
        driver.arm_waker();
        Ok((driver, description))
    }

    fn arm_waker(&mut self) {
        let fd = Fd(self.waker.eventfd().as_raw_fd());
        let poll = opcode::PollAdd::new(fd, PollFlags::IN.bits().into()).multi(true).build();
        // SAFETY: it points to no memory, and the driver keeps the eventfd open.
        unsafe { self.ring.push(poll.user_data(Operation::Waker as u64)) };
    }

    fn insert(&mut self, kind: Kind) -> Result<Token, Error> {
        let source =
            Source { kind, operations: 0, armed: false, cancelling: false, missed: false, closing: None };
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
        let fd = Fd(source.fd().as_raw_fd());
        let wanted = source.wanted();
        let is_closing = matches!(source.closing, Some(Closing::Now { .. }));
        let entry = if is_closing {
            if source.cancelling {
                return;
            }
            // By descriptor, for all operations at once, the send among them.
            source.cancelling = true;
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(fd).all()).build();
            cancel.user_data(user_data(token, Operation::Cancel))
        } else if let Some(entry) = wanted {
            if source.armed {
                return;
            }
            source.armed = true;
            entry.user_data(user_data(token, Operation::Input))
        } else if source.armed && !source.cancelling && !source.missed {
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

    /// Ends a stream or datagram socket that met an error, and reports it.
    fn fail(&mut self, token: Token, error: Errno) {
        let Some(source) = self.sources.get_mut(token) else { return };
        match &mut source.kind {
            Kind::Stream(stream) if !stream.failed => {
                stream.failed = true;
                stream.queue.clear();
                stream.held.clear();
            }
            Kind::Datagram { failed, .. } if !*failed => *failed = true,
            _ => return,
        }
        match source.closing {
            None => self.pending.push_back(Pending::Failed(token, error.into())),
            Some(Closing::AfterSend) => {
                source.closing = Some(Closing::Now { gracefully: false, silent: false });
            }
            Some(Closing::Now { .. }) => {}
        }
        self.settle(token);
    }

    /// Starts to send what is queued, unless a send is under way.
    fn write(&mut self, token: Token) {
        let Some(Source { kind: Kind::Stream(stream), .. }) = self.sources.get_mut(token) else { return };
        stream.dirty = false;
        if stream.failed || stream.flight.is_some() || stream.queue.is_empty() {
            return;
        }
        stream.flight = Some(Flight::new(stream.queue.take_parts()));
        self.submit_flight(token);
    }

    fn submit_flight(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token) else { return };
        let Kind::Stream(Stream { socket, flight: Some(flight), .. }) = &mut source.kind else { return };
        let entry = flight.operation(Fd(socket.as_raw_fd())).user_data(user_data(token, Operation::Send));
        source.operations += 1;
        // SAFETY: the flight stays in its source, unchanged, until the completion is handled: `sent` alone
        // touches it, and the source is kept until `operations` is 0.
        unsafe { self.ring.push(entry) };
    }

    /// A send operation is over.
    fn sent(&mut self, token: Token, result: Result<u32, Errno>) {
        let Some(source) = self.sources.get_mut(token) else { return };
        let Kind::Stream(stream) = &mut source.kind else { return };
        let Some(flight) = &mut stream.flight else { return };
        let count = match result {
            Ok(count) => count as usize,
            Err(Errno::INTR | Errno::AGAIN) => 0,
            Err(error) => {
                stream.flight = None;
                return self.fail(token, error);
            }
        };
        let is_done = flight.advance(count);
        if stream.failed || matches!(source.closing, Some(Closing::Now { .. })) {
            stream.flight = None;
        } else if !is_done {
            return self.submit_flight(token);
        } else {
            stream.flight = None;
            if !stream.queue.is_empty() {
                return self.write(token);
            }
            match source.closing {
                None => self.pending.push_back(Pending::Sent(token)),
                Some(_) => source.closing = Some(Closing::Now { gracefully: true, silent: false }),
            }
        }
        self.settle(token);
    }

    /// Acts on one completion.
    fn complete(&mut self, completion: Completion) -> Option<Found> {
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
        if operation == Operation::Cancel as u8 {
            source.cancelling = false;
            source.missed = completion.result() == Err(Errno::NOENT);
            self.settle(token);
            return None;
        }
        source.armed = completion.is_more();
        source.missed = false;
        let found = match &source.kind {
            Kind::Listener { .. } => self.accepted(token, completion.result()),
            Kind::Stream(_) => self.received(token, completion),
            Kind::Datagram { .. } | Kind::Signals(_) => {
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
        let Kind::Listener { accepting, held, .. } = &mut self.source(token).ok()?.kind else { return None };
        match result {
            Ok(socket) if *accepting && held.is_empty() => Some(Found::Event(accepted(token, socket))),
            Ok(socket) => {
                held.push_back(socket);
                None
            }
            Err(Errno::CANCELED | Errno::AGAIN) => None,
            Err(error) if super::is_accept_transient(error) => None,
            Err(error) if *accepting => {
                *accepting = false;
                Some(Found::Event(Event::AcceptFailed { listener: token, error: error.into() }))
            }
            Err(_) => None,
        }
    }

    fn received(&mut self, token: Token, completion: Completion) -> Option<Found> {
        let buffers = Rc::clone(&self.buffers);
        let Ok(stream) = self.source(token).and_then(|source| source.stream(token)) else {
            self.give_back(completion.buffer());
            return None;
        };
        let is_due = stream.receiving && stream.held.is_empty() && !stream.failed;
        match (completion.result(), completion.buffer()) {
            (Ok(length), Some(number)) if length > 0 => {
                let length = length as usize;
                if is_due {
                    return Some(Found::Provided { token, number, length });
                }
                if !stream.failed {
                    // SAFETY: this completion hands it over, and it is given back below.
                    let bytes = unsafe { buffers.bytes(number, length) };
                    stream.held.push_back(Held::Data(bytes.to_vec()));
                }
                self.give_back(Some(number));
                None
            }
            (Ok(_), number) => {
                stream.ended = true;
                if !is_due {
                    stream.held.push_back(Held::Eof);
                }
                self.give_back(number);
                is_due.then_some(Found::Event(Event::Eof { token }))
            }
            // Armed again by the caller: by the time the kernel sees it, this turn's buffers are back.
            (Err(Errno::NOBUFS | Errno::CANCELED | Errno::AGAIN | Errno::INTR), _) => None,
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

    /// Reads once from the datagram socket or the signals in hand.
    fn read(&mut self, token: Token, left: usize, buffer: &mut [u8]) -> Option<Found> {
        self.current = None;
        let found = match &self.source(token).ok()?.kind {
            Kind::Datagram { failed: true, .. } => return None,
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
    fn replay(&mut self, token: Token) -> Option<Found> {
        let (found, is_empty) = match &mut self.source(token).ok()?.kind {
            Kind::Listener { accepting: true, held, .. } => {
                let socket = held.pop_front()?;
                (Some(Found::Event(accepted(token, socket))), held.is_empty())
            }
            Kind::Stream(stream) if stream.receiving && !stream.failed => match stream.held.pop_front()? {
                Held::Data(bytes) => (Some(Found::Held { token, bytes }), stream.held.is_empty()),
                Held::Eof => (Some(Found::Event(Event::Eof { token })), true),
                Held::Failed(error) => {
                    self.fail(token, error);
                    return None;
                }
            },
            _ => return None,
        };
        if is_empty {
            self.settle(token);
        } else {
            self.replay.push_front(token);
        }
        found
    }

    fn give_back(&mut self, number: Option<u16>) {
        if let Some(number) = number {
            // SAFETY: the callers pass the number of a completion, once.
            unsafe { self.buffers.give_back(number) };
        }
    }

    fn lend<'a>(&mut self, found: Found, scratch: &'a mut Scratch) -> Event<'a> {
        match found {
            Found::Event(event) => event,
            Found::Provided { token, number, length } => {
                self.lent = Some(number);
                let buffers = scratch.provided.insert(Rc::clone(&self.buffers));
                // SAFETY: the completion has handed it over. `next` gives it back; it takes the scratch,
                // which the event borrows, so it cannot be called before the event is gone.
                Event::Data { token, bytes: unsafe { buffers.bytes(number, length) } }
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

impl Driver for Uring {
    fn accept(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.insert(Kind::Listener { socket, accepting: true, held: VecDeque::new() })
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
            dirty: false,
            receiving: false,
            held: VecDeque::new(),
            ended: false,
            failed: false,
        }))
    }

    fn receive(&mut self, token: Token) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        stream.receiving = true;
        if !stream.held.is_empty() {
            self.replay.push_back(token);
        }
        self.settle(token);
        Ok(())
    }

    fn pause(&mut self, token: Token) {
        if let Ok(stream) = self.source(token).and_then(|source| source.stream(token)) {
            stream.receiving = false;
            self.settle(token);
        }
    }

    fn send(&mut self, token: Token, bytes: Vec<u8>) -> Result<(), Error> {
        self.enqueue(token, |queue| queue.push(bytes))
    }

    fn send_slices(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        self.enqueue(token, |queue| queue.push_slices(parts, 0))
    }

    fn queued(&self, token: Token) -> usize {
        match self.sources.get(token).map(|source| &source.kind) {
            Some(Kind::Stream(stream)) if !stream.failed => {
                stream.queue.len() + stream.flight.as_ref().map_or(0, Flight::remaining)
            }
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
        if matches!(source.closing, Some(Closing::Now { .. })) {
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

    fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        self.sources.get(token).filter(|source| source.closing.is_none()).map(Source::fd)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let mut dirty = mem::take(&mut self.dirty);
        for token in dirty.drain(..) {
            self.write(token);
        }
        self.dirty = dirty;
        let is_ready = !self.pending.is_empty() || !self.replay.is_empty();
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
                self.read(token, left, &mut scratch.buffer)
            } else {
                let completion = *self.completions.get(self.handled)?;
                self.handled += 1;
                self.complete(completion)
            };
            if let Some(found) = found {
                return Some(self.lend(found, scratch));
            }
        }
    }

    fn flush(&mut self) {}

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
            let is_stale = matches!(event, Event::Sent { .. }) && self.queued(token) > 0;
            if !is_stale && self.source(token).is_ok() {
                return Some(event);
            }
        }
    }
}

impl Uring {
    fn enqueue(&mut self, token: Token, push: impl FnOnce(&mut SendQueue)) -> Result<(), Error> {
        let stream = self.source(token)?.stream(token)?;
        if stream.failed {
            return Err(Error::Ended(token));
        }
        push(&mut stream.queue);
        // What comes while a send is under way goes out after it.
        if !stream.queue.is_empty() && stream.flight.is_none() && !stream.dirty {
            stream.dirty = true;
            self.dirty.push(token);
        }
        Ok(())
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
