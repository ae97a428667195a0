//! The state machine without processes: [`cases`] and [`turns`] that must go one way, and [`chaos`] that may go any.

mod cases;
mod chaos;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Pid;

use super::{Action, Event, Policy, State};
use crate::{Backoff, ExitStatus, Options, ReloadMode, Report, SlotId};

const CLEAN: ExitStatus = ExitStatus::Exited(0);
const CRASH: ExitStatus = ExitStatus::Signaled { signal: 11, core_dumped: false };

fn slot(group: u16, slot: u16) -> SlotId {
    SlotId { group, slot }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What a supervisor knows of a live process.
#[derive(Debug, Clone, Copy)]
struct Live {
    generation: u32,
    ready: bool,
    retired: bool,
    killed: bool,
}

/// How a process of another supervisor's is found.
#[derive(Debug, Clone, Copy)]
enum Found {
    Serving,
    Leaving,
    Gone,
}

/// A policy with a model of the processes that its actions make, which objects to actions that make no sense.
struct World {
    policy: Policy,
    now: Duration,
    live: BTreeMap<SlotId, Live>,
    /// Spawns that were asked for and are not yet answered.
    asked: BTreeMap<SlotId, u32>,
    /// Slots whose process is gone, and whose owner has not yet said that it is settled.
    buried: BTreeSet<SlotId>,
    last_generation: BTreeMap<SlotId, u32>,
    stop_at: Option<Duration>,
    has_start_timeout: bool,
    parallel: usize,
    /// Slots whose process was gone when it was found, which has not been told yet.
    gone: BTreeSet<SlotId>,
    /// Slots out of service because of a turn.
    away: BTreeSet<SlotId>,
    /// Groups that are being reloaded all at once.
    at_once: BTreeSet<u16>,
    /// What was reported, one line each.
    log: Vec<String>,
    next_pid: i32,
}

impl World {
    fn new(groups: &[u16]) -> Self {
        Self::with(
            Options { backoff: Backoff { jitter: 0.0, ..Backoff::default() }, ..Options::default() },
            groups,
        )
    }

    fn with(options: Options, groups: &[u16]) -> Self {
        Self::taking_over(options, groups, &[])
    }

    /// A world in which the first slots, so many of them as there are, have a process of another supervisor's.
    fn taking_over(options: Options, groups: &[u16], found: &[Found]) -> Self {
        let mut world = Self {
            has_start_timeout: options.start_timeout.is_some(),
            parallel: options.reload_parallel.into(),
            gone: BTreeSet::new(),
            away: BTreeSet::new(),
            at_once: BTreeSet::new(),
            policy: Policy::new(options, groups, 7),
            now: ms(0),
            live: BTreeMap::new(),
            asked: BTreeMap::new(),
            buried: BTreeSet::new(),
            last_generation: BTreeMap::new(),
            stop_at: None,
            log: Vec::new(),
            next_pid: 100,
        };
        let slots: Vec<SlotId> = world.policy.slots.iter().map(|slot| slot.id).collect();
        for (&slot, found) in slots.iter().zip(found) {
            let (generation, pid) = (7, world.new_pid());
            world.live.insert(slot, Live { generation, ready: true, retired: false, killed: false });
            world.last_generation.insert(slot, generation);
            let (is_alive, is_leaving) = (!matches!(found, Found::Gone), matches!(found, Found::Leaving));
            let event = Event::Adopted { slot, generation, pid, is_alive, is_leaving };
            for action in world.policy.handle(world.now, event) {
                world.perform(action, Some(slot));
            }
            match found {
                Found::Serving => {}
                Found::Leaving => _ = world.away.insert(slot),
                Found::Gone => _ = (world.away.insert(slot), world.gone.insert(slot)),
            }
        }
        if !found.is_empty() {
            world.away.extend(slots.iter().skip(found.len()));
        }
        world.event(Event::Start);
        world
    }

    /// A world in which all processes of the first generation serve.
    fn serving(groups: &[u16]) -> Self {
        let mut world = Self::new(groups);
        world.spawn_all();
        world.ready_all();
        world.log.clear();
        world
    }

    fn new_pid(&mut self) -> Pid {
        self.next_pid += 1;
        Pid::from_raw(self.next_pid).unwrap()
    }

    fn event(&mut self, event: Event) {
        if let Event::Stop { within } = event {
            let stop_at = self.now + within;
            self.stop_at = Some(self.stop_at.map_or(stop_at, |earlier| earlier.min(stop_at)));
        }
        let asked = if let Event::Retire { slot } = event { Some(slot) } else { None };
        for action in self.policy.handle(self.now, event) {
            self.perform(action, asked);
        }
        self.check();
    }

    /// Does what the policy says to an event that asked for the retirement of the process in `asked`, if it did.
    fn perform(&mut self, action: Action, asked: Option<SlotId>) {
        match action {
            Action::Spawn { slot, generation } => {
                assert!(!self.stops(slot), "spawn of {slot} after a stop");
                assert!(!self.live.contains_key(&slot), "two live processes in {slot}");
                assert!(!self.buried.contains(&slot), "spawn in {slot} before it is settled");
                assert!(self.asked.insert(slot, generation).is_none(), "{slot} is spawned twice");
                let last = self.last_generation.insert(slot, generation);
                assert!(
                    last.unwrap_or(0) < generation,
                    "generation of {slot} went from {last:?} to {generation}"
                );
            }
            Action::Retire { slot } => {
                let live = self.live.get_mut(&slot).expect("only a live process can retire");
                assert!(!live.retired && !live.killed, "{slot} was asked to retire already");
                live.retired = true;
                match self.stop_at {
                    _ if asked == Some(slot) => {}
                    None => self.leaves_in_turn(slot),
                    Some(_) => assert!(self.stops(slot), "{slot} is to stop before its turn"),
                }
            }
            Action::Kill { slot } => {
                let in_no_time = self.stop_at.is_some_and(|stop_at| stop_at <= self.now);
                let live = self.live.get_mut(&slot).expect("only a live process can be killed");
                assert!(
                    live.retired || in_no_time || (self.has_start_timeout && !live.ready),
                    "{slot} is killed without a warning"
                );
                assert!(!live.killed, "{slot} is killed twice");
                live.killed = true;
            }
            Action::Report(report) => {
                match &report {
                    Report::Ready { slot, .. } => _ = self.away.remove(slot),
                    Report::ReloadBegun { groups, mode: ReloadMode::AllAtOnce } => {
                        self.at_once.extend(groups)
                    }
                    Report::ReloadEnded { .. } | Report::ReloadAborted { .. } => self.at_once.clear(),
                    _ => {}
                }
                self.log.push(brief(&report));
            }
        }
    }

    /// Whether it is the turn of this slot to stop: those of the groups before it have, or the time is over.
    fn stops(&self, slot: SlotId) -> bool {
        let mut before = self.policy.slots.iter().filter(|other| other.id.group < slot.group);
        self.stop_at
            .is_some_and(|stop_at| stop_at <= self.now || before.all(|other| other.state == State::Stopped))
    }

    fn leaves_in_turn(&mut self, slot: SlotId) {
        let others = self.away.iter().filter(|other| other.group == slot.group).count();
        let is_new = self.away.insert(slot);
        let may = !is_new || others < self.parallel || self.at_once.contains(&slot.group);
        assert!(may, "{slot} leaves while others are away: {:?}", self.away);
    }

    /// The policy and the model agree on every slot, so none is lost.
    fn check(&self) {
        for slot in &self.policy.slots {
            let id = slot.id;
            let agrees =
                match slot.state {
                    State::Idle => false,
                    State::Spawning => self.asked.get(&id) == Some(&slot.generation),
                    State::Starting { .. } => self.live.get(&id).is_some_and(|live| {
                        live.generation == slot.generation && !live.ready && !live.retired
                    }),
                    State::Running { .. } => self.live.get(&id).is_some_and(|live| {
                        live.generation == slot.generation && live.ready && !live.retired
                    }),
                    State::Retiring { kill_at, .. } => {
                        let killed = self.live.get(&id).map(|live| live.killed);
                        let is_bounded =
                            |kill_at| self.policy.next_deadline().is_some_and(|deadline| deadline <= kill_at);
                        killed == Some(kill_at.is_none()) && kill_at.is_none_or(is_bounded)
                    }
                    State::Burying { .. } => self.buried.contains(&id) && !self.live.contains_key(&id),
                    State::Backoff { until } => {
                        let wakes = self.policy.next_deadline().is_some_and(|deadline| deadline <= until);
                        wakes && !self.live.contains_key(&id) && !self.asked.contains_key(&id)
                    }
                    State::Stopped => self.stops(id) && !self.live.contains_key(&id),
                };
            assert!(agrees, "{id} is {:?}, but the world has {:?} live", slot.state, self.live.get(&id));
        }
    }

    fn spawn(&mut self, slot: SlotId) {
        let generation = self.asked.remove(&slot).expect("a spawn was asked for");
        let pid = self.new_pid();
        self.live.insert(slot, Live { generation, ready: false, retired: false, killed: false });
        self.event(Event::Spawned { slot, pid });
    }

    fn spawn_all(&mut self) {
        while let Some((&slot, _)) = self.asked.first_key_value() {
            self.spawn(slot);
        }
    }

    fn fail_spawn(&mut self, slot: SlotId) {
        self.asked.remove(&slot).expect("a spawn was asked for");
        self.event(Event::SpawnFailed { slot });
    }

    fn ready(&mut self, slot: SlotId) {
        let live = self.live.get_mut(&slot).expect("a live process gets ready");
        live.ready = !live.killed;
        let generation = live.generation;
        self.event(Event::Ready { slot, generation });
    }

    fn ready_all(&mut self) {
        let starting: Vec<SlotId> =
            self.live.iter().filter(|(_, live)| !live.ready).map(|(&slot, _)| slot).collect();
        starting.into_iter().for_each(|slot| self.ready(slot));
    }

    /// The process ends; its owner has not cleared up.
    fn exit(&mut self, slot: SlotId, status: ExitStatus) {
        let Live { generation, .. } = self.live.remove(&slot).expect("a live process ends");
        self.gone.remove(&slot);
        if !self.stops(slot) {
            self.buried.insert(slot);
        }
        self.event(Event::Exited { slot, generation, status });
    }

    fn settle(&mut self, slot: SlotId) {
        self.buried.remove(&slot);
        self.event(Event::Settled { slot });
    }

    /// The process ends and everything is cleared up.
    fn die(&mut self, slot: SlotId, status: ExitStatus) {
        self.exit(slot, status);
        self.settle(slot);
    }

    /// The process ends, and its successor serves.
    fn succeed(&mut self, slot: SlotId, status: ExitStatus) {
        self.die(slot, status);
        self.spawn(slot);
        self.ready(slot);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
    }

    fn retiring(&self) -> Vec<SlotId> {
        self.live.iter().filter(|(_, live)| live.retired).map(|(&slot, _)| slot).collect()
    }

    fn killed(&self) -> Vec<SlotId> {
        self.live.iter().filter(|(_, live)| live.killed).map(|(&slot, _)| slot).collect()
    }

    fn generation(&self, slot: SlotId) -> u32 {
        self.live[&slot].generation
    }

    /// The reports since the last call.
    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

/// A report in the few words that cases compare.
fn brief(report: &Report) -> String {
    match report {
        Report::Started { slot, generation, .. } => format!("started {slot} #{generation}"),
        Report::Adopted { slot, generation, .. } => format!("adopted {slot} #{generation}"),
        Report::Ready { slot, generation, .. } => format!("ready {slot} #{generation}"),
        Report::SpawnFailed { slot, .. } => format!("spawn failed {slot}"),
        Report::Retiring { slot, .. } => format!("retiring {slot}"),
        Report::Killed { slot, waited, .. } => format!("killed {slot} after {waited:?}"),
        Report::StartTimedOut { slot, waited, .. } => format!("start timed out {slot} after {waited:?}"),
        Report::BackingOff { slot, delay, .. } => format!("backing off {slot} {delay:?}"),
        Report::Failing { slot, deaths, delay } => format!("failing {slot} {deaths} deaths {delay:?}"),
        Report::ReloadBegun { groups, mode } => format!("reload {groups:?} {mode:?}"),
        Report::ReloadEnded { groups, .. } => format!("reloaded {groups:?}"),
        Report::ReloadAborted { slot, status, untouched } => {
            let status = status.map_or("not forked".into(), |status| status.to_string());
            format!("reload aborted by {slot} {status}, {untouched} untouched")
        }
        Report::Stopping { within } => format!("stopping {within:?}"),
        Report::Waiting { slots, left } => format!("waiting for {} slots, {left:?} left", slots.len()),
    }
}
