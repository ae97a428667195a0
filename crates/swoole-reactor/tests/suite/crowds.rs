//! Many streams at once, and streams whose input is now little, now much: what a driver keeps for all streams
//! together must not mix them up.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use swoole_reactor::{Backend, Close, Event, Options, Reactor, Token};

use crate::{Bed, Seen, random_bytes};

on_each_backend!(
    streams_that_share_memory_get_each_their_own,
    more_input_than_memory_waits_and_comes,
    what_a_paused_stream_holds_outlasts_the_input_of_others,
    a_detached_stream_takes_along_only_its_own,
    trickles_and_floods_keep_their_order,
    a_flooded_stream_pauses_and_resumes,
    a_flooded_stream_ends_once,
    a_flooded_stream_fails_once,
    a_flooded_stream_is_detached_without_gap,
    a_caller_may_ask_now_and_not_ask_then,
);

fn small(backend: Backend) -> Bed {
    Bed::with(Options { backend, receive_buffer: 1000, ..Options::default() })
}

/// Each stream has its own sequence, cut at random; together they go many times through any pool.
fn streams_that_share_memory_get_each_their_own(backend: Backend) {
    let mut bed = small(backend);
    let mut random = fastrand::Rng::with_seed(7);
    let mut streams: Vec<_> = (0..30)
        .map(|number| {
            let (token, peer) = bed.tcp();
            (token, peer, random_bytes(20_000 + number), 0)
        })
        .collect();
    while streams.iter().any(|(.., bytes, sent)| *sent < bytes.len()) {
        for (_, peer, bytes, sent) in &mut streams {
            let portion = random.usize(0..300).min(bytes.len() - *sent);
            peer.write_all(&bytes[*sent..*sent + portion]).unwrap();
            *sent += portion;
        }
        if random.u8(0..4) == 0 {
            bed.fence();
        }
    }
    for (token, _, bytes, _) in &streams {
        bed.until("all bytes", |bed| bed.received(*token).len() >= bytes.len());
        assert!(bed.received(*token) == *bytes);
    }
}

/// All streams have something before the reactor looks, several times as much as its memory.
fn more_input_than_memory_waits_and_comes(backend: Backend) {
    let mut bed = Bed::with(Options { backend, receive_buffer: 64, ..Options::default() });
    for round in 0..5 {
        let mut streams: Vec<_> = (0..40).map(|_| bed.tcp()).collect();
        bed.fence();
        bed.seen.clear();
        for (number, (_, peer)) in streams.iter_mut().enumerate() {
            peer.write_all(&random_bytes(round * 100 + number + 60)).unwrap();
        }
        for (number, (token, _)) in streams.iter().enumerate() {
            let expected = random_bytes(round * 100 + number + 60);
            bed.until("all bytes", |bed| bed.received(*token).len() >= expected.len());
            assert_eq!(bed.received(*token), expected);
        }
    }
}

fn what_a_paused_stream_holds_outlasts_the_input_of_others(backend: Backend) {
    let mut bed = small(backend);
    let (token, mut peer) = bed.tcp();
    let (other, mut other_peer) = bed.tcp();
    bed.fence();
    // The driver may have read it already when it learns of the pause.
    bed.reactor.pause(token);
    peer.write_all(b"held, ").unwrap();
    bed.fence();
    let noise = random_bytes(50_000);
    for piece in noise.chunks(90) {
        other_peer.write_all(piece).unwrap();
    }
    bed.until("the noise", |bed| bed.received(other).len() == noise.len());
    assert_eq!(bed.received(token), b"");
    peer.write_all(b"and more").unwrap();
    bed.reactor.receive(token).unwrap();
    bed.until("all bytes", |bed| bed.received(token).len() >= 14);
    assert_eq!(bed.received(token), b"held, and more");
    assert!(bed.received(other) == noise);
}

fn detach(bed: &mut Bed, token: Token) -> (OwnedFd, Vec<u8>) {
    bed.reactor.detach(token).unwrap();
    bed.until_seen("Detached", |seen| matches!(seen, Seen::Detached(of, _) if *of == token));
    let mut all = bed.received(token);
    let at = bed.seen.iter().position(|seen| matches!(seen, Seen::Detached(of, _) if *of == token));
    let Seen::Detached(_, detached) = bed.seen.swap_remove(at.unwrap()) else { unreachable!() };
    all.extend(detached.unread);
    (detached.socket, all)
}

/// Two streams have each a part of the same buffer, if there is one, when the first leaves.
fn a_detached_stream_takes_along_only_its_own(backend: Backend) {
    let mut bed = small(backend);
    for round in 0..50 {
        let (one, mut one_peer) = bed.tcp();
        let (two, mut two_peer) = bed.tcp();
        bed.fence();
        bed.reactor.pause(one);
        let (first, second) = (random_bytes(30 + round), random_bytes(90 + round));
        one_peer.write_all(&first).unwrap();
        two_peer.write_all(&second).unwrap();
        if round % 2 == 0 {
            bed.fence();
        }
        let (socket, mut all) = detach(&mut bed, one);
        one_peer.shutdown(Shutdown::Write).unwrap();
        let mut rest = TcpStream::from(socket);
        rest.set_nonblocking(false).unwrap();
        rest.read_to_end(&mut all).unwrap();
        assert_eq!(all, first, "in round {round}");
        bed.until("the other's bytes", |bed| bed.received(two).len() >= second.len());
        assert_eq!(bed.received(two), second);
    }
}

/// Sends `bytes` from a thread, a flood and then a trickle, so that the driver may change its ways.
fn flood_and_trickle(mut peer: TcpStream, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for period in bytes.chunks(300_000) {
            let (flood, trickle) = period.split_at(period.len().min(297_000));
            peer.write_all(flood).unwrap();
            for drops in trickle.chunks(60) {
                peer.write_all(drops).unwrap();
                std::thread::yield_now();
            }
        }
    })
}

fn trickles_and_floods_keep_their_order(backend: Backend) {
    let mut bed = Bed::new(backend);
    let mut random = fastrand::Rng::with_seed(11);
    let streams: Vec<_> = (0..3)
        .map(|number| {
            let (token, peer) = bed.tcp();
            let bytes = random_bytes(3_000_000 + number);
            (token, flood_and_trickle(peer, bytes.clone()), bytes)
        })
        .collect();
    let mut received = [const { Vec::new() }; 3];
    bed.repeat("all bytes", |bed| {
        // Short waits: all may be paused.
        let handler = |_: &mut Reactor, event: Event<'_>| {
            let Event::Data { token: of, bytes } = event else { return };
            let at = streams.iter().position(|(token, ..)| *token == of).unwrap();
            received[at].extend_from_slice(bytes);
        };
        bed.reactor.turn(Some(Duration::from_millis(1)), handler).unwrap();
        for (token, ..) in &streams {
            match random.u8(0..20) {
                0 => bed.reactor.pause(*token),
                1..8 => bed.reactor.receive(*token).unwrap(),
                _ => {}
            }
        }
        (0..3).all(|at| received[at].len() >= streams[at].2.len())
    });
    for ((_, thread, bytes), received) in streams.into_iter().zip(received) {
        thread.join().unwrap();
        assert!(received == bytes);
    }
}

/// A stream that has got so much that the driver treats it as one with much input.
fn flooded(bed: &mut Bed) -> (Token, TcpStream) {
    let (token, mut peer) = bed.tcp();
    for _ in 0..5 {
        bed.seen.clear();
        peer.write_all(&random_bytes(60_000)).unwrap();
        bed.until("the flood", |bed| bed.received(token).len() == 60_000);
    }
    bed.fence();
    bed.seen.clear();
    (token, peer)
}

fn a_flooded_stream_pauses_and_resumes(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = flooded(&mut bed);
    for round in 0..40_usize {
        bed.reactor.pause(token);
        let bytes = random_bytes(1 + round * 700);
        peer.write_all(&bytes).unwrap();
        bed.fence();
        assert!(bed.seen.is_empty(), "{:?}", bed.seen);
        bed.reactor.receive(token).unwrap();
        bed.until("all bytes", |bed| bed.received(token).len() >= bytes.len());
        assert!(bed.received(token) == bytes);
        bed.seen.clear();
    }
}

fn a_flooded_stream_ends_once(backend: Backend) {
    for paused in [false, true] {
        let mut bed = Bed::new(backend);
        let (token, mut peer) = flooded(&mut bed);
        if paused {
            bed.reactor.pause(token);
        }
        let bytes = random_bytes(200_000);
        peer.write_all(&bytes).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        if paused {
            bed.fence();
            assert!(bed.seen.is_empty());
            // Nor does the end keep the reactor awake.
            // (A cancellation may be still to end.)
            bed.reactor.turn(Some(Duration::ZERO), |_, _| {}).unwrap();
            let (start, wait) = (Instant::now(), Duration::from_millis(30));
            assert_eq!(bed.reactor.turn(Some(wait), |_, _| {}).unwrap(), 0);
            assert!(start.elapsed() >= wait);
            bed.reactor.receive(token).unwrap();
        }
        bed.until_seen("Eof", |seen| matches!(seen, Seen::Eof(_)));
        bed.fence();
        assert!(bed.received(token) == bytes);
        assert!(matches!(bed.seen.last(), Some(Seen::Eof(of)) if *of == token));
        assert_eq!(bed.count(|seen| matches!(seen, Seen::Eof(_))), 1);
        // It still can send.
        bed.reactor.send(token, b"bye".to_vec()).unwrap();
        bed.until_seen("Sent", |seen| matches!(seen, Seen::Sent(_)));
        let mut reply = [0; 3];
        peer.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"bye");
    }
}

fn a_flooded_stream_fails_once(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = flooded(&mut bed);
    // Closed with something unread: a reset.
    bed.reactor.send(token, vec![1; 100]).unwrap();
    bed.until_seen("Sent", |seen| matches!(seen, Seen::Sent(_)));
    let mut byte = [0];
    peer.peek(&mut byte).unwrap();
    drop(peer);
    bed.until_seen("Failed", |seen| matches!(seen, Seen::Failed(..)));
    bed.fence();
    assert_eq!(bed.count(|seen| matches!(seen, Seen::Failed(..) | Seen::Eof(_))), 1, "{:?}", bed.seen);
    bed.reactor.close(token, Close::Now);
    bed.until_seen("Closed", |seen| matches!(seen, Seen::Closed(of) if *of == token));
}

fn a_flooded_stream_is_detached_without_gap(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = flooded(&mut bed);
    let bytes = random_bytes(300_000);
    let writer = {
        let bytes = bytes.clone();
        std::thread::spawn(move || peer.write_all(&bytes).unwrap())
    };
    bed.until_seen("Data", |seen| matches!(seen, Seen::Data(of, _) if *of == token));
    let (socket, mut all) = detach(&mut bed, token);
    let mut rest = TcpStream::from(socket);
    rest.set_nonblocking(false).unwrap();
    rest.read_to_end(&mut all).unwrap();
    writer.join().unwrap();
    assert!(all == bytes);
}

/// `read` gives nothing that is not due: neither before what is held, nor what the kernel still receives.
fn a_caller_may_ask_now_and_not_ask_then(backend: Backend) {
    let mut bed = Bed::new(backend);
    let mut random = fastrand::Rng::with_seed(5);
    let (token, peer) = bed.tcp();
    let bytes = random_bytes(2_000_000);
    let writer = flood_and_trickle(peer, bytes.clone());
    let mut received = Vec::new();
    let mut buffer = vec![0; 50_000];
    bed.repeat("all bytes", |bed| {
        let handler = |reactor: &mut Reactor, event: Event<'_>| match event {
            Event::Data { bytes, .. } => received.extend_from_slice(bytes),
            Event::Readable { token } => {
                let size = random.usize(1..buffer.len());
                let read = reactor.read(token, &mut buffer[..size]).unwrap();
                received.extend_from_slice(&buffer[..read.unwrap_or(0)]);
            }
            _ => {}
        };
        bed.reactor.turn(Some(Duration::from_millis(5)), handler).unwrap();
        // At any time, too.
        let read = bed.reactor.read(token, &mut buffer[..1000]).unwrap();
        received.extend_from_slice(&buffer[..read.unwrap_or(0)]);
        if fastrand::bool() {
            bed.reactor.receive_into(token).unwrap();
        } else {
            bed.reactor.receive(token).unwrap();
        }
        received.len() >= bytes.len()
    });
    writer.join().unwrap();
    assert!(received == bytes);
}
