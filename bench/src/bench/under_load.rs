//! One measurement of a server under load: what `echo`, `large` and `scaling` have in common.

use super::{Counted, Entry, costs};
use crate::Protocol;
use crate::account::{Snapshot, memory_kib};
use crate::calls::Counts;
use crate::load::{self, Load};
use crate::options::show_size;
use crate::sample::{CALLS, CALLS_IPC, CALLS_WAIT, CALLS_YIELD, MIB, REQUESTS, Sample};
use crate::server::Server;
use crate::subject::{Dialect, Program, Setup, Subject};
use anyhow::Result;

const WARM_UP_SECONDS: f64 = 0.3;
const COUNT_SECONDS: f64 = 1.0;
/// From here on, bytes per second say more than requests.
const LARGE: usize = 64 * 1024;

/// Load on a server with so much to serve it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) protocol: Protocol,
    pub(super) size: usize,
    pub(super) depth: usize,
    pub(super) connections: usize,
    pub(super) rate: Option<f64>,
    pub(super) workers: usize,
    pub(super) reactors: usize,
    pub(super) seconds: f64,
}

impl Shape {
    pub(super) fn title(&self) -> String {
        let size = show_size(self.size);
        let Shape { depth, connections, .. } = self;
        let how = match self.rate {
            Some(rate) => format!("{rate} requests/s"),
            None => format!("depth {depth}"),
        };
        format!("{} {size}, {how}, {connections} connections", self.protocol.name())
    }

    /// An entry of this load on a subject.
    pub(super) fn entry(self, subject: &Subject) -> Entry {
        let (measured, counted) = (subject.clone(), subject.clone());
        Entry::new(subject.label(), move || self.measure(&measured)).counting(move || self.count(&counted))
    }

    fn start(&self, subject: &Subject) -> Result<(Server, load::Options)> {
        let setup = Setup {
            dialect: Dialect::Echo(self.protocol),
            workers: self.workers,
            reactors: self.reactors,
            task_workers: 0,
            packet_max: self.size,
            ..Setup::default()
        };
        let server = subject.start(&setup)?;
        let protocol = if subject.program == Program::Redis { Protocol::Redis } else { self.protocol };
        let load = load::Options {
            address: server.address(),
            protocol,
            connections: self.connections,
            size: self.size,
            depth: self.depth,
            rate: self.rate,
            seconds: self.seconds,
        };
        Ok((server, load))
    }

    fn measure(&self, subject: &Subject) -> Result<Sample> {
        let (server, options) = self.start(subject)?;
        let mut load = Load::connect(&options)?;
        load.run(self.depth, self.rate, WARM_UP_SECONDS)?.verified()?;

        let processes = server.processes()?;
        let before = Snapshot::take(&processes)?;
        let summary = load.run(self.depth, self.rate, self.seconds)?.verified()?;
        let used = Snapshot::take(&processes)?.since(&before);
        let memory = memory_kib(&processes)?;
        drop(load);
        server.stop()?;

        let requests = summary.requests as f64;
        let mut sample: Sample = vec![(&REQUESTS, summary.requests_per_second)];
        if self.size >= LARGE {
            let mib = (self.size as f64) / f64::from(1 << 20);
            sample.push((&MIB, summary.requests_per_second * mib));
        }
        sample.extend(costs(&used, memory, requests, [summary.p50_us, summary.p99_us, summary.p999_us]));
        Ok(sample)
    }

    fn count(&self, subject: &Subject) -> Result<Counted> {
        let (server, mut options) = self.start(subject)?;
        options.seconds = WARM_UP_SECONDS;
        load::run(&options)?.verified()?;
        options.seconds = COUNT_SECONDS;
        let (counts, summary) = Counts::under(&options, &server.processes()?)?;
        server.stop()?;
        let split = counts.split();
        let per_request = |count: u64| count as f64 / summary.requests as f64;
        let mut sample: Sample = vec![(&CALLS, per_request(split.total))];
        // Its names do not tell clients from the rest.
        if subject.program != Program::Redis {
            sample.push((&CALLS_IPC, per_request(split.ipc)));
        }
        sample.push((&CALLS_YIELD, per_request(split.yields)));
        sample.push((&CALLS_WAIT, per_request(split.waits)));
        Ok(Counted { sample, calls: counts.per_request(summary.requests) })
    }
}
