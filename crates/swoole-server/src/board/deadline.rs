//! By when somebody has to be done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::{Board, HEAD, SLOT, STOP_AT};

impl Board {
    /// The server stops, and whoever leaves in order has so long for it.
    pub(crate) fn set_stop_time(&self, within: Duration) {
        set_deadline(&self.facts[STOP_AT], Some(within));
    }

    /// How long the server may take for its stop, if it stops.
    pub(crate) fn stop_time(&self) -> Option<Duration> {
        time_to(&self.facts[STOP_AT])
    }

    /// The worker is asked to leave within this time, at the end of which it will be killed; or, with `None`, is another one.
    pub(crate) fn set_leave_time(&self, worker: u16, within: Option<Duration>) {
        set_deadline(self.leave_at(worker), within);
    }

    /// How long the worker has to leave, if it was asked to.
    pub(crate) fn leave_time(&self, worker: u16) -> Option<Duration> {
        time_to(self.leave_at(worker))
    }

    fn leave_at(&self, worker: u16) -> &AtomicU64 {
        &self.facts[HEAD + SLOT * usize::from(worker) + 2]
    }
}

/// A deadline in nanoseconds of a clock; 0 for none.
fn set_deadline(word: &AtomicU64, within: Option<Duration>) {
    let at = within.map_or(0, |within| (monotonic() + within).as_nanos() as u64);
    word.store(at, Ordering::Release);
}

fn time_to(word: &AtomicU64) -> Option<Duration> {
    let at = word.load(Ordering::Acquire);
    (at != 0).then(|| Duration::from_nanos(at).saturating_sub(monotonic()))
}

/// The clock that is the same in every process.
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
