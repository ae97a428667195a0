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
use crate::memory::Mapping;

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
    count: usize,
}

impl Words {
    /// `count` words; `name` (up to 249 bytes) appears in errors and in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel has no descriptor or memory left.
    pub fn create(name: &str, count: usize) -> Result<Words, Error> {
        let page = rustix::param::page_size();
        let bytes = count.max(1).saturating_mul(size_of::<AtomicU64>());
        let len = bytes.checked_next_multiple_of(page).unwrap_or(usize::MAX / page * page);
        Ok(Words { pages: Arc::new(Mapping::single(name, len)?), count })
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
        self.pages.protect().map_err(Error::os("mprotect", "shared words"))
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds at least `count` words, is page-aligned, initialised (zero) and lives
        // as long as self; all processes access it as these atomics only, for which any bits are valid.
        unsafe { slice::from_raw_parts(self.pages.base().as_ptr().cast::<AtomicU64>(), self.count) }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words").field("count", &self.count).finish_non_exhaustive()
    }
}
