//! Who may read and write which bytes of a ring: the algorithm, without the bytes.
//!
//! Positions count bytes since the ring was made, never wrap in practice (at 100 GB/s after five years)
//! and are multiples of 8. `tail <= head <= tail + capacity` holds at all times:
//!
//! ```text
//!     0 ... tail ............ head ......... position ........ tail + capacity
//!           | published       | written, but | free            |
//!           | and not freed   | not visible  |                 |
//! ```
//!
//! [`Writer`] and [`Reader`] keep what they rely on in private memory. The shared [`Cursors`] are how they
//! tell each other; what a side reads there it checks first against what it knows.

use std::cell::Cell;
use std::ops::RangeInclusive;

use crossbeam_utils::CachePadded;

use crate::error::Corrupt;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Records start at multiples of this, so that a header is one aligned word.
pub(crate) const ALIGN: u64 = 8;
/// Bytes before the payload of each record.
pub(crate) const RECORD_HEADER: u64 = 8;
/// Beyond any position that is reached, and far enough from the end of `u64` for sums.
const POSITION_MAX: u64 = 1 << 62;

/// Space that a payload takes in the ring, header and padding included.
#[inline]
pub(crate) fn footprint(payload: u64) -> u64 {
    RECORD_HEADER + payload.next_multiple_of(ALIGN)
}

/// The shared words; each on its own cache line, so that the sides do not disturb each other.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Cursors {
    /// End of what is published. Written by the producer.
    pub(crate) head: CachePadded<AtomicU64>,
    /// Start of what is not yet freed. Written by the consumer in consumer-freed mode; by the producer in
    /// acked mode, where only a successor of it reads the word.
    pub(crate) tail: CachePadded<AtomicU64>,
    /// Where the next consumer starts, unless tail is further. Written by the producer.
    pub(crate) resume: CachePadded<AtomicU64>,
    /// Not 0 once no more will be published. Written by the producer.
    pub(crate) closed: CachePadded<AtomicU32>,
}

impl Cursors {
    #[cfg(loom)]
    pub(crate) fn new() -> Cursors {
        let word = || CachePadded::new(AtomicU64::new(0));
        let closed = CachePadded::new(AtomicU32::new(0));
        Cursors { head: word(), tail: word(), resume: word(), closed }
    }
}

#[inline]
fn within(what: &'static str, value: u64, range: RangeInclusive<u64>) -> Result<u64, Corrupt> {
    if range.contains(&value) && value.is_multiple_of(ALIGN) {
        Ok(value)
    } else {
        Err(Corrupt { what, value, range })
    }
}

/// The producer's private state.
#[derive(Debug)]
pub(crate) struct Writer {
    capacity: u64,
    tail: u64,
    head: u64,
    position: u64,
    /// What this producer has last stored there: the words themselves prove nothing once a peer went wild.
    resume: u64,
    closed: bool,
}

impl Writer {
    /// Continues where the last producer's published state is.
    pub(crate) fn open(shared: &Cursors, capacity: u64) -> Result<Writer, Corrupt> {
        // In this order: with no other producer alive, head stands still and tail cannot pass it.
        let head = within("head", shared.head.load(Ordering::Acquire), 0..=POSITION_MAX)?;
        let tail = shared.tail.load(Ordering::Acquire);
        let tail = within("tail", tail, head.saturating_sub(capacity)..=head)?;
        Ok(Writer { capacity, tail, head, position: head, resume: tail, closed: false })
    }

    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    #[inline]
    pub(crate) fn published(&self) -> u64 {
        self.head
    }

    /// Bytes that may be written from `position` on.
    #[inline]
    pub(crate) fn free(&self) -> u64 {
        self.capacity - (self.position - self.tail)
    }

    /// `size` bytes from `position` on have been written; a multiple of [`ALIGN`], at most `free`.
    #[inline]
    pub(crate) fn advance(&mut self, size: u64) {
        debug_assert!(size <= self.free() && size.is_multiple_of(ALIGN));
        self.position += size;
    }

    #[inline]
    pub(crate) fn publish(&mut self, shared: &Cursors) {
        if self.head != self.position {
            self.head = self.position;
            shared.head.store(self.head, Ordering::Release);
        }
    }

    pub(crate) fn refresh(&mut self, shared: &Cursors) -> Result<(), Corrupt> {
        // Acquire: the consumer's reads of the freed bytes come before our writes to them.
        let tail = shared.tail.load(Ordering::Acquire);
        self.tail = within("tail", tail, self.tail..=self.head)?;
        Ok(())
    }

    #[inline]
    pub(crate) fn release_to(&mut self, shared: &Cursors, position: u64) -> Result<(), Corrupt> {
        self.tail = within("acknowledged position", position, self.tail..=self.head)?;
        shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    pub(crate) fn resume_at(&mut self, shared: &Cursors, position: u64) -> Result<(), Corrupt> {
        self.resume = within("resume position", position, self.tail..=self.head)?;
        shared.resume.store(self.resume, Ordering::Release);
        Ok(())
    }

    /// Frees everything published; the next consumer starts at the head.
    pub(crate) fn rewind(&mut self, shared: &Cursors) -> u64 {
        self.tail = self.head;
        self.resume = self.head;
        shared.tail.store(self.head, Ordering::Release);
        shared.resume.store(self.head, Ordering::Release);
        self.head
    }

    pub(crate) fn close(&mut self, shared: &Cursors) {
        self.closed = true;
        // Release: who sees the flag sees the last head.
        shared.closed.store(1, Ordering::Release);
    }

    /// Makes the shared words true again, whatever a consumer that is dead now has written there.
    pub(crate) fn repair(&self, shared: &Cursors) {
        shared.head.store(self.head, Ordering::Release);
        shared.tail.store(self.tail, Ordering::Release);
        shared.resume.store(self.resume, Ordering::Release);
        shared.closed.store(self.closed.into(), Ordering::Release);
    }
}

/// The consumer's private state.
#[derive(Debug)]
pub(crate) struct Reader {
    capacity: u64,
    /// The shared tail as this consumer last stored it: nothing before it may be read any more.
    tail: u64,
    cursor: u64,
    /// The last head seen: re-read only by who has come to it.
    head: Cell<u64>,
}

impl Reader {
    /// Starts at `resume` or `tail`, whichever is further: in each mode the other one lags behind.
    pub(crate) fn open(shared: &Cursors, capacity: u64) -> Result<Reader, Corrupt> {
        let start = shared.resume.load(Ordering::Acquire).max(shared.tail.load(Ordering::Acquire));
        // After start, so that a living producer cannot make it look older than it is.
        let head = within("head", shared.head.load(Ordering::Acquire), 0..=POSITION_MAX)?;
        let start = within("start", start, head.saturating_sub(capacity)..=head)?;
        Ok(Reader { capacity, tail: start, cursor: start, head: Cell::new(head) })
    }

    #[inline]
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    #[inline]
    pub(crate) fn advance_to(&mut self, position: u64) {
        self.cursor = position;
    }

    /// Bytes that may be read from `position` on: 0, or at least a record's header.
    #[inline]
    pub(crate) fn available(&self, shared: &Cursors, position: u64) -> Result<u64, Corrupt> {
        if position >= self.head.get() {
            // Acquire: what was written before the head was stored is visible.
            let head = shared.head.load(Ordering::Acquire);
            // Nobody frees what the cursor has not passed, so the head is at most one lap before it.
            let limit = self.cursor.saturating_add(self.capacity);
            self.head.set(within("head", head, self.head.get()..=limit)?);
        }
        let head = self.head.get();
        let oldest = self.tail.max(head.saturating_sub(self.capacity));
        Ok(head - within("position", position, oldest..=head)?)
    }

    #[inline]
    pub(crate) fn release(&mut self, shared: &Cursors) {
        if self.tail != self.cursor {
            self.tail = self.cursor;
            // Release: our reads of these bytes come before the producer's writes to them.
            shared.tail.store(self.tail, Ordering::Release);
        }
    }

    /// Makes the shared words true again, whatever a producer that is dead now has written there: an open
    /// ring, empty at the cursor. Any head beyond it is but a dead process's word, also one in range.
    pub(crate) fn repair(&mut self, shared: &Cursors) {
        self.tail = self.cursor;
        self.head.set(self.cursor);
        shared.head.store(self.cursor, Ordering::Release);
        shared.tail.store(self.cursor, Ordering::Release);
        shared.resume.store(self.cursor, Ordering::Release);
        shared.closed.store(0, Ordering::Release);
    }
}
