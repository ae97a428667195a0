//! Make one process of a slot.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, waitpid};
use swoole_sys::process::{Fork, ForkError, die_with_parent, fork, run_child};
use swoole_sys::signal::{SignalSet, reset_handlers, set_mask};
use swoole_sys::{fds, signal};

use crate::{Child, Program, SlotId};

/// Why no process could be made for a slot.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// `fork(2)` was refused.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// A descriptor that the supervisor needs for each process was refused.
    #[error("{operation} for a new process failed: {errno}; raise the limit of descriptors (ulimit -n)")]
    Descriptor {
        /// The system call.
        operation: &'static str,
        /// Its error.
        errno: Errno,
    },
}

/// The exit code of a child that could not put itself in order (`EX_OSERR`, `sysexits.h(3)`).
const SETUP_FAILED_EXIT_CODE: i32 = 71;

/// A process that a supervisor before this one has left, and that goes on under this one.
#[derive(Debug)]
pub struct Adopted {
    /// Its slot. No other process may be adopted for it.
    pub slot: SlotId,
    /// Which process of its slot it is. The next one has the next number.
    pub generation: u32,
    /// Its process id, for reports only.
    pub pid: Pid,
    /// The process, `pidfd_open(2)`; `None` if it is gone already, and [`Control::ended`](crate::Control::ended) will
    /// tell how.
    pub pidfd: Option<OwnedFd>,
    /// The last supervisor had asked it to retire, so it is asked again: nobody else would see to it.
    pub leaving: bool,
}

/// A new process, as its supervisor holds it.
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    /// Readable when the process is gone.
    pub(crate) pidfd: OwnedFd,
    /// Readable when the process has called [`Child::ready`], hung up when it never will.
    pub(crate) ready: OwnedFd,
}

/// Forks a process that runs `program` as `generation` of `slot`. Returns in the supervisor only.
pub(crate) fn spawn<P: Program>(
    program: &mut P,
    slot: SlotId,
    generation: u32,
) -> Result<Spawned, SpawnError> {
    let refused = |operation| move |errno| SpawnError::Descriptor { operation, errno };
    let (ready, notifier) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(refused("pipe2"))?;
    let parent = getpid();
    match fork()? {
        Fork::Child => run_child(move || {
            let notifier_fd = notifier.as_raw_fd();
            // Its number is about to be closed under it.
            std::mem::forget(ready);
            let prepared = prepare(parent, &program.blocked(), || {
                let mut keep = program.keep(slot);
                keep.push(notifier_fd);
                keep
            });
            if let Err(errno) = prepared {
                eprintln!("slot {slot}: cannot put the new process in order: {errno}");
                return SETUP_FAILED_EXIT_CODE;
            }
            let SlotId { group, slot } = slot;
            program.run(Child { group, slot, generation, notifier: Some(notifier) })
        }),
        Fork::Parent(pid) => match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Spawned { pid, pidfd, ready }),
            Err(errno) => {
                // Nobody could tell when it ends, so it ends now.
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(refused("pidfd_open")(errno))
            }
        },
    }
}

/// Undoes what a child has from its parent and should not have. The order matters: the mask opens only when
/// no handler of the parent is left to run, and the death signal comes after that so that it can end this.
fn prepare(parent: Pid, mask: &SignalSet, keep: impl FnOnce() -> Vec<i32>) -> rustix::io::Result<()> {
    reset_handlers();
    // Ignored signals stay ignored, as with nohup(1), but a process must be able to retire.
    signal::default(Signal::TERM)?;
    set_mask(mask)?;
    die_with_parent(Signal::TERM, parent)?;
    fds::close_all_except(&keep())
}
