//! Fork, reap, respawn, reload and stop groups of worker processes.
//!
//! A [`Supervisor`] keeps a fixed number of processes alive, each in its *slot*: when one dies, the next
//! *generation* takes its place, at once at first, more and more slowly while it keeps dying. It replaces them
//! one by one, or [a few at a time](Options::reload_parallel), on `SIGUSR1`, and ends them in good order on `SIGTERM`. What the processes do is up to your
//! [`Program`]; this crate knows nothing of networks.
//!
//! # Example
//!
//! Two processes, of which one crashes in its first life. When it serves again, the program stops all.
//!
//! ```standalone_crate
//! use std::os::fd::RawFd;
//! use std::time::Duration;
//!
//! use swoole_supervisor::{Child, Control, Exited, GroupConfig, Options, Program, Report, Settle, SlotId, Supervisor, Tenure};
//!
//! struct Demo {
//!     deaths: Vec<String>,
//! }
//!
//! impl Program for Demo {
//!     // The life of a child.
//!     fn run(&mut self, mut child: Child) -> i32 {
//!         if child.slot == 0 && child.generation == 1 {
//!             return 3;
//!         }
//!         child.ready();
//!         loop {
//!             std::thread::park(); // A server would serve here. SIGTERM ends it.
//!         }
//!     }
//!
//!     // No descriptors but 0, 1 and 2.
//!     fn keep(&self, _slot: SlotId) -> Vec<RawFd> {
//!         vec![]
//!     }
//!
//!     // All that follows runs in the supervisor.
//!     fn exited(&mut self, exit: &Exited, _control: &mut Control) -> Settle {
//!         self.deaths.push(format!("{} {}", exit.slot, exit.status));
//!         Settle::Now
//!     }
//!
//!     fn report(&mut self, report: &Report, control: &mut Control) {
//!         if let Report::Ready { generation: 2, .. } = report {
//!             control.stop(Duration::from_secs(5));
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let groups = vec![GroupConfig { name: "worker".into(), slots: 2, tenure: Tenure::Term }];
//! let demo = Demo { deaths: vec![] };
//! let outcome = Supervisor::new(Options::default(), groups, demo)?.run()?;
//! assert_eq!(outcome.program.deaths[0], "0.0 exit:3");
//! assert_eq!(outcome.program.deaths.len(), 3, "and the two that were asked to end");
//! assert_eq!(outcome.killed, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # What a child finds
//!
//! Before [`Program::run`] begins, a child is put in order, in this order:
//!
//! 1. Signals that the parent had handlers for have their default action, and so has `SIGTERM`; none is
//!    blocked. Ignored ones stay ignored, as across `execve(2)`.
//! 2. `SIGTERM` comes when the supervisor dies, however it dies.
//! 3. All descriptors are closed except 0, 1, 2 and those that [`Program::keep`] names.
//!
//! It ends by what `run` returns, without the parent's destructors and `atexit` handlers. `SIGTERM` means
//! *retire*: finish what you hold, and return. A process that takes too long ([`Options::max_wait`]) is
//! killed. From a terminal, Ctrl-C goes to the children as well as to the supervisor; children that finish
//! their work in spite of it ignore or block `SIGINT`.
//!
//! # What counts as a death
//!
//! | How a process ends                                        | Then                                           |
//! |-----------------------------------------------------------|------------------------------------------------|
//! | it was asked to retire                                    | its successor comes at once                    |
//! | exit code 0, after it was [ready](Child::ready)           | the same: it has had enough, or an operator has; unless its group is [permanent](Tenure::Permanent) |
//! | anything else: a crash, another code, code 0 before ready | a death: [`Backoff`], and after [many](Options::restart_intensity) the slot is failing |
//!
//! # A supervisor that dies
//!
//! Its processes hear of it by `SIGTERM`, and need not go. Somebody who is their parent from then on, because it is their
//! ancestor and has called [`become_subreaper`](swoole_sys::process::become_subreaper), may start another supervisor,
//! which takes them over: [`Supervisor::adopt`].
//!
//! # Fork law
//!
//! The supervisor's process has one thread, for good: [`Supervisor::run`] refuses to start otherwise, and a
//! program that starts a thread in a callback gets [`Report::SpawnFailed`] for every fork after it. Event
//! loops, runtimes and log writers are made in [`Program::run`], where threads are free to come.
//!
//! To run in the background and leave a pid file, see [`daemon`].
#![forbid(unsafe_code)]

mod backoff;
mod control;
pub mod daemon;
mod exit;
mod group;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod options;
mod policy;
mod program;
mod report;
mod spawn;
mod supervisor;

pub use backoff::Backoff;
pub use control::Control;
pub use exit::{ExitStatus, Exited};
pub use group::{GroupConfig, ReloadMode, Scope, SlotId, Tenure};
pub use options::{Options, OptionsError};
pub use program::{Child, Program, Settle};
pub use report::Report;
pub use spawn::{Adopted, SpawnError};
pub use supervisor::{Error, Outcome, Supervisor};
