//! Every way to end, on purpose or not.

use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::{bed::PATIENCE, load::Load, proc};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full(
        "stop_answers_accepted",
        "SIGTERM under load: what was accepted is answered, exit code 0",
        stop_answers_accepted,
    ),
    full("stop_under_load", "SIGTERM amid traffic ends in order, within max_wait_time", stop_under_load),
    full(
        "stop_stuck_worker",
        "a worker blocked for ever is killed at max_wait_time, and the log says so",
        stop_stuck_worker,
    ),
    full("stop_second_signal", "SIGINT stops in order, a second one at once", stop_second_signal),
    full(
        "stop_silent_client",
        "a client that neither reads nor leaves does not hold up the end",
        stop_silent_client,
    ),
    full("kill_master", "kill -9 of the master: everybody is gone within a second", kill_master),
    full("kill_manager", "kill -9 of the manager: the master ends in order and says why", kill_manager),
];

fn stop_answers_accepted(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 10).start()?;
    let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.tell_all(&["echo first", "sleep 200", "echo second", "big 1000000"])?;
        client.wait_read(bed.port()?)?;
    }
    bed.signal_master(Signal::TERM)?;
    for (index, client) in clients.iter_mut().enumerate() {
        let rest = client.drain(PATIENCE).with_context(|| format!("client {index}"))?;
        let expected = format!("first\nslept 200\nsecond\n{}\n", "x".repeat(1_000_000));
        ensure!(
            rest == expected.as_bytes(),
            "client {index} got {} bytes instead of {}",
            rest.len(),
            expected.len()
        );
    }
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    let errors =
        bed.log.texts(Source::Stdout).iter().filter(|line| line.starts_with("on_worker_error")).count();
    ensure!(errors == 0, "{errors} workers did not retire but die");
    Ok(())
}

fn stop_under_load(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 5).start()?;
    let load = Load::start(bed.address()?, 6)?;
    load.wait_more(500)?;
    let start = Instant::now();
    bed.signal_master(Signal::TERM)?;
    let status = bed.wait_gone(Duration::from_secs(10))?;
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(
        start.elapsed() < Duration::from_secs(6),
        "took {:?} with a max_wait_time of 5 s",
        start.elapsed()
    );
    // The clients' connections have ended in the middle of something: that is no failure here.
    let _ = load.finish();
    Ok(())
}

fn stop_stuck_worker(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 1).start()?;
    let mut client = bed.connect()?;
    bed.occupy(&mut client, 100_000)?;
    let start = Instant::now();
    bed.signal_master(Signal::TERM)?;
    let status = bed.wait_gone(Duration::from_secs(10))?;
    let took = start.elapsed();
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(took >= Duration::from_millis(900), "was not patient: {took:?} with a max_wait_time of 1 s");
    ensure!(took < Duration::from_secs(4), "took {took:?} with a max_wait_time of 1 s");
    bed.log.wait_line(Source::Stderr, &["kill", "max_wait_time"], Duration::from_secs(1))?;
    Ok(())
}

fn stop_second_signal(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).start()?;
    bed.signal_master(Signal::INT)?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "SIGINT ended it with {status}");

    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 60).start()?;
    let mut client = bed.connect()?;
    bed.occupy(&mut client, 100_000)?;
    bed.signal_master(Signal::INT)?;
    bed.log.wait_line(Source::Stdout, &["on_before_shutdown"], PATIENCE)?;
    let start = Instant::now();
    bed.signal_master(Signal::INT)?;
    bed.wait_gone(Duration::from_secs(5))?;
    ensure!(start.elapsed() < Duration::from_secs(2), "the second SIGINT took {:?}", start.elapsed());
    Ok(())
}

fn stop_silent_client(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 1).start()?;
    let mut silent = bed.connect()?;
    silent.tell("big 6000000")?;
    let mut idle = bed.connect()?;
    idle.expect("echo hello", "hello")?;
    silent.wait_read(bed.port()?)?;
    let took = bed.stop()?;
    ensure!(took < Duration::from_secs(5), "took {took:?} with a max_wait_time of 1 s");
    Ok(())
}

/// Starts another server on the port of one that has ended, at once, and lets it serve.
fn serves_again(cx: &Cx, port: u16) -> Result<()> {
    let bed = cx.testbed_bare().flag("listen", format!("tcp://127.0.0.1:{port}")).start()?;
    bed.connect()?.expect("echo again", "again")?;
    bed.stop()?;
    Ok(())
}

fn kill_master(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 3).start()?;
    let port = bed.port()?;
    let mut client = bed.connect()?;
    // Whoever is busy has to go as well.
    bed.occupy(&mut client, 100_000)?;
    bed.signal_master(Signal::KILL)?;
    bed.wait_gone(Duration::from_secs(2))?;
    client.expect_close()?;
    serves_again(cx, port)
}

fn kill_manager(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 3).start()?;
    let port = bed.port()?;
    let mut clients = (0..10).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.expect("echo hello", "hello")?;
    }
    proc::signal(bed.ready.manager, Signal::KILL)?;
    let status = bed.wait_gone(Duration::from_secs(5))?;
    ensure!(
        status.code().is_some_and(|code| code != 0),
        "ended with {status}, not with an exit code that says so"
    );
    bed.log.wait_line(
        Source::Stderr,
        &["manager", &bed.ready.manager.to_string()],
        Duration::from_secs(1),
    )?;
    bed.log.wait_line(Source::Stdout, &["on_shutdown"], Duration::from_secs(1))?;
    serves_again(cx, port)
}
