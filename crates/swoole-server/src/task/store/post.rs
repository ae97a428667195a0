//! Tasks that go by post: what a task worker is told of by a message, and not by a queue in this memory.
//!
//! The slot and its word are the same. A task is [posted](Store::post) before its letter is sent, so whoever opens that
//! finds it; a letter whose task is not there any more is waste paper. A task worker that has died with a letter that it had
//! not opened has taken nothing but the letter: the manager revives all tasks that it may have been for
//! ([`Store::save_letters`]), and the letters of those that were not in it become waste paper.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::layout::{
    ASKER, BODY, CAN_BE_INLINE, FOREIGN, NUMBER, ONE_WAY, PAYLOAD, POSITION, QUEUED_AT, REVIVALS, STARTED_AT,
};
use super::state::{Entry, Length, Stage, State};
use super::{Store, Taken, layout};
use crate::task::TaskId;

impl Store {
    // The asker's part.

    /// Whether something waits in this queue, before which nothing may be posted.
    pub(crate) fn waits(&self, asker: u16, queue: usize) -> bool {
        self.next_entry(asker, queue).is_some()
    }

    /// How many tasks of this queue's were posted.
    pub(crate) fn posted(&self, asker: u16, queue: usize) -> u64 {
        self.position(asker, self.shape.by_post(queue))
    }

    /// Whoever has a letter about this filled slot may take it from now on. That there is one,
    /// [`set_posted`](Store::set_posted) says.
    pub(crate) fn post(&self, asker: u16, slot: u16, ticket: u64, queue: usize) {
        let place = layout::pack_position(self.shape.by_post(queue), self.posted(asker, queue));
        self.body(asker, slot)[POSITION].store(place, Relaxed);
        let queued = State { stage: Stage::Queued, attempt: 1, taker: 0, ticket };
        self.state(asker, slot).store(queued.pack(), Release);
    }

    pub(crate) fn set_posted(&self, asker: u16, queue: usize, posted: u64) {
        self.publish(asker, self.shape.by_post(queue), posted);
    }

    /// There is no letter after all; false if the task was revived meanwhile, and needs none.
    pub(crate) fn recall(&self, asker: u16, slot: u16, ticket: u64) -> bool {
        let queued = State { stage: Stage::Queued, attempt: 1, taker: 0, ticket };
        let filling = State { stage: Stage::Filling, ticket, ..State::FREE };
        self.state(asker, slot).compare_exchange(queued.pack(), filling.pack(), AcqRel, Relaxed).is_ok()
    }

    /// The payload of a filled slot, if it is here.
    pub(crate) fn filled(&self, asker: u16, slot: u16, bytes: &mut Vec<u8>) {
        let body = self.body(asker, slot);
        let Length { len, spilled } = Length::unpack(body[PAYLOAD].load(Relaxed));
        layout::read(&body[BODY..], if spilled { 0 } else { len.min(CAN_BE_INLINE) }, bytes);
    }

    /// Bytes of the payload of a filled slot.
    pub(crate) fn filled_len(&self, asker: u16, slot: u16) -> usize {
        Length::unpack(self.body(asker, slot)[PAYLOAD].load(Relaxed)).len
    }

    /// The same of a task in hand.
    pub(crate) fn payload_len(&self, taken: &Taken) -> usize {
        self.filled_len(taken.asker, taken.slot)
    }

    /// The payload of a filled slot lies in a file, short as it may be.
    pub(crate) fn set_spilled(&self, asker: u16, slot: u16) {
        let word = &self.body(asker, slot)[PAYLOAD];
        let Length { len, .. } = Length::unpack(word.load(Relaxed));
        word.store(Length { len, spilled: true }.pack(), Relaxed);
    }

    // The task worker's part.

    fn letter(&self, taker: u16) -> &AtomicU64 {
        &self.row(self.shape.askers - 1)[self.shape.letters() + usize::from(taker)]
    }

    /// From before a task worker receives a letter, until that is opened.
    pub(crate) fn set_letter(&self, taker: u16, is_there: bool) {
        // Its own stores, and the system call between them, happen in their order or not at all when it dies.
        self.letter(taker).store(is_there.into(), Release);
    }

    /// Takes the task of a letter, if it is still to be begun.
    pub(crate) fn take_posted(
        &self,
        asker: u16,
        slot: u16,
        ticket: u64,
        taker: u16,
        now: u64,
    ) -> Option<Taken> {
        if asker >= self.shape.askers {
            return None;
        }
        self.take_entry(asker, Entry { slot, ticket }, taker, now)
    }

    /// How many were posted to this queue, by all askers together: another number whenever there was one more.
    pub(crate) fn arrivals(&self, queue: usize) -> u64 {
        let lane = self.shape.by_post(queue);
        let posted = |asker| self.head(asker, lane).load(Acquire);
        (0..self.shape.askers).map(posted).fold(0, u64::wrapping_add)
    }

    /// Whether nobody is at a slot that is kept for tasks of no process of the server's.
    pub(crate) fn is_vacant(&self, asker: u16, slot: u16) -> bool {
        let state = State::unpack(self.state(asker, slot).load(Acquire));
        !state.is_some_and(|state| matches!(state.stage, Stage::Revived | Stage::Running))
    }

    /// Puts a task that nobody of the server has asked for into a vacant slot, and takes it: one-way. `asker`: whose row.
    /// Its payload, or the length of that if it lies in a file.
    pub(crate) fn adopt(
        &self,
        (asker, slot): (u16, u16),
        id: TaskId,
        payload: Result<&[u8], usize>,
        taker: u16,
        now: u64,
    ) -> Taken {
        let word = self.state(asker, slot);
        let ticket = State::unpack(word.load(Relaxed)).map_or(0, |state| state.ticket).wrapping_add(1);
        let ticket = ticket & State::TICKET_MAX;
        word.store(State { stage: Stage::Filling, ticket, ..State::FREE }.pack(), Relaxed);
        let body = self.body(asker, slot);
        body[ASKER].store(FOREIGN | u64::from(id.generation), Relaxed);
        body[NUMBER].store(id.number, Relaxed);
        body[QUEUED_AT].store(now, Relaxed);
        body[STARTED_AT].store(now, Relaxed);
        body[ONE_WAY].store(1, Relaxed);
        body[POSITION].store(layout::pack_position(0, 0), Relaxed);
        let length = match payload {
            Ok(bytes) => {
                layout::write(&body[BODY..], bytes);
                Length { len: bytes.len(), spilled: false }
            }
            Err(len) => Length { len, spilled: true },
        };
        body[PAYLOAD].store(length.pack(), Relaxed);
        let state = State { stage: Stage::Running, attempt: 1, taker, ticket };
        word.store(state.pack(), Release);
        Taken { asker, slot, state }
    }

    /// How long the payload is that was put into a file for a task in hand.
    pub(crate) fn set_spilled_len(&self, taken: &Taken, len: usize) {
        let length = Length { len, spilled: true };
        self.body(taken.asker, taken.slot)[PAYLOAD].store(length.pack(), Relaxed);
    }

    /// A task in hand that is none: somebody else has it.
    pub(crate) fn put_back(&self, taken: &Taken) {
        self.free(taken.asker, taken.slot, taken.state.ticket);
    }

    // The manager's part.

    /// If this dead task worker may have had a letter, whoever comes first takes what that may have been about.
    pub(super) fn save_letters(&self, taker: u16) {
        let letter = self.letter(taker);
        if letter.load(Acquire) != 0 {
            self.revive_posted(Some(taker));
            letter.store(0, Release);
        }
    }

    /// All that was posted to this task worker, or to whoever is free, and is not begun, is to be taken without a letter;
    /// with `None`, all that was posted.
    pub(crate) fn revive_posted(&self, taker: Option<u16>) {
        fence(Acquire);
        for asker in 0..self.shape.askers {
            for slot in 0..self.shape.slots as u16 {
                let word = self.state(asker, slot);
                let Some(state) = State::unpack(word.load(Acquire)) else { continue };
                if state.stage != Stage::Queued {
                    continue;
                }
                let (lane, _) = layout::unpack_position(self.body(asker, slot)[POSITION].load(Relaxed));
                let Some(queue) = lane.checked_sub(self.shape.queues()) else { continue };
                if taker.is_some_and(|taker| queue != 0 && queue != usize::from(taker) + 1) {
                    continue;
                }
                let revived = State { stage: Stage::Revived, ..state };
                if word.compare_exchange(state.pack(), revived.pack(), AcqRel, Relaxed).is_ok() {
                    self.row(asker)[REVIVALS].fetch_add(1, Release);
                }
            }
        }
    }

    /// Whether the task of this use of a slot is still to be done.
    pub(crate) fn is_unfinished(&self, asker: u16, slot: u16, ticket: u64) -> bool {
        if asker >= self.shape.askers || usize::from(slot) >= self.shape.slots {
            return false;
        }
        let state = State::unpack(self.state(asker, slot).load(Acquire));
        state.is_some_and(|state| {
            state.ticket == ticket && matches!(state.stage, Stage::Queued | Stage::Revived | Stage::Running)
        })
    }
}
