//! What a reactor promises, asked of each backend.
//!
//! A test is a function of a [`Backend`]; `on_each_backend!` makes one `#[test]` of it for each. Nothing
//! sleeps: a test waits for a condition, with a deadline, or behind a fence ([`Bed::fence`]) when the point
//! is that nothing happens.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use swoole_reactor::{Backend, DatagramPeer, Detached, Error, Event, Options, Reactor, TimerId, Token};

/// `on_each_backend!(a, b)` runs `a(Backend)` and `b(Backend)` as tests on epoll and on io_uring.
macro_rules! on_each_backend {
    ($($name:ident),+ $(,)?) => {
        mod epoll {
            $(#[test] fn $name() { super::$name(swoole_reactor::Backend::Epoll); })+
        }
        mod io_uring {
            $(#[test] fn $name() {
                if crate::has_io_uring() {
                    super::$name(swoole_reactor::Backend::IoUring);
                }
            })+
        }
    };
}

mod closing;
mod crowds;
mod datagrams;
mod descriptors;
mod detaching;
mod files;
mod listeners;
mod streams;
mod timers;

/// More than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this machine has io_uring; where it has not, its tests say so and pass.
fn has_io_uring() -> bool {
    match Reactor::new(Options { backend: Backend::IoUring, ..Options::default() }) {
        Ok(_) => true,
        Err(Error::Unavailable { reason }) => {
            eprintln!("skipped: {reason}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// An event that outlives its turn.
#[derive(Debug)]
enum Seen {
    Accepted { listener: Token, socket: OwnedFd, peer: Option<SocketAddr> },
    Data(Token, Vec<u8>),
    Readable(Token),
    Eof(Token),
    Failed(Token, io::ErrorKind),
    Sent(Token),
    Low(Token),
    Closed(Token),
    Detached(Token, Detached),
    Datagram { token: Token, peer: DatagramPeer, bytes: Vec<u8>, truncated: bool },
    Ready { token: Token, readable: bool, writable: bool },
    Timer(TimerId),
    Woken,
}

impl Seen {
    fn new(event: Event<'_>) -> Self {
        match event {
            Event::Accepted { listener, socket, peer } => Self::Accepted { listener, socket, peer },
            Event::Data { token, bytes } => Self::Data(token, bytes.to_vec()),
            Event::Readable { token } => Self::Readable(token),
            Event::Eof { token } => Self::Eof(token),
            Event::Failed { token, error } => Self::Failed(token, error.kind()),
            Event::Sent { token } => Self::Sent(token),
            Event::Low { token } => Self::Low(token),
            Event::Closed { token } => Self::Closed(token),
            Event::Detached { token, detached } => Self::Detached(token, detached),
            Event::Datagram { token, peer, bytes, truncated } => {
                Self::Datagram { token, peer, bytes: bytes.to_vec(), truncated }
            }
            Event::Ready { token, readable, writable } => Self::Ready { token, readable, writable },
            Event::Timer { id } => Self::Timer(id),
            Event::Woken => Self::Woken,
            event @ (Event::AcceptFailed { .. } | Event::Signal { .. }) => panic!("unexpected {event:?}"),
        }
    }

    /// Which source it concerns.
    fn token(&self) -> Option<Token> {
        match self {
            Self::Accepted { listener: token, .. }
            | Self::Data(token, _)
            | Self::Readable(token)
            | Self::Eof(token)
            | Self::Failed(token, _)
            | Self::Sent(token)
            | Self::Low(token)
            | Self::Closed(token)
            | Self::Detached(token, _)
            | Self::Datagram { token, .. }
            | Self::Ready { token, .. } => Some(*token),
            Self::Timer(_) | Self::Woken => None,
        }
    }
}

/// A reactor, and what it has reported.
struct Bed {
    reactor: Reactor,
    seen: Vec<Seen>,
    /// A stream that nothing else happens on.
    fence: (Token, UnixStream),
    deadline: Instant,
}

impl Bed {
    fn new(backend: Backend) -> Self {
        Self::with(Options { backend, ..Options::default() })
    }

    fn with(options: Options) -> Self {
        let mut reactor = Reactor::new(options).unwrap();
        let (ours, fence) = UnixStream::pair().unwrap();
        let token = reactor.stream(ours.into()).unwrap();
        reactor.receive(token).unwrap();
        Self { reactor, seen: Vec::new(), fence: (token, fence), deadline: Instant::now() + PATIENCE }
    }

    /// One turn, which waits if it must.
    fn turn(&mut self) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let seen = &mut self.seen;
        self.reactor.turn(Some(left), |_, event| seen.push(Seen::new(event))).unwrap();
    }

    /// Turns until `condition` holds.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        while !condition(self) {
            assert!(Instant::now() < self.deadline, "in vain waited for: {what}; seen: {:?}", self.seen);
            self.turn();
        }
    }

    /// Repeats `step`, which turns the reactor itself, until it says that it is done.
    fn repeat(&mut self, what: &str, mut step: impl FnMut(&mut Self) -> bool) {
        while !step(self) {
            assert!(Instant::now() < self.deadline, "in vain waited for: {what}");
        }
    }

    fn until_seen(&mut self, what: &str, condition: impl Fn(&Seen) -> bool) {
        self.until(what, |bed| bed.seen.iter().any(&condition));
    }

    /// Turns until everything has been reported that had happened before the call: what comes last is what
    /// happens last. A second round gives the reactor the time to act on the first.
    fn fence(&mut self) {
        for _ in 0..2 {
            self.fence.1.write_all(b"|").unwrap();
            let token = self.fence.0;
            self.until("the fence", |bed| {
                let before = bed.seen.len();
                bed.seen.retain(|seen| seen.token() != Some(token));
                bed.seen.len() < before
            });
        }
    }

    /// A stream over TCP, receiving, and its peer, which gives up reading in time.
    fn tcp(&mut self) -> (Token, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        let (ours, _) = listener.accept().unwrap();
        (self.adopt(ours.into()), peer)
    }

    /// The same over a Unix socket.
    fn unix(&mut self) -> (Token, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        (self.adopt(ours.into()), peer)
    }

    fn adopt(&mut self, socket: OwnedFd) -> Token {
        let token = self.reactor.stream(socket).unwrap();
        self.reactor.receive(token).unwrap();
        token
    }

    /// All bytes that have arrived on a stream.
    fn received(&self, token: Token) -> Vec<u8> {
        let bytes = self.seen.iter().filter_map(|seen| match seen {
            Seen::Data(of, bytes) if *of == token => Some(&bytes[..]),
            _ => None,
        });
        bytes.collect::<Vec<_>>().concat()
    }

    fn count(&self, condition: impl Fn(&Seen) -> bool) -> usize {
        self.seen.iter().filter(|seen| condition(seen)).count()
    }
}

/// Bytes that no other place in the stream repeats.
fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

/// A directory for sockets, gone with the value.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let unique = format!("swoole-reactor-{}-{name}-{}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}
