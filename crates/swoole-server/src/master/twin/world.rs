//! Manager and master: who lives, who is dead and not reaped yet, who is reaped and not settled yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Pid;
use swoole_supervisor::internals::{Model, Order};
use swoole_supervisor::{Backoff, ExitStatus, Options, ReloadMode, Report, SlotId};

use super::super::mailbox::Command;
use super::super::roster::Roster;
use super::front::Front;
use super::ledger::{CLOSE, Ledger, Name};
use super::process::{Held, Process, Went};
use super::stage::Stage;
use super::tally::{Breach, Kind, breach};
use crate::config::{DispatchMode, OnCrash};
use crate::control::{self, News};
use crate::crash::{CrashPolicy, Fate};
use crate::manager::WORKERS;
use crate::shared::{Lanes, Shared};

pub(super) const KILLED: ExitStatus = ExitStatus::Signaled { signal: 9, core_dumped: false };

/// A process that is gone and not reaped.
struct Corpse {
    generation: u32,
    status: ExitStatus,
    /// It had got ready, which nobody has heard yet.
    ready: bool,
    held: Option<Held>,
}

/// Somebody's death, until all reactors have settled it.
#[derive(Clone, Copy)]
struct Estate {
    held: Option<Held>,
}

/// One place for a process.
#[derive(Default)]
struct Slot {
    alive: Option<Process>,
    corpse: Option<Corpse>,
    estate: Option<Estate>,
    generation: u32,
}

pub(super) struct World<'a> {
    pub(super) rng: Rng,
    pub(super) shared: Arc<Shared>,
    lanes: &'a Lanes,
    /// Bytes of each ring.
    pub(super) ring: usize,
    pub(super) ledger: Ledger,
    pub(super) fronts: Vec<Front>,
    slots: Vec<Slot>,
    model: Model,
    now: Duration,
    roster: Roster,
    /// From the manager to the master, and back: workers whose estate is settled.
    news: VecDeque<News>,
    buried: VecDeque<u16>,
    on_crash: OnCrash,
    retries: u32,
    stopping: bool,
    /// Nothing goes wrong any more but what is poison.
    pub(super) kind: bool,
    next_pid: i32,
}

fn id(slot: usize) -> SlotId {
    SlotId { group: WORKERS, slot: slot as u16 }
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
            reload_parallel: rng.u16(1..3),
            backoff: Backoff::default(),
            ..Options::default()
        };
        let policy = CrashPolicy::new(config);
        let front = |id| {
            Front::open(id, &shared, &stage.lanes, policy)
                .map_err(|error| Breach { kind: Kind::Slot, what: error.to_string() })
        };
        let fronts = (0..config.reactor_num).map(front).collect::<Result<_, _>>()?;
        let ledger = Ledger::new(config.dispatch_mode == DispatchMode::Fixed);
        let mut world = World {
            model: Model::new(options, &[config.worker_num], rng.u64(..)),
            lanes: &stage.lanes,
            ring: stage.ring,
            ledger,
            fronts,
            slots: (0..config.worker_num).map(|_| Slot::default()).collect(),
            now: Duration::ZERO,
            roster: Roster::new(config.worker_num),
            news: VecDeque::new(),
            buried: VecDeque::new(),
            on_crash: config.on_crash,
            retries: config.crash_retries,
            stopping: false,
            kind: false,
            next_pid: 1,
            rng,
            shared,
        };
        let orders = world.model.start(world.now);
        world.apply(orders)?;
        Ok(world)
    }

    fn apply(&mut self, orders: Vec<Order>) -> Result<(), Breach> {
        let mut orders = VecDeque::from(orders);
        while let Some(order) = orders.pop_front() {
            match order {
                Order::Spawn { slot, generation } => orders.extend(self.fork(slot, generation)?),
                Order::Retire(slot) => {
                    if let Some(process) = &mut self.slots[usize::from(slot.slot)].alive {
                        process.retiring = true;
                    }
                }
                Order::Kill(slot) => self.die(usize::from(slot.slot), KILLED),
                Order::Report(Report::Started { slot, generation, pid }) => {
                    let pid = pid.as_raw_pid();
                    self.shared.board.set_worker_pid(slot.slot, pid);
                    self.news.push_back(News::Forked { worker: slot.slot, generation, pid });
                }
                Order::Report(Report::Ready { slot, generation, .. }) => {
                    self.news.push_back(News::Ready { worker: slot.slot, generation });
                }
                Order::Report(Report::ReloadEnded { .. }) => self.ledger.tally.reloads += 1,
                Order::Report(_) => {}
            }
        }
        Ok(())
    }

    fn fork(&mut self, slot: SlotId, generation: u32) -> Result<Vec<Order>, Breach> {
        let place = &mut self.slots[usize::from(slot.slot)];
        let wrong = |what: &str| breach(Kind::Slot, format!("generation {generation} in {slot}: {what}"));
        if self.stopping {
            return wrong("it comes after the stop");
        }
        if place.alive.is_some() || place.corpse.is_some() {
            return wrong("there is a process already");
        }
        if place.estate.is_some() {
            return wrong("what the one before it left is not settled");
        }
        if generation <= place.generation {
            return wrong("it is not new");
        }
        if !self.kind && self.rng.u8(..) < 6 {
            place.generation = generation;
            return Ok(self.model.spawn_failed(self.now, slot));
        }
        place.generation = generation;
        place.alive = Some(Process::new(slot.slot, generation));
        self.ledger.tally.processes += 1;
        self.next_pid += 1;
        let pid = Pid::from_raw(self.next_pid).unwrap_or(Pid::INIT);
        Ok(self.model.spawned(self.now, slot, pid))
    }

    /// The process of this slot is gone, if there is one.
    pub(super) fn die(&mut self, slot: usize, status: ExitStatus) {
        let Some(process) = self.slots[slot].alive.take() else { return };
        if !status.success() {
            *self.ledger.tally.deaths.entry(process.moment()).or_default() += 1;
        }
        let held = process.held();
        if let Some(held) = held {
            self.ledger.item(held.name).deaths += 1;
        }
        let (generation, ready) = (process.generation, process.ready && !process.told);
        self.slots[slot].corpse = Some(Corpse { generation, status, ready, held });
    }

    /// One micro-step of the worker in this slot. True if it got on.
    pub(super) fn work(&mut self, slot: usize) -> Result<bool, Breach> {
        let Some(process) = &mut self.slots[slot].alive else { return Ok(false) };
        if process.sleeps(&self.shared) {
            return Ok(false);
        }
        match process.step(&self.shared, &self.lanes[slot], &mut self.ledger)? {
            Went::Nowhere => return Ok(false),
            Went::Out => self.die(slot, ExitStatus::Exited(0)),
            Went::Dead => self.die(slot, ExitStatus::Signaled { signal: 11, core_dumped: false }),
            Went::On | Went::Ready => {}
        }
        Ok(true)
    }

    pub(super) fn make_stuck(&mut self, slot: usize) {
        if let Some(process) = &mut self.slots[slot].alive {
            process.stuck = true;
        }
    }

    /// The manager learns that a worker is ready, or that one is dead.
    pub(super) fn look_at(&mut self, slot: usize) -> Result<bool, Breach> {
        let place = &mut self.slots[slot];
        if let Some(process) = place.alive.as_mut().filter(|process| process.ready && !process.told) {
            process.told = true;
            let orders = self.model.ready(self.now, id(slot), process.generation);
            return self.apply(orders).map(|()| true);
        }
        let Some(Corpse { generation, status, ready, held }) = place.corpse.take() else { return Ok(false) };
        place.estate = Some(Estate { held });
        if ready {
            let orders = self.model.ready(self.now, id(slot), generation);
            self.apply(orders)?;
        }
        let orders = self.model.exited(self.now, id(slot), generation, status);
        self.apply(orders)?;
        self.shared.board.set_worker_pid(slot as u16, 0);
        self.news.push_back(News::Died { worker: slot as u16, generation, status });
        Ok(true)
    }

    /// The manager hears that a worker's estate is settled.
    pub(super) fn bury(&mut self) -> Result<bool, Breach> {
        let Some(worker) = self.buried.pop_front() else { return Ok(false) };
        let orders = self.model.settled(self.now, id(worker.into()));
        self.apply(orders).map(|()| true)
    }

    /// Now, or when it is its turn.
    pub(super) fn retire(&mut self, slot: usize) -> Result<(), Breach> {
        let orders = if self.rng.bool() {
            self.model.retire(self.now, id(slot))
        } else {
            self.model.recycle(self.now, id(slot), self.slots[slot].generation)
        };
        self.apply(orders)
    }

    pub(super) fn reload(&mut self) -> Result<(), Breach> {
        let orders = self.model.reload(self.now, swoole_supervisor::Scope::All, None);
        self.apply(orders)
    }

    pub(super) fn stop(&mut self, within: Duration) -> Result<(), Breach> {
        self.stopping = true;
        let orders = self.model.stop(self.now, within);
        self.apply(orders)
    }

    /// Time passes; what is due happens.
    pub(super) fn pass(&mut self, time: Duration) -> Result<(), Breach> {
        self.now += time;
        if self.model.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            let orders = self.model.tick(self.now);
            self.apply(orders)?;
        }
        Ok(())
    }

    /// As long as nothing else is to happen; false if nothing will.
    pub(super) fn pass_on(&mut self) -> Result<bool, Breach> {
        let Some(deadline) = self.model.next_deadline() else { return Ok(false) };
        self.pass(deadline.saturating_sub(self.now)).map(|()| true)
    }

    /// The master reads one of the manager's news.
    pub(super) fn learn(&mut self) -> bool {
        match self.news.pop_front() {
            Some(News::Forked { worker, generation, .. }) => self.roster.forked(worker, generation, 0),
            Some(News::Ready { worker, .. }) => {
                self.roster.ready(worker);
                self.fronts.iter_mut().for_each(|front| front.mail.push_back(Command::Up { worker }));
            }
            Some(News::Died { worker, generation, status }) => {
                self.roster.died(worker, generation, status);
                self.fronts.iter_mut().for_each(|front| front.mail.push_back(Command::Settle { worker }));
            }
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// A reactor does what the master has told it first.
    pub(super) fn obey(&mut self, reactor: usize) -> Result<bool, Breach> {
        let front = &mut self.fronts[reactor];
        let worker = match front.mail.pop_front() {
            Some(Command::Settle { worker }) => worker,
            Some(Command::Up { worker }) => {
                front.up(worker);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let place = &mut self.slots[usize::from(worker)];
        let Some(Estate { held }) = place.estate else {
            return breach(Kind::Slot, format!("worker {worker} is settled, and is not dead"));
        };
        let (on_crash, retries) = (self.on_crash, self.retries);
        let expected = |deaths| match on_crash {
            OnCrash::Close => Fate::Closed,
            OnCrash::Drop => Fate::Dropped,
            OnCrash::Retry if deaths <= retries => Fate::Retried,
            OnCrash::Retry => Fate::Poison,
        };
        let in_hand = front.settle(worker, held, expected, &mut self.ledger)?;
        if self.roster.settled(worker, in_hand, self.fronts.len()) {
            let Some(control::Order::Buried { in_hand, .. }) = self.roster.obituary(worker) else {
                return breach(
                    Kind::Slot,
                    format!("worker {worker} is settled, and the manager is told otherwise"),
                );
            };
            let packets = held.filter(|held| !matches!(held.name, Name { number: 0 | CLOSE, .. }));
            if in_hand.len() != usize::from(packets.is_some()) {
                return breach(Kind::Casualty, format!("{in_hand:?} in total, and in hand was {held:?}"));
            }
            place.estate = None;
            self.shared.board.leave(worker);
            self.buried.push_back(worker);
        }
        Ok(true)
    }

    /// Everybody has turns until nobody has anything to do.
    pub(super) fn come_to_rest(&mut self, reading: bool) -> Result<(), Breach> {
        self.kind = true;
        for _ in 0..2_000 {
            let mut moved = false;
            while self.bury()? || self.learn() {
                moved = true;
            }
            for reactor in 0..self.fronts.len() {
                while self.obey(reactor)? {
                    moved = true;
                }
                let front = &mut self.fronts[reactor];
                for worker in 0..self.slots.len() {
                    moved |= front.drain(worker, &mut self.ledger)?;
                }
                for slot in 0..if reading { super::front::SLOTS } else { 0 } {
                    let copy = self.rng.bool();
                    moved |= front.read(slot, 1 << 20, copy, &mut self.ledger)?;
                }
                moved |= front.hand_over();
            }
            // After the reactors, whose last word to them may be that there was something before.
            for slot in 0..self.slots.len() {
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
        let left = |slot: &Slot| slot.alive.is_some() || slot.corpse.is_some() || slot.estate.is_some();
        if !self.model.is_finished() || self.slots.iter().any(left) {
            return breach(Kind::Stuck, format!("the stop does not end: {:?}", self.model));
        }
        Ok(())
    }

    /// Whether each slot has a process that serves.
    pub(super) fn check_serving(&self) -> Result<(), Breach> {
        let serves = |slot: &Slot| slot.alive.as_ref().is_some_and(|process| process.told);
        if self.slots.iter().all(serves) { Ok(()) } else { breach(Kind::Slot, format!("{:?}", self.model)) }
    }

    /// Where everybody is.
    pub(super) fn describe(&self) -> String {
        let worker = |(number, slot): (usize, &Slot)| {
            let Slot { alive, corpse, estate, generation } = slot;
            let moment = alive.as_ref().map(|process| (process.moment(), process.sleeps(&self.shared)));
            let (corpse, estate) = (corpse.is_some(), estate.is_some());
            format!("worker {number} #{generation}: {moment:?}, corpse {corpse}, estate {estate}")
        };
        let fronts = self.fronts.iter().map(|front| format!("reactor: {}", front.describe()));
        let lines = self.slots.iter().enumerate().map(worker).chain(fronts);
        lines.collect::<Vec<_>>().join("\n")
    }

    pub(super) fn workers(&self) -> usize {
        self.slots.len()
    }
}
