//! Which worker gets a packet.

use crate::cluster::bed::Bed;
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};

pub(super) static ALL: &[Scenario] = &[
    full(
        "dispatch_fixed",
        "all packets of a connection go to one worker, connections to all",
        dispatch_fixed,
    ),
    full("dispatch_round_robin", "packets spread evenly over the workers", dispatch_round_robin).in_process(),
    full("dispatch_idle", "a busy worker is passed over", dispatch_idle).in_process().alone(),
    full(
        "dispatch_full_link",
        "who has filled a blocked worker's link goes on with another",
        dispatch_full_link,
    )
    .in_process(),
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
    // One after another: where all are at something, nobody can be passed over.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = bed.connect()?;
        client.expect("echo known", "known")?;
        clients.push(client);
    }
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

fn dispatch_full_link(cx: &Cx) -> Result<()> {
    // Several times what a link holds, of which at most one link's worth waits for the worker that is blocked.
    const PACKETS: usize = 3000;
    for mode in ["idle", "round_robin"] {
        let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 1).flag("dispatch-mode", mode);
        let bed = launch.flag("ring-size", 16384).start()?;
        let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<Client>>>()?;
        for client in &mut clients {
            client.expect("echo known to a worker", "known to a worker")?;
        }
        let mut sleeper = bed.connect()?;
        bed.occupy(&mut sleeper, 2000)?;
        let text = |number: usize| format!("{number:016}");
        let packets: String = (0..PACKETS).map(|number| format!("echo {}\n", text(number))).collect();
        for client in &mut clients {
            client.send(packets.as_bytes())?;
        }
        let mut open = vec![(0..PACKETS).map(text).collect::<BTreeSet<_>>(); clients.len()];
        let mut read_half = |part: &str| -> Result<()> {
            for (index, (client, open)) in clients.iter_mut().zip(&mut open).enumerate() {
                for _ in 0..PACKETS / 2 {
                    let reply = client.line().with_context(|| format!("{mode}, {part}, client {index}"))?;
                    ensure!(open.remove(&reply), "{mode}: client {index} did not expect {reply:?}");
                }
            }
            Ok(())
        };
        read_half("first half")?;
        ensure!(!sleeper.has_reply()?, "{mode}: half of all replies have waited for the worker that sleeps");
        read_half("second half")?;
        sleeper.expect_line("slept 2000")?;
        bed.stop()?;
    }
    Ok(())
}
