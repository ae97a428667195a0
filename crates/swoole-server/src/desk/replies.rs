//! Replies in, bytes out.

use std::io::IoSlice;

use swoole_reactor::{Close, FileRange, Reactor, Token};

use super::Desk;
use super::topics::Subscribed;
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
            Parcel::Message(from, _) => tracing::error!("a message from {from} has come to a reactor"),
        }
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
        if let Err(error) = self.reactor.send_file(token, range) {
            tracing::debug!(%session, "connection lost: {error}");
            return self.desk.close(self.reactor, slot, Close::Now);
        }
        self.desk.shared.sessions.sent(session, length as usize, self.reactor.queued(token));
        self.desk.count(Counter::Sent, length);
    }

    fn send_by(
        &mut self,
        session: Session,
        len: usize,
        send: impl FnOnce(&mut Reactor, Token) -> Result<(), swoole_reactor::Error>,
    ) {
        // The client has left meanwhile, or the worker lies: nobody gets it.
        let Some(slot) = self.desk.find(session) else { return };
        let token = self.desk.connections[slot].token;
        let limit = self.desk.shared.config.socket_buffer_size;
        let queued = self.reactor.queued(token);
        // Whoever has taken everything before may be sent more than the limit at once: the worker has bounded that.
        if queued > 0 && queued + len > limit {
            tracing::warn!(%session, "closed, it does not read: {queued} bytes wait for it (socket_buffer_size = {limit})");
            return self.desk.close(self.reactor, slot, Close::Reset);
        }
        if let Err(error) = send(self.reactor, token) {
            tracing::debug!(%session, "connection lost: {error}");
            return self.desk.close(self.reactor, slot, Close::Now);
        }
        let queued = self.reactor.queued(token);
        self.desk.shared.sessions.sent(session, len, queued);
        self.desk.rise(self.reactor, slot, queued);
        self.desk.count(Counter::Sent, len as u64);
    }
}

impl ReplySink for Replies<'_> {
    fn send(&mut self, session: Session, parts: &[IoSlice<'_>]) {
        let len = parts.iter().map(|part| part.len()).sum();
        self.send_by(session, len, |reactor, token| reactor.send_slices(token, parts));
    }

    fn send_owned(&mut self, session: Session, bytes: Vec<u8>) {
        self.send_by(session, bytes.len(), |reactor, token| reactor.send(token, bytes));
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

    fn finished(&mut self, sent: &Sent, count: u32) {
        match sent.kind {
            RequestKind::Packet | RequestKind::Batch if sent.last => {
                self.desk.finished(self.reactor, sent.session, count as usize);
            }
            RequestKind::Connect => self.desk.greeted(sent.session),
            _ => {}
        }
    }
}
