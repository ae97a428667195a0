//! What a worker may ask of task workers.

use std::time::Duration;

use super::{Duty, Way, Worker};
use crate::error::{Error, Result};
use crate::task::{Asker, Payload, TaskError, TaskId, TaskResult};

impl Worker<'_> {
    /// Hands a task to whichever task worker is free, or will be first. What comes of it,
    /// [`on_finish`](crate::Handler::on_finish) is told. It can be begun as soon as the present callback returns, or
    /// [flushes](Worker::flush).
    ///
    /// `payload` is any bytes, of any number, or with the feature `typed` a `typed::Job`; more than 8 KiB lie
    /// apart (`task_buffer_size`). Swoole: `task`.
    ///
    /// # Errors
    ///
    /// [`Error::NoTaskWorkers`] without task workers; [`Error::TaskQueueFull`] if `task_queue_max` of this worker's tasks are
    /// under way, at once or after [`task_queue_wait`](crate::Config::task_queue_wait); [`Error::Setup`] if a large one could
    /// not be written down; [`Error::Encode`] if it cannot be made bytes of. Nothing was asked then.
    pub fn task(&mut self, payload: &(impl Payload + ?Sized)) -> Result<TaskId> {
        self.ask(None, &payload.encode()?)
    }

    /// As [`task`](Worker::task), for the given task worker, from 0: after what this worker has asked of that one before.
    /// While there is no process in its slot, it waits there.
    ///
    /// # Errors
    ///
    /// As for [`task`](Worker::task); [`Error::NoSuchTaskWorker`].
    pub fn task_to(&mut self, task_worker: u16, payload: &(impl Payload + ?Sized)) -> Result<TaskId> {
        self.ask(Some(task_worker), &payload.encode()?)
    }

    /// As [`task`](Worker::task), and waits for the result: meanwhile this worker does nothing else. `timeout` is any time; a
    /// task that nobody has begun by then is taken back. Swoole: `taskwait`.
    ///
    /// # Errors
    ///
    /// As for [`task`](Worker::task); [`Error::Task`] if the task came to no result, or to none in time.
    pub fn task_wait<P: Payload + ?Sized>(&mut self, payload: &P, timeout: Duration) -> Result<P::Output> {
        let mut results = self.task_wait_all(&[payload], timeout)?;
        results.pop().unwrap_or(Err(TaskError::TimedOut)).map_err(Error::Task)
    }

    /// As [`task_wait`](Worker::task_wait) for several, which go to as many task workers as are free. The results are in the
    /// order of the payloads, each by itself or why there is none. What was asked and sent before leaves first, as by
    /// [`flush`](Worker::flush); under `on_crash = retry`, where this callback may have to be begun again, only what earlier
    /// ones have sent. Swoole: `taskWaitMulti`.
    ///
    /// # Errors
    ///
    /// As for [`task`](Worker::task): then none of them was asked; or if that waits for room, those are taken back that nobody
    /// had begun.
    pub fn task_wait_all<P: Payload + ?Sized>(
        &mut self,
        payloads: &[&P],
        timeout: Duration,
    ) -> Result<Vec<TaskResult<P::Output>>> {
        let payloads = payloads.iter().map(|payload| payload.encode()).collect::<Result<Vec<_>>>()?;
        self.let_out()?;
        let Duty { tasks, shared, id, .. } = &mut *self.duty;
        let tasks = tasks.as_mut().ok_or(Error::NoTaskWorkers)?;
        let results = tasks.ask_and_wait(&payloads, timeout, &shared.bells[usize::from(*id)])?;
        Ok(results.into_iter().map(|result| result.and_then(P::output)).collect())
    }

    fn ask(&mut self, to: Option<u16>, payload: &[u8]) -> Result<TaskId> {
        if !self.shared().config.task_queue_wait.is_zero() && self.asker()?.is_full(to)? {
            self.let_out()?;
            let Duty { tasks, shared, id, .. } = &mut *self.duty;
            let tasks = tasks.as_mut().ok_or(Error::NoTaskWorkers)?;
            tasks.wait_for_room(to, None, &shared.bells[usize::from(*id)])?;
        }
        self.asker()?.ask(to, payload)
    }

    /// What was sent before need not wait for tasks: all of it, or what earlier callbacks have sent if this one may have to be
    /// begun again.
    fn let_out(&mut self) -> Result<()> {
        match self.flush() {
            Err(Error::Uncommitted { .. }) => self.ring(),
            flushed => flushed,
        }
    }

    /// Lets out what earlier callbacks have sent.
    fn ring(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Links(outlets) => outlets.ring(),
            Way::Own(_) => Ok(()),
        }
    }

    fn asker(&mut self) -> Result<&mut Asker> {
        self.duty.tasks.as_mut().ok_or(Error::NoTaskWorkers)
    }

    /// What this callback has asked for can be begun.
    pub(super) fn publish_tasks(&mut self) {
        if let Some(tasks) = &mut self.duty.tasks
            && let Err(error) = tasks.publish()
        {
            tracing::error!("{error}");
        }
    }
}
