//! Packets that wait for a worker, through reloads, retirements, stops and deaths: each of them is answered.

use crate::cluster::bed::{Bed, PATIENCE, Ready};
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, full, once};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use std::io::Write;

pub(super) static ALL: &[Scenario] = &[
    full("backlog_reload", "a reload in the middle of a long queue kills nobody and loses nothing", reload),
    full(
        "backlog_retire_then_stop",
        "a stop right after a worker has retired answers what that worker left",
        retire_then_stop,
    ),
    full(
        "backlog_crash_in_stop",
        "a worker that dies during the stop is replaced, and its queue is answered",
        crash,
    )
    .in_process(),
    full(
        "backlog_any_worker",
        "a stop where any worker will do answers what waits for any of them",
        any_worker,
    )
    .in_process(),
    full(
        "backlog_unread",
        "a stop answers what the kernel holds because the server has had no room for it",
        unread,
    )
    // Of the memory that the kernel has for sockets.
    .alone(),
    full("backlog_manager_death", "packets that come with the manager's death are answered", manager_death)
        .in_process(),
    full(
        "backlog_orphans",
        "idle workers whose manager has died still answer what comes before the master's stop",
        orphans,
    )
    .in_process(),
    once(
        "mass_death",
        "two hundred workers that die at once are all replaced, and the server stops",
        mass_death,
    ),
];

/// `count` packets in one go, all of which the server has accepted when this returns.
fn queue(bed: &Bed, client: &mut Client, count: usize) -> Result<()> {
    let packets: String = (0..count).map(|number| format!("echo {number}\n")).collect();
    client.send(packets.as_bytes())?;
    bed.wait_accepted(client)
}

fn expect_queue(client: &mut Client, count: usize) -> Result<()> {
    (0..count).try_for_each(|number| {
        client.expect_line(&number.to_string()).with_context(|| format!("packet {number} of {count}"))
    })
}

fn reload(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 1).start()?;
    let mut client = bed.connect()?;
    // Two seconds of work, twice what a worker may take to retire.
    let packets: String = (0..1000).map(|number| format!("sleep 2\necho {number}\n")).collect();
    client.send(packets.as_bytes())?;
    client.expect_line("slept 2")?;
    bed.signal_master(Signal::USR1)?;
    client.expect_line("0")?;
    for number in 1..1000 {
        client.expect_line("slept 2")?;
        client.expect_line(&number.to_string())?;
    }
    bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
    ensure!(bed.worker_errors().is_empty(), "a worker was killed");
    bed.stop()?;
    Ok(())
}

fn retire_then_stop(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 10).start()?;
    let (mut first, mut second) = (bed.connect()?, bed.connect()?);
    first.tell_all(&["sleep 300", "stop"])?;
    bed.wait_accepted(&first)?;
    queue(&bed, &mut second, 2000)?;
    bed.log.wait_count("on_worker_stop", 1, PATIENCE)?;
    bed.signal_master(Signal::TERM)?;
    expect_queue(&mut second, 2000)?;
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

fn crash(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 10).start()?;
    let (mut first, mut second) = (bed.connect()?, bed.connect()?);
    first.tell_all(&["sleep 300", "crash kill"])?;
    bed.wait_accepted(&first)?;
    queue(&bed, &mut second, 2000)?;
    bed.signal_master(Signal::TERM)?;
    expect_queue(&mut second, 2000)?;
    ensure!(bed.worker_errors().len() == 1, "the crash was not reported");
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

fn any_worker(cx: &Cx) -> Result<()> {
    let testbed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 1).flag("max-wait-time", 10);
    let mut bed = testbed.flag("dispatch-mode", "round_robin").flag("ring-size", 16384).start()?;
    let mut clients = (0..3).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let packets = "sleep 1\n".repeat(700);
    for client in &mut clients {
        client.send(packets.as_bytes())?;
    }
    for client in &mut clients {
        client.wait_read(bed.port()?)?;
    }
    bed.signal_master(Signal::TERM)?;
    for client in &mut clients {
        for _ in 0..700 {
            client.expect_line("slept 1")?;
        }
    }
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

/// Megabytes of packets, of which the kernel holds what the server has no room for.
fn unread(cx: &Cx) -> Result<()> {
    let testbed = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1);
    let mut bed = testbed.flag("max-wait-time", 20).start()?;
    let mut clients = (0..3).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        widen(client)?;
    }
    let packets: String = (0..1_000_000).map(|number| format!("echo {number}\n")).collect();
    bed.occupy(&mut clients[0], 1500)?;
    let mut arrived = Vec::new();
    for client in &mut clients {
        let bytes = client.fill(packets.as_bytes(), bed.port()?)?;
        arrived.push(packets[..bytes].matches('\n').count());
    }
    bed.signal_master(Signal::TERM)?;
    clients[0].expect_line("slept 1500")?;
    for (index, (client, count)) in clients.iter_mut().zip(arrived).enumerate() {
        expect_queue(client, count).with_context(|| format!("client {index}, {count} packets"))?;
    }
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

/// Has the server's kernel give the connection the large receive buffer that who sends much gets.
fn widen(client: &mut Client) -> Result<()> {
    const COUNT: usize = 80;
    let large = format!("echo {}\n", "x".repeat(60_000)).repeat(COUNT);
    for _ in 0..8 {
        let mut writer = client.writer()?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| writer.write_all(large.as_bytes()));
            client.exactly(COUNT * 60_001)?;
            sending.join().map_err(|_| anyhow!("the sender panicked"))?.context("send")
        })?;
    }
    Ok(())
}

fn manager_death(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut clients = [bed.connect()?, bed.connect()?];
    for client in &mut clients {
        client.expect("echo before", "before")?;
        client.send(b"sleep 100\necho after\n")?;
        client.wait_read(bed.port()?)?;
    }
    proc::signal(bed.ready.manager, Signal::KILL)?;
    for client in &mut clients {
        client.expect_line("slept 100")?;
        client.expect_line("after")?;
        client.expect("echo still there", "still there")?;
    }
    bed.stop()?;
    Ok(())
}

fn orphans(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut clients = [bed.connect_to_worker(0)?, bed.connect_to_worker(1)?];
    let Ready { master, manager, .. } = bed.ready;
    // The master sleeps over the death, so that the workers are the first to know.
    proc::halt(master)?;
    proc::signal(manager, Signal::KILL)?;
    let orphan = |pid: &i32| proc::stat(*pid).is_none_or(|stat| stat.parent != manager);
    proc::until("workers without a manager", PATIENCE, || {
        bed.ready.workers.iter().all(orphan).then_some(())
    })?;
    for client in &mut clients {
        client.tell("echo after")?;
    }
    bed.signal_master(Signal::CONT)?;
    for client in &mut clients {
        client.expect_line("after")?;
    }
    bed.wait_manager(manager)?;
    for client in &mut clients {
        client.expect("echo still there", "still there")?;
    }
    bed.stop()?;
    Ok(())
}

fn mass_death(cx: &Cx) -> Result<()> {
    let testbed = cx.testbed().flag("worker-num", 200).flag("reactor-num", 1).flag("ring-size", 16384);
    let bed = testbed.start()?;
    let before = proc::children(bed.ready.manager);
    ensure!(before.len() == 200, "{} workers", before.len());
    // So that it finds all of them dead at once.
    proc::halt(bed.ready.manager)?;
    for worker in &before {
        proc::signal(*worker, Signal::KILL)?;
    }
    proc::signal(bed.ready.manager, Signal::CONT)?;
    proc::until("200 new workers", PATIENCE, || {
        let now = proc::children(bed.ready.manager);
        (now.len() == 200 && !now.iter().any(|worker| before.contains(worker))).then_some(())
    })?;
    bed.connect()?.expect("echo alive", "alive")?;
    bed.stop()?;
    Ok(())
}
