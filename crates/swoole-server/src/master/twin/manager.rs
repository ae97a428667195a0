//! A manager, one micro-step at a time: the real policy and staff, and between them what [`Office`](crate::manager) and
//! the supervisor's shell do, in their order. It may be gone after any of these steps.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use swoole_supervisor::internals::{Model, Order};
use swoole_supervisor::{ExitStatus, Exited, Options, Report, Scope, SlotId};

use super::kernel::Kernel;
use super::process::Process;
use super::tally::{Breach, Kind, Tally, breach};
use crate::charter::Heir;
use crate::control::{self, News};
use crate::crash::PacketInHand;
use crate::error::Result as UserResult;
use crate::handler::{self, Handler, WorkerError};
use crate::manager::{Staff, WORKERS};
use crate::session::Session;
use crate::shared::Shared;
use crate::stats::WorkerState;
use crate::worker::Worker;

/// The user's program, as far as managers run it: remembers what it was told.
#[derive(Default)]
pub(super) struct Witness(Vec<PacketInHand>);

impl Handler for Witness {
    fn on_worker_error(&mut self, _: &mut handler::Manager, error: &WorkerError) -> UserResult<()> {
        self.0.extend(&error.in_hand);
        Ok(())
    }

    fn on_receive(&mut self, _: &mut Worker, _: Session, _: &[u8]) -> UserResult<()> {
        Ok(())
    }
}

/// A worker process, as its manager knows it.
struct Charge {
    slot: u16,
    generation: u32,
    pid: i32,
    /// Somebody else's child.
    is_adopted: bool,
    /// It is adopted and gone; how it ended is not known yet.
    is_gone: bool,
}

/// What was asked for while something was told, and is done next.
enum Request {
    Reload,
    Retire(SlotId),
    Recycle(SlotId),
    Settled(SlotId),
    Ended(SlotId, u32, ExitStatus),
}

enum State {
    /// It was executed, and has this charter.
    Executed(Vec<(Heir, Option<i32>)>),
    /// It reigns, and keeps nobody yet.
    Entered(Vec<(Heir, Option<i32>)>),
    Serving,
}

pub(super) struct Manager {
    pub(super) pid: i32,
    /// Its end, which the master has not noticed.
    pub(super) ended: Option<ExitStatus>,
    /// It does nothing any more, and does not end either.
    pub(super) stuck: bool,
    pub(super) doomed: bool,
    state: State,
    reign: u64,
    pub(super) model: Model,
    staff: Staff<Witness>,
    charges: Vec<Charge>,
    graves: HashMap<u16, Exited>,
    estates: HashMap<u16, Vec<PacketInHand>>,
    reload_wanted: bool,
    stopping: bool,
    actions: VecDeque<Order>,
    exits: VecDeque<Exited>,
    requests: VecDeque<Request>,
    reports: VecDeque<Report>,
    /// From the master, and to it.
    pub(super) orders: VecDeque<control::Order>,
    pub(super) news: VecDeque<News>,
}

fn id(slot: u16) -> SlotId {
    SlotId { group: WORKERS, slot }
}

fn number(pid: i32) -> Pid {
    Pid::from_raw(pid).unwrap_or(Pid::INIT)
}

impl Manager {
    fn new(
        shared: &Arc<Shared>,
        pid: i32,
        options: Options,
        seed: u64,
        state: State,
    ) -> crate::Result<Manager> {
        Ok(Manager {
            pid,
            ended: None,
            stuck: false,
            doomed: false,
            state,
            reign: shared.board.reign(),
            model: Model::new(options, &[shared.config.worker_num], seed),
            staff: Staff::new(Witness::default(), Arc::clone(shared))?,
            charges: Vec::new(),
            graves: HashMap::new(),
            estates: HashMap::new(),
            reload_wanted: false,
            stopping: false,
            actions: VecDeque::new(),
            exits: VecDeque::new(),
            requests: VecDeque::new(),
            reports: VecDeque::new(),
            orders: VecDeque::new(),
            news: VecDeque::new(),
        })
    }

    /// The one that the master has forked.
    pub(super) fn first(
        shared: &Arc<Shared>,
        pid: i32,
        options: Options,
        seed: u64,
    ) -> crate::Result<Manager> {
        shared.board.set_manager(pid);
        let mut manager = Manager::new(shared, pid, options, seed, State::Serving)?;
        manager.actions.extend(manager.model.start(Duration::ZERO));
        manager.news.push_back(News::Started);
        Ok(manager)
    }

    /// One that the master has executed, and given this charter.
    pub(super) fn executed(
        shared: &Arc<Shared>,
        pid: i32,
        options: Options,
        seed: u64,
        heirs: Vec<(Heir, Option<i32>)>,
    ) -> crate::Result<Manager> {
        Manager::new(shared, pid, options, seed, State::Executed(heirs))
    }

    /// Where it is, for whoever counts its deaths.
    pub(super) fn moment(&self) -> &'static str {
        match self.state {
            State::Executed(_) => "before its reign",
            State::Entered(_) => "before the adoption",
            State::Serving if !self.actions.is_empty() => "with something to do",
            State::Serving if !self.exits.is_empty() => "with a death untold",
            State::Serving if !self.reports.is_empty() || !self.requests.is_empty() => {
                "with something to tell"
            }
            State::Serving if self.stopping => "in a stop",
            State::Serving if !self.orders.is_empty() => "with an order unread",
            State::Serving => "at rest",
        }
    }

    /// Whether it has not said yet that it serves.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Executed(_))
    }

    /// Whether it can be told of something.
    pub(super) fn listens(&self) -> bool {
        self.ended.is_none()
            && !self.stuck
            && matches!(self.state, State::Serving)
            && self.actions.is_empty()
            && self.exits.is_empty()
            && self.requests.is_empty()
            && self.reports.is_empty()
    }

    /// Goes on with what it is at; false if that is nothing.
    pub(super) fn go_on(
        &mut self,
        now: Duration,
        kernel: &mut Kernel,
        tally: &mut Tally,
        fails: bool,
    ) -> Result<bool, Breach> {
        if self.ended.is_some() || self.stuck {
            return Ok(false);
        }
        match std::mem::replace(&mut self.state, State::Serving) {
            State::Executed(heirs) => {
                self.take_over()?;
                self.state = State::Entered(heirs);
                return Ok(true);
            }
            State::Entered(heirs) => {
                self.adopt(now, heirs);
                return Ok(true);
            }
            State::Serving => {}
        }
        if let Some(action) = self.actions.pop_front() {
            self.act(now, action, kernel, tally, fails)?;
        } else if let Some(exit) = self.exits.pop_front() {
            self.exited(exit);
        } else if let Some(request) = self.requests.pop_front() {
            self.carry_out(now, request);
        } else if let Some(report) = self.reports.pop_front() {
            self.report(&report, kernel);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn take_over(&mut self) -> Result<(), Breach> {
        let board = &self.staff.shared.board;
        board.set_manager(self.pid);
        self.reign = board.reign();
        self.reload_wanted = board.is_reloading();
        self.staff.take_over().or_else(|error| breach(Kind::Slot, error.to_string()))?;
        self.news.push_back(News::Started);
        Ok(())
    }

    fn adopt(&mut self, now: Duration, heirs: Vec<(Heir, Option<i32>)>) {
        for ((Heir { generation, pid, .. }, process), slot) in heirs.into_iter().zip(0..) {
            let is_gone = process.is_none();
            self.charges.push(Charge { slot, generation, pid, is_adopted: true, is_gone });
            let is_leaving = self.staff.shared.board.worker_state(slot) == WorkerState::Retiring;
            let process = (generation, number(pid));
            let orders = self.model.adopted(now, id(slot), process, (!is_gone, is_leaving));
            self.actions.extend(orders);
        }
        self.actions.extend(self.model.start(now));
    }

    fn act(
        &mut self,
        now: Duration,
        action: Order,
        kernel: &mut Kernel,
        tally: &mut Tally,
        fails: bool,
    ) -> Result<(), Breach> {
        let alive = |slot: SlotId, charges: &[Charge]| {
            let charge = charges.iter().find(|charge| charge.slot == slot.slot && !charge.is_gone);
            charge.map(|charge| charge.pid)
        };
        match action {
            Order::Spawn { slot, .. } if fails => self.actions.extend(self.model.spawn_failed(now, slot)),
            Order::Spawn { slot, generation } => {
                if self.stopping {
                    let what = format!("generation {generation} in {slot} is forked after the stop");
                    return breach(Kind::Slot, what);
                }
                kernel.check_free(slot.slot, "a fork")?;
                let pid = kernel.next_pid();
                kernel.processes.push(Process::new((slot.slot, generation), pid, self.pid, self.reign));
                self.charges.push(Charge {
                    slot: slot.slot,
                    generation,
                    pid,
                    is_adopted: false,
                    is_gone: false,
                });
                tally.processes += 1;
                self.actions.extend(self.model.spawned(now, slot, number(pid)));
            }
            Order::Retire(slot) => {
                self.staff.retires(slot);
                if let Some(pid) = alive(slot, &self.charges) {
                    kernel.ask(pid);
                }
            }
            Order::Kill(slot) => {
                let process = alive(slot, &self.charges).and_then(|pid| kernel.process(pid));
                process.into_iter().for_each(|process| process.doomed = true);
            }
            Order::Report(report) => {
                tally.reloads += u64::from(matches!(report, Report::ReloadEnded { .. }));
                self.reports.push_back(report);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, now: Duration, request: Request) {
        match request {
            Request::Reload => self.actions.extend(self.model.reload(now, Scope::All, None)),
            Request::Retire(slot) => self.actions.extend(self.model.retire(now, slot)),
            Request::Recycle(slot) => {
                let generation =
                    self.charges.iter().find(|charge| charge.slot == slot.slot).map(|it| it.generation);
                self.actions.extend(self.model.recycle(now, slot, generation.unwrap_or_default()));
            }
            Request::Settled(slot) => self.actions.extend(self.model.settled(now, slot)),
            Request::Ended(slot, generation, status) => {
                let is_it = |it: &Charge| it.is_adopted && (id(it.slot), it.generation) == (slot, generation);
                if let Some(at) = self.charges.iter().position(is_it) {
                    self.ended(now, at, status);
                }
            }
        }
    }

    fn report(&mut self, report: &Report, kernel: &mut Kernel) {
        if std::mem::take(&mut self.reload_wanted) {
            self.requests.push_back(Request::Reload);
        }
        match report {
            Report::Adopted { .. } => {}
            Report::Started { slot, generation, pid } => {
                let (worker, generation, pid) = (slot.slot, *generation, pid.as_raw_pid());
                self.staff.started(*slot, generation, pid);
                self.news.push_back(News::Forked { worker, generation, pid });
            }
            Report::Ready { slot, generation, .. } => {
                self.staff.ready(*slot);
                self.news.push_back(News::Ready { worker: slot.slot, generation: *generation });
            }
            other => self.staff.tell(other),
        }
        if let Report::Retiring { slot, .. } = report {
            // It has rung for that.
            kernel.in_slot(slot.slot.into()).for_each(|process| process.woken = true);
        }
    }

    /// A process is gone and reaped.
    fn ended(&mut self, now: Duration, at: usize, status: ExitStatus) {
        let Charge { slot, generation, pid, .. } = self.charges.swap_remove(at);
        self.actions.extend(self.model.exited(now, id(slot), generation, status));
        let (pid, uptime) = (number(pid), Duration::ZERO);
        self.exits.push_back(Exited { slot: id(slot), generation, pid, status, was_ready: true, uptime });
    }

    /// The program hears of the end.
    fn exited(&mut self, exit: Exited) {
        let Exited { slot: SlotId { slot, .. }, generation, status, .. } = exit;
        self.staff.ended(slot);
        self.graves.insert(slot, exit);
        if let Some(in_hand) = self.estates.remove(&slot) {
            self.bury(slot, in_hand);
            self.requests.push_back(Request::Settled(id(slot)));
        } else {
            self.news.push_back(News::Died { worker: slot, generation, status });
        }
    }

    fn bury(&mut self, worker: u16, in_hand: Vec<PacketInHand>) {
        if let Some(exit) = self.graves.remove(&worker) {
            self.staff.bury(&exit, in_hand);
        }
    }

    /// Takes an order of the master's.
    pub(super) fn obey(&mut self, now: Duration) -> bool {
        let Some(order) = self.orders.pop_front() else { return false };
        match order {
            control::Order::Start => {}
            control::Order::Reload => self.reload(),
            control::Order::ReloadTaskWorkers | control::Order::Address(_) => {
                unreachable!("nobody asks for it here")
            }
            control::Order::HoldTurns => self.actions.extend(self.model.hold(now)),
            control::Order::Stop { within_ms } => {
                self.stopping = true;
                self.actions.extend(self.model.stop(now, Duration::from_millis(within_ms)));
            }
            control::Order::Buried { worker, in_hand } => {
                self.bury(worker, in_hand);
                self.requests.push_back(Request::Settled(id(worker)));
            }
            control::Order::Ended { worker, generation, status, in_hand } => {
                self.estates.insert(worker, in_hand);
                self.requests.push_back(Request::Ended(id(worker), generation, status));
            }
        }
        true
    }

    /// Sees whether a worker in this slot is ready or dead.
    pub(super) fn look_at(&mut self, now: Duration, slot: u16, kernel: &mut Kernel) -> bool {
        for at in 0..self.charges.len() {
            let Charge { slot: place, generation, pid, is_adopted, is_gone } = self.charges[at];
            if place != slot || is_gone {
                continue;
            }
            if is_adopted {
                if !kernel.is_alive(pid) {
                    self.charges[at].is_gone = true;
                    return true;
                }
                continue;
            }
            if let Some(process) = kernel.process(pid) {
                if process.ready && !std::mem::replace(&mut process.told, true) {
                    self.actions.extend(self.model.ready(now, id(slot), generation));
                    return true;
                }
                continue;
            }
            // It may have got ready before it died.
            if kernel.hear_ready(pid) {
                self.actions.extend(self.model.ready(now, id(slot), generation));
                return true;
            }
            if let Some(status) = kernel.take_corpse(pid, self.pid) {
                self.ended(now, at, status);
                return true;
            }
        }
        false
    }

    pub(super) fn retire(&mut self, slot: u16) {
        self.requests.push_back(Request::Retire(id(slot)));
    }

    /// When it is its turn.
    pub(super) fn recycle(&mut self, slot: u16) {
        self.requests.push_back(Request::Recycle(id(slot)));
    }

    pub(super) fn reload(&mut self) {
        self.requests.push_back(Request::Reload);
    }

    /// When it has something to do if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.model.next_deadline().filter(|_| self.listens())
    }

    pub(super) fn tick(&mut self, now: Duration) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.actions.extend(self.model.tick(now));
        }
    }

    /// What the user was told that workers had in hand.
    pub(super) fn take_told(&mut self) -> Vec<PacketInHand> {
        std::mem::take(&mut self.staff.handler.0)
    }
}
