//! Ways to end, wanted and unwanted.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::net::sockopt::set_socket_linger;
use swoole_reactor::listener::{self, Address, ListenOptions};
use swoole_reactor::{
    Backend, Close, DatagramPeer, Error, Event, Interest, Options, Reactor, Token, Trigger,
};

use crate::{Bed, PATIENCE, Seen, random_bytes};

on_each_backend!(
    a_reset_is_a_failure,
    a_send_to_a_dead_peer_is_a_failure,
    a_failure_drops_what_was_queued,
    close_after_send_sends_everything_first,
    close_after_send_is_no_reset_although_input_is_unread,
    close_after_send_has_no_queue_to_wait_for,
    close_after_send_is_heard_although_a_copy_is_open,
    close_after_send_can_be_cut_short,
    close_after_send_ends_when_the_peer_does,
    close_now_drops_what_is_queued,
    close_with_reset_is_one_for_the_peer,
    close_in_a_handler_ends_all_events_but_one,
    a_stale_token_is_refused_by_everything,
    the_next_owner_of_a_slot_hears_nothing_of_the_last,
    close_of_what_is_no_stream,
    dropping_a_busy_reactor_closes_everything,
);

fn is_closed(token: Token) -> impl Fn(&Seen) -> bool {
    move |seen| matches!(seen, Seen::Closed(of) if *of == token)
}

/// Closes with a reset.
fn reset(peer: TcpStream) {
    set_socket_linger(&peer, Some(std::time::Duration::ZERO)).unwrap();
}

fn a_reset_is_a_failure(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = bed.tcp();
    reset(peer);
    bed.until_seen("the failure", |seen| matches!(seen, Seen::Failed(..)));
    assert!(matches!(bed.seen[..], [Seen::Failed(of, ErrorKind::ConnectionReset)] if of == token));
    // It is dead, but the caller's to close.
    assert!(matches!(bed.reactor.send(token, vec![1]), Err(Error::Ended(of)) if of == token));
    bed.reactor.receive(token).unwrap();
    bed.fence();
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
    bed.reactor.close(token, Close::AfterSend);
    bed.until_seen("Closed", is_closed(token));
}

fn a_send_to_a_dead_peer_is_a_failure(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = bed.unix();
    bed.reactor.pause(token);
    drop(peer);
    bed.reactor.send(token, vec![1]).unwrap();
    assert_eq!(bed.reactor.queued(token), 1);
    bed.until_seen("the failure", |seen| matches!(seen, Seen::Failed(..)));
    assert!(
        matches!(bed.seen[..], [Seen::Failed(of, ErrorKind::BrokenPipe)] if of == token),
        "{:?}",
        bed.seen
    );
    assert_eq!(bed.reactor.queued(token), 0);

    let (token, peer) = bed.unix();
    bed.reactor.pause(token);
    drop(peer);
    bed.reactor.send_slices(token, &[std::io::IoSlice::new(b"at once")]).unwrap();
    bed.until_seen(
        "the failure",
        |seen| matches!(seen, Seen::Failed(of, ErrorKind::BrokenPipe) if *of == token),
    );
}

fn a_failure_drops_what_was_queued(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = bed.tcp();
    bed.reactor.send(token, random_bytes(16 << 20)).unwrap();
    bed.fence();
    assert!(bed.reactor.queued(token) > 0);
    reset(peer);
    bed.until_seen("the failure", |seen| matches!(seen, Seen::Failed(of, _) if *of == token));
    assert_eq!(bed.reactor.queued(token), 0);
    bed.fence();
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
}

fn close_after_send_sends_everything_first(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    let bytes = random_bytes(8 << 20);
    bed.reactor.send(token, bytes[..1 << 20].to_vec()).unwrap();
    bed.reactor.send(token, bytes[1 << 20..].to_vec()).unwrap();
    bed.reactor.close(token, Close::AfterSend);
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    assert!(bed.reactor.queued(token) > 0);
    assert!(bed.reactor.socket(token).is_none());
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    bed.until_seen("Closed", is_closed(token));
    assert!(reader.join().unwrap() == bytes);
    bed.fence();
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
}

fn close_after_send_is_no_reset_although_input_is_unread(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.reactor.pause(token);
    peer.write_all(&[7; 100_000]).unwrap();
    bed.fence();
    bed.reactor.send(token, b"goodbye".to_vec()).unwrap();
    bed.reactor.close(token, Close::AfterSend);
    bed.until_seen("Closed", is_closed(token));
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"goodbye");
    // A reset that came after the end-of-file would be no error of the read.
    assert!(peer.take_error().unwrap().is_none());
}

fn close_after_send_has_no_queue_to_wait_for(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.fence();
    bed.reactor.close(token, Close::AfterSend);
    bed.until_seen("Closed", is_closed(token));
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}

fn close_after_send_is_heard_although_a_copy_is_open(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    // As in a child that was forked meanwhile.
    let _copy = bed.reactor.socket(token).unwrap().try_clone_to_owned().unwrap();
    bed.reactor.send(token, b"goodbye".to_vec()).unwrap();
    bed.reactor.close(token, Close::AfterSend);
    bed.until_seen("Closed", is_closed(token));
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"goodbye");
}

fn close_after_send_can_be_cut_short(backend: Backend) {
    for how in [Close::Now, Close::Reset] {
        let mut bed = Bed::new(backend);
        let (token, mut peer) = bed.tcp();
        bed.reactor.send(token, random_bytes(16 << 20)).unwrap();
        bed.reactor.close(token, Close::AfterSend);
        bed.fence();
        assert!(bed.seen.is_empty(), "{:?}", bed.seen);
        bed.reactor.close(token, Close::AfterSend);
        bed.reactor.close(token, how);
        bed.until_seen("Closed", is_closed(token));
        bed.reactor.close(token, how);
        bed.fence();
        assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
        let mut received = Vec::new();
        let end = peer.read_to_end(&mut received);
        assert!(received.len() < 16 << 20);
        assert_eq!(end.is_err(), how == Close::Reset, "{end:?}");
    }
}

fn close_after_send_ends_when_the_peer_does(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, peer) = bed.tcp();
    bed.reactor.send(token, random_bytes(16 << 20)).unwrap();
    bed.reactor.close(token, Close::AfterSend);
    bed.fence();
    reset(peer);
    bed.until_seen("Closed", is_closed(token));
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
}

fn close_now_drops_what_is_queued(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.unix();
    bed.reactor.send(token, random_bytes(8 << 20)).unwrap();
    bed.fence();
    bed.reactor.close(token, Close::Now);
    bed.until_seen("Closed", is_closed(token));
    assert_eq!(bed.reactor.queued(token), 0);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert!(received.len() < 8 << 20);
    assert!(received == random_bytes(8 << 20)[..received.len()]);
    bed.fence();
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
}

fn close_with_reset_is_one_for_the_peer(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, mut peer) = bed.tcp();
    bed.reactor.close(token, Close::Reset);
    bed.until_seen("Closed", is_closed(token));
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn close_in_a_handler_ends_all_events_but_one(backend: Backend) {
    for how in [Close::AfterSend, Close::Now, Close::Reset] {
        let mut bed = Bed::with(Options { backend, receive_buffer: 64, budget: 16 });
        let (token, mut peer) = bed.unix();
        peer.write_all(&[1; 1000]).unwrap();
        drop(peer);
        let mut events = Vec::new();
        bed.repeat("Closed", |bed| {
            bed.reactor
                .turn(Some(PATIENCE), |reactor, event| {
                    if let Event::Data { token, .. } = event {
                        reactor.send(token, vec![1]).unwrap();
                        reactor.close(token, how);
                    }
                    events.push(Seen::new(event));
                })
                .unwrap();
            events.iter().any(is_closed(token))
        });
        bed.fence();
        assert!(matches!(events[..], [Seen::Data(..), Seen::Closed(_)]), "{how:?}: {events:?}");
        assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    }
}

fn a_stale_token_is_refused_by_everything(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, _peer) = bed.unix();
    bed.reactor.close(token, Close::Now);
    let reactor = &mut bed.reactor;
    let is_stale = |result: Result<(), Error>| matches!(result, Err(Error::NoSuchToken(of)) if of == token);
    // At once, and also when the descriptor is gone.
    for _ in 0..2 {
        assert!(is_stale(reactor.receive(token)));
        assert!(is_stale(reactor.send(token, vec![1])));
        assert!(is_stale(reactor.send_slices(token, &[std::io::IoSlice::new(b"1")])));
        assert!(is_stale(reactor.send_to(token, &DatagramPeer::Unnamed, b"1")));
        assert!(reactor.socket(token).is_none());
        assert_eq!(reactor.queued(token), 0);
        reactor.pause(token);
        reactor.pause_accept(token);
        reactor.resume_accept(token);
        reactor.unwatch(token);
        reactor.close(token, Close::AfterSend);
        while reactor.turn(Some(std::time::Duration::ZERO), |_, _| {}).unwrap() > 0 {}
    }
    // And one of a kind that the operation is not for.
    let (token, _peer) = bed.unix();
    let error = bed.reactor.send_to(token, &DatagramPeer::Unnamed, b"1").unwrap_err();
    assert_eq!(error.to_string(), format!("{token:?} is not a datagram socket"));
}

fn the_next_owner_of_a_slot_hears_nothing_of_the_last(backend: Backend) {
    let mut bed = Bed::new(backend);
    for round in 0..200u8 {
        let (old, old_peer) = bed.unix();
        (&old_peer).write_all(&[round; 3]).unwrap();
        bed.reactor.send(old, vec![round; 100]).unwrap();
        if round % 2 == 0 {
            // With its events on their way.
            bed.fence();
        }
        bed.seen.clear();
        bed.reactor.close(old, Close::Now);
        bed.until_seen("Closed", is_closed(old));
        let (new, new_peer) = bed.unix();
        assert_eq!(
            (new.slot(), new == old),
            (old.slot(), false),
            "the slot is not reused, so this tests nothing"
        );
        drop(old_peer);
        assert!(bed.reactor.send(old, vec![round]).is_err());
        bed.reactor.close(old, Close::Reset);
        (&new_peer).write_all(b"new").unwrap();
        bed.until("the new stream's bytes", |bed| bed.received(new) == b"new");
        assert_eq!(bed.seen.len(), 2, "{:?}", bed.seen);
        bed.reactor.close(new, Close::Now);
        bed.until_seen("Closed", is_closed(new));
    }
}

fn close_of_what_is_no_stream(backend: Backend) {
    let mut bed = Bed::new(backend);
    let address = "tcp://127.0.0.1:0".parse().unwrap();
    let socket = listener::listen(&address, &ListenOptions::default()).unwrap();
    let Address::Tcp(address) = listener::local_address(&socket, &address).unwrap() else { unreachable!() };
    let listener = bed.reactor.accept(socket).unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagrams = bed.reactor.datagram(udp.into()).unwrap();
    let (pipe, _end) = std::io::pipe().unwrap();
    let watch = bed.reactor.watch(pipe, Interest::READABLE, Trigger::Level).unwrap();
    bed.fence();
    for token in [listener, datagrams, watch] {
        bed.reactor.close(token, Close::AfterSend);
        bed.until_seen("Closed", is_closed(token));
    }
    bed.fence();
    assert_eq!(bed.seen.len(), 3, "{:?}", bed.seen);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

fn dropping_a_busy_reactor_closes_everything(backend: Backend) {
    for turns in 0..10 {
        let mut reactor = Reactor::new(Options { backend, ..Options::default() }).unwrap();
        let address = "tcp://127.0.0.1:0".parse().unwrap();
        let socket = listener::listen(&address, &ListenOptions::default()).unwrap();
        let Address::Tcp(address) = listener::local_address(&socket, &address).unwrap() else {
            unreachable!()
        };
        reactor.accept(socket).unwrap();
        let mut peers: Vec<UnixStream> = Vec::new();
        for _ in 0..5 {
            let (ours, peer) = UnixStream::pair().unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            (&peer).write_all(&[1; 10_000]).unwrap();
            let token = reactor.stream(ours.into()).unwrap();
            reactor.receive(token).unwrap();
            reactor.send(token, random_bytes(2 << 20)).unwrap();
            peers.push(peer);
        }
        let mut waiting = TcpStream::connect(address).unwrap();
        waiting.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..turns {
            reactor.turn(Some(std::time::Duration::ZERO), |_, _| {}).unwrap();
        }
        drop(reactor);
        for mut peer in peers {
            let mut received = Vec::new();
            let end = peer.read_to_end(&mut received);
            assert!(end.is_ok() || end.unwrap_err().kind() == ErrorKind::ConnectionReset);
            assert!(random_bytes(2 << 20).starts_with(&received));
        }
        // In the backlog, accepted by the kernel, or accepted and dropped: it ends.
        assert!(matches!(waiting.read(&mut [0]), Ok(0) | Err(_)));
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
