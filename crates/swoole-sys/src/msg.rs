//! System V message queues: `msgget(2)`, `msgop(2)`, `msgctl(2)`, `sysvipc(7)`.
//!
//! A queue belongs to the kernel. It outlives every process that uses it, until somebody removes it
//! ([`Queue::remove`]) or the machine stops; it is no descriptor, so it cannot be polled; and by default one
//! message has at most 8 KiB, one queue 16 KiB (see [`Limits`]).

use std::num::NonZeroI32;
use std::{fs, io};

use rustix::io::Result;
use rustix::process::Pid;

/// How a queue is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// By nobody: each [`Queue::open`] makes another one (`IPC_PRIVATE`). Forked children share its id.
    Private,
    /// By all who know the number.
    Shared(NonZeroI32),
}

/// What [`Queue::open`] does when there is a queue with the key, and when there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// `ENOENT` when there is none.
    Existing,
    /// Make it when there is none (`IPC_CREAT`).
    OrCreate,
    /// `EEXIST` when there is one (`IPC_CREAT | IPC_EXCL`).
    New,
}

/// Whether a call waits for room or for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until there is; a signal handler that runs meanwhile ends the wait with `EINTR`.
    Block,
    /// Not at all (`IPC_NOWAIT`): `EAGAIN` for room, `ENOMSG` for a message.
    Never,
}

/// The id of a message queue. Copies are the same queue; dropping one removes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    id: libc::c_int,
}

/// What a queue holds and may hold: `struct msqid_ds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Messages in the queue.
    pub messages: u64,
    /// Bytes in the queue.
    pub bytes: u64,
    /// Bytes that fit in.
    pub bytes_max: u64,
    /// The effective user id of its owner.
    pub uid: u32,
    /// Who sent last, if anybody has.
    pub last_sender: Option<Pid>,
    /// Who received last, if anybody has.
    pub last_receiver: Option<Pid>,
}

impl Queue {
    /// Finds or makes a queue. The low nine bits of `mode` are the permissions of a new one, as of a file.
    ///
    /// # Errors
    ///
    /// `ENOENT` and `EEXIST` by the rule of `open`; `EACCES` when the queue's mode forbids it; `ENOSPC` when
    /// the system has as many queues as it may ([`Limits::queues_max`]): `ipcs -q` shows whose they are.
    pub fn open(key: Key, open: Open, mode: u32) -> Result<Self> {
        let key = match key {
            Key::Private => libc::IPC_PRIVATE,
            Key::Shared(key) => key.get(),
        };
        let how = match open {
            Open::Existing => 0,
            Open::OrCreate => libc::IPC_CREAT,
            Open::New => libc::IPC_CREAT | libc::IPC_EXCL,
        };
        // SAFETY: msgget takes numbers only.
        let id = unsafe { libc::msgget(key, how | (mode & 0o777).cast_signed()) };
        crate::check(id).map(|id| Self { id })
    }

    /// The kernel's number for the queue, as `ipcs -q` shows it.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Puts a message with the type `mtype`, 1 or more, at the end of the queue.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `mtype` is below 1 or the message is longer than [`Limits::message_bytes_max`]; `EAGAIN`
    /// without room under [`Wait::Never`]; `EIDRM` or `EINVAL` when the queue is gone; `EACCES`; `EINTR`.
    pub fn send(&self, mtype: i64, bytes: &[u8], wait: Wait) -> Result<()> {
        let mut message = Vec::with_capacity(size_of::<libc::c_long>() + bytes.len());
        message.extend_from_slice(&mtype.to_ne_bytes());
        message.extend_from_slice(bytes);
        // SAFETY: the buffer is a long followed by `bytes.len()` bytes, as msgsnd reads it; the kernel
        // copies and does not care for alignment.
        let sent = unsafe { libc::msgsnd(self.id, message.as_ptr().cast(), bytes.len(), flags(wait)) };
        crate::check(sent).map(drop)
    }

    /// Takes a message out of the queue into the front of `buffer`, and returns its type and length.
    ///
    /// `mtype` selects: 0 the first of all, a positive number the first of that type, a negative one the
    /// first of the lowest type that is at most its absolute value.
    ///
    /// # Errors
    ///
    /// `ENOMSG` when there is none under [`Wait::Never`]; `E2BIG` when it is longer than `buffer`, in which
    /// case it stays in the queue; `EIDRM` or `EINVAL` when the queue is gone; `EACCES`; `EINTR`.
    pub fn receive(&self, mtype: i64, buffer: &mut [u8], wait: Wait) -> Result<(i64, usize)> {
        const TYPE_LEN: usize = size_of::<libc::c_long>();
        let mut message: Vec<u8> = Vec::with_capacity(TYPE_LEN + buffer.len());
        // SAFETY: there is room for a long and `buffer.len()` bytes, as msgrcv writes them.
        let received =
            unsafe { libc::msgrcv(self.id, message.as_mut_ptr().cast(), buffer.len(), mtype, flags(wait)) };
        let Ok(len) = usize::try_from(received) else { return Err(crate::last_error()) };
        // SAFETY: the kernel has written the type and `len` bytes, and `len` is at most `buffer.len()`.
        unsafe { message.set_len(TYPE_LEN + len) };
        let (mtype, bytes) = message.split_at(TYPE_LEN);
        buffer[..len].copy_from_slice(bytes);
        let mtype = mtype.first_chunk().copied().map_or(0, libc::c_long::from_ne_bytes);
        Ok((mtype, len))
    }

    /// What the queue holds and may hold (`IPC_STAT`).
    ///
    /// # Errors
    ///
    /// `EIDRM` or `EINVAL` when the queue is gone; `EACCES` without the right to read it.
    pub fn stat(&self) -> Result<Stat> {
        let raw = self.raw_stat()?;
        Ok(Stat {
            messages: raw.msg_qnum,
            bytes: raw.__msg_cbytes,
            bytes_max: raw.msg_qbytes,
            uid: raw.msg_perm.uid,
            last_sender: Pid::from_raw(raw.msg_lspid),
            last_receiver: Pid::from_raw(raw.msg_lrpid),
        })
    }

    /// Makes the queue hold up to `bytes` (`IPC_SET`).
    ///
    /// # Errors
    ///
    /// `EPERM` for who is not the owner, and above [`Limits::queue_bytes_max`] for all without
    /// `CAP_SYS_RESOURCE`; else as [`stat`](Self::stat).
    pub fn set_bytes_max(&self, bytes: u64) -> Result<()> {
        let mut raw = self.raw_stat()?;
        raw.msg_qbytes = bytes;
        // SAFETY: msgctl reads the structure, which is whole.
        crate::check(unsafe { libc::msgctl(self.id, libc::IPC_SET, &mut raw) }).map(drop)
    }

    /// Removes the queue and what is in it (`IPC_RMID`); who waits on it gets `EIDRM`.
    ///
    /// # Errors
    ///
    /// `EPERM` for who is neither its owner nor its maker; `EIDRM` or `EINVAL` when it is gone already.
    pub fn remove(&self) -> Result<()> {
        // SAFETY: IPC_RMID ignores the third argument.
        crate::check(unsafe { libc::msgctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
    }

    fn raw_stat(&self) -> Result<libc::msqid_ds> {
        let mut raw = std::mem::MaybeUninit::zeroed();
        // SAFETY: IPC_STAT writes the structure that the pointer is to.
        crate::check(unsafe { libc::msgctl(self.id, libc::IPC_STAT, raw.as_mut_ptr()) })?;
        // SAFETY: zeroed at first and filled in now; all its fields are integers.
        Ok(unsafe { raw.assume_init() })
    }
}

fn flags(wait: Wait) -> libc::c_int {
    match wait {
        Wait::Block => 0,
        Wait::Never => libc::IPC_NOWAIT,
    }
}

/// The limits of this machine, or rather of this IPC namespace: `/proc/sys/kernel/msg*`, see `proc(5)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `kernel.msgmax`: bytes in one message.
    pub message_bytes_max: u64,
    /// `kernel.msgmnb`: bytes in a new queue, and what its owner may raise it to.
    pub queue_bytes_max: u64,
    /// `kernel.msgmni`: queues in the system.
    pub queues_max: u64,
}

impl Limits {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted, or the kernel has no System V IPC.
    pub fn read() -> io::Result<Self> {
        let limit = |name| {
            let path = format!("/proc/sys/kernel/{name}");
            fs::read_to_string(path)?
                .trim()
                .parse()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        Ok(Self {
            message_bytes_max: limit("msgmax")?,
            queue_bytes_max: limit("msgmnb")?,
            queues_max: limit("msgmni")?,
        })
    }
}
