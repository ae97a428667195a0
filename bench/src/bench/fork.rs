//! `fork`: what a new worker costs its manager, and how long it takes to say its first word.

use super::{Entry, Plan, Planned};
use crate::options::Options;
use crate::probe;
use crate::probe::fork::WAYS;
use crate::sample::{FORK_CALL, FORK_FIRST, FORK_TOUCH};
use anyhow::Result;

const MEMORY_MIB: &[usize] = &[10, 500];

pub(super) fn plan(_: &Options) -> Result<Plan> {
    let cell = |mib: &usize| {
        let entry = |(way, _): &(&'static str, _)| {
            let args = ["fork", way, &mib.to_string()].map(str::to_owned);
            Entry::new(*way, move || probe::run(&args, &[&FORK_CALL, &FORK_FIRST, &FORK_TOUCH]))
        };
        let entries = WAYS.iter().map(entry).collect();
        Planned { title: format!("from a process with {mib} MiB in use"), point: None, entries }
    };
    Ok(Plan { cells: MEMORY_MIB.iter().map(cell).collect(), skipped: Vec::new() })
}
