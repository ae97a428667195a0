//! Pages that this process and the children it forks from now on share.
//!
//! A mapping is a memfd (memfd_create(2)), sealed against shrinking and growing before anybody else can
//! have it, so no peer can turn an access into SIGBUS by truncating the file. The descriptor is closed
//! as soon as the pages are mapped: children inherit the mapping, and a child that closes all descriptors
//! it does not know must not invalidate one that we would close a second time.

use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

use crate::error::Error;

/// Shared pages; zeroed at creation, unmapped when dropped (in this process only).
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a Mapping is an address range that stays mapped until drop; it hands out only raw pointers, and
// whoever dereferences them answers for races.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the Mapping through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes (a multiple of the page size), mapped once.
    pub(crate) fn single(name: &str, len: usize) -> Result<Mapping, Error> {
        let file = sealed_file(name, len)?;
        // SAFETY: with no address given the kernel chooses a free range: no existing mapping is touched.
        let base = unsafe {
            mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        };
        Mapping::over(base.map_err(Error::os("mmap", name))?.cast(), len)
    }

    /// `header` bytes, then `data` bytes, then the same `data` bytes once more (all multiples of the page
    /// size): what is written past the end of the first copy appears at its start.
    pub(crate) fn mirrored(name: &str, header: usize, data: usize) -> Result<Mapping, Error> {
        let file = sealed_file(name, header + data)?;
        let len = header + 2 * data;
        // SAFETY: with no address given the kernel chooses a free range: no existing mapping is touched.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) };
        let mapping = Mapping::over(base.map_err(Error::os("mmap", name))?.cast(), len)?;
        mapping.fill(0, &file, 0, header + data).map_err(Error::os("mmap", name))?;
        mapping.fill(header + data, &file, header, data).map_err(Error::os("mmap", name))?;
        Ok(mapping)
    }

    /// First byte of the mapping; page-aligned.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Makes the pages of these bytes (multiples of the page size) read-only, in this process and the children that it
    /// forks from now on.
    pub(crate) fn protect(&self, bytes: Range<usize>) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        assert!(bytes.end <= self.len, "a part of a mapping lies inside it");
        // SAFETY: the assertion keeps the address inside the range that this value owns.
        let address = unsafe { self.base.as_ptr().add(bytes.start) };
        // SAFETY: as checked, the range is this value's own, and stays mapped and readable. A store through a pointer
        // given out before ends the process (SIGSEGV), which is what the caller asks for.
        unsafe { mprotect(address.cast(), bytes.len(), MprotectFlags::READ) }
    }

    /// Whether children that are forked from now on have the pages (madvise(2), MADV_DONTFORK). In one that has not,
    /// this value must not be used, nor dropped.
    pub(crate) fn set_inherited(&self, inherited: bool) -> Result<(), Errno> {
        let advice = if inherited { Advice::LinuxDoFork } else { Advice::LinuxDontFork };
        // SAFETY: the range is this value's own; the advice changes nothing about it in this process.
        unsafe { madvise(self.base.as_ptr().cast(), self.len, advice) }
    }

    fn over(base: *mut u8, len: usize) -> Result<Mapping, Error> {
        // mmap never returns null for success unless asked to; the type wants proof.
        let base = NonNull::new(base).ok_or(Errno::NOMEM).map_err(Error::os("mmap", "address 0"))?;
        Ok(Mapping { base, len })
    }

    /// Puts `len` bytes of `file` from `offset` on at `at` bytes into the reserved range.
    fn fill(&self, at: usize, file: &OwnedFd, offset: usize, len: usize) -> Result<(), Errno> {
        assert!(at + len <= self.len, "a part of a mapping lies inside it");
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: the assertion keeps the address inside the range that this value owns.
        let address = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: MAP_FIXED replaces only pages of our own reservation (checked above), which nobody has
        // been given a pointer to yet: both constructors call this before they return.
        unsafe { mmap(address.cast(), len, protection, flags, file, offset as u64) }.map(|_| ())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap gave, and every pointer into the range is held by a value
        // that also holds this Mapping (by Arc). An error would leave the range mapped, which harms nobody.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn sealed_file(name: &str, len: usize) -> Result<OwnedFd, Error> {
    let file = memfd(name).map_err(Error::os("memfd_create", name))?;
    ftruncate(&file, len as u64).map_err(Error::os("ftruncate", name))?;
    fcntl_add_seals(file.as_fd(), SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(Error::os("fcntl(F_ADD_SEALS)", name))?;
    Ok(file)
}

/// A memfd that takes seals. Not executable where the kernel knows how (6.3): some hosts refuse others
/// (sysctl vm.memfd_noexec=2).
pub(crate) fn memfd(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        result => result,
    }
}
