//! Letters by Unix sockets: one for whoever is free, and one for each task worker.
//!
//! Every process holds the ends that send; the manager holds the others, too, so what is under way survives a task worker.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// By queue.
#[derive(Debug)]
pub(crate) struct Sockets {
    senders: Vec<OwnedFd>,
    receivers: Vec<OwnedFd>,
}

impl Sockets {
    pub(crate) fn create(queues: usize) -> rustix::io::Result<Sockets> {
        let pair = |_| socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let pairs = (0..queues).map(pair).collect::<Result<Vec<_>, _>>()?;
        let (senders, receivers) = pairs.into_iter().unzip();
        Ok(Sockets { senders, receivers })
    }

    /// Of what another process [has](Sockets::fds).
    pub(crate) fn from_fds(mut fds: Vec<OwnedFd>) -> Sockets {
        let receivers = fds.split_off(fds.len() / 2);
        Sockets { senders: fds, receivers }
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.senders.iter().chain(&self.receivers).map(AsFd::as_fd)
    }

    /// What a process keeps that only asks.
    pub(crate) fn senders(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.senders.iter().map(|socket| socket.as_raw_fd())
    }

    /// False if there is no room now.
    pub(crate) fn send(&self, queue: usize, bytes: &[u8]) -> rustix::io::Result<bool> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| send(&self.senders[queue], bytes, flags)) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::NOBUFS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How much of `buffer` the next letter takes; `None` if there is none now.
    pub(crate) fn receive(&self, queue: usize, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
        match retry_on_intr(|| recv(&self.receivers[queue], &mut *buffer, RecvFlags::DONTWAIT)) {
            Ok((len, _)) => Ok(Some(len)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
