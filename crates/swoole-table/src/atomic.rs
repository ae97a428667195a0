//! Numbers that every process may change and wait for.

use std::fmt;
use std::time::{Duration, Instant};

use swoole_ipc::words::Words;
use swoole_sys::futex;

use crate::sync::{AtomicU64, Ordering};

/// A line for each, so that two of them do not slow each other down.
const LINE: usize = 8;

macro_rules! atomic {
    ($name:ident, $ty:ty, $swoole:literal) => {
        #[doc = concat!("An atomic `", stringify!($ty), "` in shared memory (Swoole: `", $swoole, "`).")]
        ///
        /// Created before the fork; clones, also those that a fork makes, are the same number. All operations are
        /// sequentially consistent. Sums that the type cannot hold wrap around.
        ///
        /// ```
        #[doc = concat!("use swoole_table::", stringify!($name), ";")]
        ///
        #[doc = concat!("let counter = ", stringify!($name), "::create(\"counter\", 5)?;")]
        /// assert_eq!(counter.fetch_add(1), 5);
        /// assert_eq!(counter.load(), 6); // in any process that has forked from this one
        /// # Ok::<(), swoole_table::Error>(())
        /// ```
        #[derive(Clone)]
        pub struct $name {
            words: Words,
            at: usize,
        }

        impl $name {
            /// One number, in memory of its own: a page. `name` appears in errors and in `/proc/PID/maps`.
            ///
            /// # Errors
            /// [`Error::Memory`](crate::Error::Memory) when the kernel has no memory left.
            pub fn create(name: &str, value: $ty) -> Result<$name, crate::Error> {
                Ok($name::create_all(name, 1, value)?.swap_remove(0))
            }

            /// So many of them, each of this value, in 64 bytes each.
            ///
            /// # Errors
            /// As [`create`](Self::create).
            pub fn create_all(name: &str, count: usize, value: $ty) -> Result<Vec<$name>, crate::Error> {
                let words = Words::create(name, count.saturating_mul(LINE))?;
                let all: Vec<_> =
                    (0..count).map(|index| $name { words: words.clone(), at: index * LINE }).collect();
                all.iter().for_each(|one| one.store(value));
                Ok(all)
            }

            /// The value.
            pub fn load(&self) -> $ty {
                self.value().load(Ordering::SeqCst) as $ty
            }

            /// Sets it.
            pub fn store(&self, value: $ty) {
                self.value().store(value.into(), Ordering::SeqCst);
            }

            /// Sets it, and yields what it was.
            pub fn swap(&self, value: $ty) -> $ty {
                self.value().swap(value.into(), Ordering::SeqCst) as $ty
            }

            /// Adds, and yields what it was.
            pub fn fetch_add(&self, by: $ty) -> $ty {
                self.change(|value| value.wrapping_add(by))
            }

            /// Subtracts, and yields what it was.
            pub fn fetch_sub(&self, by: $ty) -> $ty {
                self.change(|value| value.wrapping_sub(by))
            }

            /// Sets it to `new` if it is `current`.
            ///
            /// # Errors
            /// What it is instead.
            pub fn compare_exchange(&self, current: $ty, new: $ty) -> Result<$ty, $ty> {
                let done = self.value().compare_exchange(
                    current.into(),
                    new.into(),
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                done.map(|value| value as $ty).map_err(|value| value as $ty)
            }

            /// Waits as long as it is `value`, for `timeout` at most (`None`: for ever); whether it is another one then.
            ///
            /// A change is noticed at once if whoever makes it calls [`wake`](Self::wake), and else when the time is over.
            pub fn wait(&self, value: $ty, timeout: Option<Duration>) -> bool {
                let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                loop {
                    let wakes = self.wakes().load(Ordering::SeqCst);
                    if self.load() != value {
                        return true;
                    }
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return false;
                    }
                    // Who wakes counts before, so nobody falls asleep between the change and the call for it.
                    futex::wait(self.wakes(), wakes as u32, left);
                }
            }

            /// Wakes up to `count` of those who wait for a change that was made before; how many that were.
            pub fn wake(&self, count: u32) -> usize {
                self.wakes().fetch_add(1, Ordering::SeqCst);
                futex::wake(self.wakes(), count)
            }

            fn change(&self, by: impl Fn($ty) -> $ty) -> $ty {
                let mut old = self.load();
                loop {
                    match self.compare_exchange(old, by(old)) {
                        Ok(old) => return old,
                        Err(other) => old = other,
                    }
                }
            }

            fn value(&self) -> &AtomicU64 {
                &self.words[self.at]
            }

            /// What sleepers sleep on: the kernel compares 32 bits, which would not do for the number itself.
            fn wakes(&self) -> &AtomicU64 {
                &self.words[self.at + 1]
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.load()).finish()
            }
        }
    };
}

atomic!(Atomic32, u32, "Swoole\\Atomic");
atomic!(Atomic64, u64, "Swoole\\Atomic\\Long");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_their_size() {
        let all = Atomic32::create_all("all", 3, 7).unwrap();
        assert_eq!(all[0].fetch_sub(8), 7);
        assert_eq!((all[0].load(), all[1].load(), all[2].load()), (u32::MAX, 7, 7));
        assert_eq!(all[0].fetch_add(2), u32::MAX);
        assert_eq!(all[0].compare_exchange(1, 9), Ok(1));
        assert_eq!(all[0].compare_exchange(1, 10), Err(9));
        assert_eq!((all[0].swap(2), format!("{:?}", all[0])), (9, "Atomic32(2)".to_owned()));
        let long = Atomic64::create("long", u64::MAX).unwrap();
        assert_eq!((long.fetch_add(2), long.clone().load()), (u64::MAX, 1));
    }

    #[test]
    fn waits_end_by_a_wake_or_by_the_clock() {
        let word = Atomic64::create("word", 1 << 32).unwrap();
        assert!(word.wait(0, None));
        assert!(!word.wait(1 << 32, Some(Duration::from_millis(5))));
        assert_eq!(word.wake(1), 0);
        std::thread::scope(|scope| {
            // Only the high half changes.
            let waiter = scope.spawn(|| word.wait(1 << 32, Some(Duration::from_secs(20))));
            std::thread::sleep(Duration::from_millis(5));
            word.store(2 << 32);
            word.wake(u32::MAX);
            assert!(waiter.join().unwrap());
        });
    }
}
