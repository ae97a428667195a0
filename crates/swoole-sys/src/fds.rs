//! Wait for descriptors known by number, and close everything that a child has no business with.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::{Errno, Result};

/// Standard input, output and error.
const STANDARD: [RawFd; 3] = [0, 1, 2];

/// A copy of a descriptor that this process has from whoever executed it, known by its number only; closed across the
/// next `execve(2)`. The inherited one stays open.
///
/// # Errors
///
/// `EBADF` if there is none of that number, `EMFILE` at the limit of descriptors.
pub fn inherited(fd: RawFd) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is not -1, and borrowed for this one system call only, which says so if it is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

/// As [`inherited`], and the inherited one is closed: nothing that this process executes has it any more.
///
/// # Precondition
///
/// Nobody in this process owns a descriptor of that number.
///
/// # Errors
///
/// As there.
pub fn adopt(fd: RawFd) -> Result<OwnedFd> {
    let own = inherited(fd)?;
    // SAFETY: closing a descriptor touches no memory. That it is nobody's is the precondition.
    unsafe { libc::close(fd) };
    Ok(own)
}

/// Closes every descriptor of this process that is not in `keep`. 0, 1 and 2 are always kept; numbers in
/// `keep` that are not open, or negative, do no harm.
///
/// Uses `close_range(2)`, one call per gap, or the list in `/proc/self/fd` where that call is missing
/// (before Linux 5.9) or forbidden (an old seccomp filter).
///
/// # Precondition
///
/// For the first moments of a forked child, before it opens anything. The owners of the closed descriptors
/// (`OwnedFd`, `File`, `TcpListener`) still exist in the copied memory; **they must be neither used nor
/// dropped afterwards**: their numbers will soon mean something else, and a debug build of the standard
/// library aborts when it closes a closed descriptor. A child that ends in [`crate::process::run_child`]
/// drops nothing that its parent owned.
///
/// # Errors
///
/// Only from the fallback: `/proc` is not mounted, or cannot be read.
pub fn close_all_except(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().chain(&STANDARD).copied().filter(|&fd| fd >= 0).collect();
    keep.sort_unstable();
    keep.dedup();
    match close_gaps(&keep) {
        Err(Errno::NOSYS | Errno::PERM) => close_listed(&keep),
        closed => closed,
    }
}

fn close_gaps(keep: &[RawFd]) -> Result<()> {
    let starts = keep.iter().map(|&fd| fd.cast_unsigned() + 1);
    let ends = keep[1..].iter().map(|&fd| fd.cast_unsigned() - 1).chain([u32::MAX]);
    for (first, last) in starts.zip(ends).filter(|(first, last)| first <= last) {
        // SAFETY: closing descriptors touches no memory. That nobody uses them any more is the
        // precondition of `close_all_except`.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
            return Err(crate::last_error());
        }
    }
    Ok(())
}

fn close_listed(keep: &[RawFd]) -> Result<()> {
    let listed = fs::read_dir("/proc/self/fd")
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>())
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let open = listed.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    for fd in open.filter(|fd| keep.binary_search(fd).is_err()) {
        // SAFETY: as in `close_gaps`. The one that listed the directory is closed already: EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// What [`wait_readable`] found out about a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// A read would not block: there is data, the end, a hang-up or an error.
    Readable,
    /// The number is no open descriptor.
    Closed,
}

/// Waits until one of `fds` is readable, hung up or no descriptor at all, or until `timeout` is over (`None`:
/// for ever), and returns those that are, in the order of the list: `ppoll(2)`.
///
/// For a process with few descriptors and rare events. Unlike an epoll instance it keeps no state, so it
/// cannot report a descriptor that this process has closed while a child still holds it.
///
/// # Errors
///
/// `ENOMEM`; `EINVAL` with more descriptors than `RLIMIT_NOFILE`. A signal handler that runs meanwhile ends
/// the wait with an empty list.
pub fn wait_readable(fds: &[RawFd], timeout: Option<Duration>) -> Result<Vec<(RawFd, Readiness)>> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the list has as many entries as the length says, the timeout is null or lives until the
    // return, and no mask is given. Polling a number that is no descriptor is defined.
    let count = unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as _, timeout, std::ptr::null()) };
    match crate::check(count) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let readiness = |entry: &libc::pollfd| match entry.revents {
        0 => None,
        events if events & libc::POLLNVAL != 0 => Some((entry.fd, Readiness::Closed)),
        _ => Some((entry.fd, Readiness::Readable)),
    };
    Ok(polled.iter().filter_map(readiness).collect())
}
