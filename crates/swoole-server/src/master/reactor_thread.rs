//! A reactor thread: the event loop around a [`Desk`] and its links to all workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use swoole_reactor::{Close, Event, Interest, Reactor, TimerId, Token, Trigger};

use super::dealer::Dealer;
use super::mailbox::{Command, Mailbox, Note, Occupancy};
use crate::chute::Chute;
use crate::config::Listen;
use crate::desk::{Desk, Replies};
use crate::error::{Error, Result};
use crate::gate::Visitors;
use crate::link::{Lane, ReactorEnd};
use crate::log::{Identity, Role};
use crate::pace::{Pace, Part, Spin};
use crate::post::{POST_BUDGET, Receiver};
use crate::shared::Shared;

/// How long to sleep at first while packets are with workers, and at most. A worker wakes its reactors once per
/// pass; this bounds what a slow packet can hold up of the replies before it.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(128));

/// What a reactor thread is given.
pub(super) struct Seat {
    pub(super) id: u8,
    pub(super) shared: Arc<Shared>,
    /// Its lane to each worker.
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) main: Arc<Mailbox<Note>>,
    pub(super) occupancy: Arc<Occupancy>,
    pub(super) visitors: Visitors,
    /// Somebody waits for a connection to leave.
    pub(super) crowded: Arc<AtomicBool>,
}

/// Runs a reactor thread to its end.
pub(super) fn run(seat: Seat, reactor: Reactor, mail: Arc<Mailbox<Command>>) {
    crate::log::set_thread_identity(Identity { role: Role::Reactor, id: u32::from(seat.id) });
    seat.shared.placement.pin_reactor(seat.id);
    let (id, main) = (seat.id, Arc::clone(&seat.main));
    let life = || ReactorThread::open(seat, mail).and_then(|mut thread| thread.run(reactor));
    // Its message is out; what matters here is that the main thread hears of it.
    let error = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(result) => result.err().map(|error| error.to_string()),
        Err(_) => Some("it panicked".to_owned()),
    };
    main.post(Note::Ended { reactor: id, error });
}

struct ReactorThread {
    seat: Seat,
    mail: Arc<Mailbox<Command>>,
    /// What processes without a link send to clients, and its watch.
    post: Receiver,
    postbox: Option<Token>,
    /// The watch of the chute.
    chute: Option<Token>,
    desk: Desk,
    dealer: Dealer,
    /// The watch of each link that has a descriptor, unless it carries nonsense, and whether it is readable.
    watches: Vec<Watch>,
    stop: Stop,
}

#[derive(Clone, Copy, Debug)]
enum Watch {
    /// A ring, whose replies come with the doorbell.
    None,
    On {
        token: Token,
        readable: bool,
    },
    /// Nothing is taken from it until its worker is dead and settled.
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    No,
    /// One more turn, for what clients have sent already.
    LastLook,
    /// No new packets are read.
    Draining,
    /// All that was received is answered, and the main thread knows.
    Drained,
    /// All workers are gone; runs out when clients have had their time.
    Finishing(TimerId),
}

impl ReactorThread {
    fn open(seat: Seat, mail: Arc<Mailbox<Command>>) -> Result<ReactorThread> {
        let claim =
            |error| Error::setup(format!("reactor {}: take up the links to the workers", seat.id), error);
        let shared = &seat.shared;
        let links = seat.lanes.iter().zip(0..).map(|(lane, worker): (_, usize)| {
            let (bell, room) = (shared.bells[worker].clone(), shared.rooms[worker].clone());
            ReactorEnd::open(Arc::clone(lane), bell, room, shared.config.socket_buffer_size)
        });
        let links = links.collect::<Result<Vec<_>, _>>().map_err(claim)?;
        let dealer = Dealer::new(seat.id, Arc::clone(shared), links);
        let queues = dealer.links.len() + 1;
        Ok(ReactorThread {
            // A queue for each worker, and one of those for whom any will do.
            desk: Desk::new(seat.id.into(), Arc::clone(shared), queues, dealer.takes_in()),
            mail,
            post: Receiver::new(shared, shared.config.box_of_reactor(seat.id.into())),
            postbox: None,
            chute: None,
            watches: vec![Watch::None; dealer.links.len()],
            dealer,
            stop: Stop::No,
            seat,
        })
    }

    fn run(&mut self, mut reactor: Reactor) -> Result<()> {
        let shared = Arc::clone(&self.seat.shared);
        let bell = &shared.reactor_bells[usize::from(self.seat.id)];
        let failed = |error| Error::setup("run a reactor thread", error);
        reactor.watch(bell, Interest::READABLE, Trigger::Edge).map_err(failed)?;
        let postbox = reactor.watch(self.post.descriptor(), Interest::READABLE, Trigger::Level);
        self.postbox = Some(postbox.map_err(failed)?);
        self.desk.tell_departures(self.seat.visitors.clone());
        if let Some(chute) = self.desk.chute() {
            let watch = reactor.watch(chute.descriptor(), Interest::READABLE, Trigger::Edge);
            self.chute = Some(watch.map_err(failed)?);
        }
        for worker in 0..self.dealer.links.len() {
            self.watch_link(&mut reactor, worker).map_err(failed)?;
        }
        let mut pace = Pace::new(&shared, Part::Reactor(self.seat.id));
        let spin = || Spin::new(shared.config.busy_poll);
        let (mut for_replies, mut for_clients) = (spin(), spin());
        let mut patience = PATIENCE.0;
        loop {
            let worked = self.take_replies(&mut reactor);
            self.hand_over();
            if matches!(self.stop, Stop::Finishing(_)) && self.desk.is_empty() {
                return Ok(());
            }
            let waiting = self.dealer.links.iter().any(|link| link.in_flight() > 0);
            let answered = || self.dealer.links.iter().all(|link| link.packets() == 0);
            if self.stop == Stop::Draining && answered() && self.desk.is_drained() {
                self.stop = Stop::Drained;
                self.seat.main.post(Note::Drained);
            }
            let mut timeout = waiting.then_some(patience);
            let last_look = self.stop == Stop::LastLook;
            if worked || last_look || self.desk.is_glancing() {
                (timeout, patience) = (Some(Duration::ZERO), PATIENCE.0);
            } else if waiting && !for_replies.is_always() {
                if for_replies.until(&mut pace, || self.has_replies()) {
                    continue;
                }
            } else if self.look_busily(&mut reactor, &mut for_clients, &mut pace)? {
                patience = PATIENCE.0;
                continue;
            }
            if timeout != Some(Duration::ZERO) {
                bell.arm();
                if self.has_replies() {
                    timeout = Some(Duration::ZERO);
                }
            }
            self.desk.time_passes();
            let events =
                reactor.turn(timeout, |reactor, event| self.on_event(reactor, event)).map_err(failed)?;
            bell.disarm();
            if worked || events > 0 {
                pace.worked();
            }
            self.desk.end_glances(&mut reactor);
            if last_look && self.stop == Stop::LastLook && !self.desk.has_datagrams(&reactor) {
                self.stop = Stop::Draining;
                self.desk.pause_datagrams(&mut reactor);
                self.desk.drain(&mut reactor);
            }
            if events == 0 {
                patience = (patience * 2).min(PATIENCE.1);
            }
        }
    }

    /// Looks for replies and for clients for a moment; whether there was something.
    fn look_busily(&mut self, reactor: &mut Reactor, spin: &mut Spin, pace: &mut Pace) -> Result<bool> {
        let mut failure = None;
        let found = spin.until(pace, || {
            self.desk.time_passes();
            let turn = reactor.turn(Some(Duration::ZERO), |reactor, event| self.on_event(reactor, event));
            let events = turn.unwrap_or_else(|error| {
                failure = Some(Error::setup("run a reactor thread", error));
                1
            });
            events > 0 || self.has_replies()
        });
        failure.map_or(Ok(found), Err)
    }

    fn watch_link(&mut self, reactor: &mut Reactor, worker: usize) -> Result<(), swoole_reactor::Error> {
        self.watches[worker] = match self.seat.lanes[worker].reactor_fd() {
            Some(fd) => {
                Watch::On { token: reactor.watch(fd, Interest::READABLE, Trigger::Level)?, readable: true }
            }
            None => Watch::None,
        };
        Ok(())
    }

    fn has_replies(&self) -> bool {
        self.dealer.links.iter().any(ReactorEnd::has_replies)
    }

    /// Delivers what the workers have committed; true if there was anything.
    fn take_replies(&mut self, reactor: &mut Reactor) -> bool {
        let mut worked = false;
        for worker in 0..self.dealer.links.len() {
            let ready = match &mut self.watches[worker] {
                Watch::None => true,
                Watch::On { readable, .. } => std::mem::take(readable),
                Watch::Off => false,
            };
            if !ready && !self.dealer.links[worker].is_broken() {
                continue;
            }
            match self.dealer.links[worker].drain(&mut Replies { desk: &mut self.desk, reactor }) {
                Ok(false) => {}
                Ok(true) => {
                    worked = true;
                    self.desk.unpark(reactor, &mut self.dealer, worker);
                }
                Err(fault) => {
                    if let Watch::On { token, .. } = std::mem::replace(&mut self.watches[worker], Watch::Off)
                    {
                        reactor.unwatch(token);
                    }
                    self.seat.main.post(Note::Fault { worker: worker as u16, reason: fault.to_string() });
                }
            }
        }
        worked
    }

    /// Makes visible to the workers what this pass has for them.
    fn hand_over(&mut self) {
        for crossing in self.desk.take_crossings() {
            self.dealer.tell_crossing(crossing);
        }
        for (home, session) in self.desk.take_departed() {
            self.dealer.dismiss(session, home);
        }
        self.dealer.links.iter_mut().for_each(ReactorEnd::flush);
    }

    fn on_event(&mut self, reactor: &mut Reactor, event: Event<'_>) {
        match event {
            Event::Data { token, bytes } => self.desk.received(reactor, &mut self.dealer, token, bytes),
            Event::Readable { token } => self.desk.readable(reactor, &mut self.dealer, token),
            Event::Eof { token } => self.desk.ended(reactor, token),
            Event::Sent { token } => self.desk.sent(token),
            Event::Low { token } => self.desk.sunk(reactor, token),
            Event::Datagram { token, peer, bytes, truncated } => {
                self.desk.datagram(reactor, &mut self.dealer, token, peer, (bytes, truncated));
            }
            Event::Failed { token, error } if self.desk.datagrams_failed(token, &error) => {}
            Event::Failed { token, error } => self.desk.lost(reactor, token, &error),
            Event::Closed { token } if self.desk.closed(reactor, token) => self.left(),
            Event::Timer { id } if self.stop == Stop::Finishing(id) => {
                self.desk.close_all(reactor, Close::Reset)
            }
            Event::Timer { id } => self.desk.timer(reactor, id),
            Event::Ready { token, .. } if Some(token) == self.chute => {
                self.desk.chute().into_iter().for_each(Chute::take_eagerly)
            }
            Event::Ready { token, .. } if Some(token) == self.postbox => _ = self.take_parcels(reactor),
            Event::Ready { token, .. } => {
                for watch in &mut self.watches {
                    if let Watch::On { token: its, readable } = watch
                        && *its == token
                    {
                        *readable = true;
                    }
                }
            }
            Event::Woken => {
                for command in self.mail.collect() {
                    self.obey(reactor, command);
                }
            }
            _ => {}
        }
    }

    /// Sends what has come by post, some of it; whether there may be more.
    fn take_parcels(&mut self, reactor: &mut Reactor) -> bool {
        for _ in 0..POST_BUDGET {
            let Some(parcel) = self.post.next() else { return false };
            Replies { desk: &mut self.desk, reactor }.take(parcel);
        }
        true
    }

    /// A connection is gone: one that waits can come.
    fn left(&self) {
        self.seat.occupancy.leave();
        if self.seat.crowded.swap(false, Ordering::SeqCst) {
            self.seat.main.post(Note::Room);
        }
    }

    fn obey(&mut self, reactor: &mut Reactor, command: Command) {
        match command {
            Command::Adopt { socket, arrival } => {
                if let Err(error) = self.desk.adopt(reactor, &mut self.dealer, socket, &arrival) {
                    tracing::error!("take a connection on: {error}");
                    self.seat.visitors.leave(arrival.listener, arrival.peer);
                    self.left();
                }
            }
            Command::Datagrams { socket, listener } => {
                if let Err(error) = self.desk.open_datagrams(reactor, socket, listener) {
                    let listening = self.seat.shared.listening();
                    let listen = listening.address(listener).map(Listen::url).unwrap_or_default();
                    tracing::error!("receive on {listen}: {error}");
                }
            }
            Command::CloseDatagrams { listener } => self.desk.close_datagrams(reactor, listener),
            Command::Relist { listening, visitors } => {
                self.seat.visitors = visitors.clone();
                self.dealer.relist(Arc::clone(&listening));
                self.desk.relist(reactor, listening, visitors);
            }
            Command::Up { worker } => self.dealer.set_up(worker, true),
            Command::Settle { worker } => self.settle(reactor, worker),
            Command::Drain if self.stop == Stop::No => {
                self.stop = Stop::LastLook;
                self.desk.bound_datagrams(reactor);
            }
            Command::Drain => {}
            Command::Finish { within } => self.finish(reactor, within),
        }
    }

    fn settle(&mut self, reactor: &mut Reactor, worker: u16) {
        let index = usize::from(worker);
        self.dealer.set_up(worker, false);
        let started = self.seat.shared.board.started(worker, usize::from(self.seat.id));
        let link = &mut self.dealer.links[index];
        let (sessions, listening) = (&self.seat.shared.sessions, self.seat.shared.listening());
        let policy = |session| listening.crash_policies.of(|| sessions.listener(session));
        let casualties = link.settle(started, policy, &mut Replies { desk: &mut self.desk, reactor });
        self.desk.forget_files(worker);
        let in_hand = casualties.iter().filter_map(|casualty| self.desk.mourn(reactor, casualty)).collect();
        if matches!(self.watches[index], Watch::Off)
            && let Err(error) = self.watch_link(reactor, index)
        {
            tracing::error!("watch the link to worker {worker} again: {error}");
        }
        self.desk.unpark(reactor, &mut self.dealer, index);
        self.seat.main.post(Note::Settled { worker, in_hand });
    }

    /// All workers are gone: what they have left unanswered is told, and clients take what was sent.
    fn finish(&mut self, reactor: &mut Reactor, within: Duration) {
        if let Stop::Finishing(before) = self.stop {
            reactor.cancel(before);
        } else {
            let unanswered: usize = self.dealer.links.iter().map(ReactorEnd::packets).sum();
            if unanswered > 0 {
                self.desk.abandon(unanswered);
            }
            // Whoever could send is gone.
            while self.take_parcels(reactor) {}
            self.desk.close_all(reactor, Close::AfterSend);
        }
        self.stop = Stop::Finishing(reactor.timer(within));
    }
}
