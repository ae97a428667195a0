//! `reload`: what clients notice of a reload of all workers every second: latencies beside those without, in an open
//! loop. A request that fails ends the measurement.

use super::{Entry, Plan, Planned};
use crate::Protocol;
use crate::load::{self, Load};
use crate::options::{Options, or};
use crate::sample::{P50, P99, P999, RELOADS, REQUESTS, Sample};
use crate::server::reload;
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result, ensure};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const RATE: f64 = 50_000.0;
const SIZE: usize = 128;
const WARM_UP_SECONDS: f64 = 0.3;
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let mut cells = Vec::new();
    for connections in or(&options.connections, &[64]) {
        let load = load::Options {
            address: ([127, 0, 0, 1], 0).into(),
            protocol: Protocol::Raw,
            connections,
            size: SIZE,
            depth: 1,
            rate: Some(options.rate.unwrap_or(RATE)),
            seconds: options.seconds,
        };
        let rate = load.rate.unwrap_or(RATE);
        let entries = subjects.iter().flat_map(|subject| {
            [false, true].map(|reloads| {
                let (name, load, subject) = (subject.label(), load.clone(), subject.clone());
                let name = if reloads { format!("{name}, reloading") } else { name };
                Entry::new(name, move || measure(&subject, &load, reloads))
            })
        });
        let title =
            format!("{rate} requests/s of {SIZE} B on {connections} connections; SIGUSR1 every {EVERY:?}");
        cells.push(Planned { title, point: None, entries: entries.collect() });
    }
    Ok(Plan { cells, skipped })
}

fn measure(subject: &Subject, load: &load::Options, reloads: bool) -> Result<Sample> {
    let server = subject.start(&Setup { dialect: Dialect::Echo(Protocol::Raw), ..Setup::default() })?;
    let options = load::Options { address: server.address(), ..load.clone() };
    let mut load = Load::connect(&options)?;
    load.run(options.depth, options.rate, WARM_UP_SECONDS)?.verified()?;
    let before = server.processes()?;
    let master = *before.first().context("a server has a process")?;
    let (over, is_over) = channel::<()>();
    let (summary, count) = thread::scope(|scope| {
        let reloading = scope.spawn(move || {
            let mut count = 0;
            while reloads && is_over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                reload(master)?;
                count += 1;
            }
            anyhow::Ok(count)
        });
        let summary = load.run(options.depth, options.rate, options.seconds);
        drop(over);
        let count = reloading.join().ok().context("the one that reloads panicked")??;
        anyhow::Ok((summary?.verified()?, count))
    })?;
    let kept = server.processes()?.iter().filter(|process| before.contains(process)).count();
    ensure!(count == 0 || kept < before.len(), "no worker was replaced in {count} reloads");
    drop(load);
    server.stop()?;
    Ok(vec![
        (&REQUESTS, summary.requests_per_second),
        (&P50, summary.p50_us),
        (&P99, summary.p99_us),
        (&P999, summary.p999_us),
        (&RELOADS, f64::from(count)),
    ])
}
