//! What a process has that somebody gets who takes it over: descriptors, and memory that is not its own.

use crate::cluster::bed::Bed;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use crate::cluster::scenarios::tasks::task_workers_of;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const WORKERS: usize = 3;
const TASK_WORKERS: usize = 2;
const REACTORS: usize = 2;
/// Bytes of a ring, which nothing else is mapped in.
const RING: u64 = 128 * 1024;
/// The memory of large tasks, which each process has that asks or works.
const LARGE_TASKS: (&str, usize) = ("/memfd:swoole-tasks (deleted)", 1);

/// What the descriptors above the standard streams stand for, copies of one counted once, those of the network left out.
fn kinds(pid: i32) -> Result<BTreeMap<String, usize>> {
    let dir = format!("/proc/{pid}/fd");
    let mut seen = BTreeSet::new();
    let network: BTreeSet<u64> = proc::tcp_rows().iter().map(|row| row.inode).collect();
    let is_network = |target: &str| {
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| network.contains(&inode))
    };
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
        let entry = entry?;
        let is_standard = entry.file_name().to_str().is_some_and(|fd| ["0", "1", "2"].contains(&fd));
        // The link of one that was closed meanwhile.
        let Some(target) = fs::read_link(entry.path()).ok().filter(|_| !is_standard) else { continue };
        let target = target.to_string_lossy().into_owned();
        if is_network(&target) {
            continue;
        }
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        let is_counted = matches!(kind.as_str(), "socket" | "pipe");
        if target.starts_with("anon_inode:") {
            // All of a kind have one inode: which ones are the same does not show.
            kinds.entry(target).or_insert(1);
        } else if !is_counted || seen.insert(target.clone()) {
            *kinds.entry(if is_counted { kind } else { target }).or_insert(0) += 1;
        }
    }
    Ok(kinds)
}

fn expected(kinds: &[(&str, usize)]) -> BTreeMap<String, usize> {
    kinds.iter().filter(|(_, count)| *count > 0).map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

/// Files that are mapped, and how many mappings of a ring's size there are.
fn mappings(pid: i32) -> Result<(BTreeSet<String>, usize)> {
    let (mut files, mut rings) = (BTreeSet::new(), 0);
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let Some(start) = line.find('/').or_else(|| line.find("anon_inode")) else { continue };
        let name = line[start..].trim().to_owned();
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).context("no range")?;
        let address = |hex: &str| u64::from_str_radix(hex, 16);
        let size = address(range.1)? - address(range.0)?;
        if name.starts_with("/memfd:") && (size == RING || size == RING + 4096) {
            rings += 1;
        }
        files.insert(name);
    }
    Ok((files, rings))
}

/// Sockets of the network in this process: listening ones, and clients'.
fn network(pid: i32) -> Result<(usize, usize)> {
    let own = proc::socket_inodes(pid)?;
    let rows: Vec<_> = proc::tcp_rows().into_iter().filter(|row| own.contains(&row.inode)).collect();
    let clients = rows.iter().filter(|row| row.established).count();
    Ok((rows.len() - clients, clients))
}

fn check(pid: i32, what: &str, wanted: &[(&str, usize)]) -> Result<()> {
    let (kinds, wanted) = (kinds(pid)?, expected(wanted));
    ensure!(kinds == wanted, "{what} holds {kinds:?} instead of {wanted:?}");
    Ok(())
}

pub(super) fn holdings(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", WORKERS).flag("task-worker-num", TASK_WORKERS);
    let bed = launch.flag("reactor-num", REACTORS).flag("ring-size", RING).start()?;
    let mut client = bed.connect_to_worker(0)?;
    client.expect("taskwait 5000 hello", "result HELLO")?;
    let lives = bed.lives();
    let worker = if bed.is_base() { check_base(cx, &bed)? } else { check_process(cx, &bed)? };
    for life in lives.values() {
        let (files, rings) = mappings(life.pid)?;
        // Each ring is mapped twice, back to back.
        let links = if cx.setup.ipc == Some("ring") { REACTORS } else { 0 };
        ensure!(rings == 4 * links, "worker {} has {rings} mappings of rings", life.pid);
        check_files(&bed, &files)?;
        check(life.pid, "a worker", &worker)?;
    }
    for pid in task_workers_of(&bed).into_values() {
        ensure!(network(pid)? == (0, 0), "a task worker holds sockets of the network");
        let (files, rings) = mappings(pid)?;
        ensure!(rings == 0, "a task worker has {rings} mappings of rings");
        check_files(&bed, &files)?;
        // Its own box, the others' ends to write to, and those of the reactors; in Base mode the workers are those.
        let reactors = if bed.is_base() { WORKERS } else { REACTORS };
        let boxes = 1 + WORKERS + TASK_WORKERS + if bed.is_base() { 0 } else { reactors };
        check(
            pid,
            "a task worker",
            &[
                ("anon_inode:[eventfd]", 1),
                ("anon_inode:[eventpoll]", 1),
                ("anon_inode:[signalfd]", 1),
                ("pipe", 1),
                ("socket", boxes),
                LARGE_TASKS,
            ],
        )?;
    }
    bed.stop().map(drop)
}

/// The program, its libraries, and the server's shared memory.
fn check_files(bed: &Bed, files: &BTreeSet<String>) -> Result<()> {
    let (program, _) = mappings(bed.ready.master)?;
    let strange: Vec<_> = files
        .iter()
        .filter(|file| !program.contains(*file) && !file.starts_with("/memfd:swoole"))
        .filter(|file| !(bed.is_base() && file.as_str() == "anon_inode:[io_uring]"))
        .collect();
    ensure!(strange.is_empty(), "mapped are {strange:?}");
    Ok(())
}

fn check_process(cx: &Cx, bed: &Bed) -> Result<Vec<(&'static str, usize)>> {
    for life in bed.lives().values() {
        ensure!(network(life.pid)? == (0, 0), "worker {} holds sockets of the network", life.pid);
    }
    let lanes = if cx.setup.ipc == Some("socketpair") { REACTORS } else { 0 };
    Ok(vec![
        ("anon_inode:[eventfd]", 1),
        ("anon_inode:[eventpoll]", 1),
        ("anon_inode:[signalfd]", 1),
        ("pipe", 1),
        // The post, the way of files to each reactor, and what leads to them.
        ("socket", 1 + WORKERS + TASK_WORKERS + REACTORS + lanes),
        LARGE_TASKS,
    ])
}

fn check_base(cx: &Cx, bed: &Bed) -> Result<Vec<(&'static str, usize)>> {
    for (worker, life) in bed.lives() {
        let (listening, clients) = network(life.pid)?;
        // The one client that is left is the first worker's.
        let own = usize::from(worker == 0);
        ensure!(
            (listening, clients) == (1, own),
            "worker {worker} holds {listening} listeners, {clients} clients"
        );
    }
    let is_uring = cx.setup.backend == "io_uring";
    Ok(vec![
        ("anon_inode:[eventfd]", 1),
        ("anon_inode:[eventpoll]", 1),
        ("anon_inode:[io_uring]", usize::from(is_uring)),
        ("anon_inode:[signalfd]", 1),
        ("pipe", 1),
        // The post, and both ends of what leads to its successor.
        ("socket", 1 + WORKERS + TASK_WORKERS + 2),
        LARGE_TASKS,
    ])
}
