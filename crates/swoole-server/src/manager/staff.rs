//! What a manager does for its workers in either mode: it calls the user back, and says what happens.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Arc;

use swoole_supervisor::{
    Control, ExitStatus, Exited, GroupConfig, Options, ReloadMode, Report, Scope, SlotId, Tenure,
};

use rustix::process::Signal;

use super::recycle::Recycler;
use super::stuck::Watchman;
use crate::board::Request;
use crate::config::{self, Config};
use crate::crash::PacketInHand;
use crate::error::{Error, Result};
use crate::handler::{Handler, Manager, WorkerError, WorkerKind};
use crate::shared::Shared;
use crate::stats::WorkerState;

/// The groups, in the order in which they stop: who is asked for something goes last.
pub(crate) const WORKERS: u16 = 0;
pub(crate) const TASK_WORKERS: u16 = 1;
pub(crate) const USER_PROCESSES: u16 = 2;

/// The place of a slot among all processes that work: its row on the board, and its name between master and manager.
pub(crate) fn seat_of(slot: SlotId, config: &Config) -> u16 {
    match slot.group {
        TASK_WORKERS => config.seat_of_task_worker(slot.slot),
        USER_PROCESSES => config.seat_of_user_process(slot.slot),
        _ => slot.slot,
    }
}

/// The slot of this seat.
pub(crate) fn slot_of(seat: u16, config: &Config) -> SlotId {
    let firsts = [
        (USER_PROCESSES, config.seat_of_user_process(0)),
        (TASK_WORKERS, config.seat_of_task_worker(0)),
        (WORKERS, 0),
    ];
    let slot = |(group, first): (u16, u16)| Some(SlotId { group, slot: seat.checked_sub(first)? });
    firsts.into_iter().find_map(slot).unwrap_or(SlotId { group: WORKERS, slot: seat })
}

fn kind_of(slot: SlotId) -> WorkerKind {
    match slot.group {
        TASK_WORKERS => WorkerKind::TaskWorker,
        USER_PROCESSES => WorkerKind::UserProcess,
        _ => WorkerKind::Worker,
    }
}

/// What the program calls it, if it is a user process.
fn own_name(slot: SlotId, config: &Config) -> Option<&String> {
    config.user_processes.get(usize::from(slot.slot)).filter(|_| slot.group == USER_PROCESSES)
}

/// What to call it.
pub(super) fn name(slot: SlotId, config: &Config) -> String {
    match own_name(slot, config) {
        Some(name) => format!("{} {name}", kind_of(slot)),
        None => format!("{} {}", kind_of(slot), slot.slot),
    }
}

/// What these groups are called together.
fn name_groups(groups: &[u16]) -> &'static str {
    match groups {
        [TASK_WORKERS] => "all task workers",
        [WORKERS] => "all workers",
        _ => "all workers and task workers",
    }
}

pub(crate) struct Staff<H> {
    pub(crate) handler: H,
    pub(crate) context: Manager,
    pub(crate) shared: Arc<Shared>,
    /// Processes of the first generation that exist.
    forked: u16,
    watchman: Option<Watchman>,
    recycler: Recycler,
}

impl<H: Handler> Staff<H> {
    pub(crate) fn new(handler: H, shared: Arc<Shared>) -> Result<Staff<H>> {
        let Config { request_slow_time, request_terminate_time, worker_num, .. } = shared.config;
        let watchman = Watchman::new(request_slow_time, request_terminate_time, worker_num)?;
        let recycler = Recycler::new(&shared)?;
        let context = Manager::new(Arc::clone(&shared))?;
        Ok(Staff { handler, context, shared, forked: 0, watchman, recycler })
    }

    /// Has [`look`](Staff::look) called when it is time.
    pub(crate) fn watch(&mut self, control: &mut Control) {
        control.watch(self.context.post().room().as_raw_fd());
        if let Some(watchman) = &self.watchman {
            control.watch(watchman.as_fd().as_raw_fd());
        }
        self.recycler.watch(&self.shared, control);
    }

    /// Looks after workers that are stuck or due to be replaced, or sends what had no room, if this descriptor says that it is
    /// time for that.
    pub(crate) fn look(&mut self, fd: RawFd, control: &mut Control) -> bool {
        if fd == self.context.post().room().as_raw_fd() {
            self.context.post().pump();
            return true;
        }
        if let Some(watchman) = self.watchman.as_mut().filter(|watchman| watchman.is(fd)) {
            watchman.look(&self.shared.board, self.shared.config.worker_num, control);
            return true;
        }
        self.recycler.look(fd, &self.shared, control)
    }

    /// Does what workers have asked for since this descriptor became readable; what they ask of the whole server is for the
    /// caller to hear, as if it were signaled. Each asks for what its own callbacks may.
    pub(crate) fn requests(&self, fd: RawFd, control: &mut Control) -> Vec<Signal> {
        let Shared { board, config, manager_bell, .. } = &*self.shared;
        if fd != manager_bell.as_fd().as_raw_fd() {
            return Vec::new();
        }
        let requests = (0..config.seats()).flat_map(|seat| board.take_requests(seat));
        let heard = requests.filter_map(|request| match request {
            Request::Reload => Some(Signal::USR1),
            Request::ReloadTaskWorkers => Some(Signal::USR2),
            Request::Shutdown => Some(Signal::TERM),
            Request::Retire(worker) => {
                self.retire(worker, control);
                None
            }
        });
        heard.collect()
    }

    /// Has the worker of this slot leave as if another one had signaled it.
    fn retire(&self, worker: u16, control: &mut Control) {
        if worker < self.shared.config.worker_num {
            control.signal(SlotId { group: WORKERS, slot: worker }, Signal::TERM);
        }
    }

    /// How the supervisor is to treat them.
    pub(crate) fn options(&self) -> (Options, Vec<GroupConfig>) {
        let config = &self.shared.config;
        let options = Options {
            max_wait: config.max_wait_time,
            start_timeout: Some(config.worker_start_timeout).filter(|timeout| !timeout.is_zero()),
            restart_intensity: config.restart_intensity,
            restart_period: config.restart_period,
            reload_mode: match config.reload_mode {
                config::ReloadMode::Rolling => ReloadMode::Rolling,
                config::ReloadMode::All => ReloadMode::AllAtOnce,
            },
            reload_parallel: config.reload_parallel,
            ..Options::default()
        };
        let group = |name: &str, slots, tenure| GroupConfig { name: name.into(), slots, tenure };
        let groups = vec![
            group("worker", config.worker_num, Tenure::Term),
            group("task worker", config.task_worker_num, Tenure::Term),
            group("user process", config.user_process_num(), Tenure::Permanent),
        ];
        (options, groups)
    }

    /// A process exists. True if it completes the first generation.
    pub(crate) fn started(&mut self, slot: SlotId, generation: u32, pid: i32) -> bool {
        self.shared.board.set_worker_pid(self.seat(slot), pid);
        self.set_state(slot, WorkerState::Starting);
        let seats = self.shared.config.seats();
        if self.forked < seats {
            self.forked += 1;
            return self.forked == seats;
        }
        self.shared.board.count_respawn();
        tracing::info!("{} has a new process, pid {pid} (generation {generation})", self.name(slot));
        false
    }

    fn seat(&self, slot: SlotId) -> u16 {
        seat_of(slot, &self.shared.config)
    }

    fn name(&self, slot: SlotId) -> String {
        name(slot, &self.shared.config)
    }

    /// Replaces the task workers, and nobody else.
    pub(crate) fn reload_task_workers(&self, control: &mut Control) {
        match self.shared.config.task_worker_num {
            0 => tracing::info!("no task workers to reload"),
            _ => control.reload(Scope::Group(TASK_WORKERS), None),
        }
    }

    /// Its process is gone; what follows is told.
    pub(crate) fn ended(&self, worker: u16) {
        self.shared.board.set_worker_pid(worker, 0);
        self.shared.board.set_leave_time(worker, None);
        self.shared.board.set_worker_state(worker, WorkerState::Starting);
    }

    /// The first generation exists: another manager has seen to it. It may have heard of workers that are due, which have
    /// said so once and for all.
    pub(crate) fn take_over(&mut self) -> Result<()> {
        self.forked = self.shared.config.seats();
        let rung = self.shared.manager_bell.ring();
        rung.map_err(|error| Error::setup("look for workers that are due", std::io::Error::from(error)))
    }

    /// It has started.
    pub(crate) fn ready(&self, slot: SlotId) {
        self.set_state(slot, WorkerState::Running);
    }

    /// It is about to be asked to leave. If this manager dies before it has, the next one has to know.
    pub(crate) fn retires(&self, slot: SlotId) {
        self.shared.board.set_leave_time(self.seat(slot), Some(self.shared.config.max_wait_time));
        self.set_state(slot, WorkerState::Retiring);
    }

    fn set_state(&self, slot: SlotId, state: WorkerState) {
        self.shared.board.set_worker_state(self.seat(slot), state);
    }

    /// Everything else worth knowing.
    pub(crate) fn tell(&mut self, report: &Report) {
        match report {
            Report::Retiring { slot, .. } => {
                // The signal alone may be taken for the one that told of another manager's death.
                let Shared { bells, task_bells, process_bells, .. } = &*self.shared;
                let bells = match slot.group {
                    TASK_WORKERS => task_bells,
                    USER_PROCESSES => process_bells,
                    _ => bells,
                };
                if let Err(error) = bells[usize::from(slot.slot)].force() {
                    tracing::error!("wake {}: {error}", self.name(*slot));
                }
            }
            Report::BackingOff { slot, .. } => self.set_state(*slot, WorkerState::BackingOff),
            Report::Failing { slot, .. } => self.set_state(*slot, WorkerState::Failed),
            _ => {}
        }
        match report {
            Report::Killed { slot, pid, waited, .. } => tracing::warn!(
                "{} (pid {}) had not finished after {waited:.1?} (max_wait_time) and was killed",
                self.name(*slot),
                pid.as_raw_pid()
            ),
            Report::StartTimedOut { slot, pid, waited, .. } => tracing::error!(
                "{} (pid {}) had not started after {waited:.1?} (worker_start_timeout) and was killed",
                self.name(*slot),
                pid.as_raw_pid()
            ),
            Report::Waiting { slots, left } => {
                // One group leaves after the other.
                let first = slots.first().map_or(WORKERS, |slot| slot.group);
                let who = slots.iter().filter(|slot| slot.group == first);
                let ids = who.map(|slot| match own_name(*slot, &self.shared.config) {
                    Some(name) => name.clone(),
                    None => slot.slot.to_string(),
                });
                let ids = ids.collect::<Vec<_>>().join(", ");
                let kind = match first {
                    TASK_WORKERS => "task workers",
                    USER_PROCESSES => "user processes",
                    _ => "workers",
                };
                tracing::info!(
                    "Server is stopping: it waits for {kind} [{ids}] to leave, for {left:.1?} at most"
                );
            }
            Report::SpawnFailed { slot, error } => tracing::error!("fork {}: {error}", self.name(*slot)),
            Report::BackingOff { slot, deaths, delay } => tracing::warn!(
                "{} has {} {deaths} times in a row: back-off, next try in {delay:.0?}",
                self.name(*slot),
                // That one of those has returned is no death, and no reason to hurry.
                if slot.group == USER_PROCESSES { "ended" } else { "died" }
            ),
            Report::Failing { slot, deaths, delay } => tracing::error!(
                "{} keeps failing ({deaths} times of late): back-off, next try in {delay:.0?}",
                self.name(*slot)
            ),
            Report::ReloadBegun { groups, .. } => {
                self.shared.board.set_reloading(true);
                tracing::info!("Server is reloading {} now", name_groups(groups));
                self.call("on_before_reload", |handler, manager| handler.on_before_reload(manager));
            }
            Report::ReloadEnded { groups, took } => {
                self.shared.board.set_reloading(false);
                tracing::info!("Server has reloaded {} in {took:.1?}", name_groups(groups));
                self.call("on_after_reload", |handler, manager| handler.on_after_reload(manager));
            }
            Report::ReloadAborted { .. } => {
                self.shared.board.set_reloading(false);
                tracing::error!("{report}");
            }
            other => tracing::debug!("{other}"),
        }
    }

    /// A worker is gone, and this is all that was lost with it.
    pub(crate) fn bury(&mut self, exit: &Exited, in_hand: Vec<PacketInHand>) {
        let Shared { bells, task_bells, tasks, .. } = &*self.shared;
        let kind = kind_of(exit.slot);
        let tasks = match kind {
            WorkerKind::TaskWorker => tasks.bury(exit.slot.slot, bells, task_bells),
            WorkerKind::Worker | WorkerKind::UserProcess => {
                tasks.asker_died(task_bells);
                Vec::new()
            }
        };
        if is_orderly(exit) && in_hand.is_empty() && tasks.is_empty() {
            return;
        }
        let error = WorkerError {
            kind,
            worker: exit.slot.slot,
            name: own_name(exit.slot, &self.shared.config).cloned(),
            generation: exit.generation,
            pid: exit.pid.as_raw_pid(),
            status: exit.status,
            in_hand,
            tasks,
        };
        tracing::error!("{error}");
        self.call("on_worker_error", |handler, manager| handler.on_worker_error(manager, &error));
    }

    /// Runs a callback whose error is logged, and no more.
    pub(crate) fn call(&mut self, name: &str, callback: impl FnOnce(&mut H, &mut Manager) -> Result<()>) {
        if let Err(error) = callback(&mut self.handler, &mut self.context) {
            tracing::error!("{name}: {error}");
        }
    }
}

/// Whether it left as it was asked to. One that is asked to retire before it can listen simply ends by that signal.
fn is_orderly(exit: &Exited) -> bool {
    let asked = matches!(exit.status, ExitStatus::Signaled { signal, .. } if signal == Signal::TERM.as_raw());
    exit.status.success() || asked
}
