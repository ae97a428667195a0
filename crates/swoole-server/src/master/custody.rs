//! What the roster does with processes. For the master the kernel does it; the twin has processes of its own.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use swoole_reactor::{Error, Interest, Reactor, Token, Trigger};
use swoole_supervisor::ExitStatus;

/// Whether a process can be held.
pub(super) enum Hold<P> {
    Held(P),
    /// There is no such process any more.
    Gone,
    /// There may be one, and there is no descriptor to hold it by, or no memory.
    Unable(Errno),
}

/// Whoever can hold a process, and be told of its end.
pub(super) trait Custody {
    /// A hold on one process, which is never another one's, whoever has its number by then.
    type Process;
    type Watch: Copy + PartialEq;

    fn hold(&mut self, pid: i32) -> Hold<Self::Process>;
    /// Whether the master has a child of this number that is not reaped yet, for one that cannot be held.
    fn has_child(&self, pid: i32) -> bool;
    /// Ends it. Nobody else has its number: a child keeps that until the master reaps it.
    fn kill_child(&mut self, pid: i32);
    /// Whether it is a child of the master's that is not reaped yet.
    fn is_child(&self, process: &Self::Process) -> bool;
    fn signal(&mut self, process: &Self::Process, signal: Signal);
    /// Has the master told when it ends.
    fn watch(&mut self, process: &Self::Process) -> Result<Self::Watch, Error>;
    /// Reaps it, if it is dead and a child, and nobody has done so before.
    fn reap(&mut self, process: &Self::Process) -> Option<ExitStatus>;
}

impl Custody for Reactor {
    type Process = OwnedFd;
    type Watch = Token;

    fn hold(&mut self, pid: i32) -> Hold<OwnedFd> {
        let Some(pid) = Pid::from_raw(pid) else { return Hold::Gone };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => Hold::Held(process),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Hold::Unable(error),
            Err(_) => Hold::Gone,
        }
    }

    fn has_child(&self, pid: i32) -> bool {
        Pid::from_raw(pid).is_some_and(|pid| is_child(WaitId::Pid(pid)))
    }

    fn kill_child(&mut self, pid: i32) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn is_child(&self, process: &OwnedFd) -> bool {
        is_child(WaitId::PidFd(process.as_fd()))
    }

    fn signal(&mut self, process: &OwnedFd, signal: Signal) {
        // It may have ended this very moment, of which whoever watches it tells.
        let _ = pidfd_send_signal(process, signal);
    }

    fn watch(&mut self, process: &OwnedFd) -> Result<Token, Error> {
        Reactor::watch(self, process, Interest::READABLE, Trigger::Level)
    }

    fn reap(&mut self, process: &OwnedFd) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        Some(ExitStatus::from(&waitid(WaitId::PidFd(process.as_fd()), options).ok()??))
    }
}

fn is_child(which: WaitId<'_>) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(which, options).is_ok()
}
