//! The end of a ring that writes.

use std::slice;

use super::cursors::{RECORD_HEADER, Writer, footprint};
use super::layout::Claim;
use crate::error::{Corrupt, Full};
use crate::sync::{AtomicU64, Ordering};

/// The writing end of a [`Ring`](super::Ring).
///
/// Records are written one after another, and become visible to the consumer together, by
/// [`publish`](Producer::publish).
#[derive(Debug)]
pub struct Producer {
    claim: Claim,
    writer: Writer,
    /// Length of the payload that the last `reserve` gave, until it is committed.
    reserved: usize,
    /// Where the last record written by this value starts.
    last: Option<u64>,
}

impl Producer {
    pub(super) fn open(claim: Claim) -> Result<Producer, Corrupt> {
        let writer = Writer::open(claim.ring.cursors(), claim.ring.capacity() as u64)?;
        Ok(Producer { claim, writer, reserved: 0, last: None })
    }

    /// Writes one record, whose payload is `parts` one after another. Not visible before
    /// [`publish`](Producer::publish).
    ///
    /// # Errors
    /// [`Full`] when the payload is larger than [`room`](Producer::room); nothing was written.
    #[inline]
    pub fn push(&mut self, tag: u32, parts: &[&[u8]]) -> Result<(), Full> {
        let needed = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let room = self.room();
        let Some(mut payload) = self.reserve(needed) else {
            return Err(Full { needed, room });
        };
        for part in parts {
            let (here, rest) = payload.split_at_mut(part.len());
            here.copy_from_slice(part);
            payload = rest;
        }
        self.commit(tag, needed);
        Ok(())
    }

    /// Space for a payload of up to `len` bytes, to write in place; [`commit`](Producer::commit) makes a
    /// record of it. The bytes found there are old. A second `reserve` gives the same space again.
    /// `None` when `len` is larger than [`room`](Producer::room).
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if !self.fits(len) {
            return None;
        }
        self.reserved = len;
        let payload = self.claim.ring.bytes(self.writer.position() + RECORD_HEADER);
        // SAFETY: `fits` says that header and payload lie in free space, so at most capacity bytes from
        // position on, all mapped and initialised. Free space is the producer's: this value is the only
        // producer of this process (private claim), the slice borrows it mutably, and a peer that keeps the
        // protocol neither reads nor writes here. One that does not can change bytes, never bounds.
        Some(unsafe { slice::from_raw_parts_mut(payload.as_ptr(), len) })
    }

    /// Makes a record of the first `len` bytes of what [`reserve`](Producer::reserve) gave. Not visible
    /// before [`publish`](Producer::publish).
    ///
    /// # Panics
    /// When `len` is more than was reserved.
    #[inline]
    pub fn commit(&mut self, tag: u32, len: usize) {
        assert!(len <= self.reserved && self.fits(len), "commit of {len} bytes, {} reserved", self.reserved);
        self.reserved = 0;
        let header = self.claim.ring.bytes(self.writer.position()).cast::<AtomicU64>();
        // SAFETY: positions are multiples of 8 and the base is page-aligned; the 8 bytes lie in free space
        // (see reserve). All processes access record headers as this atomic.
        let header = unsafe { header.as_ref() };
        // Relaxed: publish orders it. `len` is below CAPACITY_MAX, which is below 2^32.
        header.store(len as u64 | u64::from(tag) << 32, Ordering::Relaxed);
        self.last = Some(self.writer.position());
        self.writer.advance(footprint(len as u64));
    }

    /// Changes the tag of the last record written, if it is not published yet; false if there is none.
    /// So a record can be marked as the last of its batch when that is known.
    #[inline]
    pub fn retag(&mut self, change: impl FnOnce(u32) -> u32) -> bool {
        let Some(start) = self.last.filter(|&start| start >= self.writer.published()) else {
            return false;
        };
        let header = self.claim.ring.bytes(start).cast::<AtomicU64>();
        // SAFETY: as in commit, which wrote this header; it is not published, so it lies in free space still.
        let header = unsafe { header.as_ref() };
        let word = header.load(Ordering::Relaxed);
        let tag = change((word >> 32) as u32);
        header.store(word & u64::from(u32::MAX) | u64::from(tag) << 32, Ordering::Relaxed);
        true
    }

    /// Makes all records written so far visible, by one store.
    #[inline]
    pub fn publish(&mut self) {
        self.writer.publish(self.claim.ring.cursors());
    }

    /// End of the last record written: how many bytes were ever written, published or not.
    #[inline]
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// End of the last record published.
    #[inline]
    pub fn published(&self) -> u64 {
        self.writer.published()
    }

    /// The largest payload that `push` or `reserve` would take now, bytes. 0 may also mean that there is
    /// no room for an empty record either.
    #[inline]
    pub fn room(&self) -> usize {
        self.writer.free().saturating_sub(RECORD_HEADER) as usize
    }

    /// Consumer-freed mode: learns what the consumer has released meanwhile.
    ///
    /// # Errors
    /// [`Corrupt`] when the consumer's word cannot be true; the ring then gains no room.
    pub fn refresh(&mut self) -> Result<(), Corrupt> {
        self.writer.refresh(self.claim.ring.cursors())
    }

    /// Acked mode: frees everything before `position`, the end of a record that the consumer is done with,
    /// as it has said by another way.
    ///
    /// # Errors
    /// [`Corrupt`] when `position` was freed before, is not published yet, or is not a multiple of 8.
    /// Whether it is the end of a record is for the caller to know.
    #[inline]
    pub fn release_to(&mut self, position: u64) -> Result<(), Corrupt> {
        self.writer.release_to(self.claim.ring.cursors(), position)
    }

    /// Tells the consumer that nothing will be published after what is.
    pub fn close(&mut self) {
        self.writer.close(self.claim.ring.cursors());
    }

    /// The consumer's process is dead and reaped: a successor may claim its side. Where it starts must be
    /// set before ([`resume_at`](Producer::resume_at), [`rewind`](Producer::rewind)), unless the
    /// last released position is right: a successor that waits for the side may have it at once.
    ///
    /// Repairs the ring's shared header from what this producer knows by itself, so that nothing which the
    /// dead process wrote there outlives it. In consumer-freed mode its last releases are known only by a
    /// [`refresh`](Producer::refresh) before, which takes its word for them; without, the successor reads
    /// those records again.
    pub fn evict_consumer(&mut self) {
        self.writer.repair(self.claim.ring.cursors());
        self.claim.evict_peer();
    }

    /// With the consumer dead: drops everything published and unread, frees its space, and lets the next
    /// consumer start behind it. Returns that position. Records written but not published stay.
    pub fn rewind(&mut self) -> u64 {
        self.writer.rewind(self.claim.ring.cursors())
    }

    /// With the consumer dead: lets the next one start at `position`, the end of the last record that
    /// counts as done. Nothing is copied.
    ///
    /// # Errors
    /// [`Corrupt`] when `position` is freed, not published, or not a multiple of 8.
    pub fn resume_at(&mut self, position: u64) -> Result<(), Corrupt> {
        self.writer.resume_at(self.claim.ring.cursors(), position)
    }

    #[inline]
    fn fits(&self, len: usize) -> bool {
        let free = self.writer.free();
        len as u64 <= free && footprint(len as u64) <= free
    }
}
