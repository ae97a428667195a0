//! The manager process: forks workers, reaps them, replaces them, reloads them, stops them. Nothing else.
//!
//! The policy is `swoole-supervisor`'s; this file connects it with the user's callbacks and with the master.
//! When a worker dies the master hears of it, every reactor settles what the worker left, and only then may its
//! successor be forked: two processes never hold the same links.
//!
//! When the manager itself dies, workers go on, as children of the master; that executes the program once more to have
//! another one ([`take_over`]), which keeps the workers that it finds. How those end, it hears from the master.

mod recycle;
mod staff;
mod stuck;
mod timer;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getpid, getppid};
use swoole_supervisor::{
    Adopted, Child, Control, ExitStatus, Exited, Program, Report, Scope, Settle, SlotId, Supervisor,
};
use swoole_sys::signal::{SignalInfo, SignalSet};

use swoole_ipc::socketpair::Endpoint;

use crate::charter::Charter;
use crate::control::{self, News, Order};
use crate::crash::PacketInHand;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::log::{Identity, Role};
use crate::process::Processes;
use crate::shared::{Links, Shared};
pub(crate) use staff::{Staff, TASK_WORKERS, USER_PROCESSES, WORKERS, seat_of, slot_of};
pub(crate) use timer::Timer;

/// How long orphans may take to finish: the whole family has to be gone within a second.
const ORPHAN_WAIT: Duration = Duration::from_millis(300);
/// How long clients' reactors may take to take what the manager has sent at last.
const POST_WAIT: Duration = Duration::from_millis(100);
/// How long the master may take to say what a worker left, when nobody waits for the successor.
const BURIAL_WAIT: Duration = Duration::from_secs(1);

/// Runs the manager that the master has forked to its end; the exit code.
pub(crate) fn run<H: Handler>(
    handler: H,
    shared: Arc<Shared>,
    links: Links,
    control: Endpoint,
    master: Pid,
) -> i32 {
    crate::log::set_identity(Identity { role: Role::Manager, id: 0 });
    // The order to start has it call the user back when all workers are there.
    let life = || {
        enter(&shared, &links, &control, master, &[])?;
        serve(Office::new(handler, shared, links, control, master)?, Vec::new())
    };
    exit_code(life())
}

/// Runs the manager of a server whose last one has died, in a process that its master has executed for that and given this
/// channel; the exit code. `keep`: descriptors that the program wants in every process; `processes`: what it has its user
/// processes do.
pub(crate) fn take_over<H: Handler>(
    handler: H,
    keep: Vec<RawFd>,
    processes: Processes,
    channel: OwnedFd,
) -> i32 {
    crate::log::set_identity(Identity { role: Role::Manager, id: 0 });
    let life = || {
        let Charter { mut shared, links, control, master, adopted } = Charter::accept(channel, keep)?;
        shared.processes = processes;
        let shared = Arc::new(shared);
        crate::log::init(shared.config.log_level, shared.config.log_file.as_deref())
            .map_err(|error| Error::setup("open the log", error))?;
        shared.processes.check_against(&shared.config.user_processes)?;
        enter(&shared, &links, &control, master, &adopted)?;
        let mut office = Office::new(handler, shared, links, control, master)?;
        office.staff.take_over()?;
        let gone = adopted.iter().filter(|adopted| adopted.pidfd.is_none());
        let seat = |adopted: &Adopted| seat_of(adopted.slot, &office.staff.shared.config);
        office.vanished = gone.map(|adopted| (seat(adopted), adopted.generation)).collect();
        office.reload_wanted = office.staff.shared.board.is_reloading();
        office
            .staff
            .handler
            .on_manager_start(&mut office.staff.context)
            .map_err(|error| Error::Start(format!("on_manager_start: {error}")))?;
        office.tell(&News::Started);
        serve(office, adopted)
    };
    exit_code(life())
}

/// Whether the manager could do its work; else the log says why not.
fn exit_code(life: Result<bool>) -> i32 {
    match life {
        Ok(good) => i32::from(!good),
        Err(error) => {
            tracing::error!("manager: {error}");
            1
        }
    }
}

/// The first things that a manager does.
fn enter(shared: &Shared, links: &Links, control: &Endpoint, master: Pid, adopted: &[Adopted]) -> Result<()> {
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set("swoole: manager");
    let enter = || {
        swoole_sys::signal::reset_handlers();
        // The supervisor takes them while it runs; this is for before and after it.
        swoole_sys::signal::block(&SignalSet::from(crate::worker::SIGNALS))?;
        swoole_sys::process::die_with_parent(Signal::TERM, master)?;
        let processes = adopted.iter().filter_map(|adopted| adopted.pidfd.as_ref()).map(OwnedFd::as_raw_fd);
        let keep: Vec<RawFd> = shared.manager_keep(links, control).into_iter().chain(processes).collect();
        swoole_sys::fds::close_all_except(&keep)
    };
    enter()
        .map_err(|errno: rustix::io::Errno| Error::setup("start the manager", std::io::Error::from(errno)))?;
    shared.board.set_manager(getpid().as_raw_pid());
    Ok(())
}

/// Keeps workers until the master says stop; false if a callback has made the server stop.
fn serve<H: Handler>(office: Office<H>, adopted: Vec<Adopted>) -> Result<bool> {
    let (options, groups) = office.staff.options();
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::setup("supervise workers", error);
    let supervisor = Supervisor::new(options, groups, office).map_err(|error| failed(error.into()))?;
    let outcome = supervisor.adopt(adopted).run().map_err(|error| failed(error.into()))?;
    let mut office = outcome.program;
    for worker in office.graves.keys().copied().collect::<Vec<_>>() {
        office.bury(worker, Vec::new());
    }
    office.staff.shared.tasks.end();
    office.staff.call("on_manager_stop", |handler, manager| handler.on_manager_stop(manager));
    office.staff.context.post().finish(POST_WAIT);
    Ok(!office.failed)
}

struct Office<H> {
    staff: Staff<H>,
    /// Their descriptors that were closed at the start must not be closed again, whatever has their numbers by then.
    links: ManuallyDrop<Links>,
    /// To the master and from it.
    control: Endpoint,
    master: Pid,
    /// Since how many deaths of managers this one reigns.
    reign: u64,
    /// The processes that an earlier manager has forked and that are gone, but of which the master has not told yet: each
    /// by its seat, with its generation.
    vanished: HashMap<u16, u32>,
    /// What those of which it has told had in hand, until they are buried.
    estates: HashMap<u16, Vec<PacketInHand>>,
    /// The dead whose estate the reactors have not settled yet, by seat.
    graves: HashMap<u16, Exited>,
    /// The last manager was at a reload.
    reload_wanted: bool,
    /// Addresses that there were when the last reload began.
    known: u16,
    /// A start callback failed.
    failed: bool,
}

impl<H: Handler> Program for Office<H> {
    fn run(&mut self, child: Child) -> i32 {
        if child.group == TASK_WORKERS {
            return crate::task::run(&mut self.staff.handler, &self.staff.shared, Some(self.reign), child);
        }
        if child.group == USER_PROCESSES {
            return crate::process::run(&self.staff.shared, Some(self.reign), child);
        }
        // This process is none of the other workers: their sockets are closed, so that none may be put away by its
        // owner here, which stays.
        let links = self.links.open_own(child.slot);
        crate::worker::run(&mut self.staff.handler, &self.staff.shared, links, self.reign, child)
    }

    fn blocked(&self) -> SignalSet {
        SignalSet::from(crate::worker::SIGNALS)
    }

    fn keep(&self, slot: SlotId) -> Vec<RawFd> {
        if slot.group == TASK_WORKERS {
            return self.staff.shared.task_worker_keep(self.seat(slot));
        }
        if slot.group == USER_PROCESSES {
            return self.staff.shared.user_process_keep(slot.slot);
        }
        [self.staff.shared.worker_keep(slot.slot), self.links.keep(slot.slot)].concat()
    }

    fn exited(&mut self, exit: &Exited, control: &mut Control) -> Settle {
        let worker = self.seat(exit.slot);
        self.staff.ended(worker);
        self.graves.insert(worker, *exit);
        if let Some(in_hand) = self.estates.remove(&worker) {
            self.bury(worker, in_hand);
            return Settle::Now;
        }
        self.tell(&News::Died { worker, generation: exit.generation, status: exit.status });
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

    fn retires(&mut self, slot: SlotId) {
        self.staff.retires(slot);
    }

    fn report(&mut self, report: &Report, control: &mut Control) {
        control.watch(self.control.as_fd().as_raw_fd());
        self.staff.watch(control);
        if std::mem::take(&mut self.reload_wanted) {
            control.reload(Scope::All, None);
        }
        match report {
            Report::Adopted { .. } => {}
            Report::Started { slot, generation, pid } => {
                let pid = pid.as_raw_pid();
                let complete = self.staff.started(*slot, *generation, pid);
                self.tell(&News::Forked { worker: self.seat(*slot), generation: *generation, pid });
                if complete {
                    self.tell(&News::AllForked);
                }
            }
            Report::Ready { slot, generation, .. } => {
                self.staff.ready(*slot);
                self.tell(&News::Ready { worker: self.seat(*slot), generation: *generation });
            }
            other => {
                match other {
                    Report::ReloadBegun { groups, .. } if groups.contains(&WORKERS) => {
                        self.known = self.staff.shared.listening().addresses().len() as u16;
                        self.tell(&News::Reloading);
                    }
                    Report::ReloadEnded { groups, .. } if groups.contains(&WORKERS) => {
                        self.tell(&News::Reloaded { known: self.known });
                    }
                    _ => {}
                }
                self.staff.tell(other);
            }
        }
    }

    fn vanished(&mut self, slot: SlotId, generation: u32, control: &mut Control) {
        if self.is_orphan() {
            control.ended(slot, generation, ExitStatus::Unknown);
        } else {
            // Its parent is the master, which tells.
            self.vanished.insert(self.seat(slot), generation);
        }
    }

    fn signal(&mut self, info: SignalInfo, control: &mut Control) {
        self.hear(info.signal, control);
    }

    fn readable(&mut self, fd: RawFd, control: &mut Control) {
        if !self.staff.look(fd, control) {
            self.take_orders(control);
        }
        for signal in self.staff.requests(fd, control) {
            self.hear(signal, control);
        }
    }
}

impl<H: Handler> Office<H> {
    fn new(
        handler: H,
        shared: Arc<Shared>,
        links: Links,
        control: Endpoint,
        master: Pid,
    ) -> Result<Office<H>> {
        let reign = shared.board.reign();
        Ok(Office {
            staff: Staff::new(handler, shared)?,
            links: ManuallyDrop::new(links),
            control,
            master,
            reign,
            vanished: HashMap::new(),
            estates: HashMap::new(),
            graves: HashMap::new(),
            reload_wanted: false,
            known: 0,
            failed: false,
        })
    }

    /// What a signal asks for, or a worker in its place.
    fn hear(&mut self, signal: Signal, control: &mut Control) {
        match signal {
            Signal::TERM if self.is_orphan() => self.orphaned(control),
            Signal::TERM => self.tell(&News::StopWanted),
            // It may have other addresses first.
            Signal::USR1 => self.tell(&News::ReloadWanted),
            Signal::HUP => crate::log::reopen_or_say(),
            Signal::USR2 => self.staff.reload_task_workers(control),
            _ => {}
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
            Order::Address(address) => {
                let (wanted, found) = *address;
                let shared = &self.staff.shared;
                shared.set_listening(Arc::new(shared.listening().with(wanted, found)));
            }
            Order::ReloadTaskWorkers => self.staff.reload_task_workers(control),
            Order::HoldTurns => control.hold_turns(),
            Order::Stop { within_ms } => control.stop(Duration::from_millis(within_ms)),
            Order::Buried { worker, in_hand } => {
                self.bury(worker, in_hand);
                control.settled(self.slot(worker));
            }
            Order::Ended { worker, generation, status, in_hand } => {
                self.vanished.remove(&worker);
                self.estates.insert(worker, in_hand);
                control.ended(self.slot(worker), generation, status);
            }
        }
    }

    fn seat(&self, slot: SlotId) -> u16 {
        seat_of(slot, &self.staff.shared.config)
    }

    fn slot(&self, seat: u16) -> SlotId {
        slot_of(seat, &self.staff.shared.config)
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
        for (worker, generation) in std::mem::take(&mut self.vanished) {
            control.ended(self.slot(worker), generation, ExitStatus::Unknown);
        }
        control.stop(ORPHAN_WAIT);
    }

    fn wait_for_order(&self, rest: Duration) {
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        // An error ends the wait, which the caller repeats until its deadline.
        let _ = poll(&mut [PollFd::new(&self.control, PollFlags::IN)], Some(&timeout));
    }
}
