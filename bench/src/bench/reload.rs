//! `reload`: what clients notice of a reload of all workers every second: latencies beside those without, in an open
//! loop. A request that fails ends the measurement.

use super::Plan;
use super::beside::{self, Beside};
use crate::load;
use crate::options::Options;
use crate::sample::{RELOADS, Sample};
use crate::server::reload;
use crate::subject::Subject;
use anyhow::{Context, Result, ensure};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(1);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let about = "SIGUSR1 every second";
    Beside { connections: 64, rate: 50_000.0, name: "reloading", about, measure }.plan(options)
}

fn measure(subject: &Subject, options: &load::Options, reloads: bool) -> Result<Sample> {
    let (server, mut load) = beside::start(subject, options)?;
    let before = server.processes()?;
    let master = *before.first().context("a server has a process")?;
    let (summary, count) = beside::run(&mut load, options, |is_over| {
        let mut count = 0;
        while reloads && is_over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            reload(master)?;
            count += 1;
        }
        Ok(count)
    })?;
    let kept = server.processes()?.iter().filter(|process| before.contains(process)).count();
    ensure!(count == 0 || kept < before.len(), "no worker was replaced in {count} reloads");
    drop(load);
    server.stop()?;
    let mut sample = beside::noticed(&summary);
    sample.push((&RELOADS, f64::from(count)));
    Ok(sample)
}
