//! Memory that processes share, and what of it this process has mapped.
//!
//! All of it is memfds (memfd_create(2)), sealed against shrinking and growing before anybody else can have them, so no
//! peer can turn an access into SIGBUS by truncating the file. A mapping does not need the descriptor any more: what is
//! created by itself ([`Ring::create`](crate::Ring::create)) closes it at once, and reaches children by the fork alone.
//! A [`Memory`] keeps it: whoever has that maps the parts that it needs, when it needs them.

use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

use crate::error::Error;

/// Memory that processes share by its descriptor: rings, words and doorbells lie in parts of it.
///
/// A part takes a whole number of pages, and begins at one ([`Ring::size`](crate::Ring::size),
/// [`Words::size`](crate::words::Words::size)). Which part is what, is for the owner to lay down; it is zeroed at first,
/// and a part of zeros is an empty ring, as it is words that are zero. Pages cost memory once they are touched.
///
/// A process that was not forked from the creator takes part by the descriptor (inherited across execve(2), or received
/// over a socket), and one that was need not have mapped more than it uses. To close the descriptor, drop the value;
/// what is mapped stays.
///
/// ```
/// use std::os::fd::AsFd as _;
///
/// use swoole_ipc::{Memory, Ring};
///
/// let memory = Memory::create("demo", Ring::size(64 << 10)?)?;
/// let ring = Ring::open(&memory, 0, "requests", 64 << 10)?;
/// ring.producer()?.push(1, &[b"hello"])?;
///
/// // In another process, say:
/// let memory = Memory::from_fd("demo", memory.as_fd().try_clone_to_owned()?)?;
/// let same = Ring::open(&memory, 0, "requests", 64 << 10)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Memory {
    name: String,
    file: OwnedFd,
    len: usize,
}

impl Memory {
    /// `len` bytes, rounded up to whole pages. `name` (up to 249 bytes) appears in errors and in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel has no descriptor left, or `len` is beyond what a file may have here (`ulimit -f`).
    pub fn create(name: &str, len: usize) -> Result<Memory, Error> {
        let page = rustix::param::page_size();
        let len = len.max(1).checked_next_multiple_of(page).unwrap_or(usize::MAX / page * page);
        Ok(Memory { name: name.to_owned(), file: sealed_file(name, len)?, len })
    }

    /// Memory that another process has created. That it cannot shrink any more is checked; what lies in it is not.
    ///
    /// # Errors
    /// [`Error::NotShared`] if the descriptor is something else; [`Error::Os`] when the kernel does not tell.
    pub fn from_fd(name: &str, file: OwnedFd) -> Result<Memory, Error> {
        let needed = SealFlags::SHRINK | SealFlags::GROW;
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(needed));
        let len = fstat(&file).map_err(Error::os("fstat", name))?.st_size;
        match usize::try_from(len) {
            Ok(len) if sealed => Ok(Memory { name: name.to_owned(), file, len }),
            _ => Err(Error::NotShared { name: name.to_owned() }),
        }
    }

    /// A file of a file system, as long as it is now: what lies in it outlives all processes, if not the machine.
    ///
    /// Nothing keeps it from being truncated, and whoever then touches what is gone ends by SIGBUS. So only for a file that
    /// nobody can write to but the process itself and those that it trusts with its life.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel does not tell how long it is.
    pub fn from_file(name: &str, file: OwnedFd) -> Result<Memory, Error> {
        let len = fstat(&file).map_err(Error::os("fstat", name))?.st_size;
        Ok(Memory { name: name.to_owned(), file, len: usize::try_from(len).unwrap_or_default() })
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes, which none that was created here has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `len` bytes from `start` on are a part of it.
    fn check(&self, start: usize, len: usize) -> Result<(), Error> {
        let inside = start.checked_add(len).is_some_and(|end| end <= self.len);
        if inside && start.is_multiple_of(rustix::param::page_size()) {
            Ok(())
        } else {
            Err(Error::NoSuchPart { name: self.name.clone(), start, len, size: self.len })
        }
    }
}

/// For the process that is to take part.
impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// For one that reads and writes it as a file.
impl From<Memory> for OwnedFd {
    fn from(memory: Memory) -> OwnedFd {
        memory.file
    }
}

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
    /// `len` bytes (a multiple of the page size) of `memory` from `start` on, mapped once.
    pub(crate) fn single(memory: &Memory, start: usize, len: usize) -> Result<Mapping, Error> {
        memory.check(start, len)?;
        let (protection, file) = (ProtFlags::READ | ProtFlags::WRITE, &memory.file);
        // SAFETY: with no address given the kernel chooses a free range: no existing mapping is touched.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, start as u64) };
        Mapping::over(base.map_err(Error::os("mmap", &memory.name))?.cast(), len)
    }

    /// Of `memory` from `start` on: `header` bytes, then `data` bytes, then the same `data` bytes once more (all
    /// multiples of the page size): what is written past the end of the first copy appears at its start.
    pub(crate) fn mirrored(
        memory: &Memory,
        start: usize,
        header: usize,
        data: usize,
    ) -> Result<Mapping, Error> {
        memory.check(start, header + data)?;
        let failed = |errno| Error::os("mmap", &memory.name)(errno);
        let len = header + 2 * data;
        // SAFETY: with no address given the kernel chooses a free range: no existing mapping is touched.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) };
        let mapping = Mapping::over(base.map_err(failed)?.cast(), len)?;
        mapping.fill(0, &memory.file, start, header + data).map_err(failed)?;
        mapping.fill(header + data, &memory.file, start + header, data).map_err(failed)?;
        Ok(mapping)
    }

    /// First byte of the mapping; page-aligned.
    #[inline]
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

    /// Asks the kernel for large pages.
    pub(crate) fn prefer_huge_pages(&self) -> Result<(), Errno> {
        // SAFETY: the range is this value's own; the advice changes by what the kernel backs it, and nothing of what is read
        // there.
        unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxHugepage) }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::ring::Ring;
    use crate::words::Words;

    const PAGE: usize = 4096;

    #[test]
    fn whoever_has_the_descriptor_finds_the_same_in_each_part() {
        let ring = Ring::size(PAGE).unwrap();
        let memory = Memory::create("parts", Words::size(2, 3) + 2 * ring).unwrap();
        let words = Words::open(&memory, 0, 2, 3).unwrap();
        let rings = |memory: &Memory| {
            [0, 1].map(|at| Ring::open(memory, Words::size(2, 3) + at * ring, "part", PAGE).unwrap())
        };
        let [first, second] = rings(&memory);
        words[1][2].store(7, Ordering::Relaxed);
        for (ring, bytes) in [(&first, b"one"), (&second, b"two")] {
            let mut producer = ring.producer().unwrap();
            producer.push(1, &[bytes]).unwrap();
            producer.publish();
        }

        let other = Memory::from_fd("parts", memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(other.len(), memory.len());
        let words = Words::open(&other, 0, 2, 3).unwrap();
        assert_eq!((words[0][2].load(Ordering::Relaxed), words[1][2].load(Ordering::Relaxed)), (0, 7));
        for (ring, bytes) in rings(&other).iter().zip([b"one", b"two"]) {
            let mut consumer = ring.consumer().unwrap();
            assert_eq!(consumer.next().unwrap().unwrap().bytes, bytes);
        }
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let memory = Memory::create("small", 2 * PAGE).unwrap();
        for start in [1, PAGE, 2 * PAGE, usize::MAX / PAGE * PAGE] {
            let error = Ring::open(&memory, start, "beyond", PAGE).unwrap_err();
            assert!(matches!(error, Error::NoSuchPart { .. }), "{start}: {error}");
        }
        assert!(matches!(Words::open(&memory, 0, 3, 1), Err(Error::NoSuchPart { .. })));
        assert!(Words::open(&memory, PAGE, 1, 1).is_ok());
    }

    #[test]
    fn what_lies_in_a_file_outlives_its_mapping() {
        let path = std::env::temp_dir().join(format!("swoole-ipc-memory-{}", std::process::id()));
        let open = || {
            let file = std::fs::OpenOptions::new();
            { file }.read(true).write(true).create(true).truncate(false).open(&path).unwrap()
        };
        open().set_len(PAGE as u64).unwrap();
        let words = || Words::open(&Memory::from_file("file", open().into()).unwrap(), 0, 1, 3).unwrap();
        words()[0][2].store(7, Ordering::Relaxed);
        assert_eq!(words()[0][2].load(Ordering::Relaxed), 7);
        let short = Memory::from_file("file", open().into()).unwrap();
        assert!(matches!(Words::open(&short, PAGE, 1, 3), Err(Error::NoSuchPart { .. })));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn only_what_cannot_shrink_is_memory() {
        for file in [memfd("unsealed").unwrap(), rustix::pipe::pipe().unwrap().0] {
            assert!(matches!(Memory::from_fd("other", file), Err(Error::NotShared { .. })));
        }
    }
}
