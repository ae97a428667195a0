//! `idle`: what connections cost that do nothing. Each has had one request answered before.

use super::{Entry, Plan, Planned, costs};
use crate::Protocol;
use crate::account::{Snapshot, memory_kib};
use crate::load::{self, Load};
use crate::options::{Options, or};
use crate::sample::{CONNECTION_MEMORY, IDLE_CPU, REQUESTS, Sample};
use crate::subject::{Chosen, Setup, Subject};
use anyhow::Result;
use std::thread;
use std::time::Duration;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const IDLE: usize = 10_000;
const ACTIVE: usize = 64;
/// How long nobody does anything, to see whether the server does.
const SILENCE: Duration = Duration::from_secs(1);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &["tokio", "monoio"])?;
    let seconds = options.seconds;
    let cell = |idle: usize| {
        let entry = |subject: Subject| Entry::new(subject.label(), move || measure(&subject, idle, seconds));
        let entries = subjects.iter().cloned().map(entry).collect();
        Planned {
            title: format!("{idle} idle connections beside {ACTIVE} with 128 B, depth 1"),
            point: None,
            entries,
        }
    };
    Ok(Plan { cells: or(&options.connections, &[IDLE]).into_iter().map(cell).collect(), skipped })
}

fn measure(subject: &Subject, idle: usize, seconds: f64) -> Result<Sample> {
    let server = subject.start(&Setup::default())?;
    let options = |connections| load::Options {
        address: server.address(),
        protocol: Protocol::Raw,
        connections,
        size: 128,
        depth: 1,
        rate: None,
        seconds,
    };
    let mut active = Load::connect(&options(ACTIVE))?;
    active.run(1, None, 0.2)?.verified()?;
    let processes = server.processes()?;
    let memory_before = memory_kib(&processes)?;

    let mut sleepers = Load::connect(&options(idle))?;
    sleepers.run(1, None, 0.0)?.verified()?;
    let memory = memory_kib(&processes)?;
    let before = Snapshot::take(&processes)?;
    thread::sleep(SILENCE);
    let silent = Snapshot::take(&processes)?;
    let summary = active.run(1, None, seconds)?.verified()?;
    let used = Snapshot::take(&processes)?.since(&silent);
    // They must have survived.
    sleepers.run(1, None, 0.0)?.verified()?;
    drop((active, sleepers));
    server.stop()?;

    let requests = summary.requests as f64;
    let mut sample: Sample = vec![
        (&CONNECTION_MEMORY, memory.saturating_sub(memory_before) as f64 / idle as f64),
        (&IDLE_CPU, silent.since(&before).cpu.as_secs_f64() * 1e3 / SILENCE.as_secs_f64()),
        (&REQUESTS, summary.requests_per_second),
    ];
    sample.extend(costs(&used, memory, requests, [summary.p50_us, summary.p99_us, summary.p999_us]));
    Ok(sample)
}
