//! Sleep until a word in shared memory changes: `futex(2)` on the low half of a 64-bit atomic.
//!
//! rustix has futexes on an `AtomicU32`. A word that names its owner wants 64 bits, and one value must not be accessed
//! as atomics of two sizes; the kernel, which compares 32 bits, may be shown half of it.

use std::ptr::null;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use libc::{FUTEX_WAIT, FUTEX_WAKE, SYS_futex, c_long, syscall, timespec};

/// Sleeps while the low 32 bits of `word` are `expected`, until [`wake`], or until `timeout` has passed (`None`: for ever).
///
/// False when the time is over. True means that something may have happened: also a signal, and a word that was another
/// one before the sleep. Works between processes (no `FUTEX_PRIVATE_FLAG`).
pub fn wait(word: &AtomicU64, expected: u32, timeout: Option<Duration>) -> bool {
    // Longer than the kernel can express is for ever.
    let limit = timeout.and_then(|timeout| {
        let tv_sec = timeout.as_secs().try_into().ok()?;
        Some(timespec { tv_sec, tv_nsec: timeout.subsec_nanos().into() })
    });
    let limit = limit.as_ref().map_or(null(), |limit| limit as *const timespec);
    // SAFETY: the address is of four live bytes, aligned as a half of an aligned u64 is; the kernel only reads them. The
    // time is null or points to a live value.
    let returned = unsafe { syscall(SYS_futex, low_half(word), FUTEX_WAIT, expected, limit) };
    returned != -1 || crate::last_error() != rustix::io::Errno::TIMEDOUT
}

/// Wakes up to `count` of those who sleep on `word`; how many that were. Nobody else can tell that one of them is killed
/// before it runs, so whoever must not be left asleep sleeps with a timeout.
pub fn wake(word: &AtomicU64, count: u32) -> usize {
    let count = count.min(i32::MAX as u32);
    // SAFETY: the kernel takes the address for a name and accesses nothing there.
    let returned: c_long = unsafe { syscall(SYS_futex, low_half(word), FUTEX_WAKE, count) };
    returned.try_into().unwrap_or(0)
}

fn low_half(word: &AtomicU64) -> *const u32 {
    word.as_ptr().cast::<u32>().wrapping_add(usize::from(cfg!(target_endian = "big")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::thread;

    use super::*;

    #[test]
    fn a_sleeper_is_woken_by_its_word() {
        let word = AtomicU64::new(7 << 32 | 1);
        assert!(wait(&word, 2, None), "another value is no reason to sleep");
        assert!(!wait(&word, 1, Some(Duration::from_millis(5))));
        assert_eq!(wake(&word, 1), 0);
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Relaxed) as u32 == 1 {
                    assert!(wait(&word, 1, Some(Duration::from_secs(20))), "nobody has woken it");
                }
            });
            while wake(&word, 1) == 0 {
                thread::yield_now();
            }
            word.store(2, Ordering::Relaxed);
            wake(&word, u32::MAX);
            sleeper.join().unwrap();
        });
    }
}
