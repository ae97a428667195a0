//! Deals a reactor's packets to the workers, over the links.

use std::ops::Range;
use std::sync::Arc;

use swoole_protocol::Framer;
use swoole_reactor::Reactor;

use crate::config::{Config, DispatchMode, Ipc};
use crate::desk::{Desk, Fed, Intake, Offer, Taker, feed};
use crate::dispatch::{Dispatcher, Load};
use crate::link::{BATCH_MAX, Parcel, ReactorEnd};
use crate::session::Session;
use crate::shared::Shared;
use crate::wire::RequestKind;

pub(super) struct Dealer {
    pub(super) links: Vec<ReactorEnd>,
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    /// Those of the batch at hand.
    packets: Vec<Range<usize>>,
}

impl Dealer {
    pub(super) fn new(reactor: u8, shared: Arc<Shared>, links: Vec<ReactorEnd>) -> Dealer {
        let Config { dispatch_mode, worker_num, reactor_num, .. } = shared.config;
        let dispatcher = Dispatcher::new(dispatch_mode, worker_num, reactor, reactor_num);
        Dealer { links, dispatcher, shared, packets: Vec::with_capacity(BATCH_MAX) }
    }

    /// Whether all packets of a connection go to one worker, by a ring: then they can be received into it.
    pub(super) fn takes_in(&self) -> bool {
        let Config { dispatch_mode, ipc, .. } = self.shared.config;
        dispatch_mode == DispatchMode::Fixed && ipc == Ipc::Ring
    }

    /// Whether this worker serves: it has said so, and has not died since.
    pub(super) fn set_up(&mut self, worker: u16, up: bool) {
        self.dispatcher.set_up(worker, up);
    }

    /// Tells the home that the connection is there; `Err` is the queue to wait in until there is room for that.
    pub(super) fn announce(&mut self, session: Session, home: u16) -> Result<(), usize> {
        let home = usize::from(home);
        if self.links[home].offer(RequestKind::Connect, session, &[]) { Ok(()) } else { Err(home) }
    }

    pub(super) fn deal(&mut self, session: Session, home: u16, packet: &[u8]) -> Offer {
        let Dealer { links, dispatcher, shared, .. } = self;
        let chosen = dispatcher.choose(home, |worker| Load {
            busy: !shared.board.is_idle(worker),
            in_flight: links[usize::from(worker)].in_flight(),
        });
        let (first, workers) = (usize::from(chosen), links.len());
        let mut offer = |worker: usize| links[worker].offer(RequestKind::Packet, session, packet);
        let (taken, queue) = if shared.config.dispatch_mode == DispatchMode::Fixed {
            (offer(first), first)
        } else {
            // Where the rule leaves a choice, a full link is a reason to choose again.
            let mut others = (0..workers).map(|step| (first + step) % workers);
            (others.any(|worker| dispatcher.is_eligible(worker as u16) && offer(worker)), workers)
        };
        if taken { Offer::Taken } else { Offer::Blocked(queue) }
    }
}

impl Taker for Dealer {
    const AT_ONCE: bool = false;

    fn home(&mut self) -> u16 {
        self.dispatcher.home()
    }

    fn connect(&mut self, _: &mut Desk, _: &mut Reactor, session: Session, home: u16) -> Result<(), usize> {
        self.announce(session, home)
    }

    fn packet(&mut self, _: &mut Desk, _: &mut Reactor, session: Session, home: u16, packet: &[u8]) -> Offer {
        self.deal(session, home, packet)
    }

    fn take_in(
        &mut self,
        session: Session,
        home: u16,
        framer: &mut Framer,
        begun: &[u8],
        least: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Option<Intake> {
        if !self.takes_in() {
            return None;
        }
        let home = usize::from(home);
        let link = &mut self.links[home];
        // A packet that hardly fits into a record, or not at all, is put together elsewhere.
        if begun.len() > link.record_max() / 2 {
            return None;
        }
        let Some(space) = link.space(begun.len() + least.max(1)) else {
            let fed = Fed::Blocked(home);
            return Some(Intake { read: None, packets: 0, rest: Vec::new(), fed });
        };
        space[..begun.len()].copy_from_slice(begun);
        let read = fill(&mut space[begun.len()..]);
        let received = &space[..begun.len() + read];
        self.packets.clear();
        let packets = &mut self.packets;
        let (used, fed) = feed(framer, received, |packet| {
            let start = packet.as_ptr().addr() - received.as_ptr().addr();
            packets.push(start..start + packet.len());
            // What is beyond is offered piece by piece.
            if packets.len() == BATCH_MAX { Offer::Last } else { Offer::Taken }
        });
        let rest = received[used..].to_vec();
        link.send_batch(session, packets);
        Some(Intake { read: Some(read), packets: packets.len(), rest, fed })
    }

    fn take_whole(&mut self, session: Session, home: u16, packet: Vec<u8>) -> Result<(), Vec<u8>> {
        let link = &mut self.links[usize::from(home)];
        if self.shared.config.dispatch_mode != DispatchMode::Fixed || !link.is_clear() {
            return Err(packet);
        }
        link.enqueue(Parcel::new(RequestKind::Packet, session, packet));
        Ok(())
    }

    fn deliver(&mut self, _: &mut Desk, _: &mut Reactor) {}

    fn is_clear(&self, worker: usize) -> bool {
        self.links[worker].is_clear()
    }

    fn is_busy(&self, worker: usize) -> bool {
        self.links[worker].in_flight() > 0
    }
}
