//! Load in an open loop with something beside it, and without: what `reload` and `slow` have in common.

use super::{Entry, Plan, Planned};
use crate::Protocol;
use crate::load::{self, Load, Summary};
use crate::options::{Options, or};
use crate::sample::{P50, P99, P999, REQUESTS, Sample};
use crate::server::Server;
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const SIZE: usize = 128;
const WARM_UP_SECONDS: f64 = 0.3;

/// What is measured: each variant by itself, and with what stands beside it.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    pub(super) connections: usize,
    /// Requests per second.
    pub(super) rate: f64,
    /// What a row with it is called.
    pub(super) name: &'static str,
    /// And all of them.
    pub(super) about: &'static str,
    pub(super) measure: fn(&Subject, &load::Options, bool) -> Result<Sample>,
}

impl Beside {
    pub(super) fn plan(self, options: &Options) -> Result<Plan> {
        let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
        let mut cells = Vec::new();
        for connections in or(&options.connections, &[self.connections]) {
            let rate = options.rate.unwrap_or(self.rate);
            let load = load::Options {
                address: ([127, 0, 0, 1], 0).into(),
                protocol: Protocol::Raw,
                connections,
                size: SIZE,
                depth: 1,
                rate: Some(rate),
                seconds: options.seconds,
            };
            let entries = subjects.iter().flat_map(|subject| {
                [false, true].map(|is_there| {
                    let (name, load, subject) = (subject.label(), load.clone(), subject.clone());
                    let name = if is_there { format!("{name}, {}", self.name) } else { name };
                    Entry::new(name, move || (self.measure)(&subject, &load, is_there))
                })
            });
            let title = format!("{rate} requests/s of {SIZE} B on {connections} connections; {}", self.about);
            cells.push(Planned { title, point: None, entries: entries.collect() });
        }
        Ok(Plan { cells, skipped })
    }
}

/// A server that echoes, and its load, which has begun.
pub(super) fn start(subject: &Subject, options: &load::Options) -> Result<(Server, Load)> {
    let server = subject.start(&Setup { dialect: Dialect::Echo(Protocol::Raw), ..Setup::default() })?;
    let mut load = Load::connect(&load::Options { address: server.address(), ..options.clone() })?;
    load.run(options.depth, options.rate, WARM_UP_SECONDS)?.verified()?;
    Ok((server, load))
}

/// The load, with `other` beside it until the receiver hears that it is over.
pub(super) fn run<T: Send>(
    load: &mut Load,
    options: &load::Options,
    other: impl FnOnce(&Receiver<()>) -> Result<T> + Send,
) -> Result<(Summary, T)> {
    let (over, is_over) = channel::<()>();
    thread::scope(|scope| {
        let other = scope.spawn(move || other(&is_over));
        let summary = load.run(options.depth, options.rate, options.seconds);
        drop(over);
        let other = other.join().ok().context("what was beside the load panicked")??;
        Ok((summary?.verified()?, other))
    })
}

/// What clients have noticed.
pub(super) fn noticed(summary: &Summary) -> Sample {
    vec![
        (&REQUESTS, summary.requests_per_second),
        (&P50, summary.p50_us),
        (&P99, summary.p99_us),
        (&P999, summary.p999_us),
    ]
}
