//! The queue, its types and its pieces.

use std::collections::VecDeque;
use std::num::NonZeroI32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use swoole_sys::msg::{self, Key, Limits, Open, Wait};

use crate::error::{Corrupt, Error};
use crate::fragment::{Assembler, check_size, pieces};
use crate::wait::Deadline;

/// Bytes before each piece.
const HEADER: usize = 16;
/// Senders whose messages may be half-received at the same time; the one silent for longest is forgotten
/// first (it was killed in the middle, most likely).
const SENDERS_MAX: usize = 64;
const LOOK_AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(10);

/// Which messages a receive takes (msgop(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The oldest, of any type.
    Any,
    /// The oldest of this type (1 or more).
    Type(i64),
    /// The oldest of the lowest type that is at most this (1 or more).
    UpTo(i64),
}

/// A message queue: any number of senders and receivers, in any processes.
///
/// The process that made a queue with [`private`](Queue::private) or [`create`](Queue::create) owns it, and
/// removes it, with what is in it, when it drops the value. Forked children may use their copy and drop it.
///
/// ```
/// use swoole_ipc::msgqueue::{Queue, Select};
///
/// let mut queue = Queue::private("tasks")?;
/// queue.send(2, b"second class", None)?;
/// queue.send(1, b"first class", None)?;
/// let mut message = Vec::new();
/// assert_eq!(queue.recv(Select::UpTo(9), &mut message, None)?, 1);
/// assert_eq!(message, b"first class");
/// # Ok::<(), swoole_ipc::Error>(())
/// ```
#[derive(Debug)]
pub struct Queue {
    name: String,
    queue: msg::Queue,
    /// The process that removes it, if any.
    owner: Option<u32>,
    handle: u32,
    piece_max: usize,
    buffer: Box<[u8]>,
    senders: VecDeque<Partial>,
}

/// A message of one sender that is not complete yet.
#[derive(Debug)]
struct Partial {
    sender: u64,
    next_index: u32,
    assembler: Assembler,
}

impl Queue {
    /// A new queue that only this process and its children know. `name` is for errors.
    ///
    /// # Errors
    /// [`Error::QueueLimit`] when the system has as many queues as it may; [`Error::Os`].
    pub fn private(name: &str) -> Result<Queue, Error> {
        Queue::new(name.to_owned(), Key::Private, Open::New, true)
    }

    /// The queue of `key`, made if there is none, and owned by this process either way: it may hold messages
    /// of an earlier run. Only this user's processes may use it.
    ///
    /// # Errors
    /// As [`private`](Queue::private).
    pub fn create(key: NonZeroI32) -> Result<Queue, Error> {
        Queue::new(format!("{key:#x}"), Key::Shared(key), Open::OrCreate, true)
    }

    /// The queue of `key`, which somebody else owns.
    ///
    /// # Errors
    /// [`Error::Os`] when there is none, or it is another user's.
    pub fn open(key: NonZeroI32) -> Result<Queue, Error> {
        Queue::new(format!("{key:#x}"), Key::Shared(key), Open::Existing, false)
    }

    fn new(name: String, key: Key, open: Open, owned: bool) -> Result<Queue, Error> {
        static HANDLES: AtomicU32 = AtomicU32::new(0);

        let limits = Limits::read().map_err(Error::os("reading /proc/sys/kernel/msg*", &name))?;
        let queue = msg::Queue::open(key, open, 0o600).map_err(|error| match error {
            Errno::NOSPC => Error::QueueLimit {
                name: name.clone(),
                limits,
                remedy: "there are as many as kernel.msgmni allows: remove unused ones (ipcs -q, ipcrm -q ID) or raise it",
            },
            error => Error::os("msgget", &name)(error),
        })?;
        let mut queue = Queue {
            queue,
            owner: owned.then(std::process::id),
            handle: HANDLES.fetch_add(1, Ordering::Relaxed),
            piece_max: 0,
            buffer: Box::default(),
            senders: VecDeque::new(),
            name,
        };
        let stat = queue.queue.stat().map_err(Error::os("msgctl(IPC_STAT)", &queue.name))?;
        // The kernel waits for ever to put a message into a queue that is too small for it.
        let kernel_max = usize::try_from(limits.message_bytes_max.min(stat.bytes_max)).unwrap_or(usize::MAX);
        queue.piece_max = kernel_max.saturating_sub(HEADER);
        if queue.piece_max == 0 {
            let remedy = "kernel.msgmax and kernel.msgmnb must be above 16: raise them by sysctl -w";
            return Err(Error::QueueLimit { name: queue.name.clone(), limits, remedy });
        }
        queue.buffer = vec![0; kernel_max].into_boxed_slice();
        Ok(queue)
    }

    /// The kernel's number for the queue, as `ipcs -q` shows it.
    pub fn id(&self) -> i32 {
        self.queue.id()
    }

    /// The name or key given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Largest message that travels in one piece, bytes: all that [`try_send`](Queue::try_send) takes, and
    /// all that several receivers of one type can share.
    pub fn piece_max(&self) -> usize {
        self.piece_max
    }

    /// Sends `message` with the type `mtype` (1 or more), waiting for room up to `timeout`.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::PeerGone`] when the queue was removed; [`Error::TooLarge`];
    /// [`Error::MessageType`] when `mtype` is below 1; [`Error::Os`].
    pub fn send(&mut self, mtype: i64, message: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        check_size(message)?;
        check_type(mtype)?;
        let mut pause = Pause::new(Deadline::after(timeout));
        for (index, (flags, piece)) in (0..).zip(pieces(message, self.piece_max)) {
            let wait = if timeout.is_none() { Wait::Block } else { Wait::Never };
            while !self.push(mtype, flags, index, piece, wait)? {
                pause.sleep()?;
            }
        }
        Ok(())
    }

    /// Sends `message` if there is room for it now.
    ///
    /// # Errors
    /// [`Error::Full`]; [`Error::TooLarge`] beyond [`piece_max`](Queue::piece_max); otherwise as
    /// [`send`](Queue::send).
    pub fn try_send(&mut self, mtype: i64, message: &[u8]) -> Result<(), Error> {
        check_size(message)?;
        check_type(mtype)?;
        if message.len() > self.piece_max {
            let operation = "try_send on a message queue (kernel.msgmax or kernel.msgmnb less 16)";
            return Err(Error::TooLarge { operation, size: message.len(), limit: self.piece_max });
        }
        for (flags, piece) in pieces(message, self.piece_max) {
            if !self.push(mtype, flags, 0, piece, Wait::Never)? {
                return Err(Error::Full);
            }
        }
        Ok(())
    }

    /// Replaces the content of `into` by the next message that `select` takes, waiting for it up to
    /// `timeout`. Returns its type.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::PeerGone`] when the queue was removed; [`Error::Corrupt`] when a message
    /// has no header of ours, or somebody else took a part of it; [`Error::MessageType`] when `select` names
    /// a type below 1; [`Error::Os`].
    pub fn recv(
        &mut self,
        select: Select,
        into: &mut Vec<u8>,
        timeout: Option<Duration>,
    ) -> Result<i64, Error> {
        let mut pause = Pause::new(Deadline::after(timeout));
        let wait = if timeout.is_none() { Wait::Block } else { Wait::Never };
        loop {
            match self.pull(select, into, wait)? {
                Some((mtype, true)) => return Ok(mtype),
                Some((_, false)) => {}
                None => pause.sleep()?,
            }
        }
    }

    /// Replaces the content of `into` by the next message that `select` takes, if it is there. Returns its
    /// type.
    ///
    /// # Errors
    /// [`Error::Empty`] when none is there as a whole; otherwise as [`recv`](Queue::recv).
    pub fn try_recv(&mut self, select: Select, into: &mut Vec<u8>) -> Result<i64, Error> {
        while let Some((mtype, complete)) = self.pull(select, into, Wait::Never)? {
            if complete {
                return Ok(mtype);
            }
        }
        Err(Error::Empty)
    }

    /// Removes the queue and what is in it; all who wait on it get [`Error::PeerGone`]. Removing twice is no
    /// error.
    ///
    /// # Errors
    /// [`Error::Os`] when the queue is another user's.
    pub fn remove(&self) -> Result<(), Error> {
        match self.queue.remove() {
            Ok(()) | Err(Errno::IDRM | Errno::INVAL) => Ok(()),
            Err(error) => Err(self.os("msgctl(IPC_RMID)")(error)),
        }
    }

    /// Two handles to the same queue, which no drop of them removes.
    pub(super) fn split(mut self) -> (Queue, Queue) {
        self.owner = None;
        let twin = Queue {
            name: self.name.clone(),
            queue: self.queue,
            owner: None,
            handle: self.handle,
            piece_max: self.piece_max,
            buffer: self.buffer.clone(),
            senders: VecDeque::new(),
        };
        (self, twin)
    }

    /// One msgsnd(2). False when there is no room and `wait` forbids to wait for it.
    pub(super) fn push(
        &mut self,
        mtype: i64,
        flags: u32,
        index: u32,
        piece: &[u8],
        wait: Wait,
    ) -> Result<bool, Error> {
        let sender = u64::from(std::process::id()) << 32 | u64::from(self.handle);
        let (bytes, _) = self.buffer.split_at_mut(HEADER + piece.len());
        bytes[..8].copy_from_slice(&sender.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..HEADER].copy_from_slice(&index.to_le_bytes());
        bytes[HEADER..].copy_from_slice(piece);
        loop {
            match self.queue.send(mtype, bytes, wait) {
                Ok(()) => return Ok(true),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed("msgsnd", error)),
            }
        }
    }

    /// One msgrcv(2): the type, and whether a message is complete; `None` when there is nothing and `wait`
    /// forbids to wait for it.
    pub(super) fn pull(
        &mut self,
        select: Select,
        into: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<Option<(i64, bool)>, Error> {
        let selector = match select {
            Select::Any => 0,
            Select::Type(mtype) => check_type(mtype)?,
            Select::UpTo(mtype) => -check_type(mtype)?,
        };
        let (mtype, len) = loop {
            match self.queue.receive(selector, &mut self.buffer, wait) {
                Ok(received) => break received,
                Err(Errno::NOMSG) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed("msgrcv", error)),
            }
        };
        let complete = self.assemble(len, into)?;
        Ok(Some((mtype, complete)))
    }

    fn assemble(&mut self, len: usize, into: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let short =
            Corrupt { what: "size of a queued piece", value: len as u64, range: HEADER as u64..=u64::MAX };
        let bytes = &self.buffer[..len];
        let (sender, rest) = bytes.split_first_chunk().ok_or_else(|| short.clone())?;
        let (flags, rest) = rest.split_first_chunk().ok_or_else(|| short.clone())?;
        let (index, piece) = rest.split_first_chunk().ok_or(short)?;
        let (sender, flags) = (u64::from_le_bytes(*sender), u32::from_le_bytes(*flags));
        let index = u32::from_le_bytes(*index);

        let known = self.senders.iter().position(|partial| partial.sender == sender);
        let mut partial = known.and_then(|at| self.senders.remove(at)).unwrap_or_else(|| Partial {
            sender,
            next_index: 0,
            assembler: Assembler::default(),
        });
        let expected = if index == 0 { 0 } else { partial.next_index };
        if index != expected {
            let range = expected.into()..=expected.into();
            return Err(Corrupt {
                what: "index of a piece (do several receivers share the type?)",
                value: index.into(),
                range,
            });
        }
        let complete = partial.assembler.add(flags, piece, into)?;
        if !complete {
            partial.next_index = index.wrapping_add(1);
            if self.senders.len() == SENDERS_MAX {
                self.senders.pop_front();
            }
            self.senders.push_back(partial);
        }
        Ok(complete)
    }

    fn failed(&self, operation: &'static str, error: Errno) -> Error {
        match error {
            // msgop(2): EINVAL for an id that no longer exists; sizes were checked.
            Errno::IDRM | Errno::INVAL => Error::PeerGone,
            error => self.os(operation)(error),
        }
    }

    fn os(&self, operation: &'static str) -> impl FnOnce(Errno) -> Error {
        Error::os(operation, &self.name)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.owner == Some(std::process::id()) {
            // Nobody is left to tell; `ipcs -q` would show it.
            let _ = self.remove();
        }
    }
}

fn check_type(mtype: i64) -> Result<i64, Error> {
    if mtype >= 1 { Ok(mtype) } else { Err(Error::MessageType { mtype }) }
}

/// Sleeps for growing intervals until the deadline.
struct Pause {
    deadline: Deadline,
    next: Duration,
}

impl Pause {
    fn new(deadline: Deadline) -> Pause {
        Pause { deadline, next: *LOOK_AGAIN.start() }
    }

    fn sleep(&mut self) -> Result<(), Error> {
        let Some(left) = self.deadline.left() else {
            return Err(Error::Timeout);
        };
        std::thread::sleep(self.next.min(left));
        self.next = (self.next * 2).min(*LOOK_AGAIN.end());
        Ok(())
    }
}
