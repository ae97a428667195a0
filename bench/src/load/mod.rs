//! Load on an echo server, from one thread with epoll. Every byte of every reply is compared.
//!
//! - **Closed loop**: every connection has `depth` requests under way and sends the next when a reply is complete. A
//!   latency is the time from there to its own complete reply: what a client sees that waits for its replies. A server
//!   that stalls is asked less in that time, so this says nothing about clients that do not wait.
//! - **Open loop** (`rate`): requests are due at even intervals, whatever the server does, over the connections in turn.
//!   A latency counts from when its request was *due*, so that a stall is charged to each request that it delayed, also
//!   to those that were sent late because of it (no coordinated omission).
//!
//! The load shares its machine's cores with the server. So the hot path allocates nothing, copies nothing, reads the
//! clock once per readiness, and has one read and one write for all that is ready on a connection.

mod connection;
pub(crate) mod traffic;

use crate::Protocol;
use anyhow::{Context, Result, bail, ensure};
use connection::Connection;
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use traffic::Traffic;

/// What to send, where, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The echo server.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Connections, all open from the start to the end.
    pub connections: usize,
    /// Payload bytes of a request.
    pub size: usize,
    /// Closed loop: requests under way on each connection.
    pub depth: usize,
    /// Open loop: requests per second over all connections.
    pub rate: Option<f64>,
    /// Seconds to send for. Replies are then waited for.
    pub seconds: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Complete and correct replies.
    pub requests: u64,
    /// Seconds from the first request to the last reply.
    pub seconds: f64,
    /// The quotient of the two.
    pub requests_per_second: f64,
    /// Median of the latencies, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Connections that failed or gave a wrong byte, and replies that never came.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
}

/// How long replies are waited for when nothing is sent any more. A crowded machine may not run a process for long.
const GRACE: Duration = Duration::from_secs(30);
const READ_SIZE: usize = 256 * 1024;
const EVENTS: usize = 1024;
/// An open loop that is behind looks for replies after so many requests.
const DUE_AT_ONCE: u64 = 256;
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// Runs the load.
///
/// # Errors
/// No connection could be made, or epoll failed. What goes wrong with a connection later is counted in the summary.
pub fn run(options: &Options) -> Result<Summary> {
    Load::connect(options)?.run(options.depth, options.rate, options.seconds)
}

/// Connections that are open, for as long as this lives.
pub struct Load {
    traffic: Traffic,
    epoll: OwnedFd,
    /// `None`: failed and closed.
    connections: Vec<Option<Connection>>,
    latencies: Histogram<u64>,
    scratch: Vec<u8>,
    events: Vec<Event>,
    under_way: usize,
    errors: u64,
    first_error: Option<String>,
}

/// When requests are due: in an open loop, or never.
struct Schedule {
    begin: Instant,
    interval: Option<Duration>,
    sent: u64,
}

impl Schedule {
    fn next(&self) -> Option<Instant> {
        // In f64 because Duration * u32 ends after seven minutes at a million per second.
        self.interval.map(|interval| self.begin + interval.mul_f64(self.sent as f64))
    }
}

impl Load {
    /// Opens the connections, and sends nothing yet.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn connect(options: &Options) -> Result<Load> {
        ensure!(
            options.connections > 0 && options.depth > 0 && options.size > 0,
            "zero of anything is no load"
        );
        let traffic = Traffic::new(options.protocol, options.size)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(options.connections);
        for index in 0..options.connections {
            let connection = Connection::open(options.address, index, &traffic)?;
            epoll::add(&epoll, &connection.stream, EventData::new_u64(index as u64), EventFlags::IN)?;
            connections.push(Some(connection));
        }
        Ok(Load {
            traffic,
            epoll,
            connections,
            latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            scratch: vec![0; READ_SIZE],
            events: Vec::with_capacity(EVENTS),
            under_way: 0,
            errors: 0,
            first_error: None,
        })
    }

    /// Sends for so many seconds, waits for the replies, and sums up. The connections stay open.
    ///
    /// # Errors
    /// epoll failed.
    pub fn run(&mut self, depth: usize, rate: Option<f64>, seconds: f64) -> Result<Summary> {
        self.latencies.reset();
        let begin = Instant::now();
        let deadline = begin + Duration::from_secs_f64(seconds);
        let interval =
            rate.map(|rate| Duration::try_from_secs_f64(1.0 / rate)).transpose().context("--rate")?;
        let mut schedule = Schedule { begin, interval, sent: 0 };
        if interval.is_none() {
            for index in 0..self.connections.len() {
                self.step(index, |connection, load| {
                    let now = Instant::now();
                    (0..depth).for_each(|_| connection.grant(now, &load.traffic));
                    load.under_way += depth;
                    load.send(connection, index)
                });
            }
        }
        self.turn(&mut schedule, deadline)?;
        Ok(self.summary(begin.elapsed()))
    }

    /// Sends until `deadline`, then collects the replies that are still under way.
    fn turn(&mut self, schedule: &mut Schedule, deadline: Instant) -> Result<()> {
        let end = deadline + GRACE;
        loop {
            let now = Instant::now();
            let wake = match schedule.next() {
                Some(due) if now < deadline => due.min(deadline),
                _ => end,
            };
            if now < deadline {
                self.send_due(schedule, now);
            } else if self.under_way == 0 || now >= end {
                break;
            }
            if self.connections.iter().all(Option::is_none) {
                break;
            }
            let timeout = Timespec::try_from(wake.saturating_duration_since(now))?;
            let mut events = std::mem::take(&mut self.events);
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => bail!("epoll_wait: {error}"),
            }
            for event in &events {
                self.serve(event.data.u64() as usize, schedule.interval.is_none(), deadline);
            }
            self.events = events;
        }
        self.errors += self.under_way as u64;
        if self.under_way > 0 {
            self.first_error.get_or_insert_with(|| "replies are missing".into());
        }
        Ok(())
    }

    /// Sends what is due by `now` in an open loop.
    fn send_due(&mut self, schedule: &mut Schedule, now: Instant) {
        for _ in 0..DUE_AT_ONCE {
            let Some(due) = schedule.next().filter(|due| *due <= now) else { return };
            let index = (schedule.sent % self.connections.len() as u64) as usize;
            schedule.sent += 1;
            self.step(index, |connection, load| {
                connection.grant(due, &load.traffic);
                load.under_way += 1;
                load.send(connection, index)
            });
        }
    }

    /// Reads what has come on a connection; in a closed loop, before the deadline, asks anew for each reply.
    fn serve(&mut self, index: usize, closed: bool, deadline: Instant) {
        self.step(index, |connection, load| {
            let latencies = &mut load.latencies;
            let received = connection.receive(&mut load.scratch, &load.traffic, |started, now| {
                let ns = u64::try_from((now - started).as_nanos())?;
                Ok(latencies.record(ns.clamp(1, LATENCY_MAX_NS))?)
            })?;
            load.under_way -= received.replies;
            if closed && received.now < deadline {
                (0..received.replies).for_each(|_| connection.grant(received.now, &load.traffic));
                load.under_way += received.replies;
            }
            load.send(connection, index)
        });
    }

    fn send(&self, connection: &mut Connection, index: usize) -> Result<()> {
        let left = connection.send(&self.traffic)?;
        if left != connection.waits_for_room {
            let interest = if left { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &connection.stream, EventData::new_u64(index as u64), interest)?;
            connection.waits_for_room = left;
        }
        Ok(())
    }

    /// Lets a connection do something, and closes it if that fails.
    fn step(&mut self, index: usize, act: impl FnOnce(&mut Connection, &mut Load) -> Result<()>) {
        let Some(mut connection) = self.connections[index].take() else { return };
        match act(&mut connection, self) {
            Ok(()) => self.connections[index] = Some(connection),
            Err(error) => {
                self.first_error.get_or_insert_with(|| format!("connection {index}: {error:#}"));
                self.errors += 1;
                self.under_way -= connection.under_way();
            }
        }
    }

    fn summary(&self, elapsed: Duration) -> Summary {
        let micros = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1e3;
        Summary {
            requests: self.latencies.len(),
            seconds: elapsed.as_secs_f64(),
            requests_per_second: self.latencies.len() as f64 / elapsed.as_secs_f64(),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
            max_us: self.latencies.max() as f64 / 1e3,
            errors: self.errors,
            first_error: self.first_error.clone(),
        }
    }
}

impl Summary {
    /// The summary, if nothing went wrong.
    ///
    /// # Errors
    /// A reply was wrong or missing, or there was none at all.
    pub fn verified(self) -> Result<Summary> {
        if let Some(error) = &self.first_error {
            bail!("{} errors, the first: {error}", self.errors);
        }
        ensure!(self.requests > 0, "no reply came");
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    /// An echo server for one connection, which stalls once and may then spoil a byte.
    fn server(stall: Duration, spoil: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut buffer, mut total) = ([0; 4096], 0);
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if total < 5_000 && total + read >= 5_000 {
                    thread::sleep(stall);
                    buffer[0] ^= u8::from(spoil);
                }
                total += read;
                if stream.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        });
        address
    }

    fn options(address: SocketAddr) -> Options {
        let protocol = Protocol::Raw;
        Options { address, protocol, connections: 1, size: 100, depth: 1, rate: None, seconds: 0.3 }
    }

    #[test]
    fn every_reply_is_checked() {
        let summary = run(&options(server(Duration::ZERO, true))).unwrap();
        assert!(summary.errors > 0 && summary.verified().is_err());
        let summary = run(&Options { depth: 16, ..options(server(Duration::ZERO, false)) }).unwrap();
        assert!(summary.verified().unwrap().requests > 100);
    }

    #[test]
    fn an_open_loop_charges_a_stall_to_all_that_it_delayed() {
        let address = server(Duration::from_millis(100), false);
        let options = Options { rate: Some(1000.0), ..options(address) };
        let summary = run(&options).unwrap().verified().unwrap();
        assert!((290..=301).contains(&summary.requests), "{summary:?}");
        // A third of all requests was due in the stall, the first of them waited for the whole of it.
        assert!(summary.max_us >= 95_000.0 && summary.p99_us > 80_000.0, "{summary:?}");
        assert!(summary.p50_us < 50_000.0, "{summary:?}");
    }
}
