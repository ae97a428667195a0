//! Both ends of a link over a ring, in one process.

mod datagrams;
mod points;

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fd::OwnedFd;

use super::*;
use crate::config::{Config, OnCrash};
use crate::crash::{CrashPolicy, Fate};
use crate::datagram::Assembly;
use crate::measure::Measure;
use crate::session::Session;
use crate::shared::Shared;
use crate::wire::RequestKind;

/// What a reactor was given, in order.
#[derive(Default)]
struct Replies {
    sent: Vec<(Session, Vec<u8>)>,
    orders: Vec<Vec<u8>>,
    assembly: Assembly,
    finished: usize,
}

impl ReplySink for Replies {
    fn send(&mut self, session: Session, parts: &[IoSlice<'_>]) {
        let bytes = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.sent.push((session, bytes));
    }

    fn send_owned(&mut self, session: Session, bytes: Vec<u8>) {
        self.sent.push((session, bytes));
    }

    fn close(&mut self, _: Session) {}

    fn order(&mut self, order: &[u8]) {
        self.orders.push(order.to_vec());
    }

    fn bind(&mut self, _: Session, _: u64) {}

    fn measure(&mut self, _: Session, _: Measure) {}

    fn datagram(&mut self, listener: Session, piece: &[u8]) {
        if let Some(datagram) = self.assembly.add(piece).unwrap() {
            self.sent.push((listener, datagram.to_vec()));
        }
    }

    fn finished(&mut self, _: &Sent, count: u32) {
        self.finished += count as usize;
    }
}

fn policy(on_crash: OnCrash) -> CrashPolicy {
    CrashPolicy::new(&Config { on_crash, crash_retries: 2, ..Config::default() })
}

struct Bed {
    shared: Shared,
    lanes: Vec<Arc<Lane>>,
    reactor: ReactorEnd,
    replies: Replies,
    _hold: OwnedFd,
}

impl Bed {
    fn new() -> Bed {
        Bed::with(Config::default())
    }

    fn with(mut config: Config) -> Bed {
        (config.worker_num, config.reactor_num, config.max_connection, config.ring_size) = (1, 1, 8, 16384);
        let (shared, links, hold) = Shared::create_for_test(config).unwrap();
        let lanes = links.open(0).unwrap();
        let (bell, room) = (shared.bells[0].clone(), shared.rooms[0].clone());
        let reactor = ReactorEnd::open(Arc::clone(&lanes[0]), bell, room, 1 << 20).unwrap();
        Bed { shared, lanes, reactor, replies: Replies::default(), _hold: hold }
    }

    /// The worker's ends, of a new process as it were.
    fn worker(&self) -> (Inbox, Outlets) {
        let outlets = Outlets::open(&self.lanes, &self.shared, 0).unwrap();
        (Inbox::open(&self.lanes[0], 0).unwrap(), outlets)
    }

    /// Receives these packets as one batch; false if there is no room.
    fn batch(&mut self, session: Session, packets: &[Vec<u8>]) -> bool {
        let bytes = packets.concat();
        let Some(space) = self.reactor.space(bytes.len()) else { return false };
        space[..bytes.len()].copy_from_slice(&bytes);
        let mut end = 0;
        let places: Vec<Range<usize>> = packets
            .iter()
            .map(|packet| {
                end += packet.len();
                end - packet.len()..end
            })
            .collect();
        self.reactor.send_batch(session, &places);
        true
    }

    fn drain(&mut self) {
        self.reactor.flush();
        self.reactor.drain(&mut self.replies).unwrap();
    }
}

/// Handles up to `count` packets, each answered by itself; what they were.
fn handle(inbox: &mut Inbox, outlets: &mut Outlets, count: usize) -> Vec<Vec<u8>> {
    let mut handled = Vec::new();
    while handled.len() < count {
        let number = inbox.current();
        let (session, packet) = match inbox.next().unwrap() {
            Next::Empty => break,
            Next::Fragment => {
                outlets.to(0).begin(number);
                inbox.finish();
                continue;
            }
            Next::Message(message) => (message.session, message.payload.to_vec()),
        };
        outlets.to(0).begin(number);
        outlets.to(0).send(session, &packet).unwrap();
        outlets.commit(Some(0)).unwrap();
        inbox.finish();
        handled.push(packet);
    }
    handled
}

fn session(number: u64) -> Session {
    Session::from_raw(number)
}

fn packets(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| format!("packet {number}").into_bytes()).collect()
}

#[test]
fn what_stands_before_a_packet_is_not_the_packets() {
    let mut bed = Bed::new();
    let delimited = |bed: &mut Bed, packets: &[Range<usize>]| {
        bed.reactor.space(7).unwrap()[..7].copy_from_slice(b"\x03abc\x02de");
        bed.reactor.send_batch(session(5), packets);
        bed.reactor.flush();
    };
    delimited(&mut bed, std::slice::from_ref(&(1..4)));
    delimited(&mut bed, &[1..4, 5..7]);
    let (mut inbox, mut outlets) = bed.worker();
    assert_eq!(handle(&mut inbox, &mut outlets, 9), [&b"abc"[..], b"abc", b"de"]);
    // One that a worker has died on is taken from where it stands, too.
    delimited(&mut bed, std::slice::from_ref(&(5..7)));
    drop((inbox, outlets));
    let lost = bed.reactor.settle(0, |_| policy(OnCrash::Close), &mut bed.replies);
    assert!(lost.is_empty());
    let (mut inbox, mut outlets) = bed.worker();
    assert_eq!(handle(&mut inbox, &mut outlets, 9), [b"de"]);
}

#[test]
fn a_batch_is_answered_packet_by_packet_and_sent_as_one() {
    let mut bed = Bed::new();
    let (mut inbox, mut outlets) = bed.worker();
    let packets = packets(5);
    assert!(bed.batch(session(1), &packets));
    assert!(bed.batch(session(2), &packets[..1]));
    bed.drain();
    assert_eq!((bed.reactor.in_flight(), bed.reactor.packets()), (6, 6));
    assert_eq!(handle(&mut inbox, &mut outlets, 2), packets[..2]);
    bed.drain();
    assert_eq!((bed.replies.finished, bed.reactor.packets()), (2, 4));
    assert_eq!(handle(&mut inbox, &mut outlets, 9).len(), 4);
    bed.drain();
    let sent = [(1, packets[..2].concat()), (1, packets[2..].concat()), (2, packets[0].clone())];
    assert_eq!(bed.replies.sent, sent.map(|(number, bytes)| (session(number), bytes)));
    assert_eq!((bed.replies.finished, bed.reactor.in_flight()), (6, 0));
}

#[test]
fn of_a_batch_that_a_worker_died_in_the_rest_is_its_successors() {
    let mut bed = Bed::new();
    let packets = packets(6);
    let (mut inbox, mut outlets) = bed.worker();
    assert!(bed.batch(session(1), &packets));
    bed.drain();
    handle(&mut inbox, &mut outlets, 2);
    // The third is in its hands, and has a reply that was not committed.
    let number = inbox.current();
    assert!(matches!(inbox.next().unwrap(), Next::Message(_)));
    outlets.to(0).begin(number);
    outlets.to(0).send(session(1), b"never").unwrap();
    drop((inbox, outlets));
    let [casualty] = bed.reactor.settle(number, |_| policy(OnCrash::Close), &mut bed.replies)[..] else {
        panic!("it had one in its hands")
    };
    assert_eq!((casualty.session, casualty.size, casualty.fate), (session(1), 8, Fate::Closed));
    assert!(casualty.packet().is_some_and(|packet| packet.age.is_some() && packet.attempt == 1));
    assert_eq!(bed.replies.sent, [(session(1), packets[..2].concat())]);

    let (mut inbox, mut outlets) = bed.worker();
    assert_eq!(handle(&mut inbox, &mut outlets, 9), packets[3..]);
    bed.drain();
    assert_eq!(bed.reactor.in_flight(), 0);
}

#[test]
fn what_may_be_begun_again_does_not_go_out_before_it_is_done() {
    let mut bed = Bed::with(Config { on_crash: OnCrash::Retry, ..Config::default() });
    let (mut inbox, mut outlets) = bed.worker();
    outlets.to(0).send(session(1), b"belongs to no packet").unwrap();
    outlets.flush().unwrap();
    assert!(bed.batch(session(1), &packets(1)));
    bed.drain();
    outlets.to(0).begin(inbox.current());
    assert!(matches!(inbox.next().unwrap(), Next::Message(_)));
    outlets.to(0).send(session(1), b"reply").unwrap();
    assert!(matches!(outlets.flush(), Err(Error::Uncommitted { .. })));
    bed.drain();
    assert_eq!(bed.replies.sent.len(), 1);
    outlets.commit(Some(0)).unwrap();
    bed.drain();
    assert_eq!(bed.replies.sent[1].1, b"reply");
}

/// Takes the next packet in hand and dies on it, with a reply that was not committed.
fn die_on_next(bed: &mut Bed, policy: CrashPolicy) -> (Vec<u8>, Casualty) {
    let (mut inbox, mut outlets) = bed.worker();
    let number = loop {
        let number = inbox.current();
        match inbox.next().unwrap() {
            Next::Fragment => _ = inbox.finish(),
            Next::Message(_) => break number,
            Next::Empty => panic!("nothing to die on"),
        }
    };
    outlets.to(0).begin(number);
    outlets.to(0).send(session(1), b"never").unwrap();
    drop((inbox, outlets));
    let casualties = bed.reactor.settle(number, |_| policy, &mut bed.replies);
    let (mut inbox, _) = bed.worker();
    let next = match inbox.next().unwrap() {
        Next::Message(message) => message.payload.to_vec(),
        _ => Vec::new(),
    };
    (next, casualties[0])
}

#[test]
fn a_packet_is_retried_before_those_behind_it_until_it_is_poison() {
    let mut bed = Bed::new();
    let packets = packets(4);
    assert!(bed.batch(session(1), &packets));
    bed.drain();
    for attempt in 1..=3 {
        let (next, casualty) = die_on_next(&mut bed, policy(OnCrash::Retry));
        let fate = if attempt < 3 { Fate::Retried } else { Fate::Poison };
        assert_eq!((casualty.attempt, casualty.fate, casualty.size), (attempt, fate, 8));
        assert_eq!(next, packets[usize::from(attempt == 3)]);
    }
    assert_eq!(bed.reactor.packets(), 3);
    let (mut inbox, mut outlets) = bed.worker();
    assert_eq!(handle(&mut inbox, &mut outlets, 9), packets[1..]);
    bed.drain();
    assert_eq!((bed.reactor.in_flight(), bed.replies.sent.len()), (0, 1));
}

#[test]
fn a_packet_of_many_records_is_retried_whole() {
    let mut bed = Bed::new();
    let large = vec![7; 9000];
    assert!(bed.reactor.offer(RequestKind::Packet, session(1), &large));
    bed.drain();
    let (_, casualty) = die_on_next(&mut bed, policy(OnCrash::Retry));
    assert_eq!((casualty.fate, casualty.size), (Fate::Retried, large.len()));
    let (mut inbox, mut outlets) = bed.worker();
    assert_eq!(handle(&mut inbox, &mut outlets, 9), [large]);
}

proptest! {
    /// However packets are batched, mixed with others, handled and interrupted by deaths: each is handled once, in
    /// its order, and the ring never runs out of room for good.
    #[test]
    fn every_packet_has_its_turn(steps in proptest::collection::vec((0u8..5, 1usize..9, 0usize..300), 1..80)) {
        let mut bed = Bed::new();
        let (mut inbox, mut outlets) = bed.worker();
        let (mut made, mut handled) = (0u32, Vec::new());
        for (step, count, size) in steps {
            let mut packet = || {
                made += 1;
                [&made.to_le_bytes()[..], &vec![7; size]].concat()
            };
            match step {
                0 | 1 => {
                    let batch: Vec<_> = (0..count).map(|_| packet()).collect();
                    if !bed.batch(session(1), &batch) {
                        made -= count as u32;
                    }
                }
                2 => {
                    let packet = packet();
                    if !bed.reactor.offer(RequestKind::Packet, session(1), &packet) {
                        made -= 1;
                    }
                }
                3 => {
                    bed.drain();
                    handled.extend(handle(&mut inbox, &mut outlets, count));
                }
                _ => {
                    // Between two packets, with nothing in its hands.
                    drop((inbox, outlets));
                    prop_assert!(bed.reactor.settle(0, |_| policy(OnCrash::Close), &mut bed.replies).is_empty());
                    (inbox, outlets) = bed.worker();
                }
            }
        }
        for _ in 0..made {
            bed.drain();
            handled.extend(handle(&mut inbox, &mut outlets, 8));
        }
        bed.drain();
        let numbers = handled.iter().map(|packet| u32::from_le_bytes(*packet.first_chunk().unwrap()));
        prop_assert_eq!(numbers.collect::<Vec<_>>(), (1..=made).collect::<Vec<_>>());
        prop_assert_eq!((bed.reactor.in_flight(), bed.reactor.packets()), (0, 0));
        prop_assert_eq!(bed.replies.sent.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
            handled.iter().map(Vec::len).sum::<usize>());
    }
}
