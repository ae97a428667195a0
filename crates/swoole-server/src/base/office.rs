//! The manager of Base mode, which is the whole server's: what the master does in Process mode besides its data path.

use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use swoole_supervisor::{Child, Control, Exited, Program, Report, Scope, Settle, SlotId};
use swoole_sys::signal::{SignalInfo, SignalSet};

use super::{Premises, Stalls, life, raw};
use crate::board::{Counter, Phase};
use crate::config::Listen;
use crate::error::{Error, Result};
use crate::handler::{Handler, Master};
use crate::manager::{Staff, is_orderly};
use crate::shared::Shared;

pub(super) struct Office<H> {
    pub(super) staff: Staff<H>,
    master: Master,
    premises: Arc<Premises>,
    /// A worker must not close the numbers of those that were closed in it.
    stalls: ManuallyDrop<Stalls>,
    /// Slots whose first process has started or has failed to, while that matters.
    seen: Vec<bool>,
    /// Asked for before there was anything to reload.
    reload_wanted: bool,
    failure: Option<Error>,
}

impl<H: Handler> Office<H> {
    pub(super) fn new(
        handler: H,
        shared: Arc<Shared>,
        premises: Arc<Premises>,
        stalls: Stalls,
    ) -> Office<H> {
        Office {
            seen: vec![false; stalls.len()],
            master: Master { shared: Arc::clone(&shared) },
            staff: Staff::new(handler, shared),
            premises,
            stalls: ManuallyDrop::new(stalls),
            reload_wanted: false,
            failure: None,
        }
    }

    fn shared(&self) -> &Shared {
        &self.staff.shared
    }

    /// All processes of the first generation exist: the first callbacks, then the workers' turn.
    fn start(&mut self, control: &mut Control) {
        let Staff { handler, context, .. } = &mut self.staff;
        let started = handler
            .on_start(&mut self.master)
            .map_err(|error| Error::Start(format!("on_start: {error}")))
            .and_then(|()| {
                let started = handler.on_manager_start(context);
                started.map_err(|error| Error::Start(format!("on_manager_start: {error}")))
            });
        match started {
            Ok(()) => self.set_phase(Phase::Running),
            Err(error) => {
                self.failure = Some(error);
                self.stop(control);
            }
        }
    }

    /// A worker has started, or has failed to: clients are served when all have.
    fn see(&mut self, slot: SlotId, control: &mut Control) {
        self.seen[usize::from(slot.slot)] = true;
        if self.shared().board.phase() != Phase::Running || self.seen.contains(&false) {
            return;
        }
        self.set_phase(Phase::Serving);
        let addresses: Vec<String> = self.shared().addresses.iter().map(Listen::to_string).collect();
        tracing::info!("Server is ready on {}", addresses.join(", "));
        self.call("on_ready", |handler, master| handler.on_ready(master));
        if self.reload_wanted {
            control.reload(Scope::All, None);
        }
    }

    /// Ends the server in order.
    fn stop(&mut self, control: &mut Control) {
        if control.is_stopping() {
            return;
        }
        let within = self.shared().config.max_wait_time;
        tracing::info!("Server is stopping (max_wait_time = {within:?})");
        self.call("on_before_shutdown", |handler, master| handler.on_before_shutdown(master));
        self.set_phase(Phase::Stopping);
        control.stop(within);
    }

    /// All workers are gone: the last callbacks.
    pub(super) fn finish(mut self) -> Result<()> {
        self.staff.call("on_manager_stop", |handler, manager| handler.on_manager_stop(manager));
        self.call("on_shutdown", |handler, master| handler.on_shutdown(master));
        drop(ManuallyDrop::into_inner(self.stalls));
        match self.failure {
            Some(error) => Err(error),
            None => {
                tracing::info!("Server has stopped");
                Ok(())
            }
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.shared().board.set_phase(phase);
        self.shared().wake_workers();
    }

    fn call(&mut self, name: &str, callback: impl FnOnce(&mut H, &mut Master) -> Result<()>) {
        if let Err(error) = callback(&mut self.staff.handler, &mut self.master) {
            tracing::error!("{name}: {error}");
        }
    }

    /// The clients of a worker that died are gone with it.
    fn forget_sessions(&self, worker: u16) {
        let Shared { sessions, board, .. } = self.shared();
        let mut gone = 0;
        for session in sessions.of_reactor(worker) {
            sessions.close(session);
            gone += 1;
        }
        board.count(worker.into(), Counter::Closed, gone);
    }
}

impl<H: Handler> Program for Office<H> {
    fn run(&mut self, child: Child) -> i32 {
        let own = self.stalls.swap_remove(usize::from(child.slot));
        life::run(&mut self.staff.handler, &self.staff.shared, &self.premises, own, child)
    }

    fn blocked(&self) -> SignalSet {
        SignalSet::from(crate::worker::SIGNALS)
    }

    fn keep(&self, slot: SlotId) -> Vec<RawFd> {
        let worker = usize::from(slot.slot);
        let own = self.shared().worker_keep(slot.slot, &[]);
        own.into_iter().chain(raw(&self.stalls[worker])).chain(self.premises.keep(worker)).collect()
    }

    fn exited(&mut self, exit: &Exited, control: &mut Control) -> Settle {
        let worker = exit.slot.slot;
        self.shared().board.set_worker_pid(worker, 0);
        let held = self.shared().board.held(worker);
        if !is_orderly(exit) || held.is_some() {
            self.forget_sessions(worker);
        }
        if held.is_some() {
            self.shared().board.count(worker.into(), Counter::Lost, 1);
        }
        self.shared().board.leave(worker);
        self.staff.bury(exit, held.into_iter().collect());
        self.see(exit.slot, control);
        Settle::Now
    }

    fn report(&mut self, report: &Report, control: &mut Control) {
        match report {
            Report::Started { slot, generation, pid } => {
                if self.staff.started(*slot, *generation, pid.as_raw_pid()) {
                    self.start(control);
                }
            }
            Report::Ready { slot, .. } => self.see(*slot, control),
            other => self.staff.tell(other),
        }
    }

    fn signal(&mut self, info: SignalInfo, control: &mut Control) {
        match info.signal {
            Signal::INT if control.is_stopping() => {
                tracing::warn!("asked again to stop: at once");
                control.stop(Duration::ZERO);
            }
            Signal::TERM | Signal::INT | Signal::QUIT => self.stop(control),
            Signal::USR1 if self.shared().board.phase() < Phase::Serving => self.reload_wanted = true,
            Signal::USR1 => control.reload(Scope::All, None),
            Signal::USR2 => tracing::info!("no task workers to reload"),
            Signal::HUP => {
                crate::log::reopen_or_say();
                control.signal_all(Signal::HUP);
            }
            _ => {}
        }
    }
}
