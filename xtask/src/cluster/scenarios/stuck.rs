//! Workers that do not get on: `request_slow_time`, `request_terminate_time`.

use crate::cluster::bed::PATIENCE;
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full("terminate_stuck", "a worker that is at one packet for too long is killed and replaced", terminate),
    full(
        "terminate_nobody_else",
        "idle workers, and those with many packets one after the other, are not",
        nobody_else,
    ),
    full("terminate_timer", "a worker that hangs at a timer is killed as well, and costs no packet", timer),
    full("slow_request", "the log tells once of a packet that takes long, and what its worker is at", slow),
    full("terminate_retry", "a packet that always takes too long is poison after its retries", retry)
        .in_process(),
];

fn terminate(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("request-terminate-time", 0.4).start()?;
    let mut stuck = bed.connect()?;
    let pid: i32 = stuck.ask_field("whoami", "pid")?;
    // Also one whom the packet wakes.
    proc::until_calm("the worker to sleep", &[pid])?;
    let begun = Instant::now();
    bed.occupy(&mut stuck, 100_000)?;
    stuck.expect_close()?;
    ensure!(begun.elapsed() >= Duration::from_millis(400), "after {:?} already", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(5), "only after {:?}", begun.elapsed());
    bed.log.wait_line(Source::Stderr, &["request_terminate_time", &format!("pid {pid}")], PATIENCE)?;
    ensure!(bed.wait_error(pid)? == "signal:9", "not killed");
    ensure!(bed.worker_errors()[0].ends_with("requests=1"), "{:?}", bed.worker_errors());
    bed.connect()?.expect("echo again", "again")?;
    bed.stop()?;
    Ok(())
}

fn timer(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("request-terminate-time", 0.4);
    let bed = launch.flag("request-slow-time", 0.2).start()?;
    let mut client = bed.connect()?;
    let pid: i32 = client.ask_field("whoami", "pid")?;
    client.expect("after 50 sleep 100000", "timer 1")?;
    bed.log.wait_line(
        Source::Stderr,
        &["a callback that belongs to no packet", "request_slow_time"],
        PATIENCE,
    )?;
    ensure!(bed.wait_error(pid)? == "signal:9", "not killed");
    ensure!(bed.worker_errors()[0].ends_with("requests=0"), "{:?}", bed.worker_errors());
    if !bed.is_base() {
        client.expect("echo unharmed", "unharmed")?;
    }
    bed.connect()?.expect("echo again", "again")?;
    bed.stop()?;
    Ok(())
}

fn nobody_else(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("request-terminate-time", 0.2).start()?;
    let mut client = bed.connect()?;
    // Several times as long as the limit, in packets that keep it.
    client.tell_all(&["sleep 50"; 20])?;
    let load = Load::start(bed.address()?, 4)?;
    for _ in 0..20 {
        client.expect_line("slept 50")?;
    }
    load.finish_unharmed()?;
    let begun = Instant::now();
    proc::until("idleness of three times the limit", PATIENCE, || {
        (begun.elapsed() > Duration::from_millis(600)).then_some(())
    })?;
    client.expect("echo still there", "still there")?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    Ok(())
}

fn retry(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("on-crash", "retry").flag("crash-retries", 1);
    let bed = launch.flag("request-terminate-time", 0.2).start()?;
    let (mut stuck, mut other) = (bed.connect()?, bed.connect()?);
    bed.occupy(&mut stuck, 100_000)?;
    other.tell("echo patience")?;
    stuck.expect_close()?;
    other.expect_line("patience")?;
    bed.log.wait_line(Source::Stderr, &["poison", "(attempt 2)"], PATIENCE)?;
    bed.log.wait_count("on_worker_error", 2, PATIENCE)?;
    bed.stop()?;
    Ok(())
}

fn slow(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("request-slow-time", 0.2).start()?;
    let mut client = bed.connect()?;
    let (session, pid): (String, i32) = (client.session()?, client.ask_field("whoami", "pid")?);
    for round in 1..=2 {
        if round == 2 && !bed.is_base() {
            // Another one has the program at other addresses.
            bed.replace_manager()?;
        }
        client.expect("sleep 1000", "slept 1000")?;
        let packet = format!("a packet of session {session} (10 bytes)");
        let told = |line: &&crate::cluster::log::Line| line.text.contains(&packet);
        bed.log.wait("a line for each slow packet", PATIENCE, |lines| {
            (lines.iter().filter(told).count() == round).then_some(())
        })?;
        // The C library's or the standard library's, and the program's own.
        for name in ["sleep (", "on_receive (", "obey ("] {
            bed.log.wait(&format!("{round} stacks with {name}"), PATIENCE, |lines| {
                (lines.iter().filter(|line| line.text.contains(name)).count() >= round).then_some(())
            })?;
        }
    }
    ensure!(client.ask_field::<i32>("whoami", "pid")? == pid, "another worker");
    bed.stop()?;
    Ok(())
}
