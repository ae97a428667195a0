//! A closed loop of requests against an echo server: every connection has `depth` requests under way, and sends the
//! next when a reply is complete. One thread, epoll. Every byte of every reply is compared.

use crate::Framing;
use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What to send, where, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The echo server.
    pub address: SocketAddr,
    /// Connections, all open from the start to the end.
    pub connections: usize,
    /// Payload bytes of a request, without the header of length framing.
    pub size: usize,
    /// Requests under way on each connection.
    pub depth: usize,
    /// Seconds to send for. Replies are then waited for.
    pub seconds: f64,
    /// How requests are told apart.
    pub framing: Framing,
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
    /// Median of the time from a request to its complete reply, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// Connections that failed or gave a wrong byte, and replies that never came.
    pub errors: u64,
}

/// How long replies are waited for when nothing is sent any more.
const GRACE: Duration = Duration::from_secs(5);
const READ_SIZE: usize = 256 * 1024;
/// Requests begin at different places of the table, so that a reply that went astray is recognised.
const TABLE_SLACK: usize = 65_521;

/// Runs the load.
///
/// # Errors
/// No connection could be made, or epoll failed. What goes wrong with a connection later is counted in the summary.
pub fn run(options: &Options) -> Result<Summary> {
    ensure!(options.connections > 0 && options.depth > 0 && options.size > 0, "zero of anything is no load");
    let traffic = Traffic::new(options)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(options.connections);
    for index in 0..options.connections {
        let connection = Connection::open(options.address, index)?;
        epoll::add(&epoll, &connection.stream, EventData::new_u64(index as u64), EventFlags::IN)?;
        connections.push(Some(connection));
    }
    let mut load = Load {
        traffic,
        epoll,
        connections,
        latencies: Histogram::new_with_bounds(1, 3_600_000_000_000, 3)?,
        under_way: 0,
        errors: 0,
    };
    let begin = Instant::now();
    load.send_first(options.depth);
    load.turn_until(begin + Duration::from_secs_f64(options.seconds))?;
    Ok(load.summary(begin.elapsed()))
}

struct Load {
    traffic: Traffic,
    epoll: OwnedFd,
    /// `None`: failed and closed.
    connections: Vec<Option<Connection>>,
    latencies: Histogram<u64>,
    under_way: usize,
    errors: u64,
}

impl Load {
    fn send_first(&mut self, depth: usize) {
        for index in 0..self.connections.len() {
            self.under_way += depth;
            self.step(index, |connection, load| connection.send(depth, &load.traffic, &load.epoll));
        }
    }

    /// Sends until `deadline`, then collects the replies that are still under way.
    fn turn_until(&mut self, deadline: Instant) -> Result<()> {
        let mut scratch = vec![0; READ_SIZE];
        let mut events: Vec<Event> = Vec::with_capacity(self.connections.len());
        while self.under_way > 0 {
            let now = Instant::now();
            if now >= deadline + GRACE {
                self.errors += self.under_way as u64;
                break;
            }
            let timeout = Timespec::try_from(deadline + GRACE - now)?;
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => bail!("epoll_wait: {error}"),
            }
            let sending = Instant::now() < deadline;
            for event in &events {
                self.step(event.data.u64() as usize, |connection, load| {
                    let replies = connection.receive(&mut scratch, &load.traffic, &mut load.latencies)?;
                    let requests = if sending { replies } else { 0 };
                    load.under_way -= replies - requests;
                    connection.send(requests, &load.traffic, &load.epoll)
                });
            }
        }
        Ok(())
    }

    /// Lets a connection do something, and closes it if that fails.
    fn step(&mut self, index: usize, act: impl FnOnce(&mut Connection, &mut Load) -> Result<()>) {
        let Some(mut connection) = self.connections[index].take() else { return };
        match act(&mut connection, self) {
            Ok(()) => self.connections[index] = Some(connection),
            Err(error) => {
                eprintln!("load: connection {index}: {error:#}");
                self.errors += 1;
                self.under_way -= connection.started.len();
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
            errors: self.errors,
        }
    }
}

/// What every request consists of, by connection and sequence number.
struct Traffic {
    header: Vec<u8>,
    table: Vec<u8>,
    size: usize,
}

impl Traffic {
    fn new(options: &Options) -> Result<Traffic> {
        let header = match options.framing {
            Framing::Raw => Vec::new(),
            Framing::Length => u32::try_from(options.size).context("--size")?.to_be_bytes().to_vec(),
        };
        let mut random = fastrand::Rng::with_seed(1);
        let table = (0..options.size + TABLE_SLACK).map(|_| random.u8(..)).collect();
        Ok(Traffic { header, table, size: options.size })
    }

    fn request_len(&self) -> usize {
        self.header.len() + self.size
    }

    fn payload(&self, connection: usize, sequence: u64) -> &[u8] {
        let begin = (connection * 7_919 + sequence as usize * 31) % TABLE_SLACK;
        &self.table[begin..begin + self.size]
    }
}

struct Connection {
    stream: TcpStream,
    index: usize,
    /// Sequence numbers of the next request and of the reply that is being read.
    next_request: u64,
    reply: u64,
    /// Bytes of that reply that have come.
    reply_at: usize,
    /// When the requests under way were sent.
    started: VecDeque<Instant>,
    /// What the socket did not take yet, from `unsent_at` on.
    unsent: Vec<u8>,
    unsent_at: usize,
    waits_for_room: bool,
}

impl Connection {
    fn open(address: SocketAddr, index: usize) -> Result<Connection> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect {index} to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Connection {
            stream,
            index,
            next_request: 0,
            reply: 0,
            reply_at: 0,
            started: VecDeque::new(),
            unsent: Vec::new(),
            unsent_at: 0,
            waits_for_room: false,
        })
    }

    /// Sends that many requests, and what is left of earlier ones.
    fn send(&mut self, requests: usize, traffic: &Traffic, epoll: &OwnedFd) -> Result<()> {
        let now = Instant::now();
        for _ in 0..requests {
            self.unsent.extend_from_slice(&traffic.header);
            self.unsent.extend_from_slice(traffic.payload(self.index, self.next_request));
            self.next_request += 1;
            self.started.push_back(now);
        }
        while self.unsent_at < self.unsent.len() {
            match self.stream.write(&self.unsent[self.unsent_at..]) {
                Ok(written) => self.unsent_at += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        let left = self.unsent_at < self.unsent.len();
        if !left {
            self.unsent.clear();
            self.unsent_at = 0;
        }
        if left != self.waits_for_room {
            let interest = if left { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(epoll, &self.stream, EventData::new_u64(self.index as u64), interest)?;
            self.waits_for_room = left;
        }
        Ok(())
    }

    /// Reads once, compares, and gives back how many replies are complete.
    fn receive(
        &mut self,
        scratch: &mut [u8],
        traffic: &Traffic,
        latencies: &mut Histogram<u64>,
    ) -> Result<usize> {
        let mut rest: &[u8] = match self.stream.read(scratch) {
            Ok(0) => bail!("closed by the server with {} requests under way", self.started.len()),
            Ok(read) => &scratch[..read],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(0);
            }
            Err(error) => return Err(error).context("receive"),
        };
        let now = Instant::now();
        let mut complete = 0;
        while !rest.is_empty() {
            let expected = match self.reply_at.checked_sub(traffic.header.len()) {
                Some(at) => &traffic.payload(self.index, self.reply)[at..],
                None => &traffic.header[self.reply_at..],
            };
            let (piece, after) = rest.split_at(rest.len().min(expected.len()));
            ensure!(
                piece == &expected[..piece.len()] && complete < self.started.len(),
                "wrong bytes in reply {} at {}",
                self.reply,
                self.reply_at
            );
            rest = after;
            self.reply_at += piece.len();
            if self.reply_at == traffic.request_len() {
                self.reply_at = 0;
                self.reply += 1;
                complete += 1;
            }
        }
        for started in self.started.drain(..complete) {
            latencies.record(u64::try_from((now - started).as_nanos())?.max(1))?;
        }
        Ok(complete)
    }
}
