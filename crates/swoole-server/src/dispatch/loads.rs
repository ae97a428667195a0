//! What workers have to do, as all reactors know it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// What one worker has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Load {
    /// It works on something, which need not be a message of a reactor's.
    pub(crate) busy: bool,
    /// Messages of all reactors that it has not finished.
    pub(crate) in_flight: usize,
}

impl Load {
    /// Less is who has nothing to do; among the others, who has fewer messages.
    pub(super) fn by_business(self) -> impl Ord {
        (self.busy, self.in_flight)
    }

    /// Less is who has fewer messages; among equals, who has nothing to do.
    pub(super) fn by_flight(self) -> impl Ord {
        (self.in_flight, self.busy)
    }
}

/// Messages in flight to each worker, of all reactors together. They are threads of one process.
#[derive(Debug)]
pub(crate) struct Loads(Box<[CachePadded<AtomicUsize>]>);

impl Loads {
    pub(crate) fn new(workers: u16) -> Loads {
        Loads((0..workers).map(|_| CachePadded::default()).collect())
    }

    /// One reactor has so many messages in flight to this worker now, and had `before`.
    pub(crate) fn change(&self, worker: usize, before: usize, now: usize) {
        // A count by itself, which orders nothing else.
        self.0[worker].fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self, worker: u16) -> usize {
        self.0[usize::from(worker)].load(Ordering::Relaxed)
    }
}
