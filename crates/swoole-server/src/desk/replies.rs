//! Replies in, bytes out.

use std::io::IoSlice;
use std::sync::Arc;

use swoole_reactor::{Close, FileRange, Reactor};

use super::topics::Subscribed;
use super::{Connection, Desk};
use crate::audience::{Audience, Order};
use crate::board::Counter;
use crate::chute::{Chute, Ticket};
use crate::link::{ReplySink, Sent};
use crate::measure::Measure;
use crate::post::Parcel;
use crate::session::{Flag, Session};
use crate::wire::RequestKind;

/// Where replies arrive.
pub(crate) struct Replies<'a> {
    pub(crate) desk: &'a mut Desk,
    pub(crate) reactor: &'a mut Reactor,
}

impl Replies<'_> {
    /// What has come by post for a client.
    pub(crate) fn take(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Send(session, bytes) => self.send(session, &[IoSlice::new(&bytes)]),
            Parcel::Close(session) => self.close(session),
            Parcel::Order(order) => self.order(&order),
            Parcel::Bind(session, uid) => self.bind(session, uid),
            Parcel::Measure(session, measure) => self.measure(session, measure),
            Parcel::Datagram(listener, datagram) => self.send_to(listener, &datagram),
            Parcel::Message(from, _) => tracing::error!("a message from {from} has come to a reactor"),
        }
    }

    /// A packet of a client of whom no worker has anything is shed. False if its connection is to be closed for it, or is.
    pub(crate) fn shed(&mut self, session: Session) -> bool {
        self.desk.count(Counter::Shed, 1);
        let (shared, listening) = (&self.desk.shared, Arc::clone(&self.desk.listening));
        let Some(busy) = listening.sheds.of(|| shared.sessions.listener(session)).reply() else {
            return false;
        };
        // Those to many packets go out together.
        self.send_owned(session, busy.to_vec());
        self.desk.is_open(session)
    }

    /// To all of this desk's clients who are meant.
    fn broadcast(&mut self, audience: &Audience<'_>, bytes: &[u8]) {
        let Desk { topics, connections, shared, .. } = &*self.desk;
        let is_meant = |session: &Session| audience.has(*session, || shared.sessions.listener(*session));
        // Who does not read is closed meanwhile, so nobody may be at the list itself.
        let sessions: Vec<Session> = match audience.its_topic() {
            Some(topic) => topics.members(topic).filter(is_meant).collect(),
            None => connections.iter().map(|(_, connection)| connection.session).filter(is_meant).collect(),
        };
        for session in sessions {
            self.send(session, &[IoSlice::new(bytes)]);
        }
    }

    fn subscribe(&mut self, session: Session, topic: &[u8]) {
        if self.desk.is_open(session) && self.desk.topics.subscribe(session, topic) == Subscribed::Refused {
            let max = self.desk.shared.config.max_subscription;
            tracing::warn!(%session, "subscribed to {max} topics (max_subscription), and to no more");
        }
    }

    /// A file that has come by the chute. It is taken out in any case.
    fn send_ticket(&mut self, session: Session, Ticket { name, offset, length }: Ticket) {
        let claim = |chute: &mut Chute| chute.claim(session, name);
        match self.desk.chute.as_mut().and_then(claim) {
            Some(file) => self.send_file(session, FileRange { file, offset, length }),
            None => {
                tracing::error!(%session, "closed, a file to be sent to it has not come");
                if let Some(slot) = self.desk.find(session) {
                    self.desk.close(self.reactor, slot, Close::Reset);
                }
            }
        }
    }

    /// Part of a file, after all that was sent before.
    pub(crate) fn send_file(&mut self, session: Session, range: FileRange) {
        let Some(slot) = self.desk.find(session) else { return };
        let (token, length) = (self.desk.connections[slot].token, range.length);
        if self.desk.connections[slot].tls.is_some() {
            tracing::error!(%session, "closed, a file was to be sent to it, and it speaks TLS");
            return self.desk.close(self.reactor, slot, Close::Reset);
        }
        if let Err(error) = self.reactor.send_file(token, range) {
            tracing::debug!(%session, "connection lost: {error}");
            return self.desk.close(self.reactor, slot, Close::Now);
        }
        self.desk.shared.sessions.sent(session, length as usize, self.reactor.queued(token));
        self.desk.has_sent(slot);
        self.desk.count(Counter::Sent, length);
    }

    fn send_output(&mut self, session: Session, output: Output<'_>) {
        // The client has left meanwhile, or the worker lies: nobody gets it.
        let Some(slot) = self.desk.find(session) else { return };
        if self.desk.connections[slot].tls.is_some() {
            self.desk.encrypt(self.reactor, slot, &output);
        } else {
            self.desk.transmit(self.reactor, slot, output);
        }
    }
}

/// What is for one client.
pub(super) enum Output<'a> {
    Parts(&'a [IoSlice<'a>]),
    Whole(Vec<u8>),
}

impl Output<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Output::Parts(parts) => parts.iter().map(|part| part.len()).sum(),
            Output::Whole(bytes) => bytes.len(),
        }
    }
}

impl Desk {
    /// Puts bytes on the way to a client, unless too many wait for it already.
    #[inline]
    pub(super) fn transmit(&mut self, reactor: &mut Reactor, slot: usize, output: Output<'_>) {
        let len = output.len();
        if self.admits(reactor, slot, len) {
            self.put(reactor, slot, output, len);
        }
    }

    /// Whether a client may have so many bytes more waiting for it; otherwise it is closed.
    #[inline]
    pub(super) fn admits(&mut self, reactor: &mut Reactor, slot: usize, len: usize) -> bool {
        let Connection { session, token, .. } = self.connections[slot];
        let limit = self.shared.config.socket_buffer_size;
        let queued = reactor.queued(token);
        // Whoever has taken everything before may be sent more than the limit at once: the worker has bounded that.
        let is_admitted = queued == 0 || queued + len <= limit;
        if !is_admitted {
            tracing::warn!(%session, "closed, it does not read: {queued} bytes wait for it (socket_buffer_size = {limit})");
            self.close(reactor, slot, Close::Reset);
        }
        is_admitted
    }

    /// Puts bytes on the way that the client may have, so many.
    pub(super) fn put(&mut self, reactor: &mut Reactor, slot: usize, output: Output<'_>, len: usize) {
        let Connection { session, token, .. } = self.connections[slot];
        let sent = match output {
            Output::Parts(parts) => reactor.send_slices(token, parts),
            Output::Whole(bytes) => reactor.send(token, bytes),
        };
        if let Err(error) = sent {
            tracing::debug!(%session, "connection lost: {error}");
            return self.close(reactor, slot, Close::Now);
        }
        let queued = reactor.queued(token);
        self.shared.sessions.sent(session, len, queued);
        self.rise(reactor, slot, queued);
        self.has_sent(slot);
        self.count(Counter::Sent, len as u64);
    }
}

impl ReplySink for Replies<'_> {
    fn send(&mut self, session: Session, parts: &[IoSlice<'_>]) {
        self.send_output(session, Output::Parts(parts));
    }

    fn send_owned(&mut self, session: Session, bytes: Vec<u8>) {
        self.send_output(session, Output::Whole(bytes));
    }

    fn order(&mut self, order: &[u8]) {
        match Order::decode(order) {
            Some(Order::Broadcast(audience, bytes)) => self.broadcast(&audience, bytes),
            Some(Order::Subscribe(session, topic)) => self.subscribe(session, topic),
            Some(Order::Unsubscribe(session, topic)) => self.desk.topics.unsubscribe(session, topic),
            None => tracing::error!("an order for many clients is malformed ({} bytes)", order.len()),
        }
    }

    fn close(&mut self, session: Session) {
        if let Some(slot) = self.desk.find(session) {
            self.desk.close(self.reactor, slot, Close::AfterSend);
        }
    }

    fn bind(&mut self, session: Session, uid: u64) {
        if self.desk.is_open(session) {
            self.desk.shared.sessions.bind(session, uid);
        }
    }

    fn measure(&mut self, session: Session, measure: Measure) {
        let found = self.desk.find(session);
        match (measure, found) {
            (Measure::SendFile(ticket), _) => self.send_ticket(session, ticket),
            (_, None) => {}
            (Measure::Pause, Some(slot)) => self.desk.pause(self.reactor, slot),
            (Measure::Resume, Some(slot)) => self.desk.unpause(self.reactor, slot),
            (Measure::Protect(on), Some(_)) => {
                self.desk.shared.sessions.set_flag(session, Flag::Protected, on)
            }
            (Measure::Reset, Some(slot)) => self.desk.close(self.reactor, slot, Close::Reset),
        }
    }

    fn datagram(&mut self, listener: Session, piece: &[u8]) {
        self.piece_of_datagram(listener, piece);
    }

    fn finished(&mut self, sent: &Sent, count: u32) {
        match sent.kind {
            // No connection waits for a datagram.
            RequestKind::Datagram => {}
            kind if kind.is_packet() && sent.last => {
                self.desk.finished(self.reactor, sent.session, count as usize);
            }
            RequestKind::Connect => self.desk.greeted(sent.session),
            _ => {}
        }
    }
}
