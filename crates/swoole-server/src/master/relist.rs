//! Addresses that a reload adds and removes.
//!
//! A reload asks the program for its configuration anew ([`Reread`]). An address that is gone is closed as all are in a stop:
//! who had connected before is let in. A new one is opened at once, so that what is wrong with it is said at once; its clients
//! wait in its backlog until the reload is over, and all workers know whom they have to do with.

use std::sync::Arc;

use rustix::fd::{AsFd as _, OwnedFd};
use swoole_reactor::{Close, Reactor, TimerId, Token};

use super::mailbox::Command;
use super::{Office, Stage};
use crate::config::Listen;
use crate::control::Order;
use crate::error::Result;
use crate::handler::Handler;
use crate::listeners;
use crate::listening::{Change, Listening, Reread};
use crate::stop::Leavers;

pub(super) struct Relist {
    reread: Option<Reread>,
    /// Open, and known to no worker yet.
    pending: Vec<Pending>,
    /// Accepting for the last time.
    leavers: Leavers,
}

struct Pending {
    number: u16,
    socket: Socket,
}

enum Socket {
    New(OwnedFd),
    /// Of a listener that is open, until this one is.
    Of(u16),
}

impl Relist {
    pub(super) fn new(reread: Option<Reread>) -> Relist {
        Relist { reread, pending: Vec::new(), leavers: Leavers::default() }
    }

    /// Whether there is an address that nobody is accepted by before a reload.
    pub(super) fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn owns(&self, timer: TimerId) -> bool {
        self.leavers.owns(timer)
    }

    /// Somebody has come by this listener.
    pub(super) fn heard(&mut self, listener: Token) {
        self.leavers.heard(listener);
    }

    /// Nobody is accepted any more.
    pub(super) fn end(&mut self, reactor: &mut Reactor) {
        self.pending.clear();
        self.leavers.end(reactor);
    }

    fn take(&mut self, number: u16) -> Option<Socket> {
        let index = self.pending.iter().position(|pending| pending.number == number)?;
        Some(self.pending.swap_remove(index).socket)
    }
}

impl<H: Handler> Office<H> {
    /// Has all workers replaced, and addresses as the program wants them by now.
    pub(super) fn reload(&mut self, reactor: &mut Reactor) {
        if let Some(reread) = self.relist.reread.clone()
            && let Err(error) = self.look(reactor, &reread)
        {
            tracing::error!("addresses stay as they are: {error}");
        }
        self.order(&Order::Reload);
    }

    fn look(&mut self, reactor: &mut Reactor, reread: &Reread) -> Result<()> {
        let now = self.shared.listening();
        let Some(change) = reread.look(&now)? else { return Ok(()) };
        let opened = listeners::open_more(&now, &change)?;
        let found = opened.iter().map(|(_, found)| found.clone()).collect();
        let then = now.changed(&change, found, &reread.functions);
        let then = then.and_then(|then| self.shared.tls.load_if_any(&then).map(|()| then));
        let then = then.inspect_err(|_| listeners::put_away_unused(&opened))?;
        self.install(reactor, &change, opened, Arc::new(then));
        Ok(())
    }

    fn install(
        &mut self,
        reactor: &mut Reactor,
        change: &Change,
        opened: Vec<(Option<OwnedFd>, Listen)>,
        listening: Arc<Listening>,
    ) {
        let known = self.shared.listening().addresses().len();
        self.shared.set_listening(Arc::clone(&listening));
        self.gate.relist(listening.config());
        let visitors = self.gate.visitors();
        let relist = || Command::Relist { listening: Arc::clone(&listening), visitors: visitors.clone() };
        self.crew.tell(relist);
        for closed in &change.close {
            self.close(reactor, *closed);
        }
        for (opening, (socket, found)) in change.open.iter().zip(opened) {
            let number = opening.number;
            if usize::from(number) >= known {
                self.order(&Order::Address(Box::new((opening.wanted.clone(), found))));
            }
            let socket = match (socket, opening.instead_of) {
                (Some(socket), _) => Some(Socket::New(socket)),
                (None, Some(before)) => Some(self.relist.take(before).unwrap_or(Socket::Of(before))),
                (None, None) => None,
            };
            self.relist.pending.extend(socket.map(|socket| Pending { number, socket }));
        }
    }

    /// Lets nobody in by this listener any more but those who have connected.
    fn close(&mut self, reactor: &mut Reactor, number: u16) {
        let listening = self.shared.listening();
        let Some(listen) = listening.address(number) else { return };
        tracing::info!("Server leaves {}", listen.url());
        listening.wanted(number).into_iter().for_each(listeners::put_away);
        let number = match self.relist.take(number) {
            Some(Socket::New(_)) => return,
            Some(Socket::Of(before)) => before,
            None => number,
        };
        if listen.address.is_datagram() {
            let owner = self.shared.config.reactor_of_listener(number);
            self.crew.tell_one(owner.into(), Command::CloseDatagrams { listener: number });
        } else if let Some((token, _)) = self.accepting.iter().find(|(_, its)| *its == number) {
            self.relist.leavers.begin(reactor, *token, self.shared.config.max_wait_time);
        }
    }

    /// A turn of listeners that are removed is over.
    pub(super) fn end_turn_of_leaving(&mut self, reactor: &mut Reactor, timer: TimerId) {
        if let Some(gone) = self.relist.leavers.end_turn(reactor, timer) {
            self.accepting.retain(|(token, _)| *token != gone);
            reactor.close(gone, Close::Now);
        }
    }

    /// A reload is over, and all workers know so many addresses.
    pub(super) fn reloaded(&mut self, reactor: &mut Reactor, known: u16) {
        if self.stage != Stage::Serving {
            return;
        }
        let listening = self.shared.listening();
        for Pending { number, socket } in
            self.relist.pending.extract_if(.., |pending| pending.number < known).collect::<Vec<_>>()
        {
            let Some(listen) = listening.address(number) else { continue };
            let opened = match socket {
                Socket::New(socket) => self.open(reactor, socket, listen, number),
                Socket::Of(before) => self.rename(reactor, before, number, &listening),
            };
            match opened {
                Ok(()) => tracing::info!("Server is ready on {}, too", listen.url()),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    /// The socket of a listener is that of another one, with options of its own.
    fn rename(&mut self, reactor: &Reactor, before: u16, number: u16, listening: &Listening) -> Result<()> {
        let Some((token, its)) = self.accepting.iter_mut().find(|(_, its)| *its == before) else {
            return Ok(());
        };
        *its = number;
        match reactor.socket(*token) {
            Some(socket) => listeners::set_again(listening, number, socket.as_fd()),
            None => Ok(()),
        }
    }
}
