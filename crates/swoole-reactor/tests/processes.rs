//! What takes a process of its own: forks, signals, limits.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

#[path = "../../swoole-sys/tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, kill_process, setrlimit, waitpid,
};
use swoole_reactor::listener::{self, Address, ListenOptions};
use swoole_reactor::{Backend, Close, Error, Event, Interest, Options, Reactor, SignalSet, Token, Trigger};
use swoole_sys::process::{Fork, fork, run_child};
use swoole_sys::signal;

tests!(
    epoll_in_a_forked_child_is_refused,
    io_uring_in_a_forked_child_is_refused,
    epoll_signals_are_events,
    io_uring_signals_are_events,
    epoll_out_of_descriptors_is_said_once,
    io_uring_out_of_descriptors_is_said_once,
    epoll_idle_is_free,
    io_uring_idle_is_free,
    no_descriptors_for_a_reactor,
    epoll_accepts_beside_a_process_that_is_stopped,
    io_uring_accepts_beside_a_process_that_is_stopped,
);

/// `None` where this machine has no io_uring.
fn reactor(backend: Backend) -> Option<Reactor> {
    match Reactor::new(Options { backend, ..Options::default() }) {
        Err(Error::Unavailable { reason }) => {
            eprintln!("skipped: {reason}");
            None
        }
        result => Some(result.unwrap()),
    }
}

fn listen(reactor: &mut Reactor) -> (Token, SocketAddr) {
    let address = "tcp://127.0.0.1:0".parse().unwrap();
    let socket = listener::listen(&address, &ListenOptions::default()).unwrap();
    let Address::Tcp(address) = listener::local_address(&socket, &address).unwrap() else { unreachable!() };
    (reactor.accept(socket).unwrap(), address)
}

/// Forks a child that must end well.
fn fork_child(life: impl FnOnce()) -> Pid {
    match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            life();
            0
        }),
    }
}

fn assert_ends_well(child: Pid) {
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
}

fn epoll_in_a_forked_child_is_refused() {
    fork_is_refused(Backend::Epoll);
}

fn io_uring_in_a_forked_child_is_refused() {
    fork_is_refused(Backend::IoUring);
}

fn fork_is_refused(backend: Backend) {
    let Some(mut reactor) = reactor(backend) else { return };
    let (listener, address) = listen(&mut reactor);
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let stream = reactor.stream(ours.into()).unwrap();
    reactor.receive(stream).unwrap();
    reactor.turn(Some(Duration::ZERO), |_, _| {}).unwrap();

    let inherited = &mut reactor;
    let child = fork_child(|| {
        assert!(matches!(inherited.turn(None, |_, _| {}), Err(Error::Forked)));
        assert!(matches!(inherited.send(stream, vec![1]), Err(Error::Forked)));
        assert!(matches!(inherited.receive(stream), Err(Error::Forked)));
        assert!(matches!(
            inherited.watch(std::io::stdin(), Interest::READABLE, Trigger::Level),
            Err(Error::Forked)
        ));
        inherited.close(stream, Close::Reset);
        inherited.pause_accept(listener);
        inherited.unwatch(stream);
        // To drop it takes nothing from the parent; a new one works.
        drop(std::mem::replace(inherited, Reactor::new(Options { backend, ..Options::default() }).unwrap()));
        inherited.waker().wake();
        let mut is_woken = false;
        inherited.turn(None, |_, event| is_woken = matches!(event, Event::Woken)).unwrap();
        assert!(is_woken);
    });
    assert_ends_well(child);

    peer.write_all(b"still here").unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let (mut received, mut accepted) = (Vec::new(), 0);
    while (&received[..], accepted) != (b"still here", 1) {
        let handler = |_: &mut Reactor, event: Event<'_>| match event {
            Event::Data { bytes, .. } => received.extend_from_slice(bytes),
            Event::Accepted { .. } => accepted += 1,
            event => panic!("unexpected {event:?}"),
        };
        reactor.turn(None, handler).unwrap();
    }
    reactor.send(stream, b"me too".to_vec()).unwrap();
    reactor.close(stream, Close::AfterSend);
    while reactor.queued(stream) > 0 {
        reactor.turn(None, |_, _| {}).unwrap();
    }
    let mut reply = [0; 6];
    peer.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"me too");
}

fn epoll_signals_are_events() {
    signals_are_events(Backend::Epoll);
}

fn io_uring_signals_are_events() {
    signals_are_events(Backend::IoUring);
}

fn signals_are_events(backend: Backend) {
    let Some(mut reactor) = reactor(backend) else { return };
    let token = reactor.signals(&SignalSet::from([Signal::TERM, Signal::USR1, Signal::CHILD])).unwrap();
    let next = |reactor: &mut Reactor| {
        let mut infos = Vec::new();
        while infos.is_empty() {
            let handler = |_: &mut Reactor, event: Event<'_>| match event {
                Event::Signal { info } => infos.push(info),
                event => panic!("unexpected {event:?}"),
            };
            reactor.turn(None, handler).unwrap();
        }
        infos
    };
    for sent in [Signal::TERM, Signal::USR1, Signal::TERM] {
        signal::raise(sent).unwrap();
        let infos = next(&mut reactor);
        assert_eq!(infos.iter().map(|info| info.signal).collect::<Vec<_>>(), [sent]);
        assert_eq!(infos[0].pid, Some(getpid()));
    }
    // Both kinds in one turn.
    signal::raise(Signal::USR1).unwrap();
    signal::raise(Signal::TERM).unwrap();
    let mut both: Vec<_> = next(&mut reactor).into_iter().map(|info| info.signal).collect();
    both.sort_by_key(|signal| signal.as_raw());
    assert_eq!(both, [Signal::USR1, Signal::TERM]);

    let child = fork_child(|| swoole_sys::process::exit_now(7));
    let infos = next(&mut reactor);
    assert_eq!((infos[0].signal, infos[0].pid, infos[0].status), (Signal::CHILD, Some(child), 7));

    reactor.close(token, Close::Now);
    let mut is_closed = false;
    while !is_closed {
        reactor.turn(None, |_, event| is_closed = matches!(event, Event::Closed { .. })).unwrap();
    }
    // Still blocked, so it waits for whoever asks next.
    signal::raise(Signal::USR1).unwrap();
    reactor.signals(&SignalSet::from([Signal::USR1])).unwrap();
    assert_eq!(next(&mut reactor)[0].signal, Signal::USR1);
}

fn epoll_out_of_descriptors_is_said_once() {
    out_of_descriptors_is_said_once(Backend::Epoll);
}

fn io_uring_out_of_descriptors_is_said_once() {
    out_of_descriptors_is_said_once(Backend::IoUring);
}

fn limit_descriptors(count: u64) {
    let limit = Rlimit { current: Some(count), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Leaves room for `count` more descriptors as long as the value lives.
fn leave_free(count: usize) -> Vec<OwnedFd> {
    limit_descriptors(100);
    let mut taken: Vec<OwnedFd> = std::iter::from_fn(|| rustix::io::dup(std::io::stderr()).ok()).collect();
    taken.truncate(taken.len() - count);
    taken
}

fn out_of_descriptors_is_said_once(backend: Backend) {
    let Some(mut reactor) = reactor(backend) else { return };
    let (listener, address) = listen(&mut reactor);
    let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
    let taken = leave_free(2);
    let (mut accepted, mut failures) = (Vec::new(), Vec::new());
    let turn = |reactor: &mut Reactor, accepted: &mut Vec<_>, failures: &mut Vec<_>| {
        let handler = |_: &mut Reactor, event: Event<'_>| match event {
            Event::Accepted { socket, .. } => accepted.push(socket),
            Event::AcceptFailed { listener: of, error } => {
                assert_eq!(of, listener);
                failures.push(error.raw_os_error());
            }
            event => panic!("unexpected {event:?}"),
        };
        reactor.turn(Some(Duration::from_millis(20)), handler).unwrap();
    };
    while failures.is_empty() {
        turn(&mut reactor, &mut accepted, &mut failures);
    }
    // Accepting pauses: neither connections nor more failures, until the caller sees to it.
    for _ in 0..5 {
        turn(&mut reactor, &mut accepted, &mut failures);
    }
    let emfile = Some(24);
    assert_eq!((accepted.len(), &failures[..]), (2, &[emfile][..]));
    reactor.resume_accept(listener);
    while failures.len() < 2 {
        turn(&mut reactor, &mut accepted, &mut failures);
    }
    assert_eq!((accepted.len(), failures[1]), (2, emfile));
    accepted.clear();
    drop(taken);
    reactor.resume_accept(listener);
    while accepted.len() < clients.len() - 2 {
        turn(&mut reactor, &mut accepted, &mut failures);
    }
    assert_eq!(failures.len(), 2);
}

fn epoll_idle_is_free() {
    idle_is_free(Backend::Epoll);
}

fn io_uring_idle_is_free() {
    idle_is_free(Backend::IoUring);
}

/// A reactor that waits for nothing in particular never runs: the kernel counts how often it went to sleep.
fn idle_is_free(backend: Backend) {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let child = fork_child(|| {
        let Some(mut reactor) = reactor(backend) else { return };
        listen(&mut reactor);
        let stream = reactor.stream(theirs.try_clone().unwrap().into()).unwrap();
        reactor.receive(stream).unwrap();
        reactor.signals(&SignalSet::from([Signal::USR1])).unwrap();
        reactor.turn(Some(Duration::ZERO), |_, _| {}).unwrap();
        theirs.write_all(b"idle").unwrap();
        let events = reactor.turn(None, |_, _| {}).unwrap();
        assert_eq!(events, 1);
    });
    let mut word = [0; 4];
    drop(theirs);
    // It has nothing to say where it is skipped.
    if ours.read_exact(&mut word).is_ok() {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.as_raw_nonzero())).unwrap();
        let is_asleep = || read("stat").rsplit_once(')').unwrap().1.starts_with(" S");
        let sleeps = || -> String {
            let status = read("status");
            status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
        };
        while !is_asleep() {
            std::thread::yield_now();
        }
        let before = sleeps();
        // Time is what this is about.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(sleeps(), before);
        kill_process(child, Signal::USR1).unwrap();
    }
    assert_ends_well(child);
}

fn no_descriptors_for_a_reactor() {
    for backend in [Backend::Epoll, Backend::IoUring] {
        for more in 0..2 {
            let _taken = leave_free(more);
            let error = Reactor::new(Options { backend, ..Options::default() }).unwrap_err();
            assert!(error.to_string().contains("Too many open files"), "{error}");
        }
    }
}

fn epoll_accepts_beside_a_process_that_is_stopped() {
    accepts_beside_a_process_that_is_stopped(Backend::Epoll);
}

fn io_uring_accepts_beside_a_process_that_is_stopped() {
    accepts_beside_a_process_that_is_stopped(Backend::IoUring);
}

fn accepts_beside_a_process_that_is_stopped(backend: Backend) {
    let address = "tcp://127.0.0.1:0".parse().unwrap();
    let socket = listener::listen(&address, &ListenOptions::default()).unwrap();
    let Address::Tcp(address) = listener::local_address(&socket, &address).unwrap() else { unreachable!() };
    let theirs = socket.try_clone().unwrap();
    let (ready, mut is_ready) = UnixStream::pair().unwrap();
    let child = fork_child(move || {
        let Some(mut reactor) = reactor(backend) else { return };
        reactor.accept_shared(theirs).unwrap();
        // It waits before the other one does.
        reactor.turn(Some(Duration::ZERO), |_, _| {}).unwrap();
        (&ready).write_all(b"!").unwrap();
        loop {
            reactor.turn(None, |_, _| {}).unwrap();
        }
    });
    if let Some(mut reactor) = reactor(backend) {
        is_ready.read_exact(&mut [0]).unwrap();
        kill_process(child, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(child), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());
        reactor.accept_shared(socket).unwrap();
        reactor.turn(Some(Duration::ZERO), |_, _| {}).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let mut accepted = false;
        let handler = |_: &mut Reactor, event: Event<'_>| accepted |= matches!(event, Event::Accepted { .. });
        reactor.turn(Some(Duration::from_secs(10)), handler).unwrap();
        assert!(accepted, "the connection waits for the one that is stopped");
    }
    kill_process(child, Signal::KILL).unwrap();
    waitpid(Some(child), WaitOptions::empty()).unwrap();
}
