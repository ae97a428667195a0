//! Provided buffers: memory that the kernel fills with what arrives, from one pool for all streams.

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

/// Buffers in the pool; a power of two.
pub(super) const COUNT: u16 = 64;

/// The pool. The kernel holds every buffer but those whose numbers completions have handed over and that
/// were not given back yet.
pub(in crate::driver) struct Buffers {
    /// One mapping: the ring of descriptions, then the buffers.
    memory: NonNull<u8>,
    length: usize,
    /// Where the buffers start.
    offset: usize,
    /// Of one buffer.
    size: u32,
}

impl Buffers {
    /// Memory for [`COUNT`] buffers of `size` bytes.
    pub(super) fn new(size: usize) -> Result<Self, Errno> {
        let size = u32::try_from(size).map_err(|_| Errno::INVAL)?;
        let offset = (usize::from(COUNT) * size_of::<BufRingEntry>()).next_multiple_of(page_size());
        let length = offset + usize::from(COUNT) * size as usize;
        // SAFETY: a new private mapping overlaps nothing.
        let memory = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        Ok(Self { memory: NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?, length, offset, size })
    }

    /// Of one buffer, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    /// Hands all buffers to the kernel.
    ///
    /// # Safety
    ///
    /// The pool must outlive the ring.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.memory.as_ptr() as u64;
        // SAFETY: the mapping starts with room for COUNT entries, aligned to a page; the caller keeps it.
        unsafe { submitter.register_buf_ring_with_flags(address, COUNT, GROUP, 0)? };
        for number in 0..COUNT {
            // SAFETY: until now all are this side's.
            unsafe { self.give_back(number) };
        }
        Ok(())
    }

    /// The first `length` bytes of a buffer.
    ///
    /// # Safety
    ///
    /// A completion must have handed `number` over with at least `length` bytes, and it must not be given
    /// back as long as the slice lives.
    pub(super) unsafe fn bytes(&self, number: u16, length: usize) -> &[u8] {
        assert!(length <= self.size() && number < COUNT, "the kernel names a buffer that it was never given");
        // SAFETY: inside the mapping by the assertion; initialised by the kernel or as a zeroed page; not
        // written to while it is this side's, which the caller promises.
        unsafe { std::slice::from_raw_parts(self.buffer(number), length) }
    }

    /// Returns a buffer to the kernel.
    ///
    /// # Safety
    ///
    /// A completion must have handed `number` over since it was last given back.
    pub(super) unsafe fn give_back(&self, number: u16) {
        let entries = self.memory.cast::<BufRingEntry>();
        // SAFETY: the first entry is inside the mapping, which is zeroed, a valid entry. The tail is in a
        // field that it does not use.
        let tail = unsafe { &*BufRingEntry::tail(entries.as_ptr()).cast::<AtomicU16>() };
        let at = tail.load(Ordering::Relaxed);
        // SAFETY: the index is less than COUNT. The kernel does not look at an entry beyond the tail, which
        // has COUNT places for as many buffers, so this one is free; nobody else has a reference to it.
        unsafe {
            let entry = entries.add(usize::from(at % COUNT)).as_ptr();
            (*entry).set_addr(self.buffer(number) as u64);
            (*entry).set_len(self.size);
            (*entry).set_bid(number);
        }
        // Release: the kernel sees the entry before the tail.
        tail.store(at.wrapping_add(1), Ordering::Release);
    }

    fn buffer(&self, number: u16) -> *mut u8 {
        debug_assert!(number < COUNT);
        self.memory.as_ptr().wrapping_add(self.offset + usize::from(number) * self.size())
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is this pool's own; the ring that could write to it is gone, as `register`'s
        // caller has promised, and slices cannot outlive the pool.
        let _unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.length) };
    }
}
