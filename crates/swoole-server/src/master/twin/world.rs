//! The master, and everybody around it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use swoole_supervisor::{Backoff, ExitStatus, Options, ReloadMode};

use super::super::mailbox::Command;
use super::super::roster::Roster;
use super::front::Front;
use super::kernel::{KILLED, Kernel};
use super::ledger::{CLOSE, Ledger, Name};
use super::manager::Manager;
use super::process::{Held, Process, Went};
use super::stage::Stage;
use super::tally::{Breach, Kind, breach};
use crate::board::Phase;
use crate::config::{DispatchMode, OnCrash};
use crate::control::{News, Order};
use crate::crash::{CrashPolicy, Fate, PacketInHand};
use crate::shared::{Lanes, Shared};

/// As the master has them, but for the time that a manager may take to start.
const START: Duration = Duration::from_secs(10);
const MANAGER_MARGIN: Duration = Duration::from_secs(2);
const STABLE: Duration = Duration::from_secs(1);

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
    options: Options,
    now: Duration,
    at: At,
    roster: Roster<Kernel>,
    /// The present one, until the master notices that it is gone.
    manager: Option<Manager>,
    /// Managers that died in a row; when the last one began, and whether it has served.
    deaths: u32,
    began_at: Duration,
    serves: bool,
    /// To try another one, or to give up the one that starts; and to end a stop.
    succession: Option<Duration>,
    alarm: Option<Duration>,
    stop_at: Duration,
    reload_wanted: bool,
    /// From the reactors: what was lost with a worker that they have settled.
    notes: VecDeque<(u16, Vec<PacketInHand>)>,
    /// What managers have to tell the user, and have not told.
    untold: Vec<PacketInHand>,
    on_crash: OnCrash,
    retries: u32,
    /// Nothing goes wrong any more but what is poison.
    pub(super) kind: bool,
}

fn failed(error: impl ToString) -> Breach {
    Breach { kind: Kind::Fault, what: error.to_string() }
}

impl<'a> World<'a> {
    pub(super) fn new(stage: &'a Stage, mut rng: Rng) -> Result<World<'a>, Breach> {
        let shared = Arc::clone(&stage.shared);
        let config = &shared.config;
        let options = Options {
            max_wait: Duration::from_millis(rng.u64(50..3000)),
            start_timeout: rng.bool().then(|| Duration::from_millis(rng.u64(100..5000))),
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
            ledger: Ledger::new(config.dispatch_mode == DispatchMode::Fixed),
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

    // --- workers ---

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
        if let Some(pid) = self.pick(slot) {
            self.end(pid, status);
        }
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

    // --- the manager ---

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

    pub(super) fn retire(&mut self, slot: usize) -> Result<(), Breach> {
        if let Some(manager) = self.attentive()? {
            manager.retire(slot as u16);
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

    // --- the master ---

    fn order(&mut self, order: Order) {
        if let Some(manager) = &mut self.manager {
            manager.orders.push_back(order);
        }
    }

    fn tell_reactors(&mut self, command: impl Fn() -> Command) {
        self.fronts.iter_mut().for_each(|front| front.mail.push_back(command()));
    }

    fn tell_of_end(&mut self, worker: u16) {
        if self.manager.is_some()
            && let Some(order) = self.roster.obituary(worker)
        {
            self.order(order);
        }
    }

    /// The master reads one of the manager's news.
    pub(super) fn learn(&mut self) -> bool {
        let Some(news) = self.manager.as_mut().and_then(|manager| manager.news.pop_front()) else {
            return false;
        };
        match news {
            News::Forked { worker, generation, pid } => {
                self.roster.forked(&mut self.kernel, worker, generation, pid);
            }
            News::Ready { worker, .. } => {
                self.roster.ready(worker);
                self.tell_reactors(|| Command::Up { worker });
            }
            News::Died { worker, generation, status } => {
                self.roster.died(worker, generation, status);
                self.tell_reactors(|| Command::Settle { worker });
            }
            News::Started => {
                self.serves = true;
                self.succession = None;
            }
            News::AllForked | News::StopWanted => {}
        }
        true
    }

    /// The master notices something about its children: that the manager is gone, or a worker without one.
    pub(super) fn notice(&mut self, slot: usize) -> Result<bool, Breach> {
        if self.rng.bool() && self.reap() {
            return Ok(true);
        }
        if self.manager.as_ref().is_some_and(|manager| manager.ended.is_some()) {
            self.manager_ended();
            return Ok(true);
        }
        let worker = slot as u16;
        let dead = self.roster.watched(worker).filter(|pid| !self.kernel.is_alive(*pid));
        if let Some(watch) = dead
            && let Some(worker) = self.roster.orphan_ended(&mut self.kernel, watch)
        {
            self.tell_reactors(|| Command::Settle { worker });
            self.finish_if_alone();
            return Ok(true);
        }
        Ok(self.reap())
    }

    /// Whoever is dead and its child is no more.
    fn reap(&mut self) -> bool {
        let mut reaped = false;
        while let Some((pid, status)) = self.kernel.take_orphan() {
            self.roster.reaped(pid, status);
            reaped = true;
        }
        reaped
    }

    fn manager_ended(&mut self) {
        // What it said before it ended.
        while self.learn() {}
        let Some(manager) = self.manager.take() else { return };
        let in_order = self.at == At::Leaving && manager.ended == Some(ExitStatus::Exited(0));
        match self.at {
            At::Serving | At::Draining => return self.succeed(),
            _ if in_order => {}
            _ => {
                self.roster.watch_orphans(&mut self.kernel, &self.shared.board);
                self.alarm = Some(self.now + self.time_left());
            }
        }
        self.finish_if_alone();
    }

    /// As the master does when the manager is gone while the server serves.
    fn succeed(&mut self) {
        self.shared.board.next_reign();
        for worker in self.roster.take_in(&mut self.kernel, &self.shared.board) {
            self.tell_reactors(|| Command::Settle { worker });
        }
        for worker in self.roster.serving() {
            self.tell_reactors(|| Command::Up { worker });
        }
        self.try_again(Duration::ZERO);
    }

    fn try_again(&mut self, least: Duration) {
        if self.now - self.began_at >= STABLE {
            self.deaths = 0;
        }
        self.deaths += 1;
        let wait = Backoff::default().delay(self.deaths, std::mem::take(&mut self.serves), 0.5).max(least);
        self.succession = Some(self.now + wait);
    }

    fn on_succession_timer(&mut self) -> Result<(), Breach> {
        self.succession = None;
        match &mut self.manager {
            None if self.at <= At::Draining => self.start_manager(),
            None => Ok(()),
            Some(manager) => {
                manager.doomed = true;
                Ok(())
            }
        }
    }

    fn start_manager(&mut self) -> Result<(), Breach> {
        self.began_at = self.now;
        if !self.kind && self.rng.u8(..16) == 0 {
            self.try_again(Duration::from_millis(50));
            return Ok(());
        }
        let heirs = self.roster.heirs().into_iter().map(|(heir, process)| (heir, process.copied())).collect();
        let (pid, options, seed) = (self.kernel.next_pid(), self.options.clone(), self.rng.u64(..));
        self.manager = Some(Manager::executed(&self.shared, pid, options, seed, heirs).map_err(failed)?);
        self.ledger.tally.successions += 1;
        for worker in 0..self.shared.config.worker_num {
            self.tell_of_end(worker);
        }
        if std::mem::take(&mut self.reload_wanted) {
            self.order(Order::Reload);
        }
        self.succession = Some(self.now + START);
        Ok(())
    }

    /// A reactor does what the master has told it first.
    pub(super) fn obey(&mut self, reactor: usize) -> Result<bool, Breach> {
        let worker = match self.fronts[reactor].mail.pop_front() {
            Some(Command::Settle { worker }) => worker,
            Some(Command::Up { worker }) => {
                self.fronts[reactor].up(worker);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let held = self.kernel.remains(worker)?;
        let (on_crash, retries) = (self.on_crash, self.retries);
        let expected = |deaths| match on_crash {
            OnCrash::Close => Fate::Closed,
            OnCrash::Drop => Fate::Dropped,
            OnCrash::Retry if deaths <= retries => Fate::Retried,
            OnCrash::Retry => Fate::Poison,
        };
        let front = &mut self.fronts[reactor];
        let in_hand = front.settle(worker, held, expected, &mut self.ledger)?;
        let is_packet = |held: &Held| !matches!(held.name, Name { number: 0 | CLOSE, .. });
        let packets = held.filter(|held| held.reactor == reactor && is_packet(held));
        if in_hand.len() != usize::from(packets.is_some()) {
            return breach(Kind::Casualty, format!("{in_hand:?} in total, and in hand was {held:?}"));
        }
        self.kernel.settled(worker, self.fronts.len());
        self.notes.push_back((worker, in_hand));
        Ok(true)
    }

    /// The master hears that a reactor has settled something.
    pub(super) fn read_note(&mut self) -> bool {
        let Some((worker, in_hand)) = self.notes.pop_front() else { return false };
        self.untold.extend(&in_hand);
        if self.roster.settled(worker, in_hand, self.fronts.len()) {
            self.shared.board.leave(worker);
            self.shared.board.free_lease(worker);
            self.tell_of_end(worker);
        }
        true
    }

    // --- the stop ---

    /// Somebody asks for the end of all.
    pub(super) fn stop(&mut self, within: Duration) {
        self.at = At::Draining;
        self.stop_at = self.now + within;
    }

    fn time_left(&self) -> Duration {
        self.stop_at.saturating_sub(self.now).max(Duration::from_millis(100))
    }

    /// All is answered, or the time for that is over.
    pub(super) fn leave(&mut self) {
        if self.at != At::Draining {
            return;
        }
        self.at = At::Leaving;
        let within = self.time_left();
        self.order(Order::Stop { within_ms: within.as_millis() as u64 });
        let margin = if self.manager.is_some() { MANAGER_MARGIN } else { Duration::ZERO };
        self.alarm = Some(self.now + within + margin);
        self.shared.board.set_phase(Phase::Stopping);
        self.kernel.processes.iter_mut().for_each(|process: &mut Process| process.woken = true);
        self.finish_if_alone();
    }

    fn on_alarm(&mut self) {
        self.alarm = None;
        self.roster.kill_orphans(&mut self.kernel);
        self.manager.iter_mut().for_each(|manager| manager.doomed = true);
    }

    fn finish_if_alone(&mut self) {
        let stopping = matches!(self.at, At::Draining | At::Leaving);
        if stopping && self.manager.is_none() && !self.roster.has_orphans() {
            self.at = At::Finished;
        }
    }

    // --- time ---

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

    // --- what must be true in the end ---

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
