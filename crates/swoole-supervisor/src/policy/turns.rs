//! Turns: who may be out of service because somebody wants it to be. Reloads and recycling share them.
//!
//! A slot is *away* from when its process is asked to leave in its turn until a successor is ready, however many fail
//! before. What made one fail may make the next one fail, so as long as it is away, others that are due go on serving.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Policy, State};

/// Whose turn it is. Slots are named by their place among all.
#[derive(Debug)]
pub(super) struct Turns {
    /// The group of each slot.
    groups: Vec<u16>,
    /// How many of a group may be away at once.
    parallel: usize,
    away: BTreeSet<usize>,
    /// Who is to be replaced when there is a turn: in this order, and each of them this generation only.
    due: VecDeque<(usize, u32)>,
    /// Nobody gets a turn any more.
    held: bool,
}

/// What a slot that is due may do.
enum Verdict {
    Leave,
    Wait,
    /// The process that was due is gone, or leaves already.
    Forget,
}

impl Turns {
    pub(super) fn new(groups: Vec<u16>, parallel: u16) -> Turns {
        let parallel = parallel.into();
        Turns { groups, parallel, away: BTreeSet::new(), due: VecDeque::new(), held: false }
    }

    pub(super) fn parallel(&self) -> usize {
        self.parallel
    }

    pub(super) fn is_away(&self, at: usize) -> bool {
        self.away.contains(&at)
    }

    /// Whether one more of its group may be away, or this one is.
    pub(super) fn may_leave(&self, at: usize) -> bool {
        let is_fellow = |&&other: &&usize| self.groups[other] == self.groups[at];
        self.is_away(at) || self.away.iter().filter(is_fellow).count() < self.parallel
    }

    /// The process of this slot is asked to leave in its turn, or may have been.
    pub(super) fn leave(&mut self, at: usize) {
        self.away.insert(at);
    }

    /// A process of this slot is ready.
    pub(super) fn is_back(&mut self, at: usize) {
        self.away.remove(&at);
    }

    fn ask(&mut self, at: usize, generation: u32) {
        if !self.due.contains(&(at, generation)) {
            self.due.push_back((at, generation));
        }
    }

    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.away.is_empty() && self.due.is_empty()
    }
}

impl Policy {
    /// The process of a slot has served long enough.
    pub(super) fn recycle(&mut self, now: Duration, at: usize, generation: u32) {
        if self.stop_at.is_none() {
            self.turns.ask(at, generation);
            self.continue_turns(now);
        }
    }

    /// Nobody gets a turn from now on.
    pub(super) fn hold_turns(&mut self) {
        self.turns.held = true;
    }

    /// Gives turns to whom there are any for: to a reload before all others, which it makes superfluous.
    pub(super) fn continue_turns(&mut self, now: Duration) {
        if self.turns.held || self.stop_at.is_some() {
            return;
        }
        self.continue_reload(now);
        for (at, generation) in std::mem::take(&mut self.turns.due) {
            match self.verdict(at, generation) {
                Verdict::Forget => {}
                Verdict::Wait => self.turns.due.push_back((at, generation)),
                Verdict::Leave => self.leave_in_turn(now, at),
            }
        }
    }

    fn verdict(&self, at: usize, generation: u32) -> Verdict {
        let slot = &self.slots[at];
        match slot.state {
            _ if slot.generation != generation => Verdict::Forget,
            State::Running { .. } if self.turns.may_leave(at) && !self.reloads.covers(slot.id.group) => {
                Verdict::Leave
            }
            // It may be due before it is heard to be ready.
            State::Running { .. } | State::Starting { .. } => Verdict::Wait,
            _ => Verdict::Forget,
        }
    }

    /// Asks the process of a slot to retire, because its turn has come.
    pub(super) fn leave_in_turn(&mut self, now: Duration, at: usize) {
        self.turns.leave(at);
        self.end_by(now, at, now.saturating_add(self.options.max_wait));
    }
}
