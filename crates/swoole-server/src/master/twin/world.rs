//! Everybody together, and whose turn it may be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use swoole_supervisor::{Backoff, ExitStatus, Options, ReloadMode};

use super::super::roster::Roster;
use super::front::Front;
use super::kernel::{KILLED, Kernel};
use super::ledger::Ledger;
use super::manager::Manager;
use super::process::{Process, Went};
use super::stage::Stage;
use super::tally::{Breach, Kind, breach};
use crate::config::{DispatchMode, OnCrash};
use crate::control::Order;
use crate::crash::{CrashPolicy, PacketInHand};
use crate::shared::{Lanes, Shared};

/// Where the server is, seen from the master.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum At {
    Serving,
    Draining,
    Leaving,
    Finished,
}

pub(super) struct World<'a> {
    pub(super) rng: Rng,
    pub(super) shared: Arc<Shared>,
    lanes: &'a Lanes,
    /// Bytes of each ring.
    pub(super) ring: usize,
    pub(super) ledger: Ledger,
    pub(super) fronts: Vec<Front>,
    pub(super) kernel: Kernel,
    pub(super) options: Options,
    pub(super) now: Duration,
    pub(super) at: At,
    pub(super) roster: Roster<Kernel>,
    /// The present one, until the master notices that it is gone.
    pub(super) manager: Option<Manager>,
    /// Managers that died in a row; when the last one began, and whether it has served.
    pub(super) deaths: u32,
    pub(super) began_at: Duration,
    pub(super) serves: bool,
    /// To try another one, or to give up the one that starts; and to end a stop.
    pub(super) succession: Option<Duration>,
    pub(super) alarm: Option<Duration>,
    pub(super) stop_at: Duration,
    pub(super) reload_wanted: bool,
    /// From the reactors: what was lost with a worker that they have settled.
    pub(super) notes: VecDeque<(u16, Vec<PacketInHand>)>,
    /// What managers have to tell the user, and have not told.
    pub(super) untold: Vec<PacketInHand>,
    pub(super) on_crash: OnCrash,
    pub(super) retries: u32,
    /// Nothing goes wrong any more but what is poison.
    pub(super) kind: bool,
}

pub(super) fn failed(error: impl ToString) -> Breach {
    Breach { kind: Kind::Fault, what: error.to_string() }
}

impl<'a> World<'a> {
    pub(super) fn new(stage: &'a Stage, mut rng: Rng) -> Result<World<'a>, Breach> {
        let shared = Arc::clone(&stage.shared);
        let config = &shared.config;
        let options = Options {
            max_wait: Duration::from_millis(rng.u64(50..3000)),
            start_timeout: rng.bool().then(|| Duration::from_millis(rng.u64(100..5000))),
            reload_parallel: rng.u16(1..3),
            reload_mode: if rng.bool() { ReloadMode::Rolling } else { ReloadMode::AllAtOnce },
            restart_intensity: rng.u32(2..10),
            backoff: Backoff::default(),
            ..Options::default()
        };
        let policy = CrashPolicy::new(config);
        let front = |id| Front::open(id, &shared, &stage.lanes, policy).map_err(failed);
        let fronts = (0..config.reactor_num).map(front).collect::<Result<_, _>>()?;
        let mut kernel = Kernel::new(config.worker_num);
        let pid = kernel.next_pid();
        let manager = Manager::first(&shared, pid, options.clone(), rng.u64(..)).map_err(failed)?;
        Ok(World {
            ledger: Ledger::new(
                config.dispatch_mode.is_by_connection() || config.dispatch_mode == DispatchMode::Uid,
            ),
            lanes: &stage.lanes,
            ring: stage.ring,
            fronts,
            kernel,
            options,
            now: Duration::ZERO,
            at: At::Serving,
            roster: Roster::new(config.worker_num),
            manager: Some(manager),
            deaths: 0,
            began_at: Duration::ZERO,
            serves: false,
            succession: None,
            alarm: None,
            stop_at: Duration::ZERO,
            reload_wanted: false,
            notes: VecDeque::new(),
            untold: Vec::new(),
            on_crash: config.on_crash,
            retries: config.crash_retries,
            kind: false,
            rng,
            shared,
        })
    }

    /// The process is gone, if there is one.
    fn end(&mut self, pid: i32, status: ExitStatus) {
        let Some(process) = self.kernel.end(pid, status) else { return };
        if !status.success() {
            *self.ledger.tally.deaths.entry(process.moment()).or_default() += 1;
        }
        if let Some(held) = process.held() {
            self.ledger.item(held.name).deaths += 1;
        }
    }

    /// Whoever is in this slot dies.
    pub(super) fn die(&mut self, slot: usize, status: ExitStatus) {
        let (Some(pid), count) = (self.pick(slot), self.rng.usize(..4)) else { return };
        self.kernel.process(pid).into_iter().for_each(|process| process.spill(count));
        self.end(pid, status);
    }

    /// One of those in this slot, of whom there may be several while one of them has no right to be there.
    fn pick(&mut self, slot: usize) -> Option<i32> {
        let pids: Vec<i32> = self.kernel.in_slot(slot).map(|process| process.pid).collect();
        (!pids.is_empty()).then(|| pids[self.rng.usize(..pids.len())])
    }

    /// One micro-step of a worker in this slot. True if it got on.
    pub(super) fn work(&mut self, slot: usize) -> Result<bool, Breach> {
        let Some(pid) = self.pick(slot) else { return Ok(false) };
        let Some(process) = self.kernel.process(pid) else { return Ok(false) };
        // A signal takes its time.
        if process.doomed && (self.kind || process.stuck || self.rng.u8(..4) > 0) {
            self.end(pid, KILLED);
            return Ok(true);
        }
        if process.sleeps(&self.shared) {
            return Ok(false);
        }
        let generation = process.generation;
        if process.takes_links() {
            self.kernel.check_free(slot as u16, "a worker")?;
        }
        let Some(process) = self.kernel.process(pid) else { return Ok(false) };
        match process.step(&self.shared, &self.lanes[slot], &mut self.ledger)? {
            Went::Nowhere => return Ok(false),
            Went::Out => self.end(pid, ExitStatus::Exited(0)),
            Went::Dead => self.end(pid, ExitStatus::Signaled { signal: 11, core_dumped: false }),
            Went::Ready => self.kernel.check_first(pid, slot as u16, generation)?,
            Went::On => {}
        }
        Ok(true)
    }

    /// The user's code in this slot never returns, if any runs.
    pub(super) fn make_stuck(&mut self, slot: usize) {
        self.kernel.in_slot(slot).for_each(|process| process.stuck = process.has_links());
    }

    /// One micro-step of the manager's.
    fn manage(&mut self) -> Result<bool, Breach> {
        let Some(manager) = &mut self.manager else { return Ok(false) };
        if manager.doomed && manager.ended.is_none() {
            self.end_manager(KILLED);
            return Ok(true);
        }
        let fails = !self.kind && self.rng.u8(..) < 6;
        let moved = manager.go_on(self.now, &mut self.kernel, &mut self.ledger.tally, fails)?;
        for told in manager.take_told() {
            // It may be told twice, but not of what was not.
            if let Some(at) = self.untold.iter().position(|untold| *untold == told) {
                self.untold.swap_remove(at);
            }
        }
        if manager.listens() && manager.model.is_finished() {
            self.end_manager(ExitStatus::Exited(0));
            return Ok(true);
        }
        Ok(moved)
    }

    /// The manager does what it has begun to; sometimes not all of it at once.
    fn manage_on(&mut self) -> Result<bool, Breach> {
        let mut moved = false;
        while (self.kind || self.rng.u8(..16) > 0) && self.manage()? {
            moved = true;
        }
        Ok(moved)
    }

    /// The manager, if it has time for what happens.
    fn attentive(&mut self) -> Result<Option<&mut Manager>, Breach> {
        self.manage_on()?;
        Ok(self.manager.as_mut().filter(|manager| manager.listens()))
    }

    /// It learns that a worker is ready, or that one is dead.
    pub(super) fn look_at(&mut self, slot: usize) -> Result<bool, Breach> {
        let moved = self.manage_on()?;
        let Some(manager) = self.manager.as_mut().filter(|manager| manager.listens()) else {
            return Ok(moved);
        };
        if !manager.look_at(self.now, slot as u16, &mut self.kernel) {
            return Ok(moved);
        }
        self.manage_on()?;
        Ok(true)
    }

    /// It hears what the master wants.
    pub(super) fn hear(&mut self) -> Result<bool, Breach> {
        let now = self.now;
        let Some(manager) = self.attentive()? else { return Ok(false) };
        if !manager.obey(now) {
            return Ok(false);
        }
        self.manage_on()?;
        Ok(true)
    }

    /// Now, or when it is its turn.
    pub(super) fn retire(&mut self, slot: usize) -> Result<(), Breach> {
        let at_once = self.rng.bool();
        if let Some(manager) = self.attentive()? {
            if at_once {
                manager.retire(slot as u16)
            } else {
                manager.recycle(slot as u16)
            }
            self.manage_on()?;
        }
        Ok(())
    }

    /// The master's SIGUSR1, or the manager's.
    pub(super) fn reload(&mut self) -> Result<(), Breach> {
        if self.rng.bool() {
            if let Some(manager) = self.attentive()? {
                manager.reload();
                self.manage_on()?;
            }
        } else if self.manager.is_some() {
            self.order(Order::Reload);
        } else {
            self.reload_wanted = self.at == At::Serving;
        }
        Ok(())
    }

    fn end_manager(&mut self, status: ExitStatus) {
        let Some(manager) = self.manager.as_mut().filter(|manager| manager.ended.is_none()) else { return };
        manager.ended = Some(status);
        if !status.success() {
            *self.ledger.tally.managers.entry(manager.moment()).or_default() += 1;
        }
        self.kernel.orphan(manager.pid);
    }

    /// The manager dies amid what it does.
    pub(super) fn manager_dies(&mut self) -> Result<(), Breach> {
        for _ in 0..self.rng.usize(..6) {
            self.manage()?;
        }
        self.end_manager(KILLED);
        // The user's code in those that have not come to serve may never return: the next manager does not wait for it.
        if self.rng.u8(..4) == 0 {
            let starts = |process: &&mut Process| process.has_links() && !process.ready;
            self.kernel.processes.iter_mut().filter(starts).for_each(|process| process.stuck = true);
        }
        Ok(())
    }

    /// The manager hangs, if somebody waits for it, who kills it then.
    pub(super) fn manager_hangs(&mut self) {
        let at = self.at;
        let is_waited_for = |manager: &&mut Manager| at == At::Leaving || manager.is_starting();
        if let Some(manager) = self.manager.as_mut().filter(is_waited_for) {
            manager.stuck = true;
        }
    }

    /// The master's descriptors run out, or come back.
    pub(super) fn lack_descriptors(&mut self) {
        self.kernel.is_short = !self.kernel.is_short;
    }

    /// Time passes; what is due happens.
    pub(super) fn pass(&mut self, time: Duration) -> Result<(), Breach> {
        self.now += time;
        let now = self.now;
        if let Some(manager) = self.attentive()? {
            manager.tick(now);
            self.manage_on()?;
        }
        if self.succession.is_some_and(|at| at <= now) {
            self.on_succession_timer()?;
        }
        if self.alarm.is_some_and(|at| at <= now) {
            self.on_alarm();
        }
        Ok(())
    }

    /// As long as nothing else is to happen; false if nothing will.
    fn pass_on(&mut self) -> Result<bool, Breach> {
        let managers = self.manager.as_ref().and_then(Manager::next_deadline);
        let Some(deadline) = [managers, self.succession, self.alarm].into_iter().flatten().min() else {
            return Ok(false);
        };
        self.pass(deadline.saturating_sub(self.now)).map(|()| true)
    }

    /// Everybody has turns until nobody has anything to do.
    pub(super) fn come_to_rest(&mut self, reading: bool) -> Result<(), Breach> {
        self.kind = true;
        self.kernel.is_short = false;
        for _ in 0..2_000 {
            let mut moved = false;
            while self.hear()? || self.manage()? || self.learn() || self.read_note() {
                moved = true;
            }
            for reactor in 0..self.fronts.len() {
                while self.obey(reactor)? {
                    moved = true;
                }
                let front = &mut self.fronts[reactor];
                for worker in 0..self.lanes.len() {
                    moved |= front.drain(worker, &mut self.ledger)?;
                }
                for slot in 0..if reading { super::front::SLOTS } else { 0 } {
                    let copy = self.rng.bool();
                    moved |= front.read(slot, 1 << 20, copy, &mut self.ledger)?;
                }
                moved |= front.hand_over();
            }
            // After the reactors, whose last word to them may be that there was something before.
            for slot in 0..self.lanes.len() {
                moved |= self.notice(slot)?;
                moved |= self.look_at(slot)?;
                for _ in 0..64 {
                    if !self.work(slot)? {
                        break;
                    }
                    moved = true;
                }
            }
            if !moved && !self.pass_on()? {
                return Ok(());
            }
        }
        breach(Kind::Stuck, "they never come to rest")
    }

    /// The stop is over: nobody is left.
    pub(super) fn check_stopped(&self) -> Result<(), Breach> {
        let Kernel { processes, corpses, .. } = &self.kernel;
        if self.at == At::Finished && processes.is_empty() && corpses.is_empty() {
            return Ok(());
        }
        breach(Kind::Stuck, format!("the stop does not end: {:?}", self.at))
    }

    /// Whether each slot has a process that serves, and a manager knows of it; and users were told of all that died.
    pub(super) fn check_serving(&mut self) -> Result<(), Breach> {
        let is_settled = |slot: usize| !self.kernel.has_remains(slot);
        if !(0..self.lanes.len()).all(is_settled) || self.manager.is_none() {
            return breach(Kind::Slot, "somebody is dead, and nobody sees to it");
        }
        for slot in 0..self.lanes.len() {
            if self.kernel.in_slot(slot).filter(|process| process.ready).count() != 1 {
                return breach(Kind::Slot, format!("slot {slot} has no worker that serves"));
            }
        }
        if self.untold.is_empty() {
            return Ok(());
        }
        breach(Kind::Casualty, format!("the user was not told of {:?}", self.untold))
    }

    /// Where everybody is.
    pub(super) fn describe(&self) -> String {
        let manager = self.manager.as_ref().map(|manager| (manager.pid, manager.ended, manager.moment()));
        let at = format!("{:?}, manager {manager:?}, next try {:?}", self.at, self.succession);
        let worker = |process: &Process| {
            let Process { slot, generation, pid, parent, .. } = process;
            let (moment, sleeps) = (process.moment(), process.sleeps(&self.shared));
            format!("worker {slot} #{generation}, pid {pid} of {parent}: {moment:?}, asleep {sleeps}")
        };
        let fronts = self.fronts.iter().map(|front| format!("reactor: {}", front.describe()));
        let workers = self.kernel.processes.iter().map(worker);
        [at].into_iter().chain(workers).chain(fronts).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn workers(&self) -> usize {
        self.lanes.len()
    }
}
