//! Short connections: each slot connects, sends one request, checks the reply, closes, and begins again.
//!
//! The client closes first, as most do, so the client's end stays in TIME_WAIT for a minute. One address has some 28,000
//! ports, which would be used up in a second; so connections come from [`SOURCES`] loopback addresses in turn.

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What is asked of a server, once per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// 128 bytes, to come back as they are.
    Echo,
    /// `GET /`, to be answered with [`HTTP_BODY`].
    Http,
    /// The same 128 bytes, by Redis's `ECHO`.
    Redis,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Connections that were served.
    pub connections: u64,
    /// Seconds from the first connect to the last reply.
    pub seconds: f64,
    /// Median of the time from a connect to the complete reply, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
}

/// What a peer that speaks HTTP answers to every request.
pub const HTTP_BODY: &str = "hello";
/// And what it is asked.
pub const HTTP_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
const ECHO_SIZE: usize = 128;
/// More than any reply has.
const REPLY_MAX: usize = 4096;
/// Bytes of a wrong reply that are shown.
const SHOWN: usize = 48;
/// Addresses that connections come from: 127.0.1.1 and following.
const SOURCES: u64 = 200;
/// A crowded machine may not run a process for long.
const GRACE: Duration = Duration::from_secs(30);
/// Echoed payloads begin at different places of a table, so that a reply which went astray is recognised.
const TABLE: usize = 4096;

/// Runs `slots` connections side by side for so many seconds.
///
/// # Errors
/// A connection failed, a reply was wrong, or none came for half a minute.
pub fn run(address: SocketAddr, service: Service, slots: usize, seconds: f64) -> Result<Summary> {
    let SocketAddr::V4(address) = address else { bail!("{address} is not an IPv4 address") };
    let mut random = fastrand::Rng::with_seed(1);
    let mut churn = Churn {
        address,
        service,
        table: (0..TABLE + ECHO_SIZE).map(|_| random.u8(..)).collect(),
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        slots: Vec::new(),
        opened: 0,
        latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
    };
    let begin = Instant::now();
    for index in 0..slots {
        let slot = churn.open(index)?;
        churn.slots.push(Some(slot));
    }
    churn.turn(begin + Duration::from_secs_f64(seconds))?;
    let micros = |quantile| churn.latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Summary {
        connections: churn.latencies.len(),
        seconds: begin.elapsed().as_secs_f64(),
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
    })
}

struct Churn {
    address: SocketAddrV4,
    service: Service,
    table: Vec<u8>,
    epoll: OwnedFd,
    /// `None`: done.
    slots: Vec<Option<Slot>>,
    opened: u64,
    latencies: Histogram<u64>,
}

struct Slot {
    socket: OwnedFd,
    number: u64,
    begin: Instant,
    sent: bool,
    reply: Vec<u8>,
}

impl Churn {
    /// Connects, and sends the request if that was done at once, as it is on loopback.
    fn open(&mut self, index: usize) -> Result<Slot> {
        let number = self.opened;
        self.opened += 1;
        let begin = Instant::now();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        let source = Ipv4Addr::new(127, 0, 1, 1 + (number % SOURCES) as u8);
        rustix::net::bind(&socket, &SocketAddrV4::new(source, 0))
            .with_context(|| format!("bind {source}"))?;
        let connected = match rustix::net::connect(&socket, &self.address) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(error) => return Err(error).context("connect"),
        };
        let mut slot = Slot { socket, number, begin, sent: false, reply: Vec::with_capacity(REPLY_MAX) };
        if connected {
            self.send(&mut slot)?;
        }
        let interest = if slot.sent { EventFlags::IN } else { EventFlags::OUT };
        epoll::add(&self.epoll, &slot.socket, EventData::new_u64(index as u64), interest)?;
        Ok(slot)
    }

    fn send(&self, slot: &mut Slot) -> Result<()> {
        let framed;
        let request = match self.service {
            Service::Echo => self.payload(slot.number),
            Service::Http => HTTP_REQUEST,
            Service::Redis => {
                framed = [b"*2\r\n$4\r\nECHO\r\n", &*bulk(self.payload(slot.number))].concat();
                &framed
            }
        };
        let sent = rustix::net::send(&slot.socket, request, SendFlags::NOSIGNAL).context("send")?;
        ensure!(sent == request.len(), "a new socket took only {sent} bytes");
        slot.sent = true;
        Ok(())
    }

    fn payload(&self, number: u64) -> &[u8] {
        let begin = (number * 31 % TABLE as u64) as usize;
        &self.table[begin..begin + ECHO_SIZE]
    }

    fn turn(&mut self, deadline: Instant) -> Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(self.slots.len());
        let mut left = self.slots.len();
        while left > 0 {
            events.clear();
            let timeout = Timespec::try_from(GRACE)?;
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(0) => bail!("{left} connections got no reply for {GRACE:?}"),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in &events {
                let index = event.data.u64() as usize;
                let Some(mut slot) = self.slots[index].take() else { continue };
                if !slot.sent {
                    sockopt::socket_error(&slot.socket)?.context("connect")?;
                    self.send(&mut slot)?;
                    epoll::modify(&self.epoll, &slot.socket, event.data, EventFlags::IN)?;
                } else if self.receive(&mut slot)? {
                    let now = Instant::now();
                    self.latencies.record(u64::try_from((now - slot.begin).as_nanos())?.max(1))?;
                    drop(slot);
                    if now >= deadline {
                        left -= 1;
                        continue;
                    }
                    slot = self.open(index)?;
                }
                self.slots[index] = Some(slot);
            }
        }
        Ok(())
    }

    /// Reads, and says whether the reply is complete.
    fn receive(&self, slot: &mut Slot) -> Result<bool> {
        let spare = rustix::buffer::spare_capacity(&mut slot.reply);
        match rustix::net::recv(&slot.socket, spare, RecvFlags::empty()) {
            Ok((_, 0)) => bail!("connection {} was closed by the server", slot.number),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(error).context("receive"),
        }
        let framed;
        let expected = match self.service {
            Service::Echo => self.payload(slot.number),
            Service::Http => return http_is_complete(&slot.reply),
            Service::Redis => {
                framed = bulk(self.payload(slot.number));
                &framed
            }
        };
        ensure!(
            expected.starts_with(&slot.reply),
            "connection {}: wrong reply {:?}",
            slot.number,
            String::from_utf8_lossy(&slot.reply[..slot.reply.len().min(SHOWN)])
        );
        Ok(slot.reply.len() == expected.len())
    }
}

/// A string as Redis has it on the wire.
fn bulk(payload: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
}

/// Whether this is the whole of the expected answer.
fn http_is_complete(reply: &[u8]) -> Result<bool> {
    let text = str::from_utf8(reply).context("no text")?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        ensure!(reply.len() < REPLY_MAX, "a head of more than {REPLY_MAX} bytes");
        return Ok(false);
    };
    ensure!(head.starts_with("HTTP/1.1 200 "), "refused: {head:?}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    ensure!(length == Some(HTTP_BODY.len()) && HTTP_BODY.starts_with(body), "unexpected reply {text:?}");
    Ok(body.len() == HTTP_BODY.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn answers_of_http_are_checked() {
        assert!(!http_is_complete(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap());
        assert!(!http_is_complete(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").unwrap());
        assert!(http_is_complete(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap());
        for wrong in
            ["404 Not Found\r\ncontent-length: 5\r\n\r\nhello", "200 OK\r\ncontent-length: 5\r\n\r\nhallo"]
        {
            assert!(http_is_complete(format!("HTTP/1.1 {wrong}").as_bytes()).is_err());
        }
    }

    #[test]
    fn connections_come_and_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; ECHO_SIZE];
                stream.read_exact(&mut buffer).unwrap();
                stream.write_all(&buffer).unwrap();
            }
        });
        let summary = run(address, Service::Echo, 4, 0.1).unwrap();
        assert!(summary.connections > 50, "{summary:?}");
    }
}
