//! What a manager does for its workers in either mode: it calls the user back, and says what happens.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Arc;

use swoole_supervisor::{Control, ExitStatus, Exited, GroupConfig, Options, ReloadMode, Report, SlotId};

use rustix::process::Signal;

use super::recycle::Recycler;
use super::stuck::Watchman;
use crate::config::{self, Config};
use crate::crash::PacketInHand;
use crate::error::{Error, Result};
use crate::handler::{Handler, Manager, WorkerError};
use crate::shared::Shared;
use crate::stats::WorkerState;

/// The group of the workers; task workers will be the next.
pub(crate) const WORKERS: u16 = 0;

pub(crate) struct Staff<H> {
    pub(crate) handler: H,
    pub(crate) context: Manager,
    pub(crate) shared: Arc<Shared>,
    /// Workers of the first generation that exist.
    forked: u16,
    watchman: Option<Watchman>,
    recycler: Recycler,
}

impl<H: Handler> Staff<H> {
    pub(crate) fn new(handler: H, shared: Arc<Shared>) -> Result<Staff<H>> {
        let Config { request_slow_time, request_terminate_time, worker_num, .. } = shared.config;
        let watchman = Watchman::new(request_slow_time, request_terminate_time, worker_num)?;
        let recycler = Recycler::new(&shared)?;
        let context = Manager { shared: Arc::clone(&shared) };
        Ok(Staff { handler, context, shared, forked: 0, watchman, recycler })
    }

    /// Has [`look`](Staff::look) called when it is time.
    pub(crate) fn watch(&self, control: &mut Control) {
        if let Some(watchman) = &self.watchman {
            control.watch(watchman.as_fd().as_raw_fd());
        }
        self.recycler.watch(&self.shared, control);
    }

    /// Looks after workers that are stuck or due to be replaced, if this descriptor says that it is time for that.
    pub(crate) fn look(&mut self, fd: RawFd, control: &mut Control) -> bool {
        if let Some(watchman) = self.watchman.as_mut().filter(|watchman| watchman.is(fd)) {
            watchman.look(&self.shared.board, self.shared.config.worker_num, control);
            return true;
        }
        self.recycler.look(fd, &self.shared, control)
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
        (options, vec![GroupConfig { name: "worker".into(), slots: config.worker_num }])
    }

    /// A worker process exists. True if it completes the first generation.
    pub(crate) fn started(&mut self, slot: SlotId, generation: u32, pid: i32) -> bool {
        self.shared.board.set_worker_pid(slot.slot, pid);
        self.shared.board.set_worker_state(slot.slot, WorkerState::Starting);
        let worker_num = self.shared.config.worker_num;
        if self.forked < worker_num {
            self.forked += 1;
            return self.forked == worker_num;
        }
        self.shared.board.count_respawn();
        tracing::info!("worker {} has a new process, pid {pid} (generation {generation})", slot.slot);
        false
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
        self.forked = self.shared.config.worker_num;
        let rung = self.shared.manager_bell.ring();
        rung.map_err(|error| Error::setup("look for workers that are due", std::io::Error::from(error)))
    }

    /// It has started.
    pub(crate) fn ready(&self, slot: SlotId) {
        self.set_state(slot, WorkerState::Running);
    }

    /// It is about to be asked to leave. If this manager dies before it has, the next one has to know.
    pub(crate) fn retires(&self, slot: SlotId) {
        self.shared.board.set_leave_time(slot.slot, Some(self.shared.config.max_wait_time));
        self.set_state(slot, WorkerState::Retiring);
    }

    fn set_state(&self, slot: SlotId, state: WorkerState) {
        self.shared.board.set_worker_state(slot.slot, state);
    }

    /// Everything else worth knowing.
    pub(crate) fn tell(&mut self, report: &Report) {
        match report {
            Report::Retiring { slot, .. } => {
                // The signal alone may be taken for the one that told of another manager's death.
                if let Err(error) = self.shared.bells[usize::from(slot.slot)].force() {
                    tracing::error!("wake worker {}: {error}", slot.slot);
                }
            }
            Report::BackingOff { slot, .. } => self.set_state(*slot, WorkerState::BackingOff),
            Report::Failing { slot, .. } => self.set_state(*slot, WorkerState::Failed),
            _ => {}
        }
        match report {
            Report::Killed { slot, pid, waited, .. } => tracing::warn!(
                "worker {} (pid {}) had not finished after {waited:.1?} (max_wait_time) and was killed",
                slot.slot,
                pid.as_raw_pid()
            ),
            Report::StartTimedOut { slot, pid, waited, .. } => tracing::error!(
                "worker {} (pid {}) had not started after {waited:.1?} (worker_start_timeout) and was killed",
                slot.slot,
                pid.as_raw_pid()
            ),
            Report::Waiting { slots, left } => {
                let workers: Vec<u16> = slots.iter().map(|slot| slot.slot).collect();
                tracing::info!(
                    "Server is stopping: it waits for workers {workers:?} to leave, for {left:.1?} at most"
                );
            }
            Report::SpawnFailed { slot, error } => tracing::error!("fork worker {}: {error}", slot.slot),
            Report::BackingOff { slot, deaths, delay } => tracing::warn!(
                "worker {} has died {deaths} times in a row: back-off, next try in {delay:.0?}",
                slot.slot
            ),
            Report::Failing { slot, deaths, delay } => tracing::error!(
                "worker {} keeps failing ({deaths} times of late): back-off, next try in {delay:.0?}",
                slot.slot
            ),
            Report::ReloadBegun { .. } => {
                self.shared.board.set_reloading(true);
                tracing::info!("Server is reloading all workers now");
                self.call("on_before_reload", |handler, manager| handler.on_before_reload(manager));
            }
            Report::ReloadEnded { took, .. } => {
                self.shared.board.set_reloading(false);
                tracing::info!("Server has reloaded all workers in {took:.1?}");
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
        if is_orderly(exit) && in_hand.is_empty() {
            return;
        }
        let error = WorkerError {
            worker: exit.slot.slot,
            generation: exit.generation,
            pid: exit.pid.as_raw_pid(),
            status: exit.status,
            in_hand,
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
