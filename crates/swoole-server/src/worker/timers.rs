//! A process's timers. Pure but for [`Worker`]'s face of it: time is passed in.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use super::Worker;
use crate::error::{Error, Result};

/// The longest time that a timer may be set for: ten years of 365 days.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Names one timer of one worker or task worker process. Never used again in that process, so to clear one that is over is harmless.
/// A successor counts from 1 again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimerId(u64);

impl TimerId {
    /// The timer of this number, as [`Display`](fmt::Display) shows it; there may be none.
    pub fn from_number(number: u64) -> TimerId {
        TimerId(number)
    }
}

impl fmt::Display for TimerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All timers of a process.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// The earliest first; those of one moment in the order in which they were set.
    queue: BTreeSet<(Instant, TimerId)>,
    timers: HashMap<TimerId, Timer>,
    ticks: usize,
    set: u64,
    taken: u64,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    due: Instant,
    /// Of one that comes again and again.
    period: Option<Duration>,
}

impl Timers {
    pub(crate) fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.timers.len()
    }

    /// Those that come again and again.
    pub(crate) fn ticks(&self) -> usize {
        self.ticks
    }

    /// How many times one was due so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// When the first one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// Whether one is due.
    pub(crate) fn is_due(&self) -> bool {
        self.next().is_some_and(|due| due <= Instant::now())
    }

    /// How long somebody may wait who would wait for so long, or with `None` for ever: no longer than to the first one.
    pub(crate) fn wait(&self, longest: Option<Duration>) -> Option<Duration> {
        let first = self.next().map(|due| due.saturating_duration_since(Instant::now()));
        [longest, first].into_iter().flatten().min()
    }

    /// One that comes after so long, for [`Worker::after`]. `max`: how many there may be.
    pub(crate) fn after(&mut self, delay: Duration, max: usize) -> Result<TimerId> {
        self.set_checked(delay, None, max)
    }

    /// One that comes each time that so long has passed, for [`Worker::tick`].
    pub(crate) fn tick(&mut self, period: Duration, max: usize) -> Result<TimerId> {
        if period.is_zero() {
            return Err(Error::TimerTime { time: period });
        }
        self.set_checked(period, Some(period), max)
    }

    fn set_checked(&mut self, time: Duration, period: Option<Duration>, max: usize) -> Result<TimerId> {
        if self.len() >= max {
            return Err(Error::TooManyTimers { max });
        }
        if time > LONGEST {
            return Err(Error::TimerTime { time });
        }
        Ok(self.set(Instant::now(), time, period))
    }

    fn set(&mut self, now: Instant, after: Duration, period: Option<Duration>) -> TimerId {
        self.set += 1;
        let (id, due) = (TimerId(self.set), now + after);
        self.queue.insert((due, id));
        self.timers.insert(id, Timer { due, period });
        self.ticks += usize::from(period.is_some());
        id
    }

    /// Whether there was such a timer.
    pub(crate) fn clear(&mut self, id: TimerId) -> bool {
        let Some(timer) = self.timers.remove(&id) else { return false };
        self.ticks -= usize::from(timer.period.is_some());
        self.queue.remove(&(timer.due, id))
    }

    pub(crate) fn clear_ticks(&mut self) {
        let Timers { queue, timers, .. } = self;
        timers.retain(|id, timer| timer.period.is_none() || !queue.remove(&(timer.due, *id)));
        self.ticks = 0;
    }

    /// Takes the first timer that is due. A tick's next time is a whole number of periods after its first, and in the
    /// future: what was missed is left out.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<TimerId> {
        let (due, id) = *self.queue.first().filter(|(due, _)| *due <= now)?;
        self.queue.pop_first();
        self.taken += 1;
        match self.timers.get_mut(&id) {
            Some(Timer { due: its, period: Some(period) }) => {
                *its = due + *period * periods(now - due, *period);
                self.queue.insert((*its, id));
            }
            _ => drop(self.timers.remove(&id)),
        }
        Some(id)
    }
}

/// How many periods to the first moment after `late`.
fn periods(late: Duration, period: Duration) -> u32 {
    let whole = late.as_nanos() / period.as_nanos().max(1);
    u32::try_from(whole).map_or(u32::MAX, |whole| whole.saturating_add(1))
}

/// What a process may do with timers, between whose `$work` they come, by which of its callbacks.
macro_rules! timed {
    ($role:ident, $work:literal, $on_timer:literal, $on_exit:literal) => {
        impl $role<'_> {
            #[doc = concat!("Has [`", $on_timer, "`](crate::Handler::", $on_timer, ") called once, in this process,")]
            /// when `delay` has passed (on the clock that nobody sets, `CLOCK_MONOTONIC`), and the callbacks before it have
            #[doc = concat!("returned. While ", $work, " keep the process busy, timers are looked after between two of them.")]
            ///
            /// A timer ends with its process. One that retires is given time for it, see
            #[doc = concat!("[`", $on_exit, "`](crate::Handler::", $on_exit, ").")]
            ///
            /// # Errors
            ///
            /// [`Error::TooManyTimers`](crate::Error::TooManyTimers) at `max_timer`;
            /// [`Error::TimerTime`](crate::Error::TimerTime) if `delay` is longer than ten years.
            pub fn after(&mut self, delay: std::time::Duration) -> Result<crate::TimerId> {
                self.duty.timers.after(delay, self.duty.shared.config.max_timer)
            }

            #[doc = concat!("Has [`", $on_timer, "`](crate::Handler::", $on_timer, ") called each time that another")]
            /// `period` has passed, until it is [cleared](Self::clear). Does not drift: the n-th time is n periods after now.
            /// Does not pile up: periods that pass while the process is at something else are left out.
            ///
            /// # Errors
            ///
            /// [`Error::TooManyTimers`](crate::Error::TooManyTimers) at `max_timer`;
            /// [`Error::TimerTime`](crate::Error::TimerTime) if `period` is nothing, or longer than ten years.
            pub fn tick(&mut self, period: std::time::Duration) -> Result<crate::TimerId> {
                self.duty.timers.tick(period, self.duty.shared.config.max_timer)
            }

            /// Forgets a timer; false if it is over already.
            pub fn clear(&mut self, timer: crate::TimerId) -> bool {
                self.duty.timers.clear(timer)
            }

            /// Forgets all timers that [`tick`](Self::tick) has set.
            pub fn clear_ticks(&mut self) {
                self.duty.timers.clear_ticks();
            }
        }
    };
}
pub(crate) use timed;

timed!(Worker, "packets", "on_timer", "on_worker_exit");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn they_come_once_in_the_order_of_their_times() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let [late, soon, same] = [3, 1, 1].map(|ms| timers.set(now, ms * MS, None));
        assert_eq!((timers.next(), timers.len()), (Some(now + MS), 3));
        assert_eq!(timers.take_due(now), None);
        let due: Vec<_> = std::iter::from_fn(|| timers.take_due(now + 5 * MS)).collect();
        assert_eq!(due, [soon, same, late]);
        assert!(timers.is_empty());
        assert!(!timers.clear(soon));
    }

    #[test]
    fn ticks_neither_drift_nor_pile_up() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let tick = timers.set(now, 10 * MS, Some(10 * MS));
        // Each a bit late.
        for turn in 1..=5 {
            assert_eq!(timers.next(), Some(now + 10 * turn * MS));
            assert_eq!(timers.take_due(now + (10 * turn + 3) * MS), Some(tick));
        }
        // Four are missed.
        assert_eq!(timers.take_due(now + 101 * MS), Some(tick));
        assert_eq!((timers.take_due(now + 101 * MS), timers.next()), (None, Some(now + 110 * MS)));
        assert!(timers.clear(tick));
        assert_eq!((timers.next(), timers.ticks(), timers.clear(tick)), (None, 0, false));
    }

    #[test]
    fn ticks_can_be_cleared_alone() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        timers.set(now, MS, Some(MS));
        let once = timers.set(now, 2 * MS, None);
        timers.set(now, MS, Some(3 * MS));
        timers.clear_ticks();
        assert_eq!((timers.len(), timers.ticks()), (1, 0));
        assert_eq!((timers.take_due(now + 9 * MS), timers.next()), (Some(once), None));
    }

    #[test]
    fn no_time_is_too_much_for_a_tick() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let tick = timers.set(now, Duration::from_nanos(1), Some(Duration::from_nanos(1)));
        assert_eq!(timers.take_due(now + Duration::from_secs(3600)), Some(tick));
        assert!(timers.clear(tick));
        let tick = timers.set(now, LONGEST, Some(LONGEST));
        assert_eq!(timers.take_due(now + LONGEST), Some(tick));
        assert_eq!(timers.next(), Some(now + 2 * LONGEST));
    }

    #[derive(Clone, Debug)]
    enum Step {
        After(u64),
        Tick(u64),
        Clear(usize),
        ClearTicks,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..50).prop_map(Step::After),
            (1u64..50).prop_map(Step::Tick),
            (0usize..20).prop_map(Step::Clear),
            Just(Step::ClearTicks),
            (0u64..60).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Against a list that is searched.
        #[test]
        fn they_do_what_a_list_does(steps in prop::collection::vec(step(), 1..80)) {
            let begin = Instant::now();
            let (mut now, mut timers) = (0, Timers::default());
            let mut model: Vec<(TimerId, u64, Option<u64>)> = Vec::new();
            let mut ids = Vec::new();
            for step in steps {
                let at = |ms: u64| begin + ms as u32 * MS;
                match step {
                    Step::After(ms) => {
                        ids.push(timers.set(at(now), ms as u32 * MS, None));
                        model.push((ids[ids.len() - 1], now + ms, None));
                    }
                    Step::Tick(ms) => {
                        ids.push(timers.set(at(now), ms as u32 * MS, Some(ms as u32 * MS)));
                        model.push((ids[ids.len() - 1], now + ms, Some(ms)));
                    }
                    Step::Clear(index) if index < ids.len() => {
                        let known = model.iter().position(|(id, ..)| *id == ids[index]);
                        prop_assert_eq!(timers.clear(ids[index]), known.is_some());
                        known.map(|known| model.remove(known));
                    }
                    Step::Clear(_) => {}
                    Step::ClearTicks => {
                        timers.clear_ticks();
                        model.retain(|(.., period)| period.is_none());
                    }
                    Step::Pass(ms) => {
                        now += ms;
                        let mut expected: Vec<_> =
                            model.iter().filter(|(_, due, _)| *due <= now).map(|(id, due, _)| (*due, *id)).collect();
                        expected.sort();
                        for (_, id) in expected {
                            prop_assert_eq!(timers.take_due(at(now)), Some(id));
                        }
                        prop_assert_eq!(timers.take_due(at(now)), None);
                        model.retain(|(_, due, period)| *due > now || period.is_some());
                        for (_, due, period) in &mut model {
                            while let Some(period) = period.filter(|_| *due <= now) {
                                *due += period;
                            }
                        }
                    }
                }
                prop_assert_eq!(timers.next(), model.iter().map(|(_, due, _)| at(*due)).min());
                prop_assert_eq!(timers.len(), model.len());
                prop_assert_eq!(timers.queue.len(), model.len());
                prop_assert_eq!(timers.ticks(), model.iter().filter(|(.., period)| period.is_some()).count());
            }
        }
    }
}
