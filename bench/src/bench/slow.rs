//! `slow`: what others notice of a client that asks for far more than it reads: latencies and memory beside those without it, in
//! an open loop.

use super::{Entry, Plan, Planned};
use crate::Protocol;
use crate::account::memory_kib;
use crate::load::{self, Load};
use crate::options::{Options, or};
use crate::sample::{MEMORY, P50, P99, P999, REQUESTS, Sample};
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result, ensure};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const CONNECTIONS: &[usize] = &[1000];
const RATE: f64 = 20_000.0;
const SIZE: usize = 128;
const WARM_UP_SECONDS: f64 = 0.3;
/// The slow one sends so much and reads so much, so often: it is closed at `socket_buffer_size` after some seconds.
const GULP: usize = 16 << 10;
const SIP: usize = 1024;
const EVERY: Duration = Duration::from_millis(10);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let mut cells = Vec::new();
    for connections in or(&options.connections, CONNECTIONS) {
        let rate = options.rate.unwrap_or(RATE);
        let load = load::Options {
            address: ([127, 0, 0, 1], 0).into(),
            protocol: Protocol::Raw,
            connections,
            size: SIZE,
            depth: 1,
            rate: Some(rate),
            seconds: options.seconds,
        };
        let entries = subjects.iter().flat_map(|subject| {
            [false, true].map(|is_slow| {
                let (name, load, subject) = (subject.label(), load.clone(), subject.clone());
                let name = if is_slow { format!("{name}, slow reader") } else { name };
                Entry::new(name, move || measure(&subject, &load, is_slow))
            })
        });
        let title =
            format!("{rate} requests/s of {SIZE} B on {connections} connections, and one that does not read");
        cells.push(Planned { title, point: None, entries: entries.collect() });
    }
    Ok(Plan { cells, skipped })
}

fn measure(subject: &Subject, load: &load::Options, is_slow: bool) -> Result<Sample> {
    let server = subject.start(&Setup { dialect: Dialect::Echo(Protocol::Raw), ..Setup::default() })?;
    let options = load::Options { address: server.address(), ..load.clone() };
    let mut load = Load::connect(&options)?;
    load.run(options.depth, options.rate, WARM_UP_SECONDS)?.verified()?;
    let (over, is_over) = channel::<()>();
    let (summary, sent) = thread::scope(|scope| {
        let slow = scope.spawn(move || if is_slow { drag(options.address, &is_over) } else { Ok(0) });
        let summary = load.run(options.depth, options.rate, options.seconds);
        drop(over);
        let sent = slow.join().ok().context("the slow reader panicked")??;
        anyhow::Ok((summary?.verified()?, sent))
    })?;
    ensure!(!is_slow || sent > 256 << 10, "the slow reader has sent {sent} bytes only");
    let memory = memory_kib(&server.processes()?)?;
    drop(load);
    server.stop()?;
    Ok(vec![
        (&REQUESTS, summary.requests_per_second),
        (&P50, summary.p50_us),
        (&P99, summary.p99_us),
        (&P999, summary.p999_us),
        (&MEMORY, memory as f64 / 1024.0),
    ])
}

/// Sends more than it reads; again from the beginning when it is closed for that. Bytes sent.
fn drag(address: SocketAddr, is_over: &Receiver<()>) -> Result<u64> {
    let (bytes, mut sip, mut sent) = (vec![b'z'; GULP], [0; SIP], 0);
    let connect = || -> Result<TcpStream> {
        let client = TcpStream::connect(address)?;
        client.set_nonblocking(true)?;
        Ok(client)
    };
    let mut client = connect()?;
    while is_over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        let mut is_closed = false;
        match client.write(&bytes) {
            Ok(count) => sent += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => is_closed = true,
        }
        match client.read(&mut sip) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => is_closed = true,
        }
        if is_closed {
            client = connect()?;
        }
    }
    Ok(sent)
}
