//! A measure: the calls that no echo server over epoll can do without, and next to nothing around them.
//!
//! One listener and one epoll instance per thread; `recv`, `send` at once, no buffer but one. What it costs is what the
//! kernel costs, so nobody above epoll can be much cheaper. With `--yield-us` a thread yields its core in a loop before it
//! sleeps, as our server does.

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, getsockname, listen,
    recv, send, socket_with, sockopt,
};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};
use swoole_bench::peer::{self, Options, READ_SIZE};

const EVENTS: usize = 256;
const BACKLOG: i32 = 4096;
/// What names the listener among the connections.
const LISTENER: u64 = u64::MAX;

fn main() -> Result<()> {
    let Some(mut options) = peer::options()? else { return Ok(()) };
    let mut listeners = Vec::new();
    for _ in 0..options.threads {
        let listener = listener(options.listen)?;
        options.listen = SocketAddr::try_from(getsockname(&listener)?)?;
        listeners.push(listener);
    }
    peer::say_ready(options.listen);
    let serve = |listener| thread::spawn(move || Server::new(listener, options)?.run());
    let threads: Vec<_> = listeners.into_iter().map(serve).collect();
    for thread in threads {
        thread.join().ok().context("a thread panicked")??;
    }
    Ok(())
}

fn listener(address: SocketAddr) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

struct Server {
    options: Options,
    epoll: OwnedFd,
    listener: OwnedFd,
    connections: Vec<Option<Connection>>,
    buffer: Vec<u8>,
}

struct Connection {
    socket: OwnedFd,
    /// Received and not given back: what is no whole packet, or what the client does not take.
    left: Vec<u8>,
    /// So much at the front of that is to be given back, before anything else is read.
    due: usize,
}

impl Server {
    fn new(listener: OwnedFd, options: Options) -> Result<Server> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Server { options, epoll, listener, connections: Vec::new(), buffer: vec![0; READ_SIZE] })
    }

    fn run(mut self) -> Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            self.wait(&mut events)?;
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    slot => self.serve(slot as usize),
                }
            }
        }
    }

    fn wait(&self, events: &mut Vec<Event>) -> Result<()> {
        let begun = Instant::now();
        let limit = Duration::from_micros(self.options.yield_us);
        loop {
            let looks = !limit.is_zero() && begun.elapsed() < limit;
            events.clear();
            let timeout = looks.then(Timespec::default);
            match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
                Ok(0) if looks => rustix::thread::sched_yield(),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let socket = match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(error) => return Err(error).context("accept"),
            };
            sockopt::set_tcp_nodelay(&socket, true)?;
            let slot = self.connections.iter().position(Option::is_none).unwrap_or(self.connections.len());
            epoll::add(&self.epoll, &socket, EventData::new_u64(slot as u64), EventFlags::IN)?;
            let connection = Some(Connection { socket, left: Vec::new(), due: 0 });
            match self.connections.get_mut(slot) {
                Some(free) => *free = connection,
                None => self.connections.push(connection),
            }
        }
    }

    fn serve(&mut self, slot: usize) {
        let Some(connection) = &mut self.connections[slot] else { return };
        let waited = connection.due > 0;
        let served = connection.serve(&self.options, &mut self.buffer).and_then(|is_open| {
            let waits = connection.due > 0;
            if is_open && waits != waited {
                let interest = if waits { EventFlags::OUT } else { EventFlags::IN };
                epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(slot as u64), interest)?;
            }
            Ok(is_open)
        });
        if let Err(error) = &served {
            eprintln!("bare_echo: {error:#}");
        }
        if !matches!(served, Ok(true)) {
            self.connections[slot] = None;
        }
    }
}

impl Connection {
    /// Gives back what it can; false when the client has closed.
    fn serve(&mut self, options: &Options, buffer: &mut [u8]) -> Result<bool> {
        if self.due == 0 {
            let read = match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((_, 0)) => return Ok(false),
                Ok((_, read)) => read,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
                Err(error) => return Err(error).context("recv"),
            };
            if self.left.is_empty() {
                let (whole, _) = options.whole(&buffer[..read])?;
                let sent = self.send(&buffer[..whole])?;
                self.left.extend_from_slice(&buffer[sent..read]);
                self.due = whole - sent;
                return Ok(true);
            }
            self.left.extend_from_slice(&buffer[..read]);
            (self.due, _) = options.whole(&self.left)?;
        }
        let sent = self.send(&self.left[..self.due])?;
        self.left.drain(..sent);
        self.due -= sent;
        Ok(true)
    }

    fn send(&self, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error).context("send"),
        }
    }
}
