use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use swoole_reactor::{Backend, Event, Options};

use super::*;
use crate::config::Config;

const ARRIVAL: Arrival = Arrival { listener: 0, port: 0, peer: None, connected_at: 0 };

/// Takes everything, and does nothing with it.
struct Nobody;

impl Taker for Nobody {
    const AT_ONCE: bool = true;

    fn home(&mut self, _: Option<IpAddr>) -> u16 {
        0
    }

    fn connect(&mut self, _: &mut Desk, _: &mut Reactor, _: Session, _: u16) -> Result<(), usize> {
        Ok(())
    }

    fn packet(&mut self, _: &mut Desk, _: &mut Reactor, _: &Client, _: &[u8]) -> Offer {
        Offer::Taken
    }

    fn datagram(&mut self, _: &mut Desk, _: &mut Reactor, _: &DatagramClient, _: &[u8]) -> bool {
        true
    }

    fn deliver(&mut self, _: &mut Desk, _: &mut Reactor) {}

    fn is_clear(&self, _: usize) -> bool {
        true
    }

    fn is_busy(&self, _: usize) -> bool {
        false
    }
}

fn client() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
}

#[test]
fn a_connection_whose_place_is_taken_before_it_is_reported_closed_still_leaves() {
    let mut config = Config::default();
    (config.worker_num, config.reactor_num, config.max_connection) = (1, 1, 8);
    let (shared, _links, _hold) = Shared::create_for_test(config).unwrap();
    let shared = Arc::new(shared);
    let mut taker = Nobody;
    let mut desk = Desk::new(0, Arc::clone(&shared), 1, false);
    let mut reactor = Reactor::new(Options { backend: Backend::Epoll, ..Options::default() }).unwrap();

    let (first, _first_client) = client();
    let (second, _second_client) = client();
    desk.adopt(&mut reactor, &mut taker, first, &ARRIVAL).unwrap();
    let old = desk.connections[0].token;
    // In one go, as when a worker's death and a new client come in the same batch of commands.
    desk.close(&mut reactor, 0, Close::Now);
    desk.adopt(&mut reactor, &mut taker, second, &ARRIVAL).unwrap();
    assert_eq!(desk.connections[1].token.slot(), old.slot(), "the case that this test is about");
    desk.close(&mut reactor, 1, Close::Now);
    let mut turns = 0;
    while !desk.is_empty() && turns < 10 {
        turns += 1;
        let turn = reactor.turn(Some(Duration::from_millis(100)), |reactor, event| {
            if let Event::Closed { token } = event {
                assert!(desk.closed(reactor, token));
            }
        });
        turn.unwrap();
    }
    assert!(desk.is_empty());
    assert_eq!(shared.stats().close_count, 2);
}

/// A desk whose only address wants a PROXY header, by which only one network is believed.
fn proxied_desk() -> (Desk, Arc<Shared>, Reactor) {
    let mut config = Config::default();
    (config.worker_num, config.reactor_num, config.max_connection) = (1, 1, 8);
    config.listen.push("tcp://127.0.0.1:0?proxy_protocol=any&proxy_trusted=10.0.0.0/8".parse().unwrap());
    let (shared, _links, _hold) = Shared::create_for_test(config).unwrap();
    let shared = Arc::new(shared);
    let desk = Desk::new(0, Arc::clone(&shared), 1, true);
    let reactor = Reactor::new(Options { backend: Backend::Epoll, ..Options::default() }).unwrap();
    (desk, shared, reactor)
}

/// Turns until `done`, as a reactor thread does; what leaves is given to the caller.
fn turn_until(desk: &mut Desk, reactor: &mut Reactor, done: impl Fn(&Desk) -> bool) -> Vec<Heirloom> {
    let mut left = Vec::new();
    for _ in 0..50 {
        let turn = reactor.turn(Some(Duration::from_millis(50)), |reactor, event| match event {
            Event::Data { token, bytes } => desk.received(reactor, &mut Nobody, token, bytes),
            Event::Readable { token } => desk.readable(reactor, &mut Nobody, token),
            Event::Closed { token } => assert!(desk.closed(reactor, token)),
            Event::Detached { token, detached } => left.extend(desk.give_away(token, detached)),
            _ => {}
        });
        turn.unwrap();
        if done(desk) {
            return left;
        }
    }
    panic!("it has not come to that");
}

#[test]
fn who_is_in_the_lobby_is_nobody_until_the_header_is_there_whoever_has_the_connection() {
    let header = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nhello";
    let proxy = Arrival { peer: "10.0.0.1:1".parse().ok(), ..ARRIVAL };
    for cut in [1, 20, 44] {
        let (mut desk, _, mut reactor) = proxied_desk();
        let (socket, client) = client();
        rustix::io::write(&client, &header[..cut]).unwrap();
        desk.adopt(&mut reactor, &mut Nobody, socket, &proxy).unwrap();
        assert_eq!((desk.len(), desk.connections.len()), (1, 0));
        desk.pause_all(&mut reactor);
        assert_eq!(desk.detach_all(&mut reactor), 1);
        let heirlooms = turn_until(&mut desk, &mut reactor, Desk::is_empty);
        assert_eq!(heirlooms.iter().map(|heirloom| heirloom.guest).collect::<Vec<_>>(), [Some(proxy)]);

        let (mut heir, shared, mut reactor) = proxied_desk();
        heir.inherit(&mut reactor, &mut Nobody, heirlooms);
        rustix::io::write(&client, &header[cut..]).unwrap();
        turn_until(&mut heir, &mut reactor, |desk| desk.connections.len() == 1);
        let info = shared.sessions.info(heir.connections[0].session).unwrap();
        assert_eq!((info.peer, heir.len()), ("192.0.2.1:56324".parse().ok(), 1));
        turn_until(&mut heir, &mut reactor, |desk| {
            let session = desk.connections[0].session;
            desk.shared.sessions.info(session).unwrap().received == 5
        });
        assert_eq!(shared.stats().packet_count, 1);
    }
}

#[test]
fn who_is_not_believed_is_not_even_read() {
    let (mut desk, shared, mut reactor) = proxied_desk();
    let (socket, client) = client();
    rustix::io::write(&client, b"PROXY UNKNOWN\r\n").unwrap();
    let stranger = Arrival { peer: "11.0.0.1:1".parse().ok(), ..ARRIVAL };
    desk.adopt(&mut reactor, &mut Nobody, socket, &stranger).unwrap();
    turn_until(&mut desk, &mut reactor, Desk::is_empty);
    let stats = shared.stats();
    assert_eq!((stats.bad_proxy_count, stats.accept_count, stats.close_count), (1, 1, 1));
    assert_eq!((stats.received_bytes, stats.packet_count), (0, 0));
}
