//! A lock of one word, which survives the death of its holder.
//!
//! The word is 0, or says who holds the lock ([`Identity`]: pid and start), with a bit for "somebody sleeps". Who waits
//! sleeps for some milliseconds at most, and then looks whether the holder lives. If it does not, one compare-and-swap
//! makes the lock the waiter's own, who learns of it and repairs what the lock protects.
//!
//! The kernel would tell a waiter of a death at once (robust futexes, `set_robust_list(2)`). But it keeps one list of held
//! locks per thread, and that is the C library's: who sets another breaks every robust `pthread_mutex_t` of the program.
//! It also asks for a store before and after each lock. What is here costs nothing until somebody has waited.

use std::time::{Duration, Instant};

use crate::error::Timeout;
use crate::step;
use crate::sync::{AtomicU64, Ordering};

#[cfg(not(loom))]
use swoole_sys::{futex, identity::Identity};

/// The bit of the word that says that somebody sleeps, which is free in an [`Identity`].
#[cfg(not(loom))]
const SLEEPERS: u64 = 1 << 31;
/// How often a waiter looks before it sleeps: about a microsecond, several times what an operation on a row takes.
#[cfg(not(loom))]
const SPINS: u32 = 64;
/// How long a waiter sleeps before it looks whether the holder lives, at first; twice as long each time.
#[cfg(not(loom))]
const PATIENCE: Duration = Duration::from_millis(1);
#[cfg(not(loom))]
const PATIENCE_MAX: Duration = Duration::from_millis(16);

/// What the lock's last holder came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It has given the lock back, if there was one.
    Orderly,
    /// It has died with the lock.
    FromDead,
}

/// The calling process, as a lock's word names it. Never 0.
#[inline]
pub(crate) fn me() -> u64 {
    #[cfg(not(loom))]
    return Identity::current().bits();
    #[cfg(loom)]
    return 1;
}

#[derive(Clone, Copy)]
pub(crate) struct Lock<'a>(pub(crate) &'a AtomicU64);

impl Lock<'_> {
    /// Takes it if it is free.
    #[inline]
    pub(crate) fn try_take(self, me: u64) -> bool {
        step::reach();
        self.0.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Takes it, waiting for as long as its holder lives.
    #[inline]
    pub(crate) fn take(self, me: u64) -> Taken {
        if self.try_take(me) {
            return Taken::Orderly;
        }
        match self.wait(me, None) {
            Ok(taken) => taken,
            // Without a limit there is no such moment.
            Err(Timeout { .. }) => unreachable!("no time was given"),
        }
    }

    /// Takes it, if it becomes free, or its holder dies, before `deadline`.
    #[cold]
    #[cfg(not(loom))]
    pub(crate) fn wait(self, me: u64, deadline: Option<Instant>) -> Result<Taken, Timeout> {
        let (mut spins, mut patience) = (0, PATIENCE);
        // Whoever has slept may have been woken in place of others who still sleep.
        let mut sleepers = 0;
        loop {
            let word = self.0.load(Ordering::Relaxed);
            if word == 0 {
                if self.swap(0, me | sleepers) {
                    return Ok(Taken::Orderly);
                }
                continue;
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            let marked = word | SLEEPERS;
            if word != marked && !self.swap(word, marked) {
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Timeout {
                    pid: Identity::from_bits(word).pid().map_or(0, |pid| pid.as_raw_pid()),
                });
            }
            let woken = futex::wait(self.0, marked as u32, Some(left.unwrap_or(patience).min(patience)));
            sleepers = SLEEPERS;
            if !woken {
                if !Identity::from_bits(marked).is_alive() && self.swap(marked, me | SLEEPERS) {
                    return Ok(Taken::FromDead);
                }
                patience = (2 * patience).min(PATIENCE_MAX);
            }
        }
    }

    #[cfg(loom)]
    pub(crate) fn wait(self, me: u64, _: Option<Instant>) -> Result<Taken, Timeout> {
        while !self.try_take(me) {
            loom::thread::yield_now();
        }
        Ok(Taken::Orderly)
    }

    /// Takes it if its holder has died, without waiting for anything else.
    #[cfg(not(loom))]
    pub(crate) fn take_from_dead(self, me: u64) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word != 0 && !Identity::from_bits(word).is_alive() && self.swap(word, me | SLEEPERS)
    }

    #[cfg(loom)]
    pub(crate) fn take_from_dead(self, _: u64) -> bool {
        false
    }

    /// Gives it back, and wakes one who waits. Nothing happens if it is not this process's.
    #[inline]
    pub(crate) fn give_back(self, me: u64) {
        step::reach();
        if self.0.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.give_to_sleepers(me);
        }
    }

    #[cold]
    #[cfg(not(loom))]
    fn give_to_sleepers(self, me: u64) {
        step::reach();
        if self.swap(me | SLEEPERS, 0) {
            futex::wake(self.0, 1);
        }
    }

    #[cfg(loom)]
    fn give_to_sleepers(self, _: u64) {
        unreachable!("nobody sleeps in a model");
    }

    #[cfg(not(loom))]
    fn swap(self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
}

/// When to give up; `None` for times beyond what the clock can express.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
