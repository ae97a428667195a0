//! Workers that are replaced a few at a time: `reload_parallel`, `max_request`, `max_memory`.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::load::Load;
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;

pub(super) static ALL: &[Scenario] = &[
    full(
        "reload_parallel",
        "a reload takes as many workers at once as it may, and the next when a successor has started",
        reload_parallel,
    ),
    full(
        "reload_parallel_failed",
        "a reload of several at once stops at a successor that cannot start, and who is left serves on",
        reload_parallel_failed,
    ),
    full(
        "recycle_in_turn",
        "workers that all reach max_request at once are replaced a few at a time, and no client notices",
        in_turn,
    ),
    full(
        "recycle_and_reload",
        "a reload and workers that are due never take more together than may be away",
        and_reload,
    ),
    full(
        "recycle_failed_start",
        "while a successor cannot start, the others that are due go on serving",
        failed_start,
    ),
    full(
        "recycle_in_stop",
        "a stop while workers are due, and some being replaced, answers what has come",
        in_stop,
    ),
    full(
        "recycle_without_manager",
        "who is due while there is no manager serves on, and is replaced by the next one",
        without_manager,
    )
    .in_process(),
    full(
        "recycle_managers_killed",
        "whenever managers die amid all that, no more workers are away at once than may be",
        managers_killed,
    )
    .in_process(),
    full("max_memory", "a worker that has grown too large is replaced, and the log says why", max_memory)
        .alone(),
];

/// How many workers were away at most: from the last callback of one to the end of the first one of its successor. The
/// order of those lines is that of the callbacks where it matters: one is asked to leave after the successor of another
/// has written that it starts.
pub(super) fn most_away(bed: &Bed) -> usize {
    let (mut away, mut most) = (BTreeSet::new(), 0);
    for line in bed.log.texts(Source::Stdout) {
        let Some(worker) = field(&line, "worker").map(str::to_owned) else { continue };
        if line.starts_with("on_worker_stop") {
            away.insert(worker);
            most = most.max(away.len());
        } else if line.starts_with("on_worker_start") {
            away.remove(&worker);
        }
    }
    most
}

/// Waits until every worker has a process of this generation, or of a later one.
fn wait_generation(bed: &Bed, generation: u64) -> Result<()> {
    proc::until(&format!("generation {generation} of all workers"), PATIENCE, || {
        bed.lives().values().all(|life| life.generation >= generation).then_some(())
    })
}

fn reload_parallel(cx: &Cx) -> Result<()> {
    for parallel in [1, 3] {
        let launch = cx.testbed().flag("worker-num", 6).flag("reload-parallel", parallel);
        let bed = launch.flag("start-time", 100).start()?;
        let load = Load::start(bed.address()?, 6)?;
        load.wait_more(200)?;
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
        load.wait_more(200)?;
        load.finish_unharmed()?;
        let most = most_away(&bed);
        ensure!(most == parallel, "{most} were away at once, of {parallel} that may");
        ensure!(bed.lives().values().all(|life| life.generation == 2), "{:?}", bed.lives());
        ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
        bed.stop()?;
    }
    Ok(())
}

fn reload_parallel_failed(cx: &Cx) -> Result<()> {
    // To panic takes much less time than to start.
    let launch = cx.testbed().flag("worker-num", 4).flag("reload-parallel", 2).flag("start-time", 1000);
    let bed = launch.flag("crash-on-start", "0:2").start()?;
    let load = Load::start(bed.address()?, 6)?;
    bed.signal_master(Signal::USR1)?;
    let line = bed.log.wait_line(Source::Stderr, &["reload aborted", "slot 0.0"], PATIENCE)?;
    ensure!(line.text.ends_with("2 slots keep their process"), "{:?}", line.text);
    proc::until("the successors of both that were taken", PATIENCE, || {
        let lives = bed.lives();
        (lives[&0].generation == 3 && lives[&1].generation == 2).then_some(())
    })?;
    load.wait_more(500)?;
    load.finish_unharmed()?;
    let lives = bed.lives();
    ensure!(lives[&2].generation == 1 && lives[&3].generation == 1, "it went on: {lives:?}");
    ensure!(most_away(&bed) == 2, "{} were away at once", most_away(&bed));
    bed.stop()?;
    Ok(())
}

/// Clients of which each worker has one, and which are all used equally.
fn one_for_each(bed: &Bed, workers: u32) -> Result<Vec<Client>> {
    (0..workers).map(|worker| bed.connect_to_worker(worker)).collect()
}

fn in_turn(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 6).flag("reload-parallel", 2).flag("start-time", 30);
    let bed = launch.flag("max-request", 200).flag("max-request-grace", 0).start()?;
    let mut clients = one_for_each(&bed, 6)?;
    let load = Load::start(bed.address()?, 12)?;
    // They are as many as a worker may have, which it has had before one of those before it has a successor.
    let packets = ["hold"; 200];
    clients.iter_mut().try_for_each(|client| client.tell_all(&packets))?;
    for generation in 2..=4 {
        wait_generation(&bed, generation)?;
        clients.iter_mut().try_for_each(|client| client.tell_all(&packets))?;
    }
    for client in &mut clients {
        client.expect("echo still there", "still there")?;
    }
    load.finish_unharmed()?;
    let most = most_away(&bed);
    ensure!(most == 2, "{most} were away at once, of 2 that may");
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn and_reload(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 4).flag("start-time", 30);
    let bed = launch.flag("max-request", 50).flag("max-request-grace", 0).start()?;
    let mut clients = one_for_each(&bed, 4)?;
    let load = Load::start(bed.address()?, 8)?;
    for round in 1..=3 {
        // Each is due, whether or not the load comes to it, and some are being replaced.
        clients.iter_mut().try_for_each(|client| client.tell_all(&["hold"; 50]))?;
        wait_generation(&bed, round + 1)?;
        clients.iter_mut().try_for_each(|client| client.tell_all(&["hold"; 50]))?;
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", round as usize, PATIENCE)?;
    }
    load.finish_unharmed()?;
    for client in &mut clients {
        client.expect("echo still there", "still there")?;
    }
    ensure!(most_away(&bed) == 1, "{} were away at once, of 1 that may", most_away(&bed));
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn failed_start(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("max-request", 20).flag("max-request-grace", 0);
    let launch = launch.flag("hang-on-start", "0:2").flag("worker-start-timeout", 2);
    let bed = launch.start()?;
    let mut clients = one_for_each(&bed, 2)?;
    let pids = [0, 1].map(|worker| bed.lives()[&worker].pid);
    let packets = ["hold"; 20];
    clients[0].tell_all(&packets)?;
    proc::until("the end of worker 0", PATIENCE, || (!proc::alive(pids[0])).then_some(()))?;
    // Its successor has not started, so this one has to wait, and serves.
    clients[1].tell_all(&packets)?;
    for _ in 0..30 {
        let pid: i32 = clients[1].ask_field("whoami", "pid")?;
        ensure!(pid == pids[1], "worker 1 was replaced while worker 0 was away");
    }
    bed.log.wait_line(Source::Stderr, &["worker 0", "worker_start_timeout"], PATIENCE)?;
    bed.wait_successor(0, pids[0])?;
    bed.wait_successor(1, pids[1])?;
    for client in &mut clients {
        client.expect("echo still there", "still there")?;
    }
    bed.stop()?;
    Ok(())
}

fn in_stop(cx: &Cx) -> Result<()> {
    let mut rng = cx.rng();
    for round in 0..4 {
        let launch = cx.testbed().flag("worker-num", 4).flag("start-time", 50).flag("max-wait-time", 10);
        let mut bed = launch.flag("max-request", 10).flag("max-request-grace", 0).start()?;
        let mut clients = one_for_each(&bed, 4)?;
        clients.iter_mut().try_for_each(|client| client.tell_all(&["echo due"; 20]))?;
        // However many of them have had their turn by then.
        let gone = rng.usize(0..4);
        bed.log.wait_count("on_worker_stop", gone, PATIENCE)?;
        clients.iter_mut().try_for_each(|client| client.tell_all(&["echo late"; 20]))?;
        clients.iter().try_for_each(|client| bed.wait_accepted(client))?;
        bed.signal_master(Signal::TERM)?;
        for (index, client) in clients.iter_mut().enumerate() {
            for reply in [["due"; 20], ["late"; 20]].as_flattened() {
                client.expect_line(reply).with_context(|| format!("round {round}, client {index}"))?;
            }
            client.expect_close()?;
        }
        ensure!(bed.wait_gone(PATIENCE)?.success(), "round {round}: the stop failed");
        let errors = bed.worker_errors();
        ensure!(errors.is_empty(), "round {round}: {errors:?}");
    }
    Ok(())
}

fn without_manager(cx: &Cx) -> Result<()> {
    let file = cx.dir.join("server.toml");
    std::fs::write(&file, "worker_num = 2\nmax_request = 20\nmax_request_grace = 0\n")?;
    let bed = cx.testbed().flag("config", file.display()).start()?;
    let mut clients = one_for_each(&bed, 2)?;
    let pids = [0, 1].map(|worker| bed.lives()[&worker].pid);
    // The program does not come to run a manager any more.
    std::fs::remove_file(&file)?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    bed.log.wait_line(Source::Stderr, &["managers have died 3 times in a row"], PATIENCE)?;
    for (client, pid) in clients.iter_mut().zip(pids) {
        for _ in 0..50 {
            client.expect("echo served", "served")?;
        }
        ensure!(client.ask_field::<u64>("whoami", "handled")? > 50, "it is another one");
        ensure!(client.ask_field::<i32>("whoami", "pid")? == pid, "another process");
    }
    std::fs::write(&file, "")?;
    for (worker, pid) in (0..).zip(pids) {
        let life = bed.wait_successor(worker, pid)?;
        ensure!(life.generation == 2, "{life:?}");
    }
    for client in &mut clients {
        client.expect("echo still there", "still there")?;
    }
    ensure!(most_away(&bed) == 1, "{} were away at once", most_away(&bed));
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn managers_killed(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 4).flag("reload-parallel", 2).flag("start-time", 20);
    let bed = launch.flag("max-request", 50).flag("max-request-grace", 0).start()?;
    let mut clients = one_for_each(&bed, 4)?;
    let load = Load::start(bed.address()?, 8)?;
    let mut rng = cx.rng();
    for round in 0..8 {
        // The next of them comes when it comes: what is to be met is any state at all.
        load.wait_more(rng.u64(1..2000))?;
        bed.replace_manager().with_context(|| format!("round {round}"))?;
        if rng.bool() {
            bed.signal_master(Signal::USR1)?;
        }
    }
    let generation = bed.lives().values().map(|life| life.generation).max().context("no workers")?;
    proc::until("later generations of all workers", PATIENCE, || {
        clients.iter_mut().try_for_each(|client| client.tell("hold")).ok()?;
        bed.lives().values().all(|life| life.generation > generation).then_some(())
    })?;
    load.finish_unharmed()?;
    let most = most_away(&bed);
    ensure!((1..=2).contains(&most), "{most} were away at once, of 2 that may");
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn max_memory(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("max-memory", "64M").start()?;
    let mut clients = one_for_each(&bed, 2)?;
    let sessions = [clients[0].session()?, clients[1].session()?];
    let pids = [0, 1].map(|worker| bed.lives()[&worker].pid);
    clients[0].expect("leak 16000000", "leaked 16000000")?;
    clients[1].expect("leak 100000000", "leaked 100000000")?;
    let pid = format!("(pid {})", pids[1]);
    let line = bed.log.wait_line(Source::Stderr, &["worker 1", &pid, "max_memory = 64.0 MiB"], PATIENCE)?;
    let words: Vec<&str> = line.text.split_whitespace().collect();
    let has = words.iter().position(|word| *word == "has").context("no figure")?;
    let figure: f64 = words[has + 1].parse()?;
    ensure!((95.0..150.0).contains(&figure) && words[has + 2] == "MiB", "{:?}", line.text);
    let life = bed.wait_successor(1, pids[1])?;
    ensure!(life.generation == 2, "{life:?}");
    for (client, session) in clients.iter_mut().zip(sessions) {
        ensure!(client.session()? == session, "another connection");
    }
    ensure!(clients[0].ask_field::<i32>("whoami", "pid")? == pids[0], "16 MB were too much");
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    // A manager that comes later looks, too.
    if !bed.is_base() {
        bed.replace_manager()?;
        clients[0].expect("leak 100000000", "leaked 100000000")?;
        bed.wait_successor(0, pids[0])?;
        ensure!(clients[0].ask_field::<u64>("whoami", "generation")? == 2, "not the successor");
    }
    bed.stop()?;
    Ok(())
}
