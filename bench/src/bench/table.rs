//! `table`: a million rows that processes share, against a map under a mutex and Redis.

use super::{Entry, Plan, Planned};
use crate::options::Options;
use crate::probe;
use crate::probe::rows::{ACTS, ROWS, SUBJECTS, Subject};
use crate::sample::{OPERATION_CPU, OPERATIONS, ROW_MEMORY};
use crate::subject::installed;
use anyhow::Result;

const WORKERS: &[usize] = &[1, 2];

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let (mut cells, mut skipped) = (Vec::new(), Vec::new());
    let is_here = |subject| subject != Subject::Redis || installed("redis-server").is_some();
    if !is_here(Subject::Redis) {
        skipped.push("redis: not installed (apt-get install redis-server)".to_owned());
    }
    let seconds = options.seconds.to_string();
    for (operation, _) in ACTS {
        for workers in WORKERS {
            let entry = |(subject, _): &(&'static str, Subject)| {
                let args = ["rows", subject, operation, &workers.to_string(), &seconds].map(str::to_owned);
                Entry::new(*subject, move || probe::run(&args, &[&OPERATIONS, &OPERATION_CPU, &ROW_MEMORY]))
            };
            let entries = SUBJECTS.iter().filter(|(_, subject)| is_here(*subject)).map(entry).collect();
            let who = if *workers == 1 { "one process".to_owned() } else { format!("{workers} processes") };
            cells.push(Planned { title: format!("{operation}, {ROWS} rows, {who}"), point: None, entries });
        }
    }
    Ok(Plan { cells, skipped })
}
