//! `respawn`: from SIGKILL of a worker to the first reply of its successor, as its client sees it: the next request is
//! sent at once, again and again on new connections if the old one was lost.

use super::{Entry, Plan, Planned};
use crate::options::Options;
use crate::sample::{RESPAWN, Sample};
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
const DEATHS: usize = 5;
const LIMIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_micros(100);
/// A server that has just started does not do so any more.
const SETTLE: Duration = Duration::from_millis(50);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let entry = |subject: Subject| Entry::new(subject.label(), move || measure(&subject));
    let entries = subjects.into_iter().map(entry).collect();
    let title = format!("the only worker is killed; median of {DEATHS} per run");
    Ok(Plan { cells: vec![Planned { title, point: None, entries }], skipped })
}

fn measure(subject: &Subject) -> Result<Sample> {
    let mut took = Vec::new();
    for _ in 0..DEATHS {
        let server = subject.start(&Setup { dialect: Dialect::Commands, workers: 1, ..Setup::default() })?;
        thread::sleep(SETTLE);
        let mut client = Some(Client::connect(server.address())?);
        let victim = client.as_mut().context("just connected")?.worker()?;
        let begin = Instant::now();
        kill(victim)?;
        let successor = loop {
            match ask(&mut client, server.address()) {
                Ok(worker) if worker != victim => break worker,
                _ => ensure!(begin.elapsed() < LIMIT, "no successor serves after {LIMIT:?}"),
            }
        };
        took.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(server.processes()?.contains(&successor), "process {successor} is not one of the server");
        server.stop()?;
    }
    let median = Median::of(&took).context("there were deaths")?;
    Ok(vec![(&RESPAWN, median.value)])
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
