//! Deaths at random, and clients that know every answer.

use super::buffer::wait_empty;
use super::files_in;
use super::talk::Talk;
use crate::cluster::bed::PATIENCE;
use crate::cluster::client::{Client, Closed};
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long it storms, and how long from one death to the next.
const STORM: Duration = Duration::from_secs(2);
const DEATH: Duration = Duration::from_millis(40);

/// A client that knows every answer in advance.
struct Chat {
    client: Client,
    name: usize,
    number: usize,
    /// Results that are yet to come, by the names of their tasks.
    waiting: BTreeMap<String, String>,
    answered: u64,
    /// Workers die, too: then tasks may have no answer, and connections may end.
    askers_die: bool,
}

impl Chat {
    /// Asks and looks at every answer, until then; how many tasks were answered.
    fn hold(mut self, until: Instant) -> Result<u64> {
        while Instant::now() < until {
            match self.round() {
                Ok(()) => {}
                Err(error) if self.askers_die && error.downcast_ref::<Closed>().is_some() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.answered)
    }

    fn round(&mut self) -> Result<()> {
        let texts: Vec<String> = (0..8).map(|_| self.text()).collect();
        let packets: Vec<String> = texts.iter().map(|text| format!("task {text}")).collect();
        self.client.tell_all(&packets.iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut texts = texts.into_iter();
        while texts.len() > 0 || !self.waiting.is_empty() {
            // What a dead worker has asked is told to nobody.
            if self.askers_die && texts.len() == 0 {
                let comes = || self.client.has_reply().unwrap_or(true).then_some(());
                if proc::until("an answer", Duration::from_millis(200), comes).is_err() {
                    return Ok(());
                }
            }
            let line = self.client.line()?;
            if let Some(id) = line.strip_prefix("task ") {
                let text = texts.next().context("more tasks than were asked for")?;
                let known = self.waiting.insert(id.to_owned(), text.to_uppercase());
                ensure!(known.is_none(), "two tasks are called {id}");
                continue;
            }
            let told = line.strip_prefix("finish ").with_context(|| format!("{line:?}"))?;
            let (id, result) = told.split_once(' ').context("no result")?;
            let wanted =
                self.waiting.remove(id).with_context(|| format!("{id} is not mine, or came twice"))?;
            ensure!(result == wanted, "{id} is {result:?} instead of {wanted:?}");
            self.answered += 1;
        }
        Ok(())
    }

    /// The next one, some of which do not fit into the shared memory.
    fn text(&mut self) -> String {
        self.number += 1;
        let more = if self.number.is_multiple_of(50) { "w".repeat(10_000) } else { String::new() };
        format!("{}.{} {more}", self.name, self.number)
    }
}

fn storm(cx: &Cx, flags: &[(&str, &str)], kill_workers: bool) -> Result<()> {
    const CLIENTS: usize = 4;
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 2);
    // So little that some of the large ones lie in files.
    let launch = launch.flag("task-queue-max", 200).flag("task-buffer-size", "64K");
    let launch = launch.flag("task-tmpdir", cx.dir.display());
    let bed = flags.iter().fold(launch, |launch, (name, value)| launch.flag(name, value)).start()?;
    let until = Instant::now() + STORM;
    let mut rng = cx.rng();
    let mut kills = 0;
    let answered = std::thread::scope(|scope| -> Result<u64> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|name| {
                let (client, askers_die) = (bed.connect()?, kill_workers);
                let chat =
                    Chat { client, name, number: 0, waiting: BTreeMap::new(), answered: 0, askers_die };
                Ok(scope.spawn(move || chat.hold(until)))
            })
            .collect::<Result<_>>()?;
        while Instant::now() < until {
            std::thread::sleep(DEATH.mul_f64(2.0 * rng.f64()));
            let family = proc::descendants(bed.ready.master);
            let is_victim = |pid: &i32| {
                let title = proc::title(*pid);
                title.starts_with("swoole: task worker")
                    || kill_workers && title.starts_with("swoole: worker")
            };
            if let Some(victim) = rng.choice(family.into_iter().filter(is_victim).collect::<Vec<_>>()) {
                kills += u32::from(proc::signal(victim, Signal::KILL).is_ok());
            }
        }
        let mut answered = 0;
        for client in clients {
            match client.join() {
                Ok(count) => answered += count?,
                Err(_) => bail!("a client panicked"),
            }
        }
        Ok(answered)
    })?;
    // How many, chance says: who dies again and again comes back more and more slowly.
    ensure!(kills > 10 && answered > 10, "{kills} kills, {answered} answers");
    // Everything comes to rest.
    let mut last = None;
    proc::until("all tasks to end", PATIENCE, || {
        // The last one killed may have had this client.
        let mut client = Talk::begin(&bed).ok()?;
        let counts = [client.stat("task_queued").ok()?, client.stat("task_running").ok()?];
        last = Some(counts);
        (counts == [0, 0]).then_some(())
    })
    .with_context(|| format!("queued and running: {last:?}"))?;
    println!("        {kills} processes killed, {answered} tasks answered");
    wait_empty(&bed, 64 << 10)?;
    bed.stop()?;
    let left = files_in(&cx.dir)?;
    ensure!(left.is_empty(), "files are left: {left:?}");
    Ok(())
}

pub(super) fn storm_of_task_workers(cx: &Cx) -> Result<()> {
    storm(cx, &[("task-retries", "100")], false)
}

pub(super) fn storm_of_all(cx: &Cx) -> Result<()> {
    storm(cx, &[("task-retries", "100")], true)
}
