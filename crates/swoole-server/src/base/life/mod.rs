//! A worker's life in Base mode, from the fork to the exit.

mod leave;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid};
use swoole_reactor::{Close, Event, Interest, Reactor, Token, Trigger};
use swoole_supervisor::Child;
use swoole_sys::signal::SignalSet;

use self::leave::stop_time;
use super::hands::Hands;
use super::till::Outbox;
use super::{Premises, Stall, Tenure};
use crate::board::{Clients, Counter, Phase};
use crate::desk::{Desk, Heirloom, Replies, Taker as _};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::handler::Handler;
use crate::pace::{Pace, Part, Spin};
use crate::post::{POST_BUDGET, Parcel};
use crate::rest::Rest;
use crate::session::Arrival;
use crate::shared::Shared;
use crate::stop::Leavers;
use crate::wire::RequestKind;
use crate::worker::drain::{self, Cause};
use crate::worker::{Duty, SIGNALS, callbacks, exit_code, introduce};

/// How long a worker may take to leave when the manager is gone: the whole family has to be gone within a second.
const ORPHAN_WAIT: Duration = Duration::from_millis(300);

/// Runs a worker to its end; the exit code.
pub(super) fn run<H: Handler>(
    handler: &mut H,
    shared: &Arc<Shared>,
    premises: &Rc<Premises>,
    stalls: Vec<Stall>,
    mut child: Child,
) -> i32 {
    let id = child.slot;
    introduce(id, shared);
    let life = || -> Result<()> {
        let (mut life, mut reactor) = Life::start(handler, shared, premises, &child)?;
        let reactor = &mut reactor;
        crate::confine::enter(shared)?;
        if !life.wait_for(Phase::Running, reactor)? {
            return Ok(());
        }
        life.callback(reactor, callbacks::start)?;
        if life.duty.shared.board.phase() < Phase::Serving {
            child.ready();
        }
        if life.wait_for(Phase::Serving, reactor)? {
            life.open(reactor, stalls)?;
            // Of one that takes clients over, the manager believes it only now.
            child.ready();
            life.serve(reactor)?;
        }
        match life.why_leave() {
            Leave::Retire => life.retire(reactor),
            Leave::Stop => life.stop(reactor, stop_time(shared)),
            Leave::Orphan => life.stop(reactor, ORPHAN_WAIT),
        }
    };
    exit_code("worker", id, life())
}

/// Why a worker leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leave {
    /// A successor takes its place, and its clients.
    Retire,
    /// The server ends.
    Stop,
    /// The manager is gone.
    Orphan,
}

/// What the user is still called back for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Voice {
    All,
    /// `on_worker_stop` was called: clients that have left, and nothing else.
    Farewells,
    /// Nobody hears of the clients that a stop closes.
    Silent,
}

struct Life<'a, H> {
    handler: &'a mut H,
    duty: Duty,
    premises: Rc<Premises>,
    outbox: Outbox,
    desk: Desk,
    /// Sockets that connections come to, and the number of each among the listeners.
    listeners: Vec<(Token, u16)>,
    /// Those that are removed: accepting for the last time.
    leavers: Leavers,
    /// Connections at one time.
    limit: usize,
    /// Accepting pauses at that limit.
    full: bool,
    /// It pauses also where it would be too fast.
    gate: Gate,
    rest: Rest,
    /// What other processes send; watched as long as there are clients whom it could be for.
    mailbox: Option<Token>,
    /// Room in other processes' boxes.
    room: Token,
    lifeline: Token,
    manager: i32,
    orphan: bool,
    /// Given away, and not yet left.
    heirlooms: Vec<Heirloom>,
    voice: Voice,
    /// No packet is handled any more: what arrives is kept for whoever comes next.
    packing: bool,
}

impl<'a, H: Handler> Life<'a, H> {
    fn start(
        handler: &'a mut H,
        shared: &Arc<Shared>,
        premises: &Rc<Premises>,
        child: &Child,
    ) -> Result<(Life<'a, H>, Reactor)> {
        let id = child.slot;
        let config = &shared.config;
        shared.board.enter(id, child.generation);
        shared
            .protect_from(id)
            .map_err(|error| Error::setup("make what other processes own read-only", error))?;
        // The kernel ends it if it is too busy to notice that it is an orphan.
        if let Some(manager) = Pid::from_raw(shared.board.manager_pid()) {
            swoole_sys::process::outlive_parent(2 * ORPHAN_WAIT, manager, None).map_err(|error| {
                Error::setup("limit the life without a manager (a timer)", std::io::Error::from(error))
            })?;
        }
        let mut reactor = Reactor::new(shared.reactor_options())
            .map_err(|error| Error::setup("make the worker's event loop", error))?;
        let duty = Duty::new(id, child.generation, shared)?;
        let watch = |error| Error::setup("watch the worker's signals and channels", error);
        reactor.signals(&SignalSet::from(SIGNALS)).map_err(watch)?;
        let bell = &shared.bells[usize::from(id)];
        reactor.watch(bell, Interest::READABLE, Trigger::Edge).map_err(watch)?;
        let lifeline = reactor.watch(&shared.lifeline, Interest::READABLE, Trigger::Edge).map_err(watch)?;
        let room =
            reactor.watch(duty.post.sender.room(), Interest::READABLE, Trigger::Level).map_err(watch)?;
        let gate = Gate::new(shared.listening().config(), config.worker_num);
        let mut desk = Desk::new(id, Arc::clone(shared), 1, true);
        desk.tell_departures(gate.visitors());
        let life = Life {
            handler,
            duty,
            premises: Rc::clone(premises),
            outbox: Outbox::default(),
            desk,
            listeners: Vec::new(),
            leavers: Leavers::default(),
            limit: shared.connection_limit.div_ceil(usize::from(config.worker_num)),
            full: false,
            gate,
            rest: Rest::default(),
            mailbox: None,
            room,
            lifeline,
            // Not whoever is the parent now: the manager may be dead already.
            manager: shared.board.manager_pid(),
            orphan: false,
            heirlooms: Vec::new(),
            voice: Voice::All,
            packing: false,
        };
        Ok((life, reactor))
    }

    /// What handles packets, and the desk that they come from.
    fn hands(&mut self) -> (Hands<'_, H>, &mut Desk) {
        let Life { handler, duty, outbox, desk, .. } = self;
        (Hands { handler, duty, outbox }, desk)
    }

    /// False if this worker leaves before the server has come so far.
    fn wait_for(&mut self, phase: Phase, reactor: &mut Reactor) -> Result<bool> {
        loop {
            if self.leaves() {
                return Ok(false);
            }
            if self.duty.shared.board.phase() >= phase {
                return Ok(true);
            }
            self.turn(reactor, None)?;
        }
    }

    /// Takes the last worker's clients over, and begins to accept.
    fn open(&mut self, reactor: &mut Reactor, stalls: Vec<Stall>) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        shared.board.set_clients(self.duty.id, Clients::Own);
        let (heirlooms, mail) = self.premises.estates[usize::from(self.duty.id)].take()?;
        self.duty.post.inherit(mail);
        let mailbox = reactor.watch(self.duty.post.mailbox(), Interest::READABLE, Trigger::Level);
        self.mailbox = Some(mailbox.map_err(|error| Error::setup("watch the worker's box", error))?);
        let (mut hands, desk) = self.hands();
        desk.inherit(reactor, &mut hands, heirlooms);
        let listening = shared.listening();
        for Stall { listener, socket, tenure } in stalls {
            let Some(listen) = listening.address(listener) else { continue };
            let stays = tenure == Tenure::Stays;
            if !listen.address.is_datagram() {
                let failed = |error| Error::setup(format!("accept on {listen}"), error);
                // The manager keeps it, and the worker before this one may have died with it.
                let token = reactor.accept_shared(socket).map_err(failed)?;
                self.listeners.push((token, listener));
                if !stays {
                    self.leavers.begin(reactor, token, shared.config.max_wait_time);
                }
            } else if stays {
                let failed = |error| Error::setup(format!("receive on {listen}"), error);
                self.desk.open_datagrams(reactor, socket, listener).map_err(failed)?;
            }
        }
        self.pause_if_full(reactor);
        Ok(())
    }

    fn serve(&mut self, reactor: &mut Reactor) -> Result<()> {
        let mut spin = Spin::new(self.duty.shared.config.busy_poll);
        let shared = Arc::clone(&self.duty.shared);
        let mut pace = Pace::new(&shared, Part::Alone);
        let id = self.duty.id;
        let mut events = 1;
        while !self.leaves() {
            shared.board.set_busy(id, true);
            if events == 0 {
                let mut failure = Ok(());
                let found = spin.until(&mut pace, || match self.turn(reactor, Some(Duration::ZERO)) {
                    Ok(events) => events > 0,
                    Err(error) => {
                        failure = Err(error);
                        true
                    }
                });
                failure?;
                if !found {
                    self.sleep(reactor)?;
                }
            }
            events = self.turn(reactor, Some(Duration::ZERO))?;
            if events > 0 {
                pace.worked();
            }
        }
        shared.board.set_busy(id, false);
        Ok(())
    }

    /// Waits for work as one that has none. What comes is handled in this turn, so it has some from there on.
    fn sleep(&mut self, reactor: &mut Reactor) -> Result<usize> {
        let (shared, id) = (Arc::clone(&self.duty.shared), self.duty.id);
        shared.board.set_busy(id, false);
        let longest = self.before_wait(None);
        self.desk.time_passes();
        let events = reactor.turn(self.duty.timers.wait(longest), |reactor, event| {
            shared.board.set_busy(id, true);
            self.on_event(reactor, event);
        });
        self.after_turn(reactor, events)
    }

    /// One turn, and what follows from its events.
    fn turn(&mut self, reactor: &mut Reactor, timeout: Option<Duration>) -> Result<usize> {
        let timeout = if timeout == Some(Duration::ZERO) { timeout } else { self.before_wait(timeout) };
        let timeout = self.duty.timers.wait(timeout);
        self.desk.time_passes();
        let events = reactor.turn(timeout, |reactor, event| self.on_event(reactor, event));
        self.after_turn(reactor, events)
    }

    /// It may sleep, for so long: whoever has the result of a task for it has to ring. Not at all if one has come.
    fn before_wait(&self, longest: Option<Duration>) -> Option<Duration> {
        if self.duty.tasks.is_none() {
            return longest;
        }
        self.duty.shared.bells[usize::from(self.duty.id)].arm();
        // After the last callback nobody is told of anything.
        let is_told = self.voice == Voice::All;
        if is_told && self.duty.has_news() { Some(Duration::ZERO) } else { longest }
    }

    fn after_turn(
        &mut self,
        reactor: &mut Reactor,
        events: std::result::Result<usize, swoole_reactor::Error>,
    ) -> Result<usize> {
        let events = events.map_err(|error| Error::setup("wait for work", error))?;
        if self.duty.tasks.is_some() {
            self.duty.shared.bells[usize::from(self.duty.id)].disarm();
        }
        self.tell_crossings(reactor);
        match self.voice {
            Voice::Silent => drop(self.desk.take_departed()),
            _ => self.tell_departed(reactor),
        }
        if self.voice == Voice::All {
            drain::tell_news(&mut Own { life: self, reactor })?;
        }
        Ok(events)
    }

    fn leaves(&self) -> bool {
        self.duty.retiring || self.orphan || self.duty.shared.board.phase() == Phase::Stopping
    }

    fn why_leave(&self) -> Leave {
        match self.duty.shared.board.phase() {
            _ if self.orphan => Leave::Orphan,
            Phase::Stopping => Leave::Stop,
            _ => Leave::Retire,
        }
    }

    fn on_event(&mut self, reactor: &mut Reactor, event: Event<'_>) {
        match event {
            Event::Data { token, bytes } if self.packing => self.desk.keep(token, bytes),
            Event::Data { token, bytes } => {
                let (mut hands, desk) = self.hands();
                desk.received(reactor, &mut hands, token, bytes);
            }
            Event::Eof { token } if self.packing => self.desk.keep_end(token),
            Event::Readable { token } if self.packing => reactor.pause(token),
            Event::Readable { token } => {
                let (mut hands, desk) = self.hands();
                desk.readable(reactor, &mut hands, token);
            }
            Event::Eof { token } => self.desk.ended(reactor, token),
            Event::Sent { token } => self.desk.sent(token),
            Event::Low { token } => self.desk.sunk(reactor, token),
            Event::Datagram { token, peer, bytes, truncated } => {
                let (mut hands, desk) = self.hands();
                desk.datagram(reactor, &mut hands, token, peer, (bytes, truncated));
                // What else waits in the kernel is the successor's.
                if self.duty.retiring && self.duty.has_heir {
                    self.desk.pause_datagrams(reactor);
                }
            }
            Event::Failed { token, error } if self.desk.datagrams_failed(token, &error) => {}
            Event::Failed { token, error } => self.desk.lost(reactor, token, &error),
            Event::Closed { token } => self.closed(reactor, token),
            Event::Detached { token, detached } => {
                self.heirlooms.extend(self.desk.give_away(token, detached))
            }
            Event::Accepted { listener, socket, peer } => self.accepted(reactor, listener, socket, peer),
            Event::AcceptFailed { listener, error } => self.rest.begin(reactor, listener, &error),
            Event::Timer { id } if self.gate.opens(id) => self.accept_again(reactor),
            Event::Timer { id } if self.leavers.owns(id) => {
                if let Some(gone) = self.leavers.end_turn(reactor, id) {
                    self.listeners.retain(|(token, _)| *token != gone);
                    reactor.close(gone, Close::Now);
                }
            }
            Event::Timer { id } => match self.rest.end(id) {
                // Whoever leaves makes room again, or the gate opens.
                Some(_) if self.full || self.gate.is_shut() => {}
                Some(listener) if self.number_of(listener).is_some() => reactor.resume_accept(listener),
                // A stop has closed or paused it.
                Some(_) => {}
                None => self.desk.timer(reactor, id),
            },
            Event::Ready { token, .. } if Some(token) == self.mailbox => self.take_parcels(reactor),
            Event::Ready { token, .. } if token == self.lifeline => self.look_for_manager(),
            Event::Ready { token, .. } if token == self.room => self.duty.post.sender.pump(),
            Event::Signal { info } => match info.signal {
                Signal::TERM => {
                    self.look_for_manager();
                    self.duty.retiring = true;
                }
                Signal::HUP => crate::confine::reopen_log(&self.duty.shared, self.duty.id),
                _ => {}
            },
            _ => {}
        }
    }

    /// Who is asked to leave may be so by the manager, or because it is gone.
    fn look_for_manager(&mut self) {
        let parent = getppid().map_or(0, Pid::as_raw_pid);
        self.orphan |= parent != self.manager || self.duty.shared.lifeline.is_cut();
    }

    fn number_of(&self, listener: Token) -> Option<u16> {
        self.listeners.iter().find(|(token, _)| *token == listener).map(|(_, number)| *number)
    }

    fn accepted(
        &mut self,
        reactor: &mut Reactor,
        listener: Token,
        socket: OwnedFd,
        peer: Option<SocketAddr>,
    ) {
        let Some(number) = self.number_of(listener) else { return };
        self.leavers.heard(listener);
        let listening = self.duty.shared.listening();
        let Some(listen) = listening.address(number) else { return };
        self.rest.accepted();
        if self.gate.shuts(reactor) {
            self.listeners.iter().for_each(|(listener, _)| reactor.pause_accept(*listener));
        }
        let arrival = Arrival::new(listen, number, peer);
        if !self.gate.admits(&arrival) {
            return self.duty.shared.board.count(self.duty.id.into(), Counter::Refused, 1);
        }
        let (mut hands, desk) = self.hands();
        if let Err(error) = desk.adopt(reactor, &mut hands, socket, &arrival) {
            tracing::error!("take a connection on: {error}");
            self.gate.visitors().leave(arrival.listener, arrival.peer);
        }
        self.pause_if_full(reactor);
    }

    fn pause_if_full(&mut self, reactor: &mut Reactor) {
        if self.desk.len() >= self.limit && !std::mem::replace(&mut self.full, true) {
            tracing::warn!(
                "{} connections (max_connection, a worker's share): further ones wait",
                self.limit
            );
            self.listeners.iter().for_each(|(listener, _)| reactor.pause_accept(*listener));
        }
    }

    fn closed(&mut self, reactor: &mut Reactor, token: Token) {
        if self.desk.closed(reactor, token) && self.full && self.desk.len() < self.limit {
            self.full = false;
            self.accept_again(reactor);
        }
    }

    /// One reason not to accept is gone. A stop has no listeners here.
    fn accept_again(&mut self, reactor: &mut Reactor) {
        if !self.full && !self.gate.is_shut() {
            self.listeners.iter().for_each(|(listener, _)| reactor.resume_accept(*listener));
        }
    }

    /// What other processes have sent to clients of this one, and to itself.
    fn take_parcels(&mut self, reactor: &mut Reactor) {
        for _ in 0..POST_BUDGET {
            match self.duty.post.next() {
                None => return,
                // The server stops, and nobody is called back any more.
                Some(Parcel::Message(..)) if self.voice != Voice::All => {}
                Some(Parcel::Message(from, message)) => {
                    let mut life = Own { life: self, reactor };
                    if let Err(error) = drain::tell(&mut life, Cause::Message(from, message)) {
                        tracing::error!("a message from {from}: {error}");
                    }
                }
                Some(parcel) => (Replies { desk: &mut self.desk, reactor }).take(parcel),
            }
        }
    }

    /// Calls `on_buffer_full` and `on_buffer_empty`.
    fn tell_crossings(&mut self, reactor: &mut Reactor) {
        let is_told = self.voice == Voice::All;
        let (mut hands, desk) = self.hands();
        loop {
            let crossings = desk.take_crossings();
            if crossings.is_empty() {
                return;
            }
            for (_, session, kind) in crossings.into_iter().filter(|_| is_told) {
                hands.message(desk, reactor, kind, session, &[]);
            }
            hands.deliver(desk, reactor);
        }
    }

    /// Calls `on_close` for those that have gone.
    fn tell_departed(&mut self, reactor: &mut Reactor) {
        let (mut hands, desk) = self.hands();
        loop {
            let departed = desk.take_departed();
            if departed.is_empty() {
                return;
            }
            for (_, session) in departed {
                hands.message(desk, reactor, RequestKind::Close, session, &[]);
            }
            hands.deliver(desk, reactor);
        }
    }

    /// A callback that belongs to no packet.
    fn callback(
        &mut self,
        reactor: &mut Reactor,
        run: impl FnOnce(&mut H, &mut crate::worker::Worker<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut hands, desk) = self.hands();
        let result = hands.call(desk, reactor, run);
        hands.deliver(desk, reactor);
        result
    }

    /// Turns until `done`, for at most `within`; whether it is.
    fn turn_until(
        &mut self,
        reactor: &mut Reactor,
        within: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + within;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.turn(reactor, Some(left))?;
        }
        Ok(true)
    }
}

/// A worker's life with its reactor.
struct Own<'l, 'a, H> {
    life: &'l mut Life<'a, H>,
    reactor: &'l mut Reactor,
}

impl<H: Handler> drain::Life for Own<'_, '_, H> {
    fn duty(&mut self) -> &mut Duty {
        &mut self.life.duty
    }

    fn call(&mut self, cause: Cause) -> Result<()> {
        self.life.callback(self.reactor, |handler, worker| {
            callbacks::own(handler, worker, cause);
            Ok(())
        })
    }

    fn wait(&mut self, longest: Duration) -> Result<()> {
        self.life.turn(self.reactor, Some(longest)).map(drop)
    }

    fn is_pointless(&self) -> bool {
        false
    }
}
