//! Timers of a task worker: the same as a worker's ([`Timers`](crate::worker::Timers)), between tasks.

use super::TaskWorker;
use super::life::TaskDuty;
use crate::error::Result;
use crate::worker::{Unfinished, timed};

timed!(TaskWorker, "tasks", "on_task_worker_timer", "on_task_worker_exit");

impl TaskWorker<'_> {
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
