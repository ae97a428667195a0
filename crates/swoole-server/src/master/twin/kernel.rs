//! What the kernel does: who lives, who is dead and not reaped yet, and whose child everybody is. A process is held by
//! its number, which no other one gets.

use rustix::io::Errno;
use rustix::process::Signal;
use swoole_supervisor::ExitStatus;

use super::super::custody::{Custody, Hold};
use super::process::{Held, Process};
use super::tally::{Breach, Kind, breach};

/// Whoever is the child of no manager is this one's, who reaps orphans.
pub(super) const MASTER: i32 = 1;
pub(super) const KILLED: ExitStatus = ExitStatus::Signaled { signal: 9, core_dumped: false };

/// A process that is gone and not reaped.
pub(super) struct Corpse {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) status: ExitStatus,
    /// It had got ready, which nobody has heard yet.
    pub(super) ready: bool,
}

/// One place for a worker: what the last one that took its links has left, until all reactors have settled it.
#[derive(Default)]
pub(super) struct Place {
    remains: Option<Option<Held>>,
    /// Reactors that have settled it.
    settled: usize,
    /// The generation of the last one that served.
    served: u32,
}

pub(super) struct Kernel {
    pub(super) processes: Vec<Process>,
    pub(super) corpses: Vec<Corpse>,
    places: Vec<Place>,
    last_pid: i32,
    /// The master has no descriptor left.
    pub(super) is_short: bool,
}

impl Kernel {
    pub(super) fn new(workers: u16) -> Kernel {
        let places = (0..workers).map(|_| Place::default()).collect();
        Kernel { processes: Vec::new(), corpses: Vec::new(), places, last_pid: MASTER, is_short: false }
    }

    pub(super) fn next_pid(&mut self) -> i32 {
        self.last_pid += 1;
        self.last_pid
    }

    /// Whoever lives under this number.
    pub(super) fn process(&mut self, pid: i32) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.pid == pid)
    }

    pub(super) fn is_alive(&self, pid: i32) -> bool {
        self.processes.iter().any(|process| process.pid == pid)
    }

    /// Those that live in this slot, or try to.
    pub(super) fn in_slot(&mut self, slot: usize) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut().filter(move |process| usize::from(process.slot) == slot)
    }

    /// Asks a process to end, or wakes it with this request.
    pub(super) fn ask(&mut self, pid: i32) {
        if let Some(process) = self.process(pid) {
            (process.asked, process.woken) = (true, true);
        }
    }

    /// A manager is gone: its children are the master's, and are asked to end by the kernel.
    pub(super) fn orphan(&mut self, manager: i32) {
        for process in self.processes.iter_mut().filter(|process| process.parent == manager) {
            (process.parent, process.asked, process.woken) = (MASTER, true, true);
        }
        for corpse in self.corpses.iter_mut().filter(|corpse| corpse.parent == manager) {
            corpse.parent = MASTER;
        }
    }

    /// The process is gone: what it was.
    pub(super) fn end(&mut self, pid: i32, status: ExitStatus) -> Option<Process> {
        let at = self.processes.iter().position(|process| process.pid == pid)?;
        let process = self.processes.swap_remove(at);
        let place = &mut self.places[usize::from(process.slot)];
        if process.has_links() {
            place.remains = Some(process.held());
        }
        let ready = process.ready && !process.told;
        self.corpses.push(Corpse { pid, parent: process.parent, status, ready });
        Some(process)
    }

    /// How a dead child of this parent has ended, which can be asked once.
    pub(super) fn take_corpse(&mut self, pid: i32, parent: i32) -> Option<ExitStatus> {
        let is_it = |corpse: &Corpse| corpse.pid == pid && corpse.parent == parent;
        let at = self.corpses.iter().position(is_it)?;
        Some(self.corpses.swap_remove(at).status)
    }

    /// A dead child of the master's, whichever.
    pub(super) fn take_orphan(&mut self) -> Option<(i32, ExitStatus)> {
        let at = self.corpses.iter().position(|corpse| corpse.parent == MASTER)?;
        let Corpse { pid, status, .. } = self.corpses.swap_remove(at);
        Some((pid, status))
    }

    /// Whether the dead process had told that it is ready, which can be heard once.
    pub(super) fn hear_ready(&mut self, pid: i32) -> bool {
        let corpse = self.corpses.iter_mut().find(|corpse| corpse.pid == pid);
        corpse.is_some_and(|corpse| std::mem::take(&mut corpse.ready))
    }

    /// Whether the links of this slot are free for another process, which is about to take them or to be forked for that.
    pub(super) fn check_free(&mut self, slot: u16, who: &str) -> Result<(), Breach> {
        let wrong = |what: &str| breach(Kind::Slot, format!("{who} in slot {slot}: {what}"));
        if self.in_slot(slot.into()).any(|process| process.has_links()) {
            return wrong("there is a process already");
        }
        if self.places[usize::from(slot)].remains.is_some() {
            return wrong("what the one before it left is not settled");
        }
        Ok(())
    }

    /// This process serves from now on.
    pub(super) fn check_first(&mut self, pid: i32, slot: u16, generation: u32) -> Result<(), Breach> {
        let others = self.in_slot(slot.into()).filter(|process| process.pid != pid && process.ready).count();
        let served = std::mem::replace(&mut self.places[usize::from(slot)].served, generation);
        if others == 0 && generation > served {
            return Ok(());
        }
        let what = format!(
            "generation {generation} serves in slot {slot} after {served}, beside {others} other processes"
        );
        breach(Kind::Slot, what)
    }

    /// A reactor is to settle what the last process of this slot has left: what it had in hand.
    pub(super) fn remains(&mut self, slot: u16) -> Result<Option<Held>, Breach> {
        if self.in_slot(slot.into()).any(|process| process.has_links()) {
            return breach(Kind::Slot, format!("worker {slot} is settled, and is not dead"));
        }
        Ok(self.places[usize::from(slot)].remains.flatten())
    }

    /// One of `reactors` has settled it.
    pub(super) fn settled(&mut self, slot: u16, reactors: usize) {
        let place = &mut self.places[usize::from(slot)];
        place.settled += 1;
        if place.settled == reactors {
            (place.settled, place.remains) = (0, None);
        }
    }

    /// Whether somebody has died whose estate is not settled.
    pub(super) fn has_remains(&self, slot: usize) -> bool {
        self.places[slot].remains.is_some()
    }
}

impl Custody for Kernel {
    type Process = i32;
    type Watch = i32;

    fn hold(&mut self, pid: i32) -> Hold<i32> {
        let is_there = self.is_alive(pid) || self.corpses.iter().any(|corpse| corpse.pid == pid);
        match is_there {
            _ if self.is_short => Hold::Unable(Errno::MFILE),
            true => Hold::Held(pid),
            false => Hold::Gone,
        }
    }

    fn has_child(&self, pid: i32) -> bool {
        self.is_child(&pid)
    }

    fn kill_child(&mut self, pid: i32) {
        self.signal(&pid, Signal::KILL);
    }

    fn is_child(&self, pid: &i32) -> bool {
        let alive = self.processes.iter().map(|process| (process.pid, process.parent));
        let dead = self.corpses.iter().map(|corpse| (corpse.pid, corpse.parent));
        alive.chain(dead).any(|child| child == (*pid, MASTER))
    }

    fn signal(&mut self, pid: &i32, signal: Signal) {
        if let Some(process) = self.process(*pid).filter(|_| signal == Signal::KILL) {
            process.doomed = true;
        }
    }

    fn watch(&mut self, pid: &i32) -> Result<i32, swoole_reactor::Error> {
        if self.is_short { Err(swoole_reactor::Error::Full) } else { Ok(*pid) }
    }

    fn reap(&mut self, pid: &i32) -> Option<ExitStatus> {
        self.take_corpse(*pid, MASTER)
    }
}
