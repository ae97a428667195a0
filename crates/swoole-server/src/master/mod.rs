//! The master process: owns every connection, runs no user logic but the callbacks of start and stop.
//!
//! | file | thread | what |
//! |---|---|---|
//! | `mod` | main | what the server is doing: starting, serving, stopping; accepts and deals connections |
//! | `roster` | main | what is known of each worker process |
//! | `mailbox` | both | how the main thread and the reactors speak to each other |
//! | `reactor_thread` | reactor | the event loop |
//! | `desk` | reactor | connections: packets to workers, replies to clients |
//! | `connection` | reactor | one connection, and the cutting of its stream |

mod connection;
mod desk;
mod mailbox;
mod reactor_thread;
mod roster;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use swoole_ipc::socketpair::Endpoint;
use swoole_reactor::listener::Address;
use swoole_reactor::{Close, Event, Interest, Options, Reactor, TimerId, Token, Trigger};
use swoole_sys::signal::SignalSet;

use crate::board::Phase;
use crate::config::Listen;
use crate::control::{self, News, Order};
use crate::error::{Error, Result};
use crate::handler::{Handler, Master, signal};
use crate::session::Arrival;
use crate::shared::{Lanes, Shared};
use mailbox::{Command, Mailbox, Note, Occupancy};
use reactor_thread::Seat;
use roster::Roster;

/// What clients get at least to take what was sent to them, at the end.
const FINISH_MIN: Duration = Duration::from_millis(500);
/// How much longer than its workers the manager may take to end.
const MANAGER_MARGIN: Duration = Duration::from_secs(2);
/// How long accepting pauses when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listening sockets and where they listen.
pub(crate) type Listeners = Vec<(OwnedFd, Listen)>;

/// Runs the master until the server has stopped.
pub(crate) fn run<H: Handler>(
    handler: H,
    shared: Arc<Shared>,
    lanes: &Lanes,
    listeners: Listeners,
    to_manager: Endpoint,
    manager: Pid,
) -> Result<()> {
    let failed = |error| Error::setup("make the master's event loop", error);
    let mut reactor = Reactor::new(reactor_options(&shared)).map_err(failed)?;
    // Before any thread exists: all of them inherit the mask.
    let signals =
        SignalSet::from([Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2]);
    reactor.signals(&signals).map_err(failed)?;
    let control = reactor.watch(&to_manager, Interest::READABLE, Trigger::Level).map_err(failed)?;
    let pidfd = rustix::process::pidfd_open(manager, rustix::process::PidfdFlags::empty())
        .map_err(|error| Error::setup("watch the manager (pidfd_open)", error))?;
    let manager_watch = reactor.watch(&pidfd, Interest::READABLE, Trigger::Level).map_err(failed)?;
    let notes = Mailbox::new(reactor.waker());
    let crowded = Arc::new(AtomicBool::new(false));
    let reactors = start_reactors(&shared, lanes, &notes, &crowded)?;
    let mut office = Office {
        handler,
        context: Master { shared: Arc::clone(&shared) },
        roster: Roster::new(shared.config.worker_num),
        shared,
        reactors,
        notes,
        crowded,
        to_manager,
        control,
        manager,
        manager_watch,
        listeners,
        accepting: Vec::new(),
        full: false,
        held: VecDeque::new(),
        resting: Vec::new(),
        stage: Stage::Starting,
        reload_wanted: false,
        deadline: None,
        ended: 0,
        failure: None,
    };
    while office.stage != Stage::Ended {
        reactor.turn(None, |reactor, event| office.on_event(reactor, event)).map_err(failed)?;
    }
    for reactor in office.reactors.drain(..) {
        if reactor.thread.join().is_err() {
            office.failure.get_or_insert(Error::Start("a reactor thread panicked".into()));
        }
    }
    office.say_error("on_shutdown", |handler, master| handler.on_shutdown(master));
    match office.failure {
        Some(error) => Err(error),
        None => {
            tracing::info!("Server has stopped");
            Ok(())
        }
    }
}

/// How the master's event loops are made; the same for all.
pub(crate) fn reactor_options(shared: &Shared) -> Options {
    Options { backend: shared.config.backend, ..Options::default() }
}

/// Where the server is, seen from the main thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Processes begin; nobody is accepted.
    Starting,
    Serving,
    /// Workers finish what was accepted and leave.
    Stopping,
    /// All workers are gone; clients take what was sent.
    Finishing,
    Ended,
}

struct ReactorHandle {
    mail: Arc<Mailbox<Command>>,
    occupancy: Arc<Occupancy>,
    thread: JoinHandle<()>,
}

struct Office<H> {
    handler: H,
    context: Master,
    shared: Arc<Shared>,
    roster: Roster,
    reactors: Vec<ReactorHandle>,
    notes: Arc<Mailbox<Note>>,
    /// A connection waits for another one to leave.
    crowded: Arc<AtomicBool>,
    to_manager: Endpoint,
    /// The watch of `to_manager`.
    control: Token,
    manager: Pid,
    manager_watch: Token,
    /// Not accepting yet.
    listeners: Listeners,
    /// Accepting, in the order of the configuration.
    accepting: Vec<Token>,
    /// Accepting pauses at `max_connection`.
    full: bool,
    /// Accepted beyond `max_connection`: the next to be served.
    held: VecDeque<(OwnedFd, Arrival)>,
    /// Listeners that pause because accepting failed, until their timer runs out.
    resting: Vec<(TimerId, Token)>,
    stage: Stage,
    /// Asked for before there was anything to reload.
    reload_wanted: bool,
    /// When the stop has to be over, and the timer that says so.
    deadline: Option<(Instant, TimerId)>,
    /// Reactor threads that have ended.
    ended: usize,
    failure: Option<Error>,
}

impl<H: Handler> Office<H> {
    fn on_event(&mut self, reactor: &mut Reactor, event: Event<'_>) {
        match event {
            Event::Accepted { listener, socket, peer } => self.accepted(reactor, listener, socket, peer),
            Event::AcceptFailed { listener, error } => {
                tracing::warn!("accept: {error}; next try in {ACCEPT_PAUSE:?}");
                self.resting.push((reactor.timer(ACCEPT_PAUSE), listener));
            }
            Event::Ready { token, .. } if token == self.control => self.read_news(reactor),
            Event::Ready { token, .. } if token == self.manager_watch => self.manager_ended(reactor),
            Event::Ready { token, .. } => {
                if let Some(worker) = self.roster.orphan_ended(token) {
                    reactor.unwatch(token);
                    self.settle(worker);
                    self.finish_if_alone(reactor);
                }
            }
            Event::Woken => {
                for note in self.notes.collect() {
                    self.read_note(reactor, note);
                }
            }
            Event::Signal { info } => self.on_signal(reactor, info.signal),
            Event::Timer { id } => self.on_timer(reactor, id),
            _ => {}
        }
    }

    fn on_signal(&mut self, reactor: &mut Reactor, signal: Signal) {
        match signal {
            Signal::INT if self.stage == Stage::Stopping => {
                tracing::warn!("asked again to stop: at once");
                self.order(&Order::Stop { within_ms: 0 });
            }
            Signal::TERM | Signal::INT | Signal::QUIT => self.stop(reactor),
            Signal::USR1 if self.stage == Stage::Serving => self.order(&Order::Reload),
            Signal::USR1 => self.reload_wanted = self.stage == Stage::Starting,
            Signal::USR2 => tracing::info!("no task workers to reload"),
            Signal::HUP => self.reopen_logs(),
            _ => {}
        }
    }

    fn on_timer(&mut self, reactor: &mut Reactor, timer: TimerId) {
        if let Some(index) = self.resting.iter().position(|(resting, _)| *resting == timer) {
            let (_, listener) = self.resting.swap_remove(index);
            reactor.resume_accept(listener);
        } else if self.deadline.is_some_and(|(_, deadline)| deadline == timer) {
            let alive = self.roster.kill_orphans();
            if !alive.is_empty() {
                tracing::warn!("workers {alive:?} had not finished after max_wait_time and were killed");
            } else if self.stage == Stage::Stopping {
                tracing::error!("the manager (pid {}) does not end: killed", self.manager.as_raw_pid());
                let _ = kill_process(self.manager, Signal::KILL);
            }
        }
    }

    fn read_news(&mut self, reactor: &mut Reactor) {
        while let Ok(Some(news)) = control::next_news(&self.to_manager) {
            match news {
                News::Forked { worker, generation, pid } => self.roster.forked(worker, generation, pid),
                News::AllForked => self.start(reactor),
                News::Started => {
                    self.shared.board.set_phase(Phase::Running);
                    for bell in &self.shared.bells {
                        if let Err(error) = bell.force() {
                            tracing::error!("let the workers begin: {error}");
                        }
                    }
                }
                News::Ready { worker, .. } => {
                    self.roster.ready(worker);
                    self.tell_all(|| Command::Up { worker });
                    self.serve_if_ready(reactor);
                }
                News::Died { worker, generation } => {
                    self.roster.died(worker, generation);
                    self.settle(worker);
                    self.serve_if_ready(reactor);
                }
                News::StopWanted => self.stop(reactor),
            }
        }
    }

    fn read_note(&mut self, reactor: &mut Reactor, note: Note) {
        match note {
            Note::Settled { worker, lost } => {
                if let Some(lost) = self.roster.settled(worker, lost, self.reactors.len()) {
                    self.shared.board.leave(worker);
                    self.order(&Order::Buried { worker, lost });
                }
            }
            Note::Fault { worker, reason } => {
                let pid = self.shared.board.worker_pid(worker);
                tracing::error!("worker {worker} (pid {pid}) is killed, its link carries nonsense: {reason}");
                if let Err(error) = signal(pid, Signal::KILL) {
                    tracing::debug!("kill worker {worker}: {error}");
                }
            }
            Note::Room => self.admit(reactor),
            Note::Ended { reactor: id, error } => {
                self.ended += 1;
                if let Some(error) = error {
                    tracing::error!("reactor {id}: {error}");
                    self.failure.get_or_insert(Error::Start(format!("reactor {id}: {error}")));
                    self.stop(reactor);
                }
                if self.ended == self.reactors.len() && self.stage == Stage::Finishing {
                    self.stage = Stage::Ended;
                }
            }
        }
    }

    /// All processes of the first generation exist: the first callback.
    fn start(&mut self, reactor: &mut Reactor) {
        match self.handler.on_start(&mut self.context) {
            Ok(()) => self.order(&Order::Start),
            Err(error) => {
                self.failure = Some(Error::Start(format!("on_start: {error}")));
                self.stop(reactor);
            }
        }
    }

    /// Accepts as soon as every worker has started or has failed to.
    fn serve_if_ready(&mut self, reactor: &mut Reactor) {
        if self.stage != Stage::Starting || !self.roster.all_seen() {
            return;
        }
        self.stage = Stage::Serving;
        for (socket, listen) in std::mem::take(&mut self.listeners) {
            match reactor.accept(socket) {
                Ok(token) => self.accepting.push(token),
                Err(error) => {
                    self.failure = Some(Error::setup(format!("accept on {listen}"), error));
                    return self.stop(reactor);
                }
            }
        }
        let addresses: Vec<String> = self.shared.addresses.iter().map(Listen::to_string).collect();
        tracing::info!("Server is ready on {}", addresses.join(", "));
        self.say_error("on_ready", |handler, master| handler.on_ready(master));
        if self.reload_wanted {
            self.order(&Order::Reload);
        }
    }

    fn accepted(
        &mut self,
        reactor: &mut Reactor,
        listener: Token,
        socket: OwnedFd,
        peer: Option<std::net::SocketAddr>,
    ) {
        let Some(index) = self.accepting.iter().position(|token| *token == listener) else { return };
        let port = match self.shared.addresses[index].address {
            Address::Tcp(address) => address.port(),
            _ => 0,
        };
        let connected_at =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let arrival = Arrival { listener: index as u16, port, peer, connected_at };
        self.held.push_back((socket, arrival));
        self.admit(reactor);
    }

    /// Deals waiting connections to the reactors, fewest first. At `max_connection` accepting pauses, and further
    /// clients wait in the kernel's backlog.
    fn admit(&mut self, reactor: &mut Reactor) {
        let limit = self.shared.connection_limit;
        while !self.held.is_empty() {
            let total: usize = self.reactors.iter().map(|reactor| reactor.occupancy.get()).sum();
            if total >= limit {
                // Raised before the second look: who leaves in between sees it, or is seen.
                self.crowded.store(true, Ordering::SeqCst);
                let total: usize = self.reactors.iter().map(|reactor| reactor.occupancy.get()).sum();
                if total >= limit {
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::warn!("{total} connections (max_connection): further ones wait");
                        self.accepting.iter().for_each(|listener| reactor.pause_accept(*listener));
                    }
                    return;
                }
            }
            let Some((socket, arrival)) = self.held.pop_front() else { return };
            let Some(emptiest) = self.reactors.iter().min_by_key(|reactor| reactor.occupancy.get()) else {
                return;
            };
            emptiest.occupancy.enter();
            emptiest.mail.post(Command::Adopt { socket, arrival });
        }
        if std::mem::take(&mut self.full) {
            self.accepting.iter().for_each(|listener| reactor.resume_accept(*listener));
        }
    }

    /// Ends the server in order.
    fn stop(&mut self, reactor: &mut Reactor) {
        if !matches!(self.stage, Stage::Starting | Stage::Serving) {
            return;
        }
        let within = self.shared.config.max_wait_time;
        tracing::info!("Server is stopping (max_wait_time = {within:?})");
        self.say_error("on_before_shutdown", |handler, master| handler.on_before_shutdown(master));
        self.stage = Stage::Stopping;
        self.deadline = Some((Instant::now() + within, reactor.timer(within + MANAGER_MARGIN)));
        self.listeners.clear();
        for listener in self.accepting.drain(..) {
            reactor.close(listener, Close::Now);
        }
        self.held.clear();
        self.shared.board.set_phase(Phase::Stopping);
        self.tell_all(|| Command::Drain);
        self.order(&Order::Stop { within_ms: within.as_millis() as u64 });
    }

    fn manager_ended(&mut self, reactor: &mut Reactor) {
        let status = match waitpid(Some(self.manager), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(status),
            Ok(None) => return,
            Err(_) => None,
        };
        reactor.unwatch(self.manager_watch);
        // What it said before it ended.
        self.read_news(reactor);
        reactor.unwatch(self.control);
        let in_order =
            self.stage == Stage::Stopping && status.is_some_and(|status| status.exit_status() == Some(0));
        if !in_order {
            let how = status.map_or("it was reaped by somebody else".to_owned(), describe);
            let pid = self.manager.as_raw_pid();
            tracing::error!(
                "the manager (pid {pid}) died ({how}): no worker can be replaced, the server stops"
            );
            self.failure.get_or_insert(Error::ManagerDied { pid, how });
            self.stop(reactor);
            // Its own end has asked the workers to finish; those that do not have no other judge now.
            if let Some((deadline, timer)) = self.deadline {
                reactor.cancel(timer);
                let rest = deadline.saturating_duration_since(Instant::now());
                self.deadline = Some((deadline, reactor.timer(rest)));
            }
            self.roster.watch_orphans(reactor);
        }
        self.finish_if_alone(reactor);
    }

    /// When no worker lives any more: clients take what was sent, then the reactors end.
    fn finish_if_alone(&mut self, reactor: &mut Reactor) {
        if self.stage != Stage::Stopping || self.roster.has_orphans() {
            return;
        }
        self.stage = Stage::Finishing;
        let mut within = FINISH_MIN;
        if let Some((deadline, timer)) = self.deadline.take() {
            reactor.cancel(timer);
            within = within.max(deadline.saturating_duration_since(Instant::now()));
        }
        self.tell_all(|| Command::Finish { within });
        if self.ended == self.reactors.len() {
            self.stage = Stage::Ended;
        }
    }

    /// Has every reactor settle what a dead worker left.
    fn settle(&mut self, worker: u16) {
        self.tell_all(|| Command::Settle { worker });
    }

    fn reopen_logs(&self) {
        crate::log::reopen_or_say();
        for pid in [self.manager.as_raw_pid()].into_iter().chain(self.context.worker_pids()) {
            // One that is being replaced opens the log anew by itself.
            let _ = signal(pid, Signal::HUP);
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.reactors.iter().for_each(|reactor| reactor.mail.post(command()));
    }

    fn order(&self, order: &Order) {
        if let Err(error) = control::send_order(&self.to_manager, order) {
            // Its end is noticed by its pidfd.
            tracing::debug!("order the manager to {order:?}: {error}");
        }
    }

    fn say_error(&mut self, name: &str, callback: impl FnOnce(&mut H, &mut Master) -> Result<()>) {
        if let Err(error) = callback(&mut self.handler, &mut self.context) {
            tracing::error!("{name}: {error}");
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown status".into(),
    }
}

fn start_reactors(
    shared: &Arc<Shared>,
    lanes: &Lanes,
    notes: &Arc<Mailbox<Note>>,
    crowded: &Arc<AtomicBool>,
) -> Result<Vec<ReactorHandle>> {
    let framing = shared.config.framing()?;
    let start = |id: u8| {
        let occupancy = Arc::new(Occupancy::default());
        let seat = Seat {
            id,
            shared: Arc::clone(shared),
            framing,
            lanes: lanes.iter().map(|of_worker| Arc::clone(&of_worker[usize::from(id)])).collect(),
            main: Arc::clone(notes),
            occupancy: Arc::clone(&occupancy),
            crowded: Arc::clone(crowded),
        };
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::setup(format!("start reactor thread {id}"), error)
        };
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("reactor {id}"))
            .spawn(move || match Reactor::new(reactor_options(&seat.shared)) {
                Err(error) => drop(sender.send(Err(error))),
                Ok(reactor) => {
                    let mail = Mailbox::new(reactor.waker());
                    let _ = sender.send(Ok(Arc::clone(&mail)));
                    reactor_thread::run(seat, reactor, mail);
                }
            })
            .map_err(|error| failed(error.into()))?;
        let mail =
            receiver.recv().map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))?;
        Ok(ReactorHandle { mail, occupancy, thread })
    };
    (0..shared.config.reactor_num).map(start).collect()
}
