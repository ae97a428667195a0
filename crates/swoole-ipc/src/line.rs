//! What the halves of a one-way channel need besides the channel: to sleep, to wake, and to learn of a death.
//!
//! The waiting is written once, here; a carrier (ring, queue) only says whether one piece could be moved now.

use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::doorbell::Doorbell;
use crate::error::Error;
use crate::fragment::pieces;
use crate::wait::{Deadline, wait_any};

/// One half's end of the line.
#[derive(Debug)]
pub(crate) struct Line {
    name: String,
    /// Rings when the peer has moved something.
    own_bell: Doorbell,
    peer_bell: Doorbell,
    /// One end of a socketpair; the peer keeps the other, and the kernel hangs up when nobody has it any
    /// more.
    life: OwnedFd,
}

impl Line {
    pub(crate) fn pair(name: &str) -> Result<(Line, Line), Error> {
        let (one, other) = (Doorbell::create(name)?, Doorbell::create(name)?);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(Error::os("socketpair", name))?;
        let half = |own: &Doorbell, peer: &Doorbell, life| Line {
            name: name.to_owned(),
            own_bell: own.clone(),
            peer_bell: peer.clone(),
            life,
        };
        Ok((half(&one, &other, ours), half(&other, &one, theirs)))
    }

    /// Moves `message` in pieces; `push` moves one, or returns false when there is no room now.
    pub(crate) fn send(
        &self,
        message: &[u8],
        piece_max: usize,
        timeout: Option<Duration>,
        mut push: impl FnMut(u32, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let deadline = Deadline::after(timeout);
        for (flags, piece) in pieces(message, piece_max) {
            while !push(flags, piece)? {
                self.own_bell.arm();
                if push(flags, piece)? {
                    self.own_bell.disarm();
                    break;
                }
                if !self.sleep(deadline)? {
                    return Err(Error::PeerGone);
                }
            }
            self.wake_peer()?;
        }
        Ok(())
    }

    /// As [`send`](Line::send), for a message that makes one piece, without waiting.
    pub(crate) fn try_send(
        &self,
        message: &[u8],
        piece_max: usize,
        mut push: impl FnMut(u32, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if message.len() > piece_max {
            return Err(Error::TooLarge { operation: "try_send", size: message.len(), limit: piece_max });
        }
        for (flags, piece) in pieces(message, piece_max) {
            if !push(flags, piece)? {
                return Err(if self.peer_is_gone()? { Error::PeerGone } else { Error::Full });
            }
        }
        self.wake_peer()
    }

    /// Receives pieces until `pull` has completed a message (`Some(true)`). It says `None` when nothing is
    /// there.
    pub(crate) fn recv(
        &self,
        timeout: Option<Duration>,
        mut pull: impl FnMut() -> Result<Option<bool>, Error>,
    ) -> Result<(), Error> {
        let deadline = Deadline::after(timeout);
        loop {
            if self.pull_all(&mut pull)? {
                return Ok(());
            }
            self.own_bell.arm();
            if self.pull_all(&mut pull)? {
                self.own_bell.disarm();
                return Ok(());
            }
            if !self.sleep(deadline)? {
                return self.pull_last(&mut pull);
            }
        }
    }

    /// As [`recv`](Line::recv), without waiting.
    pub(crate) fn try_recv(
        &self,
        mut pull: impl FnMut() -> Result<Option<bool>, Error>,
    ) -> Result<(), Error> {
        if self.pull_all(&mut pull)? {
            Ok(())
        } else if self.peer_is_gone()? {
            self.pull_last(&mut pull)
        } else {
            Err(Error::Empty)
        }
    }

    /// Whether no process holds the other half any more.
    pub(crate) fn peer_is_gone(&self) -> Result<bool, Error> {
        let now = Deadline::after(Some(Duration::ZERO));
        // Hang-ups are reported unasked.
        let [life] = wait_any([(self.life.as_fd(), PollFlags::empty())], now).map_err(self.os("poll"))?;
        Ok(!life.is_empty())
    }

    /// True when a message is complete, false when nothing more is there.
    fn pull_all(&self, pull: &mut impl FnMut() -> Result<Option<bool>, Error>) -> Result<bool, Error> {
        while let Some(complete) = pull()? {
            self.wake_peer()?;
            if complete {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The peer is gone: what it stored before is visible now, and all there will ever be.
    fn pull_last(&self, pull: &mut impl FnMut() -> Result<Option<bool>, Error>) -> Result<(), Error> {
        if self.pull_all(pull)? { Ok(()) } else { Err(Error::PeerGone) }
    }

    /// With the own bell armed: sleeps until it rings (true) or the peer is gone (false).
    fn sleep(&self, deadline: Deadline) -> Result<bool, Error> {
        let watched = [(self.own_bell.as_fd(), PollFlags::IN), (self.life.as_fd(), PollFlags::empty())];
        let result = wait_any(watched, deadline);
        self.own_bell.disarm();
        let [bell, life] = result.map_err(self.os("poll"))?;
        if !bell.is_empty() {
            self.own_bell.silence().map_err(self.os("read"))?;
        }
        if bell.is_empty() && life.is_empty() { Err(Error::Timeout) } else { Ok(life.is_empty()) }
    }

    fn wake_peer(&self) -> Result<(), Error> {
        self.peer_bell.ring().map(drop).map_err(self.os("write"))
    }

    fn os<E: Into<std::io::Error>>(&self, operation: &'static str) -> impl FnOnce(E) -> Error {
        Error::os(operation, &self.name)
    }
}
