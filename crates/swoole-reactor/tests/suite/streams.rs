//! Bytes in and bytes out.

use std::collections::HashMap;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use swoole_reactor::{Backend, Close, Error, Event, Options, Reactor};

use crate::{Bed, PATIENCE, Seen, random_bytes};

on_each_backend!(
    what_is_submitted_leaves_amid_a_turn,
    a_caller_reads_where_it_wants,
    who_does_not_read_is_asked_again,
    echo_over_tcp,
    echo_over_unix,
    echo_in_tiny_buffers,
    a_slow_reader_gets_all_of_a_big_send_and_queued_counts_down,
    sends_of_all_kinds_keep_their_order,
    sent_comes_once_for_each_time_the_queue_drains,
    sent_means_that_nothing_is_queued,
    an_empty_send_is_nothing,
    random_pauses_lose_nothing,
    a_paused_stream_is_silent_until_it_is_resumed,
    a_pause_in_the_middle_of_a_turn_holds,
    one_resumption_delivers_all_that_waits,
    a_pause_is_felt_by_the_peer,
    end_of_file_waits_for_the_resumption,
    after_end_of_file_the_stream_can_send,
    one_greedy_stream_starves_nobody,
    two_hundred_connections_at_once,
);

/// A client that writes `bytes` in random portions while it reads, and checks that the same come back.
fn model_client<S: Read + Write + Send + 'static>(
    mut reader: S,
    mut writer: S,
    bytes: Vec<u8>,
) -> [thread::JoinHandle<()>; 2] {
    let expected = bytes.clone();
    let write = thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(1);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let portion = random.usize(1..=20_000).min(rest.len());
            writer.write_all(&rest[..portion]).unwrap();
            rest = &rest[portion..];
        }
    });
    let read = thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(2);
        let mut rest = &expected[..];
        let mut buffer = [0; 30_000];
        while !rest.is_empty() {
            let portion = random.usize(1..=buffer.len());
            let count = reader.read(&mut buffer[..portion]).unwrap();
            assert_ne!(count, 0, "{} bytes are missing", rest.len());
            assert!(buffer[..count] == rest[..count], "wrong bytes {} before the end", rest.len());
            rest = &rest[count..];
        }
    });
    [write, read]
}

fn echo(bed: &mut Bed, clients: [thread::JoinHandle<()>; 2]) {
    bed.repeat("the client", |bed| {
        // Short waits, because a thread's end is no event.
        let timeout = Some(Duration::from_millis(5));
        let handler = |reactor: &mut Reactor, event: Event<'_>| {
            if let Event::Data { token, bytes } = event {
                if bytes.len() % 2 == 0 {
                    reactor.send(token, bytes.to_vec()).unwrap();
                } else {
                    reactor.send_slices(token, &[IoSlice::new(bytes)]).unwrap();
                }
            }
        };
        bed.reactor.turn(timeout, handler).unwrap();
        clients.iter().all(thread::JoinHandle::is_finished)
    });
    clients.into_iter().for_each(|client| client.join().unwrap());
}

fn echo_over_tcp(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (_, peer) = bed.tcp();
    let clients = model_client(peer.try_clone().unwrap(), peer, random_bytes(5_000_000));
    echo(&mut bed, clients);
}

fn echo_over_unix(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (_, peer) = bed.unix();
    let clients = model_client(peer.try_clone().unwrap(), peer, random_bytes(5_000_000));
    echo(&mut bed, clients);
}

fn echo_in_tiny_buffers(backend: Backend) {
    let mut bed = Bed::with(Options { backend, receive_buffer: 300, budget: 2 });
    let (_, peer) = bed.tcp();
    let clients = model_client(peer.try_clone().unwrap(), peer, random_bytes(300_000));
    echo(&mut bed, clients);
}

fn a_slow_reader_gets_all_of_a_big_send_and_queued_counts_down(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    let bytes = random_bytes(8 << 20);
    bed.reactor.send(token, bytes.clone()).unwrap();
    assert_eq!(bed.reactor.queued(token), bytes.len());
    bed.fence();
    assert!(bed.reactor.queued(token) > 0, "the kernel cannot have taken 8 MiB that nobody reads");
    assert_eq!(bed.count(|seen| matches!(seen, Seen::Sent(_))), 0);

    let reader = thread::spawn(move || {
        let mut received = vec![0; 8 << 20];
        for part in received.chunks_mut(100_000) {
            peer.read_exact(part).unwrap();
        }
        (received, peer)
    });
    let mut last = bytes.len();
    bed.until("the queue to drain", |bed| {
        let queued = bed.reactor.queued(token);
        assert!(queued <= last, "{queued} bytes queued after {last}");
        last = queued;
        bed.count(|seen| matches!(seen, Seen::Sent(of) if *of == token)) > 0
    });
    assert_eq!(bed.reactor.queued(token), 0);
    let (received, _peer) = reader.join().unwrap();
    assert!(received == bytes);
    bed.fence();
    assert_eq!(bed.count(|seen| matches!(seen, Seen::Sent(_))), 1);
}

fn sends_of_all_kinds_keep_their_order(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.unix();
    let bytes = random_bytes(3_000_000);
    let expected = bytes.clone();
    let reader = thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        peer.read_exact(&mut received).unwrap();
        assert!(received == expected);
    });
    let mut random = fastrand::Rng::with_seed(3);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        for _ in 0..random.usize(1..150) {
            let size = if random.bool() { 100 } else { 20_000 };
            let (now, later) = rest.split_at(random.usize(0..size).min(rest.len()));
            rest = later;
            if random.bool() {
                bed.reactor.send(token, now.to_vec()).unwrap();
            } else {
                let (a, b) = now.split_at(now.len() / 3);
                bed.reactor.send_slices(token, &[IoSlice::new(a), IoSlice::new(b)]).unwrap();
            }
        }
        bed.fence();
    }
    bed.until("the queue to drain", |bed| bed.reactor.queued(token) == 0);
    reader.join().unwrap();
}

fn sent_comes_once_for_each_time_the_queue_drains(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.unix();
    for round in 1..=3 {
        bed.reactor.send(token, b"one, ".to_vec()).unwrap();
        bed.reactor.send(token, b"two".to_vec()).unwrap();
        assert_eq!(bed.reactor.queued(token), 8);
        bed.until_seen("Sent", |seen| matches!(seen, Seen::Sent(_)));
        assert_eq!(bed.reactor.queued(token), 0, "in round {round}");
        let mut received = [0; 8];
        peer.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"one, two");
        bed.fence();
        assert_eq!(bed.count(|seen| matches!(seen, Seen::Sent(_))), 1, "in round {round}");
        bed.seen.clear();
    }
}

fn sent_means_that_nothing_is_queued(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (first, _first_peer) = bed.unix();
    let (second, _second_peer) = bed.unix();
    bed.reactor.send(first, vec![1]).unwrap();
    bed.reactor.send(second, vec![1]).unwrap();
    let mut sent = Vec::new();
    bed.repeat("Sent of both", |bed| {
        bed.reactor
            .turn(None, |reactor, event| {
                let Event::Sent { token } = event else { panic!("unexpected {event:?}") };
                assert_eq!(reactor.queued(token), 0);
                // The second queue has drained as well, which is about to be reported.
                if sent.is_empty() {
                    reactor.send(if token == first { second } else { first }, vec![2]).unwrap();
                }
                sent.push(token);
            })
            .unwrap();
        sent.len() == 2
    });
    assert_ne!(sent[0], sent[1]);
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
}

fn what_is_submitted_leaves_amid_a_turn(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.unix();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.write_all(b"?").unwrap();
    bed.reactor.receive(token).unwrap();
    let mut answered = false;
    bed.repeat("an answer", |bed| {
        bed.reactor
            .turn(None, |reactor, event| {
                if let Event::Data { .. } = event {
                    // Of both kinds, and in their order.
                    reactor.send(token, b"now".to_vec()).unwrap();
                    reactor.send_slices(token, &[IoSlice::new(b" and"), IoSlice::new(b" here")]).unwrap();
                    reactor.submit();
                    let mut answer = [0; 12];
                    peer.read_exact(&mut answer).unwrap();
                    assert_eq!(&answer, b"now and here");
                    answered = true;
                }
            })
            .unwrap();
        answered
    });
    bed.until("the queue to drain", |bed| bed.reactor.queued(token) == 0);
}

fn an_empty_send_is_nothing(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = bed.unix();
    bed.reactor.send(token, Vec::new()).unwrap();
    bed.reactor.send_slices(token, &[]).unwrap();
    bed.reactor.send_slices(token, &[IoSlice::new(&[])]).unwrap();
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    peer.set_nonblocking(true).unwrap();
    assert_eq!((&peer).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

fn random_pauses_lose_nothing(backend: Backend) {
    let mut bed = Bed::with(Options { backend, receive_buffer: 8192, budget: 3 });
    let (token, mut peer) = bed.tcp();
    let bytes = random_bytes(3_000_000);
    let expected = bytes.clone();
    let writer = thread::spawn(move || {
        for part in bytes.chunks(7919) {
            peer.write_all(part).unwrap();
        }
    });
    let mut random = fastrand::Rng::with_seed(4);
    let (mut received, mut is_paused, mut is_over) = (Vec::new(), false, false);
    bed.repeat("all bytes", |bed| {
        if random.bool() {
            is_paused = false;
            bed.reactor.receive(token).unwrap();
        } else if random.bool() {
            is_paused = true;
            bed.reactor.pause(token);
        }
        let timeout = if is_paused { Duration::ZERO } else { Duration::from_millis(20) };
        bed.reactor
            .turn(Some(timeout), |reactor, event| match event {
                Event::Data { token, bytes } => {
                    assert!(!is_paused, "data on a paused stream");
                    received.extend_from_slice(bytes);
                    if random.u8(..) < 60 {
                        is_paused = true;
                        reactor.pause(token);
                    }
                }
                Event::Eof { .. } => {
                    assert!(!is_paused, "end-of-file on a paused stream");
                    is_over = true;
                }
                event => panic!("unexpected {event:?}"),
            })
            .unwrap();
        is_over
    });
    writer.join().unwrap();
    assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
}

fn a_paused_stream_is_silent_until_it_is_resumed(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    peer.write_all(b"first").unwrap();
    bed.until("the first bytes", |bed| bed.received(token) == b"first");
    bed.reactor.pause(token);
    // In the same breath as the pause, when a driver may have a receive under way.
    peer.write_all(b"second").unwrap();
    bed.fence();
    peer.write_all(b"third").unwrap();
    bed.fence();
    assert_eq!(bed.received(token), b"first");
    bed.reactor.receive(token).unwrap();
    bed.until("the rest", |bed| bed.received(token) == b"firstsecondthird");

    // Paused and resumed before a turn: as if nothing had happened.
    bed.reactor.pause(token);
    bed.reactor.receive(token).unwrap();
    peer.write_all(b"fourth").unwrap();
    bed.until("the last bytes", |bed| bed.received(token) == b"firstsecondthirdfourth");
}

fn a_pause_in_the_middle_of_a_turn_holds(backend: Backend) {
    let mut bed = Bed::with(Options { backend, receive_buffer: 64, budget: 16 });
    let (token, mut peer) = bed.unix();
    let bytes = random_bytes(1000);
    peer.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    bed.repeat("all bytes", |bed| {
        let mut events = 0;
        bed.reactor
            .turn(Some(Duration::ZERO), |reactor, event| {
                if let Event::Data { token, bytes } = event {
                    events += 1;
                    received.extend_from_slice(bytes);
                    reactor.pause(token);
                }
            })
            .unwrap();
        assert!(events <= 1, "{events} events although the first one's handler has paused the stream");
        bed.reactor.receive(token).unwrap();
        received == bytes
    });
}

fn one_resumption_delivers_all_that_waits(backend: Backend) {
    let mut bed = Bed::with(Options { backend, receive_buffer: 64, budget: 16 });
    let (token, mut peer) = bed.unix();
    let bytes = random_bytes(1000);
    peer.write_all(&bytes).unwrap();
    drop(peer);
    let mut received = Vec::new();
    bed.repeat("the first bytes", |bed| {
        bed.reactor
            .turn(None, |reactor, event| {
                if let Event::Data { token, bytes } = event {
                    received.extend_from_slice(bytes);
                    reactor.pause(token);
                }
            })
            .unwrap();
        !received.is_empty()
    });
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    bed.reactor.receive(token).unwrap();
    bed.until_seen("end-of-file", |seen| matches!(seen, Seen::Eof(of) if *of == token));
    received.extend(bed.received(token));
    assert!(received == bytes);
}

fn a_pause_is_felt_by_the_peer(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = bed.unix();
    (&peer).write_all(b"x").unwrap();
    bed.until("the byte", |bed| bed.received(token) == b"x");
    bed.reactor.pause(token);
    bed.fence();
    peer.set_nonblocking(true).unwrap();
    let fill = || std::iter::from_fn(|| (&peer).write(&[0; 4096]).ok()).sum::<usize>();
    assert!(fill() > 0);
    // A driver may have taken a little before it could stop; then nobody makes room any more.
    bed.fence();
    fill();
    bed.fence();
    assert_eq!(fill(), 0);
}

fn end_of_file_waits_for_the_resumption(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    peer.write_all(b"x").unwrap();
    bed.until("the byte", |bed| bed.received(token) == b"x");
    bed.reactor.pause(token);
    peer.write_all(b"y").unwrap();
    drop(peer);
    bed.fence();
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
    bed.reactor.receive(token).unwrap();
    bed.until_seen("end-of-file", |seen| matches!(seen, Seen::Eof(_)));
    assert_eq!(bed.received(token), b"xy");
    // It comes once, and to ask for more is harmless.
    bed.reactor.receive(token).unwrap();
    bed.fence();
    assert_eq!(bed.count(|seen| matches!(seen, Seen::Eof(_))), 1);
}

fn after_end_of_file_the_stream_can_send(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    peer.write_all(b"question").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    bed.until_seen("end-of-file", |seen| matches!(seen, Seen::Eof(_)));
    assert_eq!(bed.received(token), b"question");

    let answer = random_bytes(4 << 20);
    bed.reactor.send(token, answer.clone()).unwrap();
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    bed.until_seen("Sent", |seen| matches!(seen, Seen::Sent(_)));
    bed.reactor.close(token, Close::AfterSend);
    bed.until_seen("Closed", |seen| matches!(seen, Seen::Closed(_)));
    assert!(reader.join().unwrap() == answer);
}

fn one_greedy_stream_starves_nobody(backend: Backend) {
    const BUDGET: usize = 4;
    let mut bed = Bed::with(Options { backend, receive_buffer: 1024, budget: BUDGET });
    let (greedy, greedy_peer) = bed.unix();
    let (modest, mut modest_peer) = bed.unix();
    bed.fence();
    greedy_peer.set_nonblocking(true).unwrap();
    let fill = || while (&greedy_peer).write(&[0; 4096]).is_ok() {};
    for round in 1..=20 {
        fill();
        modest_peer.write_all(b"?").unwrap();
        bed.seen.clear();
        let mut turns = 0;
        bed.repeat("the modest stream's turn", |bed| {
            fill();
            let before = bed.count(|seen| seen.token() == Some(greedy));
            bed.turn();
            let events = bed.count(|seen| seen.token() == Some(greedy)) - before;
            // The kernel bounds io_uring: 32 at a time, and twice in a turn if it was armed anew.
            let most = if backend == Backend::Epoll { BUDGET } else { 64 };
            assert!(events <= most, "{events} reads in one turn");
            turns += 1;
            !bed.received(modest).is_empty()
        });
        assert!(turns <= 4, "round {round}: {turns} turns");
    }
}

fn two_hundred_connections_at_once(backend: Backend) {
    let mut bed = Bed::new(backend);
    let mut peers: HashMap<_, _> = (0..200).map(|_| bed.tcp()).collect();
    for round in 0..3 {
        for (number, (token, peer)) in peers.iter_mut().enumerate() {
            peer.write_all(format!("{round} {number} {token:?};").as_bytes()).unwrap();
        }
        let mut answered = 0;
        bed.until("all requests to be answered", |bed| {
            for seen in bed.seen.drain(..) {
                match seen {
                    Seen::Data(token, bytes) => bed.reactor.send(token, bytes).unwrap(),
                    Seen::Sent(_) => answered += 1,
                    seen => panic!("unexpected {seen:?}"),
                }
            }
            answered == peers.len()
        });
        for (number, (token, peer)) in peers.iter_mut().enumerate() {
            let expected = format!("{round} {number} {token:?};");
            let mut received = vec![0; expected.len()];
            peer.read_exact(&mut received).unwrap();
            assert_eq!(String::from_utf8(received).unwrap(), expected);
        }
    }
    let stale = *peers.keys().next().unwrap();
    bed.reactor.close(stale, Close::Now);
    assert!(matches!(bed.reactor.send(stale, vec![1]), Err(Error::NoSuchToken(token)) if token == stale));
}

/// In pieces of all sizes, over pauses; with io_uring as `Data`.
fn a_caller_reads_where_it_wants(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.reactor.receive_into(token).unwrap();
    let bytes = random_bytes(700_001);
    let expected = bytes.clone();
    let writer = thread::spawn(move || {
        peer.write_all(&bytes).unwrap();
        peer
    });
    let (mut received, mut ended, mut round) = (Vec::new(), false, 0);
    let mut buffer = vec![0; 10_000];
    let mut writer = Some(writer);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !ended && std::time::Instant::now() < deadline {
        if received.len() == expected.len() {
            // The end comes alone.
            writer.take().into_iter().for_each(|writer| drop(writer.join().unwrap()));
        }
        let turn = bed.reactor.turn(Some(PATIENCE), |reactor, event| match event {
            Event::Readable { .. } => {
                round += 1;
                let size = [1, 100, 10_000][round % 3];
                if let Some(length) = reactor.read(token, &mut buffer[..size]).unwrap() {
                    received.extend_from_slice(&buffer[..length]);
                }
                if round % 7 == 0 {
                    reactor.pause(token);
                    reactor.receive_into(token).unwrap();
                }
            }
            Event::Data { bytes, .. } => received.extend_from_slice(bytes),
            Event::Eof { .. } => ended = true,
            other => panic!("{other:?}"),
        });
        turn.unwrap();
    }
    assert!(ended && received == expected);
}

fn who_does_not_read_is_asked_again(backend: Backend) {
    if backend == Backend::IoUring {
        return; // It never asks.
    }
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.reactor.receive_into(token).unwrap();
    peer.write_all(b"here").unwrap();
    bed.until("three questions", |bed| bed.count(|seen| matches!(seen, Seen::Readable(_))) >= 3);
    bed.reactor.pause(token);
    bed.fence();
    bed.seen.clear();
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    bed.reactor.receive_into(token).unwrap();
    bed.until_seen("a question", |seen| matches!(seen, Seen::Readable(_)));
    let mut buffer = [0; 8];
    assert_eq!(bed.reactor.read(token, &mut buffer).unwrap(), Some(4));
    assert_eq!(bed.reactor.read(token, &mut buffer).unwrap(), None);
    bed.fence();
    bed.seen.clear();
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
}
