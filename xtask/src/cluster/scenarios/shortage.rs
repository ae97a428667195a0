//! When the machine has no more of something: service goes on with what there is, and all is as before afterwards.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::disk::Disk;
use crate::cluster::drought::Drought;
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    backends(
        "descriptors_gone",
        "at the limit of descriptors clients are served as ever, new ones wait, and nobody is busy with that",
        descriptors_gone,
    ),
    full(
        "descriptors_gone_manager",
        "a manager that dies when the master has no descriptors leaves no worker that nobody knows of",
        descriptors_gone_manager,
    )
    .in_process(),
    full(
        "descriptors_gone_signal",
        "a worker that the master had no descriptor for hears of signals as soon as there are some",
        descriptors_gone_signal,
    )
    .in_process(),
    backends(
        "log_disk_full",
        "a log that cannot be written stops nothing, and goes on with whole lines when it can",
        log_disk_full,
    ),
    backends("log_file_size", "a log at the limit of file sizes ends no process", log_file_size),
];

fn descriptors_gone(cx: &Cx) -> Result<()> {
    /// How long it lasts, and clock ticks (10 ms) of it that whoever accepts may take.
    const LASTS: Duration = Duration::from_secs(2);
    const TICKS: u64 = 20;
    const CONNECTIONS: usize = 16;
    let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1);
    let bed = launch.flag("max-connection", CONNECTIONS).start()?;
    let mut client = bed.connect()?;
    client.expect("echo before", "before")?;
    // An accept that io_uring waits in keeps the limit that there was when it began: this one has to begin anew.
    let crowd = (0..CONNECTIONS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    bed.log.wait_line(Source::Stderr, &["max_connection", "wait"], PATIENCE)?;
    let holder = bed.holders()[0];
    let ticks = || Ok::<_, anyhow::Error>(proc::stat(holder).context("who accepts is gone")?.ticks);
    let drought = Drought::begin_severe(&bed, holder)?;
    drop(crowd);
    bed.log.wait_line(Source::Stderr, &["accept", "open files"], PATIENCE)?;
    let (begun, before) = (Instant::now(), ticks()?);
    while begun.elapsed() < LASTS {
        client.expect("sleep 100", "slept 100")?;
    }
    let took = ticks()? - before;
    ensure!(took < TICKS, "{took} ticks in {LASTS:?} in which nobody could be accepted");
    let told = bed.log.texts(Source::Stderr);
    let told = told.iter().filter(|line| line.contains("accept: ")).count();
    ensure!(told == 1, "said {told} times in {LASTS:?} that nobody can be accepted");
    drought.end(&bed)?;
    bed.log.wait_line(Source::Stderr, &["accepted again"], PATIENCE)?;
    client.expect("echo after", "after")?;
    bed.connect()?.expect("echo another", "another")?;
    bed.stop()?;
    Ok(())
}

fn descriptors_gone_manager(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("on-crash", "retry");
    let bed = launch.flag("crash-retries", 10).start()?;
    let load = Load::start(bed.address()?, 6)?;
    load.wait_more(1000)?;
    let drought = Drought::begin_severe(&bed, bed.ready.master)?;
    // The master hears of a successor now, and has no descriptor for it.
    let first = bed.lives()[&0].pid;
    proc::signal(first, Signal::KILL)?;
    bed.wait_successor(0, first)?;
    load.wait_more(1000)?;
    let manager = bed.manager().context("there is no manager")?;
    let before = bed.workers();
    proc::signal(manager, Signal::KILL)?;
    bed.log.wait_line(Source::Stderr, &["start another manager", "open files"], PATIENCE)?;
    drought.end(&bed)?;
    bed.wait_manager(manager)?;
    load.wait_more(1000)?;
    load.finish_unharmed()?;
    proc::until("two workers, with or without a descriptor", PATIENCE, || {
        (bed.workers().len() == 2).then_some(())
    })?;
    let lies = bed.log.texts(Source::Stderr);
    let lies: Vec<_> = lies.iter().filter(|line| line.contains("cannot be true")).collect();
    ensure!(lies.is_empty(), "of the workers {before:?} some had lost their links: {lies:?}");
    bed.stop()?;
    Ok(())
}

fn descriptors_gone_signal(cx: &Cx) -> Result<()> {
    let log = cx.dir.join("log");
    let bed = cx.testbed().flag("worker-num", 1).flag("log-file", log.display()).start()?;
    let mut client = bed.connect()?;
    client.expect("echo before", "before")?;
    let drought = Drought::begin_severe(&bed, bed.ready.master)?;
    let first = bed.lives()[&0].pid;
    proc::signal(first, Signal::KILL)?;
    let worker = bed.wait_successor(0, first)?.pid;
    client.expect("echo served", "served")?;
    drought.end(&bed)?;
    fs::rename(&log, cx.dir.join("log.1"))?;
    bed.signal_master(Signal::HUP)?;
    proc::until("the worker to write to the new log", PATIENCE, || {
        proc::files(worker).ok()?.contains(&log).then_some(())
    })?;
    bed.stop()?;
    Ok(())
}

/// Kills a worker, which the log tells of, and waits for the next one.
fn lose_worker(bed: &Bed) -> Result<()> {
    let worker = bed.lives()[&0].pid;
    proc::signal(worker, Signal::KILL)?;
    bed.wait_error(worker)?;
    bed.wait_successor(0, worker)?;
    bed.connect()?.expect("echo again", "again")
}

fn log_disk_full(cx: &Cx) -> Result<()> {
    let disk = Disk::mount(cx)?;
    if !disk.is_small() {
        return Ok(());
    }
    let launch = cx.testbed().flag("worker-num", 1).flag("log-level", "debug");
    let bed = launch.flag("log-file", disk.file("log").display()).start()?;
    disk.fill()?;
    // What is left of the file's last page takes some lines, and a part of one.
    let size = || disk.read("log").len();
    let full = loop {
        let before = size();
        lose_worker(&bed).context("while the disk is full")?;
        if size() == before {
            break before;
        }
    };
    disk.clear()?;
    lose_worker(&bed).context("when there is room again")?;
    bed.stop()?;
    let log = disk.read("log");
    let (before, later) = log.split_at(full);
    ensure!(later.contains("died: signal:9"), "the log does not go on: {later:?}");
    ensure!(
        before.ends_with('\n') || later.starts_with('\n'),
        "a line begins in a line that was cut: {later:?}"
    );
    Ok(())
}

fn log_file_size(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("log");
    // A log of some days: the limit is beyond whatever else is written.
    fs::write(&path, vec![b'\n'; 1 << 20])?;
    let bed = cx.testbed().flag("worker-num", 1).flag("log-file", path.display()).start()?;
    lose_worker(&bed)?;
    let size = fs::metadata(&path)?.len();
    for pid in [proc::descendants(bed.ready.master), vec![bed.ready.master]].concat() {
        proc::limit_file_size(pid, Some(size))?;
    }
    lose_worker(&bed).context("at the limit of file sizes")?;
    if !bed.is_base() {
        bed.replace_manager()?;
    }
    lose_worker(&bed).context("at the limit of file sizes")?;
    ensure!(fs::metadata(&path)?.len() == size, "the log has grown beyond its limit");
    bed.stop()?;
    Ok(())
}
