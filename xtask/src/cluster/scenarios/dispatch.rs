//! Which worker gets a packet.

use crate::cluster::bed::Bed;
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

pub(super) static ALL: &[Scenario] = &[
    full(
        "dispatch_fixed",
        "all packets of a connection go to one worker, connections to all",
        dispatch_fixed,
    ),
    full("dispatch_round_robin", "packets spread evenly over the workers", dispatch_round_robin),
    full("dispatch_idle", "a busy worker is passed over", dispatch_idle),
];

fn start(cx: &Cx, mode: &str) -> Result<Bed> {
    cx.testbed().flag("worker-num", 3).flag("reactor-num", 1).flag("dispatch-mode", mode).start()
}

fn dispatch_fixed(cx: &Cx) -> Result<()> {
    let bed = start(cx, "fixed")?;
    let mut by_worker = BTreeMap::new();
    for _ in 0..30 {
        let mut client = bed.connect()?;
        let worker = client.worker()?;
        *by_worker.entry(worker).or_insert(0) += 1;
        for _ in 0..20 {
            let other = client.worker()?;
            ensure!(other == worker, "one connection's packets went to workers {worker} and {other}");
        }
    }
    ensure!(by_worker.len() == 3, "connections went to these workers only: {by_worker:?}");
    bed.stop()?;
    Ok(())
}

fn dispatch_round_robin(cx: &Cx) -> Result<()> {
    let bed = start(cx, "round_robin")?;
    let mut client = bed.connect()?;
    let mut by_worker = BTreeMap::new();
    for _ in 0..300 {
        *by_worker.entry(client.worker()?).or_insert(0) += 1;
    }
    ensure!(by_worker.values().eq([100, 100, 100].iter()), "of 300 packets, workers got {by_worker:?}");
    bed.stop()?;
    Ok(())
}

fn dispatch_idle(cx: &Cx) -> Result<()> {
    let bed = start(cx, "idle")?;
    let mut sleeper = bed.connect()?;
    bed.occupy(&mut sleeper, 2000)?;
    let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<Client>>>()?;
    let start = std::time::Instant::now();
    for round in 0..50 {
        for client in &mut clients {
            client.expect(&format!("echo {round}"), &round.to_string())?;
        }
    }
    let took = start.elapsed();
    ensure!(
        took.as_millis() < 1500,
        "200 packets took {took:?}: some have waited for the worker that sleeps"
    );
    sleeper.expect_line("slept 2000")?;
    bed.stop()?;
    Ok(())
}
