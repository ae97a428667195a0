//! Datagrams over a link: whole in both directions, and what becomes of them with their worker.

use super::*;
use crate::datagram::{DatagramClient, answer, decode};

const LISTENER: u16 = 3;

/// So many bytes of a client's, as they travel: in either direction the same.
fn datagram(bytes: &[u8]) -> Vec<u8> {
    let listen = ["unix:///a", "unix:///b", "unix:///c", "udp://127.0.0.1:1"];
    let addresses: Vec<_> = listen.iter().map(|address| address.parse().unwrap()).collect();
    let peer = swoole_reactor::DatagramPeer::Inet("10.1.2.3:4".parse().unwrap());
    answer(&addresses, &DatagramClient::new(LISTENER, peer), bytes).unwrap()
}

fn offer(bed: &mut Bed, bytes: &[u8]) -> bool {
    let taken = bed.reactor.offer(RequestKind::Datagram, Session::of_listener(LISTENER), &datagram(bytes));
    bed.reactor.flush();
    taken
}

/// Answers all that has come with what came; how many there were.
fn echo(inbox: &mut Inbox, outlets: &mut Outlets) -> usize {
    let mut count = 0;
    loop {
        let number = inbox.current();
        let payload = match inbox.next().unwrap() {
            Next::Empty => return count,
            Next::Fragment => {
                inbox.finish();
                continue;
            }
            Next::Message(message) => {
                assert_eq!(
                    (message.kind, message.session.listener()),
                    (RequestKind::Datagram, Some(LISTENER))
                );
                assert_eq!(message.size(), decode(message.payload).unwrap().1.len());
                message.payload.to_vec()
            }
        };
        outlets.to(0).begin(number);
        outlets.to(0).send_to(Session::of_listener(LISTENER), &payload).unwrap();
        outlets.commit(Some(0)).unwrap();
        inbox.finish();
        count += 1;
    }
}

#[test]
fn what_is_larger_than_a_record_comes_whole_in_both_directions() {
    let mut bed = Bed::new();
    let (mut inbox, mut outlets) = bed.worker();
    let sizes = [0, 1, 4000, 4080, 5000, 9000];
    for (size, count) in sizes.into_iter().zip(1..) {
        assert!(offer(&mut bed, &vec![size as u8; size]));
        assert_eq!((bed.reactor.in_flight() > 0, bed.reactor.packets()), (true, 1));
        while bed.reactor.packets() > 0 {
            echo(&mut inbox, &mut outlets);
            bed.drain();
        }
        let listener = Session::of_listener(LISTENER);
        assert_eq!(bed.replies.sent.last(), Some(&(listener, datagram(&vec![size as u8; size]))));
        assert_eq!(bed.replies.sent.len(), count);
    }
}

#[test]
fn a_full_link_takes_no_more_and_waits_for_nobody() {
    let mut bed = Bed::new();
    let bytes = [7; 3000];
    let taken = (0..100).filter(|_| offer(&mut bed, &bytes)).count();
    assert!((1..10).contains(&taken), "{taken}");
    let (mut inbox, mut outlets) = bed.worker();
    let mut answered = 0;
    while bed.reactor.in_flight() > 0 {
        answered += echo(&mut inbox, &mut outlets);
        bed.drain();
    }
    assert_eq!((answered, bed.replies.sent.len()), (taken, taken));
    assert!(offer(&mut bed, &bytes), "there is room again");
}

#[test]
fn the_one_in_hand_goes_by_on_crash_and_the_others_to_the_successor() {
    for (on_crash, fate) in
        [(OnCrash::Close, Fate::Dropped), (OnCrash::Drop, Fate::Dropped), (OnCrash::Retry, Fate::Retried)]
    {
        let mut bed = Bed::new();
        for bytes in [&b"first"[..], b"second"] {
            assert!(offer(&mut bed, bytes));
        }
        let (next, casualty) = die_on_next(&mut bed, policy(on_crash));
        assert_eq!((casualty.fate, casualty.size), (fate, 5));
        assert_eq!(casualty.packet().and_then(|packet| packet.listener()), Some(LISTENER));
        let expected: &[u8] = if fate == Fate::Retried { b"first" } else { b"second" };
        assert_eq!(next, datagram(expected));
        assert_eq!(bed.reactor.packets(), if fate == Fate::Retried { 2 } else { 1 });
    }
}
