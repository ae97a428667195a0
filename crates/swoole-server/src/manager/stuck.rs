//! Workers that stay at one packet for too long: `request_slow_time`, `request_terminate_time`.
//!
//! Nobody reads a clock per packet for that. The manager looks at the board a few times within the limit: a worker whose
//! row says that it works, and says nothing else than before, is still at the same thing. To tell what a slow one is at,
//! the manager has it write its stack to the board, and another process find the names, which takes its time.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions, waitpid};
use swoole_supervisor::{Control, SlotId};
use swoole_sys::process::{Fork, ForkError, fork, run_child};

use super::WORKERS;
use super::timer::Timer;
use crate::board::{Board, Progress};
use crate::error::{Error, Result};
use crate::worker::STACK_SIGNAL;

/// How often to look within the limit, and how long from one look to the next at least and at most.
const LOOKS: u32 = 8;
const PERIOD: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Looks after workers: tells of those that are slow, and kills those that are stuck.
pub(crate) struct Watchman {
    timer: Timer,
    slow: Option<Rounds>,
    stuck: Option<Rounds>,
    /// Workers that were asked for their stacks, and how many their slots had told before.
    asked: Vec<(u16, u64)>,
}

impl Watchman {
    /// `None` if both limits are zero: nobody asked for it.
    pub(crate) fn new(slow: Duration, terminate: Duration, workers: u16) -> Result<Option<Watchman>> {
        let limits = [slow, terminate].map(|limit| (!limit.is_zero()).then_some(limit));
        let Some(first) = limits.into_iter().flatten().min() else { return Ok(None) };
        let timer = Timer::every((first / LOOKS).clamp(PERIOD.0, PERIOD.1)).map_err(|error| {
            Error::setup("look after stuck workers (timerfd)", std::io::Error::from(error))
        })?;
        let [slow, stuck] = limits.map(|limit| limit.map(|limit| Rounds::new(limit, workers)));
        Ok(Some(Watchman { timer, slow, stuck, asked: Vec::new() }))
    }

    /// Looks at all workers once.
    pub(crate) fn look(&mut self, board: &Board, workers: u16, control: &mut Control) {
        self.timer.hear();
        let now = Instant::now();
        self.asked.retain(|(worker, before)| !tell_stack(board, *worker, *before));
        for worker in 0..workers {
            let (progress, slot) = (board.progress(worker), SlotId { group: WORKERS, slot: worker });
            let pid = board.worker_pid(worker);
            if let Some(slow) = &mut self.slow
                && let Some(since) = slow.look(worker, progress, now)
            {
                let packet =
                    board.held(worker).map_or("a callback that belongs to no packet".to_owned(), |held| {
                        match held.listener() {
                            Some(listener) => {
                                format!("a datagram to listener {listener} ({} bytes)", held.size)
                            }
                            None => format!("a packet of session {} ({} bytes)", held.session, held.size),
                        }
                    });
                tracing::warn!(
                    "worker {worker} (pid {pid}) has been at {packet} for {since:.1?} (request_slow_time = {:?})",
                    slow.limit
                );
                self.asked.push((worker, board.stack(worker).0));
                control.signal(slot, STACK_SIGNAL);
            }
            if let Some(stuck) = &mut self.stuck
                && let Some(since) = stuck.look(worker, progress, now)
            {
                tracing::error!(
                    "worker {worker} (pid {pid}) has been at the same thing for {since:.1?} (request_terminate_time = \
                     {:?}): it is killed",
                    stuck.limit
                );
                control.signal(slot, Signal::KILL);
            }
        }
    }

    /// Whether this is its timer's descriptor.
    pub(crate) fn is(&self, fd: i32) -> bool {
        self.timer.is(fd)
    }
}

impl AsFd for Watchman {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Tells what a worker was at when it was asked, if it has written its stack since; or if that cannot come any more. False
/// to ask again later.
fn tell_stack(board: &Board, worker: u16, before: u64) -> bool {
    let (number, addresses) = board.stack(worker);
    if number == before {
        return board.worker_pid(worker) == 0;
    }
    if let Err(error) = describe_aside(worker, board.worker_pid(worker), &addresses) {
        tracing::warn!("worker {worker} was at {addresses:x?}, for which names cannot be found: {error}");
    }
    true
}

/// Has a process of its own find the names and tell them, which nobody waits for: whoever is the parent of orphans reaps
/// it.
fn describe_aside(worker: u16, pid: i32, addresses: &[u64]) -> Result<(), ForkError> {
    match fork()? {
        Fork::Child => run_child(|| match fork() {
            Ok(Fork::Parent(_)) => 0,
            Ok(Fork::Child) => run_child(|| {
                let _ = swoole_sys::title::set(&format!("swoole: stack of worker {worker}"));
                let log: Vec<_> = crate::log::descriptor().into_iter().collect();
                let _ = swoole_sys::fds::close_all_except(&log);
                let mut lines = swoole_sys::stack::describe(pid, addresses);
                // What is behind the fork is the manager's, and the same for all.
                let is_fork =
                    |line: &String| line.contains("swoole-supervisor") && line.contains("src/spawn.rs");
                lines.truncate(lines.iter().position(is_fork).unwrap_or(lines.len()));
                tracing::warn!("worker {worker} (pid {pid}) was at\n    {}", lines.join("\n    "));
                0
            }),
            Err(error) => {
                tracing::warn!("find out what worker {worker} was at: {error}");
                0
            }
        }),
        Fork::Parent(child) => {
            // It ends at once.
            let _ = waitpid(Some(child), WaitOptions::empty());
            Ok(())
        }
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
