//! Fork, reap, respawn, reload and stop groups of worker processes.
#![forbid(unsafe_code)]

mod backoff;
mod control;
pub mod daemon;
mod exit;
mod group;
mod options;
mod policy;
mod program;
mod report;
mod spawn;
mod supervisor;

pub use backoff::Backoff;
pub use control::Control;
pub use exit::{ExitStatus, Exited};
pub use group::{GroupConfig, ReloadMode, Scope, SlotId};
pub use options::{Options, OptionsError};
pub use program::{Child, Program, Settle};
pub use report::Report;
pub use spawn::SpawnError;
pub use supervisor::{Error, Outcome, Supervisor};
