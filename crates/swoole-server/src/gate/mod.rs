//! The gate: who is let in, and how fast.
//!
//! In Process mode there is one, the main thread's, and reactors tell it who has left; in Base mode each worker has its own.

mod crowd;
mod rate;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swoole_reactor::{Reactor, TimerId};

use crate::config::{ByListener, Config, ProxyProtocol};
use crate::seldom::Seldom;
use crate::session::Arrival;
use crowd::{Crowd, Place};
use rate::Rate;

/// How often it is told that clients are refused.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How many clients each address has, known to all who let them in and see them leave. Threads of one process share it: a
/// lock in it is good for nothing else.
#[derive(Clone, Default)]
pub(crate) struct Visitors(Option<Arc<Book>>);

struct Book {
    limits: ByListener<usize>,
    crowd: Arc<Mutex<Crowd>>,
}

impl std::fmt::Debug for Visitors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Visitors")
    }
}

impl Visitors {
    /// `before`: those of whom some are still here.
    fn new(config: &Config, before: &Visitors) -> Visitors {
        // Who comes by a proxy connects from the proxy's address, as everybody else does.
        let limits = ByListener::new(config, |config| match config.proxy_protocol {
            ProxyProtocol::Off => config.max_connection_per_ip,
            _ => 0,
        });
        let is_on = limits.all().iter().any(|limit| *limit > 0);
        let crowd = || before.0.as_ref().map(|book| Arc::clone(&book.crowd)).unwrap_or_default();
        Visitors(is_on.then(|| Arc::new(Book { limits, crowd: crowd() })))
    }

    fn admits(&self, arrival: &Arrival) -> bool {
        let Some((book, place)) = self.place(arrival.listener, arrival.peer) else { return true };
        book.crowd.lock().enter(place, *book.limits.of(|| Some(arrival.listener)))
    }

    /// One that another process has let in is this one's from now on.
    pub(crate) fn take_over(&self, listener: u16, peer: Option<SocketAddr>) {
        if let Some((book, place)) = self.place(listener, peer) {
            book.crowd.lock().enter(place, usize::MAX);
        }
    }

    /// One that was let in has left.
    pub(crate) fn leave(&self, listener: u16, peer: Option<SocketAddr>) {
        if let Some((book, place)) = self.place(listener, peer) {
            book.crowd.lock().leave(place);
        }
    }

    /// Whether anybody is counted.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Where this one is counted: nowhere if there is no limit for it, or, as with clients of a unix socket, no address.
    fn place(&self, listener: u16, peer: Option<SocketAddr>) -> Option<(&Book, Place)> {
        let book = self.0.as_deref().filter(|book| *book.limits.of(|| Some(listener)) > 0)?;
        peer.map(|peer| (book, Place::new(listener, peer.ip())))
    }
}

pub(crate) struct Gate {
    visitors: Visitors,
    refused: Seldom,
    rate: Option<Rate>,
    begin: Instant,
    /// Shut until this runs out.
    shut: Option<TimerId>,
}

impl Gate {
    /// One of so many.
    pub(crate) fn new(config: &Config, gates: u16) -> Gate {
        let share = config.max_accept_rate.div_ceil(gates.max(1).into());
        Gate {
            visitors: Visitors::new(config, &Visitors::default()),
            refused: Seldom::new(TELL_EVERY),
            rate: (share > 0).then(|| Rate::new(share)),
            begin: Instant::now(),
            shut: None,
        }
    }

    /// There are other addresses: whoever sees clients leave has to have the [`visitors`](Gate::visitors) anew.
    pub(crate) fn relist(&mut self, config: &Config) {
        self.visitors = Visitors::new(config, &self.visitors);
    }

    pub(crate) fn visitors(&self) -> Visitors {
        self.visitors.clone()
    }

    /// Whether this one may come in. If so, it counts until it [leaves](Visitors::leave).
    pub(crate) fn admits(&mut self, arrival: &Arrival) -> bool {
        let admits = self.visitors.admits(arrival);
        if !admits {
            self.tell_refused(arrival);
        }
        admits
    }

    /// Says so now and then: there may be many.
    fn tell_refused(&mut self, arrival: &Arrival) {
        if let Some(others) = self.refused.happens() {
            let (peer, count) =
                (arrival.peer.map(|peer| peer.ip().to_string()).unwrap_or_default(), others + 1);
            tracing::warn!("{count} clients are refused, the last one from {peer} (max_connection_per_ip)");
        }
    }

    /// Somebody was accepted. True if nobody else may be, until [`opens`](Gate::opens).
    pub(crate) fn shuts(&mut self, reactor: &mut Reactor) -> bool {
        let Some(rate) = &mut self.rate else { return false };
        let wait = rate.accepted(self.begin.elapsed());
        if wait.is_zero() {
            return false;
        }
        // Of those that were under way already.
        if let Some(before) = self.shut.replace(reactor.timer(wait)) {
            reactor.cancel(before);
        }
        true
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.is_some()
    }

    /// Whether this timer is the end of the pause.
    pub(crate) fn opens(&mut self, timer: TimerId) -> bool {
        let opens = self.shut == Some(timer);
        if opens {
            self.shut = None;
        }
        opens
    }
}
