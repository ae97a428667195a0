//! The end of a ring that reads.

use std::slice;

use super::cursors::{RECORD_HEADER, Reader, footprint};
use super::layout::Claim;
use crate::error::Corrupt;
use crate::sync::{AtomicU64, Ordering};

/// A record in the ring, read in place.
///
/// The producer does not touch it before it is released (or acknowledged). A hostile producer may change
/// the bytes at any time, though not where they begin and end: copy before deciding anything that must
/// still be true later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The producer's word about the record.
    pub tag: u32,
    /// The payload.
    pub bytes: &'a [u8],
    /// Position behind the record, where the next one starts.
    pub end: u64,
}

/// The reading end of a [`Ring`](super::Ring).
///
/// Its cursor is private. In consumer-freed mode [`release`](Consumer::release) gives what lies before it
/// back to the producer. In acked mode the consumer never calls that, and so never writes into the ring.
#[derive(Debug)]
pub struct Consumer {
    claim: Claim,
    reader: Reader,
}

impl Consumer {
    pub(super) fn open(claim: Claim) -> Result<Consumer, Corrupt> {
        let reader = Reader::open(claim.ring.cursors(), claim.ring.capacity() as u64)?;
        Ok(Consumer { claim, reader })
    }

    /// The record that starts at `position`, which is the cursor or the end of a record not yet released;
    /// `None` when nothing is published there yet.
    ///
    /// # Errors
    /// [`Corrupt`] when the head or the record's length cannot be true, or `position` is not in the ring.
    #[inline]
    pub fn peek_at(&self, position: u64) -> Result<Option<Record<'_>>, Corrupt> {
        Ok(self.find(position)?.map(|found| self.borrow(found)))
    }

    /// The private cursor: start of the next record that [`next`](Consumer::next) gives.
    #[inline]
    pub fn position(&self) -> u64 {
        self.reader.cursor()
    }

    /// Moves the private cursor to `position`, the end of a record that was peeked at.
    #[inline]
    pub fn advance_to(&mut self, position: u64) {
        self.reader.advance_to(position);
    }

    /// Consumer-freed mode: gives everything before the cursor back to the producer, by one store.
    #[inline]
    pub fn release(&mut self) {
        self.reader.release(self.claim.ring.cursors());
    }

    /// The record at the cursor, which moves behind it; `None` when nothing more is published.
    ///
    /// # Errors
    /// As [`peek_at`](Consumer::peek_at); the cursor stays.
    #[expect(
        clippy::should_implement_trait,
        reason = "the record borrows the consumer, an iterator's item cannot"
    )]
    pub fn next(&mut self) -> Result<Option<Record<'_>>, Corrupt> {
        let Some(found) = self.find(self.reader.cursor())? else {
            return Ok(None);
        };
        self.reader.advance_to(found.end);
        Ok(Some(self.borrow(found)))
    }

    /// Whether the producer has said that nothing more will come. What it published before may still be
    /// unread, and becomes visible with this at the latest: after `true`, read until `None`.
    pub fn is_closed(&self) -> bool {
        self.claim.ring.cursors().closed.load(Ordering::Acquire) != 0
    }

    /// The producer's process is dead and reaped: a successor may claim its side. Read what it has left
    /// before: whatever lies behind the cursor is dropped, whatever lies before it is released.
    ///
    /// Repairs the ring's shared header from what this consumer knows by itself, so that nothing which the
    /// dead process wrote there outlives it: the ring is empty and not closed.
    pub fn evict_producer(&mut self) {
        self.reader.repair(self.claim.ring.cursors());
        self.claim.evict_peer();
    }

    #[inline]
    fn find(&self, position: u64) -> Result<Option<Found>, Corrupt> {
        let ring = &self.claim.ring;
        let available = self.reader.available(ring.cursors(), position)?;
        if available == 0 {
            return Ok(None);
        }
        // SAFETY: positions are multiples of 8 (available checks it) and the base is page-aligned; available
        // is not 0, so the 8 bytes of a header are published here. Both sides access them as this atomic.
        let header = unsafe { ring.bytes(position).cast::<AtomicU64>().as_ref() };
        // Read once: a hostile producer may change it between two reads.
        let header = header.load(Ordering::Relaxed);
        let (len, tag) = (header as u32, (header >> 32) as u32);
        let size = footprint(len.into());
        if size > available {
            let range = 0..=available - RECORD_HEADER;
            return Err(Corrupt { what: "record length", value: len.into(), range });
        }
        Ok(Some(Found { payload: position + RECORD_HEADER, len: len as usize, tag, end: position + size }))
    }

    #[inline]
    fn borrow(&self, found: Found) -> Record<'_> {
        let payload = self.claim.ring.bytes(found.payload);
        // SAFETY: find has seen the payload inside the published bytes, of which there are at most capacity,
        // all mapped and initialised. A producer that keeps the protocol does not write to them before they
        // are released, which needs the consumer mutably (or acknowledged, which is its caller's word). One
        // that does not can change bytes, which are plain data to us, never bounds.
        let bytes = unsafe { slice::from_raw_parts(payload.as_ptr(), found.len) };
        Record { tag: found.tag, bytes, end: found.end }
    }
}

/// A record whose place in the ring has been checked.
struct Found {
    payload: u64,
    len: usize,
    tag: u32,
    end: u64,
}
