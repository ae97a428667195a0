//! What a supervisor tells its program.

use std::fmt;
use std::time::Duration;

use rustix::process::Pid;

use crate::{ExitStatus, ReloadMode, SlotId, SpawnError};

/// What a supervisor tells its program, beside the end of processes ([`Program::exited`]).
///
/// Prints as a line of a log.
///
/// [`Program::exited`]: crate::Program::exited
#[derive(Debug)]
#[non_exhaustive]
pub enum Report {
    /// A process was forked.
    Started {
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: u32,
        /// Its process id.
        pid: Pid,
    },
    /// A process that another supervisor has left is this one's now.
    Adopted {
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: u32,
        /// Its process id.
        pid: Pid,
    },
    /// A process has called [`Child::ready`](crate::Child::ready).
    Ready {
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: u32,
        /// Its process id.
        pid: Pid,
        /// How long it took since the fork.
        took: Duration,
    },
    /// No process could be made. What happens next is told by [`BackingOff`](Self::BackingOff) or
    /// [`Failing`](Self::Failing).
    SpawnFailed {
        /// For this slot.
        slot: SlotId,
        /// Why.
        error: SpawnError,
    },
    /// A process was asked to retire (`SIGTERM`).
    Retiring {
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: u32,
        /// Its process id.
        pid: Pid,
    },
    /// A process was alive at the end of its time to retire, and killed (`SIGKILL`).
    Killed {
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: u32,
        /// Its process id.
        pid: Pid,
        /// How long it was given.
        waited: Duration,
    },
    /// A process was not ready after [`Options::start_timeout`](crate::Options::start_timeout), and killed (`SIGKILL`).
    StartTimedOut {
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: u32,
        /// Its process id.
        pid: Pid,
        /// How long it was given.
        waited: Duration,
    },
    /// Processes of this slot keep dying; the next is forked later.
    BackingOff {
        /// Which slot.
        slot: SlotId,
        /// How many have died in a row.
        deaths: u32,
        /// How long from now.
        delay: Duration,
    },
    /// So many processes of this slot have died in so short a time that it is tried rarely from now on.
    Failing {
        /// Which slot.
        slot: SlotId,
        /// How many have died within [`Options::restart_period`](crate::Options::restart_period).
        deaths: u32,
        /// How long until the next try.
        delay: Duration,
    },
    /// A reload begins.
    ReloadBegun {
        /// The groups that it is for.
        groups: Vec<u16>,
        /// How it goes about it.
        mode: ReloadMode,
    },
    /// All slots of the reload have a new process that is ready.
    ReloadEnded {
        /// The groups that it was for.
        groups: Vec<u16>,
        /// How long it took.
        took: Duration,
    },
    /// A successor could not start, so the reload has ended before its time. Slots that it had not come to
    /// keep their processes.
    ReloadAborted {
        /// The slot of the successor.
        slot: SlotId,
        /// How it died before it was ready; `None` when it could not be forked.
        status: Option<ExitStatus>,
        /// How many slots keep the process they have.
        untouched: usize,
    },
    /// All processes are being retired, and none is replaced any more.
    Stopping {
        /// The bound: who is alive after this time is killed.
        within: Duration,
    },
    /// A stop goes on; told once a second.
    Waiting {
        /// Those whose processes are not gone yet.
        slots: Vec<SlotId>,
        /// The rest of its time.
        left: Duration,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { slot, generation, pid } => {
                write!(f, "slot {slot} started as pid {} (generation {generation})", pid.as_raw_pid())
            }
            Self::Adopted { slot, generation, pid } => {
                write!(f, "slot {slot} keeps pid {} (generation {generation})", pid.as_raw_pid())
            }
            Self::Ready { slot, pid, took, .. } => {
                write!(f, "slot {slot} (pid {}) is ready after {took:.1?}", pid.as_raw_pid())
            }
            Self::SpawnFailed { slot, error } => write!(f, "slot {slot}: {error}"),
            Self::Retiring { slot, pid, .. } => write!(f, "slot {slot} (pid {}) retires", pid.as_raw_pid()),
            Self::Killed { slot, pid, waited, .. } => {
                write!(
                    f,
                    "slot {slot} (pid {}) has not retired within {waited:.1?}: killed",
                    pid.as_raw_pid()
                )
            }
            Self::StartTimedOut { slot, pid, waited, .. } => {
                let pid = pid.as_raw_pid();
                write!(f, "slot {slot} (pid {pid}) has not got ready within {waited:.1?}: killed")
            }
            Self::BackingOff { slot, deaths, delay } => {
                write!(f, "slot {slot} has failed {deaths} times in a row: next try in {delay:.1?}")
            }
            Self::Failing { slot, deaths, delay } => {
                write!(
                    f,
                    "slot {slot} keeps failing ({deaths} times of late): tried rarely, next in {delay:.1?}"
                )
            }
            Self::ReloadBegun { groups, mode } => write!(f, "reload of groups {groups:?} begins ({mode:?})"),
            Self::ReloadEnded { groups, took } => write!(f, "reload of groups {groups:?} done in {took:.1?}"),
            Self::ReloadAborted { slot, status, untouched } => {
                let reason = status.map_or("could not be forked".into(), |status| {
                    format!("died ({status}) before it was ready")
                });
                write!(
                    f,
                    "reload aborted: the successor in slot {slot} {reason}; {untouched} slots keep their process"
                )
            }
            Self::Stopping { within } => write!(f, "stopping within {within:.1?}"),
            Self::Waiting { slots, left } => {
                write!(f, "stopping: {} processes are not gone yet, {left:.1?} left", slots.len())
            }
        }
    }
}
