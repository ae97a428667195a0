//! How connections end: by their client, by a worker, by their time, by the stop.

use std::io;
use std::time::Duration;

use rustix::io::{Errno, ioctl_fionread};
use swoole_reactor::{Close, Reactor, TimerId, Token};

use super::connection::Input;
use super::{Connection, Desk, LINGER};
use crate::board::Counter;
use crate::crash::{Fate, PacketInHand};
use crate::link::Casualty;
use crate::session::Session;
use crate::wire::RequestKind;

impl Desk {
    /// The client has shut down its side. What it has sent is answered, then it is closed.
    pub(crate) fn ended(&mut self, reactor: &mut Reactor, token: Token) {
        let Some(slot) = self.slot_of(token) else { return self.guest_ended(reactor, token) };
        if self.is_handshaking(slot) && !self.connections[slot].closing {
            return self.close(reactor, slot, Close::Now);
        }
        self.connections[slot].ended = true;
        self.close_if_done(reactor, slot);
        if !self.connections[slot].closing {
            self.linger(reactor, slot);
        }
    }

    /// The reactor has given up a connection.
    pub(crate) fn lost(&mut self, reactor: &mut Reactor, token: Token, error: &io::Error) {
        // What the reactor says of a file that has become shorter: nobody else would notice that.
        if error.raw_os_error() == Some(Errno::NODATA.raw_os_error())
            && let Some(slot) = self.slot_of(token)
        {
            let session = self.connections[slot].session;
            tracing::warn!(%session, "closed, a file that is sent to it has become shorter");
        }
        self.failed(reactor, token, error);
    }

    pub(crate) fn failed(&mut self, reactor: &mut Reactor, token: Token, error: &dyn std::fmt::Display) {
        let Some(slot) = self.slot_of(token) else { return self.guest_failed(reactor, token, error) };
        tracing::debug!(session = %self.connections[slot].session, "connection lost: {error}");
        if self.connections[slot].closing {
            reactor.close(token, Close::Now);
        } else {
            self.close(reactor, slot, Close::Now);
        }
    }

    /// The descriptor is released: the slot is free. True if it was a connection's.
    pub(crate) fn closed(&mut self, reactor: &mut Reactor, token: Token) -> bool {
        let Some(slot) = self.slot_of(token).or_else(|| self.displaced.remove(&token)) else {
            return self.guest_closed(reactor, token);
        };
        let connection = self.connections.remove(slot);
        if let Some((timer, _)) = connection.linger {
            reactor.cancel(timer);
            self.lingering.remove(&timer);
        }
        if let Some((listener, peer)) = connection.visit.map(|visit| *visit) {
            self.visitors.leave(listener, peer);
        }
        self.topics.forget(connection.session);
        self.count(Counter::Closed, 1);
        true
    }

    pub(crate) fn timer(&mut self, reactor: &mut Reactor, timer: TimerId) {
        if self.look(reactor, timer) || self.guest_timer(reactor, timer) {
            return;
        }
        let Some(slot) = self.lingering.remove(&timer).and_then(|session| self.find_any(session)) else {
            return;
        };
        let connection = &mut self.connections[slot];
        let before = connection.linger.take().map_or(0, |(_, queued)| queued);
        // A reset, so that the client can tell that it has not got everything.
        if !connection.closing {
            if self.is_handshaking(slot) {
                let limit = self.shared.config.ssl_handshake_timeout;
                tracing::info!(
                    "closed, its TLS handshake takes longer than {limit:?} (ssl_handshake_timeout)"
                );
            }
            self.close(reactor, slot, Close::Reset);
        } else if reactor.unsent(connection.token) < before {
            self.linger(reactor, slot);
        } else {
            reactor.close(connection.token, Close::Reset);
        }
    }

    /// No new packets are read; those that wait for room still go their way.
    pub(crate) fn drain(&mut self, reactor: &mut Reactor) {
        self.draining = true;
        self.clear_lobby(reactor, Close::Now);
        for (_, connection) in &self.connections {
            if !connection.closing {
                reactor.pause(connection.token);
            }
        }
    }

    /// Whose socket holds bytes that were not read and are to be, and how many the session has received when they are.
    pub(crate) fn unread(&self, reactor: &Reactor) -> Vec<(Session, u64)> {
        let open =
            self.connections.iter().filter(|(_, connection)| !connection.closing && !connection.paused);
        open.filter_map(|(_, Connection { session, token, .. })| {
            let waiting = ioctl_fionread(reactor.socket(*token)?).ok().filter(|bytes| *bytes > 0)?;
            Some((*session, self.shared.sessions.info(*session).ok()?.received + waiting))
        })
        .collect()
    }

    /// Whether the session has received this much, or is gone.
    pub(crate) fn has_read(&self, session: Session, bytes: u64) -> bool {
        self.shared.sessions.info(session).is_ok_and(|info| info.received >= bytes) || !self.is_open(session)
    }

    /// Closes every connection, after what was sent to it.
    pub(crate) fn close_all(&mut self, reactor: &mut Reactor, how: Close) {
        self.clear_lobby(reactor, how);
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
    pub(crate) fn take_departed(&mut self) -> Vec<(u16, Session)> {
        std::mem::take(&mut self.departed)
    }

    /// A worker died: files that it has sent and not committed are closed.
    pub(crate) fn forget_files(&mut self, worker: u16) {
        self.chute.iter_mut().for_each(|chute| chute.forget(worker));
    }

    /// A worker died with this in hand. Yields the packet, if it is one.
    pub(crate) fn mourn(&mut self, reactor: &mut Reactor, casualty: &Casualty) -> Option<PacketInHand> {
        let packet = casualty.packet();
        if packet.is_some() {
            let lost = casualty.fate != Fate::Retried;
            self.count(if lost { Counter::Lost } else { Counter::Retried }, 1);
        }
        if casualty.fate == Fate::Retried || casualty.kind == RequestKind::Close {
            return packet;
        }
        let session = casualty.session;
        if casualty.kind == RequestKind::Connect {
            self.greeted(session);
        }
        // One that is gone wants nothing any more.
        let slot = self.find(session).filter(|_| casualty.fate != Fate::Dropped);
        if let Some(slot) = slot {
            self.close(reactor, slot, Close::AfterSend);
        }
        if packet.is_some() {
            self.finished(reactor, session, 1);
        }
        packet
    }

    /// Its home is done with the connect: its packets may go to others.
    pub(crate) fn greeted(&mut self, session: Session) {
        if let Some(slot) = self.find(session) {
            self.connections[slot].greeted = true;
        }
    }

    /// Workers are done with so many of its packets, or have died on them.
    pub(crate) fn finished(&mut self, reactor: &mut Reactor, session: Session, packets: usize) {
        if let Some(slot) = self.find(session) {
            self.connections[slot].in_flight -= packets;
            self.close_if_done(reactor, slot);
        } else if let Some((home, in_flight)) = self.leaving.get_mut(&session) {
            *in_flight = in_flight.saturating_sub(packets);
            if *in_flight == 0 {
                self.departed.push((*home, session));
                self.leaving.remove(&session);
            }
        }
    }

    /// The server ends before these packets are answered.
    pub(crate) fn abandon(&self, packets: usize) {
        tracing::warn!(
            "{packets} packets were accepted and are not answered: no worker was left to do it in time"
        );
        self.count(Counter::Lost, packets as u64);
    }

    pub(crate) fn close_if_done(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &self.connections[slot];
        let waits = connection.parked && (connection.announced || !connection.input.is_empty());
        if connection.ended && !waits && connection.in_flight == 0 && !connection.closing {
            self.close(reactor, slot, Close::AfterSend);
        }
    }

    pub(crate) fn close(&mut self, reactor: &mut Reactor, slot: usize, how: Close) {
        let connection = &mut self.connections[slot];
        connection.closing = true;
        connection.input = Input::default();
        self.unwatch(slot);
        let connection = &self.connections[slot];
        let (session, token, home) = (connection.session, connection.token, connection.home);
        let (announced, in_flight) = (connection.announced, connection.in_flight);
        let parked = connection.parked;
        self.shared.sessions.close(session);
        if announced && in_flight > 0 && self.shared.config.scatters() {
            self.leaving.insert(session, (home, in_flight));
        } else if announced {
            self.departed.push((home, session));
        }
        if parked {
            self.forget_waiting();
        }
        if how == Close::AfterSend {
            self.say_goodbye(reactor, slot);
        }
        if how == Close::AfterSend && reactor.unsent(token) > 0 {
            self.linger(reactor, slot);
        }
        reactor.close(token, how);
    }

    pub(crate) fn linger(&mut self, reactor: &mut Reactor, slot: usize) {
        self.bound(reactor, slot, LINGER);
    }

    /// Gives a connection so long for what it is at.
    pub(super) fn bound(&mut self, reactor: &mut Reactor, slot: usize, within: Duration) {
        let connection = &mut self.connections[slot];
        let timer = reactor.timer(within);
        let before = connection.linger.replace((timer, reactor.unsent(connection.token)));
        self.lingering.insert(timer, connection.session);
        if let Some((before, _)) = before {
            reactor.cancel(before);
            self.lingering.remove(&before);
        }
    }

    /// What it was at is done.
    pub(super) fn unbound(&mut self, reactor: &mut Reactor, slot: usize) {
        if let Some((timer, _)) = self.connections[slot].linger.take() {
            reactor.cancel(timer);
            self.lingering.remove(&timer);
        }
    }

    /// One more that waits in vain; they are put away by the many.
    pub(crate) fn forget_waiting(&mut self) {
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
}
