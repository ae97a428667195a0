//! The facts of all sessions, in shared memory that every process reads.
//!
//! Entries have one size, and only the owning reactor writes them. The facts that belong together are read under a sequence
//! lock; the byte counters are single words and need none. Each reactor has a table of its own, on pages of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::time::{ClockId, clock_gettime};
use swoole_ipc::Memory;
use swoole_ipc::words::Words;

use super::divisor::Divisor;
use super::{Arrival, Flag, GENERATION_MAX, Session, SessionInfo};
use crate::error::{Error, Result};

/// The generations of one reactor's slots: who names its sessions, and gives no name twice.
#[derive(Debug, Default)]
pub(crate) struct Generations(Vec<u64>);

impl Generations {
    /// The name of the next tenant of `slot`.
    pub(crate) fn next(&mut self, table: &SessionTable, reactor: u16, slot: usize) -> Session {
        if self.0.len() <= slot {
            let before = |slot| table.last_generation(reactor, slot);
            self.0.extend((self.0.len()..=slot).map(before));
        }
        self.0[slot] = (self.0[slot] + 1).min(GENERATION_MAX);
        table.name(reactor, slot, self.0[slot])
    }
}

// A table's first words, as many as one entry has. One of them says how many entries were ever used: whoever walks over all
// of them does not bring those pages into being that no client has.
const USED: usize = 0;
// The words of one entry. 16 of them: two cache lines, so that no two connections share one.
const ENTRY: usize = 16;
const SEQUENCE: usize = 0;
const SESSION: usize = 1;
const CONNECTED_AT: usize = 2;
const WHERE: usize = 3; // family (0 none, 4, 6) | peer port << 16 | local port << 32 | listener << 48
const ADDRESS_HIGH: usize = 4;
const ADDRESS_LOW: usize = 5;
const LAST: usize = 6; // the place's last tenant, also when it is gone
const UID: usize = 7; // 0 if it is bound to nobody
const RECEIVED: usize = 8;
const SENT: usize = 9;
const FLAGS: usize = 10;
const RECEIVED_AT: usize = 11; // 0 if nothing was
const SENT_AT: usize = 12; // 0 if nothing was
const PENDING: usize = 13;

/// All sessions of a server, in shared memory.
#[derive(Clone)]
pub(crate) struct SessionTable {
    /// One table for each reactor.
    tables: Vec<Words>,
    /// By how many.
    divisor: Divisor,
}

impl SessionTable {
    /// Bytes of shared memory for `slots` sessions on each of `reactors` reactors. Pages cost memory once they are used.
    pub(crate) fn size(reactors: usize, slots: usize) -> usize {
        Words::size(reactors, (1 + slots) * ENTRY)
    }

    /// The tables in the part of `memory` that begins at `start`.
    pub(crate) fn map(memory: &Memory, start: usize, reactors: usize, slots: usize) -> Result<SessionTable> {
        let tables = Words::open(memory, start, reactors, (1 + slots) * ENTRY).map_err(|error| {
            Error::setup(format!("map the session tables ({reactors} of {slots} sessions)"), error)
        })?;
        Ok(SessionTable { tables, divisor: Divisor::new(reactors) })
    }

    /// Tables in memory of their own.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn create(reactors: usize, slots: usize) -> Result<SessionTable> {
        let memory = Memory::create("sessions", SessionTable::size(reactors, slots));
        let memory = memory.map_err(|error| Error::setup("make session tables", error))?;
        SessionTable::map(&memory, 0, reactors, slots)
    }

    /// Makes all tables but that of the reactor `own` read-only in this process.
    pub(crate) fn protect_from(&self, own: Option<usize>) -> Result<(), swoole_ipc::Error> {
        Words::protect_others(&self.tables, own)
    }

    /// The name of a tenant of `slot` on `reactor`.
    pub(crate) fn name(&self, reactor: u16, slot: usize, generation: u64) -> Session {
        Session::new(slot as u32 * self.tables.len() as u32 + u32::from(reactor), generation)
    }

    /// The reactor that owns the session.
    #[inline]
    pub(crate) fn reactor(&self, session: Session) -> u16 {
        self.divisor.divide(session.place()).1 as u16
    }

    /// Which of so many workers has it in its share, if they share all sessions evenly.
    pub(crate) fn share(&self, session: Session, workers: u16) -> u16 {
        (session.place() % u32::from(workers.max(1))) as u16
    }

    /// Its slot on that reactor.
    #[inline]
    pub(crate) fn slot(&self, session: Session) -> usize {
        self.divisor.divide(session.place()).0 as usize
    }

    /// The generation of the last tenant of `slot` on `reactor`; 0 if there was none.
    pub(crate) fn last_generation(&self, reactor: u16, slot: usize) -> u64 {
        let entry = self.entry(self.name(reactor, slot, 1));
        entry.map_or(0, |entry| Session(entry[LAST].load(Ordering::Relaxed)).generation())
    }

    #[inline]
    fn entry(&self, session: Session) -> Option<&[AtomicU64]> {
        // 0 marks a free entry and is nobody's session.
        if session.raw() == 0 {
            return None;
        }
        let (slot, reactor) = self.divisor.divide(session.place());
        let start = (1 + slot as usize) * ENTRY;
        self.tables[reactor as usize].get(start..start + ENTRY)
    }

    /// The owning reactor publishes a new session.
    pub(crate) fn open(&self, session: Session, arrival: &Arrival) {
        let Some(entry) = self.entry(session) else { return };
        let used = &self.tables[usize::from(self.reactor(session))][USED];
        let count = self.slot(session) as u64 + 1;
        if used.load(Ordering::Relaxed) < count {
            used.store(count, Ordering::Relaxed);
        }
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
            for word in [SENT, FLAGS, RECEIVED_AT, SENT_AT, PENDING] {
                entry[word].store(0, Ordering::Relaxed);
            }
            entry[UID].store(0, Ordering::Relaxed);
            entry[SESSION].store(session.raw(), Ordering::Relaxed);
            entry[LAST].store(session.raw(), Ordering::Release);
        });
    }

    /// The owning reactor takes a session back.
    pub(crate) fn close(&self, session: Session) {
        if let Some(entry) = self.entry(session) {
            write_locked(entry, || entry[SESSION].store(0, Ordering::Relaxed));
        }
    }

    /// The owning reactor has received so many bytes; it is the only writer of these counters. The times cost it a reading
    /// of the coarse clock, some 5 ns, once for all packets that came together, and their words lie beside the counters, so
    /// no cache line more is written.
    #[inline]
    pub(crate) fn received(&self, session: Session, bytes: usize) {
        if let Some(entry) = self.entry(session).filter(|_| bytes > 0) {
            add(&entry[RECEIVED], bytes);
            entry[RECEIVED_AT].store(coarse_now(), Ordering::Relaxed);
        }
    }

    /// It has sent so many bytes, after which so many in all have not been taken by the kernel.
    #[inline]
    pub(crate) fn sent(&self, session: Session, bytes: usize, pending: usize) {
        if let Some(entry) = self.entry(session) {
            add(&entry[SENT], bytes);
            entry[SENT_AT].store(coarse_now(), Ordering::Relaxed);
            entry[PENDING].store(pending as u64, Ordering::Relaxed);
        }
    }

    /// So many bytes wait for the client.
    #[inline]
    pub(crate) fn set_pending(&self, session: Session, pending: usize) {
        if let Some(entry) = self.entry(session) {
            entry[PENDING].store(pending as u64, Ordering::Relaxed);
        }
    }

    /// The owning reactor says what holds for a session that it has.
    pub(crate) fn set_flag(&self, session: Session, flag: Flag, on: bool) {
        if let Some(entry) = self.entry(session) {
            let others = entry[FLAGS].load(Ordering::Relaxed) & !(flag as u64);
            entry[FLAGS].store(others | if on { flag as u64 } else { 0 }, Ordering::Relaxed);
        }
    }

    /// Whether that holds, for the owning reactor.
    pub(crate) fn has_flag(&self, session: Session, flag: Flag) -> bool {
        self.entry(session).is_some_and(|entry| entry[FLAGS].load(Ordering::Relaxed) & flag as u64 != 0)
    }

    /// The owning reactor binds a session that it has to a user, or to nobody if that is 0.
    pub(crate) fn bind(&self, session: Session, uid: u64) {
        if let Some(entry) = self.entry(session) {
            write_locked(entry, || entry[UID].store(uid, Ordering::Relaxed));
        }
    }

    /// The user that it is bound to, for the owning reactor; 0 is nobody.
    pub(crate) fn uid(&self, session: Session) -> u64 {
        self.entry(session).map_or(0, |entry| entry[UID].load(Ordering::Relaxed))
    }

    #[inline]
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
            let read = |word: usize| entry[word].load(Ordering::Relaxed);
            let facts = [SESSION, CONNECTED_AT, WHERE, ADDRESS_HIGH, ADDRESS_LOW, UID].map(read);
            let time = |word| Some(read(word)).filter(|time| *time != 0);
            let (received_at, sent_at) = (time(RECEIVED_AT), time(SENT_AT));
            let [received, sent, pending, flags] = [RECEIVED, SENT, PENDING, FLAGS].map(read);
            fence(Ordering::Acquire);
            if before & 1 == 1 || entry[SEQUENCE].load(Ordering::Relaxed) != before {
                std::hint::spin_loop();
                continue;
            }
            let [id, connected_at, place, high, low, uid] = facts;
            if id != session.raw() {
                return Err(missing);
            }
            return Ok(SessionInfo {
                session,
                reactor: self.reactor(session),
                listener: (place >> 48) as u16,
                port: (place >> 32) as u16,
                peer: address(place, high, low),
                connected_at,
                received,
                sent,
                uid: (uid != 0).then_some(uid),
                received_at,
                sent_at,
                pending,
                paused: flags & Flag::Paused as u64 != 0,
                protected: flags & Flag::Protected as u64 != 0,
            });
        }
        Err(missing)
    }

    /// The reactor that owns a session, if that is connected.
    #[inline]
    pub(crate) fn owner(&self, session: Session) -> Result<u16> {
        if self.exists(session) { Ok(self.reactor(session)) } else { Err(Error::NoSuchSession(session)) }
    }

    /// The listener that a session came in by, also for a while after it has gone; or that of datagrams.
    pub(crate) fn listener(&self, session: Session) -> Option<u16> {
        if let Some(listener) = session.listener() {
            return Some(listener);
        }
        let entry =
            self.entry(session).filter(|entry| entry[LAST].load(Ordering::Acquire) == session.raw())?;
        Some((entry[WHERE].load(Ordering::Relaxed) >> 48) as u16)
    }

    /// Every session that is connected at some moment of the walk.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Session> + '_ {
        self.tables.iter().flat_map(tenants)
    }

    /// Sessions in the order of their places, those first that come after the place of `after`, whether or not that is
    /// connected.
    pub(crate) fn iter_after(&self, after: Option<Session>) -> impl Iterator<Item = Session> + '_ {
        let (reactor, slot) =
            after.map_or((0, 0), |after| (self.reactor(after).into(), self.slot(after) + 1));
        let tables = self.tables.iter().enumerate().skip(reactor);
        tables.flat_map(move |(index, table)| tenants_from(table, if index == reactor { slot } else { 0 }))
    }

    /// Those of one reactor.
    pub(crate) fn of_reactor(&self, reactor: u16) -> impl Iterator<Item = Session> + '_ {
        tenants(&self.tables[usize::from(reactor)])
    }
}

fn tenants(table: &Words) -> impl Iterator<Item = Session> + '_ {
    tenants_from(table, 0)
}

fn tenants_from(table: &Words, slot: usize) -> impl Iterator<Item = Session> + '_ {
    let used = table[USED].load(Ordering::Relaxed);
    let used = usize::try_from(used).unwrap_or(usize::MAX);
    table.chunks_exact(ENTRY).skip(1).take(used).skip(slot).filter_map(|entry| {
        let raw = entry[SESSION].load(Ordering::Acquire);
        (raw != 0).then(|| Session::from_raw(raw))
    })
}

/// Its owner alone writes it.
#[inline]
fn add(counter: &AtomicU64, more: usize) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more as u64), Ordering::Relaxed);
}

/// Milliseconds since the Unix epoch, as of the kernel's last tick.
#[inline]
fn coarse_now() -> u64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// The writer's half of the sequence lock: odd while the facts change (Boehm, "Can seqlocks get
/// along with programming language memory models?", 2012).
pub(crate) fn write_locked(entry: &[AtomicU64], write: impl FnOnce()) {
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
        let table = SessionTable::create(1000, 1).unwrap();
        for (reactor, slot, generation) in [(999, 65_000, GENERATION_MAX), (0, 0, 1), (7, 1, 2)] {
            let session = table.name(reactor, slot, generation);
            assert_eq!((table.reactor(session), table.slot(session)), (reactor, slot));
            assert_eq!(session.generation(), generation);
            assert_eq!(session.to_string().parse(), Ok(session));
        }
    }

    #[test]
    fn info_is_what_the_reactor_wrote() {
        let table = SessionTable::create(2, 4).unwrap();
        for peer in ["127.0.0.1:5000", "[2001:db8::7]:6000", "none"] {
            let session = table.name(1, 3, 7);
            table.open(session, &arrival(peer));
            table.received(session, 10);
            table.sent(session, 20, 5);
            table.received(session, 1);
            table.set_flag(session, Flag::Protected, true);
            let info = table.info(session).unwrap();
            assert_eq!((info.listener, info.port), (2, 9501));
            assert_eq!(info.peer, peer.parse().ok());
            assert_eq!(info.connected_at, 1_700_000_000_123);
            assert_eq!((info.received, info.sent, info.uid), (11, 20, None));
            assert_eq!((info.pending, info.paused, info.protected), (5, false, true));
            let now = coarse_now();
            for time in [info.received_at, info.sent_at] {
                assert!(time.is_some_and(|time| now - 60_000 < time && time <= now), "{time:?}, now {now}");
            }
            table.set_flag(session, Flag::Paused, true);
            table.set_flag(session, Flag::Protected, false);
            table.set_pending(session, 0);
            let info = table.info(session).unwrap();
            assert_eq!((info.pending, info.paused, info.protected), (0, true, false));
            table.bind(session, 42);
            assert_eq!((table.info(session).unwrap().uid, table.uid(session)), (Some(42), 42));
            assert_eq!(table.iter().collect::<Vec<_>>(), [session]);
            table.close(session);
            assert_eq!(table.listener(session), Some(2));
            assert_eq!(table.listener(table.name(1, 3, 8)), None);
            assert!(table.info(session).is_err());
            assert_eq!(table.iter().count(), 0);
            assert_eq!((table.last_generation(1, 3), table.last_generation(1, 2)), (7, 0));
        }
    }

    #[test]
    fn a_walk_goes_no_farther_than_anybody_was() {
        let table = SessionTable::create(2, 100).unwrap();
        let used = |reactor: usize| table.tables[reactor][USED].load(Ordering::Relaxed);
        let sessions = [3, 98, 0].map(|slot| table.name(1, slot, 1));
        for (session, expected) in sessions.iter().zip([4, 99, 99]) {
            table.open(*session, &arrival("127.0.0.1:1"));
            assert_eq!((used(0), used(1)), (0, expected));
        }
        let mut found: Vec<Session> = table.iter().collect();
        found.sort();
        assert_eq!((found.len(), table.of_reactor(0).count()), (3, 0));
        sessions.iter().for_each(|session| table.close(*session));
        assert_eq!((table.iter().count(), used(1)), (0, 99));
        // Whoever may write there may lie.
        table.tables[1][USED].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(table.iter().count(), 0);
    }

    proptest::proptest! {
        /// Who is there all the time is in one page, whatever comes and goes between two of them.
        #[test]
        fn pages_miss_nobody_and_repeat_nobody(
            stable in proptest::collection::btree_set((0..3_u16, 0..20_usize), 0..30),
            changes in proptest::collection::vec((0..3_u16, 0..20_usize), 0..200),
            count in 1..7_usize,
        ) {
            let table = SessionTable::create(3, 20).unwrap();
            stable.iter().for_each(|(reactor, slot)| table.open(table.name(*reactor, *slot, 1), &arrival("none")));
            let mut changes = changes.iter().filter(|place| !stable.contains(place));
            let (mut after, mut generation, mut found) = (None, 1, Vec::new());
            loop {
                let page: Vec<Session> = table.iter_after(after).take(count).collect();
                found.extend(&page);
                after = page.last().copied();
                if after.is_none() {
                    break;
                }
                for (reactor, slot) in changes.by_ref().take(5) {
                    generation += 1;
                    table.close(table.name(*reactor, *slot, table.last_generation(*reactor, *slot).max(1)));
                    table.open(table.name(*reactor, *slot, generation), &arrival("none"));
                }
            }
            found.retain(|session| stable.contains(&(table.reactor(*session), table.slot(*session))));
            let expected: Vec<Session> = stable.iter().map(|(reactor, slot)| table.name(*reactor, *slot, 1)).collect();
            proptest::prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_stale_or_invented_session_only_misses() {
        let table = SessionTable::create(2, 4).unwrap();
        let old = table.name(0, 1, 1);
        let new = table.name(0, 1, 2);
        table.open(old, &arrival("127.0.0.1:1"));
        table.close(old);
        table.open(new, &arrival("127.0.0.1:2"));
        assert!(!table.exists(old) && table.exists(new));
        for invented in [0, u64::MAX, table.name(0, 4, 1).raw(), table.name(1, 4, 1).raw()] {
            assert!(!table.exists(Session::from_raw(invented)));
            assert!(table.info(Session::from_raw(invented)).is_err());
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_two_tenants() {
        let table = SessionTable::create(1, 1).unwrap();
        let session = table.name(0, 0, 1);
        let peers = ["127.0.0.1:1111", "[2001:db8::1]:2222"];
        std::thread::scope(|scope| {
            let writer = table.clone();
            let writer = scope.spawn(move || {
                for round in 0..20_000 {
                    writer.open(session, &arrival(peers[round % 2]));
                }
            });
            for _ in 0..20_000 {
                if let Ok(info) = table.info(session) {
                    assert!(peers.iter().any(|peer| info.peer == peer.parse().ok()), "{info:?}");
                }
            }
            writer.join().unwrap();
        });
    }
}
