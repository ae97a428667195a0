//! A send operation: the bytes belong to it until the kernel says that it is over.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use rustix::net::SendFlags;

use crate::stream::{Rooms, SendQueue};

/// Bytes in one part that one operation sends at most (the kernel stops short of 2³¹).
const PART_MAX: usize = 1 << 30;

/// What the kernel calls `struct iovec`.
#[repr(C)]
struct IoVec {
    base: *const u8,
    length: usize,
}

/// What the kernel calls `struct user_msghdr`, the argument of `sendmsg(2)`.
#[repr(C)]
struct MessageHeader {
    name: *const u8,
    name_length: i32,
    parts: *const IoVec,
    parts_count: usize,
    control: *const u8,
    control_length: usize,
    flags: u32,
}

/// Buffers on their way to the kernel, sent in order by one operation after another. Empty ones are kept for the next.
#[derive(Default)]
pub(super) struct Flight {
    parts: Vec<Vec<u8>>,
    /// The first part that is not sent, and how much of it is.
    first: usize,
    sent: usize,
    /// What the operation in the kernel points to. Vectors, because moving a vector does not lay claim to
    /// what it points to, as moving a box would.
    slices: Vec<IoVec>,
    header: Vec<MessageHeader>,
}

impl Flight {
    /// Takes over what is queued, to an empty one.
    pub(super) fn load(&mut self, queue: &mut SendQueue) {
        queue.take_parts(&mut self.parts);
    }

    /// Is empty again. The memory of its buffers goes to `rooms`.
    pub(super) fn unload(&mut self, rooms: &mut Rooms) {
        (self.first, self.sent) = (0, 0);
        self.parts.drain(..).for_each(|part| rooms.put(part));
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn remaining(&self) -> usize {
        self.parts[self.first..].iter().map(Vec::len).sum::<usize>() - self.sent
    }

    /// Those bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.parts.into_iter().skip(self.first).flatten().collect::<Vec<u8>>();
        bytes.drain(..self.sent);
        bytes
    }

    /// Accounts for bytes that the kernel has taken; `true` when none remain.
    pub(super) fn advance(&mut self, count: usize) -> bool {
        self.sent += count;
        while let Some(part) = self.parts.get(self.first)
            && self.sent >= part.len()
        {
            self.sent -= part.len();
            self.first += 1;
        }
        self.first == self.parts.len()
    }

    /// The operation that sends what remains. It points into `self`, which must therefore live, and not be
    /// asked for another, until it is over.
    pub(super) fn operation(&mut self, socket: Fd) -> squeue::Entry {
        let flags = SendFlags::NOSIGNAL.bits();
        let mut skip = self.sent;
        self.slices.clear();
        for part in &self.parts[self.first..] {
            let part = &part[skip..];
            self.slices.push(IoVec { base: part.as_ptr(), length: part.len().min(PART_MAX) });
            skip = 0;
        }
        if let [IoVec { base, length }] = self.slices[..] {
            return opcode::Send::new(socket, base, length as u32).flags(flags.cast_signed()).build();
        }
        // Nothing may follow a part that is cut short.
        let whole = self.slices.iter().take_while(|slice| slice.length < PART_MAX).count();
        let count = (whole + 1).min(self.slices.len());
        self.header.clear();
        self.header.push(MessageHeader {
            name: std::ptr::null(),
            name_length: 0,
            parts: self.slices.as_ptr(),
            parts_count: count,
            control: std::ptr::null(),
            control_length: 0,
            flags: 0,
        });
        opcode::SendMsg::new(socket, self.header.as_ptr().cast()).flags(flags).build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_counts_down_over_its_parts() {
        let flight = |parts| Flight { parts, ..Flight::default() };
        let mut other = flight(vec![vec![1; 3], vec![2; 5]]);
        let mut flight = flight(vec![vec![1; 3], vec![2; 5], vec![3; 1]]);
        assert_eq!(flight.remaining(), 9);
        assert!(!flight.advance(2));
        assert_eq!(flight.remaining(), 7);
        assert!(!flight.advance(6));
        assert_eq!((flight.remaining(), flight.first, flight.sent), (1, 2, 0));
        other.advance(4);
        assert_eq!(other.into_bytes(), [2; 4]);
        assert!(flight.advance(1));
        assert_eq!(flight.remaining(), 0);
    }
}
