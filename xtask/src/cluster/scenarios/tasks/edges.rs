//! What happens to tasks at the edges: of a stop, of a sleep, of the memory.

use super::talk::Talk;
use super::{files_in, start, task_workers_of};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What takes longer has waited for something that it should not wait for.
const SOON: Duration = Duration::from_millis(600);
const MS: Duration = Duration::from_millis(1);

pub(super) fn none(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = Talk::begin(&bed)?;
    for packet in ["task x", "taskto 0 x", "taskwait 100 x", "taskall 100 x|y"] {
        client.expect(packet, "error: there are no task workers: task_worker_num = 0")?;
    }
    bed.signal_master(Signal::USR2)?;
    bed.log.wait_line(Source::Stderr, &["no task workers to reload"], PATIENCE)?;
    bed.stop().map(drop)
}

pub(super) fn death_in_stop(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("max-wait-time", "6")])?;
    let mut client = Talk::begin(&bed)?;
    let ids = ["sleep 300", "crash kill", "one"].map(|text| client.ask(&format!("task {text}")));
    let ids = ids.into_iter().collect::<Result<Vec<_>>>()?;
    bed.signal_master(Signal::TERM)?;
    let results = ["SLEEP 300", "error: the task worker that had begun it died", "ONE"].map(str::to_owned);
    client.expect_ends(ids.into_iter().zip(results))?;
    let took = bed.stop()?;
    ensure!(took < Duration::from_secs(3), "it took {took:?}");
    Ok(())
}

pub(super) fn manager_dies_in_stop(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("max-wait-time", "8")])?;
    let mut client = Talk::begin(&bed)?;
    // The worker asks for more whenever one is done, so the queue is empty now and then.
    client.client.tell("taskload 1 1500 10")?;
    proc::until("tasks to be done", PATIENCE, || {
        let mut other = Talk::begin(&bed).ok()?;
        (other.stat("task_done").ok()? > 10).then_some(())
    })?;
    bed.signal_master(Signal::TERM)?;
    bed.log.wait_line(Source::Stderr, &["Server is stopping"], PATIENCE)?;
    proc::signal(bed.manager().context("there is no manager")?, Signal::KILL)?;
    let line = client.client.line()?;
    ensure!(line.starts_with("tasks="), "{line:?}");
    let log = Arc::clone(&bed.log);
    bed.stop()?;
    let unfinished = log.texts(Source::Stderr).into_iter().find(|line| line.contains("unfinished"));
    ensure!(unfinished.is_none(), "{unfinished:?}");
    Ok(())
}

pub(super) fn idle_one_killed(cx: &Cx) -> Result<()> {
    let bed = start(cx, 2, &[("start-time", "1000")])?;
    let mut client = Talk::begin(&bed)?;
    let family: Vec<i32> = task_workers_of(&bed).into_values().collect();
    proc::until("the task workers to sleep", PATIENCE, || {
        let before = proc::activity(&family).ok()?;
        std::thread::sleep(Duration::from_millis(50));
        (proc::activity(&family).ok()? == before).then_some(())
    })?;
    // The one that is woken first.
    proc::signal(family[0], Signal::KILL)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_error task=0 "], PATIENCE)?;
    let begin = Instant::now();
    client.expect("taskwait 5000 x", "result X")?;
    ensure!(begin.elapsed() < SOON, "with the other one asleep, it took {:?}", begin.elapsed());
    bed.stop().map(drop)
}

pub(super) fn nothing_held_back(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
    let mut client = Talk::begin(&bed)?;
    // Fast ones and a slow one, in one go.
    let pid = task_workers_of(&bed)[&0];
    proc::halt(pid)?;
    let ids = ["a", "b", "sleep 1000"].map(|text| client.ask(&format!("task {text}")));
    let ids = ids.into_iter().collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    proc::signal(pid, Signal::CONT)?;
    client.expect_end(&ids[0], "A")?;
    client.expect_end(&ids[1], "B")?;
    ensure!(begin.elapsed() < SOON, "results took {:?}", begin.elapsed());
    client.expect_end(&ids[2], "SLEEP 1000")?;
    // Nor what was sent to clients before a worker waits.
    let begin = Instant::now();
    client.client.tell_all(&["echo hi", "taskwait 5000 sleep 1000"])?;
    let line = client.client.line()?;
    ensure!(line == "hi" && begin.elapsed() < SOON, "{line:?} took {:?}", begin.elapsed());
    let line = client.client.line()?;
    ensure!(line == "result SLEEP 1000", "{line:?}");
    bed.stop().map(drop)
}

/// Bytes that the server really has of the largest shared memory whose name begins so.
pub(super) fn shared_memory(bed: &Bed, name: &str) -> Result<u64> {
    let (dir, target) = (format!("/proc/{}/fd", bed.ready.manager), format!("/memfd:{name}"));
    let mut sizes = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|link| link.to_string_lossy().starts_with(&target)) {
            sizes.push(fs::metadata(&path)?.blocks() * 512);
        }
    }
    sizes.into_iter().max().context("no shared memory")
}

pub(super) fn memory(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("task-retries", "1"), ("task-queue-max", "65535")])?;
    let mut client = Talk::begin(&bed)?;
    client.expect("taskwait 5000 x", "result X")?;
    let before = shared_memory(&bed, "swoole")?;
    let pid = task_workers_of(&bed)[&0];
    let id = client.ask("task sleep 200")?;
    proc::until("the task to begin", PATIENCE, || proc::sleeps(pid).then_some(()))?;
    proc::signal(pid, Signal::KILL)?;
    client.expect_end(&id, "SLEEP 200")?;
    client.expect("taskwait 5000 x", "result X")?;
    let after = shared_memory(&bed, "swoole")?;
    ensure!(after < before + (4 << 20), "a death has made {before} bytes of shared memory {after}");
    bed.stop().map(drop)
}

pub(super) fn withdrawn(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("task-queue-max", "4")])?;
    let mut client = Talk::begin(&bed)?;
    let id = client.ask("task sleep 1000")?;
    for round in 0..20 {
        client.expect("taskwait 5 x", "error: timeout").with_context(|| format!("round {round}"))?;
    }
    client.expect_end(&id, "SLEEP 1000")?;
    client.expect("taskwait 5000 x", "result X")?;
    bed.stop().map(drop)
}

pub(super) fn left_result(cx: &Cx) -> Result<()> {
    for (retries, result) in [(0, "error: the task worker that had begun it died"), (1, "BIG")] {
        let launch = cx.testbed_breakpoints().flag("worker-num", 1).flag("task-worker-num", 1);
        let bed = launch.flag("task-tmpdir", cx.dir.display()).flag("task-retries", retries).start()?;
        let mut client = Talk::begin(&bed)?;
        let arm = client.ask("taskto 0 die_at task_result")?;
        client.expect_end(&arm, "DIE_AT TASK_RESULT")?;
        let id = client.ask("task big 100000")?;
        let result = if result == "BIG" { "X".repeat(100_000) } else { result.to_owned() };
        client.expect_end(&id, &result)?;
        let left = files_in(&cx.dir)?;
        ensure!(left.is_empty(), "with task_retries = {retries}: {left:?}");
        bed.stop()?;
    }
    Ok(())
}

pub(super) fn asked_at_the_end(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", 1).word("--ask-on-start");
    let launch = launch.flag("task-tmpdir", cx.dir.display()).flag("max-wait-time", 4);
    let bed = launch.flag("socket-buffer-size", "64M").start()?;
    let slow = {
        let mut client = bed.connect()?;
        client.tell("big 30000000")?;
        client
    };
    let worker = bed.lives()[&0].pid;
    proc::until("a reply that waits", PATIENCE, || slow.has_reply().unwrap_or(false).then_some(()))?;
    bed.signal_master(Signal::TERM)?;
    // Its last callback has asked for something, and a client still reads slowly: there is nothing to do but wait.
    bed.log.wait_line(Source::Stdout, &["said by=0 worker"], PATIENCE)?;
    let ticks = || proc::stat(worker).map(|stat| stat.ticks);
    let Some(before) = ticks() else { return Ok(()) };
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks().map_or(0, |after| after - before);
    ensure!(used < 30, "of 100 clock ticks a worker with nothing to do has used {used}");
    drop(slow);
    bed.stop().map(drop)
}

pub(super) fn queue_wait(cx: &Cx) -> Result<()> {
    let flags = [("task-queue-max", "2"), ("task-queue-wait", "1.5"), ("max-wait-time", "3")];
    let bed = start(cx, 1, &flags)?;
    let mut client = Talk::begin(&bed)?;
    let refusal = "error: ask for a task: 2 of this worker's are under way (task_queue_max)";
    for packet in ["task c", "taskto 0 c"] {
        let ids = ["sleep 300", "b"].map(|text| client.ask(&format!("task {text}")));
        // What was sent before does not wait.
        let (mut other, begin) = (Talk::begin(&bed)?, Instant::now());
        other.client.tell_all(&["echo hi", packet])?;
        ensure!(
            other.client.line()? == "hi" && begin.elapsed() < 250 * MS,
            "held back for {:?}",
            begin.elapsed()
        );
        let line = other.client.line()?;
        ensure!(begin.elapsed() > 250 * MS && begin.elapsed() < SOON, "{line:?} after {:?}", begin.elapsed());
        let id = line.strip_prefix("task ").with_context(|| line.clone())?;
        other.expect_end(id, "C")?;
        for (id, result) in ids.into_iter().zip(["SLEEP 300", "B"]) {
            client.expect_end(&id?, result)?;
        }
    }
    // More at once than there may be: the callback's own have to end.
    client.expect("taskall 5000 a|sleep 50|b|sleep 50|c", "results A|SLEEP 50|B|SLEEP 50|C")?;
    client.client.tell("taskload 8 300 10")?;
    let line = client.client.line()?;
    ensure!(line.starts_with("tasks="), "{line:?}");
    ensure!(client.stat("task_refused")? == 0, "one was refused");
    // In vain.
    let ids = ["sleep 2500", "b"].map(|text| client.ask(&format!("task {text}")));
    let begin = Instant::now();
    client.expect("task c", refusal)?;
    ensure!(begin.elapsed() >= 1500 * MS && begin.elapsed() < 2400 * MS, "after {:?}", begin.elapsed());
    let begin = Instant::now();
    client.expect("taskwait 200 c", refusal)?;
    ensure!(begin.elapsed() >= 200 * MS && begin.elapsed() < SOON, "after {:?}", begin.elapsed());
    for (id, result) in ids.into_iter().zip(["SLEEP 2500", "B"]) {
        client.expect_end(&id?, result)?;
    }
    // Task workers do not wait, for it would be for themselves.
    let begin = Instant::now();
    let id = client.ask("task asks 3 x")?;
    client.expect_end(&id, &format!("error: it failed: {}", refusal.trim_start_matches("error: ")))?;
    ensure!(begin.elapsed() < SOON, "a task worker waited for {:?}", begin.elapsed());
    // Nor does a stop wait for who waits.
    for text in ["sleep 60000", "b", "c"] {
        client.client.tell(&format!("task {text}"))?;
    }
    let took = bed.stop()?;
    ensure!(took < Duration::from_secs(5), "a stop took {took:?}");
    Ok(())
}
