//! The lobby: connections of proxies that have yet to say for whom they come.
//!
//! They are no sessions: no worker hears of them, and nobody can send to them. The header is read by copying, wherever
//! packets are read to otherwise. When it is there, the connection gets its place and its home as if it had come from the
//! address that is told, and what has come behind the header goes along. Who is not to be believed is closed before anything
//! is read.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use rustix::fd::OwnedFd;
use swoole_protocol::proxy::{Told, Versions, parse};
use swoole_reactor::{Close, Error as ReactorError, Reactor, TimerId, Token};

use super::heritage::Heirloom;
use super::{Desk, Taker};
use crate::board::Counter;
use crate::config::Config;
use crate::config::{ProxyProtocol, ProxyRule};
use crate::seldom::Seldom;
use crate::session::{Arrival, Session};

/// Bytes that are read at once: more than most headers.
const PIECE: usize = 4096;

/// How often the log tells of those who were refused, at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Lobby {
    /// By listener; `None` where no header comes.
    rules: Vec<Option<ProxyRule>>,
    guests: HashMap<Token, Guest>,
    /// When their time is over.
    timers: HashMap<TimerId, Token>,
    refused: Seldom,
}

struct Guest {
    arrival: Arrival,
    /// All that has come.
    input: Vec<u8>,
    timer: Option<TimerId>,
    /// On its way out.
    closing: bool,
}

/// Why somebody is refused.
struct Late(Duration);
struct Stranger;

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no PROXY header within {:?} (proxy_timeout)", self.0)
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its PROXY header would not be believed (proxy_trusted)")
    }
}

fn rules(config: &Config) -> Vec<Option<ProxyRule>> {
    config.listen.iter().map(|listen| config.proxy_rule(listen)).collect()
}

impl Lobby {
    pub(super) fn new(config: &Config) -> Lobby {
        Lobby {
            rules: rules(config),
            guests: HashMap::new(),
            timers: HashMap::new(),
            refused: Seldom::new(TELL_EVERY),
        }
    }

    /// There are other addresses, behind those that were there before.
    pub(super) fn set_rules(&mut self, config: &Config) {
        self.rules = rules(config);
    }

    pub(super) fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether who comes by this listener has to say first for whom.
    pub(super) fn receives(&self, arrival: &Arrival) -> bool {
        self.rule(arrival).is_some()
    }

    fn rule(&self, arrival: &Arrival) -> Option<&ProxyRule> {
        self.rules.get(usize::from(arrival.listener))?.as_ref()
    }

    fn remove(&mut self, token: Token) -> Option<Guest> {
        let guest = self.guests.remove(&token)?;
        if let Some(timer) = guest.timer {
            self.timers.remove(&timer);
        }
        Some(guest)
    }

    pub(super) fn tokens(&self) -> Vec<Token> {
        let open = self.guests.iter().filter(|(_, guest)| !guest.closing);
        open.map(|(token, _)| *token).collect()
    }
}

fn versions(protocol: ProxyProtocol) -> Versions {
    Versions {
        v1: matches!(protocol, ProxyProtocol::V1 | ProxyProtocol::Any),
        v2: matches!(protocol, ProxyProtocol::V2 | ProxyProtocol::Any),
    }
}

impl Desk {
    /// Takes on a new connection that has to say for whom it comes; an error leaves none.
    pub(super) fn receive_guest(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        socket: OwnedFd,
        arrival: &Arrival,
    ) -> Result<(), ReactorError> {
        let trusted =
            self.lobby.rule(arrival).is_some_and(|rule| rule.trusts(arrival.peer.map(|peer| peer.ip())));
        let token = self.let_in(reactor, socket, *arrival, Vec::new())?;
        self.count(Counter::Accepted, 1);
        if self.draining {
            self.show_out(reactor, token, Close::Now);
        } else if trusted {
            self.greet(reactor, taker, token, &[]);
        } else {
            self.refuse(reactor, token, &Stranger);
        }
        Ok(())
    }

    /// Takes over one that the last worker has left.
    pub(super) fn inherit_guest(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        heirloom: Heirloom,
        arrival: Arrival,
    ) {
        match self.let_in(reactor, heirloom.socket, arrival, heirloom.input) {
            // It may be whole already.
            Ok(token) => self.greet(reactor, taker, token, &[]),
            Err(error) => {
                tracing::error!("take over a connection without a PROXY header: {error}");
                self.count(Counter::Closed, 1);
            }
        }
    }

    fn let_in(
        &mut self,
        reactor: &mut Reactor,
        socket: OwnedFd,
        arrival: Arrival,
        input: Vec<u8>,
    ) -> Result<Token, ReactorError> {
        let token = reactor.stream(socket)?;
        let timer = self.lobby.rule(&arrival).map(|rule| reactor.timer(rule.timeout));
        if let Some(timer) = timer {
            self.lobby.timers.insert(timer, token);
        }
        self.lobby.guests.insert(token, Guest { arrival, input, timer, closing: false });
        Ok(token)
    }

    /// Bytes of one in the lobby, if it is there: the header, a part of it, or more.
    pub(super) fn greet(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        token: Token,
        bytes: &[u8],
    ) {
        let Lobby { guests, rules, .. } = &mut self.lobby;
        let Some(guest) = guests.get_mut(&token).filter(|guest| !guest.closing) else { return };
        let arrival = guest.arrival;
        let Some(Some(rule)) = rules.get(usize::from(arrival.listener)) else { return };
        guest.input.extend_from_slice(bytes);
        let found = parse(&guest.input, versions(rule.protocol));
        self.count(Counter::Received, bytes.len() as u64);
        match found {
            Ok(None) => {
                if let Err(error) = self.listen(reactor, token) {
                    self.guest_failed(reactor, token, &error);
                }
            }
            Ok(Some(header)) => {
                let tls = match self.begin_tls(&arrival) {
                    Ok(tls) => tls,
                    Err(error) => {
                        tracing::error!("take a connection on: {error}");
                        return self.show_out(reactor, token, Close::Now);
                    }
                };
                let Some(mut guest) = self.lobby.remove(token) else { return };
                if let Some(timer) = guest.timer {
                    reactor.cancel(timer);
                }
                let peer = match header.told {
                    Told::Own => arrival.peer,
                    Told::Unix => None,
                    Told::Inet { source, .. } => Some(source),
                };
                let rest = guest.input.split_off(header.len);
                self.seat(reactor, taker, token, &arrival.of(peer), (tls, rest));
            }
            Err(error) => self.refuse(reactor, token, &error),
        }
    }

    /// One in the lobby can be read from, if it is there.
    pub(super) fn guest_readable(&mut self, reactor: &mut Reactor, taker: &mut impl Taker, token: Token) {
        if !self.lobby.guests.contains_key(&token) {
            return;
        }
        let mut piece = [0; PIECE];
        // Errors mean that the stream is gone, of which it tells itself.
        let read = reactor.read(token, &mut piece).ok().flatten().unwrap_or(0);
        self.greet(reactor, taker, token, &piece[..read]);
    }

    /// It has left without a header, as who only looks whether the server is there.
    pub(super) fn guest_ended(&mut self, reactor: &mut Reactor, token: Token) {
        if self.lobby.guests.get(&token).is_some_and(|guest| !guest.closing) {
            self.show_out(reactor, token, Close::Now);
        }
    }

    pub(super) fn guest_failed(&mut self, reactor: &mut Reactor, token: Token, error: &dyn fmt::Display) {
        if self.lobby.guests.contains_key(&token) {
            tracing::debug!("connection lost before its PROXY header: {error}");
            self.show_out(reactor, token, Close::Now);
        }
    }

    /// Whether it was one in the lobby whose time is over.
    pub(super) fn guest_timer(&mut self, reactor: &mut Reactor, timer: TimerId) -> bool {
        let Some(token) = self.lobby.timers.remove(&timer) else { return false };
        let Some(guest) = self.lobby.guests.get_mut(&token) else { return true };
        guest.timer = None;
        let arrival = guest.arrival;
        let time = self.lobby.rule(&arrival).map_or(Duration::ZERO, |rule| rule.timeout);
        self.refuse(reactor, token, &Late(time));
        true
    }

    /// The descriptor is released. True if it was one in the lobby.
    pub(super) fn guest_closed(&mut self, reactor: &mut Reactor, token: Token) -> bool {
        let Some(guest) = self.lobby.remove(token) else { return false };
        if let Some(timer) = guest.timer {
            reactor.cancel(timer);
        }
        self.count(Counter::Closed, 1);
        true
    }

    /// Bytes for whoever comes next.
    pub(super) fn keep_of_guest(&mut self, token: Token, bytes: &[u8]) {
        if let Some(guest) = self.lobby.guests.get_mut(&token) {
            guest.input.extend_from_slice(bytes);
            self.count(Counter::Received, bytes.len() as u64);
        }
    }

    /// The descriptor has come: the connection is no longer this desk's.
    pub(super) fn give_guest_away(
        &mut self,
        token: Token,
        socket: OwnedFd,
        unread: &[u8],
    ) -> Option<Heirloom> {
        self.keep_of_guest(token, unread);
        let Guest { arrival, input, .. } = self.lobby.remove(token)?;
        Some(Heirloom {
            session: Session::from_raw(0),
            guest: Some(arrival),
            socket,
            ended: false,
            closing: false,
            input,
            output: Vec::new(),
            files: Vec::new(),
            topics: Vec::new(),
        })
    }

    /// Closes all in the lobby: nobody has promised them anything.
    pub(super) fn clear_lobby(&mut self, reactor: &mut Reactor, how: Close) {
        for token in self.lobby.tokens() {
            self.show_out(reactor, token, how);
        }
    }

    fn refuse(&mut self, reactor: &mut Reactor, token: Token, why: &dyn fmt::Display) {
        let Some(guest) = self.lobby.guests.get(&token) else { return };
        let Arrival { listener, peer, .. } = guest.arrival;
        if let Some(others) = self.lobby.refused.happens() {
            let peer = peer.map_or("a client of a unix socket".into(), |peer| peer.to_string());
            let address = self.listening.address(listener).map(|listen| listen.url());
            let address = address.unwrap_or_default();
            tracing::warn!(
                "closed {peer} at {address}: {why} (and {others} others since the last one told of)"
            );
        } else {
            tracing::debug!(?peer, listener, "closed: {why}");
        }
        self.count(Counter::BadProxy, 1);
        self.show_out(reactor, token, Close::Now);
    }

    fn show_out(&mut self, reactor: &mut Reactor, token: Token, how: Close) {
        let Some(guest) = self.lobby.guests.get_mut(&token) else { return };
        (guest.closing, guest.input) = (true, Vec::new());
        if let Some(timer) = guest.timer.take() {
            reactor.cancel(timer);
            self.lobby.timers.remove(&timer);
        }
        reactor.close(token, how);
    }
}
