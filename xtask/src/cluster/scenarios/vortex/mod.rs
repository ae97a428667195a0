//! The storm: harm of every kind at random while clients check every reply.
//!
//! Under `on_crash = retry` the tally must be clean: every packet is answered once, on its own connection, in its order,
//! no connection is closed, and nothing is left behind.

pub(super) mod clients;
pub(super) mod harms;
mod tally;

use crate::cluster::disk::Disk;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Result, ensure};
use clients::Crowd;
use harms::Harms;
use std::sync::Arc;
use tally::{Holdings, Tally, given_up};

pub(super) static ALL: &[Scenario] = &[full(
    "vortex",
    "a storm of deaths, stops, reloads and shortages: no packet is lost, doubled or misdelivered, no connection closed",
    vortex,
)
.in_process()];

const WORKERS: usize = 4;

fn vortex(cx: &Cx) -> Result<()> {
    let disk = Disk::mount(cx)?;
    let launch = cx.testbed_breakpoints().flag("worker-num", WORKERS).flag("reactor-num", 2);
    let launch = launch.flag("ring-size", 65536).flag("log-file", disk.file("log").display());
    // So many retries that chance makes a poison of no packet.
    let bed = launch.flag("on-crash", "retry").flag("crash-retries", 100).start()?;
    let log = Arc::clone(&bed.log);
    let holdings = Holdings::look(&bed)?;
    let crowd = Crowd::start(bed.address()?, cx.storm.clients, cx.seed)?;
    let common = Arc::clone(&crowd.common);
    let struck = Harms::new(cx, &bed, &disk, &common).strike();
    let wrongs = crowd.finish()?;
    let by_policy = given_up(&bed);
    let leaks = holdings.compare(cx, bed)?;
    let tally = Tally::new(&common.counts, by_policy, leaks);
    let clean = struck.is_ok() && wrongs.is_empty() && tally.is_clean();
    if !clean {
        // For the report: it is on a disk that goes now.
        log.append(Source::Stderr, &disk.read("log"));
    }
    let told = struck.as_ref().map_or_else(ToString::to_string, ToString::to_string);
    for line in format!("{tally}\nharm: {told}").lines() {
        println!("        {line}");
    }
    struck?;
    ensure!(wrongs.is_empty(), "{} clients found something wrong:\n{}", wrongs.len(), wrongs.join("\n"));
    ensure!(tally.is_clean(), "{tally}");
    Ok(())
}
