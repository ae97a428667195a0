//! Timers, and workers that leave when they have finished what they have begun.

use crate::cluster::bed::PATIENCE;
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full("timers", "timers come once, ticks again and again, in their order, and never early", timers),
    full("timers_amid_packets", "timers come while packets keep the workers busy", timers_amid_packets),
    full("ticks_do_not_drift", "ticks come in time, however long their callbacks take", ticks_do_not_drift),
    full("ticks_do_not_pile_up", "ticks that a worker slept through come once", ticks_do_not_pile_up),
    full(
        "timer_limit",
        "max_timer: one more is an error, and there is room again when one has ended",
        timer_limit,
    ),
    full(
        "drain_retire",
        "a worker that is to leave finishes its timers and replies first, asked again and again",
        drain_retire,
    ),
    full(
        "drain_bound",
        "and leaves at the end of its time all the same: the log says what was alive",
        drain_bound,
    ),
    full("drain_stop", "a stop waits for open replies, too, and clients get them", drain_stop),
    full("drain_stop_bound", "but no longer than max_wait_time", drain_stop_bound),
    full(
        "drain_amid_stop",
        "a stop shortens the drain of who was leaving already, and its successor answers",
        drain_amid_stop,
    ),
    full(
        "drain_is_not_stuck",
        "who waits for its work to end is not at one thing for too long",
        drain_is_not_stuck,
    ),
    full(
        "timers_without_end",
        "timers that are always due keep no worker from leaving in order",
        timers_without_end,
    ),
    full("drain_killed", "a worker that dies on its way out leaves the slot to a successor", drain_killed),
];

fn timers(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    let begin = Instant::now();
    client.expect("after 300 late", "timer 1")?;
    client.expect("after 100 soon", "timer 2")?;
    client.expect("after 200 never", "timer 3")?;
    client.expect("clear 3", "ok")?;
    client.expect("clear 3", "error: no such timer")?;
    client.expect_line("timer 2 soon")?;
    ensure!(begin.elapsed() >= Duration::from_millis(100), "came after {:?} of 100 ms", begin.elapsed());
    client.expect_line("timer 1 late")?;
    ensure!(begin.elapsed() >= Duration::from_millis(300), "came after {:?} of 300 ms", begin.elapsed());
    let begin = Instant::now();
    client.expect("tick 20 10 again", "timer 4")?;
    for _ in 0..10 {
        client.expect_line("timer 4 again")?;
    }
    ensure!(begin.elapsed() >= Duration::from_millis(200), "ten of 20 ms took {:?}", begin.elapsed());
    client.expect("clear 4", "error: no such timer")?;
    client.expect("tick 0 1 none", "error: set a timer: 0ns is no time for it: must be at most ten years, and for a tick more than nothing")?;
    bed.stop()?;
    Ok(())
}

fn timers_amid_packets(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let load = Load::start(bed.address()?, 6)?;
    let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let mut names = Vec::new();
    for client in &mut clients {
        client.tell("tick 10 30 t")?;
        names.push(client.line()?);
    }
    for (client, name) in clients.iter_mut().zip(&names) {
        for _ in 0..30 {
            client.expect_line(&format!("{name} t"))?;
        }
        client.expect("echo last", "last")?;
    }
    load.finish_unharmed()?;
    bed.stop()?;
    Ok(())
}

fn ticks_do_not_drift(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    let begin = Instant::now();
    client.expect("tick 40 25 sleep 20", "timer 1")?;
    for _ in 0..25 {
        client.expect_line("timer 1 sleep 20")?;
    }
    let took = begin.elapsed();
    ensure!(took >= Duration::from_millis(1000), "25 ticks of 40 ms came within {took:?}");
    ensure!(took < Duration::from_millis(1250), "25 ticks of 40 ms, each busy for 20 ms, took {took:?}");
    bed.stop()?;
    Ok(())
}

fn ticks_do_not_pile_up(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    client.expect("tick 50 1000 t", "timer 1")?;
    client.tell_all(&["sleep 500", "clear 1", "echo end"])?;
    let (mut before, mut after, mut slept) = (0, 0, false);
    loop {
        match client.line()?.as_str() {
            "timer 1 t" if slept => after += 1,
            "timer 1 t" => before += 1,
            "slept 500" => slept = true,
            "ok" => {}
            "end" => break,
            other => anyhow::bail!("got {other:?}"),
        }
    }
    // Ten were due meanwhile.
    ensure!(after <= 1, "{after} ticks at once, after {before}");
    bed.stop()?;
    Ok(())
}

fn timer_limit(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-timer", 2).start()?;
    let mut client = bed.connect()?;
    client.expect("after 60000 a", "timer 1")?;
    client.expect("tick 60000 9 b", "timer 2")?;
    for packet in ["after 1 c", "tick 1 1 c"] {
        client.expect(packet, "error: set a timer: 2 are set already (max_timer)")?;
    }
    client.expect("clear 1", "ok")?;
    client.expect("after 1 d", "timer 3")?;
    client.expect_line("timer 3 d")?;
    client.expect("clear 2", "ok")?;
    bed.stop()?;
    Ok(())
}

fn drain_retire(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20).start()?;
    let mut client = bed.connect()?;
    client.tell_all(&["reply 700 done", "after 400 rang"])?;
    client.expect_line("timer 2")?;
    let before = bed.lives()[&0].pid;
    bed.signal_master(Signal::USR1)?;
    let pid = format!("pid={before}");
    bed.log.wait_line(Source::Stdout, &["on_worker_exit", &pid, "timers=2 ticks=0 replies=1"], PATIENCE)?;
    // It is the successor's, and waits for that.
    client.tell("whoami")?;
    client.expect_line("timer 2 rang")?;
    bed.log.wait_line(Source::Stdout, &["on_worker_exit", &pid, "timers=1 ticks=0 replies=1"], PATIENCE)?;
    client.expect_line("done")?;
    let life = bed.wait_successor(0, before)?;
    client.expect_line(&format!("worker=0 pid={} generation=2 handled=1", life.pid))?;
    bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
    let asked = bed.count("on_worker_exit");
    ensure!(asked >= 3, "asked {asked} times in 0.7 s");
    ensure!(bed.worker_errors().is_empty(), "a worker did not leave in order");
    // By a client's wish, as by max_request.
    client.tell_all(&["reply 300 again", "stop"])?;
    client.expect_line("ok")?;
    client.expect_line("again")?;
    bed.wait_successor(0, life.pid)?;
    ensure!(bed.worker_errors().is_empty(), "a worker did not leave in order");
    bed.stop()?;
    Ok(())
}

fn drain_bound(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 1).start()?;
    let mut client = bed.connect()?;
    let session = client.session()?;
    client.expect("forget", "ok")?;
    client.expect("tick 60000 9 b", "timer 1")?;
    let before = bed.lives()[&0].pid;
    let begin = Instant::now();
    bed.signal_master(Signal::USR1)?;
    bed.wait_successor(0, before)?;
    let took = begin.elapsed();
    ensure!(took >= Duration::from_millis(700), "was not patient: {took:?} with a max_wait_time of 1 s");
    let open = format!("1 tick, 1 open reply (session {session} for");
    bed.log.wait_line(Source::Stderr, &["worker 0 leaves", "max_wait_time", &open], PATIENCE)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_stop", &format!("pid={before}")], PATIENCE)?;
    ensure!(bed.worker_errors().is_empty(), "it did not leave by itself");
    client.expect("echo there", "there")?;
    bed.stop()?;
    Ok(())
}

fn drain_stop(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 20).start()?;
    let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.tell_all(&["reply 500 late", "echo now"])?;
        client.expect_line("now")?;
    }
    bed.signal_master(Signal::TERM)?;
    for client in &mut clients {
        client.expect_line("late")?;
        client.expect_close()?;
    }
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(bed.count("on_worker_stop") == 2, "a worker has not left in order");
    Ok(())
}

fn drain_stop_bound(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 2).start()?;
    let mut client = bed.connect()?;
    client.expect("forget", "ok")?;
    let begin = Instant::now();
    bed.signal_master(Signal::TERM)?;
    let status = bed.wait_gone(PATIENCE)?;
    let took = begin.elapsed();
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(took < Duration::from_secs(4), "took {took:?} with a max_wait_time of 2 s");
    bed.log.wait_line(Source::Stderr, &["worker 0 leaves", "1 open reply"], PATIENCE)?;
    ensure!(bed.count("on_worker_stop") == 1, "it was killed");
    Ok(())
}

fn drain_amid_stop(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 4).start()?;
    let mut client = bed.connect()?;
    client.expect("forget", "ok")?;
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_exit"], PATIENCE)?;
    // It is the successor's.
    client.tell("echo for the next one")?;
    bed.wait_accepted(&client)?;
    bed.signal_master(Signal::TERM)?;
    client.expect_line("for the next one")?;
    client.expect_close()?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    Ok(())
}

fn drain_is_not_stuck(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20);
    let bed = launch.flag("request-terminate-time", 0.2).start()?;
    let mut client = bed.connect()?;
    client.tell_all(&["after 100 rang", "reply 1200 late"])?;
    client.expect_line("timer 1")?;
    bed.signal_master(Signal::USR1)?;
    client.expect_line("timer 1 rang")?;
    client.expect_line("late")?;
    bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    client.expect("echo there", "there")?;
    bed.stop()?;
    Ok(())
}

fn timers_without_end(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 1).start()?;
    let mut client = bed.connect()?;
    // Each takes longer than its period.
    client.expect("tick 5 1000000 sleep 10", "timer 1")?;
    client.expect_line("timer 1 sleep 10")?;
    let before = bed.lives()[&0].pid;
    bed.signal_master(Signal::USR1)?;
    bed.wait_successor(0, before)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_stop", &format!("pid={before}")], PATIENCE)?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.connect()?.expect("tick 5 1000000 sleep 10", "timer 1")?;
    bed.signal_master(Signal::TERM)?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    ensure!(bed.count("on_worker_stop") == 2, "one was killed");
    Ok(())
}

fn drain_killed(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 20).start()?;
    let mut client = bed.connect()?;
    client.expect("forget", "ok")?;
    let before = bed.lives()[&0].pid;
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_line(Source::Stdout, &["on_worker_exit", &format!("pid={before}")], PATIENCE)?;
    crate::cluster::proc::signal(before, Signal::KILL)?;
    bed.wait_successor(0, before)?;
    if !bed.is_base() {
        client.expect("echo there", "there")?;
    }
    bed.connect()?.expect("echo there", "there")?;
    bed.stop()?;
    Ok(())
}
