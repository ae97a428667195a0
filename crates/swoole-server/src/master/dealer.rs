//! Deals a reactor's packets to the workers, over the links.

use std::sync::Arc;

use swoole_reactor::Reactor;

use crate::config::DispatchMode;
use crate::desk::{Desk, Offer, Taker};
use crate::dispatch::{Dispatcher, Load};
use crate::link::ReactorEnd;
use crate::session::Session;
use crate::shared::Shared;
use crate::wire::RequestKind;

pub(super) struct Dealer {
    pub(super) links: Vec<ReactorEnd>,
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
}

impl Dealer {
    pub(super) fn new(reactor: u8, shared: Arc<Shared>, links: Vec<ReactorEnd>) -> Dealer {
        let dispatcher = Dispatcher::new(shared.config.dispatch_mode, shared.config.worker_num, reactor);
        Dealer { links, dispatcher, shared }
    }

    /// Whether this worker serves: it has said so, and has not died since.
    pub(super) fn set_up(&mut self, worker: u16, up: bool) {
        self.dispatcher.set_up(worker, up);
    }
}

impl Taker for Dealer {
    const AT_ONCE: bool = false;

    fn home(&mut self) -> u16 {
        self.dispatcher.home()
    }

    fn connect(&mut self, _: &mut Desk, _: &mut Reactor, session: Session, home: u16) -> Result<(), usize> {
        let home = usize::from(home);
        if self.links[home].offer(RequestKind::Connect, session, &[]) { Ok(()) } else { Err(home) }
    }

    fn packet(&mut self, _: &mut Desk, _: &mut Reactor, session: Session, home: u16, packet: &[u8]) -> Offer {
        let Dealer { links, dispatcher, shared } = self;
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

    fn deliver(&mut self, _: &mut Desk, _: &mut Reactor) {}

    fn is_clear(&self, worker: usize) -> bool {
        self.links[worker].is_clear()
    }
}
