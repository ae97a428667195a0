//! What a dying worker costs: the packet in its hand by the chosen policy, and nobody anything else.

use crate::cluster::bed::Bed;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::{load::Load, proc};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full(
        "kill_each_worker",
        "kill -9 of every worker in turn costs only the packet in hand",
        kill_each_worker,
    )
    .in_process(),
    full(
        "kill_under_load",
        "kill -9 of idle and busy workers under load loses no other request",
        kill_under_load,
    )
    .in_process(),
    full("crash_kinds", "panic, abort, segv, kill and exit are reported as what they were", crash_kinds),
];

/// Waits until as many workers run as there should be.
pub(super) fn wait_worker_count(bed: &Bed, count: usize) -> Result<()> {
    let manager = bed.ready.manager;
    proc::until(&format!("{count} workers below the manager"), Duration::from_secs(10), || {
        (proc::children(manager).len() == count).then_some(())
    })
}

fn kill_each_worker(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).flag("reactor-num", 2).start()?;
    // Two rounds: successors die as their predecessors did.
    for worker in [0, 1, 2, 0, 1, 2] {
        let mut victim = bed.connect_to_worker(worker)?;
        let mut waiters = (0..8).map(|_| bed.connect_to_worker(worker)).collect::<Result<Vec<_>>>()?;
        let mut stranger = bed.connect_to_worker((worker + 1) % 3)?;
        let (pid, generation): (i32, u64) =
            (victim.ask_field("whoami", "pid")?, victim.ask_field("whoami", "generation")?);
        bed.occupy(&mut victim, 60_000)?;
        for (index, waiter) in waiters.iter_mut().enumerate() {
            waiter.tell_all(&[&format!("echo waiter {index}"), "whoami"])?;
            waiter.wait_read(bed.port()?)?;
        }
        proc::signal(pid, Signal::KILL)?;
        stranger.expect("echo stranger", "stranger")?;
        victim.expect_close().context("the client whose packet the worker died on")?;
        let status = bed.wait_error(pid)?;
        ensure!(status == "signal:9", "worker {worker} was killed, and reported as {status:?}");
        let life = bed.wait_successor(worker, pid)?;
        ensure!(life.generation > generation, "generation {} after {generation}", life.generation);
        for (index, waiter) in waiters.iter_mut().enumerate() {
            waiter
                .expect_line(&format!("waiter {index}"))
                .with_context(|| format!("waiter {index} on {worker}"))?;
            let reply = waiter.line()?;
            ensure!(reply.contains(&format!("pid={} ", life.pid)), "not the successor answered: {reply:?}");
        }
        wait_worker_count(&bed, 3)?;
    }
    bed.stop()?;
    Ok(())
}

/// Deaths under load: few enough that the back-off, which grows with each death of a worker, stays below a second.
pub(super) const KILLS: u32 = 8;

/// Kills one of two workers after the other, each at a random moment.
pub(super) fn kill_in_turn(cx: &Cx, bed: &Bed, load: &Load) -> Result<()> {
    let mut rng = cx.rng();
    for kill in 0..KILLS {
        load.wait_more(rng.u64(1..2000))?;
        let worker = kill % 2;
        let pid = bed.lives()[&worker].pid;
        proc::signal(pid, Signal::KILL)?;
        bed.wait_successor(worker, pid)?;
    }
    load.wait_more(500)
}

fn kill_under_load(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let load = Load::start(bed.address()?, 6)?;
    kill_in_turn(cx, &bed, &load)?;
    let outcome = load.finish()?;
    ensure!(
        outcome.cut <= u64::from(KILLS),
        "{KILLS} deaths may cost one connection each, not {}",
        outcome.cut
    );
    bed.stop()?;
    Ok(())
}

fn crash_kinds(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut neighbour = bed.connect_to_worker(0)?;
    let mut stranger = bed.connect_to_worker(1)?;
    let kinds = [
        ("crash exit 3", "exit:3"),
        ("crash exit 0", "exit:0"),
        ("crash abort", "signal:6"),
        ("crash segv", "signal:11"),
        ("crash kill", "signal:9"),
        ("crash panic", "exit:"),
    ];
    for (packet, expected) in kinds {
        let mut victim = bed.connect_to_worker(0)?;
        // The victim knows it for sure: the start line of a successor may still be on its way to us.
        let pid = victim.ask_field("whoami", "pid")?;
        victim.tell(packet)?;
        victim.expect_close().context(packet)?;
        let status = bed.wait_error(pid).context(packet)?;
        ensure!(
            status.starts_with(expected),
            "{packet:?} was reported as {status:?} instead of {expected:?}"
        );
        stranger.expect("echo on the other worker", "on the other worker").context(packet)?;
        // In Base mode a worker has its clients with it.
        if bed.is_base() {
            neighbour.expect_close().context(packet)?;
            neighbour = bed.connect_to_worker(0)?;
        } else {
            neighbour.expect("echo on the same worker", "on the same worker").context(packet)?;
        }
    }
    // A restarted worker is the last one's equal: the panic is the last of the kinds, and its status is no success.
    let panic = bed.log.wait_line(Source::Stderr, &["panic"], Duration::from_secs(5))?;
    ensure!(!panic.text.is_empty(), "the panic's message is empty");
    let zero = bed.log.texts(Source::Stdout).iter().filter(|line| line.contains("status=exit:0")).count();
    ensure!(zero == 1, "the panic was reported as exit code 0");
    bed.stop()?;
    Ok(())
}
