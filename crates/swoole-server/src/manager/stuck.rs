//! Workers that stay at one packet for too long: `request_terminate_time`.
//!
//! Nobody reads a clock per packet for that. The manager looks at the board a few times within the limit: a worker whose
//! row says that it works, and says nothing else than before, is still at the same thing.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use swoole_supervisor::{Control, SlotId};

use super::WORKERS;
use crate::board::{Board, Progress};
use crate::error::{Error, Result};

/// How often to look within the limit, and how long from one look to the next at least and at most.
const LOOKS: u32 = 8;
const PERIOD: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Looks after workers, and kills those that are stuck.
pub(crate) struct Watchman {
    timer: OwnedFd,
    rounds: Rounds,
}

impl Watchman {
    /// `None` if `limit` is zero: nobody asked for it.
    pub(crate) fn new(limit: Duration, workers: u16) -> Result<Option<Watchman>> {
        if limit.is_zero() {
            return Ok(None);
        }
        let failed = |error: rustix::io::Errno| {
            Error::setup("look after stuck workers (timerfd)", std::io::Error::from(error))
        };
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(failed)?;
        let period = (limit / LOOKS).clamp(PERIOD.0, PERIOD.1);
        let period = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
        let every = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every).map_err(failed)?;
        Ok(Some(Watchman { timer, rounds: Rounds::new(limit, workers) }))
    }

    /// Looks at all workers once.
    pub(crate) fn look(&mut self, board: &Board, control: &mut Control) {
        // How often it has run out does not matter.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let now = Instant::now();
        for worker in 0..self.rounds.seen.len() as u16 {
            if let Some(stuck) = self.rounds.look(worker, board.progress(worker), now) {
                let (pid, limit) = (board.worker_pid(worker), self.rounds.limit);
                tracing::error!(
                    "worker {worker} (pid {pid}) has been at one packet for {stuck:.1?} (request_terminate_time = \
                     {limit:?}): it is killed"
                );
                control.signal(SlotId { group: WORKERS, slot: worker }, Signal::KILL);
            }
        }
    }

    /// Whether this is its timer's descriptor.
    pub(crate) fn is(&self, fd: i32) -> bool {
        self.timer.as_raw_fd() == fd
    }
}

impl AsFd for Watchman {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// What was seen of each worker. Pure.
struct Rounds {
    limit: Duration,
    seen: Vec<Seen>,
}

#[derive(Clone, Copy)]
enum Seen {
    Idle,
    /// At this, since then.
    At(Progress, Instant),
    /// At this for too long, which was told.
    Told(Progress),
}

impl Rounds {
    fn new(limit: Duration, workers: u16) -> Rounds {
        Rounds { limit, seen: vec![Seen::Idle; workers.into()] }
    }

    /// How long this worker has been at the same thing, if that is too long. It is told once.
    fn look(&mut self, worker: u16, progress: Option<Progress>, now: Instant) -> Option<Duration> {
        let seen = &mut self.seen[usize::from(worker)];
        match (*seen, progress) {
            (_, None) => *seen = Seen::Idle,
            (Seen::Told(before), Some(progress)) if before == progress => {}
            (Seen::At(before, since), Some(progress)) if before == progress => {
                if now - since >= self.limit {
                    *seen = Seen::Told(progress);
                    return Some(now - since);
                }
            }
            (_, Some(progress)) => *seen = Seen::At(progress, now),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_does_not_get_on_is_stuck() {
        let (mut rounds, begin) = (Rounds::new(Duration::from_secs(2), 2), Instant::now());
        let board = Board::create(2, 1, 1).unwrap();
        let mut look =
            |worker, second| rounds.look(worker, board.progress(worker), begin + Duration::from_secs(second));
        // Idle for long, and with a new packet at each look.
        assert_eq!((look(0, 0), look(0, 10)), (None, None));
        for second in 10..20 {
            board.set_busy(0, true);
            board.start(0, 0, second);
            assert_eq!(look(0, second), None);
        }
        assert_eq!(look(0, 20), None);
        assert_eq!(look(0, 21), Some(Duration::from_secs(2)));
        assert_eq!((look(0, 22), look(0, 30)), (None, None), "told twice");
        // Its successor.
        board.leave(0);
        assert_eq!(look(0, 31), None);
        board.enter(0, 2);
        board.set_busy(0, true);
        assert_eq!((look(0, 32), look(0, 33), look(0, 34)), (None, None, Some(Duration::from_secs(2))));
        // A pass over packets that are handled in no time is progress, too.
        for second in 0..9 {
            board.set_busy(1, true);
            assert_eq!(look(1, second), None);
        }
    }
}
