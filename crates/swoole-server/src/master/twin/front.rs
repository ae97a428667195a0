//! A reactor thread, one micro-step at a time: the real dealer, and in place of the desk and its sockets the least that
//! does the same with clients which are vectors of bytes.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use swoole_protocol::{Cut, Framer};

use super::super::dealer::Dealer;
use super::super::mailbox::Command;
use super::ledger::{CLOSE, Item, Ledger, Name};
use super::process::Held;
use super::tally::{Breach, Kind, breach};
use crate::config::LengthFuncs;
use crate::crash::{CrashPolicy, Fate, PacketInHand};
use crate::desk::{Offer, Taker as _, feed};
use crate::link::{Casualty, Lane, Parcel, ReactorEnd, ReplySink, Sent};
use crate::session::{Arrival, Generations, Session};
use crate::shared::Shared;
use crate::wire::RequestKind;

/// Connections of one reactor. So few that places have many tenants.
pub(super) const SLOTS: usize = 4;

const ARRIVAL: Arrival = Arrival { listener: 0, port: 0, peer: None, connected_at: 0 };

struct Connection {
    session: Session,
    client: u32,
    home: u16,
    framer: Framer,
    announced: bool,
    /// Sent by the client and not read yet; read, and not taken by a worker.
    socket: Vec<u8>,
    input: Vec<u8>,
    in_flight: usize,
}

/// What there is of a desk.
struct Counter {
    id: u16,
    shared: Arc<Shared>,
    connections: [Option<Connection>; SLOTS],
    generations: Generations,
    departed: Vec<(u16, Session)>,
}

pub(super) struct Front {
    counter: Counter,
    dealer: Dealer,
    policy: CrashPolicy,
    pub(super) mail: VecDeque<Command>,
}

/// Takes what comes from a link.
struct Sink<'a> {
    counter: &'a mut Counter,
    ledger: &'a mut Ledger,
    wrong: Option<Breach>,
}

impl Sink<'_> {
    fn find(&mut self, session: Session) -> Option<usize> {
        let sessions = &self.counter.shared.sessions;
        if sessions.reactor(session) != self.counter.id {
            let what = format!("reactor {} gets something for {session:?}", self.counter.id);
            self.wrong.get_or_insert(Breach { kind: Kind::Misdelivered, what });
            return None;
        }
        self.counter.find(session)
    }

    fn bytes(&mut self, session: Session, bytes: &[u8]) {
        if let Some(slot) = self.find(session)
            && let Some(connection) = &self.counter.connections[slot]
        {
            self.ledger.deliver(connection.client, bytes);
        }
    }
}

impl ReplySink for Sink<'_> {
    fn send(&mut self, session: Session, parts: &[IoSlice<'_>]) {
        parts.iter().for_each(|part| self.bytes(session, part));
    }

    fn send_owned(&mut self, session: Session, bytes: Vec<u8>) {
        self.bytes(session, &bytes);
    }

    fn close(&mut self, session: Session) {
        let what = format!("{session:?} is to be closed, which nobody asked for");
        self.wrong.get_or_insert(Breach { kind: Kind::Misdelivered, what });
    }

    fn finished(&mut self, sent: &Sent, count: u32) {
        if !matches!(sent.kind, RequestKind::Packet | RequestKind::Batch) || !sent.last {
            return;
        }
        let Some(slot) = self.find(sent.session) else { return };
        let Some(connection) = &mut self.counter.connections[slot] else { return };
        match connection.in_flight.checked_sub(count as usize) {
            Some(rest) => connection.in_flight = rest,
            None => {
                let what = format!("{} of {count} packets are finished", connection.in_flight);
                self.wrong.get_or_insert(Breach { kind: Kind::Duplicated, what });
            }
        }
    }
}

impl Counter {
    fn find(&self, session: Session) -> Option<usize> {
        let slot = self.shared.sessions.slot(session);
        let is_its = |connection: &Connection| connection.session == session;
        self.connections.get(slot)?.as_ref().is_some_and(is_its).then_some(slot)
    }

    fn close(&mut self, slot: usize, ledger: &mut Ledger) {
        let Some(connection) = self.connections[slot].take() else { return };
        self.shared.sessions.close(connection.session);
        if connection.announced {
            self.departed.push((connection.home, connection.session));
        }
        ledger.closed(connection.client, connection.announced);
    }
}

impl Front {
    pub(super) fn open(
        id: u8,
        shared: &Arc<Shared>,
        lanes: &[Vec<Arc<Lane>>],
        policy: CrashPolicy,
    ) -> Result<Front, swoole_ipc::Error> {
        let link = |(worker, lanes): (usize, &Vec<Arc<Lane>>)| {
            let (bell, room) = (shared.bells[worker].clone(), shared.rooms[worker].clone());
            ReactorEnd::open(Arc::clone(&lanes[usize::from(id)]), bell, room, 1 << 20)
        };
        let links = lanes.iter().enumerate().map(link).collect::<Result<_, _>>()?;
        let counter = Counter {
            id: id.into(),
            shared: Arc::clone(shared),
            connections: Default::default(),
            generations: Generations::default(),
            departed: Vec::new(),
        };
        let dealer = Dealer::new(id, Arc::clone(shared), links);
        Ok(Front { counter, dealer, policy, mail: VecDeque::new() })
    }

    /// A client connects, if there is a place for one.
    pub(super) fn connect(&mut self, greeting: Item, ledger: &mut Ledger) -> Result<(), Breach> {
        let Counter { id, shared, connections, generations, .. } = &mut self.counter;
        let Some(slot) = connections.iter().position(Option::is_none) else { return Ok(()) };
        let session = generations.next(&shared.sessions, *id, slot);
        let client = ledger.connect(session, greeting)?;
        shared.sessions.open(session, &ARRIVAL);
        let framings = shared.config.framings(&LengthFuncs::new());
        let framings = framings.map_err(|error| Breach { kind: Kind::Fault, what: error.to_string() })?;
        connections[slot] = Some(Connection {
            session,
            client,
            home: self.dealer.home(),
            framer: framings.framer(Some(ARRIVAL.listener)),
            announced: false,
            socket: Vec::new(),
            input: Vec::new(),
            in_flight: 0,
        });
        Ok(())
    }

    /// Who is connected in this slot, and what it sends to.
    pub(super) fn client(&mut self, slot: usize) -> Option<(u32, &mut Vec<u8>)> {
        self.counter.connections[slot].as_mut().map(|connection| (connection.client, &mut connection.socket))
    }

    pub(super) fn leave(&mut self, slot: usize, ledger: &mut Ledger) {
        self.counter.close(slot, ledger);
    }

    /// Reads up to `most` bytes from a connection and gets them on their way, straight into a ring if it can and `copy`
    /// is not wanted. True if anything went on.
    pub(super) fn read(
        &mut self,
        slot: usize,
        most: usize,
        copy: bool,
        ledger: &mut Ledger,
    ) -> Result<bool, Breach> {
        let Front { dealer, counter, .. } = self;
        let Some(connection) = &mut counter.connections[slot] else { return Ok(false) };
        let Connection { session, client, home, framer, socket, input, in_flight, announced } = connection;
        let announces = !*announced;
        if announces {
            if dealer.announce(*session, *home).is_err() {
                return Ok(false);
            }
            *announced = true;
            ledger.dealt(*client, 1);
        }
        let least = socket.len().min(most);
        let mut fill = |space: &mut [u8]| {
            let len = socket.len().min(space.len()).min(most);
            space[..len].copy_from_slice(&socket[..len]);
            socket.drain(..len);
            len
        };
        let broken =
            |error: &dyn std::fmt::Debug| breach(Kind::Torn, format!("a stream of packets: {error:?}"));
        if !copy && let Some(intake) = dealer.take_in(*session, *home, framer, input, 1, &mut fill) {
            if let crate::desk::Fed::Broken(error) = intake.fed {
                return broken(&error);
            }
            *in_flight += intake.packets;
            ledger.dealt(*client, intake.packets);
            if intake.read.is_some() {
                *input = intake.rest;
            }
            return Ok(announces || intake.packets > 0 || intake.read.is_some_and(|read| read > 0));
        }
        let before = input.len();
        input.resize(before + least, 0);
        let read = fill(&mut input[before..]);
        let whole = Cut::Packet { len: input.len(), payload: 0..input.len() };
        if !input.is_empty() && most.is_multiple_of(2) && framer.clone().cut(input) == Ok(whole) {
            match dealer.take_whole(*session, *home, std::mem::take(input)) {
                Ok(()) => {
                    *in_flight += 1;
                    ledger.dealt(*client, 1);
                    return Ok(true);
                }
                Err(packet) => *input = packet,
            }
        }
        let mut packets = 0;
        let (used, fed) = feed(framer, input, |packet| {
            let offer = dealer.deal(*session, *home, packet);
            packets += usize::from(offer == Offer::Taken);
            offer
        });
        if let crate::desk::Fed::Broken(error) = fed {
            return broken(&error);
        }
        input.drain(..used);
        *in_flight += packets;
        ledger.dealt(*client, packets);
        Ok(announces || read > 0 || packets > 0)
    }

    /// Takes what this worker has committed; true if anything came.
    pub(super) fn drain(&mut self, worker: usize, ledger: &mut Ledger) -> Result<bool, Breach> {
        let mut sink = Sink { counter: &mut self.counter, ledger, wrong: None };
        let came = self.dealer.links[worker].drain(&mut sink);
        sink.wrong.map_or(Ok(()), Err)?;
        ledger.check_received()?;
        came.map_err(|fault| Breach { kind: Kind::Fault, what: format!("worker {worker}: {fault}") })
    }

    /// Makes visible to the workers what there is for them; true if there may be something.
    pub(super) fn hand_over(&mut self) -> bool {
        let departed = std::mem::take(&mut self.counter.departed);
        let some = !departed.is_empty();
        for (home, session) in departed {
            let close = Parcel::new(RequestKind::Close, session, Vec::new());
            self.dealer.links[usize::from(home)].enqueue(close);
        }
        self.dealer.links.iter_mut().for_each(ReactorEnd::flush);
        some
    }

    pub(super) fn up(&mut self, worker: u16) {
        self.dealer.set_up(worker, true);
    }

    /// The worker is dead and reaped, and had this in hand.
    pub(super) fn settle(
        &mut self,
        worker: u16,
        held: Option<Held>,
        expected: impl Fn(u32) -> Fate,
        ledger: &mut Ledger,
    ) -> Result<Vec<PacketInHand>, Breach> {
        let Front { counter, dealer, policy, .. } = self;
        dealer.set_up(worker, false);
        let started = counter.shared.board.started(worker, counter.id.into());
        let mut sink = Sink { counter, ledger, wrong: None };
        let casualties = dealer.links[usize::from(worker)].settle(started, |_| *policy, &mut sink);
        sink.wrong.map_or(Ok(()), Err)?;
        ledger.check_received()?;
        let held = held.filter(|held| held.reactor == usize::from(counter.id));
        let (casualty, held) = match (&casualties[..], held) {
            ([], None) => return Ok(Vec::new()),
            ([casualty], Some(held)) => (casualty, held),
            _ => return breach(Kind::Casualty, format!("{casualties:?}, and in hand was {held:?}")),
        };
        let item = ledger.item(held.name);
        let fate = expected(item.deaths);
        let Casualty { session, size, attempt, .. } = *casualty;
        if (session, size, attempt, casualty.fate) != (held.session, item.size, item.deaths, fate) {
            return breach(
                Kind::Casualty,
                format!("{casualty:?}, and in hand was {held:?}: {item:?}, {fate:?}"),
            );
        }
        ledger.lost(held.name, fate);
        let packet = casualty.packet();
        let slot = counter.find(session).filter(|_| casualty.kind != RequestKind::Close);
        match (fate, slot) {
            (Fate::Closed | Fate::Poison, Some(slot)) => counter.close(slot, ledger),
            (Fate::Dropped, Some(slot)) if packet.is_some() => {
                let connection = counter.connections[slot].as_mut();
                if let Some(connection) = connection {
                    connection.in_flight -= 1;
                }
            }
            _ => {}
        }
        let is_named = packet.is_some() == !matches!(held.name, Name { number: 0 | CLOSE, .. });
        if is_named {
            Ok(packet.into_iter().collect())
        } else {
            breach(Kind::Casualty, format!("{casualty:?}"))
        }
    }

    /// Packets that workers have not finished.
    pub(super) fn packets(&self) -> usize {
        self.dealer.links.iter().map(ReactorEnd::packets).sum()
    }

    /// All is done: nothing may be left in the books.
    pub(super) fn check_empty(&self) -> Result<(), Breach> {
        for (worker, link) in self.dealer.links.iter().enumerate() {
            let (in_flight, packets) = (link.in_flight(), link.packets());
            if in_flight > 0 || packets > 0 || !link.is_clear() {
                let what = format!("the link to {worker} holds {in_flight} messages, {packets} packets");
                return breach(Kind::Leak, what);
            }
        }
        let busy = self.counter.connections.iter().flatten().find(|connection| connection.in_flight > 0);
        busy.map_or(Ok(()), |connection| {
            breach(Kind::Leak, format!("{} of {:?} under way", connection.in_flight, connection.session))
        })
    }

    /// Messages and packets in flight to each worker, whether none waits, and commands that wait.
    pub(super) fn describe(&self) -> String {
        let link = |link: &ReactorEnd| (link.in_flight(), link.packets(), link.is_clear());
        let links: Vec<_> = self.dealer.links.iter().map(link).collect();
        format!("{links:?}, {:?}", self.mail)
    }

    /// Closes what is still open, of which nobody hears any more.
    pub(super) fn end(&mut self) {
        for connection in self.counter.connections.iter_mut().filter_map(Option::take) {
            self.counter.shared.sessions.close(connection.session);
        }
    }
}
