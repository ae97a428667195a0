//! Takes packets off the desk and handles them at once.

use std::net::IpAddr;

use swoole_reactor::Reactor;

use super::till::{Outbox, Till};
use crate::datagram::DatagramClient;
use crate::desk::{Client, Desk, Offer, Taker};
use crate::handler::Handler;
use crate::session::Session;
use crate::wire::RequestKind;
use crate::worker::{Duty, Way, Worker, callbacks};

pub(super) struct Hands<'a, H> {
    pub(super) handler: &'a mut H,
    pub(super) duty: &'a mut Duty,
    pub(super) outbox: &'a mut Outbox,
}

impl<H: Handler> Hands<'_, H> {
    /// Runs a callback.
    pub(super) fn call<T>(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        run: impl FnOnce(&mut H, &mut Worker<'_>) -> T,
    ) -> T {
        let till = Till { desk, reactor, outbox: self.outbox };
        run(self.handler, &mut Worker { duty: self.duty, way: Way::Own(till) })
    }

    /// Runs the callback for one message.
    pub(super) fn message(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        kind: RequestKind,
        session: Session,
        payload: &[u8],
    ) {
        self.call(desk, reactor, |handler, worker| {
            callbacks::message(handler, worker, kind, session, payload);
        });
    }
}

impl<H: Handler> Taker for Hands<'_, H> {
    const AT_ONCE: bool = true;

    fn home(&mut self, _: Option<IpAddr>) -> u16 {
        self.duty.id
    }

    fn connect(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        session: Session,
        _: u16,
    ) -> Result<(), usize> {
        self.message(desk, reactor, RequestKind::Connect, session, &[]);
        Ok(())
    }

    fn packet(&mut self, desk: &mut Desk, reactor: &mut Reactor, client: &Client, packet: &[u8]) -> Offer {
        let session = client.session;
        // What else clients have sent is the successor's.
        if self.duty.retiring && self.duty.has_heir {
            return Offer::Blocked(0);
        }
        let Duty { shared, id, .. } = &*self.duty;
        shared.board.hold(*id, Some((session, packet.len())));
        self.message(desk, reactor, RequestKind::Packet, session, packet);
        let last = self.outbox.closes(session) || !desk.is_open(session);
        if last { Offer::Last } else { Offer::Taken }
    }

    fn datagram(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        from: &DatagramClient,
        bytes: &[u8],
    ) -> bool {
        let Duty { shared, id, .. } = &*self.duty;
        shared.board.hold(*id, Some((Session::of_listener(from.listener), bytes.len())));
        self.call(desk, reactor, |handler, worker| callbacks::datagram(handler, worker, from, bytes));
        true
    }

    fn deliver(&mut self, desk: &mut Desk, reactor: &mut Reactor) {
        self.duty.shared.board.hold(self.duty.id, None);
        // Handlers may have taken their time.
        desk.time_passes();
        Till { desk, reactor, outbox: self.outbox }.deliver();
        self.duty.post.sender.pump();
    }

    fn is_clear(&self, _: usize) -> bool {
        true
    }

    fn is_busy(&self, _: usize) -> bool {
        false
    }
}
