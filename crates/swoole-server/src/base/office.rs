//! The manager of Base mode, which is the whole server's: what the master does in Process mode besides its data path.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use swoole_supervisor::{Child, Control, Exited, Program, Report, Settle, SlotId};
use swoole_sys::signal::{self, SignalInfo, SignalSet};

use super::{Premises, Stalls, life, raw};
use crate::board::{Clients, Counter, Phase};
use crate::config::{CloseListen, Listen};
use crate::error::{Error, Result};
use crate::handler::{Handler, Master};
use crate::listening::Reread;
use crate::manager::{Staff, TASK_WORKERS, Timer, USER_PROCESSES, WORKERS, seat_of};
use crate::shared::Shared;

pub(super) struct Office<H> {
    pub(super) staff: Staff<H>,
    master: Master,
    premises: Rc<Premises>,
    /// A worker must not close the numbers of those that were closed in it.
    pub(super) stalls: ManuallyDrop<Stalls>,
    pub(super) reread: Option<Reread>,
    /// Slots whose first process has started or has failed to, while that matters.
    seen: Vec<bool>,
    /// Asked for before there was anything to reload.
    reload_wanted: bool,
    /// Asked for while clients wait for a successor: it stops when that has taken them over, or when this timer says so.
    stop_wanted: Option<Patience>,
    failure: Option<Error>,
}

impl<H: Handler> Office<H> {
    pub(super) fn new(
        handler: H,
        shared: Arc<Shared>,
        premises: Rc<Premises>,
        (stalls, reread): (Stalls, Option<Reread>),
    ) -> Result<Office<H>> {
        Ok(Office {
            seen: vec![false; shared.config.seats().into()],
            master: Master::new(Arc::clone(&shared)),
            staff: Staff::new(handler, shared)?,
            premises,
            stalls: ManuallyDrop::new(stalls),
            reread,
            reload_wanted: false,
            stop_wanted: None,
            failure: None,
        })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.staff.shared
    }

    /// All processes of the first generation exist: the first callbacks, then the workers' turn. Nothing starts that was
    /// asked to stop meanwhile.
    fn start(&mut self, control: &mut Control) {
        let stops = [Signal::TERM, Signal::INT, Signal::QUIT];
        if signal::pending().is_ok_and(|pending| stops.iter().any(|stop| pending.contains(*stop))) {
            return;
        }
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
        let seat = seat_of(slot, &self.shared().config);
        self.seen[usize::from(seat)] = true;
        if let Some(Patience { timer, since }) = self.stop_wanted.take() {
            let within = self.shared().config.max_wait_time.saturating_sub(since.elapsed());
            if self.stop_if_nobody_waits(control, within) {
                return control.unwatch(timer.as_fd().as_raw_fd());
            }
            self.stop_wanted = Some(Patience { timer, since });
        }
        if self.shared().board.phase() != Phase::Running || self.seen.contains(&false) {
            return;
        }
        self.set_phase(Phase::Serving);
        let addresses: Vec<String> = self.shared().listening().addresses().iter().map(Listen::url).collect();
        tracing::info!("Server is ready on {}", addresses.join(", "));
        self.call("on_ready", |handler, master| handler.on_ready(master));
        if self.reload_wanted {
            self.reload(control);
        }
    }

    /// What a signal asks for, or a worker in its place.
    fn hear(&mut self, signal: Signal, control: &mut Control) {
        match signal {
            Signal::INT if self.is_stopping(control) => {
                tracing::warn!("asked again to stop: at once");
                if self.stop_wanted.is_some() {
                    self.stop_workers(control);
                }
                control.stop(Duration::ZERO);
            }
            Signal::TERM | Signal::INT | Signal::QUIT => self.stop(control),
            Signal::USR1 if self.shared().board.phase() < Phase::Serving => self.reload_wanted = true,
            Signal::USR1 if self.is_stopping(control) => {}
            Signal::USR1 => self.reload(control),
            Signal::USR2 if self.is_stopping(control) || self.shared().board.phase() < Phase::Serving => {}
            Signal::USR2 => self.staff.reload_task_workers(control),
            Signal::HUP => {
                crate::log::reopen_or_say();
                control.signal_all(Signal::HUP);
            }
            _ => {}
        }
    }

    /// Ends the server in order.
    fn stop(&mut self, control: &mut Control) {
        if self.is_stopping(control) {
            return;
        }
        let within = self.shared().config.max_wait_time;
        tracing::info!("Server is stopping (max_wait_time = {within:?})");
        self.call("on_before_shutdown", |handler, master| handler.on_before_shutdown(master));
        if self.stop_if_nobody_waits(control, within) {
            return;
        }
        // Each who leaves in its turn would be one more to wait for, and who leaves already may not take longer than that.
        control.hold_turns();
        self.shared().board.set_stop_time(within / 2);
        match Timer::once(within / 2) {
            Ok(timer) => {
                control.watch(timer.as_fd().as_raw_fd());
                self.stop_wanted = Some(Patience { timer, since: Instant::now() });
            }
            Err(error) => {
                tracing::error!("wait for the workers that are being replaced (a timer): {error}");
                self.stop_workers(control);
            }
        }
    }

    /// Stops, unless clients wait for a successor. Whether it does.
    fn stop_if_nobody_waits(&mut self, control: &mut Control, within: Duration) -> bool {
        if self.has_heirs() {
            return false;
        }
        self.shared().board.set_stop_time(within);
        self.set_phase(Phase::Stopping);
        // One that has begun to retire has seen that, or is seen here: on either side a store, then a load.
        fence(Ordering::SeqCst);
        if self.has_heirs() {
            self.set_phase(Phase::Serving);
            return false;
        }
        self.close_stalls();
        control.stop(within);
        true
    }

    /// Whether clients wait for a successor that has yet to come.
    fn has_heirs(&self) -> bool {
        let Shared { board, config, .. } = self.shared();
        (0..config.worker_num).any(|worker| matches!(board.clients(worker), Clients::Leaving | Clients::Left))
    }

    fn is_stopping(&self, control: &Control) -> bool {
        control.is_stopping() || self.stop_wanted.is_some()
    }

    /// Stops, whoever waits.
    fn stop_workers(&mut self, control: &mut Control) {
        let mut within = self.shared().config.max_wait_time;
        if let Some(Patience { timer, since }) = self.stop_wanted.take() {
            control.unwatch(timer.as_fd().as_raw_fd());
            within = within.saturating_sub(since.elapsed());
        }
        self.shared().board.set_stop_time(within);
        self.set_phase(Phase::Stopping);
        self.close_stalls();
        control.stop(within);
    }

    /// No successor will need them; each worker closes its own.
    fn close_stalls(&mut self) {
        if self.shared().config.close_listen == CloseListen::First {
            self.stalls.iter_mut().for_each(Vec::clear);
        }
    }

    /// All workers are gone: the last callbacks.
    pub(super) fn finish(mut self) -> Result<()> {
        self.staff.shared.tasks.end();
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

    /// The clients that a worker had are gone with it; those that it has left, or has not taken over yet, are not.
    fn forget_clients(&self, worker: u16) {
        let Shared { sessions, board, .. } = self.shared();
        if matches!(board.clients(worker), Clients::Own | Clients::Leaving) {
            sessions.of_reactor(worker).for_each(|session| sessions.close(session));
            board.close_all(worker.into());
            board.set_clients(worker, Clients::None);
        }
    }
}

/// How long a stop waits for workers that are being replaced.
struct Patience {
    timer: Timer,
    since: Instant,
}

impl<H: Handler> Program for Office<H> {
    fn run(&mut self, child: Child) -> i32 {
        if child.group == TASK_WORKERS {
            return crate::task::run(&mut self.staff.handler, &self.staff.shared, None, child);
        }
        if child.group == USER_PROCESSES {
            return crate::process::run(&self.staff.shared, None, child);
        }
        let own = self.stalls.swap_remove(usize::from(child.slot));
        life::run(&mut self.staff.handler, &self.staff.shared, &self.premises, own, child)
    }

    fn blocked(&self) -> SignalSet {
        SignalSet::from(crate::worker::SIGNALS)
    }

    fn keep(&self, slot: SlotId) -> Vec<RawFd> {
        if slot.group == TASK_WORKERS {
            return self.shared().task_worker_keep(seat_of(slot, &self.shared().config));
        }
        if slot.group == USER_PROCESSES {
            return self.shared().user_process_keep(slot.slot);
        }
        let worker = usize::from(slot.slot);
        let own = self.shared().worker_keep(slot.slot);
        own.into_iter()
            .chain(raw(self.stalls[worker].iter().map(|stall| &stall.socket)))
            .chain(self.premises.keep(worker))
            .collect()
    }

    fn exited(&mut self, exit: &Exited, control: &mut Control) -> Settle {
        let seat = seat_of(exit.slot, &self.shared().config);
        self.staff.ended(seat);
        let mut held = None;
        if exit.slot.group == WORKERS {
            self.forget_clients(seat);
            held = self.shared().board.held(seat);
            if held.is_some() {
                self.shared().board.count(seat.into(), Counter::Lost, 1);
            }
        }
        self.shared().board.leave(seat);
        self.staff.bury(exit, held.into_iter().collect());
        self.see(exit.slot, control);
        Settle::Now
    }

    fn retires(&mut self, slot: SlotId) {
        self.staff.retires(slot);
    }

    fn report(&mut self, report: &Report, control: &mut Control) {
        self.staff.watch(control);
        match report {
            Report::Started { slot, generation, pid } => {
                if self.staff.started(*slot, *generation, pid.as_raw_pid()) {
                    self.start(control);
                }
            }
            Report::Ready { slot, .. } => {
                self.staff.ready(*slot);
                self.see(*slot, control);
            }
            other => {
                match other {
                    Report::ReloadBegun { groups, .. } if groups.contains(&WORKERS) => {
                        // Successors get what is forked with them.
                        let shared = self.shared();
                        shared.tls.reload(&shared.listening());
                        self.reload_begun();
                    }
                    Report::ReloadEnded { groups, .. } if groups.contains(&WORKERS) => self.reload_ended(),
                    Report::ReloadAborted { .. } => self.reload_aborted(),
                    _ => {}
                }
                self.staff.tell(other);
            }
        }
    }

    fn readable(&mut self, fd: RawFd, control: &mut Control) {
        if self.staff.look(fd, control) {
            for signal in self.staff.requests(fd, control) {
                self.hear(signal, control);
            }
            return;
        }
        tracing::warn!("clients are left that no worker has taken over in time");
        self.stop_workers(control);
    }

    fn signal(&mut self, info: SignalInfo, control: &mut Control) {
        self.hear(info.signal, control);
    }
}
