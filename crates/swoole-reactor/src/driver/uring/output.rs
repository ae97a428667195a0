//! From the send queue to the kernel: one operation at a time for each stream.
//!
//! Short replies are copied and go to the kernel all together, at the next wait. Long ones are sent at once
//! by a system call, straight from where they are, if nothing is before them. CPU per request of an echo
//! server, relative to the epoll driver in the same rounds (Linux 6.18, 64 connections over loopback, two
//! cores shared with the load):
//!
//! | reply | together, from memory that is used again | together, newly allocated | at once |
//! | --- | --- | --- | --- |
//! | 128 B | 0.65-0.92 | 0.65-0.94 | 0.99 |
//! | 16 x 128 B | 0.69-0.90 | 0.71-0.89 | 1.0-1.1 |
//! | 4 KiB | 0.58-0.83 | 0.94-1.02 | 1.0-1.1 |
//! | 16 KiB | 0.85 | 1.3 | 1.01 |
//! | 30 KiB | 1.01 | 1.6 | 1.01 |
//! | 16 x 4 KiB | | 2.5 | 0.99 |
//!
//! The busier the machine, the more it saves to send together: the peers are woken once for the whole batch.
//!
//! Not used, because it did not pay (one process, 16 connections over loopback, CPU per send, three runs):
//!
//! - `SEND_ZC`. Loopback copies all the same (`IORING_NOTIF_USAGE_ZC_COPIED`), and the notification costs:
//!   128 B 8.7-9.8 us instead of 1.0-1.5, 16 KiB 10.8-12.6 instead of 7.0-7.4, 64 KiB 22-55 instead of
//!   26-30, 256 KiB 68-104 instead of 70-95. From a registered buffer 64 KiB 22-33, 256 KiB 60-79: less from
//!   there on, perhaps, but what is sent would have to be copied there first. Cards that send without a copy
//!   were not measured.
//! - Registered files: 128 B 1.1-2.4 us instead of 1.0-1.5, 16 KiB 7.3-7.9 instead of 7.0-7.4.
//! - A registered ring descriptor: 0.98 of epoll with it, 0.92 without (ranges 0.91-0.99, 0.91-0.96), at 0.03
//!   to 0.15 calls for each request.
//!
//! Not measured: busy polling of a card's queues (NAPI), which loopback has none of.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _};

use io_uring::opcode;
use io_uring::types::Fd;
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::super::Pending;
use super::source::{Closing, Kind, Source, Stream};
use super::{Operation, Uring, user_data};
use crate::stream::{PARTS_MAX, Rooms, SendQueue, send_now};
use crate::{Error, Token};

/// What is as long as this is sent at once.
const AT_ONCE_MIN: usize = 24 << 10;

/// Empty flights that are kept at most.
const FLIGHTS_MAX: usize = 64;

impl Uring {
    /// Queues bytes by `push`.
    pub(super) fn enqueue(
        &mut self,
        token: Token,
        push: impl FnOnce(&mut SendQueue, &mut Rooms),
    ) -> Result<(), Error> {
        let source = self.sources.get_mut(token).filter(|source| source.closing.is_none());
        let stream = source.ok_or(Error::NoSuchToken(token))?.stream(token)?;
        if stream.failed {
            return Err(Error::Ended(token));
        }
        push(&mut stream.queue, &mut self.rooms);
        // What comes while a send is under way goes out after it.
        if !stream.queue.is_empty() && stream.flight.is_none() && !stream.dirty {
            stream.dirty = true;
            self.dirty.push(token);
        }
        Ok(())
    }

    /// Sends what is long at once, as far as the kernel takes it, if nothing is before it; queues the rest.
    pub(super) fn send_or_queue(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let gathered = &mut self.gathered;
        let source = self.sources.get_mut(token).filter(|source| source.closing.is_none());
        let stream = source.ok_or(Error::NoSuchToken(token))?.stream(token)?;
        let mut taken = 0;
        if !stream.failed && stream.queue.is_empty() && stream.flight.is_none() && len >= AT_ONCE_MIN {
            let fd = stream.socket.as_fd();
            let result = send_now(fd, &parts[..parts.len().min(PARTS_MAX)], gathered);
            taken = match result {
                Ok(taken) => taken,
                // The queue tries again.
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => {
                    self.fail(token, error);
                    return Ok(());
                }
            };
        }
        self.enqueue(token, |queue, rooms| queue.push_slices(parts, taken, rooms))
    }

    /// Starts to send what is queued, everywhere.
    pub(super) fn write_all(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for token in dirty.drain(..) {
            self.write(token);
        }
        self.dirty = dirty;
    }

    /// Starts to send what is queued, unless a send is under way.
    pub(super) fn write(&mut self, token: Token) {
        let Some(Source { kind: Kind::Stream(stream), .. }) = self.sources.get_mut(token) else { return };
        stream.dirty = false;
        if stream.failed || stream.flight.is_some() || stream.queue.is_empty() {
            return;
        }
        if stream.queue.is_at_file() {
            return self.write_file(token);
        }
        let mut flight = self.flights.pop().unwrap_or_default();
        flight.load(&mut stream.queue);
        stream.flight = Some(flight);
        self.submit_flight(token);
    }

    /// Sends a piece of a file, or has the kernel tell when there is room for one.
    fn write_file(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token) else { return };
        let fd = Fd(source.fd().as_raw_fd());
        let Kind::Stream(stream) = &mut source.kind else { return };
        if stream.waits_for_room {
            return;
        }
        match stream.queue.send_file(stream.socket.as_fd()) {
            Ok(()) if stream.queue.is_empty() => self.written(token),
            Ok(()) if stream.queue.is_at_file() => {
                stream.dirty = true;
                self.sending.push(token);
            }
            Ok(()) => self.write(token),
            Err(Errno::INTR) => {
                stream.dirty = true;
                self.sending.push(token);
            }
            Err(Errno::AGAIN) => {
                stream.waits_for_room = true;
                source.operations += 1;
                let poll = opcode::PollAdd::new(fd, PollFlags::OUT.bits().into()).build();
                // SAFETY: it points to no memory, and the source, which owns the descriptor, is kept until `operations`
                // is 0.
                unsafe { self.ring.push(poll.user_data(user_data(token, Operation::Room))) };
            }
            Err(error) => self.fail(token, error),
        }
    }

    /// The poll for room is over: there is some, or the stream has ended.
    pub(super) fn has_room(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token) else { return };
        let Kind::Stream(stream) = &mut source.kind else { return };
        stream.waits_for_room = false;
        if matches!(source.closing, None | Some(Closing::AfterSend)) {
            self.write(token);
        }
        self.settle(token);
    }

    /// All that was queued is sent.
    fn written(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token) else { return };
        match source.closing {
            None => self.pending.push_back(Pending::Sent(token)),
            Some(_) => source.closing = Some(Closing::Now { gracefully: true, silent: false }),
        }
        self.settle(token);
    }

    fn submit_flight(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token) else { return };
        let Kind::Stream(Stream { socket, flight: Some(flight), .. }) = &mut source.kind else { return };
        let entry = flight.operation(Fd(socket.as_raw_fd())).user_data(user_data(token, Operation::Send));
        source.operations += 1;
        // SAFETY: the flight stays in its source, unchanged, until the completion is handled: `sent` alone
        // touches it, and the source is kept until `operations` is 0.
        unsafe { self.ring.push(entry) };
    }

    /// A send operation is over.
    pub(super) fn sent(&mut self, token: Token, result: Result<u32, Errno>) {
        self.advance(token, result);
        self.tell_if_low(token);
    }

    fn advance(&mut self, token: Token, result: Result<u32, Errno>) {
        let Some(source) = self.sources.get_mut(token) else { return };
        let Kind::Stream(stream) = &mut source.kind else { return };
        let Some(flight) = &mut stream.flight else { return };
        let count = match result {
            Ok(count) => count as usize,
            Err(Errno::INTR | Errno::AGAIN) => 0,
            Err(Errno::CANCELED) if source.closing == Some(Closing::Detach) => 0,
            Err(error) => {
                stream.flight = None;
                return self.fail(token, error);
            }
        };
        let is_done = flight.advance(count);
        if source.closing == Some(Closing::Detach) {
            // What is left of it goes along.
        } else if stream.failed || matches!(source.closing, Some(Closing::Now { .. })) {
            stream.flight = None;
        } else if !is_done {
            return self.submit_flight(token);
        } else {
            if let Some(mut flight) = stream.flight.take()
                && self.flights.len() < FLIGHTS_MAX
            {
                flight.unload(&mut self.rooms);
                self.flights.push(flight);
            }
            if !stream.queue.is_empty() {
                return self.write(token);
            }
            return self.written(token);
        }
        self.settle(token);
    }
}
