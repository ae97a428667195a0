//! Deals a reactor's packets to the workers, over the links.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use swoole_protocol::Framer;
use swoole_reactor::Reactor;

use crate::config::{Config, DispatchMode, Ipc};
use crate::datagram::{self, DatagramClient};
use crate::desk::{Client, Crossing, Desk, Fed, Intake, Offer, Replies, Taker, feed};
use crate::dispatch::{Dispatcher, Gauge, Load, Query, Scene, Verdict};
use crate::link::{BATCH_MAX, Parcel, ReactorEnd};
use crate::listening::Listening;
use crate::session::Session;
use crate::shared::Shared;
use crate::wire::RequestKind;

pub(super) struct Dealer {
    pub(super) links: Vec<ReactorEnd>,
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    listening: Arc<Listening>,
    counts_queues: bool,
    /// The links tell how much is in flight to whom.
    shows_load: bool,
    /// Those of the batch at hand.
    packets: Vec<Range<usize>>,
    /// The datagram at hand, behind its sender's address.
    payload: Vec<u8>,
}

/// What became of a packet.
pub(super) enum Dealt {
    Offer(Offer),
    /// It is shed, and its client can be told at once.
    Shed,
}

impl Dealer {
    pub(super) fn new(reactor: u8, shared: Arc<Shared>, links: Vec<ReactorEnd>) -> Dealer {
        let dispatcher = Dispatcher::new(&shared.config, reactor);
        let packets = Vec::with_capacity(BATCH_MAX);
        let listening = shared.listening();
        let counts_queues = false;
        let (shows_load, payload) = (false, Vec::new());
        let mut dealer =
            Dealer { links, dispatcher, shared, listening, counts_queues, shows_load, packets, payload };
        dealer.prepare();
        dealer
    }

    /// There are other addresses from now on.
    pub(super) fn relist(&mut self, listening: Arc<Listening>) {
        self.listening = listening;
        self.prepare();
    }

    /// Has the links tell what somebody wants to know. What was told once is told for good: there is a packet that says so.
    fn prepare(&mut self) {
        let sheds = &self.listening.sheds;
        self.counts_queues = sheds.count_queues();
        let shows_load = self.counts_queues || self.shared.config.dispatch_mode.looks_at_loads();
        if shows_load && !std::mem::replace(&mut self.shows_load, true) {
            for (link, worker) in self.links.iter_mut().zip(0..) {
                link.show_on(Gauge::new(&self.shared.rule.loads, worker));
            }
        }
        if sheds.count_waits() {
            self.links.iter_mut().for_each(ReactorEnd::write_stamps);
        }
    }

    /// Whether all packets of a connection go to one worker, by a ring: then they can be received into it.
    pub(super) fn takes_in(&self) -> bool {
        let Config { dispatch_mode, ipc, .. } = self.shared.config;
        dispatch_mode.is_by_connection() && ipc == Ipc::Ring
    }

    /// Whether this worker serves: it has said so, and has not died since.
    pub(super) fn set_up(&mut self, worker: u16, up: bool) {
        self.dispatcher.set_up(worker, up);
    }

    /// Tells the home that the connection is there; `Err` is the queue to wait in until there is room for that.
    pub(super) fn announce(&mut self, session: Session, home: u16) -> Result<(), usize> {
        let home = usize::from(home);
        if self.links[home].offer(RequestKind::Connect, session, &[]) { Ok(()) } else { Err(home) }
    }

    /// Tells it that the connection is gone.
    pub(super) fn dismiss(&mut self, session: Session, home: u16) {
        self.links[usize::from(home)].enqueue(Parcel::new(RequestKind::Close, session, Vec::new()));
    }

    /// Tells it that too much waits for the connection, or does not any more.
    pub(super) fn tell_crossing(&mut self, (home, session, kind): Crossing) {
        self.links[usize::from(home)].enqueue(Parcel::new(kind, session, Vec::new()));
    }

    pub(super) fn deal(&mut self, client: &Client, packet: &[u8]) -> Dealt {
        if let Some(queue) = self.holds_back(client) {
            return Dealt::Offer(Offer::Blocked(queue));
        }
        let first = match self.verdict(Source::Client(client), packet) {
            Verdict::Worker(worker) => usize::from(worker),
            Verdict::Drop => return Dealt::Offer(Offer::Dropped),
            Verdict::Close => return Dealt::Offer(Offer::Refused),
        };
        // Those that have room, but too many packets; and whether there is one that lacks the room only.
        let (mut crowded, mut is_full) = (None, false);
        for worker in self.candidates(first) {
            if !self.is_candidate(worker) {
                continue;
            }
            if self.queue_room(worker, client.session) == 0 {
                crowded = crowded.or(Some(worker));
            } else if self.links[worker].offer(RequestKind::Packet, client.session, packet) {
                return Dealt::Offer(Offer::Taken);
            } else {
                is_full = true;
            }
        }
        let is_free = self.shared.config.dispatch_mode.is_free();
        let blocked = Offer::Blocked(if is_free { self.links.len() } else { first });
        let Some(worker) = crowded.filter(|_| !is_full) else { return Dealt::Offer(blocked) };
        if client.is_clear {
            return Dealt::Shed;
        }
        let told = self.links[worker].offer(RequestKind::Shed, client.session, &[]);
        Dealt::Offer(if told { Offer::Taken } else { blocked })
    }

    /// How many more packets of this client's the worker may have.
    #[inline]
    fn queue_room(&self, worker: usize, session: Session) -> usize {
        if !self.counts_queues {
            return usize::MAX;
        }
        let Shared { sessions, rule, .. } = &*self.shared;
        self.listening.sheds.of(|| sessions.listener(session)).room(&rule.loads, worker as u16)
    }

    /// Whom to offer a packet to that is for this worker. Where any worker will do, a full link is a reason to choose again.
    fn candidates(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let workers = self.links.len();
        let tries = if self.shared.config.dispatch_mode.is_free() { workers } else { 1 };
        (0..tries).map(move |step| (first + step) % workers)
    }

    /// Whether that one may get it now; the one that a rule has named, in any case.
    fn is_candidate(&self, worker: usize) -> bool {
        !self.shared.config.dispatch_mode.is_free() || self.dispatcher.is_eligible(worker as u16)
    }

    /// Whether its next packet could overtake something: the queue to wait in.
    fn holds_back(&self, client: &Client) -> Option<usize> {
        let Client { session, home, greeted, in_flight, uid, .. } = *client;
        let mode = self.shared.config.dispatch_mode;
        if mode.is_by_connection() {
            return None;
        }
        if !greeted {
            return Some(home.into());
        }
        let was_bound =
            mode == DispatchMode::Uid && in_flight > 0 && uid != self.shared.sessions.uid(session);
        was_bound.then(|| self.dispatcher.of_uid(home, uid).into())
    }

    fn verdict(&mut self, source: Source<'_>, packet: &[u8]) -> Verdict {
        let (session, home, from) = match source {
            Source::Client(client) => (client.session, client.home, None),
            Source::Datagram(from, home) => (Session::of_listener(from.listener), home, Some(from)),
        };
        let Dealer { dispatcher, shared, .. } = self;
        let Shared { config, rule, sessions, board, .. } = &**shared;
        if config.dispatch_mode == DispatchMode::Custom
            && let Some(custom) = &rule.custom
        {
            let scene = Scene {
                sessions,
                board,
                in_flight: &|worker| rule.loads.in_flight(worker),
                serves: &|worker| dispatcher.serves(worker),
                worker_num: config.worker_num,
            };
            return custom.ask((session, from), home, packet, &scene);
        }
        let is_by_user = config.dispatch_mode == DispatchMode::Uid && from.is_none();
        let uid = if is_by_user { sessions.uid(session) } else { 0 };
        Verdict::Worker(dispatcher.choose(Query { home, uid, packet }, |worker| load(shared, worker)))
    }
}

/// Whose packet it is.
enum Source<'a> {
    Client(&'a Client),
    /// Nobody's connection; with the home of such.
    Datagram(&'a DatagramClient, u16),
}

fn load(shared: &Shared, worker: u16) -> Load {
    Load { busy: !shared.board.is_idle(worker), in_flight: shared.rule.loads.in_flight(worker) }
}

impl Taker for Dealer {
    const AT_ONCE: bool = false;

    fn home(&mut self, peer: Option<IpAddr>) -> u16 {
        let Dealer { dispatcher, shared, .. } = self;
        dispatcher.home(peer, |worker| load(shared, worker))
    }

    fn connect(&mut self, _: &mut Desk, _: &mut Reactor, session: Session, home: u16) -> Result<(), usize> {
        self.announce(session, home)
    }

    fn packet(&mut self, desk: &mut Desk, reactor: &mut Reactor, client: &Client, packet: &[u8]) -> Offer {
        match self.deal(client, packet) {
            Dealt::Offer(offer) => offer,
            Dealt::Shed if (Replies { desk, reactor }).shed(client.session) => Offer::Dropped,
            Dealt::Shed => Offer::Refused,
        }
    }

    fn take_in(
        &mut self,
        session: Session,
        home: u16,
        framer: &mut Framer,
        begun: &[u8],
        least: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Option<Intake> {
        if !self.takes_in() {
            return None;
        }
        let home = usize::from(home);
        // Those beyond are offered one by one.
        let most = self.queue_room(home, session).min(BATCH_MAX);
        let link = &mut self.links[home];
        // A packet that hardly fits into a record, or not at all, is put together elsewhere.
        if most == 0 || begun.len() > link.record_max() / 2 {
            return None;
        }
        let Some(space) = link.space(begun.len() + least.max(1)) else {
            let fed = Fed::Blocked(home);
            return Some(Intake { read: None, packets: 0, rest: Vec::new(), fed, cut_short: false });
        };
        space[..begun.len()].copy_from_slice(begun);
        let read = fill(&mut space[begun.len()..]);
        let received = &space[..begun.len() + read];
        self.packets.clear();
        let packets = &mut self.packets;
        let (used, fed) = feed(framer, received, |packet| {
            let start = packet.as_ptr().addr() - received.as_ptr().addr();
            packets.push(start..start + packet.len());
            // What is beyond is offered piece by piece.
            if packets.len() == most { Offer::Last } else { Offer::Taken }
        });
        let rest = received[used..].to_vec();
        link.send_batch(session, packets);
        let (packets, cut_short) = (packets.len(), packets.len() == most);
        Some(Intake { read: Some(read), packets, rest, fed, cut_short })
    }

    fn take_whole(&mut self, session: Session, home: u16, packet: Vec<u8>) -> Result<(), Vec<u8>> {
        if self.queue_room(home.into(), session) == 0 {
            return Err(packet);
        }
        let link = &mut self.links[usize::from(home)];
        if !self.shared.config.dispatch_mode.is_by_connection() || !link.is_clear() {
            return Err(packet);
        }
        link.enqueue(Parcel::new(RequestKind::Packet, session, packet));
        Ok(())
    }

    fn datagram(&mut self, _: &mut Desk, _: &mut Reactor, from: &DatagramClient, bytes: &[u8]) -> bool {
        self.payload.clear();
        datagram::encode(&from.peer, &mut self.payload);
        let home = self.dispatcher.home_of_datagram(from.ip(), &self.payload);
        let first = match self.verdict(Source::Datagram(from, home), bytes) {
            Verdict::Worker(worker) => usize::from(worker),
            Verdict::Drop | Verdict::Close => return false,
        };
        let mut payload = std::mem::take(&mut self.payload);
        payload.extend_from_slice(bytes);
        let listener = Session::of_listener(from.listener);
        let taken = self.candidates(first).any(|worker| {
            self.is_candidate(worker) && self.links[worker].offer(RequestKind::Datagram, listener, &payload)
        });
        self.payload = payload;
        taken
    }

    fn deliver(&mut self, _: &mut Desk, _: &mut Reactor) {}

    fn is_clear(&self, worker: usize) -> bool {
        self.links[worker].is_clear()
    }

    fn is_busy(&self, worker: usize) -> bool {
        self.links[worker].in_flight() > 0
    }
}
