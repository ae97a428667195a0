//! A manager that dies: the server goes on, and gets another one.

use super::stop::serves_again;
use crate::cluster::bed::PATIENCE;
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full(
        "manager_killed",
        "kill -9 of the manager: the next one keeps the workers, and does its work",
        killed,
    )
    .in_process(),
    full("manager_killed_under_load", "managers and workers are killed: no request is lost", under_load)
        .in_process(),
    full(
        "manager_killed_in_reload",
        "a reload that its manager does not end is ended by the next",
        in_reload,
    )
    .in_process(),
    full(
        "manager_dies_with_workers",
        "packets wait until there is another manager, and workers",
        with_workers,
    )
    .in_process(),
    full(
        "manager_dies_at_start",
        "a manager that dies while the server starts ends it, with the reason",
        at_start,
    )
    .in_process(),
    full("manager_dies_in_drain", "workers are replaced in a stop whose manager has died", in_drain)
        .in_process(),
    full("manager_dies_in_stop", "workers leave in order, whenever in a stop their manager dies", in_stop)
        .in_process(),
    full("manager_dies_in_retirement", "a worker that its manager has asked to leave does", in_retirement)
        .in_process(),
    full("manager_kills_what_it_adopted", "a worker that was adopted and does not retire is killed", kills)
        .in_process(),
    once(
        "manager_cannot_start",
        "the server goes on while no manager comes to start, and gets one",
        cannot_start,
    )
    .in_process(),
    once(
        "manager_and_master_killed",
        "who was executed to be a manager starts no server of its own",
        with_master,
    )
    .in_process(),
    once("manager_and_workers_gone", "a stop ends when nobody is left to be stopped", nobody_left)
        .in_process(),
    full(
        "manager_dead_family_stopped",
        "a stop ends though its manager is dead, and somebody asks all workers to leave as well",
        family_stopped,
    )
    .in_process(),
    once(
        "manager_starting_workers",
        "a worker that has not started when its manager dies is replaced",
        starting,
    )
    .in_process(),
    once("manager_strays_are_reaped", "what workers have started and left behind leaves no zombie", strays)
        .in_process(),
];

fn family_stopped(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 2).start()?;
    // Whom the reactors wait for in the end.
    let mut silent = bed.connect()?;
    set_socket_recv_buffer_size(silent.writer()?, 8192)?;
    silent.tell("big 6000000")?;
    bed.wait_accepted(&silent)?;
    let load = Load::start(bed.address()?, 4)?;
    load.wait_more(100)?;
    let workers = bed.workers();
    proc::signal(bed.manager().context("there is no manager")?, Signal::KILL)?;
    bed.signal_master(Signal::TERM)?;
    for worker in workers {
        let _ = proc::signal(worker, Signal::TERM);
    }
    let begun = Instant::now();
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(begun.elapsed() < Duration::from_secs(6), "took {:?} of 2 s", begun.elapsed());
    // Their connections have ended in the middle of something.
    let _ = load.finish();
    Ok(())
}

fn killed(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut clients = [bed.connect_to_worker(0)?, bed.connect_to_worker(1)?];
    let sessions = [clients[0].session()?, clients[1].session()?];
    let before: BTreeSet<i32> = bed.workers().into_iter().collect();
    let manager = bed.replace_manager()?;
    bed.log.wait_line(Source::Stderr, &["new manager", &manager.to_string()], PATIENCE)?;
    ensure!(bed.workers().into_iter().collect::<BTreeSet<_>>() == before, "workers were replaced");

    // What a worker dies of is known, although its manager is not its parent.
    let pid = bed.lives()[&0].pid;
    proc::signal(pid, Signal::SEGV)?;
    let life = bed.wait_successor(0, pid)?;
    ensure!(bed.wait_error(pid)? == "signal:11" && life.generation == 2, "{life:?}");
    // That of its own child, too; and the next manager finds workers of both kinds.
    proc::signal(life.pid, Signal::KILL)?;
    let life = bed.wait_successor(0, life.pid)?;
    ensure!(life.generation == 3, "{life:?}");
    bed.replace_manager()?;
    bed.signal_master(Signal::USR1)?;
    for (worker, pid) in [(0, life.pid), (1, bed.ready.workers[1])] {
        bed.wait_successor(worker, pid)?;
    }
    bed.log.wait_line(Source::Stderr, &["has reloaded all workers"], PATIENCE)?;
    for (client, session) in clients.iter_mut().zip(sessions) {
        ensure!(client.session()? == session, "another connection");
    }
    let errors = bed.worker_errors();
    ensure!(errors.len() == 2, "{errors:?}");
    let port = bed.port()?;
    bed.stop()?;
    serves_again(cx, port)
}

fn under_load(cx: &Cx) -> Result<()> {
    let bed =
        cx.testbed().flag("worker-num", 2).flag("on-crash", "retry").flag("crash-retries", 100).start()?;
    let load = Load::start(bed.address()?, 6)?;
    let mut rng = cx.rng();
    for round in 0..8 {
        load.wait_more(rng.u64(1..2000))?;
        let manager = bed.manager().context("no manager")?;
        let worker = rng.choice(bed.workers());
        // Sometimes one first, sometimes the other.
        let victims = if rng.bool() { [Some(manager), worker] } else { [worker, Some(manager)] };
        for victim in victims.into_iter().flatten() {
            // A worker may just be on its way out.
            let _ = proc::signal(victim, Signal::KILL);
        }
        bed.wait_manager(manager).with_context(|| format!("round {round}"))?;
    }
    load.wait_more(2000)?;
    load.finish_unharmed()?;
    proc::until("two workers", PATIENCE, || (bed.workers().len() == 2).then_some(()))?;
    bed.stop()?;
    Ok(())
}

fn in_reload(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 4).start()?;
    let load = Load::start(bed.address()?, 4)?;
    let mut rng = cx.rng();
    for round in 0..4 {
        load.wait_more(rng.u64(1..500))?;
        let before: BTreeSet<i32> = bed.workers().into_iter().collect();
        let manager = bed.manager().context("no manager")?;
        bed.signal_master(Signal::USR1)?;
        pass_a_moment(&mut rng, 8000);
        proc::signal(manager, Signal::KILL)?;
        bed.wait_manager(manager)?;
        // One that the manager had no time to hear of was not begun.
        if !bed.log.texts(Source::Stderr).iter().any(|line| line.contains("is reloading")) {
            continue;
        }
        proc::until(&format!("four new workers, round {round}"), PATIENCE, || {
            let now: BTreeSet<i32> = bed.workers().into_iter().collect();
            (now.len() == 4 && (now.is_disjoint(&before) || now == before)).then_some(())
        })?;
    }
    load.wait_more(500)?;
    load.finish_unharmed()?;
    bed.stop()?;
    Ok(())
}

/// Lets at most so many microseconds pass, by chance, before the next harm: what is to be met is any state at all.
fn pass_a_moment(rng: &mut fastrand::Rng, most: u64) -> Duration {
    let moment = Duration::from_micros(rng.u64(0..most));
    std::thread::sleep(moment);
    moment
}

fn with_workers(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut clients = [bed.connect_to_worker(0)?, bed.connect_to_worker(1)?];
    let before = bed.workers();
    // The master learns of all deaths at once, in any order.
    proc::halt(bed.ready.master)?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    before.iter().try_for_each(|worker| proc::signal(*worker, Signal::KILL))?;
    for client in &mut clients {
        client.tell("echo waits")?;
    }
    bed.signal_master(Signal::CONT)?;
    for client in &mut clients {
        client.expect_line("waits")?;
    }
    for pid in before {
        ensure!(bed.wait_error(pid)? == "signal:9", "not told of pid {pid}");
    }
    bed.stop()?;
    Ok(())
}

fn at_start(cx: &Cx) -> Result<()> {
    let mut process = cx.testbed().flag("worker-num", 2).flag("hang-on-start", 0).spawn()?;
    let line = process.log.wait_line(Source::Stdout, &["on_manager_start"], PATIENCE)?;
    let manager: i32 = crate::cluster::log::field(&line.text, "manager").context("no pid")?.parse()?;
    proc::signal(manager, Signal::KILL)?;
    let status = process.wait_exit(PATIENCE)?;
    ensure!(status.code().is_some_and(|code| code != 0), "ended with {status}");
    process.log.wait_line(Source::Stderr, &["manager", &manager.to_string(), "died"], PATIENCE)?;
    Ok(())
}

fn in_drain(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20).flag("on-crash", "retry");
    let mut bed = launch.start()?;
    let mut client = bed.connect()?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    bed.occupy(&mut client, 300)?;
    client.tell("echo behind it")?;
    bed.wait_accepted(&client)?;
    bed.signal_master(Signal::TERM)?;
    bed.log.wait_line(Source::Stdout, &["on_before_shutdown"], PATIENCE)?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    proc::signal(pid, Signal::KILL)?;
    client.expect_line("slept 300")?;
    client.expect_line("behind it")?;
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

fn in_stop(cx: &Cx) -> Result<()> {
    let mut rng = cx.rng();
    for round in 0..6 {
        let mut bed = cx.testbed().flag("worker-num", 2).start()?;
        bed.connect()?.expect("echo hello", "hello")?;
        let before = bed.ready.manager;
        let (stop, kill) = (|| bed.signal_master(Signal::TERM), || proc::signal(before, Signal::KILL));
        // The one first or the other, and a moment between that is sometimes long enough for the manager's end.
        if round % 2 == 0 {
            stop()?
        } else {
            kill()?
        };
        let moment = pass_a_moment(&mut rng, 3000);
        // It may have ended in order by now.
        let _ = if round % 2 == 0 { kill() } else { stop() };
        let status = bed.wait_gone(PATIENCE)?;
        ensure!(status.success(), "round {round}, {moment:?} between: {status}");
    }
    Ok(())
}

fn in_retirement(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 20).start()?;
    let mut client = bed.connect_to_worker(0)?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    bed.occupy(&mut client, 700)?;
    // It hears of both at the same time, when it has done with the packet.
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_line(Source::Stderr, &["is reloading"], PATIENCE)?;
    bed.replace_manager()?;
    client.expect_line("slept 700")?;
    bed.wait_successor(0, pid)?;
    client.expect("echo after", "after")?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn kills(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 1).start()?;
    let mut client = bed.connect()?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    bed.replace_manager()?;
    bed.occupy(&mut client, 100_000)?;
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_line(Source::Stderr, &["had not finished", &format!("pid {pid}")], PATIENCE)?;
    bed.wait_successor(0, pid)?;
    client.expect_close()?;
    bed.connect()?.expect("echo after", "after")?;
    bed.stop()?;
    Ok(())
}

fn cannot_start(cx: &Cx) -> Result<()> {
    let file = cx.dir.join("server.toml");
    std::fs::write(&file, "worker_num = 2\n")?;
    let bed = cx.testbed().flag("config", file.display()).flag("on-crash", "retry").start()?;
    let mut client = bed.connect_to_worker(0)?;
    // The program does not come to run the server any more.
    std::fs::remove_file(&file)?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    bed.log.wait_line(Source::Stderr, &["managers have died 3 times in a row"], PATIENCE)?;
    client.expect("echo served", "served")?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    proc::signal(pid, Signal::KILL)?;
    client.tell("echo waits")?;
    std::fs::write(&file, "worker_num = 3\n")?;
    client.expect_line("waits")?;
    ensure!(bed.workers().len() == 2, "the running server's configuration holds, not the new one");
    bed.stop()?;
    Ok(())
}

/// No manager comes to start, all workers die, and the server is to stop.
fn nobody_left(cx: &Cx) -> Result<()> {
    let file = cx.dir.join("server.toml");
    std::fs::write(&file, "worker_num = 2\n")?;
    let bed = cx.testbed().flag("config", file.display()).start()?;
    std::fs::remove_file(&file)?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    // So many that the stop is over before the next try.
    bed.log.wait_line(Source::Stderr, &["managers have died 7 times in a row"], PATIENCE)?;
    for pid in bed.workers() {
        proc::signal(pid, Signal::KILL)?;
    }
    proc::until("the workers' end", PATIENCE, || bed.workers().is_empty().then_some(()))?;
    bed.stop()?;
    Ok(())
}

/// Whatever a worker is at, it serves once there is another manager, and no two do in one slot.
fn starting(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("hang-on-start", "0:2").start()?;
    let mut client = bed.connect_to_worker(0)?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    proc::signal(pid, Signal::KILL)?;
    let line = bed.log.wait_line(Source::Stderr, &["has a new process", "(generation 2)"], PATIENCE)?;
    let starts = line.text.split_once("pid ").and_then(|(_, rest)| rest.split(' ').next());
    let starts: i32 = starts.context("no pid")?.parse()?;
    let mut late = bed.connect()?;
    late.tell("echo late")?;
    bed.replace_manager()?;
    let serves = bed.wait_successor(0, pid)?;
    ensure!(serves.generation == 3, "{serves:?}");
    late.expect_line("late")?;
    ensure!(!proc::alive(starts), "it still starts");
    ensure!(bed.worker_errors().len() == 1, "it was no death: {:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn strays(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    let stray: i32 = client.ask_field("spawn 300", "pid")?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    proc::signal(pid, Signal::KILL)?;
    bed.wait_successor(0, pid)?;
    let parent = proc::stat(stray).context("it ended with its worker")?.parent;
    ensure!(parent == bed.ready.master, "its parent is {parent}");
    proc::until("the end of the stray", PATIENCE, || proc::stat(stray).is_none().then_some(()))?;
    bed.stop()?;
    Ok(())
}

/// The master is killed while it executes the program to have another manager.
fn with_master(cx: &Cx) -> Result<()> {
    for round in 0..30 {
        let bed = cx.testbed().flag("worker-num", 1).start()?;
        proc::signal(bed.manager().context("there is no manager")?, Signal::KILL)?;
        std::thread::sleep(Duration::from_micros(150 * round));
        bed.signal_master(Signal::KILL)?;
        drop(bed);
        proc::until("nobody to be left", PATIENCE, || {
            proc::reap_orphans();
            proc::descendants(proc::own_pid()).is_empty().then_some(())
        })
        .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
