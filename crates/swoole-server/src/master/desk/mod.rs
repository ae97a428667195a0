//! A reactor's connections: bytes in, packets to workers; replies in, bytes out.
//!
//! No socket is touched here but through the reactor that is passed in.

mod departure;
mod replies;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rustix::fd::OwnedFd;
use slab::Slab;
use swoole_protocol::Framing;
use swoole_reactor::{Close, Error as ReactorError, Reactor, TimerId, Token};

use super::connection::{Connection, Fed, feed};
use crate::board::Counter;
use crate::config::DispatchMode;
use crate::dispatch::{Dispatcher, Load};
use crate::link::ReactorEnd;
use crate::session::{Arrival, GENERATION_MAX, Session};
use crate::shared::Shared;
use crate::wire::RequestKind;
pub(super) use replies::Replies;

pub(super) struct Desk {
    id: u8,
    shared: Arc<Shared>,
    framing: Framing,
    connections: Slab<Connection>,
    /// The generation of each slot's last tenant.
    generations: Vec<u64>,
    /// Slots by the slot of the reactor's token; believed only if the connection has that very token.
    by_token: Vec<usize>,
    /// Closed connections whose place in `by_token` a new one has taken before they were reported as closed.
    displaced: HashMap<Token, usize>,
    dispatcher: Dispatcher,
    /// Connections that are not read from until there is room, longest wait first: a queue for each worker, and a last
    /// one of those for whom any worker will do.
    waiting: Vec<VecDeque<Session>>,
    /// Closed connections that stand in there still, at most.
    stale: usize,
    lingering: HashMap<TimerId, Session>,
    /// Closed, and their home workers not told yet.
    departed: Vec<(u16, Session)>,
    /// No new packets are taken, but from those whose bytes had to wait before: each is read from for one turn more when
    /// it goes on, since a driver may have taken bytes off the kernel's hands already. This turn's, and the last one's.
    draining: bool,
    glances: Vec<Token>,
    glanced: Vec<Token>,
}

impl Desk {
    pub(super) fn new(id: u8, shared: Arc<Shared>, framing: Framing) -> Desk {
        let workers = shared.config.worker_num;
        Desk {
            id,
            framing,
            connections: Slab::new(),
            generations: Vec::new(),
            by_token: Vec::new(),
            displaced: HashMap::new(),
            dispatcher: Dispatcher::new(shared.config.dispatch_mode, workers, id),
            waiting: (0..=workers).map(|_| VecDeque::new()).collect(),
            stale: 0,
            lingering: HashMap::new(),
            departed: Vec::new(),
            draining: false,
            glances: Vec::new(),
            glanced: Vec::new(),
            shared,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub(super) fn set_up(&mut self, worker: u16, up: bool) {
        self.dispatcher.set_up(worker, up);
    }

    /// Takes a new connection on; an error leaves none.
    pub(super) fn adopt(
        &mut self,
        reactor: &mut Reactor,
        links: &mut [ReactorEnd],
        socket: OwnedFd,
        arrival: &Arrival,
    ) -> Result<(), ReactorError> {
        if arrival.peer.is_some() && self.shared.config.open_tcp_nodelay {
            // A connection that is reset already refuses; reading from it will say so.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        }
        let token = reactor.stream(socket)?;
        let vacancy = self.connections.vacant_entry();
        let slot = vacancy.key();
        if self.generations.len() <= slot {
            self.generations.resize(slot + 1, 0);
        }
        self.generations[slot] = (self.generations[slot] + 1).min(GENERATION_MAX);
        let session = Session::new(self.id, slot as u32, self.generations[slot]);
        let home = self.dispatcher.home();
        vacancy.insert(Connection {
            session,
            token,
            home,
            framer: self.framing.framer(self.shared.config.package_max_length),
            input: Vec::new(),
            in_flight: 0,
            announced: false,
            parked: true,
            ended: false,
            closing: false,
            linger: None,
        });
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
        self.shared.sessions.open(session, arrival);
        self.count(Counter::Accepted, 1);
        if self.draining || self.generations[slot] == GENERATION_MAX {
            self.close(reactor, slot, Close::Now);
        } else {
            self.resume(reactor, links, slot);
        }
        Ok(())
    }

    /// Bytes from a client.
    pub(super) fn received(
        &mut self,
        reactor: &mut Reactor,
        links: &mut [ReactorEnd],
        token: Token,
        bytes: &[u8],
    ) {
        let Some(slot) = self.slot_of(token) else { return };
        let connection = &mut self.connections[slot];
        if connection.closing {
            return;
        }
        self.shared.sessions.count(connection.session, bytes.len(), 0);
        self.shared.board.count(usize::from(self.id), Counter::Received, bytes.len() as u64);
        if !connection.input.is_empty() || connection.parked {
            connection.input.extend_from_slice(bytes);
            if connection.parked {
                reactor.pause(token);
            } else {
                self.resume(reactor, links, slot);
            }
            return;
        }
        let (used, fed) = self.cut(links, slot, bytes);
        self.connections[slot].input.extend_from_slice(&bytes[used..]);
        self.settle_feed(reactor, slot, fed);
    }

    /// Goes on where there was no room, or begins: its home hears of the connection before anybody hears from it.
    fn resume(&mut self, reactor: &mut Reactor, links: &mut [ReactorEnd], slot: usize) {
        let Connection { announced, home, session, .. } = &mut self.connections[slot];
        if !*announced {
            *announced = links[usize::from(*home)].offer(RequestKind::Connect, *session, &[]);
            if !*announced {
                let home = *home;
                return self.settle_feed(reactor, slot, Fed::Blocked(usize::from(home)));
            }
        }
        let mut input = std::mem::take(&mut self.connections[slot].input);
        let (used, fed) = self.cut(links, slot, &input);
        // An idle connection keeps no memory.
        if used == input.len() {
            input = Vec::new();
        } else {
            input.drain(..used);
        }
        self.connections[slot].input = input;
        self.settle_feed(reactor, slot, fed);
    }

    /// Cuts packets off the front of `input` and hands them to workers, as long as there is room.
    fn cut(&mut self, links: &mut [ReactorEnd], slot: usize, input: &[u8]) -> (usize, Fed) {
        let Desk { connections, dispatcher, shared, .. } = self;
        let Connection { session, home, framer, in_flight, .. } = &mut connections[slot];
        let any_worker = shared.config.dispatch_mode != DispatchMode::Fixed;
        let workers = links.len();
        let mut packets = 0;
        let result = feed(framer, input, |packet| {
            let chosen = dispatcher.choose(*home, |worker| Load {
                busy: !shared.board.is_idle(worker),
                in_flight: links[usize::from(worker)].in_flight(),
            });
            let first = usize::from(chosen);
            let mut offer = |worker: usize| links[worker].offer(RequestKind::Packet, *session, packet);
            let (taken, queue) = if any_worker {
                // Where the rule leaves a choice, a full link is a reason to choose again.
                let mut others = (0..workers).map(|step| (first + step) % workers);
                (others.any(|worker| dispatcher.is_eligible(worker as u16) && offer(worker)), workers)
            } else {
                (offer(first), first)
            };
            packets += usize::from(taken);
            if taken { Ok(()) } else { Err(queue) }
        });
        *in_flight += packets;
        self.count(Counter::Packets, packets as u64);
        result
    }

    fn settle_feed(&mut self, reactor: &mut Reactor, slot: usize, fed: Fed) {
        let connection = &mut self.connections[slot];
        match fed {
            Fed::All if connection.parked => {
                connection.parked = false;
                if !connection.ended {
                    let token = connection.token;
                    if self.draining {
                        self.glances.push(token);
                    }
                    if let Err(error) = reactor.receive(token) {
                        self.failed(reactor, token, &error);
                    }
                }
            }
            Fed::All => {}
            Fed::Blocked(queue) => {
                connection.parked = true;
                if connection.announced || !connection.input.is_empty() || connection.ended || self.draining {
                    reactor.pause(connection.token);
                } else if let Err(error) = reactor.receive(connection.token) {
                    // Read from until it says something, so that one which leaves again takes nobody's place.
                    let token = connection.token;
                    return self.failed(reactor, token, &error);
                }
                self.waiting[queue].push_back(connection.session);
            }
            Fed::Broken(error) => {
                tracing::warn!(session = %connection.session, "closed, what it sends is no packet: {error}");
                self.close(reactor, slot, Close::Now);
            }
        }
        self.close_if_done(reactor, slot);
    }

    /// This worker's link may have room: who waited for it goes on.
    pub(super) fn unpark(&mut self, reactor: &mut Reactor, links: &mut [ReactorEnd], worker: usize) {
        for queue in [worker, links.len()] {
            while links[worker].is_clear() {
                let Some(session) = self.waiting[queue].pop_front() else { break };
                let Some(slot) = self.find(session) else { continue };
                self.resume(reactor, links, slot);
                // It has gone to the end of a queue: its turn is over.
                if self.find(session).is_some_and(|slot| self.connections[slot].parked) {
                    break;
                }
            }
        }
    }

    /// Whether every packet that was received is with a worker.
    pub(super) fn is_drained(&self) -> bool {
        let waits = |session: &Session| {
            self.find(*session).is_some_and(|slot| !self.connections[slot].input.is_empty())
        };
        self.draining && !self.is_glancing() && !self.waiting.iter().flatten().any(waits)
    }

    /// Whether some are read from for this one turn.
    pub(super) fn is_glancing(&self) -> bool {
        !(self.glances.is_empty() && self.glanced.is_empty())
    }

    /// A turn is over: who had a whole one is not read from any more.
    pub(super) fn end_glances(&mut self, reactor: &mut Reactor) {
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
        let slot = session.slot();
        self.connections.get(slot).filter(|connection| connection.session == session).map(|_| slot)
    }

    /// A connection that is not on its way out.
    fn find(&self, session: Session) -> Option<usize> {
        self.find_any(session).filter(|&slot| !self.connections[slot].closing)
    }

    fn count(&self, counter: Counter, more: u64) {
        self.shared.board.count(usize::from(self.id), counter, more);
    }
}

#[cfg(test)]
mod tests;
