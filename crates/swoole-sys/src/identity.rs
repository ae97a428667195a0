//! Who a process is, in one word, and whether it lives: what a lock in shared memory remembers of its owner.
//!
//! A pid alone is not enough, because the kernel gives it to somebody else in time. So it stands together with the moment
//! at which the process started.

use std::fs;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use rustix::param::page_size;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

/// A process, in 64 bits that are never 0: the pid in the low 31, above them a bit that is always 0 (free for whoever
/// stores the word), and in the high 32 the start of the process, in clock ticks since boot modulo 2^32, or 0 if
/// `/proc` did not tell.
///
/// All who compare identities must live in one pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity(u64);

impl Identity {
    /// The calling process. Costs no system call, but for the first time in each process.
    #[inline]
    pub fn current() -> Identity {
        match cell() {
            Some(cell) => match cell.load(Ordering::Relaxed) {
                0 => {
                    let identity = find_out();
                    cell.store(identity.0, Ordering::Relaxed);
                    identity
                }
                bits => Identity(bits),
            },
            None => find_out(),
        }
    }

    /// What [`bits`](Identity::bits) gave, in whatever process. The free bit is ignored.
    pub fn from_bits(bits: u64) -> Identity {
        Identity(bits & !(1 << 31))
    }

    /// As a word for others to read.
    #[inline]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The process id; `None` if the bits were nobody's.
    pub fn pid(self) -> Option<Pid> {
        Pid::from_raw((self.0 & u64::from(u32::MAX >> 1)) as i32)
    }

    /// Whether the process has not ended. One that nobody has reaped yet has ended; one that is stopped has not.
    ///
    /// Where the kernel does not tell (no descriptor left, no `/proc`), a process of that pid is taken for the one. Some
    /// microseconds.
    pub fn is_alive(self) -> bool {
        let Some(pid) = self.pid() else { return false };
        if self == Identity::current() {
            return true;
        }
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return false;
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Readable when all threads have ended.
            Ok(pidfd) => {
                let mut end = [PollFd::new(&pidfd, PollFlags::IN)];
                let ended = poll(&mut end, Some(&Timespec::default())).is_ok_and(|events| events > 0);
                if ended {
                    return false;
                }
            }
            Err(Errno::SRCH) => return false,
            Err(_) => {}
        }
        let (then, now) = (self.0 >> 32, start_of(pid.as_raw_pid()));
        then == 0 || now == 0 || then == now
    }
}

fn find_out() -> Identity {
    let pid = process::id();
    Identity(start_of(pid.cast_signed()) << 32 | u64::from(pid))
}

/// When a process started, modulo 2^32 and never 0; 0 if it cannot be told. (`proc_pid_stat(5)`, field 22.)
fn start_of(pid: i32) -> u64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0 };
    // The name before may hold anything, also parentheses; the third field comes after the last of them.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let start = fields.split_whitespace().nth(22 - 3).and_then(|start| start.parse::<u64>().ok());
    start.map_or(0, |start| u64::from(start as u32).max(1))
}

/// Where a process keeps its identity: in a page that the kernel wipes in a forked child (`MADV_WIPEONFORK`), because to
/// ask for the pid would be a system call. `None` if there is no such page.
#[inline]
fn cell() -> Option<&'static AtomicU64> {
    static CELL: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
    *CELL.get_or_init(|| {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: with no address given the kernel chooses a free range: no existing mapping is touched.
        let page =
            unsafe { mmap_anonymous(std::ptr::null_mut(), page_size(), protection, MapFlags::PRIVATE) };
        let page = page.ok()?;
        // SAFETY: the page is ours alone, and the advice changes only what a child sees.
        unsafe { madvise(page, page_size(), Advice::LinuxWipeOnFork) }.ok()?;
        // SAFETY: the page is never unmapped, aligned, and zeros at first, as in each child; all access it as this atomic.
        Some(unsafe { &*page.cast::<AtomicU64>() })
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_lives_until_it_ends_and_its_pid_is_not_enough() {
        let me = Identity::current();
        assert_eq!(me, Identity::current());
        assert_eq!(Identity::from_bits(me.bits() | 1 << 31), me);
        assert!(me.is_alive() && me.0 >> 32 != 0);

        let mut other = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = other.id();
        let identity = Identity(start_of(pid.cast_signed()) << 32 | u64::from(pid));
        assert!(identity.is_alive());
        assert!(Identity(u64::from(pid)).is_alive(), "its start is not known");
        assert!(!Identity(identity.0 + (1 << 32)).is_alive(), "another one has got the pid");
        other.kill().unwrap();
        while identity.is_alive() {
            std::thread::yield_now();
        }
        assert!(start_of(pid.cast_signed()) != 0, "nobody has reaped it, so it is still in the table");
        other.wait().unwrap();
        assert!(!identity.is_alive() && !Identity(u64::from(pid)).is_alive());
        assert!(!Identity::from_bits(0).is_alive());
    }
}
