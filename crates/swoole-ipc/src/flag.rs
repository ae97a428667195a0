//! The word of a doorbell: asleep or awake. Apart from the eventfd, so that a model checker can run it.

use crate::sync::{AtomicU64, Ordering, fence};

const AWAKE: u64 = 0;
const ASLEEP: u64 = 1;

/// A view of the word, which one sleeper and any number of ringers share.
///
/// A peer may write any value there; each is either "asleep" or not, so the worst it gets is a wake-up too
/// many or, for itself, one too few.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag<'a>(pub(crate) &'a AtomicU64);

impl Flag<'_> {
    /// Sleeper: from here on somebody rings; what was published before must be looked for once more.
    #[inline]
    pub(crate) fn arm(&self) {
        self.0.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeper: nobody need ring.
    #[inline]
    pub(crate) fn disarm(&self) {
        self.0.store(AWAKE, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ASLEEP
    }

    /// Ringer, after publishing: true if this call is the one that must wake the sleeper.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_armed() && self.0.swap(AWAKE, Ordering::Relaxed) == ASLEEP
    }
}
