//! Descriptors that are given back.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use swoole_reactor::listener::{self, Address, ListenOptions};
use swoole_reactor::{Backend, Close, Detached, Error, Interest, Token, Trigger};

use crate::{Bed, Seen, random_bytes};

on_each_backend!(
    a_stream_goes_on_elsewhere_without_gap_or_repetition,
    a_paused_stream_takes_along_what_it_has_read,
    a_stream_that_closes_after_what_is_queued_goes_on_elsewhere,
    what_was_queued_last_goes_along,
    a_listener_leaves_no_connection_behind,
    what_is_closed_or_no_stream_is_refused,
);

pub(crate) fn detached(bed: &mut Bed, token: Token) -> Detached {
    let mut detached = None;
    bed.until_seen("Detached", |seen| matches!(seen, Seen::Detached(of, _) if *of == token));
    bed.seen.retain_mut(|seen| match seen {
        Seen::Detached(of, _) if *of == token => {
            let taken = std::mem::replace(seen, Seen::Woken);
            if let Seen::Detached(_, taken) = taken {
                detached = Some(taken);
            }
            false
        }
        _ => true,
    });
    detached.unwrap()
}

/// Both ways of a stream are busy when it moves from one reactor to another.
fn a_stream_goes_on_elsewhere_without_gap_or_repetition(backend: Backend) {
    let (mut one, mut other) = (Bed::new(backend), Bed::new(backend));
    let (mut token, mut peer) = one.tcp();
    let (output, input) = (random_bytes(4_000_000), random_bytes(1_000_000));
    let reader = {
        let (mut peer, expected) = (peer.try_clone().unwrap(), output.clone());
        std::thread::spawn(move || {
            let mut received = vec![0; expected.len()];
            peer.read_exact(&mut received).unwrap();
            received == expected
        })
    };
    let writer = {
        let input = input.clone();
        std::thread::spawn(move || {
            peer.write_all(&input).unwrap();
            peer
        })
    };
    let mut received = Vec::new();
    let beds = [&mut one, &mut other];
    for (round, piece) in output.chunks(500_000).enumerate() {
        let bed = &mut *beds[round % 2];
        bed.reactor.receive(token).unwrap();
        bed.reactor.send(token, piece.to_vec()).unwrap();
        if received.len() < input.len() {
            bed.until_seen("Data", |seen| matches!(seen, Seen::Data(..)));
        }
        bed.reactor.detach(token).unwrap();
        assert!(matches!(bed.reactor.send(token, vec![1]), Err(Error::NoSuchToken(_))));
        let Detached { socket, unread, unsent, .. } = detached(bed, token);
        for seen in bed.seen.drain(..) {
            match seen {
                Seen::Data(_, bytes) => received.extend(bytes),
                Seen::Sent(_) => {}
                other => panic!("{other:?}"),
            }
        }
        received.extend(unread);
        let next = &mut beds[(round + 1) % 2].reactor;
        token = next.stream(socket).unwrap();
        next.send(token, unsent).unwrap();
    }
    let last = &mut *beds[output.chunks(500_000).count() % 2];
    last.reactor.receive(token).unwrap();
    let mut seen_to = 0;
    while received.len() < input.len() {
        last.until_seen("Data", |seen| matches!(seen, Seen::Data(..)));
        for seen in last.seen.drain(..) {
            if let Seen::Data(_, bytes) = seen {
                received.extend(bytes);
            }
        }
        seen_to += 1;
        assert!(seen_to < 1_000_000);
    }
    assert!(received == input);
    if last.reactor.queued(token) > 0 {
        last.until_seen("Sent", |seen| matches!(seen, Seen::Sent(_)));
    }
    assert!(reader.join().unwrap());
    drop(writer.join().unwrap());
}

fn a_paused_stream_takes_along_what_it_has_read(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.reactor.receive(token).unwrap();
    bed.fence();
    bed.reactor.pause(token);
    peer.write_all(b"before").unwrap();
    bed.fence();
    bed.reactor.detach(token).unwrap();
    let Detached { socket, mut unread, .. } = detached(&mut bed, token);
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    peer.write_all(b" and after").unwrap();
    drop(peer);
    (&stream).read_to_end(&mut unread).unwrap();
    assert_eq!(unread, b"before and after");
}

fn a_stream_that_closes_after_what_is_queued_goes_on_elsewhere(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    let output = random_bytes(8_000_000);
    bed.reactor.send(token, output.clone()).unwrap();
    bed.fence();
    bed.reactor.close(token, Close::AfterSend);
    bed.fence();
    bed.reactor.detach(token).unwrap();
    let Detached { socket, unsent, .. } = detached(&mut bed, token);
    assert!(!unsent.is_empty() && unsent.len() < output.len());
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    let mut other = Bed::new(backend);
    let token = other.reactor.stream(socket).unwrap();
    other.reactor.send(token, unsent).unwrap();
    other.reactor.close(token, Close::AfterSend);
    other.until_seen("Closed", |seen| matches!(seen, Seen::Closed(_)));
    assert!(reader.join().unwrap() == output);
}

/// Queued in the same turn, and the peer takes nothing that could end a send.
fn what_was_queued_last_goes_along(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.reactor.receive(token).unwrap();
    bed.fence();
    let output = random_bytes(8_000_000);
    bed.reactor.send(token, output.clone()).unwrap();
    bed.reactor.detach(token).unwrap();
    let Detached { socket, unsent, .. } = detached(&mut bed, token);
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    let writer = std::thread::spawn(move || (&stream).write_all(&unsent).unwrap());
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == output);
}

fn a_listener_leaves_no_connection_behind(backend: Backend) {
    let mut bed = Bed::new(backend);
    let address: Address = "tcp://127.0.0.1:0".parse().unwrap();
    let socket = listener::listen(&address, &ListenOptions::default()).unwrap();
    let Address::Tcp(at) = listener::local_address(&socket, &address).unwrap() else { unreachable!() };
    let mut token = bed.reactor.accept(socket).unwrap();
    let mut clients = Vec::new();
    for round in 0..4 {
        for _ in 0..10 {
            clients.push(TcpStream::connect(at).unwrap());
        }
        if round % 2 == 0 {
            bed.fence();
            bed.reactor.pause_accept(token);
            clients.push(TcpStream::connect(at).unwrap());
            bed.fence();
        }
        bed.reactor.detach(token).unwrap();
        let Detached { socket, .. } = detached(&mut bed, token);
        token = bed.reactor.accept(socket).unwrap();
    }
    let count = |bed: &Bed| bed.seen.iter().filter(|seen| matches!(seen, Seen::Accepted { .. })).count();
    while count(&bed) < clients.len() {
        let before = bed.seen.len();
        bed.until("another connection", |bed| bed.seen.len() > before);
    }
}

fn what_is_closed_or_no_stream_is_refused(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, _peer) = bed.tcp();
    bed.reactor.close(token, Close::Now);
    assert!(matches!(bed.reactor.detach(token), Err(Error::NoSuchToken(_))));
    let (watched, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let watch = bed.reactor.watch(OwnedFd::from(watched), Interest::READABLE, Trigger::Level).unwrap();
    assert!(matches!(bed.reactor.detach(watch), Err(Error::WrongKind { .. })));
}
