//! Letters by System V message queues: type 1 for whoever is free, from 2 on those for task worker 0 and so on.
//!
//! What outlives its server is one queue, which other programs know. Else each type has one of its own: in a common one the
//! kernel looks for a task worker's letter past all those of the others.

use std::num::NonZeroI32;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::process::geteuid;
use swoole_sys::msg::{self, Key, Limits, Open, Wait};

use super::letter::HEADER;
use crate::error::{Error, Result};
use crate::task::spill::Spill;

/// Bytes of the smallest message that the kernel must allow.
const LEAST: u64 = 1024;
const MODE: u32 = 0o600;

/// A queue of letters, or one for each type.
#[derive(Debug)]
pub(crate) struct MessageQueue {
    /// By type, from 1 on; or the only one.
    queues: Vec<msg::Queue>,
    /// The first one's. The others have those that follow.
    key: NonZeroI32,
    /// Bytes of the longest message.
    message_max: usize,
    /// That no other server has the same key; `None` where nobody else could.
    _lock: Option<OwnedFd>,
}

impl MessageQueue {
    /// That of this key, which may hold letters of an earlier server's, and of other programs'; made if there is none.
    pub(crate) fn open(key: NonZeroI32) -> Result<MessageQueue> {
        MessageQueue::join(key, 1)
    }

    /// The same for a server, of which each key may have one.
    pub(crate) fn open_alone(key: NonZeroI32) -> Result<MessageQueue> {
        let lock = lock(key)?;
        Ok(MessageQueue { _lock: Some(lock), ..MessageQueue::open(key)? })
    }

    /// New ones that nobody knows, for so many types. `spill` is told their keys before they exist, so that somebody can remove
    /// them whatever happens.
    pub(crate) fn create(types: usize, spill: &Spill) -> Result<MessageQueue> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::setup("make the message queues of task_ipc_mode", error)
        };
        'keys: loop {
            let random = getrandom::u32().map_err(|error| failed(error.into()))?;
            // With room for those that follow.
            let Some(first) = NonZeroI32::new((random >> 2).cast_signed()) else { continue };
            for key in keys(first, types) {
                spill.remember_queue(key).map_err(|error| failed(error.into()))?;
                let Err(error) = msg::Queue::open(Key::Shared(key), Open::New, MODE) else { continue };
                // It is somebody else's, or nobody's.
                spill.forget_queue(key);
                return Err(match error {
                    Errno::EXIST => continue 'keys,
                    Errno::NOSPC => failed(FULL.into()),
                    error => failed(std::io::Error::from(error).into()),
                });
            }
            return MessageQueue::join(first, types);
        }
    }

    /// Those of a server, for so many types, or the one for all.
    pub(crate) fn join(key: NonZeroI32, types: usize) -> Result<MessageQueue> {
        let limits = Limits::read().map_err(|error| unusable(key, error))?;
        let mut all = MessageQueue { queues: Vec::new(), key, message_max: usize::MAX, _lock: None };
        for key in keys(key, types) {
            let (queue, message_max) = open(key, &limits)?;
            all.queues.push(queue);
            all.message_max = all.message_max.min(message_max);
        }
        Ok(all)
    }

    pub(crate) fn key(&self) -> NonZeroI32 {
        self.key
    }

    pub(crate) fn lock(&self) -> Option<&OwnedFd> {
        self._lock.as_ref()
    }

    /// Bytes of the longest payload that goes in a letter.
    pub(crate) fn payload_max(&self) -> usize {
        self.message_max - HEADER
    }

    fn queue(&self, queue: usize) -> &msg::Queue {
        self.queues.get(queue).unwrap_or(&self.queues[0])
    }

    /// False if there is no room now.
    pub(crate) fn send(&self, queue: usize, bytes: &[u8]) -> rustix::io::Result<bool> {
        match self.queue(queue).send(queue as i64 + 1, bytes, Wait::Never) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How much of `buffer` the next letter takes; `None` if there is none now.
    pub(crate) fn receive(&self, queue: usize, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
        match self.queue(queue).receive(queue as i64 + 1, buffer, Wait::Never) {
            Ok((_, len)) => Ok(Some(len)),
            Err(Errno::NOMSG | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn keys(first: NonZeroI32, types: usize) -> impl Iterator<Item = NonZeroI32> {
    (0..types).filter_map(move |step| NonZeroI32::new(first.get().wrapping_add(step as i32)))
}

/// The queue of this key, and the bytes of its longest message; made if there is none.
fn open(key: NonZeroI32, limits: &Limits) -> Result<(msg::Queue, usize)> {
    let queue = msg::Queue::open(Key::Shared(key), Open::OrCreate, MODE).map_err(|error| match error {
        Errno::ACCESS => unusable(key, "it is another user's (ipcs -q)"),
        Errno::NOSPC => unusable(key, FULL),
        error => unusable(key, std::io::Error::from(error)),
    })?;
    let stat = queue.stat().map_err(|error| unusable(key, std::io::Error::from(error)))?;
    if stat.uid != geteuid().as_raw() {
        return Err(unusable(key, format!("it is another user's, of uid {} (ipcs -q)", stat.uid)));
    }
    let message_max = limits.message_bytes_max.min(stat.bytes_max);
    if message_max < LEAST {
        let text = format!("it has room for {message_max} bytes: raise kernel.msgmax and kernel.msgmnb");
        return Err(unusable(key, text));
    }
    Ok((queue, message_max as usize))
}

fn unusable(key: NonZeroI32, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::setup(format!("use the message queue {key:#010x} (message_queue_key)"), error)
}

const FULL: &str = "there are as many as kernel.msgmni allows (ipcs -q)";

/// Removes the queue of a server that is gone.
pub(crate) fn remove(key: NonZeroI32) {
    // It may never have come to be.
    if let Ok(queue) = msg::Queue::open(Key::Shared(key), Open::Existing, MODE) {
        let _ = queue.remove();
    }
}

/// A name that one process tree at a time can have, and that is free when its last process is gone: an abstract unix address.
fn lock(key: NonZeroI32) -> Result<OwnedFd> {
    let failed = |error: Errno| {
        let what = format!("be the only server of message_queue_key = {key:#010x}");
        match error {
            Errno::ADDRINUSE => Error::setup(what, "another one runs"),
            error => Error::setup(what, std::io::Error::from(error)),
        }
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(failed)?;
    let name = format!("swoole-message-queue-{key:08x}-{}", geteuid().as_raw());
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed)?;
    bind(&socket, &address).map_err(failed)?;
    Ok(socket)
}
