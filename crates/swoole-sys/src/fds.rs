//! Close everything that a child has no business with.

use std::fs;
use std::os::fd::RawFd;

use rustix::io::{Errno, Result};

/// Standard input, output and error.
const STANDARD: [RawFd; 3] = [0, 1, 2];

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
