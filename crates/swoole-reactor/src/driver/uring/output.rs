//! From the send queue to the kernel: one operation at a time for each stream.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _};

use io_uring::types::Fd;
use rustix::io::Errno;

use super::super::Pending;
use super::source::{Closing, Kind, Source, Stream};
use super::{Operation, Uring, knob, user_data};
use crate::stream::{PARTS_MAX, SendQueue, send_now};
use crate::{Error, Token};

/// Flights, and rooms for their bytes, that are kept at most.
const ROOMS_MAX: usize = 64;

/// Bytes in a room that is kept at most.
const ROOM_MAX: usize = 4096;

impl Uring {
    /// Queues bytes by `push`.
    pub(super) fn enqueue(
        &mut self,
        token: Token,
        push: impl FnOnce(&mut SendQueue, &mut Vec<Vec<u8>>),
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

    /// Sends what the kernel takes at once, if nothing is before it, and queues the rest.
    pub(super) fn send_at_once(&mut self, token: Token, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let gathered = &mut self.gathered;
        let source = self.sources.get_mut(token).filter(|source| source.closing.is_none());
        let stream = source.ok_or(Error::NoSuchToken(token))?.stream(token)?;
        let mut taken = 0;
        if !stream.failed && stream.queue.is_empty() && stream.flight.is_none() && len >= knob(3) {
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

    /// Starts to send what is queued, unless a send is under way.
    pub(super) fn write(&mut self, token: Token) {
        let Some(Source { kind: Kind::Stream(stream), .. }) = self.sources.get_mut(token) else { return };
        stream.dirty = false;
        if stream.failed || stream.flight.is_some() || stream.queue.is_empty() {
            return;
        }
        let mut flight = self.flights.pop().unwrap_or_default();
        flight.load(&mut stream.queue);
        stream.flight = Some(flight);
        self.submit_flight(token);
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
                && self.flights.len() < ROOMS_MAX
            {
                flight.unload(|mut room| {
                    if room.capacity() <= super::knob(7) && self.rooms.len() < ROOMS_MAX {
                        room.clear();
                        self.rooms.push(room);
                    }
                });
                self.flights.push(flight);
            }
            if !stream.queue.is_empty() {
                return self.write(token);
            }
            match source.closing {
                None => self.pending.push_back(Pending::Sent(token)),
                Some(_) => source.closing = Some(Closing::Now { gracefully: true, silent: false }),
            }
        }
        self.settle(token);
    }
}
