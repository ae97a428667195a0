//! Datagrams over UDP and Unix sockets.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use swoole_reactor::listener::{Address, ListenOptions, listen, local_address};
use swoole_reactor::{Backend, DatagramPeer, Error, Options, Token};

use crate::{Bed, PATIENCE, Seen, TempDir, random_bytes};

on_each_backend!(
    echo_over_udp,
    echo_over_unix_datagrams,
    more_than_a_budget_of_datagrams_arrives_in_order,
    a_long_datagram_is_cut_and_says_so,
    a_datagram_that_cannot_go_is_an_error,
    a_full_receiver_is_busy,
    a_paused_socket_sends_and_leaves_what_comes,
);

fn udp(bed: &mut Bed) -> (Token, UdpSocket) {
    let address = "udp://127.0.0.1:0".parse().unwrap();
    let socket = listen(&address, &ListenOptions::default()).unwrap();
    let Address::Udp(address) = local_address(&socket, &address).unwrap() else { unreachable!() };
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.connect(address).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (bed.reactor.datagram(socket).unwrap(), peer)
}

fn datagrams(bed: &Bed) -> usize {
    bed.count(|seen| matches!(seen, Seen::Datagram { .. }))
}

/// Takes the only datagram that has come.
fn take(bed: &mut Bed) -> (Token, DatagramPeer, Vec<u8>, bool) {
    bed.until("a datagram", |bed| datagrams(bed) > 0);
    match &mut bed.seen.drain(..).collect::<Vec<_>>()[..] {
        [Seen::Datagram { token, peer, bytes, truncated }] => {
            (*token, peer.clone(), bytes.clone(), *truncated)
        }
        seen => panic!("{seen:?}"),
    }
}

fn echo_over_udp(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, client) = udp(&mut bed);
    // 65507 is the largest that UDP over IPv4 can carry.
    for length in [0, 1, 1000, 65_507] {
        client.send(&random_bytes(length)).unwrap();
        let (of, peer, bytes, truncated) = take(&mut bed);
        assert_eq!((of, truncated), (token, false));
        assert_eq!(peer, DatagramPeer::Inet(client.local_addr().unwrap()));
        assert!(bytes == random_bytes(length), "{length}");
        bed.reactor.send_to(token, &peer, &bytes).unwrap();
        let mut reply = vec![0; 70_000];
        let count = client.recv(&mut reply).unwrap();
        assert!(reply[..count] == bytes);
    }
}

fn echo_over_unix_datagrams(backend: Backend) {
    let dir = TempDir::new("datagrams");
    let (ours, theirs) = (dir.path("server"), dir.path("client"));
    let mut bed = Bed::new(backend);
    let socket = listen(&Address::UnixDatagram(ours.clone()), &ListenOptions::default()).unwrap();
    let token = bed.reactor.datagram(socket).unwrap();

    let client = UnixDatagram::bind(&theirs).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"ping", &ours).unwrap();
    let (_, peer, bytes, _) = take(&mut bed);
    assert_eq!((&peer, &bytes[..]), (&DatagramPeer::Unix(theirs.clone()), &b"ping"[..]));
    assert_eq!(peer.to_string(), theirs.display().to_string());
    bed.reactor.send_to(token, &peer, b"pong").unwrap();
    let mut reply = [0; 100];
    let (count, _) = client.recv_from(&mut reply).unwrap();
    assert_eq!(&reply[..count], b"pong");

    UnixDatagram::unbound().unwrap().send_to(b"anonymous", &ours).unwrap();
    let (_, peer, bytes, _) = take(&mut bed);
    assert_eq!((&peer, &bytes[..]), (&DatagramPeer::Unnamed, &b"anonymous"[..]));
    assert!(matches!(bed.reactor.send_to(token, &peer, b"?"), Err(Error::System { .. })));

    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("swoole-reactor-{}-{backend}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let client = UnixDatagram::bind_addr(&address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"abstract", &ours).unwrap();
    let (_, peer, _, _) = take(&mut bed);
    assert_eq!(peer, DatagramPeer::Abstract(name.clone().into_bytes()));
    assert_eq!(peer.to_string(), format!("@{name}"));
    bed.reactor.send_to(token, &peer, b"answer").unwrap();
    let (count, _) = client.recv_from(&mut reply).unwrap();
    assert_eq!(&reply[..count], b"answer");
}

fn more_than_a_budget_of_datagrams_arrives_in_order(backend: Backend) {
    let mut bed = Bed::with(Options { backend, budget: 3, ..Options::default() });
    let (_, client) = udp(&mut bed);
    for number in 0..50u8 {
        client.send(&[number]).unwrap();
    }
    let mut last = 0;
    bed.until("all datagrams", |bed| {
        let count = datagrams(bed);
        assert!(count <= last + 3, "{} in one turn", count - last);
        last = count;
        count == 50
    });
    for (number, seen) in bed.seen.iter().enumerate() {
        assert!(matches!(seen, Seen::Datagram { bytes, .. } if bytes[..] == [number as u8]), "{seen:?}");
    }
}

fn a_long_datagram_is_cut_and_says_so(backend: Backend) {
    let mut bed = Bed::with(Options { backend, receive_buffer: 100, budget: 1 });
    let (_, client) = udp(&mut bed);
    for (length, received, is_cut) in
        [(99, 99, false), (100, 100, false), (101, 100, true), (5000, 100, true)]
    {
        client.send(&random_bytes(length)).unwrap();
        let (_, _, bytes, truncated) = take(&mut bed);
        assert!(bytes == random_bytes(length)[..received], "{length}");
        assert_eq!(truncated, is_cut, "{length}");
    }
}

fn a_datagram_that_cannot_go_is_an_error(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (token, client) = udp(&mut bed);
    let peer = DatagramPeer::Inet(client.local_addr().unwrap());
    let error = bed.reactor.send_to(token, &peer, &[0; 70_000]).unwrap_err();
    assert_eq!(error.to_string(), "send a datagram (sendto): Message too long (os error 90)");
    assert!(matches!(bed.reactor.send(token, vec![1]), Err(Error::WrongKind { expected: "stream", .. })));

    // That a peer is gone is told by ICMP, later, and is no failure of the socket.
    drop(client);
    bed.reactor.send_to(token, &peer, b"hello?").unwrap();
    bed.fence();
    let (_, client) = (peer, UdpSocket::bind("127.0.0.1:0").unwrap());
    let name = rustix::net::getsockname(bed.reactor.socket(token).unwrap()).unwrap();
    client.send_to(b"still there", std::net::SocketAddr::try_from(name).unwrap()).unwrap();
    assert_eq!(take(&mut bed).2, b"still there");
}

fn a_full_receiver_is_busy(backend: Backend) {
    let dir = TempDir::new("busy");
    let mut bed = Bed::new(backend);
    let ours = listen(&Address::UnixDatagram(dir.path("server")), &ListenOptions::default()).unwrap();
    let token = bed.reactor.datagram(ours).unwrap();
    let client = UnixDatagram::bind(dir.path("client")).unwrap();
    let peer = DatagramPeer::Unix(dir.path("client"));
    let error = loop {
        if let Err(error) = bed.reactor.send_to(token, &peer, &[1; 1000]) {
            break error;
        }
    };
    assert!(matches!(&error, Error::Busy { peer } if peer.ends_with("/client")), "{error:?}");
    // One out, one in.
    client.recv(&mut [0; 1000]).unwrap();
    bed.reactor.send_to(token, &peer, &[1; 1000]).unwrap();
}

fn a_paused_socket_sends_and_leaves_what_comes(backend: Backend) {
    let mut bed = Bed::with(Options { backend, budget: 3, ..Options::default() });
    let (token, client) = udp(&mut bed);
    client.send(b"first").unwrap();
    let (_, peer, _, _) = take(&mut bed);
    let other = bed.reactor.socket(token).unwrap().try_clone_to_owned().unwrap();
    bed.reactor.pause(token);
    client.send(b"second").unwrap();
    bed.fence();
    assert_eq!(datagrams(&bed), 0);
    bed.reactor.send_to(token, &peer, b"answer").unwrap();
    let mut buffer = [0; 100];
    assert_eq!(client.recv(&mut buffer).unwrap(), 6);
    let other = UdpSocket::from(other);
    assert_eq!(other.recv(&mut buffer).unwrap(), 6, "it waits for whoever has the socket");
    bed.reactor.close(token, swoole_reactor::Close::Now);
    bed.until("the end", |bed| bed.count(|seen| matches!(seen, Seen::Closed { .. })) == 1);
}
