//! `fairness`: what a request waits for besides itself, by dispatch rule. 64 keep-alive clients, each with one request at a
//! time and a pause before the next, ask for what takes between 0.1 and 50 ms: most of it short, some of it long (a bounded
//! Pareto distribution, as of requests to web servers: Crovella and Bestavros, "Self-similarity in World Wide Web
//! traffic", 1997). The same costs in each run. Workers sleep for that time, so that they do not want for cores.

use super::{Entry, Plan, Planned};
use crate::options::{Options, or};
use crate::sample::{P50, P99, REQUESTS, Sample, WAIT_P99};
use crate::subject::{Chosen, Dialect, Setup, Subject};
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use hdrhistogram::Histogram;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const VARIANTS: &[&str] = &["ring-epoll"];
/// The one that others are compared with first.
const RULES: [&str; 4] = ["fixed", "round_robin", "idle", "least_in_flight"];
const WORKERS: usize = 8;
const CLIENTS: usize = 64;
/// Microseconds of the cheapest and of the dearest request.
const COSTS: (f64, f64) = (100.0, 50_000.0);
/// The part of its time that a worker is to be busy.
const LOAD: f64 = 0.5;
const SEED: u64 = 20_261_128;
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &[])?;
    let mut cells = Vec::new();
    for clients in or(&options.connections, &[CLIENTS]) {
        let seconds = options.seconds;
        let entries = subjects.iter().filter(|subject| subject.has_reactors()).flat_map(|subject| {
            RULES.map(|rule| {
                let subject = subject.with(&format!("--dispatch-mode {rule}"));
                Entry::new(format!("{}, {rule}", subject.label()), move || {
                    measure(&subject, clients, seconds)
                })
            })
        });
        let title =
            format!("{clients} clients of {WORKERS} workers, requests of 0.1 to 50 ms, half the capacity");
        cells.push(Planned { title, point: None, entries: entries.collect() });
    }
    Ok(Plan { cells, skipped })
}

/// What a request costs, in microseconds.
fn cost(rng: &mut Rng) -> f64 {
    let (least, most) = COSTS;
    least / (1.0 - rng.f64() * (1.0 - least / most))
}

/// What it costs in the mean.
fn mean_cost() -> f64 {
    let (least, most) = COSTS;
    least * (most / least).ln() / (1.0 - least / most)
}

/// What was measured of one client: latencies, and how much of them was not the request itself, in microseconds.
struct Times {
    latencies: Histogram<u64>,
    waits: Histogram<u64>,
}

impl Times {
    fn new() -> Result<Times> {
        Ok(Times { latencies: Histogram::new(3)?, waits: Histogram::new(3)? })
    }
}

fn measure(subject: &Subject, clients: usize, seconds: f64) -> Result<Sample> {
    let setup = Setup { dialect: Dialect::Commands, workers: WORKERS, ..Setup::default() };
    let server = subject.start(&setup)?;
    let address = server.address();
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let all = thread::scope(|scope| {
        let client = |number: u64| scope.spawn(move || ask(address, number, clients, until));
        let clients: Vec<_> = (0..clients as u64).map(client).collect();
        let mut all = Times::new()?;
        for client in clients {
            let times = client.join().ok().context("a client panicked")??;
            all.latencies.add(times.latencies)?;
            all.waits.add(times.waits)?;
        }
        anyhow::Ok(all)
    })?;
    server.stop()?;
    let quantile = |times: &Histogram<u64>, quantile| times.value_at_quantile(quantile) as f64;
    Ok(vec![
        (&REQUESTS, all.latencies.len() as f64 / seconds),
        (&P50, quantile(&all.latencies, 0.5)),
        (&P99, quantile(&all.latencies, 0.99)),
        (&WAIT_P99, quantile(&all.waits, 0.99)),
    ])
}

/// One client's requests, one after another.
fn ask(address: SocketAddr, number: u64, clients: usize, until: Instant) -> Result<Times> {
    let mut rng = Rng::with_seed(SEED + number);
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_ref().set_nodelay(true)?;
    stream.get_ref().set_read_timeout(Some(PATIENCE))?;
    let pause = clients as f64 * mean_cost() / (LOAD * WORKERS as f64) - mean_cost();
    let (mut times, mut reply) = (Times::new()?, String::new());
    while Instant::now() < until {
        thread::sleep(Duration::from_secs_f64(-(1.0 - rng.f64()).ln() * pause.max(0.0) / 1e6));
        let cost = cost(&mut rng) as u64;
        let begin = Instant::now();
        stream.get_mut().write_all(format!("nap {cost}\n").as_bytes())?;
        reply.clear();
        stream.read_line(&mut reply)?;
        let latency = begin.elapsed().as_micros() as u64;
        ensure!(reply == format!("napped {cost}\n"), "instead of a nap came {reply:?}");
        times.latencies.record(latency)?;
        times.waits.record(latency.saturating_sub(cost))?;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_between_their_bounds_and_have_their_mean() {
        let mut rng = Rng::with_seed(SEED);
        let costs: Vec<f64> = (0..200_000).map(|_| cost(&mut rng)).collect();
        assert!(costs.iter().all(|cost| (COSTS.0..=COSTS.1).contains(cost)));
        let mean = costs.iter().sum::<f64>() / costs.len() as f64;
        assert!((mean / mean_cost() - 1.0).abs() < 0.05, "{mean} and {}", mean_cost());
    }
}
