//! Reload: every slot of some groups gets a new process, a few at a time or all at once.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Policy, State};
use crate::{ExitStatus, ReloadMode, Report, Scope};

/// The reload that is going on, and the one that was asked for meanwhile.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    current: Option<Reload>,
    next: Option<(BTreeSet<u16>, ReloadMode)>,
}

#[derive(Debug)]
struct Reload {
    groups: BTreeSet<u16>,
    mode: ReloadMode,
    began_at: Duration,
    /// Slots whose turn has not come.
    waiting: VecDeque<Turn>,
    /// Slots whose successor is not yet ready.
    under_way: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    at: usize,
    /// The last generation that was forked before the reload was asked for. A later one is fresh: a fork
    /// copies the program as it stands.
    stale: u32,
}

impl Reloads {
    /// Whether the reload that is going on replaces this group.
    pub(super) fn covers(&self, group: u16) -> bool {
        self.current.as_ref().is_some_and(|reload| reload.groups.contains(&group))
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none() && self.next.is_none()
    }
}

impl Policy {
    pub(super) fn reload(&mut self, now: Duration, scope: Scope, mode: Option<ReloadMode>) {
        let groups: BTreeSet<u16> = self
            .slots
            .iter()
            .map(|slot| slot.id.group)
            .filter(|group| match scope {
                Scope::All => !self.permanent.contains(group),
                Scope::Group(only) => *group == only,
            })
            .collect();
        if self.stop_at.is_some() || groups.is_empty() {
            return;
        }
        let mode = mode.unwrap_or(self.options.reload_mode);
        let (all, wanted) = self.reloads.next.get_or_insert_default();
        all.extend(groups);
        *wanted = mode;
        self.continue_turns(now);
    }

    /// A process has got ready.
    pub(super) fn reload_succeeded(&mut self, at: usize) {
        if let Some(reload) = &mut self.reloads.current {
            // It is a successor: one that was there before retires, and is not heard any more.
            reload.under_way.retain(|&under_way| under_way != at);
        }
    }

    /// A process has died before it was ready (`None`: could not be made).
    pub(super) fn reload_failed(&mut self, now: Duration, at: usize, status: Option<ExitStatus>) {
        let Some(reload) = self.reloads.current.take_if(|reload| reload.under_way.contains(&at)) else {
            return;
        };
        let untouched = reload.waiting.len();
        self.report(Report::ReloadAborted { slot: self.slots[at].id, status, untouched });
        self.continue_turns(now);
    }

    /// Gives slots their turn as the mode allows, ends a reload that is done, and begins the next.
    pub(super) fn continue_reload(&mut self, now: Duration) {
        loop {
            let Some(reload) = &mut self.reloads.current else {
                match self.reloads.next.take() {
                    Some((groups, mode)) => self.begin_reload(now, groups, mode),
                    None => return,
                }
                continue;
            };
            let rolls = reload.mode == ReloadMode::Rolling;
            if rolls && reload.under_way.len() >= self.turns.parallel() {
                return;
            }
            // Who is away already costs nobody anything, and frees a turn when it is back.
            let away = reload.waiting.iter().position(|turn| self.turns.is_away(turn.at));
            let next = away.unwrap_or(0);
            if let Some(turn) = reload.waiting.get(next).copied() {
                if rolls && !self.turns.may_leave(turn.at) {
                    return;
                }
                reload.waiting.remove(next);
                self.take_turn(now, turn);
            } else if reload.under_way.is_empty() {
                let (groups, took) =
                    (reload.groups.iter().copied().collect(), now.saturating_sub(reload.began_at));
                self.reloads.current = None;
                self.report(Report::ReloadEnded { groups, took });
            } else {
                return;
            }
        }
    }

    fn begin_reload(&mut self, now: Duration, groups: BTreeSet<u16>, mode: ReloadMode) {
        let turns = self.slots.iter().enumerate().filter(|(_, slot)| groups.contains(&slot.id.group));
        let waiting = turns
            .map(|(at, slot)| Turn {
                at,
                // A process that is just being made is made after the reload was asked for.
                stale: slot.generation - u32::from(slot.state == State::Spawning),
            })
            .collect();
        self.report(Report::ReloadBegun { groups: groups.iter().copied().collect(), mode });
        self.reloads.current = Some(Reload { groups, mode, began_at: now, waiting, under_way: Vec::new() });
    }

    fn take_turn(&mut self, now: Duration, turn: Turn) {
        let is_fresh = self.slots[turn.at].generation != turn.stale;
        match self.slots[turn.at].state {
            State::Idle | State::Stopped => return,
            State::Running { .. } if is_fresh => return,
            State::Starting { .. } | State::Running { .. } if !is_fresh => {
                self.leave_in_turn(now, turn.at);
            }
            // Whoever asks for a reload has mended something, or hopes so: it is tried without delay.
            State::Backoff { .. } => self.fill(now, turn.at, now),
            // A successor is on its way.
            State::Starting { .. }
            | State::Running { .. }
            | State::Spawning
            | State::Retiring { .. }
            | State::Burying { .. } => {}
        }
        if let Some(reload) = &mut self.reloads.current {
            reload.under_way.push(turn.at);
        }
    }
}
