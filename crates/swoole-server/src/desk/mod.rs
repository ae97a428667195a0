//! A reactor's connections: bytes in, packets to whoever handles them; replies in, bytes out.
//!
//! The same in both modes. Who takes the packets is a [`Taker`]: in Process mode the links to the workers, in Base
//! mode the handler itself. No socket is touched here but through the reactor that is passed in.
//!
//! | file | what |
//! |---|---|
//! | `mod` | connections, and who waits for room |
//! | `intake` | bytes in: where they are read to, and how they get on |
//! | `connection` | one connection, and the cutting of its stream |
//! | `replies` | what is sent to them |
//! | `flow` | whether they are read from, and keep up |
//! | `lobby` | connections that have yet to say for whom they come |
//! | `datagrams` | those who have no connection |
//! | `secrecy` | TLS, where it is spoken |
//! | `topics` | who is subscribed to what |
//! | `departure` | how they end |
//! | `idle`, `patience` | which of them take too long |
//! | `heritage` | how they change hands |

mod connection;
mod datagrams;
mod departure;
mod flow;
mod heritage;
mod idle;
mod intake;
mod lobby;
mod patience;
mod replies;
mod secrecy;
mod topics;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use slab::Slab;
use swoole_protocol::Framer;
use swoole_reactor::{Close, Error as ReactorError, Reactor, TimerId, Token};

pub(crate) use connection::{Client, Fed, Offer, feed};
use connection::{Connection, LINGER};
use datagrams::Datagrams;
pub(crate) use flow::Crossing;
pub(crate) use heritage::Heirloom;
use idle::Watch;
use lobby::Lobby;
pub(crate) use replies::Replies;
use secrecy::Secrecy;
use topics::Topics;

use crate::board::Counter;
use crate::chute::Chute;
use crate::config::DispatchMode;
use crate::datagram::DatagramClient;
use crate::error::{Error, Result};
use crate::gate::Visitors;
use crate::listening::Listening;
use crate::session::{Arrival, Generations, Session};
use crate::shared::Shared;
use crate::tls::Stream;

/// Who takes what clients send.
pub(crate) trait Taker {
    /// Whether a packet is finished when [`packet`](Taker::packet) returns. If not, [`Replies`] hears of it later.
    const AT_ONCE: bool;

    /// The home of a new connection, of a client with this address: the worker that hears of its connect and close.
    fn home(&mut self, peer: Option<IpAddr>) -> u16;

    /// Tells the home that the connection is there; `Err` is the queue to wait in until there is room for that.
    fn connect(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        session: Session,
        home: u16,
    ) -> std::result::Result<(), usize>;

    /// Takes one packet of this client's.
    fn packet(&mut self, desk: &mut Desk, reactor: &mut Reactor, client: &Client, packet: &[u8]) -> Offer;

    /// Takes in at once what `fill` puts into memory of the taker's choice, behind `begun`, the beginning of a packet
    /// that came before; `least` bytes are expected. `None` if it cannot: then packets are offered one by one.
    fn take_in(
        &mut self,
        session: Session,
        home: u16,
        framer: &mut Framer,
        begun: &[u8],
        least: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Option<Intake> {
        let _ = (session, home, framer, begun, least, fill);
        None
    }

    /// Takes a large packet as it is, or gives it back: then it is offered like any other.
    fn take_whole(
        &mut self,
        session: Session,
        home: u16,
        packet: Vec<u8>,
    ) -> std::result::Result<(), Vec<u8>> {
        let _ = (session, home);
        Err(packet)
    }

    /// Takes a datagram; false if there is no room for it, or nobody wants it.
    fn datagram(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        from: &DatagramClient,
        bytes: &[u8],
    ) -> bool;

    /// The packets of one input are taken: what was answered on the spot goes out.
    fn deliver(&mut self, desk: &mut Desk, reactor: &mut Reactor);

    /// Whether nothing waits for room on the way to this worker.
    fn is_clear(&self, worker: usize) -> bool;

    /// Whether it has something that is not finished.
    fn is_busy(&self, worker: usize) -> bool;
}

/// What became of bytes that a [`Taker`] has taken in.
pub(crate) struct Intake {
    /// Bytes that `fill` has put there; `None` if there was no room for it.
    pub(crate) read: Option<usize>,
    pub(crate) packets: usize,
    /// What is no whole packet yet, `begun` included.
    pub(crate) rest: Vec<u8>,
    pub(crate) fed: Fed,
    /// No more were taken, though there may be.
    pub(crate) cut_short: bool,
}

pub(crate) struct Desk {
    id: u16,
    shared: Arc<Shared>,
    listening: Arc<Listening>,
    connections: Slab<Connection>,
    generations: Generations,
    /// Slots by the slot of the reactor's token; believed only if the connection has that very token.
    by_token: Vec<usize>,
    /// Closed connections whose place in `by_token` a new one has taken before they were reported as closed.
    displaced: HashMap<Token, usize>,
    /// Connections that are not read from until there is room, longest wait first: a queue for each worker, and a last
    /// one of those for whom any worker will do.
    waiting: Vec<VecDeque<Session>>,
    /// Closed connections that stand in there still, at most.
    stale: usize,
    lingering: HashMap<TimerId, Session>,
    topics: Topics,
    watch: Watch,
    visitors: Visitors,
    /// Connections that are no sessions yet.
    lobby: Lobby,
    datagrams: Datagrams,
    /// Files that come from workers; `None` where they come from the handler itself.
    chute: Option<Chute>,
    /// Closed, and their home workers not told yet.
    departed: Vec<(u16, Session)>,
    /// Their home workers have not been told yet; and from how many waiting bytes on they are.
    crossings: Vec<Crossing>,
    high: usize,
    /// Closed, while other workers have packets of theirs: their home workers, and how many those are.
    leaving: HashMap<Session, (u16, usize)>,
    /// Connections are read from here, not by the driver.
    reads: bool,
    scratch: Vec<u8>,
    /// What a read has come to after TLS.
    plain: Vec<u8>,
    /// No new packets are taken, but from those whose bytes had to wait before: each is read from for one turn more when
    /// it goes on, since a driver may have taken bytes off the kernel's hands already. This turn's, and the last one's.
    draining: bool,
    glances: Vec<Token>,
    glanced: Vec<Token>,
}

impl Desk {
    /// `queues`: how many there are to wait in for room; any worker will do for those in the last one.
    /// With `reads`, connections are read from by [`readable`](Desk::readable) where the driver reads on demand.
    pub(crate) fn new(id: u16, shared: Arc<Shared>, queues: usize, reads: bool) -> Desk {
        let listening = shared.listening();
        Desk {
            id,
            connections: Slab::new(),
            generations: Generations::default(),
            by_token: Vec::new(),
            displaced: HashMap::new(),
            waiting: (0..queues).map(|_| VecDeque::new()).collect(),
            stale: 0,
            lingering: HashMap::new(),
            topics: Topics::new(shared.config.max_subscription),
            watch: Watch::new(listening.config()),
            visitors: Visitors::default(),
            lobby: Lobby::new(listening.config()),
            datagrams: Datagrams::default(),
            chute: Chute::new(&shared, id),
            departed: Vec::new(),
            crossings: Vec::new(),
            high: shared.config.high_watermark(),
            leaving: HashMap::new(),
            reads,
            scratch: Vec::new(),
            plain: Vec::new(),
            draining: false,
            glances: Vec::new(),
            glanced: Vec::new(),
            listening,
            shared,
        }
    }

    /// From now on it tells who has left.
    pub(crate) fn tell_departures(&mut self, visitors: Visitors) {
        self.visitors = visitors;
    }

    /// There are other addresses from now on. `visitors`: where those are counted who leave, of all that come from now on.
    pub(crate) fn relist(&mut self, reactor: &mut Reactor, listening: Arc<Listening>, visitors: Visitors) {
        self.lobby.set_rules(listening.config());
        self.visitors = visitors;
        self.listening = listening;
        self.watch_anew(reactor);
    }

    /// Where files come from workers, if they do; the caller tells when something has.
    pub(crate) fn chute(&mut self) -> Option<&mut Chute> {
        self.chute.as_mut()
    }

    /// The reactor that it belongs to.
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections, those in the lobby and on their way out included.
    pub(crate) fn len(&self) -> usize {
        self.connections.len() + self.lobby.len()
    }

    /// Whether the session is connected here, and not on its way out.
    pub(crate) fn is_open(&self, session: Session) -> bool {
        self.find(session).is_some()
    }

    /// Takes a new connection on; an error leaves none.
    pub(crate) fn adopt(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        socket: OwnedFd,
        arrival: &Arrival,
    ) -> Result<()> {
        if self.lobby.receives(arrival) {
            return self.receive_guest(reactor, taker, socket, arrival).map_err(Error::other);
        }
        let tls = self.begin_tls(arrival)?;
        let token = reactor.stream(socket).map_err(Error::other)?;
        self.count(Counter::Accepted, 1);
        self.seat(reactor, taker, token, arrival, (tls, Vec::new()));
        Ok(())
    }

    /// Makes a session of a connection, which may have said something already.
    fn seat(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        token: Token,
        arrival: &Arrival,
        (tls, input): (Option<Stream>, Vec<u8>),
    ) {
        let vacancy = self.connections.vacant_entry();
        let slot = vacancy.key();
        let session = self.generations.next(&self.shared.sessions, self.id, slot);
        let home = taker.home(arrival.peer.map(|peer| peer.ip()));
        let framer = self.listening.framings().framer(Some(arrival.listener));
        let mut connection = Connection::new(session, token, home, framer);
        connection.visit = self.visitors.is_on().then(|| Box::new((arrival.listener, arrival.peer)));
        let is_plain = tls.is_none();
        connection.tls = tls.map(|stream| Box::new(Secrecy::new(stream, *arrival)));
        vacancy.insert(connection);
        self.remember(slot);
        if is_plain {
            self.introduce(reactor, slot, arrival);
            self.shared.sessions.received(session, input.len());
        }
        if self.draining || session.is_last() {
            self.close(reactor, slot, Close::Now);
        } else if is_plain {
            self.connections[slot].input = input.into();
            self.resume(reactor, taker, slot);
        } else {
            self.await_handshake(reactor, slot);
            if !input.is_empty() {
                self.decrypt(reactor, taker, slot, &input);
            }
        }
    }

    /// Who it is is known: it is a session from now on.
    fn introduce(&mut self, reactor: &mut Reactor, slot: usize, arrival: &Arrival) {
        self.shared.sessions.open(self.connections[slot].session, arrival);
        if self.listening.delays_receive(arrival.listener) {
            self.pause(reactor, slot);
        }
        self.watch(reactor, slot);
    }

    /// Lets the events of a connection find it.
    fn remember(&mut self, slot: usize) {
        let token = self.connections[slot].token;
        let index = token.slot() as usize;
        if self.by_token.len() <= index {
            self.by_token.resize(index + 1, usize::MAX);
        }
        let before = std::mem::replace(&mut self.by_token[index], slot);
        if let Some(closing) =
            self.connections.get(before).filter(|other| other.token.slot() == token.slot() && before != slot)
        {
            self.displaced.insert(closing.token, before);
        }
    }

    /// Goes on where there was no room, or begins: its home hears of the connection before anybody hears from it.
    fn resume(&mut self, reactor: &mut Reactor, taker: &mut impl Taker, slot: usize) {
        let Connection { announced, home, session, .. } = self.connections[slot];
        if !announced {
            self.connections[slot].announced = true;
            if let Err(queue) = taker.connect(self, reactor, session, home) {
                self.connections[slot].announced = false;
                return self.settle_feed(reactor, slot, Fed::Blocked(queue));
            }
        }
        let mut input = std::mem::take(&mut self.connections[slot].input);
        let (used, fed) = self.cut(reactor, taker, slot, input.bytes());
        if self.connections[slot].closing {
            return;
        }
        input.take(used);
        self.connections[slot].input = input;
        self.settle_feed(reactor, slot, fed);
    }

    /// Cuts packets off the front of `input` and hands them over, as long as there is room.
    fn cut<T: Taker>(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut T,
        slot: usize,
        input: &[u8],
    ) -> (usize, Fed) {
        let connection = &self.connections[slot];
        let (mut framer, client) = (connection.framer.clone(), connection.client());
        let mut packets = 0;
        let result = feed(&mut framer, input, |packet| {
            let client = Client { is_clear: client.is_clear && packets == 0, ..client };
            let offer = taker.packet(self, reactor, &client, packet);
            packets += usize::from(matches!(offer, Offer::Taken | Offer::Last));
            offer
        });
        let connection = &mut self.connections[slot];
        connection.framer = framer;
        connection.in_flight += if T::AT_ONCE { 0 } else { packets };
        connection.cut_off(packets);
        // Nobody else asks who it was.
        if packets > 0 && self.shared.config.dispatch_mode == DispatchMode::Uid {
            connection.uid = self.shared.sessions.uid(client.session);
        }
        self.count(Counter::Packets, packets as u64);
        taker.deliver(self, reactor);
        result
    }

    fn settle_feed(&mut self, reactor: &mut Reactor, slot: usize, fed: Fed) {
        let connection = &mut self.connections[slot];
        match fed {
            Fed::All { missing } if connection.parked => {
                (connection.parked, connection.missing) = (false, missing);
                self.has_cut(reactor, slot);
                let connection = &self.connections[slot];
                if !connection.ended && !connection.paused {
                    let token = connection.token;
                    if self.draining {
                        self.glances.push(token);
                    }
                    if let Err(error) = self.listen(reactor, token) {
                        self.failed(reactor, token, &error);
                    }
                }
            }
            Fed::All { missing } => {
                connection.missing = missing;
                self.has_cut(reactor, slot);
            }
            Fed::Blocked(queue) => {
                connection.parked = true;
                if !connection.is_read(self.draining) {
                    reactor.pause(connection.token);
                } else {
                    // Read from until it says something, so that one which leaves again takes nobody's place.
                    let token = connection.token;
                    if let Err(error) = self.listen(reactor, token) {
                        return self.failed(reactor, token, &error);
                    }
                }
                self.waiting[queue].push_back(self.connections[slot].session);
            }
            Fed::Broken(error) => {
                tracing::warn!(session = %connection.session, "closed, what it sends is no packet: {error}");
                self.close(reactor, slot, Close::Now);
            }
            Fed::Refused => self.close(reactor, slot, Close::AfterSend),
        }
        self.close_if_done(reactor, slot);
    }

    fn listen(&self, reactor: &mut Reactor, token: Token) -> std::result::Result<(), ReactorError> {
        if self.reads { reactor.receive_into(token) } else { reactor.receive(token) }
    }

    /// The way to this worker may have room: who waited for it goes on.
    pub(crate) fn unpark(&mut self, reactor: &mut Reactor, taker: &mut impl Taker, worker: usize) {
        for queue in [worker, self.waiting.len() - 1] {
            while taker.is_clear(worker) {
                let Some(session) = self.waiting[queue].pop_front() else { break };
                let Some(slot) = self.find(session) else { continue };
                let before = self.connections[slot].input.bytes().len();
                self.resume(reactor, taker, slot);
                let connection =
                    self.connections.get(slot).filter(|connection| connection.session == session);
                let Some(connection) = connection else { continue };
                if self.reads && !connection.parked && !connection.paused {
                    // Now, before somebody else takes the room.
                    self.read(reactor, taker, slot);
                }
                let Some(slot) = self.find(session).filter(|slot| self.connections[*slot].parked) else {
                    continue;
                };
                // It has gone to the end of a queue: its turn is over. One that got nothing keeps its place.
                let same = self.connections[slot].input.bytes().len() == before;
                if same && self.waiting[queue].back() == Some(&session) {
                    self.waiting[queue].pop_back();
                    self.waiting[queue].push_front(session);
                }
                break;
            }
        }
    }

    /// Whether every packet that was received is with a worker.
    pub(crate) fn is_drained(&self) -> bool {
        let waits = |session: &Session| {
            self.find(*session).is_some_and(|slot| !self.connections[slot].input.is_empty())
        };
        self.draining && !self.is_glancing() && !self.waiting.iter().flatten().any(waits)
    }

    /// Whether some are read from for this one turn.
    pub(crate) fn is_glancing(&self) -> bool {
        !(self.glances.is_empty() && self.glanced.is_empty())
    }

    /// A turn is over: who had a whole one is not read from any more.
    pub(crate) fn end_glances(&mut self, reactor: &mut Reactor) {
        for token in std::mem::take(&mut self.glanced) {
            if self.slot_of(token).is_some_and(|slot| !self.connections[slot].closing) {
                reactor.pause(token);
            }
        }
        self.glanced = std::mem::take(&mut self.glances);
    }

    fn slot_of(&self, token: Token) -> Option<usize> {
        let slot = *self.by_token.get(token.slot() as usize)?;
        self.connections.get(slot).filter(|connection| connection.token == token).map(|_| slot)
    }

    fn find_any(&self, session: Session) -> Option<usize> {
        let slot = self.shared.sessions.slot(session);
        self.connections.get(slot).filter(|connection| connection.session == session).map(|_| slot)
    }

    /// A connection that is not on its way out, nor on its way in.
    fn find(&self, session: Session) -> Option<usize> {
        self.find_any(session).filter(|&slot| !self.connections[slot].closing && !self.is_handshaking(slot))
    }

    fn count(&self, counter: Counter, more: u64) {
        self.shared.board.count(usize::from(self.id), counter, more);
    }
}

#[cfg(test)]
mod tests;
