//! Words in shared memory, for small facts that every process may read.
//!
//! Atomics of 64 bits and nothing else: any value that anybody stores is valid, so there is nothing
//! here to corrupt but the facts themselves. What they mean, who may write which, and in which order
//! is for their owner to say (memory orderings work between processes as between threads).

use std::fmt;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::error::Error;
use crate::memory::{Mapping, Memory};

/// A slice of atomics in shared memory, zero at first.
///
/// Created before the fork; clones, also those that a fork makes, are the same words. Pages cost memory
/// once they are touched.
///
/// ```
/// use std::sync::atomic::Ordering;
///
/// let counters = swoole_ipc::words::Words::create("counters", 2)?;
/// counters[1].fetch_add(7, Ordering::Relaxed); // seen by every process that has forked from this one
/// assert_eq!(counters[1].load(Ordering::Relaxed), 7);
/// # Ok::<(), swoole_ipc::Error>(())
/// ```
#[derive(Clone)]
pub struct Words {
    pages: Arc<Mapping>,
    /// Where they begin in it, in bytes: at a page.
    start: usize,
    count: usize,
}

impl Words {
    /// `count` words; `name` (up to 249 bytes) appears in errors and in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel has no descriptor or memory left.
    pub fn create(name: &str, count: usize) -> Result<Words, Error> {
        let mut rows = Words::rows(name, 1, count)?;
        Ok(rows.swap_remove(0))
    }

    /// So many rows of `count` words each, every one on pages of its own, in one mapping: many mappings make each fork
    /// dearer. [`protect_others`](Words::protect_others) leaves a process its own row.
    ///
    /// # Errors
    /// As [`create`](Words::create).
    pub fn rows(name: &str, rows: usize, count: usize) -> Result<Vec<Words>, Error> {
        Words::open(&Memory::create(name, Words::size(rows, count))?, 0, rows, count)
    }

    /// Bytes of shared memory that so many rows of `count` words take; a whole number of pages.
    pub fn size(rows: usize, count: usize) -> usize {
        row_size(count).saturating_mul(rows.max(1))
    }

    /// As [`rows`](Words::rows), in the part of `memory` that begins at `start`: the same words for all who open them
    /// there.
    ///
    /// # Errors
    /// [`Error::NoSuchPart`]; [`Error::Os`] when the kernel has no memory or mappings left.
    pub fn open(memory: &Memory, start: usize, rows: usize, count: usize) -> Result<Vec<Words>, Error> {
        let pages = Arc::new(Mapping::single(memory, start, Words::size(rows, count))?);
        let row = |row| Words { pages: Arc::clone(&pages), start: row * row_size(count), count };
        Ok((0..rows).map(row).collect())
    }

    /// Asks the kernel to back them with pages of 2 MiB (on x86-64) instead of 4 KiB, in this process and the children that it
    /// forks from now on: for many words that are read here and there, so that fewer addresses have to be looked up. Each
    /// page costs its memory when it is touched first, then. Only a wish: it depends on
    /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` (`advise`), and on there being such pages.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel has no such pages at all.
    pub fn prefer_huge_pages(&self) -> Result<(), Error> {
        self.pages.prefer_huge_pages().map_err(Error::os("madvise", "huge pages"))
    }

    /// Makes the words read-only in this process (all clones) and the children that it forks from now on,
    /// because they belong to others: whoever writes to them here afterwards dies by SIGSEGV instead of
    /// confusing those. Other processes are not affected.
    ///
    /// A protection against wild writes, not against hostile code, which can undo it (mprotect(2)).
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel has no memory for another mapping (ENOMEM).
    pub fn protect(&self) -> Result<(), Error> {
        self.protect_to(self.start + row_size(self.count))
    }

    /// As [`protect`](Words::protect), for all of these rows but number `own`, if there is one of that number. They are
    /// those that [`rows`](Words::rows) made together, in their order.
    ///
    /// # Errors
    /// As [`protect`](Words::protect).
    pub fn protect_others(rows: &[Words], own: Option<usize>) -> Result<(), Error> {
        let own = own.unwrap_or(rows.len());
        let (before, rest) = rows.split_at(own.min(rows.len()));
        for part in [before, rest.get(1..).unwrap_or_default()] {
            if let (Some(first), Some(last)) = (part.first(), part.last()) {
                debug_assert!(part.iter().all(|row| Arc::ptr_eq(&row.pages, &first.pages)));
                first.protect_to(last.start + row_size(last.count))?;
            }
        }
        Ok(())
    }

    fn protect_to(&self, end: usize) -> Result<(), Error> {
        self.pages.protect(self.start..end).map_err(Error::os("mprotect", "shared words"))
    }
}

/// Bytes of the pages that so many words take.
fn row_size(count: usize) -> usize {
    let page = rustix::param::page_size();
    let bytes = count.max(1).saturating_mul(size_of::<AtomicU64>());
    bytes.checked_next_multiple_of(page).unwrap_or(usize::MAX / page * page)
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `open`, which alone makes these values, has put `start` inside the mapping.
        let first = unsafe { self.pages.base().as_ptr().add(self.start) };
        // SAFETY: the mapping holds at least `count` words from there on, is page-aligned as `start` is, initialised
        // (zero) and lives as long as self; all processes access it as these atomics only, for which any bits are valid.
        unsafe { slice::from_raw_parts(first.cast::<AtomicU64>(), self.count) }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words").field("count", &self.count).finish_non_exhaustive()
    }
}
