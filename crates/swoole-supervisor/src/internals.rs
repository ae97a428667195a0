//! The policy without the supervisor around it, for simulations that have no processes.
//!
//! Compiled with the feature `internals` only: this is nobody's interface.

use std::time::Duration;

use rustix::process::Pid;

use crate::policy::{Action, Event, Policy};
use crate::{ExitStatus, Options, ReloadMode, Report, Scope, SlotId};

/// What a supervisor is to do.
#[derive(Debug)]
pub enum Order {
    /// Make a process, and tell by [`Model::spawned`] or [`Model::spawn_failed`].
    Spawn {
        /// In this slot.
        slot: SlotId,
        /// Of this generation.
        generation: u32,
    },
    /// Ask the process of this slot to end.
    Retire(SlotId),
    /// End the process of this slot.
    Kill(SlotId),
    /// Tell the program.
    Report(Report),
}

/// What decides on processes. Each method says that something has happened, and yields what is to be done, in order.
#[derive(Debug)]
pub struct Model(Policy);

impl Model {
    /// `groups` says how many slots each has. `seed` decides on the jitter.
    pub fn new(options: Options, groups: &[u16], seed: u64) -> Self {
        Self(Policy::new(options, groups, seed))
    }

    fn handle(&mut self, now: Duration, event: Event) -> Vec<Order> {
        let order = |action| match action {
            Action::Spawn { slot, generation } => Order::Spawn { slot, generation },
            Action::Retire { slot } => Order::Retire(slot),
            Action::Kill { slot } => Order::Kill(slot),
            Action::Report(report) => Order::Report(report),
        };
        self.0.handle(now, event).into_iter().map(order).collect()
    }

    /// Before the start: a process that does its work was there already, and may be so still, or leave.
    pub fn adopted(
        &mut self,
        now: Duration,
        slot: SlotId,
        (generation, pid): (u32, Pid),
        (is_alive, is_leaving): (bool, bool),
    ) -> Vec<Order> {
        self.handle(now, Event::Adopted { slot, generation, pid, is_alive, is_leaving })
    }

    /// The supervisor begins: all other slots are empty.
    pub fn start(&mut self, now: Duration) -> Vec<Order> {
        self.handle(now, Event::Start)
    }

    /// A process was made.
    pub fn spawned(&mut self, now: Duration, slot: SlotId, pid: Pid) -> Vec<Order> {
        self.handle(now, Event::Spawned { slot, pid })
    }

    /// None could be made.
    pub fn spawn_failed(&mut self, now: Duration, slot: SlotId) -> Vec<Order> {
        self.handle(now, Event::SpawnFailed { slot })
    }

    /// A process does its work from now on.
    pub fn ready(&mut self, now: Duration, slot: SlotId, generation: u32) -> Vec<Order> {
        self.handle(now, Event::Ready { slot, generation })
    }

    /// A process is gone and reaped.
    pub fn exited(&mut self, now: Duration, slot: SlotId, generation: u32, status: ExitStatus) -> Vec<Order> {
        self.handle(now, Event::Exited { slot, generation, status })
    }

    /// What the last process of the slot left is cleared up.
    pub fn settled(&mut self, now: Duration, slot: SlotId) -> Vec<Order> {
        self.handle(now, Event::Settled { slot })
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) -> Vec<Order> {
        self.handle(now, Event::Tick)
    }

    /// Somebody wants new processes.
    pub fn reload(&mut self, now: Duration, scope: Scope, mode: Option<ReloadMode>) -> Vec<Order> {
        self.handle(now, Event::Reload { scope, mode })
    }

    /// Somebody wants a new process in this slot.
    pub fn retire(&mut self, now: Duration, slot: SlotId) -> Vec<Order> {
        self.handle(now, Event::Retire { slot })
    }

    /// Somebody wants a new process in this slot instead of the one of this generation, when its turn comes.
    pub fn recycle(&mut self, now: Duration, slot: SlotId, generation: u32) -> Vec<Order> {
        self.handle(now, Event::Recycle { slot, generation })
    }

    /// Nobody is to be asked to leave any more because it is its turn.
    pub fn hold(&mut self, now: Duration) -> Vec<Order> {
        self.handle(now, Event::Hold)
    }

    /// Somebody wants the end.
    pub fn stop(&mut self, now: Duration, within: Duration) -> Vec<Order> {
        self.handle(now, Event::Stop { within })
    }

    /// When the next [`tick`](Self::tick) is due. `None`: nothing happens by itself.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.0.next_deadline()
    }

    /// Whether a stop is over: no process is left, and none will come.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}
