//! Streams with much input, which the driver reads for itself.
//!
//! What the kernel receives for a whole batch of streams at a time is cold by the time it is handled, and
//! comes in as many pieces as buffers. Where there is much to copy, that costs more than a system call
//! saves. So of such a stream the ring tells only when there is something, and then it is read as with
//! epoll: into one warm buffer, or where the caller wants it. A stream becomes one by its input and is no
//! longer one when its input is small again.
//!
//! CPU per request of an echo server, relative to the epoll driver in the same rounds (Linux 6.18, 64
//! connections over loopback, two cores shared with the load, sends as in `output`):
//!
//! | | all received by the kernel | as here |
//! | --- | --- | --- |
//! | 16 requests of 4 KiB at once | 1.3, before buffers were shared 1.6-1.9 | 0.99 |
//! | 64 KiB | 1.04-2.1 | 0.9-1.1 |
//! | 1 to 12 KiB | 0.8-0.9 | 0.8-0.9 |

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::super::Pending;
use super::Uring;
use super::input::Found;
use super::source::{Kind, Source, Stream};
use crate::{Event, Token};

/// A receive of so many bytes shows much input. (4 KiB are better received by the kernel, 7 to 12 KiB cost the same
/// either way, 16 KiB are a tenth cheaper as here.)
const MUCH: usize = 8 << 10;

/// Reads that find less than this show little input ...
const LITTLE: usize = 4 << 10;

/// ... if there are so many in a row: a change of the way costs a cancellation.
const CALM_READS: u32 = 16;

impl Stream {
    /// Whether the driver may read: nothing that the kernel has read is still to come.
    pub(super) fn is_readable(&self) -> bool {
        self.reads && self.is_polled && self.held.is_empty() && !self.ended && !self.failed
    }

    /// Whether it is to be read from.
    fn is_due(&self) -> bool {
        self.receiving && self.readable && self.is_readable()
    }

    /// The kernel has received so much at once, or all that it had room for.
    pub(super) fn has_received(&mut self, length: usize) {
        if length >= MUCH {
            (self.reads, self.calm) = (true, 0);
        }
    }

    /// A read has found `length` bytes where there was room for `size`: less says that there is no more, unless the
    /// peer has closed, of which no other edge will tell.
    fn has_read(&mut self, length: usize, size: usize) {
        self.readable = length == size || self.hung_up;
        self.calm = if length < LITTLE { self.calm + 1 } else { 0 };
        self.reads = self.calm < CALM_READS || self.hung_up;
    }
}

impl Uring {
    /// The poll of a stream has completed.
    pub(super) fn readable(&mut self, token: Token, result: Result<u32, Errno>) {
        let budget = self.budget;
        let Some(Source { kind: Kind::Stream(stream), closing: None, .. }) = self.sources.get_mut(token)
        else {
            return;
        };
        let flags = match result {
            Ok(flags) => PollFlags::from_bits_retain(flags as u16),
            Err(Errno::CANCELED) => return,
            // A read tells.
            Err(_) => PollFlags::ERR,
        };
        stream.readable = true;
        stream.hung_up |= flags.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
        if stream.is_due() && !stream.listed {
            self.current = Some((token, budget));
        }
    }

    /// Has a stream read from in the next turn, if there may be something.
    pub(super) fn list(&mut self, token: Token) {
        if let Some(Source { kind: Kind::Stream(stream), closing: None, .. }) = self.sources.get_mut(token)
            && stream.is_due()
            && !std::mem::replace(&mut stream.listed, true)
        {
            self.ready.push(token);
        }
    }

    /// The next stream that was listed before this turn.
    pub(super) fn next_listed(&mut self) -> bool {
        let Some(token) = self.due.pop() else { return false };
        if let Some(Source { kind: Kind::Stream(stream), closing: None, .. }) = self.sources.get_mut(token) {
            stream.listed = false;
            self.current = stream.is_due().then_some((token, self.budget));
        }
        true
    }

    /// Reads once from the stream in hand.
    pub(super) fn step(&mut self, token: Token, left: usize, buffer: &mut [u8]) -> Option<Found> {
        self.current = None;
        let stream = self.source(token).ok()?.stream(token).ok()?;
        if !stream.is_due() {
            self.settle(token);
            return None;
        }
        if left == 0 {
            self.list(token);
            return None;
        }
        let asks = stream.asks;
        self.current = Some((token, left - 1));
        if asks {
            return Some(Found::Event(Event::Readable { token }));
        }
        self.read_now(token, buffer).map(|length| Found::Read { token, length })
    }

    /// Reads once, if it is this side that reads; an end or an error becomes pending.
    pub(super) fn read_now(&mut self, token: Token, buffer: &mut [u8]) -> Option<usize> {
        let stream = self.source(token).ok()?.stream(token).ok()?;
        if !stream.is_readable() || buffer.is_empty() {
            return None;
        }
        loop {
            match recv(&stream.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    stream.ended = true;
                    self.pending.push_back(Pending::Eof(token));
                    return None;
                }
                Ok((_, length)) => {
                    stream.has_read(length, buffer.len());
                    return Some(length);
                }
                Err(Errno::AGAIN) => {
                    stream.readable = false;
                    return None;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    stream.ended = true;
                    self.fail(token, error);
                    return None;
                }
            }
        }
    }
}
