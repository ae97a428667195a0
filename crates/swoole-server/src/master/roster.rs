//! What the master knows of each worker process, and the workers that have lost their manager.

use rustix::process::Signal;
use swoole_supervisor::ExitStatus;

use super::custody::{Custody, Hold};
use crate::board::{Board, Lease};
use crate::charter::Heir;
use crate::control::Order;
use crate::crash::PacketInHand;

/// The process of a slot, and what the last one left.
struct Entry<C: Custody> {
    generation: u32,
    pid: i32,
    /// The live process.
    process: Option<C::Process>,
    /// Its watch, once its manager is gone: it is the master's child then.
    watch: Option<C::Watch>,
    /// Its status, if it has been reaped before its watch told of its end.
    status: Option<ExitStatus>,
    /// It had not come to serve when its manager died, and has to go.
    is_superfluous: bool,
    /// Its manager is gone, and there was no descriptor to hold or to watch it by: it was killed, and only the master's
    /// reaping it tells that it is dead.
    is_unwatched: bool,
    /// The present manager has not forked it.
    is_adopted: bool,
    /// A process of this slot has started, or has failed to.
    seen: bool,
    /// What the last process left, until the next one exists.
    estate: Option<Estate>,
    /// How many reactors have settled it.
    settled: usize,
}

/// What a dead process leaves.
#[derive(Clone, Debug)]
pub(super) struct Estate {
    status: ExitStatus,
    in_hand: Vec<PacketInHand>,
    is_settled: bool,
}

impl Estate {
    fn new(status: ExitStatus) -> Estate {
        Estate { status, in_hand: Vec::new(), is_settled: false }
    }
}

impl<C: Custody> Entry<C> {
    fn new() -> Entry<C> {
        Entry {
            generation: 0,
            pid: 0,
            process: None,
            watch: None,
            status: None,
            is_superfluous: false,
            is_unwatched: false,
            is_adopted: false,
            seen: false,
            estate: None,
            settled: 0,
        }
    }

    /// Takes hold of the process that the manager has told of. There is nothing to hold on to if it is dead already, or no
    /// descriptor: then the next one who needs it tries again.
    fn hold(&mut self, custody: &mut C) {
        if self.process.is_none()
            && self.estate.is_none()
            && !self.is_unwatched
            && let Hold::Held(process) = custody.hold(self.pid)
        {
            self.process = Some(process);
        }
    }

    fn is_unsettled(&self) -> bool {
        self.estate.as_ref().is_some_and(|estate| !estate.is_settled)
    }

    /// Ends a process that must not serve.
    fn dismiss(&mut self, custody: &mut C) {
        self.is_superfluous = self.process.is_some() || self.is_unwatched;
        if let Some(process) = &self.process {
            custody.signal(process, Signal::KILL);
        }
    }

    /// Takes up the process of this lease if its manager had no time to tell of it, or there was no descriptor for it.
    fn discover(&mut self, custody: &mut C, worker: u16, lease: Lease, generation: u32) {
        // What is not settled yet is the lease of the dead one.
        let is_known = self.process.is_some() || self.is_unwatched || self.is_unsettled();
        let (Lease::Serving { pid } | Lease::Taken { pid }, false) = (lease, is_known) else { return };
        // Dead or alive, it is not the one whose estate is settled.
        self.estate = None;
        self.generation = self.generation.max(generation);
        self.take_up(custody, worker, pid);
    }

    /// Takes up a process that is the master's child by now. A worker has written the number, so anybody else is not
    /// believed to be it.
    fn take_up(&mut self, custody: &mut C, worker: u16, pid: i32) {
        match custody.hold(pid) {
            Hold::Held(process) if custody.is_child(&process) => {
                (self.pid, self.process) = (pid, Some(process));
            }
            Hold::Unable(error) if custody.has_child(pid) => {
                tracing::error!("hold worker {worker} (pid {pid}), which is killed therefore: {error}");
                (self.pid, self.is_unwatched) = (pid, true);
                custody.kill_child(pid);
            }
            // There is none.
            _ => {}
        }
    }

    /// Has the master told when the process ends.
    fn watch(&mut self, custody: &mut C, worker: u16) {
        let (Some(process), None) = (&self.process, self.watch) else { return };
        match custody.watch(process) {
            Ok(token) => self.watch = Some(token),
            // Its manager has reaped it, and had no time to tell.
            Err(_) if !custody.is_child(process) => self.process = None,
            Err(error) => {
                tracing::error!("watch worker {worker}, which is killed therefore: {error}");
                custody.signal(process, Signal::KILL);
                self.is_unwatched = true;
            }
        }
    }

    /// Whether there is no process, and nobody who would tell how it ended.
    fn is_lost(&mut self) -> bool {
        let is_lost = self.process.is_none() && !self.is_unwatched && self.estate.is_none();
        if is_lost {
            self.estate = Some(Estate::new(ExitStatus::Unknown));
        }
        is_lost
    }

    /// Whether its end was heard of before the manager's: there is nothing to wait for.
    fn was_reaped(&mut self) -> bool {
        let heard = self.status.is_some() && self.watch.is_none();
        if heard {
            let status = self.status.take();
            self.ended(status);
        }
        heard
    }

    /// The master's child has ended. To send it away was the master's own decision.
    fn ended(&mut self, status: Option<ExitStatus>) {
        let status = status.unwrap_or(ExitStatus::Unknown);
        let is_superfluous = std::mem::take(&mut self.is_superfluous);
        (self.process, self.watch, self.is_unwatched) = (None, None, false);
        self.estate = Some(Estate::new(if is_superfluous { ExitStatus::Exited(0) } else { status }));
    }
}

pub(super) struct Roster<C: Custody> {
    entries: Vec<Entry<C>>,
}

impl<C: Custody> Roster<C> {
    pub(super) fn new(workers: u16) -> Roster<C> {
        Roster { entries: (0..workers).map(|_| Entry::new()).collect() }
    }

    pub(super) fn forked(&mut self, custody: &mut C, worker: u16, generation: u32, pid: i32) {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return };
        let seen = entry.seen;
        *entry = Entry { generation, pid, seen, ..Entry::new() };
        entry.hold(custody);
    }

    pub(super) fn ready(&mut self, worker: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(worker)) {
            entry.seen = true;
        }
    }

    pub(super) fn died(&mut self, worker: u16, generation: u32, status: ExitStatus) {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return };
        entry.seen = true;
        if entry.generation == generation {
            entry.process = None;
            entry.estate = Some(Estate::new(status));
        }
    }

    /// Whether every slot has had a process that started or failed to.
    pub(super) fn all_seen(&self) -> bool {
        self.entries.iter().all(|entry| entry.seen)
    }

    /// One more of `reactors` has settled what this worker left; whether all have.
    pub(super) fn settled(&mut self, worker: u16, in_hand: Vec<PacketInHand>, reactors: usize) -> bool {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return false };
        let estate = entry.estate.get_or_insert(Estate::new(ExitStatus::Unknown));
        estate.in_hand.extend(in_hand);
        entry.settled += 1;
        estate.is_settled = entry.settled == reactors;
        if estate.is_settled {
            entry.settled = 0;
        }
        estate.is_settled
    }

    /// What the present manager is to be told of the worker's end, once it is settled.
    pub(super) fn obituary(&mut self, worker: u16) -> Option<Order> {
        let entry = self.entries.get_mut(usize::from(worker))?;
        let Estate { status, in_hand, .. } = entry.estate.clone().filter(|estate| estate.is_settled)?;
        let generation = entry.generation;
        Some(if std::mem::take(&mut entry.is_adopted) {
            Order::Ended { worker, generation, status, in_hand }
        } else {
            Order::Buried { worker, in_hand }
        })
    }

    /// Sends a signal to the worker that the manager has told of, and to nobody who only has its number.
    pub(super) fn signal(&mut self, custody: &mut C, worker: u16, signal: Signal) {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return };
        entry.hold(custody);
        if let Some(process) = &entry.process {
            custody.signal(process, signal);
        }
    }

    pub(super) fn signal_all(&mut self, custody: &mut C, signal: Signal) {
        (0..self.entries.len() as u16).for_each(|worker| self.signal(custody, worker, signal));
    }

    /// The manager is gone: from now on the master waits for the workers itself. Those that serve go on; for others there
    /// will be no room. Which workers' estates are to be settled: those of whose end nobody has told.
    pub(super) fn take_in(&mut self, custody: &mut C, board: &Board) -> Vec<u16> {
        let mut unsettled = Vec::new();
        for (entry, worker) in self.entries.iter_mut().zip(0..) {
            let lease = board.revoke_lease(worker);
            if entry.was_reaped() {
                unsettled.push(worker);
                continue;
            }
            entry.discover(custody, worker, lease, board.generation(worker));
            match lease {
                Lease::Serving { pid } if pid == entry.pid => {}
                _ => entry.dismiss(custody),
            }
            entry.watch(custody, worker);
            unsettled.extend(entry.is_lost().then_some(worker));
        }
        unsettled
    }

    /// The manager is gone, and the server stops: from now on the master waits for the workers itself. Which workers' estates
    /// are to be settled: those of whose end nobody has told, and that others may wait for before they leave.
    pub(super) fn watch_orphans(&mut self, custody: &mut C, board: &Board) -> Vec<u16> {
        let mut unsettled = Vec::new();
        for (entry, worker) in self.entries.iter_mut().zip(0..) {
            if entry.was_reaped() {
                unsettled.push(worker);
                continue;
            }
            entry.discover(custody, worker, board.lease(worker), board.generation(worker));
            // One that has not come so far, and that there was no descriptor for when it was forked.
            if entry.process.is_none() && entry.estate.is_none() && !entry.is_unwatched {
                entry.take_up(custody, worker, entry.pid);
            }
            entry.watch(custody, worker);
            unsettled.extend(entry.is_lost().then_some(worker));
        }
        unsettled
    }

    /// What another manager finds, by worker: it adopts all.
    pub(super) fn heirs(&mut self) -> Vec<(Heir, Option<&C::Process>)> {
        let heir = |entry: &mut Entry<C>| {
            entry.is_adopted = true;
            let alive = entry.process.is_some() && !entry.is_superfluous && !entry.is_unwatched;
            // No process has number 0; who has none is nobody who can be signalled.
            Heir { generation: entry.generation, pid: entry.pid.max(1), alive }
        };
        let heirs: Vec<Heir> = self.entries.iter_mut().map(heir).collect();
        let processes = self.entries.iter().map(|entry| entry.process.as_ref());
        heirs.into_iter().zip(processes).map(|(heir, it)| (heir, it.filter(|_| heir.alive))).collect()
    }

    /// The workers that serve without the manager that has forked them.
    pub(super) fn serving(&self) -> Vec<u16> {
        let serves = |entry: &Entry<C>| entry.watch.is_some() && !entry.is_superfluous;
        (0..).zip(&self.entries).filter(|(_, entry)| serves(entry)).map(|(worker, _)| worker).collect()
    }

    /// A child of the master's was reaped: which worker it was, if one, and whether nobody else tells of its end.
    pub(super) fn reaped(&mut self, pid: i32, status: ExitStatus) -> Option<(u16, bool)> {
        let exists = |entry: &Entry<C>| entry.process.is_some() || entry.is_unwatched;
        let worker = self.entries.iter().position(|entry| exists(entry) && entry.pid == pid)?;
        let entry = &mut self.entries[worker];
        let is_unwatched = entry.is_unwatched;
        if is_unwatched {
            entry.ended(Some(status));
        } else {
            entry.status = Some(status);
        }
        Some((worker as u16, is_unwatched))
    }

    /// The orphan of this watch has ended: which worker it was.
    pub(super) fn orphan_ended(&mut self, custody: &mut C, watch: C::Watch) -> Option<u16> {
        let worker = self.entries.iter().position(|entry| entry.watch == Some(watch))?;
        let entry = &mut self.entries[worker];
        entry.watch = None;
        let process = entry.process.take()?;
        let reaped = entry.status.take().or_else(|| custody.reap(&process));
        entry.ended(reaped);
        u16::try_from(worker).ok()
    }

    /// The watch of this worker, if it has one.
    #[cfg(test)]
    pub(super) fn watched(&self, worker: u16) -> Option<C::Watch> {
        self.entries[usize::from(worker)].watch
    }

    /// Whether a worker without manager lives.
    pub(super) fn has_orphans(&self) -> bool {
        self.entries.iter().any(|entry| entry.watch.is_some() || entry.is_unwatched)
    }

    /// Kills the workers that live without a manager: which.
    pub(super) fn kill_orphans(&mut self, custody: &mut C) -> Vec<usize> {
        let orphans = self.entries.iter().enumerate().filter(|(_, entry)| entry.watch.is_some());
        let alive = orphans.map(|(worker, entry)| {
            if let Some(process) = &entry.process {
                custody.signal(process, Signal::KILL);
            }
            worker
        });
        alive.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use swoole_reactor::Error;

    use super::*;

    /// Processes by their numbers; those that are alive are children.
    #[derive(Default)]
    struct Alive(BTreeSet<i32>);

    impl Custody for Alive {
        type Process = i32;
        type Watch = i32;

        fn hold(&mut self, pid: i32) -> Hold<i32> {
            if self.0.contains(&pid) { Hold::Held(pid) } else { Hold::Gone }
        }

        fn has_child(&self, pid: i32) -> bool {
            self.0.contains(&pid)
        }

        fn kill_child(&mut self, pid: i32) {
            self.0.remove(&pid);
        }

        fn is_child(&self, process: &i32) -> bool {
            self.0.contains(process)
        }

        fn signal(&mut self, _: &i32, _: Signal) {}

        fn watch(&mut self, process: &i32) -> Result<i32, Error> {
            Ok(*process)
        }

        fn reap(&mut self, _: &i32) -> Option<ExitStatus> {
            None
        }
    }

    /// In a stop, those that leave later wait until who is gone is settled: whoever tells of its end, and if nobody does.
    #[test]
    fn whoever_is_gone_when_the_manager_dies_in_a_stop_is_to_be_settled() {
        let board = Board::create(4, 1, 1).unwrap();
        let (mut roster, mut alive) = (Roster::new(4), Alive((1..4).collect()));
        (0..3).for_each(|worker| roster.forked(&mut alive, worker, 1, i32::from(worker) + 1));
        // Heard of by the master, which the manager's death came before; told by the manager itself; alive; never there.
        alive.0.remove(&1);
        assert_eq!(roster.reaped(1, ExitStatus::Exited(0)), Some((0, false)));
        alive.0.remove(&2);
        roster.died(1, 1, ExitStatus::Exited(0));
        assert_eq!(roster.watch_orphans(&mut alive, &board), [0, 3]);
        assert_eq!(
            (0..4).map(|worker| roster.watched(worker)).collect::<Vec<_>>(),
            [None, None, Some(3), None]
        );
    }
}
