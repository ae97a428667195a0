//! The manager process: forks workers, reaps them, replaces them, reloads them, stops them. Nothing else.
//!
//! The policy is `swoole-supervisor`'s; this file connects it with the user's callbacks and with the master.
//! When a worker dies the master hears of it, every reactor settles what the worker left, and only then may its
//! successor be forked: two processes never hold the same links.

mod staff;
mod stuck;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getpid, getppid};
use swoole_supervisor::{Child, Control, Exited, Program, Report, Scope, Settle, SlotId, Supervisor};
use swoole_sys::signal::{SignalInfo, SignalSet};

use swoole_ipc::socketpair::Endpoint;

use crate::control::{self, News, Order};
use crate::crash::PacketInHand;
use crate::handler::Handler;
use crate::log::{Identity, Role};
use crate::shared::{Lanes, Shared};
pub(crate) use staff::{Staff, WORKERS};

/// How long orphans may take to finish: the whole family has to be gone within a second.
const ORPHAN_WAIT: Duration = Duration::from_millis(300);
/// How long the master may take to say what a worker left, when nobody waits for the successor.
const BURIAL_WAIT: Duration = Duration::from_secs(1);

/// Runs the manager to its end; the exit code.
pub(crate) fn run<H: Handler>(
    handler: H,
    shared: Arc<Shared>,
    lanes: Lanes,
    control: Endpoint,
    master: Pid,
) -> i32 {
    crate::log::set_identity(Identity { role: Role::Manager, id: 0 });
    if let Err(error) = enter(&shared, &lanes, &control, master) {
        tracing::error!("start the manager: {error}");
        return 1;
    }
    if let Err(error) = lanes.iter().flatten().try_for_each(|lane| lane.set_inherited(false)) {
        tracing::error!("start the manager: {error}");
        return 1;
    }
    let staff = match Staff::new(handler, shared) {
        Ok(staff) => staff,
        Err(error) => {
            tracing::error!("start the manager: {error}");
            return 1;
        }
    };
    let (options, groups) = staff.options();
    let office = Office {
        staff,
        // Their descriptors that were closed above must not be closed again, whatever has their numbers by then.
        lanes: ManuallyDrop::new(lanes),
        control,
        master,
        graves: HashMap::new(),
        failed: false,
    };
    let outcome = match Supervisor::new(options, groups, office) {
        Ok(supervisor) => supervisor.run().map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(mut outcome) => {
            let office = &mut outcome.program;
            for worker in office.graves.keys().copied().collect::<Vec<_>>() {
                office.bury(worker, Vec::new());
            }
            office.staff.call("on_manager_stop", |handler, manager| handler.on_manager_stop(manager));
            i32::from(office.failed)
        }
        Err(error) => {
            tracing::error!("manager: {error}");
            1
        }
    }
}

fn enter(shared: &Shared, lanes: &Lanes, control: &Endpoint, master: Pid) -> rustix::io::Result<()> {
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set("swoole: manager");
    swoole_sys::signal::reset_handlers();
    // The supervisor takes them while it runs; this is for before and after it.
    swoole_sys::signal::block(&SignalSet::from(crate::worker::SIGNALS))?;
    swoole_sys::process::die_with_parent(Signal::TERM, master)?;
    swoole_sys::fds::close_all_except(&shared.manager_keep(lanes, control))?;
    shared.board.set_manager(getpid().as_raw_pid());
    Ok(())
}

struct Office<H> {
    staff: Staff<H>,
    lanes: ManuallyDrop<Lanes>,
    /// To the master and from it.
    control: Endpoint,
    master: Pid,
    /// The dead whose estate the reactors have not settled yet, by worker.
    graves: HashMap<u16, Exited>,
    /// A start callback failed.
    failed: bool,
}

impl<H: Handler> Program for Office<H> {
    fn run(&mut self, child: Child) -> i32 {
        // This process is none of the other workers: their memory is not mapped in it and their sockets are closed,
        // so that neither may be put away by their owners here, which stay.
        crate::worker::run(
            &mut self.staff.handler,
            &self.staff.shared,
            &self.lanes[usize::from(child.slot)],
            child,
        )
    }

    fn forking(&mut self, slot: SlotId) {
        self.set_inherited(slot, true);
    }

    fn forked(&mut self, slot: SlotId) {
        self.set_inherited(slot, false);
    }

    fn blocked(&self) -> SignalSet {
        SignalSet::from(crate::worker::SIGNALS)
    }

    fn keep(&self, slot: SlotId) -> Vec<RawFd> {
        self.staff.shared.worker_keep(slot.slot, &self.lanes[usize::from(slot.slot)])
    }

    fn exited(&mut self, exit: &Exited, control: &mut Control) -> Settle {
        let worker = exit.slot.slot;
        self.staff.ended(worker);
        self.graves.insert(worker, *exit);
        self.tell(&News::Died { worker, generation: exit.generation });
        if !control.is_stopping() {
            return Settle::Later;
        }
        // Nobody will take its place, so nothing would wait for the answer.
        let deadline = Instant::now() + BURIAL_WAIT;
        while self.graves.contains_key(&worker) && !self.is_orphan() {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                self.bury(worker, Vec::new());
            } else {
                self.wait_for_order(rest);
                self.take_orders(control);
            }
        }
        Settle::Now
    }

    fn report(&mut self, report: &Report, control: &mut Control) {
        control.watch(self.control.as_fd().as_raw_fd());
        self.staff.watch(control);
        match report {
            Report::Started { slot, generation, pid } => {
                let pid = pid.as_raw_pid();
                let complete = self.staff.started(*slot, *generation, pid);
                self.tell(&News::Forked { worker: slot.slot, generation: *generation, pid });
                if complete {
                    self.tell(&News::AllForked);
                }
            }
            Report::Ready { slot, generation, .. } => {
                self.staff.ready(*slot);
                self.tell(&News::Ready { worker: slot.slot, generation: *generation });
            }
            other => self.staff.tell(other),
        }
    }

    fn signal(&mut self, info: SignalInfo, control: &mut Control) {
        match info.signal {
            Signal::TERM if self.is_orphan() => self.orphaned(control),
            Signal::TERM => self.tell(&News::StopWanted),
            Signal::USR1 => control.reload(Scope::All, None),
            Signal::HUP => crate::log::reopen_or_say(),
            Signal::USR2 => tracing::info!("no task workers to reload"),
            _ => {}
        }
    }

    fn readable(&mut self, fd: RawFd, control: &mut Control) {
        if !self.staff.look(fd, control) {
            self.take_orders(control);
        }
    }
}

impl<H: Handler> Office<H> {
    /// Whether the next process has this worker's rings.
    fn set_inherited(&self, slot: SlotId, inherited: bool) {
        let lanes = &self.lanes[usize::from(slot.slot)];
        if let Err(error) = lanes.iter().try_for_each(|lane| lane.set_inherited(inherited)) {
            tracing::error!("rings of worker {}: {error}", slot.slot);
        }
    }

    fn take_orders(&mut self, control: &mut Control) {
        loop {
            match control::next_order(&self.control) {
                Ok(Some(order)) => self.obey(order, control),
                Ok(None) => return,
                Err(swoole_ipc::Error::PeerGone) => return self.orphaned(control),
                Err(error) => return tracing::error!("control channel: {error}"),
            }
        }
    }

    fn obey(&mut self, order: Order, control: &mut Control) {
        match order {
            Order::Start => match self.staff.handler.on_manager_start(&mut self.staff.context) {
                Ok(()) => self.tell(&News::Started),
                Err(error) => {
                    tracing::error!("on_manager_start: {error}");
                    self.failed = true;
                    control.stop(self.staff.shared.config.max_wait_time);
                    self.tell(&News::StopWanted);
                }
            },
            Order::Reload => control.reload(Scope::All, None),
            Order::Stop { within_ms } => control.stop(Duration::from_millis(within_ms)),
            Order::Buried { worker, in_hand } => {
                self.bury(worker, in_hand);
                control.settled(SlotId { group: WORKERS, slot: worker });
            }
        }
    }

    /// What a dead worker left is settled, or will never be.
    fn bury(&mut self, worker: u16, in_hand: Vec<PacketInHand>) {
        if let Some(exit) = self.graves.remove(&worker) {
            self.staff.bury(&exit, in_hand);
        }
    }

    fn tell(&self, news: &News) {
        if let Err(error) = control::send_news(&self.control, news) {
            tracing::debug!("tell the master {news:?}: {error}");
        }
    }

    fn is_orphan(&self) -> bool {
        getppid() != Some(self.master)
    }

    /// Without the master there are no clients, and nobody who could be told.
    fn orphaned(&mut self, control: &mut Control) {
        control.unwatch(self.control.as_fd().as_raw_fd());
        if !control.is_stopping() {
            tracing::error!("the master (pid {}) is gone: all workers stop", self.master.as_raw_pid());
        }
        control.stop(ORPHAN_WAIT);
    }

    fn wait_for_order(&self, rest: Duration) {
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        // An error ends the wait, which the caller repeats until its deadline.
        let _ = poll(&mut [PollFd::new(&self.control, PollFlags::IN)], Some(&timeout));
    }
}
