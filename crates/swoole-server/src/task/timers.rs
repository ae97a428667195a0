//! Timers of a task worker: the same as a worker's ([`Timers`](crate::worker::Timers)), between tasks.

use std::time::Duration;

use super::TaskWorker;
use super::life::TaskDuty;
use crate::error::Result;
use crate::worker::{TimerId, Unfinished};

impl TaskWorker<'_> {
    /// Has [`on_task_worker_timer`](crate::Handler::on_task_worker_timer) called once, in this process, when `delay` has passed
    /// (on the clock that nobody sets, `CLOCK_MONOTONIC`), and the task or callback before it has returned. While tasks keep
    /// the task worker busy, timers are looked after between two of them.
    ///
    /// A timer ends with its process. One that retires is given time for it, see
    /// [`on_task_worker_exit`](crate::Handler::on_task_worker_exit).
    ///
    /// # Errors
    ///
    /// As for [`Worker::after`](crate::Worker::after).
    pub fn after(&mut self, delay: Duration) -> Result<TimerId> {
        self.duty.timers.after(delay, self.duty.shared.config.max_timer)
    }

    /// Has [`on_task_worker_timer`](crate::Handler::on_task_worker_timer) called each time that another `period` has passed,
    /// until it is [cleared](TaskWorker::clear). Does not drift: the n-th time is n periods after now. Does not pile up:
    /// periods that pass while the task worker is at something else are left out.
    ///
    /// # Errors
    ///
    /// As for [`Worker::tick`](crate::Worker::tick).
    pub fn tick(&mut self, period: Duration) -> Result<TimerId> {
        self.duty.timers.tick(period, self.duty.shared.config.max_timer)
    }

    /// Forgets a timer; false if it is over already.
    pub fn clear(&mut self, timer: TimerId) -> bool {
        self.duty.timers.clear(timer)
    }

    /// Forgets all timers that [`tick`](TaskWorker::tick) has set.
    pub fn clear_ticks(&mut self) {
        self.duty.timers.clear_ticks();
    }

    /// What this task worker has begun and not ended: the timers that it waits for when it is to leave.
    pub fn unfinished(&self) -> Unfinished {
        self.duty.unfinished()
    }
}

impl TaskDuty {
    fn unfinished(&self) -> Unfinished {
        let ticks = self.timers.ticks();
        Unfinished {
            timers: self.timers.len() - ticks,
            ticks,
            replies: Vec::new(),
            tasks: 0,
            messages: self.post.under_way(),
        }
    }

    /// What is left is left to nobody.
    pub(super) fn give_up(&self) {
        tracing::warn!(
            "task worker {} leaves at the end of its time (max_wait_time = {:?}), with {} unfinished",
            self.id,
            self.shared.config.max_wait_time,
            self.unfinished()
        );
    }
}
