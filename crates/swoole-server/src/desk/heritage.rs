//! How connections change hands between two workers of Base mode: the one that retires gives them away, the one that
//! takes its place goes on with them. Session, slot and every byte under way stay.

use std::net::SocketAddr;
use std::rc::Rc;

use rustix::fd::OwnedFd;
use swoole_reactor::{Close, Detached, FileRange, Reactor, Token};

use super::flow::Level;
use super::{Connection, Desk, Taker};
use crate::board::Counter;
use crate::session::{Arrival, Flag, Session, SessionInfo};

/// A connection between two workers.
#[derive(Debug)]
pub(crate) struct Heirloom {
    /// Nobody's while it is in the lobby.
    pub(crate) session: Session,
    /// Of one that is in the lobby: how it has come.
    pub(crate) guest: Option<Arrival>,
    pub(crate) socket: OwnedFd,
    /// The client will send no more.
    pub(crate) ended: bool,
    /// On its way out: it takes what was sent, and no more.
    pub(crate) closing: bool,
    /// Read, and not handled.
    pub(crate) input: Vec<u8>,
    /// Made, and not sent.
    pub(crate) output: Vec<u8>,
    /// Files that are to be sent after that, each with what comes after it.
    pub(crate) files: Vec<(FileRange, Vec<u8>)>,
    /// What it is subscribed to.
    pub(crate) topics: Vec<Rc<[u8]>>,
}

impl Desk {
    /// Nothing is read any more.
    pub(crate) fn pause_all(&self, reactor: &mut Reactor) {
        for (_, connection) in &self.connections {
            if !connection.closing {
                reactor.pause(connection.token);
            }
        }
        self.lobby.tokens().into_iter().for_each(|token| reactor.pause(token));
    }

    /// Bytes from a client, for whoever comes next.
    pub(crate) fn keep(&mut self, token: Token, bytes: &[u8]) {
        let Some(slot) = self.slot_of(token) else { return self.keep_of_guest(token, bytes) };
        self.count_received(slot, bytes.len());
        // Nobody comes next there.
        if self.connections[slot].tls.is_none() {
            self.connections[slot].input.add(bytes);
        }
    }

    /// A client has shut down its side, which is for whoever comes next.
    pub(crate) fn keep_end(&mut self, token: Token) {
        if let Some(slot) = self.slot_of(token) {
            self.connections[slot].ended = true;
        }
    }

    /// Asks for the descriptors of all connections but those that are closed already: how many. TLS cannot change hands: its
    /// keys are in here. Those connections take what was sent, and end.
    pub(crate) fn detach_all(&mut self, reactor: &mut Reactor) -> usize {
        let is_secret =
            |(_, connection): &(usize, &Connection)| connection.tls.is_some() && !connection.closing;
        let secret: Vec<usize> = self.connections.iter().filter(is_secret).map(|(slot, _)| slot).collect();
        secret.into_iter().for_each(|slot| self.close(reactor, slot, Close::AfterSend));
        let tokens = self.connections.iter().map(|(_, connection)| connection.token);
        tokens.chain(self.lobby.tokens()).filter(|token| reactor.detach(*token).is_ok()).count()
    }

    /// The descriptor has come: the connection is no longer this desk's.
    pub(crate) fn give_away(&mut self, token: Token, detached: Detached) -> Option<Heirloom> {
        let Some(slot) = self.slot_of(token) else {
            return self.give_guest_away(token, detached.socket, &detached.unread);
        };
        self.count_received(slot, detached.unread.len());
        let Connection { session, ended, closing, input, .. } = self.connections.remove(slot);
        let mut input = input.into_bytes();
        input.extend(detached.unread);
        self.unwatch(slot);
        let topics = self.topics.forget(session);
        let (socket, output, files) = (detached.socket, detached.unsent, detached.files);
        Some(Heirloom { session, guest: None, socket, ended, closing, input, output, files, topics })
    }

    /// A connection that was given away and that nobody takes is closed.
    pub(crate) fn disown(&self, heirloom: &Heirloom) {
        self.shared.sessions.close(heirloom.session);
        self.count(Counter::Closed, 1);
    }

    /// As a visit of this worker's, if that is counted.
    fn visit_of(&self, session: Session) -> Option<Box<(u16, Option<SocketAddr>)>> {
        if !self.visitors.is_on() {
            return None;
        }
        let SessionInfo { listener, peer, .. } = self.shared.sessions.info(session).ok()?;
        self.visitors.take_over(listener, peer);
        Some(Box::new((listener, peer)))
    }

    /// Takes over what the last worker gave away. It must be the first that this desk sees.
    pub(crate) fn inherit(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        heirlooms: Vec<Heirloom>,
    ) {
        let mut connections = Vec::new();
        let (mut bytes, mut guests) = (Vec::new(), Vec::new());
        for heirloom in heirlooms {
            if let Some(arrival) = heirloom.guest {
                guests.push((heirloom, arrival));
                continue;
            }
            let Heirloom { session, socket, ended, closing, input, output, files, topics, .. } = heirloom;
            // Counted as lost already if the last worker died after all.
            if self.shared.sessions.reactor(session) != self.id
                || !(closing || self.shared.sessions.exists(session))
            {
                continue;
            }
            match reactor.stream(socket) {
                Ok(token) => {
                    let slot = self.shared.sessions.slot(session);
                    let framer = self.listening.framings().framer(self.shared.sessions.listener(session));
                    let mut connection = Connection::new(session, token, taker.home(None), framer);
                    (connection.announced, connection.ended, connection.input) = (true, ended, input.into());
                    connection.closing = closing;
                    connection.paused = self.shared.sessions.has_flag(session, Flag::Paused);
                    connection.level = Level::inherited(self.shared.sessions.has_flag(session, Flag::High));
                    connection.visit = self.visit_of(session);
                    connections.push((slot, connection));
                    topics.iter().for_each(|topic| _ = self.topics.subscribe(session, topic));
                    bytes.push((slot, output, files));
                }
                Err(error) => {
                    tracing::error!(%session, "take a connection over: {error}");
                    self.count(Counter::Closed, 1);
                    if !closing {
                        self.shared.sessions.close(session);
                        self.departed.push((taker.home(None), session));
                    }
                }
            }
        }
        self.connections = connections.into_iter().collect();
        for (slot, output, files) in bytes {
            self.remember(slot);
            let token = self.connections[slot].token;
            let sent = reactor.send(token, output).and_then(|()| {
                files.into_iter().try_for_each(|(range, bytes)| {
                    reactor.send_file(token, range)?;
                    reactor.send(token, bytes)
                })
            });
            if let Err(error) = sent {
                self.failed(reactor, token, &error);
            } else if self.connections[slot].closing {
                self.linger(reactor, slot);
                reactor.close(token, Close::AfterSend);
            } else {
                if self.connections[slot].level.is_high() {
                    reactor.tell_low(token, self.shared.config.buffer_low_watermark);
                }
                self.watch(reactor, slot);
                self.resume(reactor, taker, slot);
            }
        }
        // Behind those whose places are given already.
        for (guest, arrival) in guests {
            self.inherit_guest(reactor, taker, guest, arrival);
        }
    }
}
