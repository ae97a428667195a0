//! How a process ended.

use std::fmt;
use std::time::Duration;

use rustix::process::{Pid, WaitIdStatus, WaitStatus};

use crate::SlotId;

/// How a process ended: `waitid(2)`. Prints as `exit:3` or `signal:11`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It ended itself, with this code from 0 to 255.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The number of the signal, `signal(7)`.
        signal: i32,
        /// Whether it left a core file.
        core_dumped: bool,
    },
    /// It is gone, but somebody else has taken its status: the program calls `wait` for all its children.
    Unknown,
}

impl ExitStatus {
    /// Whether it ended itself with code 0.
    pub fn success(&self) -> bool {
        *self == Self::Exited(0)
    }
}

impl ExitStatus {
    fn new(code: Option<i32>, signal: Option<i32>, core_dumped: bool) -> Self {
        match (code, signal) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Signaled { signal, core_dumped },
            (None, None) => Self::Unknown,
        }
    }
}

/// What `waitid(2)` tells.
impl From<&WaitIdStatus> for ExitStatus {
    fn from(status: &WaitIdStatus) -> Self {
        Self::new(status.exit_status(), status.terminating_signal(), status.dumped())
    }
}

/// What `waitpid(2)` tells.
impl From<WaitStatus> for ExitStatus {
    fn from(status: WaitStatus) -> Self {
        // WCOREDUMP
        Self::new(status.exit_status(), status.terminating_signal(), status.as_raw() & 0x80 != 0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit:{code}"),
            Self::Signaled { signal, core_dumped: false } => write!(f, "signal:{signal}"),
            Self::Signaled { signal, core_dumped: true } => write!(f, "signal:{signal} (core dumped)"),
            Self::Unknown => f.write_str("exit:unknown"),
        }
    }
}

/// A process of a slot that is gone.
#[derive(Debug, Clone, Copy)]
pub struct Exited {
    /// Whose place it had.
    pub slot: SlotId,
    /// Which process of the slot it was, counted from 1.
    pub generation: u32,
    /// The process id that it had. It is reaped, so the number may be somebody else's by now.
    pub pid: Pid,
    /// How it ended.
    pub status: ExitStatus,
    /// Whether it had called [`Child::ready`](crate::Child::ready).
    pub was_ready: bool,
    /// How long it lived, from the fork to the reaping.
    pub uptime: Duration,
}
