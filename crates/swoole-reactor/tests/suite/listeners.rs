//! Opening sockets and accepting from them.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd};
use swoole_reactor::listener::{Address, ListenOptions, listen, local_address};
use swoole_reactor::{Backend, Error, Reactor, Token};

use crate::{Bed, Seen, TempDir};

on_each_backend!(
    accept_says_who_comes,
    accept_on_a_unix_socket,
    a_crowd_is_accepted,
    a_crowd_is_accepted_on_a_shared_socket,
    a_paused_listener_accepts_nobody_until_it_is_resumed,
    a_paused_listener_of_several_accepts_nobody_until_it_is_resumed,
);

/// A listener of the reactor, and where it listens.
fn listener(bed: &mut Bed, address: &str) -> (Token, Address) {
    listener_by(bed, address, Reactor::accept)
}

type Accept = fn(&mut Reactor, OwnedFd) -> Result<Token, Error>;

fn listener_by(bed: &mut Bed, address: &str, accept: Accept) -> (Token, Address) {
    let address = address.parse().unwrap();
    let socket = listen(&address, &ListenOptions::default()).unwrap();
    let address = local_address(&socket, &address).unwrap();
    (accept(&mut bed.reactor, socket).unwrap(), address)
}

fn connect(address: &Address) -> TcpStream {
    let Address::Tcp(address) = address else { panic!("{address} is not TCP") };
    TcpStream::connect(address).unwrap()
}

fn accepted(bed: &Bed) -> usize {
    bed.count(|seen| matches!(seen, Seen::Accepted { .. }))
}

fn accept_says_who_comes(backend: Backend) {
    for address in ["tcp://127.0.0.1:0", "tcp://[::1]:0"] {
        let mut bed = Bed::new(backend);
        let (token, address) = listener(&mut bed, address);
        let client = connect(&address);
        bed.until("the connection", |bed| accepted(bed) > 0);
        let Some(Seen::Accepted { listener, socket, peer }) = bed.seen.pop() else {
            panic!("{:?}", bed.seen)
        };
        assert_eq!(listener, token);
        assert_eq!(peer, Some(client.local_addr().unwrap()));
        assert!(fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        assert!(fcntl_getfd(&socket).unwrap().contains(FdFlags::CLOEXEC));
    }
}

fn accept_on_a_unix_socket(backend: Backend) {
    let dir = TempDir::new("accept");
    let path = dir.path("socket");
    let mut bed = Bed::new(backend);
    let (token, _) = listener(&mut bed, &format!("unix://{}", path.display()));
    let _client = UnixStream::connect(&path).unwrap();
    bed.until("the connection", |bed| accepted(bed) > 0);
    assert!(matches!(bed.seen[..], [Seen::Accepted { listener, peer: None, .. }] if listener == token));
}

fn a_crowd_is_accepted(backend: Backend) {
    crowd(backend, Reactor::accept);
}

fn a_crowd_is_accepted_on_a_shared_socket(backend: Backend) {
    crowd(backend, Reactor::accept_shared);
}

fn crowd(backend: Backend, accept: Accept) {
    let mut bed = Bed::new(backend);
    let (_, address) = listener_by(&mut bed, "tcp://127.0.0.1:0", accept);
    // More than the budget of a turn, and than one round of the kernel's.
    let clients: Vec<_> = (0..100).map(|_| connect(&address)).collect();
    bed.until("the connections", |bed| accepted(bed) == clients.len());
}

fn a_paused_listener_accepts_nobody_until_it_is_resumed(backend: Backend) {
    pause(backend, Reactor::accept);
}

fn a_paused_listener_of_several_accepts_nobody_until_it_is_resumed(backend: Backend) {
    pause(backend, Reactor::accept_shared);
}

fn pause(backend: Backend, accept: Accept) {
    let mut bed = Bed::new(backend);
    let (token, address) = listener_by(&mut bed, "tcp://127.0.0.1:0", accept);
    let _first = connect(&address);
    bed.until("the first connection", |bed| accepted(bed) == 1);
    bed.reactor.pause_accept(token);
    // In the same breath as the pause, when a driver may have an accept under way.
    let _second = connect(&address);
    bed.fence();
    let _third = connect(&address);
    bed.fence();
    assert_eq!(accepted(&bed), 1);
    bed.reactor.resume_accept(token);
    bed.until("the other connections", |bed| accepted(bed) == 3);
    bed.reactor.pause_accept(token);
    bed.reactor.resume_accept(token);
    let _fourth = connect(&address);
    bed.until("the last connection", |bed| accepted(bed) == 4);
}

#[test]
fn addresses_read_as_they_are_written() {
    for text in
        ["tcp://127.0.0.1:9501", "tcp://[::1]:9501", "udp://0.0.0.0:53", "unix:///run/a b", "unixgram://x"]
    {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }
    for (text, problem) in [
        ("127.0.0.1:9501", "it begins with tcp://, udp://, unix:// or unixgram://"),
        ("http://x", "it begins with tcp://, udp://, unix:// or unixgram://"),
        ("tcp://localhost:1", "it takes a numeric address and a port: 127.0.0.1:9501 or [::1]:9501"),
        ("tcp://[::1]", "it takes a numeric address and a port: 127.0.0.1:9501 or [::1]:9501"),
        ("unix://", "the path is missing: unix:///run/app.sock"),
    ] {
        let error = text.parse::<Address>().unwrap_err();
        assert_eq!(error.to_string(), format!("`{text}` is no address to listen on: {problem}"));
    }
}

fn refusal(address: &Address) -> String {
    listen(address, &ListenOptions::default()).unwrap_err().to_string()
}

#[test]
fn an_address_in_use_is_named_with_what_to_do() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(tcp.local_addr().unwrap());
    let use_ss = "address in use (another process listens there: see `ss";
    assert_eq!(refusal(&address), format!("listen on {address}: {use_ss} -ltnp`)"));
    let error = listen(&address, &ListenOptions::default()).unwrap_err();
    assert_eq!((error.kind(), error.address()), (ErrorKind::AddrInUse, &address));

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = Address::Udp(udp.local_addr().unwrap());
    assert_eq!(refusal(&address), format!("listen on {address}: {use_ss} -lunp`)"));

    let foreign = "tcp://192.0.2.1:80".parse().unwrap();
    assert_eq!(
        refusal(&foreign),
        "listen on tcp://192.0.2.1:80: no interface of this machine has that address (see `ip address`)"
    );
}

#[test]
fn several_may_share_a_port_if_they_all_say_so() {
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    for kind in ["tcp", "udp"] {
        let any = format!("{kind}://127.0.0.1:0").parse().unwrap();
        let first = listen(&any, &options).unwrap();
        let address = local_address(&first, &any).unwrap();
        assert_ne!(address, any);
        listen(&address, &options).unwrap();
        assert!(refusal(&address).contains("address in use"));
    }
}

#[test]
fn a_unix_socket_left_behind_is_replaced_and_a_live_one_is_not() {
    let dir = TempDir::new("listen");
    let path = dir.path("socket");
    let (stream, datagram) = (Address::Unix(path.clone()), Address::UnixDatagram(path.clone()));
    for address in [&stream, &datagram] {
        let live = listen(address, &ListenOptions::default()).unwrap();
        // Whatever the type of the two sockets.
        for other in [&stream, &datagram] {
            let problem = "address in use (another process listens there: see `ss -lxp`)";
            assert_eq!(refusal(other), format!("listen on {other}: {problem}"));
        }
        drop(live);
        assert!(path.exists());
        listen(address, &ListenOptions::default()).unwrap();
    }
    // The one that replaced it works.
    let replaced = listen(&stream, &ListenOptions::default()).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(replaced);
    let bound = listen(&datagram, &ListenOptions::default()).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
    drop((
        bound,
        UnixListener::from(listen(&Address::Unix(dir.path("2")), &ListenOptions::default()).unwrap()),
    ));
}

#[test]
fn a_path_that_cannot_be_is_named_with_what_to_do() {
    let dir = TempDir::new("paths");
    let file = dir.path("file");
    std::fs::write(&file, "precious").unwrap();
    let address = Address::Unix(file.clone());
    let problem = "the path exists and is no socket: remove it, or choose another";
    assert_eq!(refusal(&address), format!("listen on {address}: {problem}"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");

    let address = Address::Unix(dir.path("none").join("socket"));
    assert_eq!(refusal(&address), format!("listen on {address}: no such directory"));

    let address = Address::Unix(dir.path(&"long".repeat(50)));
    let problem = "the path is too long for a socket (at most 107 bytes)";
    assert_eq!(refusal(&address), format!("listen on {address}: {problem}"));
}
