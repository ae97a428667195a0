//! The task worker process, as its callbacks see it.

use std::sync::Arc;

use rustix::process::{Signal, getpid};

use super::life::TaskDuty;
use super::{Asker, TaskId};
use crate::board::Phase;
use crate::error::{Error, Result};
use crate::handler::{asks, common};
use crate::post::Sender;
use crate::post::role::posts;
use crate::shared::Shared;

/// A task worker process, as its callbacks see it. It has no clients of its own: what it finds out, it tells the worker that
/// has asked, or sends to any client itself.
pub struct TaskWorker<'a> {
    pub(super) duty: &'a mut TaskDuty,
}

common!(TaskWorker<'_>, TaskWorker);
asks!(TaskWorker<'_>);
posts!(TaskWorker<'_>);

impl TaskWorker<'_> {
    /// This task worker's slot, from 0. A successor has the same.
    pub fn id(&self) -> u16 {
        self.duty.id
    }

    /// This process's id.
    pub fn pid(&self) -> i32 {
        getpid().as_raw_pid()
    }

    /// Which process of its slot this is, from 1.
    pub fn generation(&self) -> u32 {
        self.duty.generation
    }

    /// Whether the whole server stops: who leaves now has no successor.
    pub fn is_stopping(&self) -> bool {
        self.shared().board.phase() == Phase::Stopping
    }

    /// Tasks that this process has begun, the present one included.
    pub fn handled(&self) -> u64 {
        self.duty.handled
    }

    /// Which task this callback is for; `None` outside [`on_task`](crate::Handler::on_task), and once it is
    /// [finished](TaskWorker::finish).
    pub fn task(&self) -> Option<TaskId> {
        self.duty.task()
    }

    /// Ends the task with this result before the callback returns, for one that has more to do when its asker can go on
    /// already. What the callback returns is no result any more then; if the process dies in it, the task is done all the
    /// same. Swoole: `finish`.
    ///
    /// # Errors
    ///
    /// [`Error::NoTask`] if there is none in hand, or it is finished already; [`Error::Setup`] if the result is too large for
    /// memory (`task_buffer_size`) and could not be kept in a file (`task_tmpdir`): it is not finished then.
    pub fn finish(&mut self, result: &[u8]) -> Result<()> {
        if self.duty.task().is_none() {
            return Err(Error::NoTask);
        }
        self.duty.finish(result)
    }

    /// Lets this process retire and be replaced, after the present callback.
    pub fn retire(&mut self) {
        self.duty.retiring = true;
    }

    fn post(&mut self) -> &mut Sender {
        &mut self.duty.post.sender
    }

    fn asker(&mut self) -> Result<&mut Asker> {
        self.duty.asker.as_mut().ok_or(Error::NoTaskWorkers)
    }

    fn seat(&self) -> Option<u16> {
        Some(self.duty.seat)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.duty.shared
    }
}
