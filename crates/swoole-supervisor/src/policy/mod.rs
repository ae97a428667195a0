//! What is to be done when something happens to a process: a state machine without clock and without I/O.
//!
//! Events go in, actions come out. Time is a [`Duration`] since any moment, passed in with each event.
//!
//! ```text
//!             Spawn              Spawned              Ready
//!     Idle ----------> Spawning ---------> Starting ---------> Running
//!                       ^  ^ \                  | \             / |
//!            the wait   |  |  \ SpawnFailed     |  \ retire,   /  |
//!              is over  |  |   \                |   v reload  v   |
//!                    Backoff <--'               |    Retiring     |
//!                          ^                    v       v         v
//!                          '---- Settled ----- Burying (the process is gone)
//! ```
//!
//! A stop leads all of them to `Stopped`, through `Retiring` where there is a process: one group after the other, so that
//! who is asked for something by others is there for as long as they are.
//!
//! What always holds, and [`tests`] tries to break: a slot has at most one live process; its generations
//! increase; nothing is spawned after a stop, and a stop ends; a process is asked to retire before it is
//! killed, unless it is to stop within no time or does not get ready; no slot is ever lost; nobody retires in its
//! turn while as many others as may be are out of service because of theirs.

mod reload;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rustix::process::Pid;

use self::reload::Reloads;
use self::turns::Turns;
use crate::{ExitStatus, Options, ReloadMode, Report, Scope, SlotId};

/// How often a stop says what it waits for.
const PROGRESS: Duration = Duration::from_secs(1);

/// What has happened, or is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// Before the start: a process that does its work is there already, or is gone and not yet accounted for, or was
    /// asked to retire.
    Adopted { slot: SlotId, generation: u32, pid: Pid, is_alive: bool, is_leaving: bool },
    /// The supervisor begins: all other slots are empty.
    Start,
    /// An [`Action::Spawn`] has made a process.
    Spawned { slot: SlotId, pid: Pid },
    /// An [`Action::Spawn`] has made none.
    SpawnFailed { slot: SlotId },
    /// A process does its work from now on.
    Ready { slot: SlotId, generation: u32 },
    /// A process is gone and reaped.
    Exited { slot: SlotId, generation: u32, status: ExitStatus },
    /// What the last process of the slot left is cleared up.
    Settled { slot: SlotId },
    /// Time has passed.
    Tick,
    /// Replace processes by new ones.
    Reload { scope: Scope, mode: Option<ReloadMode> },
    /// Replace the process of this slot by a new one.
    Retire { slot: SlotId },
    /// The same when its turn comes, if it is of this generation then.
    Recycle { slot: SlotId, generation: u32 },
    /// Give no more turns.
    Hold,
    /// End all processes.
    Stop { within: Duration },
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Make a process, and tell by [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn { slot: SlotId, generation: u32 },
    /// Ask the process of the slot to end.
    Retire { slot: SlotId },
    /// End the process of the slot.
    Kill { slot: SlotId },
    /// Tell the program.
    Report(Report),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Never started.
    Idle,
    /// Asked for, and not yet answered.
    Spawning,
    /// A process that is not yet ready, and has been `killed` if it took too long.
    Starting { pid: Pid, since: Duration, kill_at: Option<Duration>, killed: bool },
    /// A process that does its work.
    Running { pid: Pid, ready_at: Duration },
    /// A process that was asked to end. `kill_at` is `None` when it has been killed.
    Retiring { pid: Pid, asked_at: Duration, kill_at: Option<Duration> },
    /// No process. When what the last one left is settled, the next may come, but not before `until`.
    Burying { until: Duration },
    /// No process until then.
    Backoff { until: Duration },
    /// No process any more.
    Stopped,
}

#[derive(Debug)]
struct Slot {
    id: SlotId,
    /// Of the process that is there, or was last asked for. 0 before the first.
    generation: u32,
    state: State,
    /// Deaths in a row, without a process between that was stable.
    streak: u32,
    /// When these and no more than `restart_intensity` of them were.
    deaths: VecDeque<Duration>,
    /// Whether the program was told that this slot is failing.
    failing: bool,
    /// Whether any process of it has been ready.
    has_been_ready: bool,
}

/// The state of all slots.
#[derive(Debug)]
pub(crate) struct Policy {
    options: Options,
    slots: Vec<Slot>,
    /// Groups whose processes are to stay: see [`Tenure`](crate::Tenure).
    permanent: BTreeSet<u16>,
    reloads: Reloads,
    turns: Turns,
    /// When a stop, once it was asked for, has to be over, and when to say next what it waits for.
    stop_at: Option<Duration>,
    /// The last group whose turn to stop has come, if there is a stop.
    stop_turn: u16,
    say_at: Option<Duration>,
    random: u64,
    actions: Vec<Action>,
}

impl Policy {
    /// `groups` says how many slots each has. `seed` decides on the jitter.
    pub(crate) fn new(options: Options, groups: &[u16], seed: u64) -> Self {
        let ids =
            (0..).zip(groups).flat_map(|(group, &slots)| (0..slots).map(move |slot| SlotId { group, slot }));
        let groups = ids.clone().map(|id| id.group).collect();
        let turns = Turns::new(groups, options.reload_parallel);
        let slot = |id| Slot {
            id,
            generation: 0,
            state: State::Idle,
            streak: 0,
            deaths: VecDeque::new(),
            failing: false,
            has_been_ready: false,
        };
        Self {
            options,
            slots: ids.map(slot).collect(),
            permanent: BTreeSet::new(),
            reloads: Reloads::default(),
            turns,
            stop_at: None,
            stop_turn: 0,
            say_at: None,
            random: seed,
            actions: Vec::new(),
        }
    }

    /// The processes of this group are to stay.
    pub(crate) fn make_permanent(&mut self, group: u16) {
        self.permanent.insert(group);
    }

    /// Takes in what has happened and says what is to be done, in this order.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        // It may be later than the last event has known.
        self.pass_stop_on(now);
        match event {
            Event::Adopted { slot, generation, pid, is_alive, is_leaving } => {
                self.with(slot, |policy, at| {
                    policy.adopted(now, at, (generation, pid), is_alive, is_leaving);
                })
            }
            Event::Start => self.start(now),
            Event::Spawned { slot, pid } => self.with(slot, |policy, at| policy.spawned(now, at, pid)),
            Event::SpawnFailed { slot } => self.with(slot, |policy, at| policy.spawn_failed(now, at)),
            Event::Ready { slot, generation } => {
                self.with(slot, |policy, at| policy.ready(now, at, generation));
            }
            Event::Exited { slot, generation, status } => {
                self.with(slot, |policy, at| policy.exited(now, at, generation, status));
            }
            Event::Settled { slot } => self.with(slot, |policy, at| policy.settled(now, at)),
            Event::Tick => self.tick(now),
            Event::Reload { scope, mode } => self.reload(now, scope, mode),
            Event::Retire { slot } => self.with(slot, |policy, at| policy.retire(now, at)),
            Event::Recycle { slot, generation } => {
                self.with(slot, |policy, at| policy.recycle(now, at, generation));
            }
            Event::Hold => self.hold_turns(),
            Event::Stop { within } => self.stop(now, within),
        }
        self.pass_stop_on(now);
        std::mem::take(&mut self.actions)
    }

    /// When the next [`Event::Tick`] is due. `None`: nothing happens by itself.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let deadline = |slot: &Slot| match slot.state {
            State::Backoff { until } => Some(until),
            State::Starting { kill_at, .. } | State::Retiring { kill_at, .. } => kill_at,
            _ => None,
        };
        let say_at = self.say_at.filter(|_| !self.is_finished());
        self.slots.iter().filter_map(deadline).chain(say_at).min()
    }

    /// Whether a stop is over: no process is left, and none will come.
    pub(crate) fn is_finished(&self) -> bool {
        self.stop_at.is_some() && self.slots.iter().all(|slot| slot.state == State::Stopped)
    }

    /// Slots are named from outside. A name that is none is no event.
    fn with(&mut self, slot: SlotId, handle: impl FnOnce(&mut Self, usize)) {
        if let Ok(at) = self.slots.binary_search_by_key(&slot, |slot| slot.id) {
            handle(self, at);
        }
    }

    fn report(&mut self, report: Report) {
        self.actions.push(Action::Report(report));
    }

    fn adopted(
        &mut self,
        now: Duration,
        at: usize,
        (generation, pid): (u32, Pid),
        is_alive: bool,
        is_leaving: bool,
    ) {
        let slot = &mut self.slots[at];
        if slot.state != State::Idle {
            return;
        }
        slot.generation = generation;
        slot.has_been_ready = true;
        slot.state = State::Running { pid, ready_at: now };
        let slot = slot.id;
        self.report(Report::Adopted { slot, generation, pid });
        match (is_alive, is_leaving) {
            (true, false) => {}
            // What for is not known: perhaps in its turn.
            (true, true) => self.leave_in_turn(now, at),
            (false, _) => self.turns.leave(at),
        }
    }

    fn start(&mut self, now: Duration) {
        let takes_over = self.slots.iter().any(|slot| slot.state != State::Idle);
        for at in 0..self.slots.len() {
            if self.slots[at].state == State::Idle {
                self.fill(now, at, now);
                // Its last process may have left in its turn.
                if takes_over {
                    self.turns.leave(at);
                }
            }
        }
    }

    /// The slot is empty: asks for a process now, or later when it has to wait.
    fn fill(&mut self, now: Duration, at: usize, until: Duration) {
        let slot = &mut self.slots[at];
        if until > now {
            slot.state = State::Backoff { until };
            return;
        }
        slot.state = State::Spawning;
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        self.actions.push(Action::Spawn { slot: slot.id, generation: slot.generation });
    }

    fn spawned(&mut self, now: Duration, at: usize, pid: Pid) {
        let slot = &mut self.slots[at];
        if slot.state != State::Spawning {
            return;
        }
        let timeout = self.options.start_timeout.filter(|_| slot.has_been_ready);
        let kill_at = timeout.map(|timeout| now.saturating_add(timeout));
        slot.state = State::Starting { pid, since: now, kill_at, killed: false };
        let (slot, generation) = (slot.id, slot.generation);
        self.report(Report::Started { slot, generation, pid });
        if let Some(stop_at) = self.stop_at.filter(|_| self.is_stopping(at)) {
            self.end_by(now, at, stop_at);
        }
    }

    fn spawn_failed(&mut self, now: Duration, at: usize) {
        let slot = &mut self.slots[at];
        if slot.state != State::Spawning {
            return;
        }
        if self.is_stopping(at) {
            self.slots[at].state = State::Stopped;
            return;
        }
        let slot = &mut self.slots[at];
        // What the kernel has just refused, it refuses again: this is never tried again at once.
        slot.streak = slot.streak.max(1);
        let until = self.setback(now, at, false);
        self.fill(now, at, until);
        self.reload_failed(now, at, None);
    }

    fn ready(&mut self, now: Duration, at: usize, generation: u32) {
        let slot = &mut self.slots[at];
        let State::Starting { pid, since, killed: false, .. } = slot.state else { return };
        if slot.generation != generation {
            return;
        }
        slot.state = State::Running { pid, ready_at: now };
        slot.has_been_ready = true;
        let slot = slot.id;
        self.report(Report::Ready { slot, generation, pid, took: now.saturating_sub(since) });
        self.turns.is_back(at);
        self.reload_succeeded(at);
        self.continue_turns(now);
    }

    fn exited(&mut self, now: Duration, at: usize, generation: u32, status: ExitStatus) {
        let slot = &mut self.slots[at];
        if slot.generation != generation {
            return;
        }
        let is_permanent = self.permanent.contains(&slot.id.group);
        let (wanted, served) = match slot.state {
            State::Starting { .. } => (false, false),
            State::Running { ready_at, .. } => {
                let stable = now.saturating_sub(ready_at) >= self.options.stable_after;
                let had_enough = status.success() && !is_permanent;
                if stable || had_enough {
                    slot.streak = 0;
                }
                if stable {
                    slot.deaths.clear();
                    slot.failing = false;
                }
                // One that is to stay and does not has served nobody.
                (had_enough, stable || !is_permanent)
            }
            State::Retiring { .. } => (true, false),
            _ => return,
        };
        if self.is_stopping(at) {
            // No successor, so nothing to hold back until things are settled.
            self.slots[at].state = State::Stopped;
            return;
        }
        let until = if wanted { now } else { self.setback(now, at, served) };
        self.slots[at].state = State::Burying { until };
        if !wanted && !served {
            self.reload_failed(now, at, Some(status));
        }
    }

    /// Counts a death that nobody wanted, and says until when the slot stays empty. Only those that do not come to
    /// serve make a slot a failing one.
    fn setback(&mut self, now: Duration, at: usize, served: bool) -> Duration {
        let random = self.random();
        let Options { backoff, restart_intensity, restart_period, .. } = &self.options;
        let slot = &mut self.slots[at];
        slot.streak = slot.streak.saturating_add(1);
        if !served {
            slot.deaths.push_back(now);
        }
        while slot.deaths.len() > *restart_intensity as usize {
            slot.deaths.pop_front();
        }
        let recent =
            slot.deaths.iter().filter(|&&death| now.saturating_sub(death) <= *restart_period).count();
        let failing = !served && recent >= *restart_intensity as usize;
        let delay =
            if failing { backoff.longest(random) } else { backoff.delay(slot.streak, served, random) };
        let (id, streak) = (slot.id, slot.streak);
        if failing && !std::mem::replace(&mut slot.failing, true) {
            self.report(Report::Failing { slot: id, deaths: recent as u32, delay });
        } else if delay > Duration::ZERO {
            self.report(Report::BackingOff { slot: id, deaths: streak, delay });
        }
        now.saturating_add(delay)
    }

    fn settled(&mut self, now: Duration, at: usize) {
        if let State::Burying { until } = self.slots[at].state {
            self.fill(now, at, until);
        }
    }

    fn tick(&mut self, now: Duration) {
        self.say_progress(now);
        for at in 0..self.slots.len() {
            match self.slots[at].state {
                State::Backoff { until } => self.fill(now, at, until),
                State::Retiring { kill_at: Some(kill_at), .. } if kill_at <= now => self.kill(now, at),
                State::Starting { kill_at: Some(kill_at), .. } if kill_at <= now => self.give_up(now, at),
                _ => {}
            }
        }
    }

    /// A stop that takes long says what it waits for.
    fn say_progress(&mut self, now: Duration) {
        let Some(stop_at) = self.stop_at.filter(|_| self.say_at.is_some_and(|at| at <= now)) else { return };
        let staying = self.slots.iter().filter(|slot| slot.state != State::Stopped).map(|slot| slot.id);
        let slots: Vec<SlotId> = staying.collect();
        self.say_at = Some(now.saturating_add(PROGRESS));
        self.report(Report::Waiting { slots, left: stop_at.saturating_sub(now) });
    }

    fn retire(&mut self, now: Duration, at: usize) {
        if !self.is_stopping(at) {
            let bound = now.saturating_add(self.options.max_wait);
            self.end_by(now, at, self.stop_at.map_or(bound, |stop_at| stop_at.min(bound)));
        }
    }

    /// Whether there is a stop, and the turn of this slot's group has come.
    fn is_stopping(&self, at: usize) -> bool {
        self.stop_at.is_some() && self.slots[at].id.group <= self.stop_turn
    }

    /// The next group stops when those before it are gone, or when it is time.
    fn pass_stop_on(&mut self, now: Duration) {
        let Some(stop_at) = self.stop_at else { return };
        if now >= stop_at && self.stop_turn < u16::MAX {
            self.stop_turn = u16::MAX;
            self.stop_turn_now(now, stop_at);
        }
        let first = |policy: &Self| policy.slots.iter().position(|slot| slot.state != State::Stopped);
        while let Some(next) = first(self).filter(|at| !self.is_stopping(*at)) {
            self.stop_turn = self.slots[next].id.group;
            self.stop_turn_now(now, stop_at);
        }
    }

    fn stop(&mut self, now: Duration, within: Duration) {
        let bound = now.saturating_add(within);
        let stop_at = self.stop_at.map_or(bound, |earlier| earlier.min(bound));
        self.stop_at = Some(stop_at);
        self.say_at.get_or_insert(now.saturating_add(PROGRESS));
        self.report(Report::Stopping { within: stop_at.saturating_sub(now) });
        self.stop_turn_now(now, stop_at);
    }

    fn stop_turn_now(&mut self, now: Duration, stop_at: Duration) {
        for at in (0..self.slots.len()).filter(|at| self.is_stopping(*at)).collect::<Vec<_>>() {
            match self.slots[at].state {
                State::Idle | State::Burying { .. } | State::Backoff { .. } => {
                    self.slots[at].state = State::Stopped;
                }
                // A process that is just being made is asked to retire as soon as it is there.
                State::Spawning | State::Stopped => {}
                State::Starting { .. } | State::Running { .. } | State::Retiring { .. } => {
                    self.end_by(now, at, stop_at);
                }
            }
        }
    }

    /// Asks the process of a slot to retire, and has it killed at `kill_at`, or earlier if so it was decided
    /// before.
    fn end_by(&mut self, now: Duration, at: usize, kill_at: Duration) {
        let slot = &mut self.slots[at];
        match &mut slot.state {
            State::Starting { pid, killed: true, .. } => {
                slot.state = State::Retiring { pid: *pid, asked_at: now, kill_at: None };
            }
            State::Starting { pid, .. } | State::Running { pid, .. } => {
                let (id, generation, pid) = (slot.id, slot.generation, *pid);
                slot.state = State::Retiring { pid, asked_at: now, kill_at: Some(kill_at) };
                if kill_at > now {
                    self.actions.push(Action::Retire { slot: id });
                    self.report(Report::Retiring { slot: id, generation, pid });
                }
            }
            State::Retiring { kill_at: Some(current), .. } => *current = kill_at.min(*current),
            _ => return,
        }
        if matches!(self.slots[at].state, State::Retiring { kill_at: Some(kill_at), .. } if kill_at <= now) {
            self.kill(now, at);
        }
    }

    fn kill(&mut self, now: Duration, at: usize) {
        let slot = &mut self.slots[at];
        let State::Retiring { pid, asked_at, kill_at } = &mut slot.state else { return };
        *kill_at = None;
        let (id, generation, pid, waited) = (slot.id, slot.generation, *pid, now.saturating_sub(*asked_at));
        self.actions.push(Action::Kill { slot: id });
        self.report(Report::Killed { slot: id, generation, pid, waited });
    }

    /// Kills a process that does not get ready. Its end then is that of one that could not start.
    fn give_up(&mut self, now: Duration, at: usize) {
        let slot = &mut self.slots[at];
        let State::Starting { pid, since, kill_at, killed } = &mut slot.state else { return };
        (*kill_at, *killed) = (None, true);
        let (id, generation, pid, waited) = (slot.id, slot.generation, *pid, now.saturating_sub(*since));
        self.actions.push(Action::Kill { slot: id });
        self.report(Report::StartTimedOut { slot: id, generation, pid, waited });
    }

    /// The next number of a sequence that the seed decides on, from 0.0 to 1.0 (splitmix64).
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    }
}
