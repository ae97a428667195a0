//! `start`: from the start of a program to its first reply, and from SIGTERM to its end when it is idle.

use super::{Entry, Plan, Planned};
use crate::account::memory_kib;
use crate::churn::{self, Service};
use crate::options::Options;
use crate::sample::{MEMORY, START, STOP, Sample};
use crate::server::{Server, free_address};
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Result, ensure};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const PEERS: &[&str] = &["tokio", "monoio", "hyper", "nginx", "redis"];
const WORKERS: &[usize] = &[2, 64];
const LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_micros(100);
/// After that, a server has nothing left of its start to do.
const SETTLE: Duration = Duration::from_millis(300);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, PEERS)?;
    let cell = |&workers: &usize| {
        let entry = |subject: Subject| Entry::new(subject.label(), move || measure(&subject, workers));
        let entries = subjects.iter().filter(|subject| subject.has_workers() || workers == WORKERS[0]);
        let entries = entries.cloned().map(entry).collect();
        Planned { title: format!("{workers} workers, or threads where there are none"), point: None, entries }
    };
    Ok(Plan { cells: WORKERS.iter().map(cell).collect(), skipped })
}

fn measure(subject: &Subject, workers: usize) -> Result<Sample> {
    let address = free_address()?;
    let setup = Setup { dialect: Dialect::Hello, workers, ..Setup::default() };
    let mut command = subject.command(&setup, address)?;
    let begin = Instant::now();
    let mut server = Server::spawn(&mut command, address)?;
    while TcpStream::connect(address).is_err() {
        server.check()?;
        ensure!(begin.elapsed() < LIMIT, "does not accept after {LIMIT:?}");
        thread::sleep(RETRY);
    }
    let service = match subject.speaks_http() {
        true => Service::Http,
        false if subject.speaks_redis() => Service::Redis,
        false => Service::Echo,
    };
    churn::run(address, service, 1, 0.0)?;
    let start = begin.elapsed();
    thread::sleep(SETTLE);
    let memory = memory_kib(&server.processes()?)?;
    let stop = server.stop()?;
    Ok(vec![
        (&START, start.as_secs_f64() * 1e3),
        (&STOP, stop.as_secs_f64() * 1e3),
        (&MEMORY, memory as f64 / 1024.0),
    ])
}
