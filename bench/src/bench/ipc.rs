//! `ipc`: the channels of `swoole-ipc`, and ways to wake a process, between two processes.

use super::{Entry, Plan, Planned};
use crate::options::{Options, or, show_size};
use crate::probe;
use crate::probe::bell::{KINDS, PLACES};
use crate::probe::channel::{CARRIERS, PATTERNS, Pattern};
use crate::sample::{MESSAGE_CPU, MESSAGES, Metric, ROUND_TRIP, ROUND_TRIP_CPU};
use anyhow::Result;

const SIZES: &[usize] = &[128, 4 << 10, 64 << 10, 1 << 20];

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let seconds = options.seconds.to_string();
    let mut cells = Vec::new();
    for &(name, pattern) in PATTERNS {
        let metrics: [&'static Metric; 2] = match pattern {
            Pattern::RoundTrip => [&ROUND_TRIP, &ROUND_TRIP_CPU],
            Pattern::OneWay => [&MESSAGES, &MESSAGE_CPU],
        };
        for size in or(&options.sizes, SIZES) {
            let entry = |(carrier, _): &(&'static str, _)| {
                let args = ["channel", carrier, name, &size.to_string(), &seconds].map(str::to_owned);
                Entry::new(*carrier, move || probe::run(&args, &metrics))
            };
            let entries = CARRIERS.iter().map(entry).collect();
            cells.push(Planned { title: format!("{name} of {}", show_size(size)), point: None, entries });
        }
    }
    for (place, _) in PLACES {
        let entry = |(bell, _): &(&'static str, _)| {
            let args = ["bell", bell, place, &seconds].map(str::to_owned);
            Entry::new(*bell, move || probe::run(&args, &[&ROUND_TRIP, &ROUND_TRIP_CPU]))
        };
        let entries = KINDS.iter().map(entry).collect();
        cells.push(Planned { title: format!("doorbells there and back, {place}"), point: None, entries });
    }
    Ok(Plan { cells, skipped: Vec::new() })
}
