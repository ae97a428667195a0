//! Letters by a System V message queue: type 1 for whoever is free, from 2 on those for task worker 0 and so on.

use std::num::NonZeroI32;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::process::geteuid;
use swoole_sys::msg::{self, Key, Limits, Open, Wait};

use super::letter::HEADER;
use crate::error::{Error, Result};

/// Bytes of the smallest message that the kernel must allow.
const LEAST: u64 = 1024;
const MODE: u32 = 0o600;

/// A queue of letters.
#[derive(Debug)]
pub(crate) struct MessageQueue {
    queue: msg::Queue,
    key: NonZeroI32,
    /// Bytes of the longest message.
    message_max: usize,
    /// That no other server has the same key; `None` where nobody else could.
    _lock: Option<OwnedFd>,
}

impl MessageQueue {
    /// That of this key, which may hold letters of an earlier server's, and of other programs'; made if there is none.
    pub(crate) fn open(key: NonZeroI32) -> Result<MessageQueue> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::setup(format!("use the message queue {key:#010x} (message_queue_key)"), error)
        };
        let limits = Limits::read().map_err(|error| failed(error.into()))?;
        let queue =
            msg::Queue::open(Key::Shared(key), Open::OrCreate, MODE).map_err(|error| match error {
                Errno::ACCESS => failed("it is another user's (ipcs -q)".into()),
                Errno::NOSPC => failed(FULL.into()),
                error => failed(std::io::Error::from(error).into()),
            })?;
        let stat = queue.stat().map_err(|error| failed(std::io::Error::from(error).into()))?;
        if stat.uid != geteuid().as_raw() {
            return Err(failed(format!("it is another user's, of uid {} (ipcs -q)", stat.uid).into()));
        }
        let message_max = limits.message_bytes_max.min(stat.bytes_max);
        if message_max < LEAST {
            let text = format!("it has room for {message_max} bytes: raise kernel.msgmax and kernel.msgmnb");
            return Err(failed(text.into()));
        }
        Ok(MessageQueue { queue, key, message_max: message_max as usize, _lock: None })
    }

    /// The same for a server, of which each key may have one.
    pub(crate) fn open_alone(key: NonZeroI32) -> Result<MessageQueue> {
        let lock = lock(key)?;
        Ok(MessageQueue { _lock: Some(lock), ..MessageQueue::open(key)? })
    }

    /// A new one that nobody knows. `record` is told its key before it exists, so that somebody can remove it whatever
    /// happens.
    pub(crate) fn create(record: impl Fn(NonZeroI32) -> std::io::Result<()>) -> Result<MessageQueue> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::setup("make the message queue of task_ipc_mode", error)
        };
        loop {
            let key = getrandom::u32().map_err(|error| failed(error.into()))?.cast_signed();
            let Some(key) = NonZeroI32::new(key) else { continue };
            record(key).map_err(|error| failed(error.into()))?;
            match msg::Queue::open(Key::Shared(key), Open::New, MODE) {
                Ok(_) => return MessageQueue::open(key),
                Err(Errno::EXIST) => {}
                Err(Errno::NOSPC) => return Err(failed(FULL.into())),
                Err(error) => return Err(failed(std::io::Error::from(error).into())),
            }
        }
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

    /// False if there is no room now.
    pub(crate) fn send(&self, queue: usize, bytes: &[u8]) -> rustix::io::Result<bool> {
        match self.queue.send(queue as i64 + 1, bytes, Wait::Never) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How much of `buffer` the next letter takes; `None` if there is none now.
    pub(crate) fn receive(&self, queue: usize, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
        match self.queue.receive(queue as i64 + 1, buffer, Wait::Never) {
            Ok((_, len)) => Ok(Some(len)),
            Err(Errno::NOMSG | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }
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
