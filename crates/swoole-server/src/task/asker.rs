//! The end of who asks for tasks: asks, collects, waits.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use swoole_ipc::Doorbell;

use super::choice::{Choice, State};
use super::courier::{Courier, Letter};
use super::spill::{Part, Spill};
use super::store::{CAN_BE_INLINE, Count, Found, Ready, Reclaimed, Status, Store};
use super::{TaskError, TaskId, TaskResult};
use crate::breakpoint::{self, Point};
use crate::error::{Error, Result};
use crate::shared::Shared;

/// The longest sleep of one who waits for a task: then it looks whether the server is still there.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A task that is over.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) id: TaskId,
    pub(crate) result: TaskResult,
}

/// What a task's result is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// `on_finish`.
    Finish,
    /// A callback that waits for it, in this place of its list.
    Wait(usize),
    /// Nobody waits for it any longer.
    Nobody,
    /// Nobody ever did.
    OneWay,
}

impl Purpose {
    /// Whether somebody waits for it.
    fn is_waited_for(self) -> bool {
        matches!(self, Purpose::Finish | Purpose::Wait(_))
    }
}

/// What this process has in a slot.
#[derive(Clone, Copy, Debug)]
struct Own {
    ticket: u64,
    id: TaskId,
    purpose: Purpose,
    /// Its payload does not lie in the slot.
    spilled: bool,
    /// The task worker that it is for, if not whoever is free.
    to: Option<u16>,
}

/// What was asked and cannot be found yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    slot: u16,
    ticket: u64,
    queue: usize,
}

/// Asks in the name of one process.
pub(crate) struct Asker {
    shared: Arc<Shared>,
    store: Store,
    spill: Spill,
    asker: u16,
    generation: u32,
    /// Of the last task.
    number: u64,
    free: Vec<u16>,
    own: Vec<Option<Own>>,
    /// Slots with tasks of the last process's.
    inherited: Vec<bool>,
    /// Own ones that are not over.
    under_way: usize,
    /// Something was too large for its slot since all were free.
    had_large: bool,
    pending: Vec<Pending>,
    choice: Choice,
    /// Over, and not yet told of.
    finished: VecDeque<Finished>,
    /// For the callback that waits: in the places of its list.
    awaited: Vec<Option<TaskResult>>,
    told: u64,
}

impl Asker {
    /// That of this process, as [`Config`](crate::Config) numbers them; `None` where there are no task workers. What is left of the last process of the slot is taken up.
    pub(crate) fn open(shared: &Arc<Shared>, asker: u16, generation: u32) -> Option<Asker> {
        let store = shared.tasks.store().clone();
        if store.shape().is_empty() {
            return None;
        }
        let slots = shared.config.task_queue_max.min(store.shape().slots);
        let mut own = Asker {
            shared: Arc::clone(shared),
            spill: shared.tasks.spill().clone(),
            asker,
            generation,
            number: 0,
            free: Vec::with_capacity(slots),
            own: vec![None; slots],
            inherited: vec![false; slots],
            under_way: 0,
            // The last process may have.
            had_large: true,
            pending: Vec::new(),
            choice: Choice::new(shared.config.task_worker_num, asker),
            finished: VecDeque::new(),
            awaited: Vec::new(),
            told: 0,
            store,
        };
        // The last one freed is the first one used: those that are in the cache.
        for slot in (0..slots as u16).rev() {
            match own.store.reclaim(asker, slot) {
                Reclaimed::Free => own.free.push(slot),
                Reclaimed::Abandoned { ticket } => {
                    own.spill.remove(asker, slot, ticket, Part::Payload);
                    own.free.push(slot);
                }
                Reclaimed::UnderWay => own.inherited[usize::from(slot)] = true,
                Reclaimed::Done(ready) => {
                    own.inherited[usize::from(slot)] = true;
                    own.take(ready);
                }
            }
        }
        own.rest();
        Some(own)
    }

    /// Own tasks that have not come to their end in a callback.
    pub(crate) fn unfinished(&self) -> usize {
        self.under_way + self.finished.len()
    }

    /// How many were told of.
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// Whether something is over that was not told of.
    pub(crate) fn has_news(&self) -> bool {
        !self.finished.is_empty() || self.store.has_marks(self.asker)
    }

    /// The next one to tell of, in a callback by itself.
    pub(crate) fn next_finished(&mut self) -> Option<Finished> {
        if self.finished.is_empty() && self.store.has_marks(self.asker) {
            self.collect();
        }
        let finished = self.finished.pop_front();
        self.told += u64::from(finished.is_some());
        finished
    }

    /// A task for the given task worker, or for whoever is free.
    pub(crate) fn ask(&mut self, to: Option<u16>, payload: &[u8]) -> Result<TaskId> {
        self.put(to, payload, Purpose::Finish).map(|own| own.id)
    }

    /// A task whose end nobody is told of. It can be found at once.
    pub(crate) fn ask_one_way(&mut self, to: Option<u16>, payload: &[u8]) -> Result<TaskId> {
        let own = self.put(to, payload, Purpose::OneWay)?;
        self.publish()?;
        Ok(own.id)
    }

    fn put(&mut self, to: Option<u16>, payload: &[u8], purpose: Purpose) -> Result<Own> {
        let to = to.or_else(|| self.courier().is_some_and(Courier::chooses).then(|| self.choose()));
        let queue = self.queue(to)?;
        let Some(slot) = (if self.has_room(queue) { self.free.pop() } else { None }) else {
            self.store.count(self.asker, Count::Refused);
            return Err(Error::TaskQueueFull { max: self.own.len() });
        };
        self.number += 1;
        let id = TaskId { asker: self.asker, generation: self.generation, number: self.number };
        let is_one_way = purpose == Purpose::OneWay;
        let ticket = self.store.fill(id, slot, payload, is_one_way, super::now());
        let spilled = payload.len() > CAN_BE_INLINE
            || self.courier().is_some_and(|courier| courier.needs_file(payload.len()));
        if spilled {
            self.had_large = true;
            self.store.set_spilled(self.asker, slot);
            let written = self.spill.write(self.asker, slot, ticket, Part::Payload, payload);
            if let Err(error) = written {
                self.store.free(self.asker, slot, ticket);
                self.free.push(slot);
                return Err(Error::setup(format!("keep a task of {} bytes", payload.len()), error));
            }
        }
        let own = Own { ticket, id, purpose, spilled, to };
        self.own[usize::from(slot)] = Some(own);
        self.choice.asked(to);
        self.under_way += usize::from(purpose.is_waited_for());
        self.pending.push(Pending { slot, ticket, queue });
        Ok(own)
    }

    /// The queue of what is asked of this task worker, or of whoever is free.
    fn queue(&self, to: Option<u16>) -> Result<usize> {
        let task_worker_num = self.store.shape().task_workers;
        match to {
            Some(task_worker) if task_worker >= task_worker_num => {
                Err(Error::NoSuchTaskWorker { task_worker, task_worker_num })
            }
            to => Ok(to.map_or(0, |to| usize::from(to) + 1)),
        }
    }

    /// Whether there is a slot for one more task, and a place in this queue.
    fn has_room(&mut self, queue: usize) -> bool {
        if self.free.is_empty() {
            self.collect();
        }
        let ahead = self.pending.iter().filter(|pending| pending.queue == queue).count() as u64;
        let position = self.store.position(self.asker, queue) + ahead;
        if !self.store.has_room(self.asker, queue, position) {
            self.store.skip_withdrawn(self.asker, queue);
        }
        !self.free.is_empty() && self.store.has_room(self.asker, queue, position)
    }

    /// Whether [`wait_for_room`](Asker::wait_for_room) would wait.
    pub(crate) fn is_full(&mut self, to: Option<u16>) -> Result<bool> {
        let queue = self.queue(to)?;
        Ok(!self.has_room(queue))
    }

    /// Waits until a task of this worker's has ended, if there is no room for another one before that; for
    /// `task_queue_wait`, and not beyond the deadline. `bell` is that of the worker, whose callback this is.
    pub(crate) fn wait_for_room(
        &mut self,
        to: Option<u16>,
        deadline: Option<Instant>,
        bell: &Doorbell,
    ) -> Result<()> {
        let (queue, wait) = (self.queue(to)?, self.shared.config.task_queue_wait);
        if wait.is_zero() || self.has_room(queue) {
            return Ok(());
        }
        let until = Instant::now().checked_add(wait).into_iter().chain(deadline).min();
        // What nobody can find never ends.
        self.publish()?;
        while !self.has_room(queue) && self.sleep(until, bell)? {
            self.collect();
        }
        Ok(())
    }

    /// What was asked so far can be found from now on. Wakes as many task workers as there is work for.
    pub(crate) fn publish(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let by_post = self.courier().is_some();
        for index in 0..self.pending.len() {
            let pending @ Pending { slot, ticket, queue } = self.pending[index];
            if by_post && self.send(pending) {
                continue;
            }
            // One after the other: what is behind the last head cannot be found, except by its successor.
            let position = self.store.position(self.asker, queue);
            self.store.queue(self.asker, slot, ticket, queue, position);
            breakpoint::pass(Point::TaskQueued);
            self.store.publish(self.asker, queue, position + 1);
        }
        breakpoint::pass(Point::TaskPublished);
        let for_anybody = self.pending.iter().filter(|pending| pending.queue == 0).count();
        let bells = &self.shared.task_bells;
        for pending in self.pending.drain(..).filter(|pending| pending.queue > 0) {
            wake(&bells[pending.queue - 1])?;
        }
        if for_anybody > 0 { self.wake_some(for_anybody) } else { Ok(()) }
    }

    /// Sees to it that so many task workers look for what is published for anybody: first those who do anyway.
    fn wake_some(&mut self, count: usize) -> Result<()> {
        let Shared { config, board, task_bells, .. } = &*self.shared;
        // Who has ceased to look before this fence looks once more behind it.
        fence(Ordering::SeqCst);
        let ids = 0..config.task_worker_num;
        let looks = |id: &u16| self.choice.relies_on(*id, board.looks(config.seat_of_task_worker(*id)));
        let mut found = ids.filter(looks).take(count).count();
        for bell in task_bells {
            if found == count {
                break;
            }
            found += usize::from(wake(bell)?);
        }
        Ok(())
    }

    fn courier(&self) -> Option<&Courier> {
        self.shared.tasks.courier()
    }

    fn choose(&mut self) -> u16 {
        let Shared { config, board, .. } = &*self.shared;
        self.choice.choose(|id| {
            let seat = config.seat_of_task_worker(id);
            match board.looks(seat) {
                Some(_) => State::Looks,
                None if board.is_busy(seat) => State::Works,
                None => State::Sleeps,
            }
        })
    }

    /// Sends a letter; false if there is no room for it, and the task must go into its queue.
    fn send(&mut self, Pending { slot, ticket, queue }: Pending) -> bool {
        let (shared, store, asker) = (&self.shared, &self.store, self.asker);
        let Some((post, own)) = shared.tasks.courier().zip(self.own[usize::from(slot)]) else { return false };
        // What waits there comes first.
        if store.waits(asker, queue) {
            return self.keep(slot, ticket);
        }
        let mut payload = Vec::new();
        if post.is_kept() && own.spilled {
            payload = self.spill.name(asker, slot, ticket, Part::Payload).into_bytes();
        } else if post.is_kept() {
            store.filled(asker, slot, &mut payload);
        }
        let len = store.filled_len(asker, slot);
        let letter = Letter { server: post.server(), id: own.id, slot, ticket, len, in_file: own.spilled };
        store.post(asker, slot, ticket, queue);
        breakpoint::pass(Point::TaskQueued);
        if post.send(queue, &letter, &payload) {
            let posted = store.posted(asker, queue) + 1;
            store.set_posted(asker, queue, posted);
            return true;
        }
        // Whoever has found it without a letter has it.
        !store.recall(asker, slot, ticket) || self.keep(slot, ticket)
    }

    /// It does not go by letter: what is to outlive the server goes into a file. False, so that it goes another way.
    fn keep(&mut self, slot: u16, ticket: u64) -> bool {
        let Some(own) = &mut self.own[usize::from(slot)] else { return false };
        if own.spilled || !self.shared.tasks.courier().is_some_and(Courier::is_kept) {
            return false;
        }
        let mut payload = Vec::new();
        self.store.filled(self.asker, slot, &mut payload);
        match self.spill.write(self.asker, slot, ticket, Part::Payload, &payload) {
            Ok(()) => {
                own.spilled = true;
                self.store.set_spilled(self.asker, slot);
            }
            Err(error) => tracing::warn!("task {} would not outlive the server: {error}", own.id),
        }
        false
    }

    /// Takes what is over.
    fn collect(&mut self) {
        let (store, mut ready, mut free) = (self.store.clone(), Vec::new(), Vec::new());
        store.over(self.asker, |found| match found {
            Found::Done(found) => ready.push(found),
            Found::Free { slot, ticket } => free.push((slot, ticket)),
        });
        free.into_iter().for_each(|(slot, ticket)| self.take_free(slot, ticket));
        // Which of them was done first, nobody knows; they are told of in the order in which they were asked for.
        ready.sort_unstable_by_key(|ready| ready.id);
        ready.into_iter().for_each(|ready| self.take(ready));
        self.rest();
    }

    /// Lets go of what its slots may have kept, if none of them has a task.
    fn rest(&mut self) {
        if self.had_large && self.free.len() == self.own.len() {
            self.had_large = false;
            self.spill.rest(self.asker);
        }
    }

    /// A one-way task is over, if that is what has been free since.
    fn take_free(&mut self, slot: u16, ticket: u64) {
        let own = &mut self.own[usize::from(slot)];
        let is_it = |own: &Own| own.ticket == ticket && own.purpose == Purpose::OneWay;
        let own = own.take_if(|own| is_it(own));
        self.choice.ended(own.and_then(|own| own.to));
        let was_inherited = std::mem::take(&mut self.inherited[usize::from(slot)]);
        if own.is_none() && !was_inherited {
            return;
        }
        if own.is_none_or(|own| own.spilled) {
            self.had_large = true;
            self.spill.remove(self.asker, slot, ticket, Part::Payload);
        }
        self.free.push(slot);
    }

    fn take(&mut self, ready: Ready) {
        let own =
            self.own[usize::from(ready.slot)].filter(|own| own.ticket == ready.ticket && own.id == ready.id);
        let was_under_way = std::mem::take(&mut self.inherited[usize::from(ready.slot)]);
        if own.is_none() && !was_under_way {
            // Nobody has asked for it: nonsense that somebody has written.
            return;
        }
        // Somebody else's, or one that nobody wants any more, is not worth reading a file for.
        let result = match own {
            Some(Own { purpose: Purpose::Finish | Purpose::Wait(_), .. }) => Some(self.result(&ready)),
            _ => None,
        };
        // A task worker that has died on it may have left one.
        let has_result = ready.spilled || ready.attempt > 1 || ready.status == Status::Lost;
        for (is_spilled, part) in [(ready.payload_spilled, Part::Payload), (has_result, Part::Result)] {
            if is_spilled {
                self.had_large = true;
                self.spill.remove(self.asker, ready.slot, ready.ticket, part);
            }
        }
        self.store.free(self.asker, ready.slot, ready.ticket);
        self.free.push(ready.slot);
        let count = match (own.map(|own| own.purpose), &result) {
            (None, _) => Count::Orphaned,
            (Some(Purpose::Nobody | Purpose::OneWay), _) => Count::Expired,
            (_, Some(Ok(_))) => Count::Done,
            (_, Some(Err(TaskError::Lost))) => {
                // The manager has counted it.
                return self.end(own, ready.slot, result);
            }
            _ => Count::Failed,
        };
        self.store.count(self.asker, count);
        self.end(own, ready.slot, result);
    }

    /// Gives the result to whom it is for.
    fn end(&mut self, own: Option<Own>, slot: u16, result: Option<TaskResult>) {
        let Some(Own { id, purpose, to, .. }) = own else { return };
        self.own[usize::from(slot)] = None;
        self.choice.ended(to);
        self.under_way -= usize::from(purpose.is_waited_for());
        match (purpose, result) {
            (Purpose::Finish, Some(result)) => self.finished.push_back(Finished { id, result }),
            (Purpose::Wait(place), Some(result)) => {
                if let Some(awaited) = self.awaited.get_mut(place) {
                    *awaited = Some(result);
                }
            }
            _ => {}
        }
    }

    fn result(&self, ready: &Ready) -> TaskResult {
        let mut bytes = Vec::new();
        if ready.spilled {
            let (slot, ticket, len) = (ready.slot, ready.ticket, ready.len);
            let read = self.spill.read(self.asker, slot, ticket, Part::Result, len, &mut bytes);
            read.map_err(|error| TaskError::File(error.to_string()))?;
        } else {
            bytes = self.store.result(self.asker, ready);
        }
        match ready.status {
            Status::Done => Ok(bytes),
            Status::Failed => Err(TaskError::Failed(String::from_utf8_lossy(&bytes).into_owned())),
            Status::Lost => Err(TaskError::Lost),
        }
    }

    /// Asks all of these, and waits for so long at most: each with its result, in their order. `bell` is that of the worker,
    /// whose callback this is.
    pub(crate) fn ask_and_wait(
        &mut self,
        payloads: &[Cow<'_, [u8]>],
        timeout: Duration,
        bell: &Doorbell,
    ) -> Result<Vec<TaskResult>> {
        let deadline = Instant::now().checked_add(timeout);
        self.awaited = vec![None; payloads.len()];
        let asked = payloads.iter().enumerate().try_for_each(|(place, payload)| {
            self.wait_for_room(None, deadline, bell)?;
            self.put(None, payload, Purpose::Wait(place)).map(drop)
        });
        let waited = asked.and_then(|()| self.publish()).and_then(|()| self.wait(deadline, bell));
        self.forget_awaited();
        waited?;
        let results = std::mem::take(&mut self.awaited).into_iter();
        Ok(results.map(|result| result.unwrap_or(Err(TaskError::TimedOut))).collect())
    }

    /// Until all have come that are awaited, or it is time.
    fn wait(&mut self, deadline: Option<Instant>, bell: &Doorbell) -> Result<()> {
        loop {
            self.collect();
            if self.awaited.iter().all(Option::is_some) || !self.sleep(deadline, bell)? {
                return Ok(());
            }
        }
    }

    /// Sleeps until something may be over; false if it is time.
    fn sleep(&self, deadline: Option<Instant>, bell: &Doorbell) -> Result<bool> {
        let left = deadline.map_or(LOOK_AFTER, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(false);
        }
        bell.arm();
        if self.store.has_marks(self.asker) {
            bell.disarm();
            return Ok(true);
        }
        // Who rings lives.
        if !bell.wait(Some(left.min(LOOK_AFTER)))? && self.shared.lifeline.is_cut() {
            return Err(Error::setup("wait for a task", "the server is gone"));
        }
        Ok(true)
    }

    /// Nobody waits any longer for what has not come: what nobody has begun is taken back.
    fn forget_awaited(&mut self) {
        if self.awaited.iter().all(Option::is_some) {
            return;
        }
        let (store, asker) = (&self.store, self.asker);
        for (entry, slot) in self.own.iter_mut().zip(0..) {
            let Some(own) = entry.as_mut().filter(|own| matches!(own.purpose, Purpose::Wait(_))) else {
                continue;
            };
            let is_pending = self.pending.iter().any(|pending| pending.slot == slot);
            self.under_way -= 1;
            if is_pending || store.withdraw(asker, slot, own.ticket) {
                self.pending.retain(|pending| pending.slot != slot);
                if own.spilled {
                    self.spill.remove(asker, slot, own.ticket, Part::Payload);
                }
                store.free(asker, slot, own.ticket);
                self.free.push(slot);
                self.choice.ended(own.to);
                *entry = None;
                store.count(asker, if is_pending { Count::Refused } else { Count::Expired });
            } else {
                own.purpose = Purpose::Nobody;
            }
        }
    }
}

fn wake(bell: &Doorbell) -> Result<bool> {
    bell.ring().map_err(|error| Error::setup("wake a task worker", error))
}
