//! The framework's own hot paths, for `cargo xtask counts` to count their instructions.
//!
//! Compiled with the feature `internals` only: what is counted here is nobody's interface.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use crate::config::{Config, DispatchMode};
use crate::dispatch::{Dispatcher, Load, Query};
use crate::link::{Sent, Window};
use crate::session::{Arrival, Session, SessionTable};
use crate::wire::{HEADER, Reply, ReplyKind, Request, RequestKind};

/// A name, and a function that prepares the operation and does it so many times.
pub type Benchmark = (&'static str, fn(usize));

/// What there is to count.
pub const BENCHMARKS: &[Benchmark] = &[
    ("dispatch/fixed-8", |times| choose(DispatchMode::Fixed, 8, times)),
    ("dispatch/fixed-256", |times| choose(DispatchMode::Fixed, 256, times)),
    ("dispatch/round-robin-8", |times| choose(DispatchMode::RoundRobin, 8, times)),
    ("dispatch/round-robin-256", |times| choose(DispatchMode::RoundRobin, 256, times)),
    ("dispatch/idle-8", |times| choose(DispatchMode::Idle, 8, times)),
    ("dispatch/idle-256", |times| choose(DispatchMode::Idle, 256, times)),
    ("dispatch/least-in-flight-256", |times| choose(DispatchMode::LeastInFlight, 256, times)),
    ("dispatch/consistent-hash-8", |times| choose(DispatchMode::ConsistentHash, 8, times)),
    ("session/open", |times| sessions(|table, session| table.open(session, &ARRIVAL), times)),
    ("session/close", |times| sessions(SessionTable::close, times)),
    ("session/exists", |times| sessions(|table, session| assert!(table.exists(session)), times)),
    ("session/info", |times| sessions(info, times)),
    ("session/count", |times| sessions(|table, session| table.count(session, 128, 128), times)),
    ("window/push-ack-16", push_and_ack),
    ("wire/request", request),
    ("wire/reply", reply),
];

/// A worker for each packet. Every third worker has nothing to do.
fn choose(mode: DispatchMode, workers: u16, times: usize) {
    let config =
        Config { dispatch_mode: black_box(mode), worker_num: workers, reactor_num: 1, ..Config::default() };
    let mut dispatcher = Dispatcher::new(&config, 0);
    (0..workers).for_each(|worker| dispatcher.set_up(worker, true));
    let load = |worker| Load { busy: worker % 3 != 0, in_flight: usize::from(worker % 5) };
    let loads: Vec<Load> = black_box((0..workers).map(load).collect());
    for _ in 0..times {
        let query = black_box(Query { home: 1, uid: 7, packet: &[7; 64] });
        black_box(dispatcher.choose(query, |worker| loads[usize::from(worker)]));
    }
}

const ARRIVAL: Arrival = Arrival {
    listener: 0,
    port: 9501,
    peer: Some(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000)),
    connected_at: 1_700_000_000_000,
};

/// One operation on a table of two reactors, on another session each time.
fn sessions(operation: impl Fn(&SessionTable, Session), times: usize) {
    const SLOTS: usize = 1024;
    let table = SessionTable::create(2, SLOTS).expect("memory for a small table");
    let sessions: Vec<Session> = (0..SLOTS).map(|slot| table.name(1, slot, 1)).collect();
    sessions.iter().for_each(|&session| table.open(session, &ARRIVAL));
    for &session in sessions.iter().cycle().take(times) {
        operation(black_box(&table), black_box(session));
    }
}

fn info(table: &SessionTable, session: Session) {
    black_box(table.info(session)).expect("it is open");
}

/// Somebody's, where nothing depends on whose.
const SESSION: Session = Session::from_raw(1 << 32 | 7);

/// A record is sent, and acknowledged with fifteen others.
fn push_and_ack(times: usize) {
    let mut window = Window::default();
    for number in (1..).take(times) {
        window.push(black_box(Sent {
            kind: RequestKind::Packet,
            session: SESSION,
            last: true,
            size: 128,
            items: 1,
            done: 0,
            start: number * 152,
            end: (number + 1) * 152,
            kept: None,
        }));
        if number % 16 == 0 {
            let freed = window.ack(black_box(number), |sent, count| _ = black_box((sent.end, count)));
            black_box(freed).expect("as many were sent");
        }
    }
}

/// A request's tag and header, written and read.
fn request(times: usize) {
    let request = Request {
        kind: RequestKind::Packet,
        first: true,
        last: true,
        session: SESSION,
        total: 128,
        stamp: 0,
    };
    let mut record = [7; HEADER + 128];
    for _ in 0..times {
        let request = black_box(request);
        record[..HEADER].copy_from_slice(&request.header());
        let decoded = Request::decode(black_box(request.tag()), black_box(&record));
        assert!(black_box(decoded).is_ok());
    }
}

/// A reply's tag and header, written and read.
fn reply(times: usize) {
    let reply = Reply { kind: ReplyKind::Send, commit: true, session: SESSION, ack: 42 };
    let mut record = [7; HEADER + 128];
    for _ in 0..times {
        let reply = black_box(reply);
        record[..HEADER].copy_from_slice(&reply.header());
        let decoded = Reply::decode(black_box(reply.tag()), black_box(&record));
        assert!(black_box(decoded).is_ok());
    }
}
