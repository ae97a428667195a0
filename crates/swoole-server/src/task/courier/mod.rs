//! Letters: how a task worker learns of a task where `task_ipc_mode` is not `ring`.
//!
//! ```text
//!     asker:  slot ──> letter ──┬──> socket, or message queue ──┬──> task worker: slot
//!                               └──> full: the slot's queue ────┘
//! ```
//!
//! A letter names a slot of the [`Store`](super::store) and which use of it is meant. Nobody waits for room: what the socket
//! or the queue has no room for goes the way of `ring`, and so does what the same asker asks behind it. Nobody waits for a
//! letter either: sleepers are woken by their bells, as with `ring`.
//!
//! **With a `message_queue_key`** the queue outlives the server. Then a letter has the payload with it, or the name of a file
//! in `task_tmpdir` that has it ([`Spill`]). A task has a file if it is too large for a letter; if the queue was full; and
//! always under `task_retries`, since then a copy must outlive also those who have begun it. A file whose server is gone is
//! a task to be done, whether there is a letter or not; whoever renames it has it. Without `task_retries` it is removed
//! before the task is begun, with them when it is done. So with a `kill -9` of everything:
//!
//! - what nobody had begun is done by the next server with that key,
//! - what somebody had begun is lost, which the next server says, or with `task_retries` begun again, also if it had only just
//!   ended,
//! - what [`task_wait`](crate::Worker::task_wait) had taken back may be done.
//!
//! What comes from another program by letter has no file; under `task_retries` it gets one when it is begun.
//!
//! # From other programs
//!
//! Rust programs have [`TaskQueue`](crate::TaskQueue). Others put messages into the queue of that key, 8 KiB in all at most
//! (`kernel.msgmax`), of type 1 for whoever is free, or 2 and the number of a task worker; the layout is this:
//!
#![doc = "```text"]
#![doc = include_str!("letter.txt")]
#![doc = "```"]

mod letter;
mod queue;
mod sockets;

use std::num::NonZeroI32;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use self::letter::{HEADER, Letter};
pub(crate) use self::queue::{MessageQueue, remove};
use self::sockets::Sockets;
use super::spill::Spill;
use crate::config::{Config, TaskIpcMode};
use crate::error::{Error, Result};

/// How letters go.
#[derive(Debug)]
pub(crate) struct Courier {
    record: Record,
    carrier: Carrier,
    /// Letters outlive the server.
    is_kept: bool,
    /// What somebody has begun is begun again.
    retries: bool,
    /// Askers choose the task worker.
    chooses: bool,
    /// Nothing goes any more, and this process has said so.
    is_broken: AtomicBool,
}

#[derive(Debug)]
enum Carrier {
    Sockets(Sockets),
    Queue(MessageQueue),
}

/// What a process must know that was not forked, besides descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which server this is, never 0. A number of TOML's.
    pub(crate) server: i64,
    /// 0 where there is no queue.
    pub(crate) key: i32,
}

/// What a task worker gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// So many bytes.
    Letter(usize),
    Nothing,
    /// There is no queue any more, and this process learns of it now.
    Gone,
}

impl Courier {
    /// `None` under `ring`. `spill` remembers what must be removed.
    pub(crate) fn create(config: &Config, spill: &Spill) -> Result<Option<Courier>> {
        let carrier = match (config.task_ipc_mode, NonZeroI32::new(config.message_queue_key.cast_signed())) {
            _ if config.task_worker_num == 0 => return Ok(None),
            (TaskIpcMode::Ring, _) => return Ok(None),
            (TaskIpcMode::Unix, _) => {
                let sockets = Sockets::create(queue_num(config));
                let failed = |error| Error::setup("make the sockets of task_ipc_mode = unix", error);
                Carrier::Sockets(sockets.map_err(|error| failed(std::io::Error::from(error)))?)
            }
            (_, Some(key)) => Carrier::Queue(MessageQueue::open_alone(key)?),
            (_, None) => Carrier::Queue(MessageQueue::create(queue_num(config), spill)?),
        };
        let key = if let Carrier::Queue(queue) = &carrier { queue.key().get() } else { 0 };
        let server = getrandom::u64().map_err(|error| Error::setup("number the server", error))?;
        let record = Record { server: (server >> 1).max(1).cast_signed(), key };
        Ok(Some(Courier::new(config, carrier, record)))
    }

    /// That of another process.
    pub(crate) fn join(config: &Config, record: Record, fds: Vec<OwnedFd>) -> Result<Courier> {
        let carrier = match NonZeroI32::new(record.key) {
            Some(key) if config.message_queue_key != 0 => Carrier::Queue(MessageQueue::open(key)?),
            Some(key) => Carrier::Queue(MessageQueue::join(key, queue_num(config))?),
            None => Carrier::Sockets(Sockets::from_fds(fds)),
        };
        Ok(Courier::new(config, carrier, record))
    }

    fn new(config: &Config, carrier: Carrier, record: Record) -> Courier {
        Courier {
            record,
            carrier,
            is_kept: config.message_queue_key != 0,
            retries: config.task_retries > 0,
            chooses: config.task_ipc_mode == TaskIpcMode::Msgqueue,
            is_broken: AtomicBool::new(false),
        }
    }

    pub(crate) fn record(&self) -> Record {
        self.record
    }

    pub(crate) fn server(&self) -> u64 {
        self.record.server.cast_unsigned()
    }

    /// All descriptors, in the order in which another process [joins](Courier::join) with them.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match &self.carrier {
            Carrier::Sockets(sockets) => sockets.fds().collect(),
            Carrier::Queue(_) => Vec::new(),
        }
    }

    /// How many those are.
    pub(crate) fn fd_num(config: &Config) -> usize {
        let is_unix = config.task_worker_num > 0 && config.task_ipc_mode == TaskIpcMode::Unix;
        if is_unix { 2 * queue_num(config) } else { 0 }
    }

    /// What a process keeps that only asks.
    pub(crate) fn asker_keep(&self) -> Vec<RawFd> {
        match &self.carrier {
            Carrier::Sockets(sockets) => sockets.senders().collect(),
            Carrier::Queue(queue) => queue.lock().map(|lock| lock.as_raw_fd()).into_iter().collect(),
        }
    }

    /// What a task worker keeps, and who forks it.
    pub(crate) fn task_worker_keep(&self) -> Vec<RawFd> {
        self.fds().into_iter().map(|fd| fd.as_raw_fd()).chain(self.asker_keep()).collect()
    }

    /// Whether it outlives the server.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether askers choose the task worker.
    pub(crate) fn chooses(&self) -> bool {
        self.chooses
    }

    /// Whether such a payload must lie in a file.
    pub(crate) fn needs_file(&self, len: usize) -> bool {
        self.is_kept && (self.retries || len > self.payload_max())
    }

    /// Whether the file of a payload goes before its task is begun.
    pub(crate) fn ends_files_early(&self) -> bool {
        self.is_kept && !self.retries
    }

    fn payload_max(&self) -> usize {
        match &self.carrier {
            Carrier::Sockets(_) => 0,
            Carrier::Queue(queue) => queue.payload_max(),
        }
    }

    /// False if there is no room now. `rest` is what follows the header.
    pub(crate) fn send(&self, queue: usize, letter: &Letter, rest: &[u8]) -> bool {
        if self.is_broken.load(Relaxed) {
            return false;
        }
        let header = letter.header();
        let sent = match &self.carrier {
            Carrier::Sockets(sockets) => sockets.send(queue, &header),
            Carrier::Queue(it) if rest.is_empty() => it.send(queue, &header),
            Carrier::Queue(it) => it.send(queue, &[&header, rest].concat()),
        };
        sent.unwrap_or_else(|error| {
            self.is_gone("send", error);
            false
        })
    }

    /// The next letter of this queue, into the front of `buffer`.
    pub(crate) fn receive(&self, queue: usize, buffer: &mut Vec<u8>) -> Received {
        if self.is_broken.load(Relaxed) {
            return Received::Nothing;
        }
        loop {
            if buffer.is_empty() {
                // Only what outlives the server has its payload with it.
                buffer.resize(HEADER + if self.is_kept { self.payload_max() } else { 0 }, 0);
            }
            let received = match &self.carrier {
                Carrier::Sockets(sockets) => sockets.receive(queue, buffer),
                Carrier::Queue(it) => it.receive(queue, buffer),
            };
            match received {
                Ok(Some(len)) => return Received::Letter(len),
                Ok(None) => return Received::Nothing,
                // The system's limit has grown since.
                Err(Errno::TOOBIG) if buffer.len() < LONGEST => buffer.resize(2 * buffer.len(), 0),
                Err(error) if self.is_gone("receive", error) => return Received::Gone,
                Err(_) => return Received::Nothing,
            }
        }
    }

    /// Whether this is news.
    fn is_gone(&self, what: &str, error: Errno) -> bool {
        let is_new = !self.is_broken.swap(true, Relaxed);
        if is_new {
            tracing::error!(
                "{what} by the queue for tasks: {error}; tasks go through shared memory from now on"
            );
        }
        is_new
    }
}

/// That for whoever is free, and one for each task worker.
fn queue_num(config: &Config) -> usize {
    usize::from(config.task_worker_num) + 1
}

/// Bytes of the longest message that anybody would allow.
const LONGEST: usize = 64 << 20;
