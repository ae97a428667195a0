//! The master process: owns every connection, runs no user logic but the callbacks of start and stop.
//!
//! | file | thread | what |
//! |---|---|---|
//! | `mod` | main | what the server is doing: starting, serving, stopping; accepts and deals connections |
//! | `stop` | main | the end: drain, leave, finish |
//! | `relist` | main | addresses that a reload adds and removes |
//! | `succession` | main | the manager's death, and the manager after it |
//! | `roster` | main | what is known of each worker process |
//! | `custody` | main | what the roster does with processes |
//! | `crew` | main | the reactor threads |
//! | `mailbox` | both | how the main thread and the reactors speak to each other |
//! | `reactor_thread` | reactor | the event loop |
//! | `dealer` | reactor | which worker gets a packet, and over which link |
//!
//! The connections themselves are the affair of [`desk`](crate::desk). A stop is a drain first: nothing new is accepted or read, workers go on as ever (one that dies is replaced) until
//! every packet that came is answered, or most of `max_wait_time` is over. Only then are they asked to leave.

mod crew;
mod custody;
mod dealer;
mod mailbox;
mod reactor_thread;
mod relist;
mod roster;
mod stop;
mod succession;
#[cfg(test)]
mod twin;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use swoole_ipc::socketpair::Endpoint;
use swoole_reactor::{Event, Interest, Reactor, TimerId, Token, Trigger};
use swoole_sys::signal::SignalSet;

use crate::board::Phase;
use crate::config::Listen;
use crate::control::{News, Order, Orders};
use crate::crash::PacketInHand;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::handler::{Handler, Master};
use crate::image::Image;
use crate::listening::Reread;
use crate::rest::Rest;
use crate::session::Arrival;
use crate::shared::{Lanes, Links, Shared};
use crew::Crew;
use mailbox::{Command, Mailbox, Note};
use relist::Relist;
use roster::Roster;
use stop::Closing;
use succession::{Present, Succession};

/// What workers get at least to leave in order, and clients to take what was sent to them, at the end.
const GRACE: Duration = Duration::from_millis(500);
/// How much longer than its workers the manager may take to end.
const MANAGER_MARGIN: Duration = Duration::from_secs(2);

/// Listening sockets and where they listen.
pub(crate) type Listeners = Vec<(OwnedFd, Listen)>;

/// The signals that the master takes as they come.
pub(crate) const SIGNALS: [Signal; 7] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2, Signal::CHILD];

/// Runs the master until the server has stopped.
pub(crate) fn run<H: Handler>(
    handler: H,
    shared: Arc<Shared>,
    (links, lanes, image): (Links, Lanes, Image),
    (listeners, reread): (Listeners, Option<Reread>),
    to_manager: Endpoint,
    manager: Pid,
) -> Result<()> {
    let failed = |error| Error::setup("make the master's event loop", error);
    let mut reactor = Reactor::new(shared.reactor_options()).map_err(failed)?;
    // Before any thread exists: all of them inherit the mask.
    reactor.signals(&SignalSet::from(SIGNALS)).map_err(failed)?;
    let manager = Present::new(&mut reactor, manager, Orders::new(to_manager))?;
    let notes = Mailbox::new(reactor.waker());
    let gate = Gate::new(&shared.config, 1);
    let crew = Crew::start(&shared, &lanes, &notes, &gate.visitors())?;
    let mut office = Office {
        handler,
        context: Master::new(Arc::clone(&shared)),
        roster: Roster::new(shared.config.seats()),
        shared,
        crew,
        notes,
        links,
        succession: Succession::new(image),
        manager: Some(manager),
        writable: None,
        listeners,
        accepting: Vec::new(),
        relist: Relist::new(reread),
        full: false,
        gate,
        held: VecDeque::new(),
        rest: Rest::default(),
        stage: Stage::Starting,
        reload_wanted: false,
        deadline: Instant::now(),
        at_once: false,
        alarm: None,
        closing: None,
        progress: None,
        drained: 0,
        ended: 0,
        failure: None,
    };
    while office.stage != Stage::Ended {
        reactor.turn(None, |reactor, event| office.on_event(reactor, event)).map_err(failed)?;
        office.flush_orders(&mut reactor);
    }
    if !office.crew.join() {
        office.failure.get_or_insert(Error::Start("a reactor thread panicked".into()));
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

/// Where the server is, seen from the main thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    /// Processes begin; nobody is accepted.
    Starting,
    Serving,
    /// Nothing new is taken; workers answer what came.
    Draining,
    /// Workers leave.
    Leaving,
    /// All workers are gone; clients take what was sent.
    Finishing,
    Ended,
}

struct Office<H> {
    handler: H,
    context: Master,
    shared: Arc<Shared>,
    roster: Roster<Reactor>,
    crew: Crew,
    notes: Arc<Mailbox<Note>>,
    /// For managers to come.
    links: Links,
    succession: Succession,
    /// The manager, while it lives.
    manager: Option<Present>,
    /// A watch of its orders, while something waits to be sent.
    writable: Option<Token>,
    /// Not accepting yet.
    listeners: Listeners,
    /// Accepting, and the number of each among the listeners.
    accepting: Vec<(Token, u16)>,
    relist: Relist,
    /// Accepting pauses at `max_connection`.
    full: bool,
    /// It pauses also where it would be too fast.
    gate: Gate,
    /// Accepted beyond `max_connection`: the next to be served.
    held: VecDeque<(OwnedFd, Arrival)>,
    rest: Rest,
    stage: Stage,
    /// Asked for before there was anything to reload.
    reload_wanted: bool,
    /// When a stop has to be over, and whether somebody will not wait for that.
    deadline: Instant,
    at_once: bool,
    /// Ends the present stage of a stop, if nothing else does.
    alarm: Option<TimerId>,
    closing: Option<Closing>,
    /// When to say what a stop waits for.
    progress: Option<TimerId>,
    /// Reactor threads that have nothing left to answer, and those that have ended.
    drained: usize,
    ended: usize,
    failure: Option<Error>,
}

impl<H: Handler> Office<H> {
    fn on_event(&mut self, reactor: &mut Reactor, event: Event<'_>) {
        match event {
            Event::Accepted { listener, socket, peer } => self.accepted(reactor, listener, socket, peer),
            Event::AcceptFailed { listener, error } => self.rest.begin(reactor, listener, &error),
            Event::Ready { token, .. } if self.is_control(token) => self.read_news(reactor),
            Event::Ready { token, .. } if self.is_manager(token) => self.manager_ended(reactor),
            Event::Ready { token, .. } => {
                if let Some(worker) = self.roster.orphan_ended(reactor, token) {
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
            Event::Timer { id } if self.alarm == Some(id) => self.on_alarm(reactor),
            Event::Timer { id } if self.closing.as_ref().is_some_and(|closing| closing.timer == id) => {
                self.end_turn(reactor);
            }
            Event::Timer { id } if self.relist.owns(id) => self.end_turn_of_leaving(reactor, id),
            Event::Timer { id } if self.progress == Some(id) => self.say_progress(reactor),
            Event::Timer { id } if self.succession.owns(id) => self.on_succession_timer(reactor),
            Event::Timer { id } if self.gate.opens(id) => self.accept_again(reactor),
            Event::Timer { id } => {
                if let Some(listener) = self.rest.end(id)
                    && self.may_accept()
                {
                    reactor.resume_accept(listener);
                }
            }
            _ => {}
        }
    }

    fn on_signal(&mut self, reactor: &mut Reactor, signal: Signal) {
        match signal {
            Signal::INT if self.stage >= Stage::Draining => {
                tracing::warn!("asked again to stop: at once");
                self.at_once = true;
                match self.stage {
                    Stage::Draining => self.leave(reactor),
                    Stage::Finishing => self.crew.tell(|| Command::Finish { within: Duration::ZERO }),
                    _ => {
                        self.order(&Order::Stop { within_ms: 0 });
                        self.set_alarm(reactor, GRACE);
                    }
                }
                self.roster.kill_orphans(reactor);
            }
            Signal::TERM | Signal::INT | Signal::QUIT => self.stop(reactor),
            Signal::USR1 if self.stage == Stage::Serving && self.manager.is_some() => self.reload(reactor),
            Signal::USR1 => self.reload_wanted = self.stage <= Stage::Serving,
            Signal::USR2 if self.stage == Stage::Serving && self.manager.is_some() => {
                self.order(&Order::ReloadTaskWorkers);
            }
            Signal::USR2 => {}
            Signal::HUP => {
                crate::log::reopen_or_say();
                if let Some(manager) = &self.manager {
                    let _ = pidfd_send_signal(&manager.process, Signal::HUP);
                }
                self.roster.signal_all(reactor, Signal::HUP);
            }
            Signal::CHILD => self.reap(reactor),
            _ => {}
        }
    }

    fn read_news(&mut self, reactor: &mut Reactor) {
        while let Some(manager) = &self.manager {
            match manager.orders.next_news() {
                Ok(Some(news)) => self.learn(reactor, news),
                Ok(None) => return,
                // It is gone; its pidfd says how.
                Err(_) => return reactor.unwatch(manager.control),
            }
        }
    }

    fn is_control(&self, token: Token) -> bool {
        self.manager.as_ref().is_some_and(|manager| manager.control == token)
    }

    fn is_manager(&self, token: Token) -> bool {
        self.manager.as_ref().is_some_and(|manager| manager.watch == token)
    }

    fn learn(&mut self, reactor: &mut Reactor, news: News) {
        match news {
            News::Forked { worker, generation, pid } => self.roster.forked(reactor, worker, generation, pid),
            News::AllForked if self.stage == Stage::Starting => self.start(reactor),
            News::AllForked => {}
            News::Started => {
                if self.stage == Stage::Starting {
                    self.set_phase(Phase::Running);
                }
                self.manager_serves(reactor);
            }
            News::Ready { worker, .. } => {
                self.roster.ready(worker);
                self.tell_up(worker);
                self.serve_if_ready(reactor);
            }
            News::Died { worker, generation, status } => {
                self.roster.died(worker, generation, status);
                self.settle(worker);
                self.serve_if_ready(reactor);
            }
            News::StopWanted => self.stop(reactor),
            News::ReloadWanted => self.on_signal(reactor, Signal::USR1),
            News::Reloading => self.shared.tls.reload(&self.shared.listening()),
            News::Reloaded { known } => self.reloaded(reactor, known),
        }
    }

    fn read_note(&mut self, reactor: &mut Reactor, note: Note) {
        match note {
            Note::Settled { worker, in_hand } => self.settled(worker, in_hand, self.crew.len()),
            Note::Fault { worker, reason } => {
                tracing::error!("worker {worker} is killed, what it writes cannot be true: {reason}");
                self.roster.signal(reactor, worker, Signal::KILL);
            }
            Note::Room => self.admit(reactor),
            Note::Drained => {
                self.drained += 1;
                self.leave_if_drained(reactor);
            }
            Note::Ended { reactor: id, error } => {
                self.ended += 1;
                if let Some(error) = error {
                    tracing::error!("reactor {id}: {error}");
                    self.failure.get_or_insert(Error::Start(format!("reactor {id}: {error}")));
                    self.stop(reactor);
                    self.leave_if_drained(reactor);
                }
                self.end_if_finished();
            }
        }
    }

    /// A process is dead: the reactors see to what a worker left. They know no task workers.
    fn settle(&mut self, worker: u16) {
        if worker < self.shared.config.worker_num {
            self.crew.tell(|| Command::Settle { worker });
        } else {
            self.settled(worker, Vec::new(), 1);
        }
    }

    /// One more of so many parties has settled what this process left.
    fn settled(&mut self, worker: u16, in_hand: Vec<PacketInHand>, parties: usize) {
        if self.roster.settled(worker, in_hand, parties) {
            self.shared.board.leave(worker);
            self.shared.board.free_lease(worker);
            if self.manager.is_none() {
                self.shared.board.set_worker_pid(worker, 0);
                // Who waits for it to have left sees it now.
                self.shared.wake_workers();
            }
            self.tell_of_end(worker);
        }
    }

    /// The reactors learn that a worker is there.
    fn tell_up(&self, worker: u16) {
        if worker < self.shared.config.worker_num {
            self.crew.tell(|| Command::Up { worker });
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
        for ((socket, listen), number) in std::mem::take(&mut self.listeners).into_iter().zip(0..) {
            if let Err(error) = self.open(reactor, socket, &listen, number) {
                self.failure = Some(error);
                return self.stop(reactor);
            }
        }
        let addresses: Vec<String> = self.shared.listening().addresses().iter().map(Listen::url).collect();
        tracing::info!("Server is ready on {}", addresses.join(", "));
        self.say_error("on_ready", |handler, master| handler.on_ready(master));
        if std::mem::take(&mut self.reload_wanted) {
            self.reload(reactor);
        }
    }

    /// Takes clients in by this socket from now on.
    fn open(&mut self, reactor: &mut Reactor, socket: OwnedFd, listen: &Listen, number: u16) -> Result<()> {
        if listen.address.is_datagram() {
            let owner = self.shared.config.reactor_of_listener(number);
            self.crew.tell_one(owner.into(), Command::Datagrams { socket, listener: number });
            return Ok(());
        }
        let token = reactor
            .accept(socket)
            .map_err(|error| Error::setup(format!("accept on {}", listen.url()), error))?;
        if !self.may_accept() {
            reactor.pause_accept(token);
        }
        self.accepting.push((token, number));
        Ok(())
    }

    fn accepted(
        &mut self,
        reactor: &mut Reactor,
        listener: Token,
        socket: OwnedFd,
        peer: Option<SocketAddr>,
    ) {
        let found = self.accepting.iter().find(|(token, _)| *token == listener);
        let Some(index) = found.map(|(_, number)| *number) else { return };
        match &mut self.closing {
            Some(closing) => closing.heard = true,
            None if self.stage > Stage::Serving => return,
            None => {}
        }
        self.rest.accepted();
        if self.gate.shuts(reactor) {
            self.accepting.iter().for_each(|(listener, _)| reactor.pause_accept(*listener));
        }
        self.relist.heard(listener);
        let listening = self.shared.listening();
        let Some(listen) = listening.address(index) else { return };
        let arrival = Arrival::new(listen, index, peer);
        if !self.gate.admits(&arrival) {
            return self.shared.board.count_refused();
        }
        self.held.push_back((socket, arrival));
        self.admit(reactor);
    }

    /// Deals waiting connections to the reactors. At `max_connection` accepting pauses, and further clients wait in
    /// the kernel's backlog.
    fn admit(&mut self, reactor: &mut Reactor) {
        let limit = self.shared.connection_limit;
        while !self.held.is_empty() {
            if !self.crew.has_room(limit) {
                if !std::mem::replace(&mut self.full, true) {
                    tracing::warn!("{limit} connections (max_connection): further ones wait");
                    self.accepting.iter().for_each(|(listener, _)| reactor.pause_accept(*listener));
                }
                return;
            }
            if let Some((socket, arrival)) = self.held.pop_front() {
                self.crew.deal(Command::Adopt { socket, arrival });
            }
        }
        if std::mem::take(&mut self.full) {
            self.accept_again(reactor);
        }
    }

    fn may_accept(&self) -> bool {
        !self.full && !self.gate.is_shut() && self.stage == Stage::Serving
    }

    /// One reason not to accept is gone.
    fn accept_again(&mut self, reactor: &mut Reactor) {
        if self.may_accept() {
            self.accepting.iter().for_each(|(listener, _)| reactor.resume_accept(*listener));
        }
    }

    /// Moves on all workers that wait for it.
    fn set_phase(&self, phase: Phase) {
        self.shared.board.set_phase(phase);
        self.shared.wake_workers();
    }

    fn order(&mut self, order: &Order) {
        let Some(manager) = &mut self.manager else { return };
        if let Err(error) = manager.orders.send(order) {
            // Its end is noticed by its pidfd.
            tracing::debug!("order the manager to {order:?}: {error}");
        }
    }

    /// Tells the manager that it may replace a worker that is gone, as soon as that is so. While there is no manager, the
    /// next one is told.
    fn tell_of_end(&mut self, worker: u16) {
        if self.manager.is_some()
            && let Some(order) = self.roster.obituary(worker)
        {
            self.order(&order);
        }
    }

    /// Sends what the manager had no room for, when it has.
    fn flush_orders(&mut self, reactor: &mut Reactor) {
        let mut blocked = self.manager.as_mut().filter(|manager| manager.orders.is_blocked());
        if let Some(manager) = &mut blocked {
            let _ = manager.orders.flush();
        }
        let blocked = blocked.filter(|manager| manager.orders.is_blocked());
        match (self.writable, blocked) {
            (None, Some(manager)) => {
                self.writable = reactor.watch(&manager.orders, Interest::WRITABLE, Trigger::Level).ok();
            }
            (Some(token), None) => {
                reactor.unwatch(token);
                self.writable = None;
            }
            _ => {}
        }
    }

    fn say_error(&mut self, name: &str, callback: impl FnOnce(&mut H, &mut Master) -> Result<()>) {
        if let Err(error) = callback(&mut self.handler, &mut self.context) {
            tracing::error!("{name}: {error}");
        }
    }
}
