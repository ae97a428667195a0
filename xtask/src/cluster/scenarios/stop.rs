//! Every way to end, on purpose or not.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::{load::Load, proc};
use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;
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
        "stop_twice_unread",
        "SIGINT ends at once a stop that waits for a client to read",
        stop_twice_unread,
    ),
    full("stop_early", "SIGTERM while workers are being forked: no start callback runs after it", stop_early),
    full(
        "stop_silent_client",
        "a client that neither reads nor leaves does not hold up the end",
        stop_silent_client,
    ),
    full(
        "stop_answers_connected",
        "who had connected before a stop, and was not accepted yet, is answered as well",
        stop_answers_connected,
    ),
    full(
        "stop_listen_first",
        "close_listen = first: who connects while a stop drains is refused",
        stop_listen_first,
    ),
    full(
        "stop_listen_last",
        "close_listen = last: who connects meanwhile is not refused, and gets its end with the server's",
        stop_listen_last,
    ),
    full(
        "stop_says_goodbye",
        "what on_worker_stop sends to clients when the server stops, they get",
        stop_says_goodbye,
    ),
    full("stop_says_progress", "a stop that takes long says what it waits for", stop_says_progress),
    full("kill_master", "kill -9 of the master: everybody is gone within a second", kill_master),
];

fn stop_answers_accepted(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 10).start()?;
    let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.tell_all(&["echo first", "sleep 200", "echo second", "big 1000000"])?;
        bed.wait_accepted(client)?;
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
    let errors = bed.worker_errors().len();
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

fn stop_answers_connected(cx: &Cx) -> Result<()> {
    const CLIENTS: usize = 200;
    for close_listen in ["first", "last"] {
        let launch = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 10);
        let mut bed = launch.flag("close-listen", close_listen).start()?;
        // All of them accept; then who would stands still.
        (0..2).try_for_each(|worker| bed.connect_to_worker(worker).map(drop))?;
        let holders = bed.holders();
        holders.iter().try_for_each(|pid| proc::halt(*pid))?;
        let mut clients = (0..CLIENTS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            client.tell("echo in time")?;
        }
        bed.signal_master(Signal::TERM)?;
        if bed.is_base() {
            bed.log.wait_line(Source::Stdout, &["on_before_shutdown"], PATIENCE)?;
        }
        holders.iter().try_for_each(|pid| proc::signal(*pid, Signal::CONT))?;
        for (index, client) in clients.iter_mut().enumerate() {
            client.expect_line("in time").with_context(|| format!("client {index}, {close_listen}"))?;
            client.expect_close()?;
        }
        let status = bed.wait_gone(PATIENCE)?;
        ensure!(status.code() == Some(0), "ended with {status}");
    }
    Ok(())
}

/// A stop that waits for a worker to wake up.
fn long_stop(cx: &Cx, close_listen: &str) -> Result<(Bed, Client)> {
    let launch = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20);
    let bed = launch.flag("close-listen", close_listen).start()?;
    let mut client = bed.connect()?;
    client.tell("reply 1500 slept")?;
    client.expect("echo there", "there")?;
    bed.signal_master(Signal::TERM)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_exit"], PATIENCE)?;
    Ok((bed, client))
}

fn stop_listen_first(cx: &Cx) -> Result<()> {
    let (mut bed, mut client) = long_stop(cx, "first")?;
    // An io_uring lets go of a socket when what it is at with it is over.
    let error = proc::until("a client to be refused", Duration::from_secs(1), || {
        bed.address().and_then(Client::connect).err()
    })?;
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "{error}");
    client.expect_line("slept")?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn stop_listen_last(cx: &Cx) -> Result<()> {
    let (mut bed, mut client) = long_stop(cx, "last")?;
    let mut late = Client::connect(bed.address()?).context("a client was refused")?;
    late.tell("echo nobody hears it")?;
    client.expect_line("slept")?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(late.line().is_err(), "somebody has answered");
    ensure!(Client::connect(bed.address()?).is_err(), "somebody listens after the end");
    Ok(())
}

fn stop_says_goodbye(cx: &Cx) -> Result<()> {
    const CLIENTS: usize = 50;
    let mut bed = cx.testbed().flag("worker-num", 3).flag("goodbye", "see you").start()?;
    let mut clients = (0..CLIENTS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.expect("echo there", "there")?;
    }
    // Who is replaced has a successor, and says nothing.
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
    for client in &mut clients {
        client.expect("echo still there", "still there")?;
    }
    bed.signal_master(Signal::TERM)?;
    for client in &mut clients {
        client.expect_line("see you")?;
        client.expect_close()?;
    }
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn stop_says_progress(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 20).start()?;
    let mut client = bed.connect_to_worker(1)?;
    client.expect("forget", "ok")?;
    bed.signal_master(Signal::TERM)?;
    bed.log.wait_line(Source::Stderr, &["it waits for workers [1] to leave", "18."], PATIENCE)?;
    bed.signal_master(Signal::INT)?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    if cx.setup.is_base() {
        return Ok(());
    }
    // Packets that are not answered, and clients that do not read.
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20).start()?;
    let mut client = bed.connect()?;
    bed.occupy(&mut client, 5000)?;
    let mut silent = Client::connect_small(bed.address()?)?;
    silent.tell("big 6000000")?;
    bed.wait_accepted(&silent)?;
    bed.signal_master(Signal::TERM)?;
    bed.log.wait_line(Source::Stderr, &["it waits for answers to packets"], PATIENCE)?;
    bed.log.wait_line(Source::Stderr, &["it waits for 1 clients to take"], PATIENCE)?;
    bed.signal_master(Signal::INT)?;
    bed.wait_gone(PATIENCE)?;
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

fn stop_twice_unread(cx: &Cx) -> Result<()> {
    // At once, and when only the client is waited for, which in Base mode is up to the workers.
    let last = if cx.setup.is_base() { "on_worker_stop" } else { "on_manager_stop" };
    for (first, moment) in [(Signal::TERM, "on_before_shutdown"), (Signal::INT, last)] {
        let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20).start()?;
        let mut silent = bed.connect()?;
        set_socket_recv_buffer_size(silent.writer()?, 8192)?;
        silent.tell("big 7000000")?;
        silent.wait_read(bed.port()?)?;
        // The only worker has done with the other packet before this one.
        bed.connect()?.expect("echo behind it", "behind it")?;
        bed.signal_master(first)?;
        bed.log.wait_line(Source::Stdout, &[moment], PATIENCE)?;
        let start = Instant::now();
        bed.signal_master(Signal::INT)?;
        bed.wait_gone(PATIENCE)?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(2), "SIGINT after {first:?} and {moment} took {took:?}");
    }
    Ok(())
}

fn stop_early(cx: &Cx) -> Result<()> {
    const WORKERS: usize = 200;
    // A manager that has forked everybody before we could look is too late for this: another one, then.
    for _ in 0..10 {
        let launch = cx.testbed().flag("worker-num", WORKERS).flag("reactor-num", 1);
        let mut process = launch.flag("ring-size", 16384).spawn()?;
        let manager = proc::until("a manager with a worker", PATIENCE, || {
            let child = *proc::children(process.pid()).first()?;
            let manager = if cx.setup.is_base() { process.pid() } else { child };
            (!proc::children(manager).is_empty()).then_some(manager)
        })?;
        proc::halt(manager)?;
        let early = proc::children(manager).len() < WORKERS;
        let start = Instant::now();
        proc::signal(process.pid(), Signal::TERM)?;
        if !cx.setup.is_base() {
            process.log.wait_line(Source::Stdout, &["on_before_shutdown"], PATIENCE)?;
        }
        proc::signal(manager, Signal::CONT)?;
        let status = process.wait_exit(PATIENCE)?;
        process.log.wait_end(Duration::from_secs(1))?;
        if early {
            ensure!(status.code() == Some(0), "ended with {status}");
            ensure!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
            let lines = process.log.texts(Source::Stdout);
            let began = lines.iter().find(|line| line.contains("_start ") || line.starts_with("ready"));
            ensure!(began.is_none(), "asked to stop before all workers were forked, yet {began:?}");
            return Ok(());
        }
    }
    bail!("ten managers have forked {WORKERS} workers each before they could be stopped")
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
pub(super) fn serves_again(cx: &Cx, port: u16) -> Result<()> {
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
