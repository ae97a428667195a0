//! Attacks: honest clients are served all the same, and memory stays bounded.

use super::limits::{connect_from, stat};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, backends, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    backends(
        "slowloris",
        "5,000 clients with packets that never end are closed, others are served",
        slowloris,
    ),
    backends(
        "flood_of_few",
        "49 addresses with 5,000 clients get their share of places, and no more",
        flood_of_few,
    ),
    full(
        "tiny_packets",
        "a million packets of one byte, a write each or many, whose replies nobody reads",
        tiny_packets,
    ),
];

/// Proportional memory of all processes, in bytes: what would be free if they were not there.
fn memory(bed: &Bed) -> Result<u64> {
    let mut family = proc::descendants(bed.ready.master);
    family.push(bed.ready.master);
    Ok(family.into_iter().filter_map(proc::proportional).sum())
}

fn check_memory(bed: &Bed, before: u64, growth: u64) -> Result<()> {
    let now = memory(bed)?;
    ensure!(now < before + growth, "memory grew from {before} to {now} bytes");
    Ok(())
}

fn slowloris(cx: &Cx) -> Result<()> {
    const CLIENTS: usize = 5000;
    // A connection's books in the server, its page of the session table, and the beginning of its packet.
    const GROWTH_MAX: u64 = CLIENTS as u64 * 8192;
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("max-connection", 12_000);
    let bed = launch.flag("package-max-time", 5).flag("backlog", 4096).start()?;
    let (mut honest, mut silent) = (bed.connect()?, bed.connect()?);
    honest.expect("echo before", "before")?;
    silent.expect("echo before", "before")?;
    let before = memory(&bed)?;
    let mut attackers = Vec::new();
    for index in 0..CLIENTS {
        let mut attacker =
            Client::connect_small(bed.address()?).with_context(|| format!("client {index}"))?;
        attacker.send(b"echo ")?;
        attackers.push(attacker);
        if index.is_multiple_of(100) {
            honest.expect("echo amid", "amid")?;
        }
    }
    check_memory(&bed, before, GROWTH_MAX)?;
    // Those that are closed already do not mind.
    proc::until("all of them to be closed", 2 * PATIENCE, || {
        for (index, attacker) in attackers.iter_mut().enumerate() {
            let _ = attacker.send(b"x");
            if index.is_multiple_of(1000) {
                honest.expect("echo amid", "amid").ok()?;
            }
        }
        let slow = stat(&mut honest, "slow_count").ok()?;
        (slow == CLIENTS as u64).then_some(())
    })?;
    check_memory(&bed, before, GROWTH_MAX)?;
    honest.expect("echo after", "after")?;
    silent.expect("echo after", "after")?;
    // A connection is counted off when its socket is closed, which io_uring does in its own time.
    proc::until("only the honest ones to be left", PATIENCE, || {
        stat(&mut honest, "connection_num").ok().filter(|left| *left == 2)
    })?;
    bed.stop()?;
    Ok(())
}

fn flood_of_few(cx: &Cx) -> Result<()> {
    const ADDRESSES: std::ops::Range<u8> = 2..51;
    const EACH: usize = 100;
    const LIMIT: usize = 10;
    const GROWTH_MAX: u64 = 16 << 20;
    let launch = cx.testbed().flag("worker-num", 1).flag("max-connection", 1000);
    let bed = launch.flag("max-connection-per-ip", LIMIT).start()?;
    let mut honest = bed.connect()?;
    honest.expect("echo before", "before")?;
    let before = memory(&bed)?;
    let mut attackers = Vec::new();
    for last in ADDRESSES {
        for _ in 0..EACH {
            attackers.push(connect_from(&bed, last)?);
        }
        honest.expect("echo amid", "amid")?;
        bed.connect()?.expect("echo newcomer", "newcomer")?;
    }
    let addresses = ADDRESSES.len();
    let all_refused = || {
        let refused = stat(&mut honest, "refuse_count").ok()?;
        (refused == (addresses * (EACH - LIMIT)) as u64).then_some(())
    };
    proc::until("all beyond the limit to be refused", PATIENCE, all_refused)?;
    check_memory(&bed, before, GROWTH_MAX)?;
    let mut served = 0;
    for attacker in &mut attackers {
        served += usize::from(attacker.ask("echo in").is_ok());
    }
    ensure!(served == addresses * LIMIT, "{served} of the flood are served");
    bed.stop()?;
    Ok(())
}

fn tiny_packets(cx: &Cx) -> Result<()> {
    const CLIENTS: usize = 20;
    const LIMIT: usize = 1 << 20;
    const GROWTH_MAX: u64 = 2 * (CLIENTS * LIMIT) as u64 + (32 << 20);
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("framing", "raw");
    let bed = launch.flag("socket-buffer-size", LIMIT).start()?;
    let mut honest = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let before = memory(&bed)?;
    let mut attackers = (0..CLIENTS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let flood = std::thread::spawn(move || -> usize {
        let mut sent = 0;
        for round in 0..2500 {
            for attacker in &mut attackers {
                let bytes = if round % 2 == 0 { &b"x"[..] } else { &[b'y'; 40] };
                // Its connection may be closed, which is what it deserves.
                sent += if attacker.send(bytes).is_ok() { bytes.len() } else { 0 };
            }
        }
        sent
    });
    let mut rounds = 0;
    while !flood.is_finished() {
        let client = &mut honest[rounds % 4];
        client.send(b"honest")?;
        ensure!(client.exactly(6)? == b"honest", "an honest client got other bytes than it sent");
        check_memory(&bed, before, GROWTH_MAX)?;
        rounds += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = flood.join().ok().context("the flood has panicked")?;
    ensure!(sent > 100_000 && rounds > 0, "{sent} bytes of the flood were sent, {rounds} times others asked");
    bed.stop()?;
    Ok(())
}
