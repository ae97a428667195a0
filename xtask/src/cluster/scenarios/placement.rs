//! Which core runs what, and how long it stays awake.

use crate::cluster::load::Load;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full(
        "open_cpu_affinity",
        "reactors and workers keep to one core each, and to all of them without the option",
        affinity,
    ),
    full(
        "busy_poll",
        "event loops that poll busily serve as others do, and sleep when there is no work",
        busy_poll,
    ),
];

/// The cores that each thread of a process may use, by the thread's name.
fn cores(pid: i32) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name} in {status:?}"))
        };
        found.push((field("Name:")?, field("Cpus_allowed_list:")?));
    }
    Ok(found)
}

fn affinity(cx: &Cx) -> Result<()> {
    let (_, all) = cores(std::process::id().cast_signed())?.into_iter().next().context("own cores")?;
    for pinned in [false, true] {
        let launch = cx.testbed().flag("worker-num", 3).flag("reactor-num", 2);
        let bed = launch.word(&format!("--open-cpu-affinity={pinned}")).start()?;
        // Under load, threads without the option go from core to core; it must not tie them to any.
        let load = Load::start(bed.address()?, 8)?;
        load.wait_more(20_000)?;
        load.finish()?;
        let mut pids = proc::descendants(bed.ready.master);
        pids.push(bed.ready.master);
        proc::until_calm("the threads to sleep", &pids)?;
        let mut threads: Vec<(String, String)> = Vec::new();
        for &worker in &bed.ready.workers {
            threads.extend(cores(worker)?);
        }
        let reactors = cores(bed.ready.master)?.into_iter().filter(|(name, _)| name.starts_with("reactor"));
        threads.extend(reactors);
        let expected = if cx.setup.is_base() { 3 } else { 5 };
        let threads: Vec<_> = threads.into_iter().filter(|(name, _)| !name.starts_with("iou-")).collect();
        ensure!(threads.len() == expected, "{threads:?}");
        for (name, cores) in &threads {
            let fits = if pinned { cores.parse::<usize>().is_ok() } else { *cores == all };
            ensure!(fits, "open_cpu_affinity = {pinned}, and {name} may use {cores} of {all}");
        }
        // One that takes a dead one's place keeps its core.
        let (worker, pid) = (0, bed.lives()[&0].pid);
        proc::signal(pid, rustix::process::Signal::KILL)?;
        let life = bed.wait_successor(worker, pid)?;
        for (name, cores) in cores(life.pid)? {
            ensure!(!pinned || cores.parse::<usize>().is_ok(), "{name} of the successor may use {cores}");
        }
        bed.stop()?;
    }
    Ok(())
}

fn busy_poll(cx: &Cx) -> Result<()> {
    let (without, mut with) = (sleeps_in_talk(cx, 0)?, Vec::new());
    // Where cores are scarce for a while, they take naps between looks.
    while with.len() < 5 {
        with.push(sleeps_in_talk(cx, 100_000)?);
        if with.iter().any(|with| *with < without / 2) {
            return Ok(());
        }
    }
    bail!("with busy_poll {with:?} sleeps, without it {without}")
}

/// How often its threads go to sleep while a server that has served several clients is asked by one, with breaks that are
/// short for who polls busily.
fn sleeps_in_talk(cx: &Cx, busy_poll: u32) -> Result<u64> {
    const BREAK: Duration = Duration::from_millis(2);
    let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1);
    let bed = launch.flag("busy-poll", busy_poll).start()?;
    let mut clients = (0..8).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for round in 0..50 {
        for client in &mut clients {
            client.expect(&format!("echo {round}"), &round.to_string())?;
        }
    }
    let mut pids = proc::descendants(bed.ready.master);
    pids.push(bed.ready.master);
    let sleeps = |pids: &[i32]| Ok::<u64, anyhow::Error>(proc::activity(pids)?.iter().map(|one| one.1).sum());
    let before = sleeps(&pids)?;
    for _ in 0..100 {
        clients[0].expect("echo again", "again")?;
        std::thread::sleep(BREAK);
    }
    let count = sleeps(&pids)? - before;
    if busy_poll > 0 {
        proc::until_calm("the event loops to go to sleep", &pids)?;
    }
    bed.stop()?;
    Ok(count)
}
