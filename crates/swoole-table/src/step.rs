//! Where tests let a process die: before any store to shared memory.
//!
//! In no other build but that of the unit tests is there anything of it.

/// A store follows.
#[inline(always)]
pub(crate) fn reach() {
    #[cfg(all(test, not(loom)))]
    armed::reach();
}

#[cfg(all(test, not(loom)))]
pub(crate) mod armed {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static LEFT: AtomicUsize = AtomicUsize::new(0);

    /// Lets this process die by SIGKILL before store number `step`, from 1, counted from now on.
    pub(crate) fn arm(step: usize) {
        LEFT.store(step, Ordering::Relaxed);
    }

    pub(crate) fn reach() {
        if LEFT.load(Ordering::Relaxed) > 0 && LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = kill_process(getpid(), Signal::KILL);
            unreachable!("SIGKILL is final");
        }
    }
}
