//! A lock for processes that many may hold to read, or one to write.

use std::fmt;
use std::time::Duration;

use swoole_ipc::words::Words;

use crate::error::{Error, Timeout};
use crate::lock::{self, Lock, Taken};
use crate::sync::Ordering;

/// A lock in shared memory that several hold to read, or one to write (Swoole: `Swoole\Lock`, `RWLOCK`).
///
/// Created before the fork; clones, also those that a fork makes, are the same lock. **Robust**, as [`Mutex`](crate::Mutex)
/// is: a reader that dies is passed over; if a writer dies, the next holder, reader or writer, is told ([`owner_died`]).
///
/// Each reader has a place of its own, which says who it is, so there is room for a number that is chosen at the beginning;
/// one more waits. A writer that waits keeps new readers out.
///
/// [`owner_died`]: RwLockGuard::owner_died
///
/// ```
/// let lock = swoole_table::RwLock::create("routes", 64)?;
/// drop(lock.read());
/// drop(lock.write());
/// # Ok::<(), swoole_table::Error>(())
/// ```
#[derive(Clone)]
pub struct RwLock {
    /// The writer's word, one that is not 0 after a writer's death, then the readers'.
    words: Words,
}

const WRITER: usize = 0;
const DIED: usize = 1;
const READERS: usize = 2;

impl RwLock {
    /// A lock that nobody holds, and that up to `readers` (1 at least) may hold to read at a time, in 8 bytes each. `name`
    /// appears in errors and in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`Error::Memory`] when the kernel has no memory left.
    pub fn create(name: &str, readers: usize) -> Result<RwLock, Error> {
        Ok(RwLock { words: Words::create(name, readers.max(1).saturating_add(READERS))? })
    }

    /// Waits until nobody writes, or wants to.
    pub fn read(&self) -> RwLockGuard<'_> {
        let me = lock::me();
        if let Some(guard) = self.enter(me) {
            return guard;
        }
        // In the queue of the writers; then there is none, and the place can be waited for.
        let writer = self.word(WRITER);
        let died = self.settle(writer.take(me));
        let place = self.free_place(me).unwrap_or_else(|| {
            let place = self.word(READERS + me as usize % self.readers());
            place.take(me);
            place
        });
        writer.give_back(me);
        RwLockGuard { lock: place, me, died }
    }

    /// Takes it to read, if nobody alive writes, or wants to, and there is a place.
    pub fn try_read(&self) -> Option<RwLockGuard<'_>> {
        let me = lock::me();
        if let Some(guard) = self.enter(me) {
            return Some(guard);
        }
        // Who stands there may be dead.
        let writer = self.word(WRITER);
        let taken = match writer.try_take(me) {
            true => Taken::Orderly,
            false if writer.take_from_dead(me) => Taken::FromDead,
            false => return None,
        };
        let died = self.settle(taken);
        let dead = || self.places(me).find(|place| place.take_from_dead(me));
        let place = self.free_place(me).or_else(dead);
        if place.is_none() {
            self.leave_word(died);
        }
        writer.give_back(me);
        place.map(|lock| RwLockGuard { lock, me, died })
    }

    /// Waits until nobody reads or writes.
    pub fn write(&self) -> RwLockGuard<'_> {
        let me = lock::me();
        let writer = self.word(WRITER);
        let died = self.settle(writer.take(me));
        for place in READERS..self.words.len() {
            let reader = self.word(place);
            // Who holds the place is waited for, and passed over if it is dead.
            if reader.0.load(Ordering::SeqCst) != 0 {
                reader.take(me);
                reader.give_back(me);
            }
        }
        RwLockGuard { lock: writer, me, died }
    }

    /// As [`write`](RwLock::write), for `timeout` at most.
    ///
    /// # Errors
    /// [`Timeout`] names one who holds it.
    pub fn write_for(&self, timeout: Duration) -> Result<RwLockGuard<'_>, Timeout> {
        let (me, deadline) = (lock::me(), lock::deadline(timeout));
        let writer = self.word(WRITER);
        let died = self.settle(writer.wait(me, deadline)?);
        // Gives the lock back when a reader takes too long.
        let guard = RwLockGuard { lock: writer, me, died };
        for place in READERS..self.words.len() {
            let reader = self.word(place);
            if reader.0.load(Ordering::SeqCst) != 0 {
                if let Err(timeout) = reader.wait(me, deadline) {
                    self.leave_word(died);
                    return Err(timeout);
                }
                reader.give_back(me);
            }
        }
        Ok(guard)
    }

    /// Takes it to read without waiting for anything.
    fn enter(&self, me: u64) -> Option<RwLockGuard<'_>> {
        let writer = self.word(WRITER);
        if writer.0.load(Ordering::SeqCst) != 0 {
            return None;
        }
        let place = self.free_place(me)?;
        // A writer takes its word first and looks at the places then; this looks in the other order, so one of the two sees
        // the other.
        if writer.0.load(Ordering::SeqCst) != 0 {
            place.give_back(me);
            return None;
        }
        Some(RwLockGuard { lock: place, me, died: self.settle(Taken::Orderly) })
    }

    fn free_place(&self, me: u64) -> Option<Lock<'_>> {
        self.places(me).find(|place| place.0.load(Ordering::Relaxed) == 0 && place.try_take(me))
    }

    /// All of them; each process begins elsewhere.
    fn places(&self, me: u64) -> impl Iterator<Item = Lock<'_>> {
        let count = self.readers();
        (0..count).map(move |index| self.word(READERS + (me as usize + index) % count))
    }

    /// The next holder is to hear of a death in place of this one.
    fn leave_word(&self, died: bool) {
        if died {
            self.words[DIED].store(1, Ordering::SeqCst);
        }
    }

    /// Whether the writer's word was a dead one's, or the death of one has not been told yet.
    fn settle(&self, taken: Taken) -> bool {
        let untold =
            self.words[DIED].load(Ordering::SeqCst) != 0 && self.words[DIED].swap(0, Ordering::SeqCst) != 0;
        untold || taken == Taken::FromDead
    }

    fn readers(&self) -> usize {
        self.words.len() - READERS
    }

    fn word(&self, at: usize) -> Lock<'_> {
        Lock(&self.words[at])
    }
}

/// The lock is held until this is dropped. A child that is forked meanwhile does not hold it, whatever becomes of its copy.
#[must_use = "the lock is given back at once"]
pub struct RwLockGuard<'a> {
    lock: Lock<'a>,
    me: u64,
    died: bool,
}

impl RwLockGuard<'_> {
    /// Whether a writer has died with the lock, and nobody has been told yet.
    pub fn owner_died(&self) -> bool {
        self.died
    }
}

impl Drop for RwLockGuard<'_> {
    fn drop(&mut self) {
        if lock::me() == self.me {
            self.lock.give_back(self.me);
        }
    }
}

impl fmt::Debug for RwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("readers", &self.readers()).finish_non_exhaustive()
    }
}

impl fmt::Debug for RwLockGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLockGuard").field("owner_died", &self.died).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_read_or_one_writes() {
        let lock = RwLock::create("lock", 2).unwrap();
        let (one, two) = (lock.read(), lock.try_read().unwrap());
        assert!(lock.try_read().is_none(), "there are two places");
        let timeout = lock.write_for(Duration::from_millis(5)).unwrap_err();
        assert_eq!(timeout.pid, std::process::id().cast_signed());
        drop((one, two));
        let writer = lock.write_for(Duration::ZERO).unwrap();
        assert!(lock.try_read().is_none() && !writer.owner_died());
        drop(writer);
        assert!(!lock.read().owner_died());
    }

    #[test]
    fn readers_see_no_writer_at_work() {
        let lock = RwLock::create("lock", 2).unwrap();
        let pair = [const { std::sync::atomic::AtomicU64::new(0) }; 2];
        let both = || pair.each_ref().map(|word| word.load(Ordering::Relaxed));
        std::thread::scope(|scope| {
            for writes in [true, true, false, false, false] {
                let (lock, pair) = (&lock, &pair);
                scope.spawn(move || {
                    for _ in 0..2000 {
                        if writes {
                            let _guard = lock.write();
                            for word in pair {
                                word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                            }
                        } else {
                            let _guard = lock.read();
                            let [one, two] = both();
                            assert_eq!(one, two);
                        }
                    }
                });
            }
        });
        assert_eq!(both(), [4000, 4000]);
    }
}
