//! Watched descriptors, the waker, and the turn itself.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use swoole_reactor::listener::{self, Address, ListenOptions};
use swoole_reactor::{Backend, Close, Error, Event, Interest, Options, Reactor, Trigger};

use crate::{Bed, Seen};

on_each_backend!(
    a_level_is_reported_in_each_turn_until_it_is_over,
    an_edge_is_reported_once,
    both_directions_are_told_apart,
    a_hang_up_is_ready,
    after_unwatch_there_is_silence,
    what_cannot_be_polled_is_refused,
    many_wakes_are_one_event,
    a_thread_wakes_a_reactor_that_waits_for_ever,
    a_turn_inside_a_turn_is_refused,
    the_choice_is_explained,
    what_waits_for_the_caller_ends_no_wait,
    another_loop_can_wait_for_a_reactor_on_epoll,
);

fn is_ready(seen: &Seen) -> bool {
    matches!(seen, Seen::Ready { .. })
}

fn a_level_is_reported_in_each_turn_until_it_is_over(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let token = bed.reactor.watch(&reader, Interest::READABLE, Trigger::Level).unwrap();
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    writer.write_all(b"xyz").unwrap();
    for turn in 1..=3 {
        bed.turn();
        assert_eq!(bed.count(is_ready), turn);
    }
    assert!(matches!(bed.seen[0], Seen::Ready { token: of, readable: true, writable: false } if of == token));
    reader.read_exact(&mut [0; 3]).unwrap();
    // With io_uring, the last poll may have completed before the read.
    bed.fence();
    bed.seen.clear();
    bed.fence();
    assert!(bed.seen.is_empty(), "{:?}", bed.seen);
    writer.write_all(b"x").unwrap();
    bed.until_seen("the next level", is_ready);
}

fn an_edge_is_reported_once(backend: Backend) {
    let mut bed = Bed::new(backend);
    let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let token = bed.reactor.watch(&bell, Interest::READABLE, Trigger::Edge).unwrap();
    bed.fence();
    for ring in 1..=3 {
        rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
        bed.fence();
        bed.fence();
        // Without ever being read.
        assert_eq!(bed.count(is_ready), ring);
    }
    // What is ready already is an edge, too.
    bed.reactor.unwatch(token);
    bed.seen.clear();
    bed.reactor.watch(&bell, Interest::READABLE, Trigger::Edge).unwrap();
    bed.fence();
    assert_eq!(bed.count(is_ready), 1);
}

fn both_directions_are_told_apart(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (ours, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let both = Interest::READABLE | Interest::WRITABLE;
    bed.reactor.watch(&ours, both, Trigger::Edge).unwrap();
    bed.until_seen("writable", |seen| matches!(seen, Seen::Ready { readable: false, writable: true, .. }));
    peer.write_all(b"x").unwrap();
    bed.until_seen("readable", |seen| matches!(seen, Seen::Ready { readable: true, .. }));
    let only = bed.reactor.watch(&ours, Interest::WRITABLE, Trigger::Level).unwrap();
    bed.until_seen(
        "only writable",
        |seen| matches!(seen, Seen::Ready { token, readable: false, writable: true } if *token == only),
    );
    assert_eq!(
        bed.count(|seen| matches!(seen, Seen::Ready { token, readable: true, .. } if *token == only)),
        0
    );
}

fn a_hang_up_is_ready(backend: Backend) {
    let mut bed = Bed::new(backend);
    let (reader, writer) = std::io::pipe().unwrap();
    let read = bed.reactor.watch(&reader, Interest::READABLE, Trigger::Edge).unwrap();
    bed.fence();
    drop(writer);
    bed.until_seen(
        "the end",
        |seen| matches!(seen, Seen::Ready { token, readable: true, writable: false } if *token == read),
    );

    let (reader, writer) = std::io::pipe().unwrap();
    let write = bed.reactor.watch(&writer, Interest::WRITABLE, Trigger::Edge).unwrap();
    bed.fence();
    bed.seen.clear();
    drop(reader);
    bed.until_seen(
        "the end",
        |seen| matches!(seen, Seen::Ready { token, readable: false, writable: true } if *token == write),
    );
}

fn after_unwatch_there_is_silence(backend: Backend) {
    for trigger in [Trigger::Level, Trigger::Edge] {
        let mut bed = Bed::new(backend);
        let (reader, mut writer) = std::io::pipe().unwrap();
        let token = bed.reactor.watch(&reader, Interest::READABLE, trigger).unwrap();
        // The reactor has a duplicate.
        drop(reader);
        writer.write_all(b"x").unwrap();
        bed.until_seen("the byte", is_ready);
        bed.reactor.unwatch(token);
        bed.reactor.close(token, Close::Now);
        bed.seen.clear();
        bed.fence();
        assert!(bed.seen.is_empty(), "{:?}", bed.seen);
        // It had the last descriptor of the reading end.
        assert_eq!(writer.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }
}

fn what_cannot_be_polled_is_refused(backend: Backend) {
    let mut bed = Bed::new(backend);
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let error = bed.reactor.watch(&file, Interest::READABLE, Trigger::Level).unwrap_err();
    assert!(matches!(&error, Error::System { source, .. } if source.raw_os_error() == Some(1)), "{error}");
}

fn many_wakes_are_one_event(backend: Backend) {
    let mut bed = Bed::new(backend);
    let waker = bed.reactor.waker();
    for round in 1..=3 {
        for _ in 0..10 {
            waker.clone().wake();
        }
        bed.fence();
        bed.fence();
        assert_eq!(bed.count(|seen| matches!(seen, Seen::Woken)), round);
    }
}

fn a_thread_wakes_a_reactor_that_waits_for_ever(backend: Backend) {
    let mut reactor = Reactor::new(Options { backend, ..Options::default() }).unwrap();
    let (ask, asked) = std::sync::mpsc::channel();
    let waker = reactor.waker();
    let thread = thread::spawn(move || asked.into_iter().for_each(|()| waker.wake()));
    for _ in 0..1000 {
        ask.send(()).unwrap();
        let mut is_woken = false;
        while !is_woken {
            reactor.turn(None, |_, event| is_woken = matches!(event, Event::Woken)).unwrap();
        }
    }
    drop(ask);
    thread.join().unwrap();
}

fn a_turn_inside_a_turn_is_refused(backend: Backend) {
    let mut bed = Bed::new(backend);
    bed.reactor.waker().wake();
    let mut result = None;
    bed.repeat("the event", |bed| {
        bed.reactor
            .turn(None, |reactor, _| result = Some(reactor.turn(Some(Duration::ZERO), |_, _| {})))
            .unwrap();
        result.is_some()
    });
    assert!(matches!(result, Some(Err(Error::Reentered))), "{result:?}");
    bed.fence();
}

fn the_choice_is_explained(backend: Backend) {
    let bed = Bed::new(backend);
    let choice = bed.reactor.choice();
    assert_eq!(choice.backend, backend);
    assert!(choice.to_string().starts_with(&format!("{backend}: as configured")), "{choice}");
    let auto = Reactor::new(Options::default()).unwrap();
    let auto = auto.choice();
    assert!(auto.reason.starts_with("chosen by auto: "), "{auto}");
    match auto.backend {
        Backend::IoUring => assert!(auto.reason.contains("shared receive buffers"), "{auto}"),
        _ => assert!(auto.reason.contains("io_uring"), "{auto}"),
    }
}

/// Sources that have something to say, but not now: none may keep a level-triggered set awake, or have
/// completions that lead to nothing but completions.
fn what_waits_for_the_caller_ends_no_wait(backend: Backend) {
    let mut bed = Bed::new(backend);
    let address = "tcp://127.0.0.1:0".parse().unwrap();
    let socket = listener::listen(&address, &ListenOptions::default()).unwrap();
    let Address::Tcp(address) = listener::local_address(&socket, &address).unwrap() else { unreachable!() };
    let listener = bed.reactor.accept(socket).unwrap();
    bed.reactor.pause_accept(listener);
    let _waiting = TcpStream::connect(address).unwrap();

    let (paused, mut paused_peer) = bed.tcp();
    bed.reactor.pause(paused);
    paused_peer.write_all(b"unread").unwrap();
    let (gone, gone_peer) = bed.tcp();
    bed.reactor.pause(gone);
    let (ended, ended_peer) = bed.unix();
    let (failed, failed_peer) = bed.tcp();
    let (blocked, _blocked_peer) = bed.unix();
    bed.reactor.send(blocked, vec![0; 8 << 20]).unwrap();
    let (closing, closing_peer) = bed.tcp();
    bed.reactor.send(closing, vec![0; 16 << 20]).unwrap();
    bed.reactor.close(closing, Close::AfterSend);
    (&closing_peer).write_all(b"unread").unwrap();
    drop((gone_peer, ended_peer));
    rustix::net::sockopt::set_socket_linger(&failed_peer, Some(Duration::ZERO)).unwrap();
    drop(failed_peer);
    bed.until_seen("end-of-file", |seen| matches!(seen, Seen::Eof(of) if *of == ended));
    bed.until_seen("the failure", |seen| matches!(seen, Seen::Failed(of, _) if *of == failed));
    bed.fence();

    const QUIET: Duration = Duration::from_millis(30);
    // A cancellation may still be under way.
    let turns = (0..5).map(|_| {
        let start = std::time::Instant::now();
        bed.reactor.turn(Some(QUIET), |_, event| panic!("{event:?}")).unwrap();
        start.elapsed()
    });
    let elapsed: Vec<_> = turns.collect();
    assert!(elapsed[2..].iter().all(|&elapsed| elapsed >= QUIET), "{elapsed:?}");
}

fn another_loop_can_wait_for_a_reactor_on_epoll(backend: Backend) {
    let mut bed = Bed::new(backend);
    let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    bed.reactor.watch(&bell, Interest::READABLE, Trigger::Edge).unwrap();
    bed.fence();
    let is_readable = |bed: &Bed| {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(bed.reactor.descriptor()?, PollFlags::IN)];
        Some(poll(&mut fds, Some(&now)).unwrap() > 0)
    };
    let has_one = backend == Backend::Epoll;
    assert_eq!(is_readable(&bed), has_one.then_some(false));
    rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(is_readable(&bed), has_one.then_some(true));
    bed.until_seen("the bell", is_ready);
    assert_eq!(is_readable(&bed), has_one.then_some(false), "it is told of");
}
