//! What a supervisor runs and whom it tells: the program's side.

use std::os::fd::{OwnedFd, RawFd};

use swoole_sys::signal::{SignalInfo, SignalSet};

use crate::{Control, ExitStatus, Exited, Report, SlotId};

/// When the successor of a process that is gone may be forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// As soon as the restart policy allows.
    Now,
    /// Not before [`Control::settled`] is called for the slot: somebody still has to clear up what the dead
    /// process left. A stop does not wait for it.
    Later,
}

/// What a supervisor runs, and whom it tells.
///
/// The value is copied by each fork: [`run`](Self::run) sees it as it stood when its process was forked, and
/// what a child writes into it is seen by nobody else. All other methods run in the supervisor's own process,
/// in its only thread, so they must not block: nobody is replaced, killed or reaped meanwhile. Nor may they
/// start a thread, because a process with several refuses to fork.
///
/// [`Supervisor::run`](crate::Supervisor::run) forks the first generation of all slots before it calls any of them but
/// [`retires`](Self::retires).
pub trait Program {
    /// The life of a child. Returns its exit code; a panic makes that 101.
    ///
    /// Runs in the new process when its signals, its death signal and its descriptors are in order: see
    /// the crate's front page. `SIGTERM` is the request to retire; unless `run` takes it (with a
    /// [`SignalFd`](swoole_sys::signal::SignalFd), say), it ends the process on the spot.
    ///
    /// Descriptors that [`keep`](Self::keep) did not name are closed, but the values that own them are still
    /// in `self`: do not use or drop those.
    fn run(&mut self, child: Child) -> i32;

    /// The descriptors that a child of this slot keeps. All others are closed in it, except 0, 1 and 2.
    /// Runs in the new process.
    fn keep(&self, slot: SlotId) -> Vec<RawFd>;

    /// The signals that a child begins with blocked; by default none. One that takes signals by a descriptor names
    /// them here, so that none can hit it before it has come to make that. Runs in the new process.
    fn blocked(&self) -> SignalSet {
        SignalSet::empty()
    }

    /// A process is gone. By default its successor may come at once.
    fn exited(&mut self, _exit: &Exited, _control: &mut Control) -> Settle {
        Settle::Now
    }

    /// A process that was [adopted](crate::Supervisor::adopt) is gone. How it went, only its parent knows; until
    /// [`Control::ended`] tells, nothing follows from it. By default, that is told here, as [`ExitStatus::Unknown`].
    fn vanished(&mut self, slot: SlotId, generation: u32, control: &mut Control) {
        control.ended(slot, generation, ExitStatus::Unknown);
    }

    /// The process of this slot is about to be asked to retire. Told before it is, unlike
    /// [`Report::Retiring`]: for a program that leaves word of it to another supervisor
    /// ([`Adopted::leaving`](crate::Adopted::leaving)). By default nobody listens.
    fn retires(&mut self, _slot: SlotId) {}

    /// Everything else worth knowing. By default nobody listens.
    fn report(&mut self, _report: &Report, _control: &mut Control) {}

    /// A signal has come to the supervisor: one of `SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGUSR1`, `SIGUSR2` and
    /// `SIGHUP`. By default, [`Control::act_on_signal`].
    fn signal(&mut self, info: SignalInfo, control: &mut Control) {
        control.act_on_signal(info.signal);
    }

    /// A descriptor that was passed to [`Control::watch`] is readable or hung up. Called again and again
    /// until it is read empty or no longer watched.
    fn readable(&mut self, _fd: RawFd, _control: &mut Control) {}
}

/// Who a child is.
#[derive(Debug)]
pub struct Child {
    /// The group of its slot.
    pub group: u16,
    /// Its slot within the group.
    pub slot: u16,
    /// Which process of its slot it is, counted from 1. Numbers of processes that could not be forked are
    /// left out; after 4,294,967,295 it begins again.
    pub generation: u32,
    /// The writing end of a pipe to the supervisor, until it has been used.
    pub(crate) notifier: Option<OwnedFd>,
}

impl Child {
    /// Its slot.
    pub fn id(&self) -> SlotId {
        SlotId { group: self.group, slot: self.slot }
    }

    /// Tells the supervisor that this process does its work from now on. A rolling reload waits for it, and a
    /// process that ends before it counts as one that cannot start, whatever its exit code.
    ///
    /// A second call does nothing.
    pub fn ready(&mut self) {
        if let Some(notifier) = self.notifier.take() {
            // It fails only when the supervisor is gone, of which the death signal tells.
            let _ = rustix::io::write(&notifier, &[1]);
        }
    }
}
