//! Opening sockets and accepting from them.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt;
use swoole_reactor::listener::{
    Address, Keepalive, ListenOptions, TcpOptions, UnixOptions, inherit, listen, local_address,
};
use swoole_reactor::{Backend, Error, Reactor, Token};

use crate::{Bed, Seen, TempDir};

on_each_backend!(
    accept_says_who_comes,
    accept_on_a_unix_socket,
    what_is_set_on_a_listener_holds_for_those_who_come,
    a_deferred_accept_waits_for_the_first_byte,
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

fn tcp_options() -> TcpOptions {
    let second = Duration::from_secs(1);
    let keepalive = Some(Keepalive { idle: 77 * second, interval: 11 * second, count: 3 });
    TcpOptions { nodelay: true, keepalive, fastopen: 9, user_timeout: 12_345, ..TcpOptions::default() }
}

fn check_tcp_options(socket: &OwnedFd) {
    assert!(sockopt::tcp_nodelay(socket).unwrap());
    assert!(sockopt::socket_keepalive(socket).unwrap());
    assert_eq!(sockopt::tcp_keepidle(socket).unwrap().as_secs(), 77);
    assert_eq!(sockopt::tcp_keepintvl(socket).unwrap().as_secs(), 11);
    assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), 3);
    assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 12_345);
}

fn what_is_set_on_a_listener_holds_for_those_who_come(backend: Backend) {
    let mut bed = Bed::new(backend);
    let any = "tcp://127.0.0.1:0".parse().unwrap();
    let options = ListenOptions { tcp: tcp_options(), ..ListenOptions::default() };
    let socket = listen(&any, &options).unwrap();
    check_tcp_options(&socket);
    assert_eq!(swoole_sys::sockopt::tcp_fastopen(&socket).unwrap(), 9);
    let address = local_address(&socket, &any).unwrap();
    bed.reactor.accept(socket).unwrap();
    let _client = connect(&address);
    bed.until("the connection", |bed| accepted(bed) > 0);
    let Some(Seen::Accepted { socket, .. }) = bed.seen.pop() else { panic!("{:?}", bed.seen) };
    check_tcp_options(&socket);
}

fn a_deferred_accept_waits_for_the_first_byte(backend: Backend) {
    let mut bed = Bed::new(backend);
    let any = "tcp://127.0.0.1:0".parse().unwrap();
    let tcp = TcpOptions { defer_accept: 60, ..TcpOptions::default() };
    let socket = listen(&any, &ListenOptions { tcp, ..ListenOptions::default() }).unwrap();
    assert!(swoole_sys::sockopt::tcp_defer_accept(&socket).unwrap() >= 60);
    let address = local_address(&socket, &any).unwrap();
    bed.reactor.accept(socket).unwrap();
    let mut client = connect(&address);
    bed.fence();
    assert_eq!(accepted(&bed), 0, "it has said nothing");
    client.write_all(b"x").unwrap();
    bed.until("the connection", |bed| accepted(bed) > 0);
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
    for text in [
        "tcp://127.0.0.1:9501",
        "tcp://[::1]:9501",
        "udp://0.0.0.0:53",
        "unix:///run/a b",
        "unixgram://x",
        "fd://web",
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }
    for (text, problem) in [
        ("127.0.0.1:9501", "it begins with tcp://, udp://, unix://, unixgram:// or fd://"),
        ("http://x", "it begins with tcp://, udp://, unix://, unixgram:// or fd://"),
        ("tcp://localhost:1", "it takes a numeric address and a port: 127.0.0.1:9501 or [::1]:9501"),
        ("tcp://[::1]", "it takes a numeric address and a port: 127.0.0.1:9501 or [::1]:9501"),
        ("unix://", "the path is missing: unix:///run/app.sock"),
        ("fd://", "the name is missing: fd://web, or a number: fd://3"),
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

#[test]
fn an_ipv6_listener_takes_ipv4_only_when_it_is_told_to() {
    let dual = ListenOptions { ipv6_only: false, ..ListenOptions::default() };
    for (options, takes) in [(dual, true), (ListenOptions::default(), false)] {
        let any = "tcp://[::]:0".parse().unwrap();
        let socket = listen(&any, &options).unwrap();
        let Address::Tcp(at) = local_address(&socket, &any).unwrap() else { panic!("{any}") };
        TcpStream::connect(at).unwrap();
        assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, at.port())).is_ok(), takes);
    }
}

#[test]
fn the_file_of_a_unix_socket_has_the_mode_and_owner_that_are_asked_for() {
    let dir = TempDir::new("mode");
    let own = std::fs::metadata(dir.path(".")).unwrap();
    for mode in [0o600, 0o666, 0o777] {
        let path = dir.path("socket");
        let unix = UnixOptions { mode: Some(mode), user: Some(own.uid()), group: Some(own.gid()) };
        let options = ListenOptions { unix, ..ListenOptions::default() };
        let _socket = listen(&Address::Unix(path.clone()), &options).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, mode);
        assert_eq!((file.uid(), file.gid()), (own.uid(), own.gid()));
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn what_listens_already_can_be_inherited_and_nothing_else() {
    let dir = TempDir::new("inherit");
    let name = "fd://web".parse::<Address>().unwrap();
    let refusal = |socket: OwnedFd| inherit(&socket, &name, &TcpOptions::default()).unwrap_err().to_string();

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = tcp.local_addr().unwrap();
    let tcp = OwnedFd::from(tcp);
    fcntl_setfd(&tcp, FdFlags::empty()).unwrap();
    assert_eq!(inherit(&tcp, &name, &tcp_options()).unwrap(), Address::Tcp(at));
    check_tcp_options(&tcp);
    assert!(fcntl_getfl(&tcp).unwrap().contains(OFlags::NONBLOCK));
    assert!(fcntl_getfd(&tcp).unwrap().contains(FdFlags::CLOEXEC));

    let path = dir.path("socket");
    let unix = OwnedFd::from(UnixListener::bind(&path).unwrap());
    assert_eq!(inherit(&unix, &name, &tcp_options()).unwrap(), Address::Unix(path));

    let connected = OwnedFd::from(TcpStream::connect(at).unwrap());
    let problem = "the socket does not listen (does its unit have Accept=yes?)";
    assert_eq!(refusal(connected), format!("listen on fd://web: {problem}"));
    let problem = "the descriptor is a socket for datagrams, not for streams";
    let datagrams = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    assert_eq!(refusal(datagrams), format!("listen on fd://web: {problem}"));
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert_eq!(refusal(file), "listen on fd://web: the descriptor is no socket");
}
