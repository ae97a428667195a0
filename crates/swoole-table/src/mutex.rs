//! A mutex for processes.

use std::fmt;
use std::time::Duration;

use swoole_ipc::words::Words;

use crate::error::{Error, Timeout};
use crate::lock::{self, Lock, Taken};

/// A lock in shared memory that one process, or thread, holds at a time (Swoole: `Swoole\Lock`, `MUTEX`).
///
/// Created before the fork; clones, also those that a fork makes, are the same lock. **Robust**: if its holder dies, whoever
/// waits gets it within some milliseconds, and is told ([`MutexGuard::owner_died`]), because what the lock protects may be
/// half changed. A process that is stopped (`SIGSTOP`) is not dead.
///
/// Whoever holds it and locks it again waits for ever. Processes of another pid namespace must not use it: they would take
/// its holder for dead.
///
/// ```
/// let mutex = swoole_table::Mutex::create("accounts")?;
/// let guard = mutex.lock();
/// if guard.owner_died() {
///     // look after what the lock protects
/// }
/// # Ok::<(), swoole_table::Error>(())
/// ```
#[derive(Clone)]
pub struct Mutex {
    words: Words,
}

impl Mutex {
    /// A lock that nobody holds. `name` appears in errors and in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`Error::Memory`] when the kernel has no memory left.
    pub fn create(name: &str) -> Result<Mutex, Error> {
        Ok(Mutex { words: Words::create(name, 1)? })
    }

    /// Waits for it.
    pub fn lock(&self) -> MutexGuard<'_> {
        let me = lock::me();
        let taken = self.word().take(me);
        MutexGuard { lock: self.word(), me, taken }
    }

    /// Takes it, if nobody alive holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_>> {
        let (lock, me) = (self.word(), lock::me());
        let guard = |taken| MutexGuard { lock, me, taken };
        if lock.try_take(me) {
            return Some(guard(Taken::Orderly));
        }
        lock.take_from_dead(me).then(|| guard(Taken::FromDead))
    }

    /// Waits for it, for `timeout` at most.
    ///
    /// # Errors
    /// [`Timeout`] names who holds it.
    pub fn lock_for(&self, timeout: Duration) -> Result<MutexGuard<'_>, Timeout> {
        let (lock, me) = (self.word(), lock::me());
        let taken = lock.wait(me, lock::deadline(timeout))?;
        Ok(MutexGuard { lock, me, taken })
    }

    fn word(&self) -> Lock<'_> {
        Lock(&self.words[0])
    }
}

/// The lock is held until this is dropped. A child that is forked meanwhile does not hold it, whatever becomes of its copy.
#[must_use = "the lock is given back at once"]
pub struct MutexGuard<'a> {
    lock: Lock<'a>,
    me: u64,
    taken: Taken,
}

impl MutexGuard<'_> {
    /// Whether whoever held the lock before has died with it. The next one is not told any more.
    pub fn owner_died(&self) -> bool {
        self.taken == Taken::FromDead
    }
}

impl Drop for MutexGuard<'_> {
    fn drop(&mut self) {
        if lock::me() == self.me {
            self.lock.give_back(self.me);
        }
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl fmt::Debug for MutexGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutexGuard").field("owner_died", &self.owner_died()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let mutex = Mutex::create("mutex").unwrap();
        let guard = mutex.lock();
        assert!(!guard.owner_died() && mutex.try_lock().is_none());
        let timeout = mutex.lock_for(Duration::from_millis(5)).unwrap_err();
        assert_eq!(timeout.pid, std::process::id().cast_signed());
        drop(guard);
        assert!(!mutex.try_lock().unwrap().owner_died());
        assert!(mutex.lock_for(Duration::ZERO).is_ok(), "it is free, so no time is needed");
        let mut total = 0;
        let place = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..3000 {
                        let _guard = mutex.lock();
                        let seen = place.load(std::sync::atomic::Ordering::Relaxed);
                        place.store(seen + 1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        total += place.into_inner();
        assert_eq!(total, 9000);
    }
}
