//! What the master knows of each worker process, and the workers that have lost their manager.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use swoole_reactor::{Interest, Reactor, Token, Trigger};
use swoole_supervisor::ExitStatus;

use crate::board::{Board, Lease};
use crate::charter::Heir;
use crate::control::Order;
use crate::crash::PacketInHand;

/// The process of a slot, and what the last one left.
#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    pid: i32,
    /// The live process.
    process: Option<OwnedFd>,
    /// Its watch, once its manager is gone: it is the master's child then.
    watch: Option<Token>,
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

impl Entry {
    /// Takes hold of the process that the manager has told of. There is nothing to hold on to if it is dead already, or no
    /// descriptor: then the next one who needs it tries again.
    fn hold(&mut self) {
        if self.process.is_none() && self.estate.is_none() && !self.is_unwatched {
            let pid = Pid::from_raw(self.pid);
            self.process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        }
    }

    fn is_unsettled(&self) -> bool {
        self.estate.as_ref().is_some_and(|estate| !estate.is_settled)
    }

    /// Ends a process that must not serve.
    fn dismiss(&mut self) {
        self.is_superfluous = self.process.is_some() || self.is_unwatched;
        if let Some(process) = &self.process {
            // It may have ended this very moment; its watch tells.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Takes a process up that its manager had no time to tell of, if there is one, or that there was no descriptor for:
    /// it is the master's child by now. A worker has written the number, so anybody else is not believed to be it.
    fn discover(&mut self, worker: u16, pid: i32) {
        let Some(number) = Pid::from_raw(pid) else { return };
        let is_child = |which| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            waitid(which, options).is_ok()
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(process) if is_child(WaitId::PidFd(process.as_fd())) => {
                (self.pid, self.process, self.estate) = (pid, Some(process), None);
            }
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) if is_child(WaitId::Pid(number)) => {
                tracing::error!("hold worker {worker} (pid {pid}), which is killed therefore: {error}");
                (self.pid, self.estate, self.is_unwatched) = (pid, None, true);
                // Nobody else has its number: a child keeps it until this thread reaps it.
                let _ = kill_process(number, Signal::KILL);
            }
            // There is none.
            Ok(_) | Err(_) => {}
        }
    }

    /// Has the master told when the process ends.
    fn watch(&mut self, reactor: &mut Reactor, worker: u16) {
        let (Some(process), None) = (&self.process, self.watch) else { return };
        match reactor.watch(process, Interest::READABLE, Trigger::Level) {
            Ok(token) => self.watch = Some(token),
            Err(error) => {
                tracing::error!("watch worker {worker}, which is killed therefore: {error}");
                let _ = pidfd_send_signal(process, Signal::KILL);
                self.is_unwatched = true;
            }
        }
    }

    /// The master's child has ended. To send it away was the master's own decision.
    fn ended(&mut self, status: Option<ExitStatus>) {
        let status = status.unwrap_or(ExitStatus::Unknown);
        let is_superfluous = std::mem::take(&mut self.is_superfluous);
        (self.process, self.watch, self.is_unwatched) = (None, None, false);
        self.estate = Some(Estate::new(if is_superfluous { ExitStatus::Exited(0) } else { status }));
    }
}

#[derive(Debug)]
pub(super) struct Roster {
    entries: Vec<Entry>,
}

impl Roster {
    pub(super) fn new(workers: u16) -> Roster {
        Roster { entries: (0..workers).map(|_| Entry::default()).collect() }
    }

    pub(super) fn forked(&mut self, worker: u16, generation: u32, pid: i32) {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return };
        let seen = entry.seen;
        *entry = Entry { generation, pid, seen, ..Entry::default() };
        entry.hold();
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
    pub(super) fn signal(&mut self, worker: u16, signal: Signal) {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return };
        entry.hold();
        if let Some(process) = &entry.process {
            // It may have ended this very moment, of which the manager tells.
            let _ = pidfd_send_signal(process, signal);
        }
    }

    pub(super) fn signal_all(&mut self, signal: Signal) {
        (0..self.entries.len() as u16).for_each(|worker| self.signal(worker, signal));
    }

    /// The manager is gone: from now on the master waits for the workers itself. Those that serve go on; for others there
    /// will be no room. Which workers' estates are to be settled: those of whose end nobody has told.
    pub(super) fn take_in(&mut self, reactor: &mut Reactor, board: &Board) -> Vec<u16> {
        let mut unsettled = Vec::new();
        for (entry, worker) in self.entries.iter_mut().zip(0..) {
            let lease = board.revoke_lease(worker);
            // What is not settled yet is the lease of the dead one.
            let is_known = entry.process.is_some() || entry.is_unsettled();
            if let Lease::Serving { pid } | Lease::Taken { pid } = lease
                && !is_known
            {
                entry.discover(worker, pid);
                entry.generation = entry.generation.max(board.generation(worker));
            }
            match lease {
                Lease::Serving { pid } if pid == entry.pid => {}
                _ => entry.dismiss(),
            }
            entry.watch(reactor, worker);
            if entry.process.is_none() && !entry.is_unwatched && entry.estate.is_none() {
                entry.estate = Some(Estate::new(ExitStatus::Unknown));
                unsettled.push(worker);
            }
        }
        unsettled
    }

    /// The manager is gone, and the server stops: from now on the master waits for the workers itself.
    pub(super) fn watch_orphans(&mut self, reactor: &mut Reactor) {
        for (entry, worker) in self.entries.iter_mut().zip(0..) {
            // It may be that there was no descriptor for it.
            if entry.process.is_none() && entry.estate.is_none() && !entry.is_unwatched {
                entry.discover(worker, entry.pid);
            }
            entry.watch(reactor, worker);
        }
    }

    /// What another manager finds, by worker: it adopts all.
    pub(super) fn heirs(&mut self) -> Vec<(Heir, Option<&OwnedFd>)> {
        let heir = |entry: &mut Entry| {
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
        let serves = |entry: &Entry| entry.watch.is_some() && !entry.is_superfluous;
        (0..).zip(&self.entries).filter(|(_, entry)| serves(entry)).map(|(worker, _)| worker).collect()
    }

    /// A child of the master's was reaped: which worker it was, if one, and whether nobody else tells of its end.
    pub(super) fn reaped(&mut self, pid: i32, status: ExitStatus) -> Option<(u16, bool)> {
        let exists = |entry: &Entry| entry.process.is_some() || entry.is_unwatched;
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
    pub(super) fn orphan_ended(&mut self, watch: Token) -> Option<u16> {
        let worker = self.entries.iter().position(|entry| entry.watch == Some(watch))?;
        let entry = &mut self.entries[worker];
        entry.watch = None;
        let process = entry.process.take()?;
        let reap = || waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let reaped = entry.status.take().or_else(|| Some(ExitStatus::from(&reap().ok()??)));
        entry.ended(reaped);
        u16::try_from(worker).ok()
    }

    /// Whether a worker without manager lives.
    pub(super) fn has_orphans(&self) -> bool {
        self.entries.iter().any(|entry| entry.watch.is_some() || entry.is_unwatched)
    }

    /// Kills the workers that live without a manager: which.
    pub(super) fn kill_orphans(&mut self) -> Vec<usize> {
        let orphans = self.entries.iter().enumerate().filter(|(_, entry)| entry.watch.is_some());
        let alive = orphans.map(|(worker, entry)| {
            if let Some(process) = &entry.process {
                // It may have ended this very moment; its watch tells.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            worker
        });
        alive.collect()
    }
}
