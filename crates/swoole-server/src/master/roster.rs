//! What the master knows of each worker process, and the workers that have lost their manager.

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use swoole_reactor::{Interest, Reactor, Token, Trigger};

use crate::crash::PacketInHand;

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    /// The live process.
    process: Option<OwnedFd>,
    /// Its watch, once the manager is gone.
    watch: Option<Token>,
    /// A process of this slot has started, or has failed to.
    seen: bool,
    /// What reactors have found lost with the dead one, and how many have looked.
    in_hand: Vec<PacketInHand>,
    settled: usize,
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
        entry.generation = generation;
        // Nothing to hold on to if it is dead already.
        entry.process = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    }

    pub(super) fn ready(&mut self, worker: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(worker)) {
            entry.seen = true;
        }
    }

    pub(super) fn died(&mut self, worker: u16, generation: u32) {
        let Some(entry) = self.entries.get_mut(usize::from(worker)) else { return };
        entry.seen = true;
        if entry.generation == generation {
            entry.process = None;
        }
    }

    /// Whether every slot has had a process that started or failed to.
    pub(super) fn all_seen(&self) -> bool {
        self.entries.iter().all(|entry| entry.seen)
    }

    /// One more of `reactors` has settled what this worker left; when all have, what was lost in total.
    pub(super) fn settled(
        &mut self,
        worker: u16,
        in_hand: Vec<PacketInHand>,
        reactors: usize,
    ) -> Option<Vec<PacketInHand>> {
        let entry = self.entries.get_mut(usize::from(worker))?;
        entry.in_hand.extend(in_hand);
        entry.settled += 1;
        (entry.settled == reactors).then(|| {
            entry.settled = 0;
            std::mem::take(&mut entry.in_hand)
        })
    }

    /// Sends a signal to the worker that the manager has told of, and to nobody who only has its number.
    pub(super) fn signal(&self, worker: u16, signal: Signal) {
        if let Some(process) = self.entries.get(usize::from(worker)).and_then(|entry| entry.process.as_ref())
        {
            // It may have ended this very moment, of which the manager tells.
            let _ = pidfd_send_signal(process, signal);
        }
    }

    pub(super) fn signal_all(&self, signal: Signal) {
        (0..self.entries.len() as u16).for_each(|worker| self.signal(worker, signal));
    }

    /// The manager is gone: from now on the master waits for the workers itself.
    pub(super) fn watch_orphans(&mut self, reactor: &mut Reactor) {
        for (worker, entry) in self.entries.iter_mut().enumerate() {
            let Some(process) = &entry.process else { continue };
            match reactor.watch(process, Interest::READABLE, Trigger::Level) {
                Ok(token) => entry.watch = Some(token),
                Err(error) => {
                    tracing::error!("watch worker {worker}, which is killed therefore: {error}");
                    let _ = pidfd_send_signal(process, Signal::KILL);
                    entry.process = None;
                }
            }
        }
    }

    /// The orphan of this watch has ended: which worker it was.
    pub(super) fn orphan_ended(&mut self, watch: Token) -> Option<u16> {
        let worker = self.entries.iter().position(|entry| entry.watch == Some(watch))?;
        self.entries[worker].watch = None;
        self.entries[worker].process = None;
        u16::try_from(worker).ok()
    }

    /// Whether a worker without manager lives.
    pub(super) fn has_orphans(&self) -> bool {
        self.entries.iter().any(|entry| entry.watch.is_some())
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
