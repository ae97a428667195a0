//! New workers under live connections.

use super::recycle::most_away;
use crate::cluster::bed::Bed;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::{bed::PATIENCE, load::Load, proc};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full(
        "reload_under_load",
        "SIGUSR1 replaces every worker, and no request is lost or answered twice",
        reload_under_load,
    ),
    full("reload_all", "reload_mode=all does so for all workers at once", reload_all),
    full("reload_command", "a worker can ask for a reload, or retire alone", reload_command),
    full(
        "reload_stuck_worker",
        "a worker that does not retire in time is killed, and the reload goes on",
        reload_stuck_worker,
    ),
    full(
        "reload_amid_log_rotation",
        "SIGHUP at any moment of a reload harms no worker, and everybody writes to the new log file",
        reload_amid_log_rotation,
    ),
    full(
        "max_request",
        "workers that have had their share of requests are replaced, and none is lost",
        max_request,
    ),
];

fn pids(bed: &Bed) -> BTreeSet<i32> {
    bed.lives().values().map(|life| life.pid).collect()
}

/// Waits for the end of reload number `count`, then checks that every worker is new and that there are as many.
fn wait_reloaded(bed: &Bed, count: usize, before: &BTreeSet<i32>) -> Result<()> {
    bed.log.wait_count("on_before_reload", count, PATIENCE)?;
    bed.log.wait_count("on_after_reload", count, PATIENCE)?;
    proc::until("a new process for every worker", PATIENCE, || pids(bed).is_disjoint(before).then_some(()))?;
    let running: BTreeSet<i32> = proc::children(bed.ready.manager).into_iter().collect();
    ensure!(running == pids(bed), "running are {running:?}, started were {:?}", pids(bed));
    Ok(())
}

fn reload_under(cx: &Cx, mode: &str) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 3).flag("reactor-num", 2).flag("reload-mode", mode);
    // So long that all of them are away at some moment, if they go at once.
    let start_time = if mode == "all" { 200 } else { 10 };
    let bed = launch.flag("start-time", start_time).start()?;
    let load = Load::start(bed.address()?, 6)?;
    load.wait_more(500)?;
    for round in 1..=4 {
        let before = pids(&bed);
        // The manager reloads on its own account too.
        let target = if round % 2 == 1 { bed.ready.master } else { bed.ready.manager };
        proc::signal(target, Signal::USR1)?;
        wait_reloaded(&bed, round, &before)?;
        load.wait_more(500)?;
    }
    load.finish_unharmed()?;
    let errors = bed.count("on_worker_error");
    ensure!(errors == 0, "{errors} workers did not retire but die");
    let (most, expected) = (most_away(&bed), if mode == "all" { 3 } else { 1 });
    ensure!(most == expected, "{most} were away at once instead of {expected}");
    bed.stop()?;
    Ok(())
}

fn reload_under_load(cx: &Cx) -> Result<()> {
    reload_under(cx, "rolling")
}

fn reload_all(cx: &Cx) -> Result<()> {
    reload_under(cx, "all")
}

fn reload_command(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut client = bed.connect_to_worker(0)?;
    let before = pids(&bed);
    client.expect("reload", "ok")?;
    wait_reloaded(&bed, 1, &before)?;
    client.expect("echo same connection", "same connection")?;

    let (zero, one) = (bed.lives()[&0].pid, bed.lives()[&1].pid);
    client.expect("stop 1", "ok")?;
    bed.wait_successor(1, one)?;
    client.expect("stop", "ok")?;
    bed.wait_successor(0, zero)?;
    client.expect("echo after both", "after both")?;
    let errors = bed.count("on_worker_error");
    ensure!(errors == 0, "{errors} workers did not retire but die");
    bed.stop()?;
    Ok(())
}

fn reload_stuck_worker(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 1).start()?;
    let mut stuck = bed.connect_to_worker(0)?;
    let mut neighbour = bed.connect_to_worker(0)?;
    let before = pids(&bed);
    bed.occupy(&mut stuck, 100_000)?;
    neighbour.tell("echo waited")?;
    bed.signal_master(Signal::USR1)?;
    // In Base mode a worker that is killed has its clients with it.
    if bed.is_base() {
        neighbour.expect_close()?;
    } else {
        neighbour.expect_line("waited")?;
    }
    wait_reloaded(&bed, 1, &before)?;
    stuck.expect_close()?;
    bed.log.wait_line(Source::Stderr, &["kill", "max_wait_time"], Duration::from_secs(5))?;
    bed.stop()?;
    Ok(())
}

fn max_request(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("max-request", 300).start()?;
    let load = Load::start(bed.address()?, 4)?;
    // Each goes when it is its turn, so it is turns that take their time, not requests.
    bed.log.wait_count("on_worker_start", 12, PATIENCE)?;
    load.finish_unharmed()?;
    let errors = bed.count("on_worker_error");
    ensure!(errors == 0, "{errors} workers did not retire but die");
    bed.stop()?;
    Ok(())
}

fn reload_amid_log_rotation(cx: &Cx) -> Result<()> {
    let (current, rotated) = (cx.dir.join("server.log"), cx.dir.join("server.log.1"));
    let bed = cx.testbed().flag("worker-num", 8).flag("log-file", current.display()).start()?;
    for round in 1..=20 {
        let before = pids(&bed);
        bed.signal_master(Signal::USR1)?;
        // As dense as can be: the moment that matters is a new worker's first.
        let start = Instant::now();
        while bed.count("on_after_reload") < round {
            bed.signal_master(Signal::HUP)?;
            ensure!(start.elapsed() < PATIENCE, "reload {round} does not end amid SIGHUPs");
        }
        wait_reloaded(&bed, round, &before)?;
    }
    let errors = bed.count("on_worker_error");
    ensure!(errors == 0, "{errors} workers did not retire but die");

    fs::rename(&current, &rotated)?;
    bed.signal_master(Signal::HUP)?;
    let mut everybody = proc::descendants(bed.ready.master);
    everybody.push(bed.ready.master);
    let holds = |pid: &i32, file| proc::files(*pid).is_ok_and(|files| files.iter().any(|held| held == file));
    proc::until("everybody to change to the new log file", PATIENCE, || {
        everybody.iter().all(|pid| holds(pid, &current) && !holds(pid, &rotated)).then_some(())
    })?;
    bed.stop()?;
    Ok(())
}
