//! How a worker that is to leave waits for what it has begun. Pure: time is passed in.

use std::time::{Duration, Instant};

/// The longest time from one `on_worker_exit` to the next.
const EVERY: Duration = Duration::from_millis(100);
/// What a worker leaves of its time, at the end of which it would be killed: for `on_worker_stop`, and for its clients.
const MARGIN: Duration = Duration::from_millis(500);

/// How much of `within` a worker may take to finish what it has begun.
pub(crate) fn time_for_work(within: Duration) -> Duration {
    within - MARGIN.min(within / 4)
}

/// One worker's way out.
#[derive(Debug)]
pub(crate) struct Drain {
    until: Instant,
    next_call: Instant,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Ask the user to finish.
    Call,
    /// Let timers come, for so long at most.
    Wait(Duration),
    /// Its time is over.
    GiveUp,
}

impl Drain {
    /// It begins now, and may take so long.
    pub(crate) fn new(now: Instant, within: Duration) -> Drain {
        Drain { until: now + within, next_call: now }
    }

    /// It may take only so long, from now on.
    pub(crate) fn limit(&mut self, now: Instant, within: Duration) {
        self.until = self.until.min(now + within);
    }

    /// A timer has come: what has changed since the last call?
    pub(crate) fn worked(&mut self, now: Instant) {
        self.next_call = now;
    }

    pub(crate) fn step(&mut self, now: Instant) -> Step {
        if now >= self.until {
            return Step::GiveUp;
        }
        if now >= self.next_call {
            self.next_call = now + EVERY;
            return Step::Call;
        }
        Step::Wait(self.next_call.min(self.until) - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_asks_at_once_then_at_times_then_gives_up() {
        let begin = Instant::now();
        let mut drain = Drain::new(begin, 250 * MS);
        assert_eq!(drain.step(begin), Step::Call);
        assert_eq!(drain.step(begin), Step::Wait(100 * MS));
        assert_eq!(drain.step(begin + 40 * MS), Step::Wait(60 * MS));
        drain.worked(begin + 50 * MS);
        assert_eq!(drain.step(begin + 50 * MS), Step::Call);
        assert_eq!(drain.step(begin + 150 * MS), Step::Call);
        assert_eq!(drain.step(begin + 200 * MS), Step::Wait(50 * MS));
        assert_eq!(drain.step(begin + 250 * MS), Step::GiveUp);
    }

    #[test]
    fn a_stop_may_shorten_it_and_never_makes_it_longer() {
        let begin = Instant::now();
        let mut drain = Drain::new(begin, 1000 * MS);
        assert_eq!(drain.step(begin), Step::Call);
        drain.limit(begin, 5000 * MS);
        assert_eq!(drain.step(begin + 999 * MS), Step::Call);
        drain.limit(begin + 999 * MS, Duration::ZERO);
        assert_eq!(drain.step(begin + 999 * MS), Step::GiveUp);
    }

    #[test]
    fn something_is_left_of_any_time() {
        for ms in [100, 1000, 3000, 3_600_000] {
            let (within, left) = (ms * MS, time_for_work(ms * MS));
            assert!(left < within && left >= within / 2, "{ms}");
        }
    }
}
