//! Which worker gets a packet.
//!
//! A connection has a *home*: the worker that hears of its connect and its close. Rules of a connection
//! ([`DispatchMode::is_by_connection`]) send all of its packets there, behind the connect and before the close on one
//! link. Rules of a packet may send each one anywhere; so that the order is the same for users, the first one waits until
//! the home is done with the connect, and the close waits until all are finished ([`Desk`](crate::desk::Desk)).
//!
//! | file | what |
//! |---|---|
//! | `mod` | the rules; pure: what they need to know is asked for |
//! | `custom` | a rule that the user gives as a function |
//! | `loads` | what all reactors know of what workers have to do |

mod custom;
mod loads;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::config::{Config, DispatchMode};
pub use custom::{Choice, Dispatch};
pub(crate) use custom::{Custom, Scene, Verdict};
pub(crate) use loads::{Gauge, Load, Loads};

/// How many workers are asked whether they have nothing to do, where two have something.
const OTHERS: usize = 8;

/// What all reactors of a server dispatch by.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) loads: Arc<Loads>,
    /// Under `custom`.
    pub(crate) custom: Option<Custom>,
}

impl Rule {
    pub(crate) fn new(config: &Config) -> Rule {
        Rule { loads: Arc::new(Loads::new(config.worker_num)), custom: None }
    }
}

/// What a rule may know of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    /// Its connection's home.
    pub(crate) home: u16,
    /// The user that its connection is bound to; 0 is nobody.
    pub(crate) uid: u64,
    pub(crate) packet: &'a [u8],
}

/// One reactor's dispatcher.
///
/// Connections find their home among the reactor's *own* workers: the fewer rings are busy, the more packets a pass moves
/// over each, and the fewer wake-ups that takes. Reactors get equal shares of the connections, so workers do, provided
/// that each reactor has equally many workers of its own, or each worker equally many reactors. If that cannot be, all
/// workers are everybody's.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    mode: DispatchMode,
    /// Workers that have said they are ready: by slot, and their slots in order.
    up: Vec<bool>,
    serving: Vec<u16>,
    /// Where the next walk over the workers begins.
    next: u16,
    /// The reactor's own workers, and whose turn among them it is.
    own: Vec<u16>,
    turn: usize,
    /// Which bytes of a packet are its key, under `consistent_hash`.
    key: Range<usize>,
    /// State of the generator that draws two workers.
    random: u64,
}

/// The reactor that this worker is an own worker of; `None` if it is of several.
pub(crate) fn reactor_of(worker: u16, workers: u16, reactors: u8) -> Option<u8> {
    let reactors = u16::from(reactors.max(1));
    workers.is_multiple_of(reactors).then(|| (worker % reactors) as u8)
}

impl Dispatcher {
    /// The dispatcher of one of the reactors, which are numbered from 0.
    pub(crate) fn new(config: &Config, reactor: u8) -> Dispatcher {
        let (workers, reactors) = (config.worker_num.max(1), u16::from(config.reactor_num.max(1)));
        let reactor = u16::from(reactor);
        let own = if workers.is_multiple_of(reactors) {
            (reactor..workers).step_by(reactors.into()).collect()
        } else if reactors.is_multiple_of(workers) {
            vec![reactor % workers]
        } else {
            (0..workers).map(|step| (reactor + step) % workers).collect()
        };
        Dispatcher {
            mode: config.dispatch_mode,
            up: vec![false; usize::from(workers)],
            serving: Vec::with_capacity(usize::from(workers)),
            // The reactors do not walk in step, ...
            next: reactor % workers,
            own,
            turn: 0,
            key: config.dispatch_key(),
            // ... and do not draw the same.
            random: mix(u64::from(reactor) + 1),
        }
    }

    /// Whether this worker serves: it has said so, and has not died since.
    pub(crate) fn set_up(&mut self, worker: u16, up: bool) {
        if let Some(slot) = self.up.get_mut(usize::from(worker)) {
            *slot = up;
        }
        let up = (0..).zip(&self.up).filter(|(_, up)| **up).map(|(worker, _)| worker);
        self.serving.clear();
        self.serving.extend(up);
    }

    pub(crate) fn serves(&self, worker: u16) -> bool {
        self.up.get(usize::from(worker)).is_some_and(|up| *up)
    }

    /// Whether a packet may be given to this worker: it serves, or none does.
    pub(crate) fn is_eligible(&self, worker: u16) -> bool {
        self.up[usize::from(worker)] || self.serving.is_empty()
    }

    /// The home of a new connection: its worker under the rules of a connection, and under every rule the one that hears
    /// of its connect and close. One that does not serve gets no new ones while another does.
    ///
    /// Under `ip_hash` it follows from the address, if the client has one. Rules that look at what workers have to do
    /// choose as for a packet, which has to wait for its connect. Else it is each of the own workers in turn.
    pub(crate) fn home(&mut self, peer: Option<IpAddr>, load: impl Fn(u16) -> Load) -> u16 {
        match (self.mode, peer) {
            (DispatchMode::IpHash, Some(peer)) => {
                let workers = self.up.len() as u64;
                self.next_serving((number_of(peer) % workers) as u16)
            }
            (DispatchMode::Idle, _) => self.least_busy(load),
            (DispatchMode::LeastInFlight, _) => {
                let home = self.own_in_turn();
                self.less_loaded(load).unwrap_or(home)
            }
            _ => self.own_in_turn(),
        }
    }

    /// The same for datagrams from this address, of which nobody is told as a connect: under every rule a hash of the
    /// address leads there, under `ip_hash` that of its IP address.
    pub(crate) fn home_of_datagram(&self, peer: Option<IpAddr>, address: &[u8]) -> u16 {
        let number = match peer {
            Some(peer) if self.mode == DispatchMode::IpHash => number_of(peer),
            _ => mix(hash(address)),
        };
        self.next_serving((number % self.up.len() as u64) as u16)
    }

    fn own_in_turn(&mut self) -> u16 {
        let turn = self.turn;
        self.turn = (turn + 1) % self.own.len();
        let mut own = self.own[turn..].iter().chain(&self.own[..turn]).copied();
        let first = self.own[turn];
        own.find(|&worker| self.up[usize::from(worker)]).unwrap_or_else(|| self.next_serving(first))
    }

    /// Who serves, `first` if possible, and else the next one.
    fn next_serving(&self, first: u16) -> u16 {
        self.walk(first).find(|&worker| self.up[usize::from(worker)]).unwrap_or(first)
    }

    /// The worker for a packet.
    pub(crate) fn choose(&mut self, query: Query<'_>, load: impl Fn(u16) -> Load) -> u16 {
        match self.mode {
            DispatchMode::RoundRobin => {
                let first = self.turn();
                self.next_serving(first)
            }
            DispatchMode::Idle => self.least_busy(load),
            DispatchMode::LeastInFlight => self.less_loaded(load).unwrap_or(query.home),
            DispatchMode::Uid => self.of_uid(query.home, query.uid),
            DispatchMode::ConsistentHash => self.of_key(query.home, query.packet),
            DispatchMode::Fixed | DispatchMode::IpHash | DispatchMode::Custom => query.home,
        }
    }

    /// That of a connection which is bound to this user, under `uid`. Whether it serves does not matter: a packet that
    /// went elsewhere meanwhile could be overtaken.
    pub(crate) fn of_uid(&self, home: u16, uid: u64) -> u16 {
        if uid == 0 { home } else { (uid % self.up.len() as u64) as u16 }
    }

    /// Each worker has a number for each key, and the one with the highest gets it (rendezvous hashing): when one is gone,
    /// the keys of all others stay where they are.
    fn of_key(&self, home: u16, packet: &[u8]) -> u16 {
        let key = packet.get(self.key.start..self.key.end.min(packet.len())).unwrap_or(&[]);
        if key.is_empty() {
            return home;
        }
        let key = hash(key);
        let weight = |worker: &u16| mix(key ^ mix(u64::from(*worker) + 1));
        let best = if self.serving.is_empty() {
            (0..self.up.len() as u16).max_by_key(weight)
        } else {
            self.serving.iter().copied().max_by_key(weight)
        };
        best.unwrap_or(home)
    }

    /// The first in turn of those with the least to do.
    fn least_busy(&mut self, load: impl Fn(u16) -> Load) -> u16 {
        let first = self.turn();
        let up = self.walk(first).filter(|&worker| self.up[usize::from(worker)]);
        up.min_by_key(|&worker| load(worker).by_business()).unwrap_or(first)
    }

    /// The one with less to do of two that are drawn: almost as good as the least of all, at a cost that does not grow
    /// with their number (Mitzenmacher, "The power of two choices in randomized load balancing", 2001). If both have
    /// something, a few more are asked for one that has nothing: counts do not tell what is short from what is long.
    fn less_loaded(&mut self, load: impl Fn(u16) -> Load) -> Option<u16> {
        let count = self.serving.len();
        if count < 2 {
            return self.serving.first().copied();
        }
        self.random = mix(self.random);
        let (first, step) = (self.random as u32 as usize, (self.random >> 32) as usize);
        let (first, step) = (first % count, 1 + step % (count - 1));
        let two = [self.serving[first], self.serving[(first + step) % count]];
        let best = two.into_iter().min_by_key(|&worker| load(worker).by_flight())?;
        if load(best).in_flight == 0 {
            return Some(best);
        }
        let others = self.serving[first..].iter().chain(&self.serving[..first]).take(OTHERS);
        Some(others.copied().find(|&worker| load(worker).in_flight == 0).unwrap_or(best))
    }

    fn turn(&mut self) -> u16 {
        let first = self.next;
        self.next = (first + 1) % self.up.len() as u16;
        first
    }

    fn walk(&self, first: u16) -> impl Iterator<Item = u16> + use<> {
        let workers = self.up.len() as u16;
        (first..workers).chain(0..first)
    }
}

/// What an address is taken for: an IPv4 one for its number, so that neighbours spread evenly.
fn number_of(peer: IpAddr) -> u64 {
    match peer.to_canonical() {
        IpAddr::V4(peer) => peer.to_bits().into(),
        IpAddr::V6(peer) => hash(&peer.octets()),
    }
}

/// The same in every process and version, as a worker may keep what belongs to its keys. FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A number that looks like no other one's: the step of SplitMix64.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
