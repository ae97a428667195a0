//! Sessions: how a client is known in every process.
//!
//! A [`Session`] says which reactor owns the connection, which slot of that reactor's table, and
//! which tenant of the slot. It is never given twice within a server's life, so a stale one can
//! only miss, never hit somebody else.
//!
//! What a worker may ask about a connection stands in shared memory, in fixed-size entries that
//! only the owning reactor writes. The facts that belong together are read under a sequence lock;
//! the byte counters are single words and need none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use swoole_ipc::words::Words;

use crate::error::{Error, Result};

/// A client's connection, from its accept to its close.
///
/// 64 bits: 6 of the reactor, 20 of its slot, 38 of the slot's generation, which begins at 1. The
/// text form is the number; 0 is never a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(u64);

const REACTOR_BITS: u32 = 6;
const SLOT_BITS: u32 = 20;

/// The last tenant of a slot: after 2^38 of them (half a year of 20,000 a second in one slot) it is given to nobody
/// any more.
pub(crate) const GENERATION_MAX: u64 = u64::MAX >> (REACTOR_BITS + SLOT_BITS);

impl Session {
    pub(crate) fn new(reactor: u8, slot: u32, generation: u64) -> Session {
        debug_assert!(reactor >> REACTOR_BITS == 0 && slot >> SLOT_BITS == 0 && generation <= GENERATION_MAX);
        Session(
            generation << (REACTOR_BITS + SLOT_BITS) | u64::from(slot) << REACTOR_BITS | u64::from(reactor),
        )
    }

    pub(crate) fn from_raw(raw: u64) -> Session {
        Session(raw)
    }

    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// The reactor thread that owns the connection, from 0.
    pub fn reactor(self) -> u8 {
        self.0 as u8 & ((1 << REACTOR_BITS) - 1)
    }

    pub(crate) fn slot(self) -> usize {
        (self.0 >> REACTOR_BITS) as usize & ((1 << SLOT_BITS) - 1)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Session({} = reactor {}, slot {}, #{})",
            self.0,
            self.reactor(),
            self.slot(),
            self.0 >> (REACTOR_BITS + SLOT_BITS)
        )
    }
}

impl FromStr for Session {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Session, Self::Err> {
        text.parse().map(Session)
    }
}

/// What is known of a connected session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session itself.
    pub session: Session,
    /// The reactor thread that owns it, from 0.
    pub reactor: u8,
    /// The listener it came in by: its index in the configuration's `listen`.
    pub listener: u16,
    /// The listener's port; 0 for a unix socket.
    pub port: u16,
    /// The client's address; `None` for a unix socket.
    pub peer: Option<SocketAddr>,
    /// When it was accepted: milliseconds since the Unix epoch.
    pub connected_at: u64,
    /// Bytes received from the client so far.
    pub received: u64,
    /// Bytes handed to the socket for the client so far.
    pub sent: u64,
}

/// What the reactor knows when it opens a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) listener: u16,
    pub(crate) port: u16,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) connected_at: u64,
}

// The words of one entry. 16 of them: two cache lines, so that no two connections share one.
const ENTRY: usize = 16;
const SEQUENCE: usize = 0;
const SESSION: usize = 1;
const CONNECTED_AT: usize = 2;
const WHERE: usize = 3; // family (0 none, 4, 6) | peer port << 16 | local port << 32 | listener << 48
const ADDRESS_HIGH: usize = 4;
const ADDRESS_LOW: usize = 5;
const RECEIVED: usize = 8;
const SENT: usize = 9;

/// All sessions of a server, in shared memory.
#[derive(Clone)]
pub(crate) struct SessionTable {
    words: Words,
    reactors: usize,
    slots: usize,
}

impl SessionTable {
    /// Room for `slots` sessions on each of `reactors` reactors. Pages cost memory once they are used.
    pub(crate) fn create(reactors: usize, slots: usize) -> Result<SessionTable> {
        let words = Words::create("swoole-sessions", reactors * slots * ENTRY).map_err(|error| {
            Error::setup(format!("map the session table ({} sessions)", reactors * slots), error)
        })?;
        Ok(SessionTable { words, reactors, slots })
    }

    /// Makes the table read-only in this process.
    pub(crate) fn protect(&self) -> Result<(), swoole_ipc::Error> {
        self.words.protect()
    }

    fn entry(&self, session: Session) -> Option<&[AtomicU64]> {
        let reactor = usize::from(session.reactor());
        // 0 marks a free entry and is nobody's session.
        if session.raw() == 0 || reactor >= self.reactors || session.slot() >= self.slots {
            return None;
        }
        let start = (reactor * self.slots + session.slot()) * ENTRY;
        self.words.get(start..start + ENTRY)
    }

    /// The owning reactor publishes a new session.
    pub(crate) fn open(&self, session: Session, arrival: &Arrival) {
        let Some(entry) = self.entry(session) else { return };
        let (family, peer_port, high, low) = match arrival.peer {
            None => (0, 0, 0, 0),
            Some(SocketAddr::V4(peer)) => (4, peer.port(), 0, u64::from(peer.ip().to_bits())),
            Some(SocketAddr::V6(peer)) => {
                let bits = peer.ip().to_bits();
                (6, peer.port(), (bits >> 64) as u64, bits as u64)
            }
        };
        let place = family
            | u64::from(peer_port) << 16
            | u64::from(arrival.port) << 32
            | u64::from(arrival.listener) << 48;
        write_locked(entry, || {
            entry[CONNECTED_AT].store(arrival.connected_at, Ordering::Relaxed);
            entry[WHERE].store(place, Ordering::Relaxed);
            entry[ADDRESS_HIGH].store(high, Ordering::Relaxed);
            entry[ADDRESS_LOW].store(low, Ordering::Relaxed);
            entry[RECEIVED].store(0, Ordering::Relaxed);
            entry[SENT].store(0, Ordering::Relaxed);
            entry[SESSION].store(session.raw(), Ordering::Relaxed);
        });
    }

    /// The owning reactor takes a session back.
    pub(crate) fn close(&self, session: Session) {
        if let Some(entry) = self.entry(session) {
            write_locked(entry, || entry[SESSION].store(0, Ordering::Relaxed));
        }
    }

    /// The owning reactor's counters; it is their only writer.
    pub(crate) fn count(&self, session: Session, received: usize, sent: usize) {
        let Some(entry) = self.entry(session) else { return };
        for (word, more) in [(RECEIVED, received), (SENT, sent)] {
            if more > 0 {
                let sum = entry[word].load(Ordering::Relaxed).wrapping_add(more as u64);
                entry[word].store(sum, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn exists(&self, session: Session) -> bool {
        self.entry(session).is_some_and(|entry| entry[SESSION].load(Ordering::Acquire) == session.raw())
    }

    pub(crate) fn info(&self, session: Session) -> Result<SessionInfo> {
        let missing = Error::NoSuchSession(session);
        let Some(entry) = self.entry(session) else { return Err(missing) };
        // A writer is at work for nanoseconds; one that died in there has taken the server with it,
        // so the number of tries only bounds a lie.
        for _ in 0..1_000_000 {
            let before = entry[SEQUENCE].load(Ordering::Acquire);
            let facts = [SESSION, CONNECTED_AT, WHERE, ADDRESS_HIGH, ADDRESS_LOW]
                .map(|word| entry[word].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before & 1 == 1 || entry[SEQUENCE].load(Ordering::Relaxed) != before {
                std::hint::spin_loop();
                continue;
            }
            let [id, connected_at, place, high, low] = facts;
            if id != session.raw() {
                return Err(missing);
            }
            return Ok(SessionInfo {
                session,
                reactor: session.reactor(),
                listener: (place >> 48) as u16,
                port: (place >> 32) as u16,
                peer: address(place, high, low),
                connected_at,
                received: entry[RECEIVED].load(Ordering::Relaxed),
                sent: entry[SENT].load(Ordering::Relaxed),
            });
        }
        Err(missing)
    }

    /// Every session that is connected at some moment of the walk.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Session> + '_ {
        self.words.chunks_exact(ENTRY).filter_map(|entry| {
            let raw = entry[SESSION].load(Ordering::Acquire);
            (raw != 0).then(|| Session::from_raw(raw))
        })
    }
}

/// The writer's half of the sequence lock: odd while the facts change (Boehm, "Can seqlocks get
/// along with programming language memory models?", 2012).
fn write_locked(entry: &[AtomicU64], write: impl FnOnce()) {
    let sequence = entry[SEQUENCE].load(Ordering::Relaxed);
    entry[SEQUENCE].store(sequence.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    write();
    entry[SEQUENCE].store(sequence.wrapping_add(2), Ordering::Release);
}

fn address(place: u64, high: u64, low: u64) -> Option<SocketAddr> {
    let port = (place >> 16) as u16;
    let ip = match place & 0xffff {
        4 => IpAddr::V4(Ipv4Addr::from_bits(low as u32)),
        6 => IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(peer: &str) -> Arrival {
        Arrival { listener: 2, port: 9501, peer: peer.parse().ok(), connected_at: 1_700_000_000_123 }
    }

    #[test]
    fn the_parts_of_a_session_come_back() {
        let session = Session::new(63, 0xab_cde, GENERATION_MAX);
        assert_eq!(session.reactor(), 63);
        assert_eq!(session.slot(), 0xab_cde);
        assert_eq!(session.to_string().parse(), Ok(session));
    }

    #[test]
    fn info_is_what_the_reactor_wrote() {
        let table = SessionTable::create(2, 4).unwrap();
        for peer in ["127.0.0.1:5000", "[2001:db8::7]:6000", "none"] {
            let session = Session::new(1, 3, 7);
            table.open(session, &arrival(peer));
            table.count(session, 10, 20);
            table.count(session, 1, 0);
            let info = table.info(session).unwrap();
            assert_eq!((info.listener, info.port), (2, 9501));
            assert_eq!(info.peer, peer.parse().ok());
            assert_eq!(info.connected_at, 1_700_000_000_123);
            assert_eq!((info.received, info.sent), (11, 20));
            assert_eq!(table.iter().collect::<Vec<_>>(), [session]);
            table.close(session);
            assert!(table.info(session).is_err());
            assert_eq!(table.iter().count(), 0);
        }
    }

    #[test]
    fn a_stale_or_invented_session_only_misses() {
        let table = SessionTable::create(2, 4).unwrap();
        let old = Session::new(0, 1, 1);
        let new = Session::new(0, 1, 2);
        table.open(old, &arrival("127.0.0.1:1"));
        table.close(old);
        table.open(new, &arrival("127.0.0.1:2"));
        assert!(!table.exists(old) && table.exists(new));
        for invented in [0, u64::MAX, Session::new(2, 0, 1).raw(), Session::new(0, 4, 1).raw()] {
            assert!(!table.exists(Session::from_raw(invented)));
            assert!(table.info(Session::from_raw(invented)).is_err());
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_two_tenants() {
        let table = SessionTable::create(1, 1).unwrap();
        let session = Session::new(0, 0, 1);
        let peers = ["127.0.0.1:1111", "[2001:db8::1]:2222"];
        std::thread::scope(|scope| {
            let writer = table.clone();
            scope.spawn(move || {
                for round in 0..20_000 {
                    writer.open(session, &arrival(peers[round % 2]));
                }
            });
            for _ in 0..20_000 {
                if let Ok(info) = table.info(session) {
                    assert!(peers.iter().any(|peer| info.peer == peer.parse().ok()), "{info:?}");
                }
            }
        });
    }
}
