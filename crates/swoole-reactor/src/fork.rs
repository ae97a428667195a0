//! Notices, without a system call, that the process has forked.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::param::page_size;

/// A page that the kernel fills with zeros in a forked child (`MADV_WIPEONFORK`, `madvise(2)`, Linux 4.14).
///
/// Comparing process ids would cost a system call for each check.
pub(crate) struct ForkGuard(NonNull<AtomicU32>);

impl ForkGuard {
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: a new private mapping overlaps nothing.
        let page = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                page_size(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let guard = Self(NonNull::new(page.cast()).ok_or(Errno::NOMEM)?);
        // SAFETY: the page is this guard's own, and the advice changes only what a child sees.
        unsafe { madvise(page, page_size(), Advice::LinuxWipeOnFork)? };
        guard.word().store(1, Ordering::Relaxed);
        Ok(guard)
    }

    /// Whether this is another process than the one that made the guard.
    #[inline]
    pub(crate) fn has_forked(&self) -> bool {
        self.word().load(Ordering::Relaxed) == 0
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is aligned, at least a page long, initialised with zeros by the kernel and
        // lives until `drop`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        // SAFETY: the mapping is this guard's own, and nobody has a reference into it any more. It exists in
        // a child too.
        let _kept = unsafe { munmap(self.0.as_ptr().cast(), page_size()) };
    }
}
