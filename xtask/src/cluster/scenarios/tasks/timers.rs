//! Timers of task workers.

use super::talk::Talk;
use super::{start, task_workers_of, wait_task_worker};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::log::{Line, Source};
use crate::cluster::matrix::Cx;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

/// Sets a timer of task worker 0's by this text: its line, up to the timer's text.
fn set(client: &mut Talk, text: &str) -> Result<String> {
    let id = client.ask(&format!("taskto 0 {text}"))?;
    let end = client.end()?;
    let timer =
        end.strip_prefix(&format!("finish {id} timer ")).with_context(|| format!("{text:?}: {end:?}"))?;
    Ok(format!("timer task=0 {timer} "))
}

/// Waits for so many lines of this timer.
fn wait_for(bed: &Bed, timer: &str, count: usize) -> Result<Vec<Line>> {
    bed.log.wait_count(timer, count, PATIENCE)
}

pub(super) fn timers(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("max-timer", "3")])?;
    let mut client = Talk::begin(&bed)?;
    let begin = Instant::now();
    let late = set(&mut client, "after 300 late")?;
    let soon = set(&mut client, "after 100 say soon")?;
    set(&mut client, "after 200 never")?;
    let id = client.ask("task after 1 one more")?;
    client.expect_end(&id, "error: it failed: set a timer: 3 are set already (max_timer)")?;
    let id = client.ask("task clear 3")?;
    client.expect_end(&id, "ok")?;
    let lines = [wait_for(&bed, &soon, 1)?, wait_for(&bed, &late, 1)?].concat();
    for (line, delay) in lines.iter().zip([100 * MS, 300 * MS]) {
        ensure!(line.at - begin >= delay, "{:?} came after {:?}", line.text, line.at - begin);
    }
    bed.log.wait_line(Source::Stdout, &["said by=0 soon"], PATIENCE)?;
    ensure!(bed.count("timer task=0 3 ") == 0, "one came that was cleared");
    let id = client.ask("task clear 3")?;
    client.expect_end(&id, "error: it failed: no such timer")?;
    let id = client.ask("task tick 0 1 x")?;
    client.expect_end(&id, "error: it failed: set a timer: 0ns is no time for it: must be at most ten years, and for a tick more than nothing")?;
    // Each takes half its period, which the next one does not wait for.
    let begin = Instant::now();
    let ticks = wait_for(&bed, &set(&mut client, "tick 40 25 sleep 20")?, 25)?;
    let took = ticks[24].at - begin;
    ensure!(took >= 1000 * MS, "25 ticks of 40 ms came within {took:?}");
    ensure!(took < 1250 * MS, "25 ticks of 40 ms, each busy for 20 ms, took {took:?}");
    // Ten are due while it is at a task.
    let before = wait_for(&bed, &set(&mut client, "tick 50 1000 x")?, 1)?;
    let id = client.ask("task sleep 500")?;
    let name = client.ask(&format!("task clear {}", before[0].text.split(' ').nth(2).context("no id")?))?;
    client.expect_end(&id, "SLEEP 500")?;
    client.expect_end(&name, "ok")?;
    let slept = before[0].text.split_inclusive(' ').take(3).collect::<String>();
    let after = bed.count(&slept);
    ensure!(after <= 3, "{after} ticks of 50 ms while the task worker slept for 500 ms");
    bed.stop().map(drop)
}

pub(super) fn amid_tasks(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
    let mut client = Talk::begin(&bed)?;
    let (mut load, begin) = (bed.connect()?, Instant::now());
    load.tell("taskload 32 1500 64")?;
    let ticks = wait_for(&bed, &set(&mut client, "tick 20 50 x")?, 50)?;
    let took = ticks[49].at - begin;
    ensure!(took >= 1000 * MS && took < 1490 * MS, "50 ticks of 20 ms amid tasks took {took:?}");
    let line = load.line()?;
    ensure!(line.starts_with("tasks="), "{line:?}");
    // Nor do tasks wait for timers that are always due.
    set(&mut client, "tick 1 1000000 sleep 5")?;
    for text in ["a", "b", "c"] {
        client.expect(&format!("taskwait 5000 {text}"), &format!("result {}", text.to_uppercase()))?;
    }
    let pid = task_workers_of(&bed)[&0];
    bed.signal_master(Signal::USR2)?;
    wait_task_worker(&bed, 0, pid)?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop().map(drop)
}

pub(super) fn dies(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
    let mut client = Talk::begin(&bed)?;
    for how in ["panic", "segv"] {
        let pid = task_workers_of(&bed)[&0];
        set(&mut client, &format!("after 50 crash {how}"))?;
        let line = bed.log.wait_line(
            Source::Stdout,
            &["on_worker_error task=0", &format!("pid={pid} "), "tasks="],
            PATIENCE,
        )?;
        ensure!(line.text.ends_with("tasks="), "it has cost a task: {:?}", line.text);
        client.expect("taskwait 5000 on", "result ON")?;
    }
    ensure!(client.stat("task_lost")? == 0, "a task is lost");
    bed.stop().map(drop)
}

pub(super) fn drain(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("max-wait-time", "20")])?;
    let mut client = Talk::begin(&bed)?;
    let pid = task_workers_of(&bed)[&0];
    let once = set(&mut client, "after 700 say done")?;
    set(&mut client, "tick 60000 9 x")?;
    bed.signal_master(Signal::USR2)?;
    let exit = format!("on_worker_exit task=0 pid={pid} ");
    bed.log.wait_line(Source::Stdout, &[&exit, "timers=1 ticks=1"], PATIENCE)?;
    // It is the successor's.
    let id = client.ask("task whoami")?;
    wait_for(&bed, &once, 1)?;
    let after = wait_task_worker(&bed, 0, pid)?;
    client.expect_end(&id, &format!("task=0 pid={after} generation=2"))?;
    let asked = bed.count(&exit);
    ensure!(asked >= 3, "asked {asked} times in 0.7 s");
    bed.log.wait_line(Source::Stdout, &["said by=0 done"], PATIENCE)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_stop task=0", &format!("pid={pid}")], PATIENCE)?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop().map(drop)
}

pub(super) fn drain_stop(cx: &Cx) -> Result<()> {
    let bed = start(cx, 2, &[("max-wait-time", "20")])?;
    let mut client = Talk::begin(&bed)?;
    // What a timer asks for is done, too, and there is nobody else to do it.
    set(&mut client, "after 600 ask say the end")?;
    let log = Arc::clone(&bed.log);
    bed.stop()?;
    log.wait_line(Source::Stdout, &["said by=0 the end"], PATIENCE)?;
    let errors = log.texts(Source::Stderr).into_iter().filter(|line| line.contains("not done")).count();
    ensure!(errors == 0, "tasks are left");
    Ok(())
}

pub(super) fn drain_bound(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("max-wait-time", "1")])?;
    let mut client = Talk::begin(&bed)?;
    set(&mut client, "after 60000 x")?;
    let pid = task_workers_of(&bed)[&0];
    let begin = Instant::now();
    bed.signal_master(Signal::USR2)?;
    wait_task_worker(&bed, 0, pid)?;
    ensure!(begin.elapsed() >= 700 * MS, "it was not patient: {:?} of 1 s", begin.elapsed());
    bed.log.wait_line(Source::Stderr, &["task worker 0 leaves", "max_wait_time", "1 timer"], PATIENCE)?;
    set(&mut client, "after 60000 x")?;
    let log = Arc::clone(&bed.log);
    let took = bed.stop()?;
    ensure!(took < Duration::from_secs(3), "a stop took {took:?}");
    let stops =
        log.texts(Source::Stdout).iter().filter(|line| line.starts_with("on_worker_stop task=0")).count();
    ensure!(stops == 2, "{stops} of 2 have left in order");
    Ok(())
}
