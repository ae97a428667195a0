//! `broadcast`: from one worker to all connections, as one order for each reactor, and as a loop of sends.

use super::{Entry, Plan, Planned};
use crate::account::Snapshot;
use crate::options::{Options, or, show_size};
use crate::sample::{BROADCAST, BROADCAST_CPU, BROADCAST_EACH, Sample};
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result, ensure};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const CONNECTIONS: &[usize] = &[10_000];
const SIZES: &[usize] = &[128];
/// The commands of the testbed: how it is sent.
const WAYS: [(&str, &str); 2] = [("broadcast", "broadcast"), ("sendall", "loop of sends")];
/// How long all of them may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let mut cells = Vec::new();
    for connections in or(&options.connections, CONNECTIONS) {
        for size in or(&options.sizes, SIZES) {
            let seconds = options.seconds;
            let entries = subjects.iter().flat_map(|subject| {
                WAYS.map(|(command, way)| {
                    let (subject, name) = (subject.clone(), format!("{}, {way}", subject.label()));
                    Entry::new(name, move || measure(&subject, command, connections, size, seconds))
                })
            });
            let title = format!("{} to {connections} connections from one worker", show_size(size));
            cells.push(Planned { title, point: None, entries: entries.collect() });
        }
    }
    Ok(Plan { cells, skipped })
}

fn measure(
    subject: &Subject,
    command: &str,
    connections: usize,
    size: usize,
    seconds: f64,
) -> Result<Sample> {
    let server = subject.start(&Setup { dialect: Dialect::Commands, ..Setup::default() })?;
    let mut crowd = Crowd::connect(server.address(), connections)?;
    let mut author = BufReader::new(TcpStream::connect(server.address())?);
    author.get_ref().set_read_timeout(Some(PATIENCE))?;
    let packet = format!("{command} {}\n", "b".repeat(size - 1));
    let mut round = || -> Result<(Duration, Duration)> {
        let begun = Instant::now();
        author.get_mut().write_all(packet.as_bytes())?;
        crowd.receive(size)?;
        let last = begun.elapsed();
        let mut reply = String::new();
        author.read_line(&mut reply)?;
        ensure!(reply == format!("sent {connections}\n"), "{reply:?}");
        Ok((last, begun.elapsed()))
    };
    round()?;
    let processes = server.processes()?;
    let before = Snapshot::take(&processes)?;
    let (begun, mut last_bytes) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs_f64(seconds) || last_bytes.len() < 3 {
        last_bytes.push(round()?.0);
    }
    let used = Snapshot::take(&processes)?.since(&before);
    server.stop()?;
    last_bytes.sort_unstable();
    let rounds = last_bytes.len() as f64;
    let cpu = used.cpu.as_secs_f64() / rounds;
    Ok(vec![
        (&BROADCAST, last_bytes[last_bytes.len() / 2].as_secs_f64() * 1e3),
        (&BROADCAST_CPU, cpu * 1e3),
        (&BROADCAST_EACH, cpu * 1e6 / connections as f64),
    ])
}

/// Clients that only listen.
struct Crowd {
    clients: Vec<TcpStream>,
    epoll: rustix::fd::OwnedFd,
    /// Bytes that each has yet to get.
    missing: Vec<usize>,
}

impl Crowd {
    /// Each is in the server's books when it has had an answer.
    fn connect(address: std::net::SocketAddr, count: usize) -> Result<Crowd> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut clients = Vec::with_capacity(count);
        for number in 0..count {
            let mut client = TcpStream::connect(address)?;
            client.write_all(b"echo 1\n")?;
            clients.push(client);
            // A few at a time: a backlog has an end.
            if number % 256 == 255 || number + 1 == count {
                for client in &mut clients[number / 256 * 256..] {
                    client.set_read_timeout(Some(PATIENCE))?;
                    client.read_exact(&mut [0; 2])?;
                    client.set_nonblocking(true)?;
                }
            }
        }
        for (client, number) in clients.iter().zip(0..) {
            epoll::add(&epoll, client, EventData::new_u64(number), EventFlags::IN | EventFlags::ET)?;
        }
        Ok(Crowd { missing: vec![0; clients.len()], clients, epoll })
    }

    /// Waits until each has got so many bytes.
    fn receive(&mut self, size: usize) -> Result<()> {
        self.missing.fill(size);
        let (mut left, deadline) = (self.clients.len(), Instant::now() + PATIENCE);
        let (mut events, mut buffer) = (Vec::with_capacity(1024), vec![0; 64 * 1024]);
        while left > 0 {
            ensure!(Instant::now() < deadline, "{left} clients wait for what was sent to them");
            events.clear();
            let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
            for event in &events {
                let number = event.data.u64() as usize;
                loop {
                    match self.clients[number].read(&mut buffer) {
                        Ok(0) => anyhow::bail!("a client was closed"),
                        Ok(read) => {
                            let missing = &mut self.missing[number];
                            *missing = missing.checked_sub(read).context("a client got too much")?;
                            left -= usize::from(*missing == 0);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }
}
