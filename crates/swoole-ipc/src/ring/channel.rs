//! A ring with its doorbells and a sign of life: a channel for use alone.

use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::layout::Ring;
use super::{Consumer, Producer};
use crate::channel::{Receive, Transmit};
use crate::doorbell::Doorbell;
use crate::error::Error;
use crate::fragment::{Assembler, check_size, pieces};
use crate::wait::{Deadline, wait_any};

/// A one-way channel through a ring of `capacity` bytes (see [`Ring::create`]).
///
/// Make it before the fork; then each process drops the half that it does not use, and a half used in one
/// process is not used in another. Each half keeps one end of a socketpair whose other end the other half keeps:
/// when the last process that has it is gone, the kernel hangs up, and that is how a death is noticed.
///
/// [`Transmit::send`] cuts messages larger than a quarter of the ring into pieces.
/// [`Transmit::try_send`] takes what fits into the ring at once, so up to its capacity less 8 bytes.
///
/// # Errors
/// As [`Ring::create`] and [`Doorbell::create`].
pub fn channel(name: &str, capacity: usize) -> Result<(Sender, Receiver), Error> {
    let ring = Ring::create(name, capacity)?;
    let (data, space) = (Doorbell::create(name)?, Doorbell::create(name)?);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(Error::os("socketpair", name))?;
    let sender = Sender {
        line: Line { ring: ring.clone(), peer: ours },
        data: data.clone(),
        space: space.clone(),
        producer: None,
    };
    let receiver = Receiver {
        line: Line { ring, peer: theirs },
        data,
        space,
        consumer: None,
        assembler: Assembler::default(),
    };
    Ok((sender, receiver))
}

/// The ring, and the end of a socketpair that hangs up when the peer is gone.
#[derive(Debug)]
struct Line {
    ring: Ring,
    peer: OwnedFd,
}

impl Line {
    /// Sleeps until `bell`, which is armed, rings. False when the peer is gone: nothing more can change then.
    fn sleep(&self, bell: &Doorbell, deadline: Deadline) -> Result<bool, Error> {
        let watched = [(bell.as_fd(), PollFlags::IN), (self.peer.as_fd(), PollFlags::empty())];
        let result = wait_any(watched, deadline);
        bell.disarm();
        let [rung, peer] = result.map_err(self.os("poll"))?;
        if !rung.is_empty() {
            bell.silence().map_err(self.os("read"))?;
        } else if peer.is_empty() && deadline.passed() {
            return Err(Error::Timeout);
        }
        Ok(peer.is_empty())
    }

    fn peer_is_gone(&self) -> Result<bool, Error> {
        let now = Deadline::after(Some(Duration::ZERO));
        let [peer] = wait_any([(self.peer.as_fd(), PollFlags::empty())], now).map_err(self.os("poll"))?;
        Ok(!peer.is_empty())
    }

    fn ring_bell(&self, bell: &Doorbell) -> Result<(), Error> {
        bell.ring().map(drop).map_err(self.os("write"))
    }

    fn os<E: Into<std::io::Error>>(&self, operation: &'static str) -> impl FnOnce(E) -> Error {
        Error::os(operation, self.ring.name())
    }
}

/// The half of [`channel()`] that sends.
#[derive(Debug)]
pub struct Sender {
    line: Line,
    /// Wakes the receiver.
    data: Doorbell,
    /// Wakes us.
    space: Doorbell,
    /// Claimed by the first use, so by the process that sends.
    producer: Option<Producer>,
}

impl Sender {
    /// Writes one piece if there is room now. True if it did.
    fn push(&mut self, flags: u32, piece: &[u8]) -> Result<bool, Error> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            unclaimed => unclaimed.insert(self.line.ring.producer()?),
        };
        if producer.push(flags, &[piece]).is_err() {
            producer.refresh()?;
            if producer.push(flags, &[piece]).is_err() {
                return Ok(false);
            }
        }
        producer.publish();
        self.line.ring_bell(&self.data)?;
        Ok(true)
    }
}

impl Transmit for Sender {
    fn send(&mut self, message: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        check_size(message)?;
        let deadline = Deadline::after(timeout);
        for (flags, piece) in pieces(message, self.line.ring.capacity() / 4) {
            while !self.push(flags, piece)? {
                self.space.arm();
                if self.push(flags, piece)? {
                    self.space.disarm();
                    break;
                }
                if !self.line.sleep(&self.space, deadline)? {
                    return Err(Error::PeerGone);
                }
            }
        }
        Ok(())
    }

    fn try_send(&mut self, message: &[u8]) -> Result<(), Error> {
        check_size(message)?;
        let limit = self.line.ring.capacity() - 8;
        if message.len() > limit {
            return Err(Error::TooLarge { operation: "try_send", size: message.len(), limit });
        }
        for (flags, piece) in pieces(message, limit) {
            if !self.push(flags, piece)? {
                return Err(if self.line.peer_is_gone()? { Error::PeerGone } else { Error::Full });
            }
        }
        Ok(())
    }
}

/// The half of [`channel()`] that receives.
#[derive(Debug)]
pub struct Receiver {
    line: Line,
    /// Wakes us.
    data: Doorbell,
    /// Wakes the sender.
    space: Doorbell,
    /// Claimed by the first use, so by the process that receives.
    consumer: Option<Consumer>,
    assembler: Assembler,
}

impl Receiver {
    /// Reads until a message is complete (true) or nothing more is there (false).
    fn pull(&mut self, into: &mut Vec<u8>) -> Result<bool, Error> {
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            unclaimed => unclaimed.insert(self.line.ring.consumer()?),
        };
        while let Some(record) = consumer.next()? {
            let complete = self.assembler.add(record.tag, record.bytes, into)?;
            consumer.release();
            self.line.ring_bell(&self.space)?;
            if complete {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Receive for Receiver {
    fn recv(&mut self, into: &mut Vec<u8>, timeout: Option<Duration>) -> Result<(), Error> {
        let deadline = Deadline::after(timeout);
        while !self.pull(into)? {
            self.data.arm();
            if self.pull(into)? {
                self.data.disarm();
                break;
            }
            let peer_lives = self.line.sleep(&self.data, deadline)?;
            // What it stored before its end is visible now, and final.
            if !peer_lives && !self.pull(into)? {
                return Err(Error::PeerGone);
            } else if !peer_lives {
                break;
            }
        }
        Ok(())
    }

    fn try_recv(&mut self, into: &mut Vec<u8>) -> Result<(), Error> {
        if self.pull(into)? {
            return Ok(());
        }
        let gone = self.line.peer_is_gone()?;
        match (gone, gone && self.pull(into)?) {
            (_, true) => Ok(()),
            (true, false) => Err(Error::PeerGone),
            (false, false) => Err(Error::Empty),
        }
    }
}
