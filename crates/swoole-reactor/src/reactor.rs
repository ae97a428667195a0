//! The reactor: what a caller sees of a driver, timers and the waker.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use swoole_sys::signal::{SignalFd, SignalSet};

use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
use crate::driver::{Driver, Scratch};
use crate::fork::ForkGuard;
use crate::timer::Timers;
use crate::{
    Backend, Choice, Close, DatagramPeer, Error, Event, FileRange, Interest, Options, TimerId, Token,
    Trigger, Waker,
};

/// Why io_uring is what [`Backend::Auto`] means where receives can share buffers: CPU per request, relative to epoll in
/// the same rounds of `cargo xtask bench echo --framing length` (Linux 6.18, 64 connections over loopback, two cores
/// shared with the load; base mode, process mode): 128 B 0.69, 0.55; 16 x 128 B 0.65, 0.77; 4 KiB 0.76, 0.72;
/// 16 x 4 KiB 0.96, 1.03; 64 KiB 1.05, 0.97; 16 x 64 KiB 0.95, 0.91; connect, 128 B, close 0.88, 0.90. The spread of a
/// run was ±2 to ±10 %, on a busy machine up to ±30 %, with 64 KiB more: what differs by less than a tenth is a tie. Later
/// runs of the same, noisier ones, gave 0.66 to 0.90 for 128 B at depth 1, and 1.07 for 16 x 4 KiB in both modes.
const AUTO_IO_URING: &str = "chosen by auto: it takes less CPU with small packets";

/// Why it is epoll elsewhere.
const AUTO_EPOLL: &str =
    "chosen by auto: io_uring was measured to pay from Linux 6.12 on, where receives share buffers";

/// A single-threaded event loop.
///
/// It belongs to the thread and the process that made it: it is not `Send`, and in a forked child each call
/// is [`Error::Forked`] or does nothing. All methods may be called from inside the handler of
/// [`turn`](Self::turn), except `turn` itself.
///
/// See the [crate's front page](crate) for an example.
pub struct Reactor {
    driver: Box<dyn Driver>,
    choice: Choice,
    timers: Timers,
    /// When the clock of the timers stood at 0.
    epoch: Instant,
    waker: Waker,
    /// Taken out during a turn.
    scratch: Option<Scratch>,
    fork: Rc<ForkGuard>,
    /// An io_uring is bound to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Reactor {
    /// Makes a reactor for this thread of this process. It holds two descriptors (epoll or io_uring, and the
    /// eventfd of the waker).
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when io_uring was asked for and cannot be had, with cause and remedy;
    /// [`Error::System`] at a limit of descriptors or memory.
    pub fn new(options: Options) -> Result<Self, Error> {
        let fork = ForkGuard::new().map_err(Error::system("map a page to notice a fork (mmap)"))?;
        let fork = Rc::new(fork);
        let waker = Waker::new().map_err(Error::system("make a waker (eventfd)"))?;
        let budget = options.budget.max(1);
        let receive_buffer = options.receive_buffer.max(1);
        let uring = || Uring::new(waker.clone(), budget, receive_buffer, Rc::clone(&fork));
        let (uring, reason) = match options.backend {
            Backend::Epoll => (None, "as configured".to_owned()),
            Backend::IoUring => (Some(uring()?), "as configured".to_owned()),
            Backend::Auto => match uring() {
                Ok(uring) if uring.0.shares_buffers() => (Some(uring), AUTO_IO_URING.to_owned()),
                Ok(_) => (None, AUTO_EPOLL.to_owned()),
                Err(Error::Unavailable { reason }) => {
                    (None, format!("chosen by auto: io_uring cannot be used here: {reason}"))
                }
                Err(error) => return Err(error),
            },
        };
        let (driver, choice): (Box<dyn Driver>, _) = match uring {
            None => {
                let choice = Choice { backend: Backend::Epoll, reason };
                (Box::new(Epoll::new(waker.clone(), budget)?), choice)
            }
            Some((driver, features)) => {
                let choice = Choice { backend: Backend::IoUring, reason: format!("{reason}; {features}") };
                (Box::new(driver), choice)
            }
        };
        Ok(Self {
            driver,
            choice,
            timers: Timers::default(),
            epoch: Instant::now(),
            waker,
            scratch: Some(Scratch::new(receive_buffer)),
            fork,
            not_send: PhantomData,
        })
    }

    /// What this reactor runs on and why, for one line in the log.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// One pass: sends what is queued, waits for at most `timeout` (`None`: until something happens; zero:
    /// not at all), and hands every event to `handler`, with the reactor for it to use. Timers shorten the
    /// wait, an interrupting signal may end it. Returns the number of events.
    ///
    /// Without anything to do and without timers the wait has no end: an idle reactor makes no system calls.
    ///
    /// # Errors
    ///
    /// [`Error::Forked`] in a child of the process that made the reactor; [`Error::Reentered`] from inside
    /// a handler, and after a handler has panicked; [`Error::System`] when waiting fails, which the kernel
    /// does only for want of memory.
    pub fn turn<H>(&mut self, timeout: Option<Duration>, mut handler: H) -> Result<usize, Error>
    where
        H: FnMut(&mut Reactor, Event<'_>),
    {
        self.check()?;
        let mut scratch = self.scratch.take().ok_or(Error::Reentered)?;
        let result = self.turn_with(timeout, &mut scratch, &mut handler);
        self.scratch = Some(scratch);
        result
    }

    fn turn_with<H>(
        &mut self,
        timeout: Option<Duration>,
        scratch: &mut Scratch,
        handler: &mut H,
    ) -> Result<usize, Error>
    where
        H: FnMut(&mut Reactor, Event<'_>),
    {
        let due = self.timers.next().map(|due| Duration::from_nanos(due.saturating_sub(self.now())));
        self.driver.wait([timeout, due].into_iter().flatten().min())?;
        let mut count = 0;
        let mut handle = |reactor: &mut Self, event: Event<'_>| {
            count += 1;
            handler(reactor, event);
        };
        while let Some(event) = self.driver.next(scratch) {
            handle(self, event);
        }
        if self.timers.next().is_some() {
            // One reading of the clock, so that a handler that starts timers of no time cannot loop here.
            let now = self.now();
            while let Some(id) = self.timers.expire(now) {
                handle(self, Event::Timer { id });
            }
        }
        self.driver.flush();
        // What that has completed is reported at once, so that the next turn can wait; what these events
        // lead to comes in the next turn, so that a handler that sends on each `Sent` cannot loop here.
        for _ in 0..self.driver.pending() {
            let Some(event) = self.driver.next_pending() else { break };
            handle(self, event);
        }
        self.driver.flush();
        Ok(count)
    }

    /// Lets out now what was sent so far, instead of at the end of the turn: for a caller that is about to do something else
    /// for long. Waits for nothing; what of it is over is told of in the next turn.
    pub fn submit(&mut self) {
        self.driver.submit();
    }

    /// Starts to accept on a listening socket, which the reactor owns from now on and makes nonblocking:
    /// [`Event::Accepted`]. [`listener::listen`](crate::listener::listen) makes one.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the kernel cannot wait for the socket; [`Error::Full`]; [`Error::Forked`].
    pub fn accept(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.adopt_listener(socket, false)
    }

    /// The same for a socket on which other processes accept or have accepted, too, by a descriptor of their own: what comes is
    /// not lost on one that is stopped, or that has died. Each of those that wait is woken, and one of them accepts
    /// the connection. (With io_uring [`accept`](Self::accept) waits exclusively, `EPOLLEXCLUSIVE` in `epoll_ctl(2)`: it saves
    /// calls, and may wake whoever cannot answer, and nobody else.)
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    pub fn accept_shared(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.adopt_listener(socket, true)
    }

    fn adopt_listener(&mut self, socket: OwnedFd, shared: bool) -> Result<Token, Error> {
        self.check()?;
        ioctl_fionbio(&socket, true).map_err(Error::system("make a listener nonblocking (ioctl)"))?;
        self.driver.accept(socket, shared)
    }

    /// Stops accepting until [`resume_accept`](Self::resume_accept). Connections wait in the backlog. Does
    /// nothing for a token that names no listener, and in a forked child.
    pub fn pause_accept(&mut self, listener: Token) {
        if self.check().is_ok() {
            self.driver.set_accepting(listener, false);
        }
    }

    /// Accepts again after [`pause_accept`](Self::pause_accept) or [`Event::AcceptFailed`], which may come
    /// again if nothing has changed. Does nothing for a token that names no listener, and in a forked child.
    pub fn resume_accept(&mut self, listener: Token) {
        if self.check().is_ok() {
            self.driver.set_accepting(listener, true);
        }
    }

    /// Adopts a connected stream socket, TCP or Unix, blocking or not. Nothing is read from it before
    /// [`receive`](Self::receive); it can send at once.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::Forked`].
    pub fn stream(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.check()?;
        self.driver.stream(socket)
    }

    /// Starts to deliver what arrives, or resumes it after [`pause`](Self::pause): [`Event::Data`], at last
    /// [`Event::Eof`]. Does nothing when it is so already, and on a stream that has ended.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchToken`], [`Error::WrongKind`], [`Error::Forked`]; [`Error::System`] when the kernel
    /// cannot wait for the socket (`fs.epoll.max_user_watches`).
    pub fn receive(&mut self, stream: Token) -> Result<(), Error> {
        self.check()?;
        self.driver.receive(stream, false)
    }

    /// As [`receive`](Self::receive), but the bytes go where the caller wants them: [`Event::Readable`] asks for a
    /// [`read`](Self::read). Where the kernel has read already when it tells of it (io_uring, of streams with little
    /// input), it is [`Event::Data`] all the same.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_into(&mut self, stream: Token) -> Result<(), Error> {
        self.check()?;
        self.driver.receive(stream, true)
    }

    /// Whether the peer of a stream is known to have closed or failed, although something may be left to read before
    /// that is told. For who has no room for what is left, and still wants to notice.
    pub fn has_hung_up(&self, stream: Token) -> bool {
        self.driver.has_hung_up(stream)
    }

    /// Reads what has arrived, in answer to [`Event::Readable`], up to the length of `buffer`: how many bytes, or
    /// `None` when there is nothing now. An end and a failure are told by [`Event::Eof`] and [`Event::Failed`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchToken`], [`Error::WrongKind`], [`Error::Forked`].
    pub fn read(&mut self, stream: Token, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        self.check()?;
        self.driver.read(stream, buffer)
    }

    /// Delivers no [`Event::Data`] and no [`Event::Eof`] until [`receive`](Self::receive); bytes wait,
    /// mostly in the kernel, which lets the peer's window fill. Nothing is lost. That the peer resets the
    /// connection is noticed only by a send, or after the resumption.
    ///
    /// A datagram socket delivers nothing any more, for good: what comes waits in the kernel for whoever else has the
    /// socket. It can still send. Does nothing for other tokens, and in a forked child.
    pub fn pause(&mut self, stream: Token) {
        if self.check().is_ok() {
            self.driver.pause(stream);
        }
    }

    /// Queues `bytes` behind what is queued; they are copied only when they are few. They go out together
    /// with everything else that is queued for this stream, with epoll at the end of this turn, else at the
    /// start of the next. When the kernel has taken all: [`Event::Sent`]. There is no limit: who sends more
    /// than a slow peer reads looks at [`queued`](Self::queued).
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchToken`], also after [`close`](Self::close); [`Error::Ended`] after a failure;
    /// [`Error::WrongKind`], [`Error::Forked`].
    pub fn send(&mut self, stream: Token, bytes: Vec<u8>) -> Result<(), Error> {
        self.check()?;
        self.driver.send(stream, bytes)
    }

    /// Sends a copy of `parts`, as if they were one. With nothing queued they go out at once (with
    /// io_uring only if they are long), and only what the kernel does not take is copied; [`Event::Sent`]
    /// follows only if something was queued.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send). That the stream fails while sending is no error but [`Event::Failed`].
    pub fn send_slices(&mut self, stream: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        self.check()?;
        self.driver.send_slices(stream, parts)
    }

    /// Queues part of a file behind what is queued, to be sent with `sendfile(2)`, some of it per turn. It does not count as
    /// [`queued`](Self::queued), since it takes no memory. A file that has become shorter by the time ends the stream:
    /// [`Event::Failed`] with `ENODATA`, after what there was. While the file has to be fetched from a disk, all other
    /// streams wait.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); [`Error::System`] if the socket cannot be made nonblocking.
    pub fn send_file(&mut self, stream: Token, range: FileRange) -> Result<(), Error> {
        self.check()?;
        let socket = self.driver.socket(stream).ok_or(Error::NoSuchToken(stream))?;
        ioctl_fionbio(socket, true).map_err(Error::system("make a stream nonblocking (ioctl)"))?;
        self.driver.send_file(stream, range)
    }

    /// As [`queued`](Self::queued), with what is queued of files.
    pub fn unsent(&self, stream: Token) -> u64 {
        self.driver.queued(stream) as u64 + self.driver.queued_of_files(stream)
    }

    /// Bytes that were accepted by [`send`](Self::send) or [`send_slices`](Self::send_slices) and that the
    /// kernel has not taken; 0 for a token that names no stream. Goes on counting down after
    /// [`Close::AfterSend`].
    pub fn queued(&self, stream: Token) -> usize {
        self.driver.queued(stream)
    }

    /// Asks for [`Event::Low`], once, when [`queued`](Self::queued) of a stream is at most `bytes` (4 GiB count as the most), at once if it is; the last
    /// wish holds. Does nothing for a token that names no stream, and in a forked child.
    pub fn tell_low(&mut self, stream: Token, bytes: usize) {
        if self.check().is_ok() {
            self.driver.tell_low(stream, bytes);
        }
    }

    /// Ends a source of any kind. From now on its token names nothing, and the only event of it is
    /// [`Event::Closed`], once, when the descriptor is released: in this turn or the next, except for
    /// [`Close::AfterSend`] on a stream with output left. Such a stream may be closed again with
    /// [`Close::Now`] or [`Close::Reset`]. Other sources than streams close at once, however they are told.
    ///
    /// Does nothing for a token that names nothing, and in a forked child.
    pub fn close(&mut self, token: Token, how: Close) {
        if self.check().is_ok() {
            self.driver.close(token, how, false);
        }
    }

    /// Ends a listener or a stream and gives its descriptor back, with what was read but not delivered and what was
    /// queued but not sent: [`Event::Detached`], in this turn or the next. Another reactor, also in another process,
    /// can go on where this one ends. From now on the token names nothing; until `Detached` comes, a listener may
    /// still have [`Event::Accepted`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchToken`], also after [`close`](Self::close), except while that waits for what is queued
    /// ([`Close::AfterSend`]): closing is up to whoever goes on, then. [`Error::WrongKind`] for other sources;
    /// [`Error::Forked`].
    pub fn detach(&mut self, token: Token) -> Result<(), Error> {
        self.check()?;
        self.driver.detach(token)
    }

    /// Adopts a bound datagram socket, UDP or Unix, and starts to receive: [`Event::Datagram`].
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the kernel cannot wait for the socket; [`Error::Full`]; [`Error::Forked`].
    pub fn datagram(&mut self, socket: OwnedFd) -> Result<Token, Error> {
        self.check()?;
        self.driver.datagram(socket)
    }

    /// Sends one datagram now, with one `sendto(2)`. Nothing is queued.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when the kernel has no room; [`Error::System`] for what the kernel refuses, as a
    /// datagram that is too long or a Unix peer that is gone; [`Error::NoSuchToken`],
    /// [`Error::WrongKind`], [`Error::Forked`].
    pub fn send_to(&mut self, socket: Token, peer: &DatagramPeer, bytes: &[u8]) -> Result<(), Error> {
        self.check()?;
        self.driver.send_to(socket, peer, bytes)
    }

    /// Watches a descriptor of any pollable kind: [`Event::Ready`]. The reactor watches a duplicate, so the
    /// caller may close its own at any time; the open file stays open until [`unwatch`](Self::unwatch).
    ///
    /// # Errors
    ///
    /// [`Error::System`] for a descriptor that cannot be polled (a regular file), or at a limit of
    /// descriptors; [`Error::Full`]; [`Error::Forked`].
    pub fn watch(&mut self, fd: impl AsFd, interest: Interest, trigger: Trigger) -> Result<Token, Error> {
        self.check()?;
        let fd =
            fcntl_dupfd_cloexec(fd, 0).map_err(Error::system("duplicate a descriptor to watch (fcntl)"))?;
        self.driver.watch(fd, interest, trigger)
    }

    /// Ends a watch; no event follows, not even [`Event::Closed`]. Does nothing for a token that names
    /// nothing.
    pub fn unwatch(&mut self, watch: Token) {
        if self.check().is_ok() {
            self.driver.close(watch, Close::Now, true);
        }
    }

    /// Starts a timer: [`Event::Timer`], once, in the first turn that ends its wait when `after` is over,
    /// never earlier. The clock is monotonic and stands still while the machine sleeps; epoll counts whole
    /// milliseconds and rounds up.
    pub fn timer(&mut self, after: Duration) -> TimerId {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.timers.start(self.now().saturating_add(after))
    }

    /// Cancels a timer; `false` when it has fired or was cancelled before.
    pub fn cancel(&mut self, timer: TimerId) -> bool {
        self.timers.cancel(timer)
    }

    /// Reports signals of this thread and process as [`Event::Signal`] instead of letting them happen: they
    /// are blocked for the calling thread, and for those that it starts later. Threads that exist already
    /// must block them too, or they take them.
    ///
    /// # Errors
    ///
    /// [`Error::System`] at a limit of descriptors; [`Error::Full`]; [`Error::Forked`].
    pub fn signals(&mut self, set: &SignalSet) -> Result<Token, Error> {
        self.check()?;
        let fd = SignalFd::new(set).map_err(Error::system("open a descriptor for signals (signalfd)"))?;
        self.driver.signals(fd)
    }

    /// A handle that ends the wait from another thread: [`Event::Woken`].
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The descriptor of a source, for socket options and the like. Reading, writing or closing it behind
    /// the reactor's back is the caller's own risk.
    pub fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        self.driver.socket(token)
    }

    /// What another event loop can wait for: readable when [`turn`](Self::turn) has something to tell, timers apart. `None`
    /// with io_uring, where what is to be told of has yet to be asked for by a turn.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.driver.descriptor()
    }

    fn check(&self) -> Result<(), Error> {
        if self.fork.has_forked() { Err(Error::Forked) } else { Ok(()) }
    }

    /// Nanoseconds since the reactor was made.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").field("choice", &self.choice).finish_non_exhaustive()
    }
}
