//! What workers have to do, as all reactors know it.

use std::sync::Arc;
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

    pub(crate) fn in_flight(&self, worker: u16) -> usize {
        self.0[usize::from(worker)].load(Ordering::Relaxed)
    }
}

/// One reactor's part of what one worker has to do.
#[derive(Debug)]
pub(crate) struct Gauge {
    loads: Arc<Loads>,
    worker: u16,
    told: usize,
}

impl Gauge {
    pub(crate) fn new(loads: &Arc<Loads>, worker: u16) -> Gauge {
        Gauge { loads: Arc::clone(loads), worker, told: 0 }
    }

    /// This reactor has so many messages in flight to it now.
    pub(crate) fn set(&mut self, now: usize) {
        let before = std::mem::replace(&mut self.told, now);
        if before != now {
            // A count by itself, which orders nothing else.
            let count = &self.loads.0[usize::from(self.worker)];
            count.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }
}

impl Drop for Gauge {
    /// A reactor that is gone has nothing in flight.
    fn drop(&mut self) {
        self.set(0);
    }
}
