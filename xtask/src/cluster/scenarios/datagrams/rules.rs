//! Which worker gets a datagram.

use super::{launch, stat, wait_stat};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::datagram::Sender;
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

const WORKERS: u32 = 3;
/// 127.0.0.1 modulo 3, as Swoole has it.
const LOCALHOST: u32 = 0x7f00_0001 % WORKERS;

pub(super) fn rules(cx: &Cx) -> Result<()> {
    let start = |rule: &str| {
        launch(cx).flag("worker-num", WORKERS).flag("reactor-num", 2).flag("dispatch-mode", rule).start()
    };
    for rule in ["fixed", "uid"] {
        by_address(&start(rule)?).with_context(|| rule.to_owned())?;
    }
    by_ip(&start("ip_hash")?)?;
    in_turn(&start("round_robin")?)?;
    for rule in ["idle", "least_in_flight"] {
        by_load(&start(rule)?).with_context(|| rule.to_owned())?;
    }
    by_key(&start("consistent_hash")?)?;
    by_function(&start("custom")?)
}

/// The workers that these have answered.
fn workers(sender: &Sender, packets: impl IntoIterator<Item = String>) -> Result<BTreeSet<u32>> {
    packets.into_iter().map(|packet| sender.worker_by(&packet)).collect()
}

fn whoami(count: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n("whoami".to_owned(), count)
}

fn by_address(bed: &Bed) -> Result<()> {
    let mut all = BTreeSet::new();
    let senders = (0..40).map(|_| Sender::connect(bed)).collect::<Result<Vec<_>>>()?;
    for sender in &senders {
        let its = workers(sender, whoami(5))?;
        ensure!(its.len() == 1, "one sender's datagrams went to {its:?}");
        all.extend(its);
    }
    ensure!(all.len() == WORKERS as usize, "40 senders' datagrams all went to {all:?}");
    Ok(())
}

fn by_ip(bed: &Bed) -> Result<()> {
    for _ in 0..20 {
        let its = workers(&Sender::connect(bed)?, whoami(2))?;
        ensure!(its == BTreeSet::from([LOCALHOST]), "{its:?} have datagrams of 127.0.0.1");
    }
    Ok(())
}

fn in_turn(bed: &Bed) -> Result<()> {
    let sender = Sender::connect(bed)?;
    let first = sender.worker()?;
    for step in 1..30 {
        let worker = sender.worker()?;
        ensure!(worker == (first + step) % WORKERS, "worker {worker} after {step} steps from {first}");
    }
    Ok(())
}

fn by_load(bed: &Bed) -> Result<()> {
    let mut client = bed.connect()?;
    let busy = client.worker()?;
    let busy_sender = Sender::connect(bed)?;
    // Whoever gets it sleeps.
    busy_sender.send(b"sleep 3000")?;
    let asleep = || bed.lives().into_iter().find(|(_, life)| crate::cluster::proc::sleeps(life.pid));
    let (sleeper, _) = crate::cluster::proc::until("a worker to sleep", PATIENCE, asleep)?;
    let its = workers(&Sender::connect(bed)?, whoami(30))?;
    ensure!(!its.contains(&sleeper), "a worker that is asleep has answered: {its:?}, {busy}");
    busy_sender.expect_answer("slept 3000")
}

fn by_key(bed: &Bed) -> Result<()> {
    let (one, other) = (Sender::connect(bed)?, Sender::connect(bed)?);
    let mut all = BTreeSet::new();
    for key in 0..40 {
        let packet = format!("at key-{key} whoami");
        let worker = one.worker_by(&packet)?;
        ensure!(other.worker_by(&packet)? == worker, "key {key} has two workers");
        all.insert(worker);
    }
    ensure!(all.len() == WORKERS as usize, "40 keys all went to {all:?}");
    Ok(())
}

fn by_function(bed: &Bed) -> Result<()> {
    let (sender, mut client) = (Sender::connect(bed)?, bed.connect()?);
    for worker in 0..WORKERS {
        ensure!(sender.worker_by(&format!("at {worker} whoami"))? == worker, "not at {worker}");
    }
    ensure!(stat(&mut client, "datagram_dropped_count")? == 0, "something was dropped");
    for wish in ["drop", "close", "panic"] {
        sender.send(format!("at {wish} whoami").as_bytes())?;
    }
    wait_stat(&mut client, "datagram_dropped_count", 3)?;
    bed.log.wait_line(Source::Stderr, &["has panicked on a datagram of 127.0.0.1"], PATIENCE)?;
    sender.expect("echo still there", "still there")
}
