//! What comes to a task worker by letter, and what nobody of this server has asked for.
//!
//! A letter of this server's names a slot. Another one, of an earlier server or of another program, and a file that an
//! earlier server has left, is a one-way task: the task worker puts it into a slot of its own, the last of its row, which
//! nobody asks from. So it is counted, named and begun again as any other task is.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::TaskId;
use super::courier::{Courier, Letter, Received};
use super::hand::Hand;
use super::spill::Part;
use super::store::{CAN_BE_INLINE, Store, Taken};
use crate::breakpoint::{self, Point};
use crate::shared::Shared;

/// How often an idle task worker looks for what other programs have sent: they cannot wake it.
const LOOK_FOR_FOREIGN: Duration = Duration::from_millis(100);
/// Every so many letters the queue that had none before comes first.
const TURN: u32 = 16;
/// Task workers that an earlier server may have had.
const TASK_WORKERS_MAX: u16 = 1024;

/// A task worker's part in letters.
pub(super) struct Mail {
    shared: Arc<Shared>,
    store: Store,
    id: u16,
    /// Whose row its own slot is in, and which that is.
    nook: (u16, u16),
    generation: u32,
    /// Tasks taken up that nobody of the server's has asked for.
    adopted: u64,
    hand: Hand,
    buffer: Vec<u8>,
    /// A letter that is not opened: so many bytes of the buffer.
    unopened: Option<usize>,
    /// Which had the last one: the queue for whoever is free (0), or the own one (1).
    from: usize,
    received: u32,
    /// The last letter was another program's, or an earlier server's: where that was, more may be.
    foreign: bool,
    /// What had arrived in the queue for whoever is free and in the own one when nothing was there.
    arrivals: [u64; 2],
    /// Task workers of an earlier server whose queues nobody else looks into.
    strays: Range<u16>,
    /// Files that an earlier server has left.
    left: VecDeque<String>,
}

impl Mail {
    pub(super) fn open(shared: &Arc<Shared>, id: u16, seat: u16, generation: u32, hand: Hand) -> Mail {
        let store = shared.tasks.store().clone();
        let is_kept = shared.tasks.courier().is_some_and(Courier::is_kept);
        let first = shared.config.task_worker_num;
        Mail {
            nook: (seat, store.shape().slots.saturating_sub(1) as u16),
            store,
            id,
            generation,
            adopted: 0,
            hand,
            buffer: Vec::new(),
            unopened: None,
            from: 0,
            received: 0,
            foreign: false,
            arrivals: [0; 2],
            strays: if is_kept && id == 0 { first..TASK_WORKERS_MAX } else { 0..0 },
            left: if is_kept { shared.tasks.spill().left().into() } else { VecDeque::new() },
            shared: Arc::clone(shared),
        }
    }

    /// How long a task worker may sleep that nobody wakes.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.shared.tasks.courier().filter(|courier| courier.is_kept()).map(|_| LOOK_FOR_FOREIGN)
    }

    /// Whether something has arrived since nothing was there. Costs no system call, and knows nothing of other programs.
    pub(super) fn has_news(&self) -> bool {
        self.shared.tasks.courier().is_some() && (0..2).any(|lane| self.has_arrivals(lane))
    }

    fn has_arrivals(&self, lane: usize) -> bool {
        self.store.arrivals(self.queue(lane)) != self.arrivals[lane]
    }

    /// That for whoever is free, and the own one.
    fn queue(&self, lane: usize) -> usize {
        lane * (usize::from(self.id) + 1)
    }

    /// Whether there is something, also from other programs.
    pub(super) fn has_some(&mut self) -> bool {
        self.unopened.is_some() || !self.left.is_empty() || self.fetch(true)
    }

    /// The next task.
    pub(super) fn next(&mut self) -> Option<Taken> {
        while self.unopened.is_some() || self.fetch(self.foreign) {
            let read = Letter::read(&self.buffer[..self.unopened.unwrap_or(0)]);
            self.foreign = !matches!(&read, Ok((letter, _)) if letter.server == self.server());
            let taken = match read {
                Ok((letter, _)) if !self.foreign => {
                    let (asker, slot) = (letter.id.asker, letter.slot);
                    self.store.take_posted(asker, slot, letter.ticket, self.id, super::now())
                }
                // Another task worker is at the last one, or will be soon.
                Ok(_) if !self.store.is_vacant(self.nook.0, self.nook.1) => return None,
                Ok((letter, rest)) => {
                    let (rest, len) = (rest.to_vec(), letter.len);
                    self.adopt_letter(letter.in_file, &rest, len)
                }
                Err(error) => {
                    tracing::warn!("a message in the queue for tasks is thrown away: {error}");
                    None
                }
            };
            self.unopened = None;
            self.store.set_letter(self.id, false);
            if taken.is_some() {
                return taken;
            }
        }
        self.next_left()
    }

    fn server(&self) -> u64 {
        self.shared.tasks.courier().map_or(0, Courier::server)
    }

    /// Gets the next letter, if there is one; of other programs' only now and then, unless it is `thorough`.
    fn fetch(&mut self, thorough: bool) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(courier) = shared.tasks.courier() else { return false };
        self.store.set_letter(self.id, true);
        self.hand.receives();
        self.received = self.received.wrapping_add(1);
        let in_turn = self.received.is_multiple_of(TURN);
        let first = if in_turn { 1 - self.from } else { self.from };
        let thorough = thorough || in_turn && courier.is_kept();
        for lane in [first, 1 - first] {
            let queue = self.queue(lane);
            let arrivals = self.store.arrivals(queue);
            // To ask the kernel for nothing costs as much as for a letter.
            if !thorough && arrivals == self.arrivals[lane] {
                continue;
            }
            if self.fetch_from(courier, queue) {
                self.from = lane;
                return true;
            }
            self.arrivals[lane] = arrivals;
        }
        if !thorough {
            self.received_nothing();
            return false;
        }
        while let Some(stray) = self.strays.next() {
            if self.fetch_from(courier, usize::from(stray) + 1) {
                self.strays.start = stray;
                return true;
            }
        }
        self.received_nothing();
        false
    }

    fn received_nothing(&mut self) {
        self.foreign = false;
        self.store.set_letter(self.id, false);
        self.hand.ends();
    }

    fn fetch_from(&mut self, courier: &Courier, queue: usize) -> bool {
        match courier.receive(queue, &mut self.buffer) {
            Received::Letter(len) => {
                self.unopened = Some(len);
                breakpoint::pass(Point::TaskReceived);
            }
            Received::Nothing => {}
            // What is lost with it stands in memory.
            Received::Gone => self.store.revive_posted(None),
        }
        self.unopened.is_some()
    }

    fn foreign_id(&mut self) -> TaskId {
        self.adopted += 1;
        let number = u64::from(self.id) << 48 | self.adopted;
        TaskId { asker: TaskId::FOREIGN, generation: self.generation, number }
    }

    fn adopt_letter(&mut self, in_file: bool, rest: &[u8], len: usize) -> Option<Taken> {
        if in_file {
            return self.adopt_file(&String::from_utf8_lossy(rest));
        }
        if rest.len() != len {
            tracing::warn!("a message in the queue for tasks is thrown away: {} bytes of {len}", rest.len());
            return None;
        }
        let id = self.foreign_id();
        let needs_file =
            len > CAN_BE_INLINE || self.shared.tasks.courier().is_some_and(|courier| courier.needs_file(len));
        let payload = if needs_file { Err(len) } else { Ok(rest) };
        let taken = self.store.adopt(self.nook, id, payload, self.id, super::now());
        if needs_file {
            let ((asker, slot), (_, ticket)) = (self.nook, taken.place());
            if let Err(error) = self.shared.tasks.spill().write(asker, slot, ticket, Part::Payload, rest) {
                tracing::warn!("task {id} from another program cannot be kept: {error}");
            }
        }
        Some(taken)
    }

    /// A task that lies in this file, unless somebody else has it.
    fn adopt_file(&mut self, name: &str) -> Option<Taken> {
        let id = self.foreign_id();
        // Whoever dies behind this has at most lost a name: the file stays for the next one who looks.
        let taken = self.store.adopt(self.nook, id, Err(0), self.id, super::now());
        let ((asker, slot), (_, ticket)) = (self.nook, taken.place());
        match self.shared.tasks.spill().claim(name, asker, slot, ticket) {
            Ok(len) => {
                self.store.set_spilled_len(&taken, len);
                Some(taken)
            }
            Err(error) => {
                tracing::debug!("{name:?} is no task any more: {error}");
                self.store.put_back(&taken);
                None
            }
        }
    }

    fn next_left(&mut self) -> Option<Taken> {
        while !self.left.is_empty() && self.store.is_vacant(self.nook.0, self.nook.1) {
            let name = self.left.pop_front()?;
            let taken = self.adopt_file(&name);
            if taken.is_some() {
                return taken;
            }
        }
        None
    }
}
