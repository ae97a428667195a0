//! `connections`: connect, one request of 128 bytes, close; 32 side by side. HTTP servers answer a `GET` instead.

use super::{Entry, Plan, Planned, costs};
use crate::account::{Snapshot, memory_kib};
use crate::churn::{self, Service};
use crate::options::{Options, or};
use crate::sample::{CONNECTIONS, Sample};
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::Result;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "socketpair-epoll", "base-uring", "ring-uring"];
const PEERS: &[&str] = &["tokio", "hyper", "nginx"];
const WARM_UP_SECONDS: f64 = 0.2;

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, PEERS)?;
    let seconds = options.seconds;
    let cell = |slots: usize| {
        let entry = |subject: Subject| Entry::new(subject.label(), move || measure(&subject, slots, seconds));
        let entries = subjects.iter().cloned().map(entry).collect();
        Planned {
            title: format!("connect, 128 B there and back, close; {slots} at a time"),
            point: None,
            entries,
        }
    };
    Ok(Plan { cells: or(&options.connections, &[32]).into_iter().map(cell).collect(), skipped })
}

fn measure(subject: &Subject, slots: usize, seconds: f64) -> Result<Sample> {
    let server = subject.start(&Setup { dialect: Dialect::Hello, ..Setup::default() })?;
    let service = if subject.speaks_http() { Service::Http } else { Service::Echo };
    churn::run(server.address(), service, slots, WARM_UP_SECONDS)?;

    let processes = server.processes()?;
    let before = Snapshot::take(&processes)?;
    let summary = churn::run(server.address(), service, slots, seconds)?;
    let used = Snapshot::take(&processes)?.since(&before);
    let memory = memory_kib(&processes)?;
    server.stop()?;

    let connections = summary.connections as f64;
    let mut sample: Sample = vec![(&CONNECTIONS, connections / summary.seconds)];
    sample.extend(costs(&used, memory, connections, [summary.p50_us, summary.p99_us, summary.p999_us]));
    Ok(sample)
}
