//! The process tree, the order of callbacks, and what an idle server does: nothing.

use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full("shape", "master > manager > workers, their threads, and which sockets a worker holds", shape)
        .in_process(),
    full(
        "callback_order",
        "callbacks run in the documented order, in the documented process",
        callback_order,
    ),
    full("idle_costs_nothing", "an idle server makes no system call for five seconds", idle_costs_nothing),
];

/// Bytes of a ring, as no other part of shared memory has them.
const RING: u64 = 64 << 10;

fn shape(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).flag("reactor-num", 3).flag("ring-size", RING).start()?;
    let ready = &bed.ready;
    ensure!(ready.master == bed.pid(), "the master is not the process that was started");
    let tree: BTreeSet<i32> = proc::descendants(ready.master).into_iter().collect();
    let mut expected: BTreeSet<i32> = ready.workers.iter().copied().collect();
    expected.insert(ready.manager);
    ensure!(
        ready.workers.len() == 3 && expected.len() == 4,
        "the ready line does not name 3 workers: {ready:?}"
    );
    ensure!(tree == expected, "below the master are {tree:?} instead of {expected:?}");
    ensure!(
        proc::children(ready.master) == [ready.manager],
        "the master has other children than the manager"
    );
    let workers: BTreeSet<i32> = proc::children(ready.manager).into_iter().collect();
    ensure!(workers == ready.workers.iter().copied().collect(), "the manager's children are {workers:?}");

    let threads = proc::threads(ready.master)?;
    ensure!(
        threads.len() == 4,
        "the master has threads {threads:?} instead of its main thread and 3 reactors"
    );
    for &pid in &expected {
        let threads = proc::threads(pid)?;
        ensure!(threads.len() == 1, "process {pid} has threads {threads:?} instead of one");
    }

    let mut client = bed.connect()?;
    client.expect("echo hello", "hello")?;
    let network: BTreeSet<u64> =
        proc::tcp_rows().iter().map(|row| row.inode).filter(|inode| *inode != 0).collect();
    ensure!(!network.is_disjoint(&proc::socket_inodes(ready.master)?), "the master holds no TCP socket");
    for &pid in &expected {
        let held: Vec<u64> = proc::socket_inodes(pid)?.intersection(&network).copied().collect();
        ensure!(held.is_empty(), "process {pid} holds TCP sockets {held:?}");
    }
    uses_backend(cx, ready.master)?;
    // One for each way between it and each reactor.
    has_rings(cx, ready.workers[0], RING, 2 * 3)?;
    bed.stop()?;

    let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1);
    let bed = launch.flag("ring-size", 4 * RING).flag("ring-memory-max", 2 * RING).start()?;
    has_rings(cx, bed.ready.workers[0], RING, 2)?;
    bed.stop()?;
    Ok(())
}

/// A process that holds clients' connections waits for them in the way that is configured, and no thread of it in another.
pub(super) fn uses_backend(cx: &Cx, pid: i32) -> Result<()> {
    let files = proc::files(pid)?;
    let found = files.iter().any(|file| file.as_os_str() == "anon_inode:[io_uring]");
    ensure!(found == (cx.setup.backend == "io_uring"), "{}, and has {files:?}", cx.setup.backend);
    Ok(())
}

/// A worker has so many rings of so many bytes, or none where it has sockets instead.
fn has_rings(cx: &Cx, worker: i32, bytes: u64, count: usize) -> Result<()> {
    let found = proc::views(worker, bytes)?;
    let expected = if cx.setup.ipc == Some("ring") { count } else { 0 };
    ensure!(found == expected, "{found} rings of {bytes} bytes instead of {expected}");
    Ok(())
}

fn callback_order(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).start()?;
    bed.connect()?.expect("echo hello", "hello")?;
    let (log, ready) = (bed.log.clone(), format!("{:?}", bed.ready));
    let (master, manager) = (bed.ready.master.to_string(), bed.ready.manager.to_string());
    bed.stop()?;
    let lines = log.texts(Source::Stdout);
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    let expected = [
        "on_start",
        "on_manager_start",
        "on_worker_start",
        "on_worker_start",
        "on_worker_start",
        "ready",
        "on_before_shutdown",
        "on_worker_stop",
        "on_worker_stop",
        "on_worker_stop",
        "on_manager_stop",
        "on_shutdown",
    ];
    ensure!(names == expected, "callbacks came as {names:#?}");
    for line in &lines {
        let (role, pid) = match line.split(' ').next() {
            Some("on_start" | "on_before_shutdown" | "on_shutdown") => ("master", &master),
            Some("on_manager_start" | "on_manager_stop") => ("manager", &manager),
            _ => continue,
        };
        ensure!(field(line, role) == Some(pid.as_str()), "a callback ran elsewhere: {line:?}, {ready}");
    }
    Ok(())
}

fn idle_costs_nothing(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let mut clients = (0..50).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.expect("echo hello", "hello")?;
    }
    let mut pids = proc::descendants(bed.ready.master);
    pids.push(bed.ready.master);
    // What the traffic has started may take a moment to calm down, but has to.
    proc::until_calm("the server to calm down after traffic", &pids)?;
    let before = proc::activity(&pids)?;
    std::thread::sleep(Duration::from_secs(5));
    let after = proc::activity(&pids)?;
    ensure!(
        before == after,
        "(process, times it went to sleep, ticks) changed\nfrom {before:?}\nto   {after:?}"
    );
    clients[0].expect("echo still there", "still there")?;
    bed.stop()?;
    Ok(())
}
