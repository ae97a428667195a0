//! What the roster does with processes. For the master the kernel does it; the twin has processes of its own.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use swoole_reactor::{Error, Interest, Reactor, Token, Trigger};
use swoole_supervisor::ExitStatus;

/// Whoever can hold a process, and be told of its end.
pub(super) trait Custody {
    /// A hold on one process, which is never another one's, whoever has its number by then.
    type Process;
    type Watch: Copy + PartialEq;

    /// `None` if there is no such process any more.
    fn hold(&mut self, pid: i32) -> Option<Self::Process>;
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

    fn hold(&mut self, pid: i32) -> Option<OwnedFd> {
        Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    }

    fn is_child(&self, process: &OwnedFd) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(process.as_fd()), options).is_ok()
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
