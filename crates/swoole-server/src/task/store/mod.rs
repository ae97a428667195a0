//! Where tasks are, from the asking to the collecting: in memory that all processes share.
//!
//! Each process that may ask has a row: slots, each for one task with its payload and then its result, and queues of
//! slots, one for each task worker and one for whoever is free. What becomes of a slot is one word, its [`State`]:
//!
//! ```text
//!            asker             asker           task worker            task worker
//!     Free --------> Filling --------> Queued --------------> Running ----------> Done ---.
//!      ^                                  |                    |    ^               ^     |
//!      |                withdrawn         |     it died: manager    | task worker   |     | asker
//!      |<---------------------------------'                    |    |               |     |
//!      |                                                       |--> Revived         |     |
//!      |                                                       '--------------------'     |
//!      '----------------------------------------------------------------------------------'
//! ```
//!
//! A step is one compare-and-swap, so whoever dies has made it or not; and it says by whom and for which use of the slot
//! (the ticket), so that a late one is in vain. Nobody waits for anybody: a task worker that dies between taking a task
//! and moving the queue on is helped by the next one who looks. What a dead task worker was at, the manager
//! [settles](Store::settle) before there is a successor. The slot of a one-way task is free when that is done. What a dead asker has asked is done all the same; its successor
//! collects the results, and gives them to nobody.
//!
//! What others write is believed as far as it costs the believer nothing: numbers of slots and lengths are checked.

mod layout;
mod post;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};
use std::time::Duration;

use swoole_ipc::Memory;
use swoole_ipc::words::Words;

pub(crate) use self::layout::CAN_BE_INLINE;
pub(crate) use self::layout::Shape;
use self::layout::{
    ASKER, BODY, FOREIGN, NUMBER, ONE_WAY, OUTCOME, PAYLOAD, POSITION, QUEUED_AT, RESULT, REVIVALS,
    STARTED_AT,
};
use self::state::{Entry, Length, State};
pub(crate) use self::state::{Stage, Status};
use super::{TaskFate, TaskId, TaskInHand};
use crate::breakpoint::{self, Point};

/// Counts of one asker's tasks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Count {
    /// Answered, and failed with an error of the handler's.
    Done = 1,
    Failed = 2,
    /// Given up, because task workers died on it; given to another one for that.
    Lost = 3,
    Retried = 4,
    /// Answered too late: the asker has died, or waits no longer.
    Orphaned = 5,
    Expired = 6,
    /// Not taken, because as many were under way as may be.
    Refused = 7,
}

/// All rows.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    shape: Shape,
    rows: Vec<Words>,
}

/// A task that a task worker has taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    asker: u16,
    slot: u16,
    state: State,
}

impl Taken {
    /// Whose task it is.
    pub(crate) fn asker(&self) -> u16 {
        self.asker
    }

    /// Its slot, and which use of that it is.
    pub(crate) fn place(&self) -> (u16, u64) {
        (self.slot, self.state.ticket)
    }
}

/// What an asker finds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    /// A task is done.
    Done(Ready),
    /// A one-way task is over: its slot is free.
    Free { slot: u16, ticket: u64 },
}

/// What an asker finds that is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) slot: u16,
    pub(crate) id: TaskId,
    pub(crate) ticket: u64,
    pub(crate) status: Status,
    /// How many task workers have begun it.
    pub(crate) attempt: u8,
    /// Bytes of the result, and whether they lie in a file.
    pub(crate) len: usize,
    pub(crate) spilled: bool,
    pub(crate) payload_spilled: bool,
}

/// What an asker that begins finds in a slot.
#[derive(Debug)]
pub(crate) enum Reclaimed {
    Free,
    /// It is free now: the last process had filled it, and nobody could find it.
    Abandoned {
        ticket: u64,
    },
    /// A task of the last process's that is not done.
    UnderWay,
    /// One that is.
    Done(Ready),
}

/// How many tasks there are at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Depth {
    pub(crate) queued: u64,
    pub(crate) running: u64,
    /// Since when the oldest one that waits does, on the clock that [`Store::queue`] is given.
    pub(crate) oldest: Option<u64>,
}

impl Store {
    /// In the part of `memory` that begins at `start`.
    pub(crate) fn map(memory: &Memory, start: usize, shape: Shape) -> Result<Store, swoole_ipc::Error> {
        let askers = usize::from(shape.askers);
        let rows = if shape.is_empty() {
            Vec::new()
        } else {
            Words::open(memory, start, askers, shape.row_words())?
        };
        Ok(Store { shape, rows })
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Makes the rows of other askers read-only in this process.
    pub(crate) fn protect_from(&self, asker: u16) -> Result<(), swoole_ipc::Error> {
        Words::protect_others(&self.rows, Some(asker.into()))
    }

    // What stands where.

    fn row(&self, asker: u16) -> &[AtomicU64] {
        &self.rows[usize::from(asker)]
    }

    fn state(&self, asker: u16, slot: u16) -> &AtomicU64 {
        &self.row(asker)[self.shape.states() + usize::from(slot)]
    }

    fn body(&self, asker: u16, slot: u16) -> &[AtomicU64] {
        let start = self.shape.bodies() + usize::from(slot) * layout::SLOT_WORDS;
        &self.row(asker)[start..start + layout::SLOT_WORDS]
    }

    fn head(&self, asker: u16, queue: usize) -> &AtomicU64 {
        &self.row(asker)[self.shape.heads() + queue]
    }

    fn next(&self, asker: u16, queue: usize) -> &AtomicU64 {
        &self.row(asker)[self.shape.nexts() + queue]
    }

    fn entry(&self, asker: u16, queue: usize, position: u64) -> &AtomicU64 {
        &self.row(asker)[self.shape.entry(queue, position)]
    }

    fn mark(&self, asker: u16, slot: u16) {
        let word = &self.row(asker)[self.shape.marks() + usize::from(slot) / 64];
        word.fetch_or(1 << (slot % 64), Release);
    }

    /// One more of these. By the asker, or by the manager.
    pub(crate) fn count(&self, asker: u16, count: Count) {
        self.row(asker)[count as usize].fetch_add(1, Relaxed);
    }

    /// All of these, whoever asked.
    pub(crate) fn counted(&self, count: Count) -> u64 {
        self.rows.iter().map(|row| row[count as usize].load(Relaxed)).sum()
    }

    fn id(&self, asker: u16, slot: u16) -> TaskId {
        let body = self.body(asker, slot);
        let who = body[ASKER].load(Relaxed);
        let asker = if who & FOREIGN != 0 { TaskId::FOREIGN } else { asker };
        TaskId { asker, generation: who as u32, number: body[NUMBER].load(Relaxed) }
    }

    // The asker's part. Each row has one asker at a time.

    /// Makes a slot free that nobody is at, for an asker that begins.
    pub(crate) fn reclaim(&self, asker: u16, slot: u16) -> Reclaimed {
        let word = self.state(asker, slot);
        let Some(State { stage, ticket, .. }) = State::unpack(word.load(Acquire)) else {
            // Nonsense is nobody's.
            word.store(State::FREE.pack(), Release);
            return Reclaimed::Free;
        };
        let abandoned = match stage {
            Stage::Free => return Reclaimed::Free,
            Stage::Filling => true,
            // The last asker may have died before this one could be found.
            Stage::Queued => {
                let place = self.body(asker, slot)[POSITION].load(Relaxed);
                let (queue, position) = layout::unpack_position(place);
                let is_hidden = queue >= 2 * self.shape.queues() || position >= self.position(asker, queue);
                is_hidden && self.withdraw(asker, slot, ticket)
            }
            Stage::Revived | Stage::Running => false,
            Stage::Done => return self.look(asker, slot).map_or(Reclaimed::UnderWay, Reclaimed::Done),
        };
        if !abandoned {
            return Reclaimed::UnderWay;
        }
        self.free(asker, slot, ticket);
        Reclaimed::Abandoned { ticket }
    }

    /// Where the asker's next entry of this queue goes.
    pub(crate) fn position(&self, asker: u16, queue: usize) -> u64 {
        self.head(asker, queue).load(Relaxed)
    }

    /// Whether the queue has room for `more` entries behind `position`.
    pub(crate) fn has_room(&self, asker: u16, queue: usize, position: u64) -> bool {
        position.wrapping_sub(self.next(asker, queue).load(Acquire)) < self.shape.places() as u64
    }

    /// Moves a queue past the tasks that were withdrawn, as a task worker would that has time.
    pub(crate) fn skip_withdrawn(&self, asker: u16, queue: usize) {
        while let Some(position) = self.next_entry(asker, queue) {
            let Entry { slot, ticket } = Entry::unpack(self.entry(asker, queue, position).load(Acquire));
            let is_queued = usize::from(slot) < self.shape.slots
                && State::unpack(self.state(asker, slot).load(Acquire))
                    .is_some_and(|state| state.stage == Stage::Queued && state.ticket == ticket);
            if is_queued {
                return;
            }
            let next = self.next(asker, queue);
            let _ = next.compare_exchange(position, position.wrapping_add(1), AcqRel, Relaxed);
        }
    }

    /// Puts a task into a free slot; its payload if that fits there. Its ticket.
    pub(crate) fn fill(&self, id: TaskId, slot: u16, payload: &[u8], is_one_way: bool, now: u64) -> u64 {
        let state = self.state(id.asker, slot);
        let ticket = State::unpack(state.load(Relaxed)).map_or(0, |state| state.ticket).wrapping_add(1);
        let ticket = ticket & State::TICKET_MAX;
        state.store(State { stage: Stage::Filling, ticket, ..State::FREE }.pack(), Relaxed);
        let body = self.body(id.asker, slot);
        body[ASKER].store(id.generation.into(), Relaxed);
        body[NUMBER].store(id.number, Relaxed);
        body[QUEUED_AT].store(now, Relaxed);
        body[ONE_WAY].store(is_one_way.into(), Relaxed);
        let spilled = payload.len() > CAN_BE_INLINE;
        body[PAYLOAD].store(Length { len: payload.len(), spilled }.pack(), Relaxed);
        if !spilled {
            layout::write(&body[BODY..], payload);
        }
        ticket
    }

    /// Makes a filled slot the next one of a queue. It can be found once [`publish`](Store::publish) has said so.
    pub(crate) fn queue(&self, asker: u16, slot: u16, ticket: u64, queue: usize, position: u64) {
        self.body(asker, slot)[POSITION].store(layout::pack_position(queue, position), Relaxed);
        let queued = State { stage: Stage::Queued, attempt: 1, taker: 0, ticket };
        self.state(asker, slot).store(queued.pack(), Release);
        self.entry(asker, queue, position).store(Entry { slot, ticket }.pack(), Release);
    }

    pub(crate) fn publish(&self, asker: u16, queue: usize, head: u64) {
        self.head(asker, queue).store(head, Release);
    }

    /// Takes a task back that nobody has begun; false if somebody has.
    pub(crate) fn withdraw(&self, asker: u16, slot: u16, ticket: u64) -> bool {
        let queued = State { stage: Stage::Queued, attempt: 1, taker: 0, ticket };
        let free = State { ticket, ..State::FREE };
        self.state(asker, slot).compare_exchange(queued.pack(), free.pack(), AcqRel, Relaxed).is_ok()
    }

    /// Whether something is done that was not collected.
    pub(crate) fn has_marks(&self, asker: u16) -> bool {
        let marks = &self.row(asker)[self.shape.marks()..][..self.shape.mark_words()];
        marks.iter().any(|word| word.load(Relaxed) != 0)
    }

    /// What is over, each once; whoever takes what is done [frees](Store::free) its slot. What is free may be so since
    /// long: the ticket tells.
    pub(crate) fn over(&self, asker: u16, mut found: impl FnMut(Found)) {
        for index in 0..self.shape.mark_words() {
            let word = &self.row(asker)[self.shape.marks() + index];
            if word.load(Relaxed) == 0 {
                continue;
            }
            let mut marks = word.swap(0, Acquire);
            while marks != 0 {
                let slot = index as u16 * 64 + marks.trailing_zeros() as u16;
                marks &= marks - 1;
                if usize::from(slot) < self.shape.slots {
                    match State::unpack(self.state(asker, slot).load(Acquire)) {
                        Some(State { stage: Stage::Free, ticket, .. }) => found(Found::Free { slot, ticket }),
                        _ => self.look(asker, slot).into_iter().map(Found::Done).for_each(&mut found),
                    }
                }
            }
        }
    }

    /// What is done in this slot, if its task is.
    pub(crate) fn look(&self, asker: u16, slot: u16) -> Option<Ready> {
        let state = State::unpack(self.state(asker, slot).load(Acquire));
        let State { ticket, attempt, .. } = state.filter(|state| state.stage == Stage::Done)?;
        let body = self.body(asker, slot);
        let (status, result) = state::unpack_result(body[OUTCOME].load(Relaxed));
        let payload = Length::unpack(body[PAYLOAD].load(Relaxed));
        let len = if result.spilled { result.len } else { result.len.min(CAN_BE_INLINE) };
        let Length { spilled, .. } = result;
        let id = self.id(asker, slot);
        Some(Ready { slot, id, ticket, status, attempt, len, spilled, payload_spilled: payload.spilled })
    }

    /// The result, where it is not in a file.
    pub(crate) fn result(&self, asker: u16, ready: &Ready) -> Vec<u8> {
        let mut bytes = Vec::new();
        layout::read(&self.body(asker, ready.slot)[RESULT..], ready.len, &mut bytes);
        bytes
    }

    /// The asker has what it wants of it.
    pub(crate) fn free(&self, asker: u16, slot: u16, ticket: u64) {
        self.state(asker, slot).store(State { ticket, ..State::FREE }.pack(), Release);
    }

    // The task worker's part.

    /// How often something was revived: who has seen another number looks for it.
    pub(crate) fn revivals(&self) -> u64 {
        self.rows.iter().map(|row| row[REVIVALS].load(Acquire)).sum()
    }

    /// Takes something that another task worker has died on, if it was for this one or for anybody.
    pub(crate) fn take_revived(&self, taker: u16, now: u64) -> Option<Taken> {
        let own = usize::from(taker) + 1;
        (0..self.shape.askers).find_map(|asker| {
            (0..self.shape.slots as u16).find_map(|slot| {
                let state = State::unpack(self.state(asker, slot).load(Acquire))?;
                // Whoever looks at the body of one that was never used has the system give it memory.
                if state.stage != Stage::Revived {
                    return None;
                }
                let (queue, _) = layout::unpack_position(self.body(asker, slot)[POSITION].load(Relaxed));
                let queue = queue % self.shape.queues();
                let is_it = queue == 0 || queue == own;
                is_it.then(|| self.begin(asker, slot, state, taker, now)).flatten()
            })
        })
    }

    /// Whether this asker may have something for this task worker.
    pub(crate) fn has_work(&self, asker: u16, taker: u16) -> bool {
        [usize::from(taker) + 1, 0].into_iter().any(|queue| self.next_entry(asker, queue).is_some())
    }

    /// The position of the next entry of a queue, if there is one. More than there is room for is nonsense, and nobody's.
    fn next_entry(&self, asker: u16, queue: usize) -> Option<u64> {
        loop {
            let next = self.next(asker, queue).load(Acquire);
            let ahead = self.head(asker, queue).load(Acquire).wrapping_sub(next);
            if ahead <= self.shape.places() as u64 {
                return (ahead > 0).then_some(next);
            }
            // Others may have moved on between the two looks.
            if next == self.next(asker, queue).load(Acquire) {
                return None;
            }
        }
    }

    /// Takes the next task of this asker: of those that are meant for this task worker, or of those for anybody.
    pub(crate) fn take(&self, asker: u16, taker: u16, now: u64) -> Option<Taken> {
        [usize::from(taker) + 1, 0].into_iter().find_map(|queue| self.take_from(asker, queue, taker, now))
    }

    fn take_from(&self, asker: u16, queue: usize, taker: u16, now: u64) -> Option<Taken> {
        let next = self.next(asker, queue);
        loop {
            let position = self.next_entry(asker, queue)?;
            let entry = Entry::unpack(self.entry(asker, queue, position).load(Acquire));
            let taken = self.take_entry(asker, entry, taker, now);
            // Whoever took it: it is taken, and the next one is next.
            let _ = next.compare_exchange(position, position.wrapping_add(1), AcqRel, Relaxed);
            if taken.is_some() {
                return taken;
            }
        }
    }

    fn take_entry(&self, asker: u16, Entry { slot, ticket }: Entry, taker: u16, now: u64) -> Option<Taken> {
        if usize::from(slot) >= self.shape.slots {
            return None;
        }
        let state = State::unpack(self.state(asker, slot).load(Acquire))?;
        let is_it = state.stage == Stage::Queued && state.ticket == ticket;
        is_it.then(|| self.begin(asker, slot, state, taker, now)).flatten()
    }

    fn begin(&self, asker: u16, slot: u16, found: State, taker: u16, now: u64) -> Option<Taken> {
        let state = State { stage: Stage::Running, taker, ..found };
        self.state(asker, slot).compare_exchange(found.pack(), state.pack(), AcqRel, Relaxed).ok()?;
        self.body(asker, slot)[STARTED_AT].store(now, Relaxed);
        breakpoint::pass(Point::TaskTaken);
        Some(Taken { asker, slot, state })
    }

    /// The payload of a task in hand into `bytes`; or its length, if it lies in a file.
    pub(crate) fn payload(&self, taken: &Taken, bytes: &mut Vec<u8>) -> Option<usize> {
        let body = self.body(taken.asker, taken.slot);
        let Length { len, spilled } = Length::unpack(body[PAYLOAD].load(Relaxed));
        if !spilled {
            layout::read(&body[BODY..], len.min(CAN_BE_INLINE), bytes);
        }
        spilled.then_some(len)
    }

    /// Whether nobody waits for its end.
    pub(crate) fn is_one_way(&self, taken: &Taken) -> bool {
        self.body(taken.asker, taken.slot)[ONE_WAY].load(Relaxed) != 0
    }

    pub(crate) fn id_of(&self, taken: &Taken) -> TaskId {
        self.id(taken.asker, taken.slot)
    }

    /// The task in hand is done; its result, if that fits there, or else its length.
    pub(crate) fn finish(&self, taken: &Taken, status: Status, result: Result<&[u8], usize>) {
        let Taken { asker, slot, state } = *taken;
        let body = self.body(asker, slot);
        let length = match result {
            Ok(bytes) => {
                layout::write(&body[RESULT..], bytes);
                Length { len: bytes.len(), spilled: false }
            }
            Err(len) => Length { len, spilled: true },
        };
        body[OUTCOME].store(state::pack_result(status, length), Relaxed);
        breakpoint::pass(Point::TaskResult);
        self.state(asker, slot).store(State { stage: Stage::Done, ..state }.pack(), Release);
        breakpoint::pass(Point::TaskDone);
        self.mark(asker, slot);
        breakpoint::pass(Point::TaskMarked);
    }

    /// The one-way task in hand is over.
    pub(crate) fn finish_one_way(&self, taken: &Taken, status: Status) {
        let Taken { asker, slot, state } = *taken;
        self.count(asker, if status == Status::Done { Count::Done } else { Count::Failed });
        self.state(asker, slot).store(State { stage: Stage::Free, ..state }.pack(), Release);
        breakpoint::pass(Point::TaskDone);
        self.mark(asker, slot);
    }

    // The manager's part.

    /// This task worker is dead: what it was at is begun again by another one, if it may be, or is lost, and its asker
    /// learns of it. What it was at.
    pub(crate) fn settle(&self, taker: u16, retries: u32, now: u64) -> Vec<TaskInHand> {
        let mut in_hand = Vec::new();
        // Its last stores were made before it was reaped.
        fence(Acquire);
        self.save_letters(taker);
        for asker in 0..self.rows.len() as u16 {
            for slot in 0..self.shape.slots as u16 {
                let state = State::unpack(self.state(asker, slot).load(Acquire));
                let Some(state) = state.filter(|state| state.taker == taker) else { continue };
                match state.stage {
                    Stage::Running => in_hand.push(self.settle_one(asker, slot, state, retries, now)),
                    // It may have had no time to say so.
                    Stage::Done => self.mark(asker, slot),
                    Stage::Free if state.attempt > 0 => self.mark(asker, slot),
                    _ => {}
                }
            }
        }
        in_hand
    }

    fn settle_one(&self, asker: u16, slot: u16, state: State, retries: u32, now: u64) -> TaskInHand {
        let body = self.body(asker, slot);
        let attempt = u32::from(state.attempt);
        let started = body[STARTED_AT].load(Relaxed);
        let fate = if attempt <= retries { TaskFate::Retried } else { TaskFate::Lost };
        let Length { len, .. } = Length::unpack(body[PAYLOAD].load(Relaxed));
        let told = TaskInHand {
            id: self.id(asker, slot),
            size: len as u64,
            attempt,
            age: Duration::from_nanos(now.saturating_sub(started)),
            fate,
        };
        let word = self.state(asker, slot);
        if fate == TaskFate::Retried {
            let attempt = state.attempt.saturating_add(1);
            word.store(State { stage: Stage::Revived, attempt, taker: 0, ..state }.pack(), Release);
            self.row(asker)[REVIVALS].fetch_add(1, Release);
            self.count(asker, Count::Retried);
        } else if body[ONE_WAY].load(Relaxed) != 0 {
            word.store(State { stage: Stage::Free, ..state }.pack(), Release);
            self.mark(asker, slot);
            self.count(asker, Count::Lost);
        } else {
            let nothing = Length { len: 0, spilled: false };
            body[OUTCOME].store(state::pack_result(Status::Lost, nothing), Relaxed);
            word.store(State { stage: Stage::Done, ..state }.pack(), Release);
            self.mark(asker, slot);
            self.count(asker, Count::Lost);
        }
        told
    }

    /// How many there are, of whatever asker.
    pub(crate) fn depth(&self) -> Depth {
        let mut depth = Depth::default();
        for asker in 0..self.rows.len() as u16 {
            for slot in 0..self.shape.slots as u16 {
                let stage = State::unpack(self.state(asker, slot).load(Relaxed)).map(|state| state.stage);
                match stage {
                    Some(Stage::Queued | Stage::Revived) => {
                        let since = self.body(asker, slot)[QUEUED_AT].load(Relaxed);
                        depth.queued += 1;
                        depth.oldest = Some(depth.oldest.map_or(since, |oldest| oldest.min(since)));
                    }
                    Some(Stage::Running) => depth.running += 1,
                    _ => {}
                }
            }
        }
        depth
    }
}
