//! Provided buffers: memory that the kernel fills with what arrives, from one pool for all streams.
//!
//! Where the kernel can (Linux 6.12), receives share a buffer: each goes on behind the one before, so small
//! ones stand close together, which the caches like, and large ones still find room. Else each takes a
//! buffer for itself.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::param::page_size;

/// The number of the only group of buffers.
pub(super) const GROUP: u16 = 0;

/// Buffers that receives share; a power of two.
const SHARED: u16 = 4;

/// Buffers that are taken one by one; a power of two.
const SINGLE: u16 = 64;

/// `IOU_PBUF_RING_INC`.
const INCREMENTAL: u16 = 2;

/// The pool. The kernel holds every buffer but those that completions have handed over for good and that
/// were not given back yet.
pub(in crate::driver) struct Buffers {
    /// One mapping: the ring of descriptions, then the buffers.
    memory: NonNull<u8>,
    length: usize,
    /// Where the buffers start.
    offset: usize,
    /// Of one buffer.
    size: u32,
    /// A power of two.
    count: u16,
    /// How much of each buffer the kernel has handed over since it was given back.
    filled: Vec<Cell<u32>>,
}

/// What a completion hands over: a part of a buffer.
#[derive(Debug, Clone, Copy)]
pub(in crate::driver) struct Piece {
    number: u16,
    start: u32,
    length: u32,
    /// Nothing follows it in this buffer.
    is_last: bool,
}

impl Buffers {
    /// Hands a pool of `total` bytes to the kernel, with buffers that receives share, if they `can_share` and the
    /// kernel knows of it.
    ///
    /// # Safety
    ///
    /// The pool must outlive the ring.
    pub(super) unsafe fn register(
        total: usize,
        submitter: &Submitter<'_>,
        can_share: bool,
    ) -> io::Result<Self> {
        if can_share {
            let shared = Self::new(total, SHARED)?;
            // SAFETY: as the caller promises; the kernel keeps nothing of a pool that it refuses.
            match unsafe { shared.hand_over(submitter, INCREMENTAL) } {
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                result => return result.map(|()| shared),
            }
        }
        let single = Self::new(total, SINGLE)?;
        // SAFETY: as the caller promises.
        unsafe { single.hand_over(submitter, 0)? };
        Ok(single)
    }

    fn new(total: usize, count: u16) -> Result<Self, Errno> {
        let size = u32::try_from((total / usize::from(count)).max(1)).map_err(|_| Errno::INVAL)?;
        let offset = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(page_size());
        let length = offset + usize::from(count) * size as usize;
        // SAFETY: a new private mapping overlaps nothing.
        let memory = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let memory = NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { memory, length, offset, size, count, filled: vec![Cell::new(0); count.into()] })
    }

    pub(super) fn is_shared(&self) -> bool {
        self.count == SHARED
    }

    /// What there is of it.
    pub(super) fn description(&self) -> String {
        let how = if self.is_shared() { "shared" } else { "single" };
        format!("{} {how} receive buffers of {} bytes", self.count, self.size)
    }

    /// # Safety
    ///
    /// If it succeeds, the pool must outlive the ring. Once only.
    unsafe fn hand_over(&self, submitter: &Submitter<'_>, flags: u16) -> io::Result<()> {
        let address = self.memory.as_ptr() as u64;
        // SAFETY: the mapping starts with room for `count` entries, aligned to a page; the caller keeps it.
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, GROUP, flags)? };
        for number in 0..self.count {
            // SAFETY: until now all are this side's.
            unsafe { self.offer(number) };
        }
        Ok(())
    }

    /// What a completion hands over. Once for each, in their order.
    pub(super) fn take(&self, number: u16, length: u32, is_last: bool) -> Piece {
        let filled = &self.filled[usize::from(number)];
        let start = filled.get();
        assert!(length <= self.size - start, "the kernel says that it put more into a buffer than fits");
        filled.set(start + length);
        Piece { number, start, length, is_last }
    }

    /// Its bytes.
    ///
    /// # Safety
    ///
    /// `piece` must come from [`take`](Self::take), and not be given back as long as the slice lives.
    pub(super) unsafe fn bytes(&self, piece: Piece) -> &[u8] {
        let start = self.buffer(piece.number).wrapping_add(piece.start as usize);
        // SAFETY: inside the mapping by the assertion in `take`; initialised by the kernel or as a zeroed
        // page; the kernel writes to what follows it at most, until the buffer is given back, which the
        // caller promises not to do.
        unsafe { std::slice::from_raw_parts(start, piece.length as usize) }
    }

    /// Has no more use for a piece. The last one of a buffer returns the buffer to the kernel.
    ///
    /// # Safety
    ///
    /// `piece` must come from [`take`](Self::take) and be given back once, and so must all pieces before it.
    pub(super) unsafe fn give_back(&self, piece: Piece) {
        if piece.is_last {
            self.filled[usize::from(piece.number)].set(0);
            // SAFETY: its last completion has handed the whole buffer over, as the caller says.
            unsafe { self.offer(piece.number) };
        }
    }

    /// # Safety
    ///
    /// The buffer must be this side's.
    unsafe fn offer(&self, number: u16) {
        let entries = self.memory.cast::<BufRingEntry>();
        // SAFETY: the first entry is inside the mapping, which is zeroed, a valid entry. The tail is in a
        // field that it does not use.
        let tail = unsafe { &*BufRingEntry::tail(entries.as_ptr()).cast::<AtomicU16>() };
        let at = tail.load(Ordering::Relaxed);
        // SAFETY: the index is less than `count`. The kernel does not look at an entry beyond the tail, which
        // has `count` places for as many buffers, so this one is free; nobody else has a reference to it.
        unsafe {
            let entry = entries.add(usize::from(at % self.count)).as_ptr();
            (*entry).set_addr(self.buffer(number) as u64);
            (*entry).set_len(self.size);
            (*entry).set_bid(number);
        }
        // Release: the kernel sees the entry before the tail.
        tail.store(at.wrapping_add(1), Ordering::Release);
    }

    fn buffer(&self, number: u16) -> *mut u8 {
        debug_assert!(number < self.count);
        self.memory.as_ptr().wrapping_add(self.offset + usize::from(number) * self.size as usize)
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is this pool's own; the ring that could write to it is gone, as `register`'s
        // caller has promised, and slices cannot outlive the pool.
        let _unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    use io_uring::types::Fd;
    use io_uring::{IoUring, cqueue, opcode};

    use super::*;

    /// Both kinds of pool, several times round.
    #[test]
    fn buffers_come_back_whether_receives_share_them_or_not() {
        let Ok(mut ring) = IoUring::new(8) else { return };
        for can_share in [false, true] {
            // SAFETY: nothing is in flight when it is dropped, and it is unregistered before.
            let pool = unsafe { Buffers::register(6400, &ring.submitter(), can_share) }.unwrap();
            let (mut peer, ours) = UnixStream::pair().unwrap();
            let mut shares = false;
            for round in 0..1000_u32 {
                let sent = vec![round as u8; 1 + round as usize % 99];
                peer.write_all(&sent).unwrap();
                let mut got = Vec::new();
                while got.len() < sent.len() {
                    let recv =
                        opcode::Recv::new(Fd(ours.as_raw_fd()), std::ptr::null_mut(), 100).buf_group(GROUP);
                    let recv = recv.build().flags(io_uring::squeue::Flags::BUFFER_SELECT);
                    // SAFETY: it points to no memory, and the socket stays open.
                    unsafe { ring.submission().push(&recv) }.unwrap();
                    ring.submit_and_wait(1).unwrap();
                    let entry = ring.completion().next().unwrap();
                    let number = cqueue::buffer_select(entry.flags()).unwrap();
                    let is_more = cqueue::buffer_more(entry.flags());
                    shares |= is_more;
                    let piece = pool.take(number, entry.result().try_into().unwrap(), !is_more);
                    // SAFETY: taken just now, given back once, after the last look.
                    unsafe {
                        got.extend_from_slice(pool.bytes(piece));
                        pool.give_back(piece);
                    }
                }
                assert_eq!(got, sent);
            }
            assert!(can_share || !shares);
            ring.submitter().unregister_buf_ring(GROUP).unwrap();
        }
    }
}
