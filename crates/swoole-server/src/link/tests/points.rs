//! A worker dies at each chosen moment of its way, on both kinds of link and under each policy.

use std::cell::Cell;

use super::*;
use crate::breakpoint::{Point, visited::dies_at};

/// Bytes of a packet, and of its reply, that takes several records on either link.
const LARGE: usize = 3 * SOCKET_PIECE / 2;
/// Bytes of a reply that fills the small ring of this bed, and what a socketpair's worker keeps to itself.
const HUGE: usize = 6 * SOCKET_PIECE;

const POINTS: [Point; 6] = [
    Point::RequestFragment,
    Point::ReplyFragment,
    Point::ReplyStaged,
    Point::BeforeCommit,
    Point::AfterCommit,
    Point::AfterBell,
];

/// What a client gets: all bytes of its session, in order.
fn received(replies: &Replies, number: u64) -> Vec<u8> {
    let its_own = replies.sent.iter().filter(|(to, _)| *to == session(number));
    its_own.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
}

/// Handles what is there. The reply to the large packet is `reply`, if the worker gets so far; all others are echoes.
fn serve(bed: &Bed, started: &Cell<u64>, reply: &[u8]) {
    let (mut inbox, mut outlets) = bed.worker();
    loop {
        let number = inbox.current();
        match inbox.next().unwrap() {
            Next::Empty => break,
            Next::Fragment => outlets.to(0).begin(number),
            Next::Message(message) => {
                started.set(number);
                outlets.to(0).begin(number);
                let is_large = message.payload.len() > 100;
                let reply = if is_large { reply } else { message.payload };
                outlets.to(0).send(message.session, reply).unwrap();
                outlets.commit(Some(0)).unwrap();
            }
        }
        inbox.finish();
    }
    outlets.ring().unwrap();
}

fn die_at(point: Point, ipc: Ipc, on_crash: OnCrash) {
    let mut bed = Bed::with(Config { ipc, ..Config::default() });
    // What the ring of this bed holds beside each other, in request and in reply.
    let large = vec![b'L'; if ipc == Ipc::Ring { 6000 } else { LARGE }];
    let sent = [b"first".to_vec(), large, b"last".to_vec()];
    for (packet, number) in sent.iter().zip(1..) {
        assert!(bed.reactor.offer(RequestKind::Packet, session(number), packet));
    }
    bed.drain();
    // So many bytes only for the point that is about them: nobody here would make room for the rest.
    let reply = if point == Point::ReplyStaged { vec![b'L'; HUGE] } else { sent[1].clone() };
    let started = Cell::new(0);
    let died = dies_at(point, || serve(&bed, &started, &reply));
    assert_eq!(died, (point, ipc) != (Point::AfterBell, Ipc::SocketPair));
    // What has come by now may have been seen before the death is.
    bed.drain();
    let casualties = bed.reactor.settle(started.get(), |_| policy(on_crash), &mut bed.replies);
    bed.drain();
    serve(&bed, &Cell::new(0), &sent[1]);
    bed.drain();

    let in_hand = match point {
        Point::BeforeCommit => Some(1),
        Point::ReplyFragment | Point::ReplyStaged => Some(2),
        _ => None,
    };
    assert_eq!(casualties.iter().map(|casualty| casualty.session.raw()).next(), in_hand);
    assert!(casualties.len() <= 1);
    for (packet, number) in sent.iter().zip(1..) {
        let lost = on_crash != OnCrash::Retry && in_hand == Some(number);
        let expected: &[u8] = if lost { b"" } else { packet };
        let got = received(&bed.replies, number);
        assert!(got == expected, "packet {number}: {} bytes instead of {}", got.len(), expected.len());
    }
    assert_eq!((bed.reactor.in_flight(), bed.reactor.packets()), (0, 0));
}

#[test]
fn whatever_the_moment_a_death_costs_what_was_in_hand_and_no_more() {
    for point in POINTS {
        for ipc in [Ipc::Ring, Ipc::SocketPair] {
            for on_crash in [OnCrash::Retry, OnCrash::Drop, OnCrash::Close] {
                println!("{point:?} {ipc} {on_crash:?}");
                die_at(point, ipc, on_crash);
            }
        }
    }
}
