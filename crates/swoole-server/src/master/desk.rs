//! A reactor's connections: bytes in, packets to workers; replies in, bytes out.
//!
//! No socket is touched here but through the reactor that is passed in.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use slab::Slab;
use swoole_protocol::Framing;
use swoole_reactor::{Close, Error as ReactorError, Reactor, TimerId, Token};

use super::connection::{Connection, Fed, LINGER, feed};
use crate::board::Counter;
use crate::config::DispatchMode;
use crate::control::LostPacket;
use crate::dispatch::{Dispatcher, Load};
use crate::link::{ReactorEnd, ReplySink, Sent};
use crate::session::{Arrival, GENERATION_MAX, Session};
use crate::shared::Shared;
use crate::wire::RequestKind;

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
    /// Connections that are not read from until this worker's link has room, longest wait first. Where every worker
    /// will do, all wait in the first queue for any of them.
    waiting: Vec<VecDeque<Session>>,
    /// Closed connections that stand in there still, at most.
    stale: usize,
    lingering: HashMap<TimerId, Session>,
    /// Closed, and their home workers not told yet.
    departed: Vec<(u16, Session)>,
    /// No new packets are taken.
    draining: bool,
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
            waiting: (0..workers).map(|_| VecDeque::new()).collect(),
            stale: 0,
            lingering: HashMap::new(),
            departed: Vec::new(),
            draining: false,
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
            if !connection.parked {
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
                return self.settle_feed(reactor, slot, Fed::Blocked(home));
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
            // Where the rule leaves a choice, a full link is a reason to choose again.
            let tries = if any_worker { workers } else { 1 };
            let mut candidates = (0..tries).map(|step| (first + step) % workers);
            if candidates.any(|worker| links[worker].offer(RequestKind::Packet, *session, packet)) {
                packets += 1;
                return Ok(());
            }
            Err(chosen)
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
                if !self.draining
                    && !connection.ended
                    && let Err(error) = reactor.receive(connection.token)
                {
                    let token = connection.token;
                    self.failed(reactor, token, &error);
                }
            }
            Fed::All => {}
            Fed::Blocked(worker) => {
                connection.parked = true;
                reactor.pause(connection.token);
                let session = connection.session;
                let queue = self.queue(usize::from(worker));
                self.waiting[queue].push_back(session);
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
        let queue = self.queue(worker);
        while links[worker].is_clear() {
            let Some(session) = self.waiting[queue].pop_front() else { return };
            let Some(slot) = self.find(session) else { continue };
            self.resume(reactor, links, slot);
            // It has gone to the end of a queue: its turn is over.
            if self.find(session).is_some_and(|slot| self.connections[slot].parked) {
                return;
            }
        }
    }

    /// The client has shut down its side. What it has sent is answered, then it is closed.
    pub(super) fn ended(&mut self, reactor: &mut Reactor, token: Token) {
        let Some(slot) = self.slot_of(token) else { return };
        self.connections[slot].ended = true;
        self.close_if_done(reactor, slot);
        if !self.connections[slot].closing {
            self.linger(reactor, slot);
        }
    }

    pub(super) fn failed(&mut self, reactor: &mut Reactor, token: Token, error: &dyn std::fmt::Display) {
        let Some(slot) = self.slot_of(token) else { return };
        tracing::debug!(session = %self.connections[slot].session, "connection lost: {error}");
        if self.connections[slot].closing {
            reactor.close(token, Close::Now);
        } else {
            self.close(reactor, slot, Close::Now);
        }
    }

    /// The descriptor is released: the slot is free. True if it was a connection's.
    pub(super) fn closed(&mut self, reactor: &mut Reactor, token: Token) -> bool {
        let Some(slot) = self.slot_of(token).or_else(|| self.displaced.remove(&token)) else { return false };
        let connection = self.connections.remove(slot);
        if let Some((timer, _)) = connection.linger {
            reactor.cancel(timer);
            self.lingering.remove(&timer);
        }
        self.count(Counter::Closed, 1);
        true
    }

    pub(super) fn timer(&mut self, reactor: &mut Reactor, timer: TimerId) {
        let Some(slot) = self.lingering.remove(&timer).and_then(|session| self.find_any(session)) else {
            return;
        };
        let connection = &mut self.connections[slot];
        let before = connection.linger.take().map_or(0, |(_, queued)| queued);
        // A reset, so that the client can tell that it has not got everything.
        if !connection.closing {
            self.close(reactor, slot, Close::Reset);
        } else if reactor.queued(connection.token) < before {
            self.linger(reactor, slot);
        } else {
            reactor.close(connection.token, Close::Reset);
        }
    }

    /// No new packets are read; those that wait for room still go their way.
    pub(super) fn drain(&mut self, reactor: &mut Reactor) {
        self.draining = true;
        for (_, connection) in &self.connections {
            if !connection.closing {
                reactor.pause(connection.token);
            }
        }
    }

    /// Whether everything that was received is with the workers.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.waiting.iter().flatten().all(|session| self.find(*session).is_none())
    }

    /// The queue of who waits for this worker.
    fn queue(&self, worker: usize) -> usize {
        if self.shared.config.dispatch_mode == DispatchMode::Fixed { worker } else { 0 }
    }

    /// Closes every connection, after what was sent to it.
    pub(super) fn close_all(&mut self, reactor: &mut Reactor, how: Close) {
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            if !self.connections[slot].closing {
                self.close(reactor, slot, how);
            } else if how != Close::AfterSend {
                reactor.close(self.connections[slot].token, how);
            }
        }
    }

    /// The sessions that are gone and whose home workers have not been told.
    pub(super) fn take_departed(&mut self) -> Vec<(u16, Session)> {
        std::mem::take(&mut self.departed)
    }

    /// A worker died with this in hand: its connection is closed. Yields what was lost.
    pub(super) fn mourn(&mut self, reactor: &mut Reactor, sent: &Sent) -> Option<LostPacket> {
        if sent.kind == RequestKind::Close {
            return None;
        }
        if let Some(slot) = self.find(sent.session) {
            self.close(reactor, slot, Close::AfterSend);
        }
        (sent.kind == RequestKind::Packet).then(|| {
            self.count(Counter::Lost, 1);
            LostPacket { session: sent.session, size: sent.size as u64 }
        })
    }

    /// The server ends before these packets are answered.
    pub(super) fn abandon(&self, packets: usize) {
        tracing::warn!(
            "{packets} packets were accepted and are not answered: no worker was left to do it in time"
        );
        self.count(Counter::Lost, packets as u64);
    }

    fn close_if_done(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &self.connections[slot];
        if connection.ended && !connection.parked && connection.in_flight == 0 && !connection.closing {
            self.close(reactor, slot, Close::AfterSend);
        }
    }

    fn close(&mut self, reactor: &mut Reactor, slot: usize, how: Close) {
        let connection = &mut self.connections[slot];
        connection.closing = true;
        connection.input = Vec::new();
        let (session, token, home) = (connection.session, connection.token, connection.home);
        self.shared.sessions.close(session);
        if connection.announced {
            self.departed.push((home, session));
        }
        if connection.parked {
            self.forget_waiting();
        }
        if how == Close::AfterSend && reactor.queued(token) > 0 {
            self.linger(reactor, slot);
        }
        reactor.close(token, how);
    }

    fn linger(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &mut self.connections[slot];
        let timer = reactor.timer(LINGER);
        let before = connection.linger.replace((timer, reactor.queued(connection.token)));
        self.lingering.insert(timer, connection.session);
        if let Some((before, _)) = before {
            reactor.cancel(before);
            self.lingering.remove(&before);
        }
    }

    /// One more that waits in vain; they are put away by the many.
    fn forget_waiting(&mut self) {
        self.stale += 1;
        if self.stale > 1024 {
            self.stale = 0;
            let mut waiting = std::mem::take(&mut self.waiting);
            for queue in &mut waiting {
                queue.retain(|session| self.find(*session).is_some());
                queue.shrink_to(2 * queue.len());
            }
            self.waiting = waiting;
        }
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

/// Where replies arrive.
pub(super) struct Replies<'a> {
    pub(super) desk: &'a mut Desk,
    pub(super) reactor: &'a mut Reactor,
}

impl ReplySink for Replies<'_> {
    fn send(&mut self, session: Session, parts: &[IoSlice<'_>]) {
        // The client has left meanwhile, or the worker lies: nobody gets it.
        let Some(slot) = self.desk.find(session) else { return };
        let token = self.desk.connections[slot].token;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let limit = self.desk.shared.config.socket_buffer_size;
        let queued = self.reactor.queued(token);
        // Whoever has taken everything before may be sent more than the limit at once: the worker has bounded that.
        if queued > 0 && queued + len > limit {
            tracing::warn!(%session, "closed, it does not read: {queued} bytes wait for it (socket_buffer_size = {limit})");
            return self.desk.close(self.reactor, slot, Close::Reset);
        }
        if let Err(error) = self.reactor.send_slices(token, parts) {
            tracing::debug!(%session, "connection lost: {error}");
            return self.desk.close(self.reactor, slot, Close::Now);
        }
        self.desk.shared.sessions.count(session, 0, len);
        self.desk.count(Counter::Sent, len as u64);
    }

    fn close(&mut self, session: Session) {
        if let Some(slot) = self.desk.find(session) {
            self.desk.close(self.reactor, slot, Close::AfterSend);
        }
    }

    fn finished(&mut self, sent: &Sent) {
        if sent.kind != RequestKind::Packet || !sent.last {
            return;
        }
        let Some(slot) = self.desk.find(sent.session) else { return };
        self.desk.connections[slot].in_flight -= 1;
        self.desk.close_if_done(self.reactor, slot);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use swoole_reactor::{Event, Options};

    use super::*;
    use crate::config::Config;

    const ARRIVAL: Arrival = Arrival { listener: 0, port: 0, peer: None, connected_at: 0 };

    fn client() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    #[test]
    fn a_connection_whose_place_is_taken_before_it_is_reported_closed_still_leaves() {
        let mut config = Config::default();
        (config.worker_num, config.reactor_num, config.max_connection) = (1, 1, 8);
        let framing = config.framing().unwrap();
        let (shared, lanes, _hold) = Shared::create(config, Vec::new(), Vec::new()).unwrap();
        let shared = Arc::new(shared);
        let (bell, room) = (shared.bells[0].clone(), shared.rooms[0].clone());
        let mut links = [ReactorEnd::open(Arc::clone(&lanes[0][0]), bell, room, 1 << 20).unwrap()];
        let mut desk = Desk::new(0, Arc::clone(&shared), framing);
        let mut reactor = Reactor::new(Options::default()).unwrap();

        let (first, _first_client) = client();
        let (second, _second_client) = client();
        desk.adopt(&mut reactor, &mut links, first, &ARRIVAL).unwrap();
        let old = desk.connections[0].token;
        // In one go, as when a worker's death and a new client come in the same batch of commands.
        desk.close(&mut reactor, 0, Close::Now);
        desk.adopt(&mut reactor, &mut links, second, &ARRIVAL).unwrap();
        assert_eq!(desk.connections[1].token.slot(), old.slot(), "the case that this test is about");
        desk.close(&mut reactor, 1, Close::Now);
        let mut turns = 0;
        while !desk.is_empty() && turns < 10 {
            turns += 1;
            let turn = reactor.turn(Some(Duration::from_millis(100)), |reactor, event| {
                if let Event::Closed { token } = event {
                    assert!(desk.closed(reactor, token));
                }
            });
            turn.unwrap();
        }
        assert!(desk.is_empty());
        assert_eq!(shared.board.stats().close_count, 2);
    }
}
