use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use swoole_reactor::{Backend, Event, Options};

use super::*;
use crate::config::{Config, LengthFuncs};

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
    let framings = config.framings(&LengthFuncs::new()).unwrap();
    let (shared, _links, _hold) = Shared::create(config, Vec::new(), Vec::new()).unwrap();
    let shared = Arc::new(shared);
    let mut taker = Nobody;
    let mut desk = Desk::new(0, Arc::clone(&shared), framings, 1, false);
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
