//! What a program may ask of its supervisor.

use std::os::fd::RawFd;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::policy::Event;
use crate::{ExitStatus, GroupConfig, ReloadMode, Scope, SlotId};

/// What a [`Program`](crate::Program) may ask of its supervisor. Requests are carried out, in their order,
/// when the callback that makes them has returned.
#[derive(Debug)]
pub struct Control {
    pub(crate) requests: Vec<Event>,
    pub(crate) watched: Vec<RawFd>,
    /// The live processes, kept up to date by the supervisor.
    pub(crate) live: Vec<(SlotId, u32, Pid)>,
    pub(crate) stopping: bool,
    /// To be sent to the process of a slot, or to all.
    pub(crate) signals: Vec<(Option<SlotId>, Signal)>,
    /// Adopted processes that are gone.
    pub(crate) ended: Vec<(SlotId, u32, ExitStatus)>,
    max_wait: Duration,
    groups: Vec<GroupConfig>,
}

impl Control {
    pub(crate) fn new(max_wait: Duration, groups: Vec<GroupConfig>) -> Self {
        Self {
            requests: Vec::new(),
            watched: Vec::new(),
            live: Vec::new(),
            stopping: false,
            signals: Vec::new(),
            ended: Vec::new(),
            max_wait,
            groups,
        }
    }

    /// Replaces the processes of `scope` by new ones; `None` for the mode is
    /// [`Options::reload_mode`](crate::Options::reload_mode).
    ///
    /// Asked for while a reload is going on, one more follows it, for all groups asked for meanwhile.
    pub fn reload(&mut self, scope: Scope, mode: Option<ReloadMode>) {
        self.requests.push(Event::Reload { scope, mode });
    }

    /// Asks the process of `slot` to retire, whoever else does; a successor takes its place. A slot that has no process
    /// is left alone.
    pub fn retire(&mut self, slot: SlotId) {
        self.requests.push(Event::Retire { slot });
    }

    /// Asks the process of `slot` to retire when its turn comes, and a successor to take its place: together with those
    /// that a rolling reload replaces, no more than [`Options::reload_parallel`](crate::Options::reload_parallel) of a
    /// group are out of service at once. Whose successor cannot start keeps its turn, so that the others go on.
    ///
    /// Meant is this generation of the process. If it is another one when the turn comes, nothing happens; to ask twice
    /// is to ask once.
    pub fn recycle(&mut self, slot: SlotId, generation: u32) {
        self.requests.push(Event::Recycle { slot, generation });
    }

    /// From now on nobody is asked to retire in its turn: a reload stays where it is, and no process is recycled. For a
    /// [`stop`](Self::stop) that has to wait for successors that are on their way.
    pub fn hold_turns(&mut self) {
        self.requests.push(Event::Hold);
    }

    /// Asks all processes to retire, one group after the other: the next one when those of the group before are gone, so that
    /// who is asked for something by others is there, and is replaced, for as long as they are. Kills those that are alive after
    /// `within`, of whatever group; zero kills at once, [`Duration::MAX`] never. [`Supervisor::run`](crate::Supervisor::run) returns when all are gone.
    ///
    /// A second call can make the bound earlier, never later.
    pub fn stop(&mut self, within: Duration) {
        self.stopping = true;
        self.requests.push(Event::Stop { within });
    }

    /// Sends a signal to every process, as for a log that is to be opened anew. The policy knows nothing of it: to
    /// have processes retire, ask for that.
    pub fn signal_all(&mut self, signal: Signal) {
        self.signals.push((None, signal));
    }

    /// Sends a signal to the process of `slot`, if there is one. The policy knows nothing of it: one that dies of it has
    /// died, and is replaced like any other.
    pub fn signal(&mut self, slot: SlotId, signal: Signal) {
        self.signals.push((Some(slot), signal));
    }

    /// What [`Settle::Later`](crate::Settle::Later) waits for: the successor in `slot` may come.
    pub fn settled(&mut self, slot: SlotId) {
        self.requests.push(Event::Settled { slot });
    }

    /// This process of the slot, which was [adopted](crate::Supervisor::adopt), is gone and reaped: what
    /// [`Program::exited`](crate::Program::exited) and all that follows from it waits for. Said of any other process, it
    /// is ignored.
    pub fn ended(&mut self, slot: SlotId, generation: u32, status: ExitStatus) {
        self.ended.push((slot, generation, status));
    }

    /// Whether nothing that was asked for waits to be carried out.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.signals.is_empty() && self.ended.is_empty()
    }

    /// Has [`Program::readable`](crate::Program::readable) called when `fd` is readable or hung up.
    ///
    /// The descriptor stays the caller's, who ends this by [`unwatch`](Self::unwatch) before closing it.
    pub fn watch(&mut self, fd: RawFd) {
        if !self.watched.contains(&fd) {
            self.watched.push(fd);
        }
    }

    /// Ends [`watch`](Self::watch).
    pub fn unwatch(&mut self, fd: RawFd) {
        self.watched.retain(|&watched| watched != fd);
    }

    /// The processes that are alive: slot, generation and process id.
    pub fn pids(&self) -> &[(SlotId, u32, Pid)] {
        &self.live
    }

    /// The groups, in the order that [`SlotId::group`] counts.
    pub fn groups(&self) -> &[GroupConfig] {
        &self.groups
    }

    /// Whether [`stop`](Self::stop) has been called.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Does what is usual for a signal:
    ///
    /// | Signal                         |                                                                 |
    /// |--------------------------------|-----------------------------------------------------------------|
    /// | `SIGTERM`, `SIGINT`, `SIGQUIT` | stop within [`Options::max_wait`](crate::Options::max_wait)     |
    /// | `SIGINT` while stopping        | stop at once                                                    |
    /// | `SIGUSR1`                      | reload all groups                                               |
    /// | `SIGUSR2`                      | reload the last group: by custom the one that does the side work |
    /// | others                         | nothing                                                         |
    pub fn act_on_signal(&mut self, signal: Signal) {
        match signal {
            Signal::INT if self.stopping => self.stop(Duration::ZERO),
            Signal::TERM | Signal::INT | Signal::QUIT => self.stop(self.max_wait),
            Signal::USR1 => self.reload(Scope::All, None),
            Signal::USR2 => {
                if let Some(last) = self.groups.len().checked_sub(1) {
                    self.reload(Scope::Group(last as u16), None);
                }
            }
            _ => {}
        }
    }
}
