//! `tasks`: from a worker to a task worker and back. The worker asks by itself as long as it is told to, so that no client
//! takes part.

use super::{Entry, Plan, Planned};
use crate::account::Snapshot;
use crate::options::{Options, or, show_size};
use crate::sample::{P50, P99, SWITCHES, Sample, TASK_CPU, TASKS};
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

const VARIANTS: &[&str] = &["ring-epoll", "base-epoll", "tasks-unix", "tasks-msgqueue", "tasks-preemptive"];
const SIZES: &[usize] = &[128];
const TASK_WORKERS: [usize; 2] = [1, 2];
const IN_FLIGHT: usize = 64;
/// What is asked before anything is measured.
const WARM_UP: Duration = Duration::from_millis(200);
const SETTLE: Duration = Duration::from_millis(100);
/// How much longer than it was told to a worker may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a worker asks.
#[derive(Clone, Copy)]
enum Way {
    /// Many at a time, and `on_finish` for each.
    Flow,
    /// One after the other, and it waits for each.
    Wait,
}

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let mut cells = Vec::new();
    for size in or(&options.sizes, SIZES) {
        for (way, what) in [(Way::Flow, "64 in flight"), (Way::Wait, "one at a time, waited for")] {
            let seconds = options.seconds;
            let entries = subjects.iter().flat_map(|subject| {
                TASK_WORKERS.map(|task_workers| {
                    let (subject, name) =
                        (subject.clone(), format!("{}, {task_workers} task workers", subject.label()));
                    Entry::new(name, move || measure(&subject, task_workers, way, size, seconds))
                })
            });
            let title = format!("one worker, {} payloads, {what}", show_size(size));
            cells.push(Planned { title, point: None, entries: entries.collect() });
        }
    }
    Ok(Plan { cells, skipped })
}

fn measure(subject: &Subject, task_workers: usize, way: Way, size: usize, seconds: f64) -> Result<Sample> {
    let setup = Setup { dialect: Dialect::Commands, workers: 1, task_workers, ..Setup::default() };
    let server = subject.start(&setup)?;
    let mut client = BufReader::new(TcpStream::connect(server.address())?);
    client.get_ref().set_read_timeout(Some(Duration::from_secs_f64(seconds) + PATIENCE))?;
    ask(&mut client, way, WARM_UP, size)?;
    thread::sleep(SETTLE);
    let processes = server.processes()?;
    let before = Snapshot::take(&processes)?;
    let told = ask(&mut client, way, Duration::from_secs_f64(seconds), size)?;
    let usage = Snapshot::take(&processes)?.since(&before);
    server.stop()?;
    let field = |key: &str| -> Result<f64> {
        let word = told.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Ok(word.with_context(|| format!("no {key}= in {told:?}"))?.parse()?)
    };
    let (count, micros) = (field("tasks")?, field("us")?);
    let mut sample = vec![
        (&TASKS, count / micros * 1e6),
        (&TASK_CPU, usage.cpu.as_secs_f64() * 1e6 / count),
        (&SWITCHES, usage.switches as f64 / count),
    ];
    if let Way::Wait = way {
        sample.extend([(&P50, field("p50")? / 1e3), (&P99, field("p99")? / 1e3)]);
    }
    Ok(sample)
}

/// Has the worker ask for so long.
fn ask(client: &mut BufReader<TcpStream>, way: Way, time: Duration, size: usize) -> Result<String> {
    let ms = time.as_millis();
    let command = match way {
        Way::Flow => format!("taskload {IN_FLIGHT} {ms} {size}\n"),
        Way::Wait => format!("taskwaits {ms} {size}\n"),
    };
    client.get_mut().write_all(command.as_bytes())?;
    let mut reply = String::new();
    client.read_line(&mut reply)?;
    Ok(reply)
}
