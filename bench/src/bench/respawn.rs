//! `respawn`: from SIGKILL of a worker to the first reply of its successor, as its client sees it: the next request is
//! sent at once, again and again on new connections if the old one was lost. And the same where the manager is killed with
//! the worker, or alone: then somebody else has to come first who forks a successor, or nobody.

use super::{Entry, Plan, Planned};
use crate::options::Options;
use crate::sample::{RESPAWN, RESPAWN_MAX, Sample};
use crate::server::kill;
use crate::stats::Median;
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "socketpair-epoll", "ring-uring"];
/// Each death is of a fresh server: who dies often comes back slowly, on purpose.
const DEATHS: usize = 200;
const LIMIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_micros(100);
/// A server that has just started does not do so any more.
const SETTLE: Duration = Duration::from_millis(50);

/// Who is killed.
#[derive(Clone, Copy)]
enum Victims {
    Worker,
    WorkerAndManager,
    Manager,
}

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let cells = [
        (Victims::Worker, "the only worker is killed"),
        (Victims::WorkerAndManager, "the only worker and the manager are killed"),
        (Victims::Manager, "the manager is killed"),
    ];
    let cell = |(victims, what): (Victims, &str)| {
        // In Base mode the manager is the process that was started.
        let takes_part = |subject: &&Subject| matches!(victims, Victims::Worker) || subject.has_reactors();
        let entry = |subject: &Subject| {
            let subject = subject.clone();
            Entry::new(subject.label(), move || measure(&subject, victims))
        };
        let entries = subjects.iter().filter(takes_part).map(entry).collect();
        Planned {
            title: format!("{what}; median and maximum of {DEATHS} times per run"),
            point: None,
            entries,
        }
    };
    Ok(Plan { cells: cells.into_iter().map(cell).collect(), skipped })
}

fn measure(subject: &Subject, victims: Victims) -> Result<Sample> {
    let mut took = Vec::new();
    for _ in 0..DEATHS {
        let server = subject.start(&Setup { dialect: Dialect::Commands, workers: 1, ..Setup::default() })?;
        thread::sleep(SETTLE);
        let mut client = Some(Client::connect(server.address())?);
        let worker = client.as_mut().context("just connected")?.worker()?;
        let manager = server.processes()?.into_iter().find(|pid| is_manager(*pid));
        let kill_manager = || kill(manager.context("there is no manager")?);
        let begin = Instant::now();
        match victims {
            Victims::Worker => kill(worker)?,
            Victims::Manager => kill_manager()?,
            Victims::WorkerAndManager => {
                kill_manager()?;
                kill(worker)?;
            }
        }
        let is_next = |pid: u32| matches!(victims, Victims::Manager) || pid != worker;
        let next = loop {
            match ask(&mut client, server.address()) {
                Ok(next) if is_next(next) => break next,
                _ => ensure!(begin.elapsed() < LIMIT, "nobody serves after {LIMIT:?}"),
            }
        };
        took.push(begin.elapsed().as_secs_f64() * 1e3);
        // It may be on its way from one parent to another one, where a walk over the family meets it nowhere.
        while !server.processes().is_ok_and(|family| family.contains(&next)) {
            ensure!(begin.elapsed() < LIMIT, "process {next} is not one of the server");
            thread::sleep(RETRY);
        }
        server.stop()?;
    }
    let median = Median::of(&took).context("there were deaths")?;
    let longest = took.into_iter().fold(0.0, f64::max);
    Ok(vec![(&RESPAWN, median.value), (&RESPAWN_MAX, longest)])
}

fn is_manager(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|title| title.starts_with("swoole: manager"))
}

/// Asks who serves, on a new connection if the last one has failed.
fn ask(client: &mut Option<Client>, address: SocketAddr) -> Result<u32> {
    let mut connection = match client.take() {
        Some(connection) => connection,
        None => Client::connect(address).inspect_err(|_| thread::sleep(RETRY))?,
    };
    let worker = connection.worker()?;
    *client = Some(connection);
    Ok(worker)
}

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// The process that serves this connection.
    fn worker(&mut self) -> Result<u32> {
        self.stream.get_mut().write_all(b"whoami\n")?;
        let mut reply = String::new();
        self.stream.read_line(&mut reply)?;
        let pid = reply.split_whitespace().find_map(|word| word.strip_prefix("pid="));
        Ok(pid.with_context(|| format!("no pid in {reply:?}"))?.parse()?)
    }
}
