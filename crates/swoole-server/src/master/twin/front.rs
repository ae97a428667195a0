//! A reactor thread, one micro-step at a time: the real dealer, and in place of the desk and its sockets the least that
//! does the same with clients which are vectors of bytes.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::sync::Arc;

use swoole_protocol::{Cut, Framer};

use super::super::dealer::{Dealer, Dealt};
use super::super::mailbox::Command;
use super::ledger::{CLOSE, Item, Ledger, Name};
use super::process::Held;
use super::tally::{Breach, Kind, breach};
use crate::config::LengthFuncs;
use crate::crash::{CrashPolicy, Fate, PacketInHand};
use crate::desk::{Client, Fed, Offer, Taker as _, feed};
use crate::link::{Casualty, Lane, ReactorEnd, ReplySink, Sent};
use crate::measure::Measure;
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
    greeted: bool,
    uid: u64,
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
    /// Closed, and their packets are not finished: their homes, and how many those are.
    leaving: HashMap<Session, (u16, usize)>,
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

    fn order(&mut self, order: &[u8]) {
        let what = format!("an order that nobody gave: {order:?}");
        self.wrong.get_or_insert(Breach { kind: Kind::Misdelivered, what });
    }

    fn bind(&mut self, session: Session, uid: u64) {
        if self.find(session).is_some() {
            self.counter.shared.sessions.bind(session, uid);
        }
    }

    fn measure(&mut self, session: Session, measure: Measure) {
        let what = format!("{measure:?} of {session:?}, which nobody asked for");
        self.wrong.get_or_insert(Breach { kind: Kind::Misdelivered, what });
    }

    fn datagram(&mut self, listener: Session, piece: &[u8]) {
        let what = format!("a datagram that nobody sent: {listener:?}, {} bytes", piece.len());
        self.wrong.get_or_insert(Breach { kind: Kind::Misdelivered, what });
    }

    fn finished(&mut self, sent: &Sent, count: u32) {
        if sent.kind == RequestKind::Connect {
            return self.counter.greeted(sent.session);
        }
        if !matches!(sent.kind, RequestKind::Packet | RequestKind::Batch) || !sent.last {
            return;
        }
        // It is checked whose it is.
        let _ = self.find(sent.session);
        if let Err(breach) = self.counter.finished(sent.session, count as usize) {
            self.wrong.get_or_insert(breach);
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
        let Connection { session, home, in_flight, announced, .. } = connection;
        self.shared.sessions.close(session);
        if announced && in_flight > 0 && self.shared.config.scatters() {
            self.leaving.insert(session, (home, in_flight));
        } else if announced {
            self.departed.push((home, session));
        }
        ledger.closed(connection.client, connection.announced);
    }
}

impl Counter {
    fn greeted(&mut self, session: Session) {
        let connection = self.find(session).and_then(|slot| self.connections[slot].as_mut());
        connection.into_iter().for_each(|connection| connection.greeted = true);
    }

    /// Workers are done with so many packets, or have died on them.
    fn finished(&mut self, session: Session, count: usize) -> Result<(), Breach> {
        let slot = self.find(session);
        let in_flight = match slot.and_then(|slot| self.connections[slot].as_mut()) {
            Some(connection) => &mut connection.in_flight,
            None => match self.leaving.get_mut(&session) {
                Some((_, in_flight)) => in_flight,
                None => return Ok(()),
            },
        };
        let Some(rest) = in_flight.checked_sub(count) else {
            return breach(Kind::Duplicated, format!("{in_flight} of {count} packets are finished"));
        };
        *in_flight = rest;
        if slot.is_none()
            && rest == 0
            && let Some((home, _)) = self.leaving.remove(&session)
        {
            self.departed.push((home, session));
        }
        Ok(())
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
            leaving: HashMap::new(),
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
        let peer = Ipv4Addr::from_bits(client / 2).into();
        let framings = shared.config.framings(&LengthFuncs::new());
        let framings = framings.map_err(|error| Breach { kind: Kind::Fault, what: error.to_string() })?;
        connections[slot] = Some(Connection {
            session,
            client,
            home: self.dealer.home(Some(peer)),
            framer: framings.framer(Some(ARRIVAL.listener)),
            announced: false,
            greeted: false,
            uid: 0,
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
        let Connection { session, client, home, framer, announced, greeted, uid, socket, input, in_flight } =
            connection;
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
            if let Fed::Broken(error) = intake.fed {
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
        let (greeted, in_flight_now) = (*greeted, *in_flight);
        let it = Client {
            session: *session,
            home: *home,
            greeted,
            in_flight: in_flight_now,
            uid: *uid,
            is_clear: greeted && in_flight_now == 0,
        };
        let (used, fed) = feed(framer, input, |packet| {
            // No schedule sets a limit to queues.
            let Dealt::Offer(offer) = dealer.deal(&it, packet) else { return Offer::Refused };
            match offer {
                Offer::Taken => {
                    packets += 1;
                    ledger.dealt(*client, 1);
                }
                Offer::Dropped => ledger.passed_over(*client),
                _ => {}
            }
            offer
        });
        input.drain(..used);
        *in_flight += packets;
        if packets > 0 {
            *uid = counter.shared.sessions.uid(*session);
        }
        match fed {
            Fed::Broken(error) => return broken(&error),
            Fed::Refused => counter.close(slot, ledger),
            Fed::All { .. } | Fed::Blocked(_) => {}
        }
        Ok(announces || read > 0 || packets > 0 || used > 0)
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
            self.dealer.dismiss(session, home);
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
        if fate != Fate::Retried && casualty.kind != RequestKind::Close {
            if casualty.kind == RequestKind::Connect {
                counter.greeted(session);
            }
            if fate != Fate::Dropped
                && let Some(slot) = counter.find(session)
            {
                counter.close(slot, ledger);
            }
            if packet.is_some() {
                counter.finished(session, 1)?;
            }
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
        if !self.counter.leaving.is_empty() {
            return breach(Kind::Leak, format!("some never leave: {:?}", self.counter.leaving));
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
