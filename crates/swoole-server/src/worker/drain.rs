//! What a worker does by itself, in either mode: timers, tasks that are over, messages, and how one that is to leave waits for what it has begun. When to
//! do what ([`Drain`]) is pure: time is passed in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Duty, TimerId};
use crate::board::Board;
use crate::error::Result;
use crate::post::Peer;
use crate::task::Finished;

/// The longest time from one `on_worker_exit` to the next.
const EVERY: Duration = Duration::from_millis(100);
/// Tasks, and messages, that are told of in one go: packets wait, too.
const BUDGET: usize = 64;
/// What a worker leaves of its time, at the end of which it would be killed: for `on_worker_stop`, and for its clients.
const MARGIN: Duration = Duration::from_millis(500);

/// How much of `within` a worker may take to finish what it has begun.
pub(crate) fn time_for_work(within: Duration) -> Duration {
    within - MARGIN.min(within / 4)
}

/// Why the user is called back.
#[derive(Debug)]
pub(crate) enum Cause {
    Timer(TimerId),
    /// A task is over.
    Finished(Finished),
    /// Another process has sent this.
    Message(Peer, Vec<u8>),
    /// Something is unfinished, and the worker is to leave.
    Exit,
}

/// A worker's life, as far as this matters.
pub(crate) trait Life {
    fn duty(&mut self) -> &mut Duty;

    /// Calls the user back, and lets out what that sends.
    fn call(&mut self, cause: Cause) -> Result<()>;

    /// Waits for something to happen, for so long at most, and tells the user of it.
    fn wait(&mut self, longest: Duration) -> Result<()>;

    /// Whether nobody is there any more who could be answered.
    fn is_pointless(&self) -> bool;
}

/// Calls the user for every timer that is due, for tasks that are over and for messages; true if there was one.
pub(crate) fn tell_news(life: &mut impl Life) -> Result<bool> {
    let duty = life.duty();
    if !duty.has_news() {
        return Ok(false);
    }
    // One that a callback sets for at once has its turn after the packets that wait.
    let now = Instant::now();
    while let Some(timer) = life.duty().timers.take_due(now) {
        tell(life, Cause::Timer(timer))?;
    }
    for _ in 0..BUDGET {
        let Some(finished) = life.duty().next_finished() else { break };
        tell(life, Cause::Finished(finished))?;
    }
    for _ in 0..BUDGET {
        let Some((from, message)) = life.duty().post.next_message() else { break };
        tell(life, Cause::Message(from, message))?;
    }
    Ok(true)
}

/// Calls the user for this one, which is another thing to be at.
pub(crate) fn tell(life: &mut impl Life, cause: Cause) -> Result<()> {
    let (id, shared) = (life.duty().id, Arc::clone(&life.duty().shared));
    let was_busy = shared.board.is_busy(id);
    shared.board.set_busy(id, true);
    shared.board.hold(id, None);
    let result = life.call(cause);
    shared.board.set_busy(id, was_busy);
    result
}

/// Waits for what callbacks have begun, as long as there is time: `within`, and no longer than the manager and a stop let it.
/// No packet is taken meanwhile.
pub(crate) fn finish_work(life: &mut impl Life, within: Duration) -> Result<()> {
    let (id, shared) = (life.duty().id, Arc::clone(&life.duty().shared));
    let mut drain = Drain::new(Instant::now(), within);
    while !life.duty().is_finished() && !life.is_pointless() {
        let now = Instant::now();
        drain.heed(now, &shared.board, id);
        match drain.step(now) {
            Step::Call => life.call(Cause::Exit)?,
            Step::Wait(longest) => {
                let before = life.duty().news_told();
                life.wait(longest)?;
                if life.duty().news_told() != before {
                    drain.worked(Instant::now());
                }
            }
            Step::GiveUp => {
                life.duty().give_up();
                break;
            }
        }
    }
    Ok(())
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

    /// It may take no longer than the manager and a stop let whoever is in this seat.
    pub(crate) fn heed(&mut self, now: Instant, board: &Board, seat: u16) {
        for left in [board.leave_time(seat), board.stop_time()].into_iter().flatten() {
            self.limit(now, time_for_work(left));
        }
    }

    /// It may take only so long, from now on.
    fn limit(&mut self, now: Instant, within: Duration) {
        self.until = self.until.min(now + within);
    }

    /// The user was told of something: what has changed since the last call?
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
