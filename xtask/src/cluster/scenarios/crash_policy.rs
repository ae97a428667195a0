//! `on_crash`: what becomes of the packet that a worker died on.

use super::crash::{KILLS, kill_in_turn};
use crate::cluster::bed::PATIENCE;
use crate::cluster::client::Client;
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full, once};
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

pub(super) static ALL: &[Scenario] = &[
    full(
        "crash_retry",
        "a packet whose worker is killed is answered by the next one, and so is the rest",
        retry,
    )
    .in_process()
    // All has to be sent within half a second.
    .alone(),
    full(
        "crash_retry_poison",
        "a packet that kills whoever takes it costs 1 + crash_retries workers and its connection",
        poison,
    )
    .in_process(),
    full("crash_retry_under_load", "under kills no request is lost or answered twice", retry_under_load)
        .in_process(),
    full("crash_retry_large", "a packet of many fragments is delivered again, whole", retry_large)
        .in_process(),
    full("crash_drop", "a packet that kills its worker is dropped, and its connection goes on", drop_packet)
        .in_process(),
    full("crash_policy_by_listener", "each address has its own word on that, if it wants one", by_listener)
        .in_process(),
    once("crash_policy_base", "Base mode refuses what it cannot keep", base),
];

fn retry(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("on-crash", "retry").start()?;
    let (mut victim, mut other) = (bed.connect()?, bed.connect()?);
    let pid: i32 = victim.ask_field("whoami", "pid")?;
    bed.occupy(&mut victim, 500)?;
    victim.tell_all(&["echo behind it", "whoami"])?;
    other.tell("echo other")?;
    for client in [&victim, &other] {
        bed.wait_accepted(client)?;
    }
    proc::signal(pid, Signal::KILL)?;
    victim.expect_line("slept 500")?;
    victim.expect_line("behind it")?;
    let reply = victim.line()?;
    ensure!(!reply.contains(&format!("pid={pid} ")), "the dead worker answered: {reply:?}");
    other.expect_line("other")?;
    let status = bed.wait_error(pid)?;
    ensure!(status == "signal:9", "reported as {status:?}");
    let errors = bed.worker_errors();
    ensure!(
        errors.len() == 1 && errors[0].ends_with("requests=0"),
        "a retried packet is not lost: {errors:?}"
    );
    bed.log.wait_line(Source::Stderr, &["will be retried", "(attempt 1)"], PATIENCE)?;
    bed.stop()?;
    Ok(())
}

fn poison(cx: &Cx) -> Result<()> {
    for retries in [0, 2] {
        let launch = cx.testbed().flag("worker-num", 1).flag("on-crash", "retry");
        let bed = launch.flag("crash-retries", retries).start()?;
        let (mut poisoner, mut other) = (bed.connect()?, bed.connect()?);
        // One write, so that all of it waits behind the poison when the first worker dies.
        other.tell_all(&["sleep 100", "echo before"])?;
        bed.wait_accepted(&other)?;
        poisoner.tell_all(&["echo first", "crash kill", "echo never"])?;
        bed.wait_accepted(&poisoner)?;
        other.tell("echo after")?;
        poisoner.expect_line("first")?;
        poisoner.expect_close().context("the client of the poison")?;
        for line in ["slept 100", "before", "after"] {
            other.expect_line(line)?;
        }
        bed.log.wait_line(Source::Stderr, &["poison", "10 bytes"], PATIENCE)?;
        let deaths = retries + 1;
        bed.log.wait_count("on_worker_error", deaths, PATIENCE)?;
        let errors = bed.worker_errors();
        let lost = errors.iter().filter(|line| line.ends_with("requests=1")).count();
        ensure!(errors.len() == deaths && lost == 1, "{deaths} workers may die, with one packet: {errors:?}");
        bed.stop()?;
    }
    Ok(())
}

fn retry_under_load(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("on-crash", "retry");
    // So that chance cannot make a poison of an innocent packet.
    let bed = launch.flag("crash-retries", KILLS).start()?;
    let load = Load::start(bed.address()?, 6)?;
    kill_in_turn(cx, &bed, &load)?;
    load.finish_unharmed()?;
    bed.stop()?;
    Ok(())
}

fn retry_large(cx: &Cx) -> Result<()> {
    let launch =
        cx.testbed().flag("worker-num", 1).flag("on-crash", "retry").flag("package-max-length", 4 << 20);
    let bed = launch.flag("ring-size", 65536).start()?;
    let (mut sleeper, mut client) = (bed.connect()?, bed.connect()?);
    let text = "x".repeat(1_000_000);
    // It dies between the fragments of the large packet, most of which have no room yet.
    let pid: i32 = client.ask_field("whoami", "pid")?;
    bed.occupy(&mut sleeper, 300)?;
    let mut writer = client.writer()?;
    std::thread::scope(|scope| {
        let sending =
            scope.spawn(|| std::io::Write::write_all(&mut writer, format!("echo {text}\n").as_bytes()));
        client.wait_arrived(bed.port()?)?;
        proc::signal(pid, Signal::KILL)?;
        sleeper.expect_line("slept 300")?;
        client.expect_line(&text)?;
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?.context("send")
    })?;
    bed.stop()?;
    Ok(())
}

fn drop_packet(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("on-crash", "drop").start()?;
    let mut client = bed.connect()?;
    let session = client.session()?;
    client.tell_all(&["echo before", "crash segv", "echo after"])?;
    client.expect_line("before")?;
    client.expect_line("after")?;
    ensure!(client.session()? == session, "another session");
    let errors = bed.worker_errors();
    ensure!(errors.len() == 1 && errors[0].ends_with("requests=1"), "one packet is lost: {errors:?}");
    // Nothing is counted as under way any more: who has shut down his side is closed at once.
    client.finish()?;
    client.expect_close()?;
    bed.stop()?;
    Ok(())
}

fn by_listener(cx: &Cx) -> Result<()> {
    let listen = ["", "?on_crash=retry&crash_retries=2", "?on_crash=drop"];
    let launch = cx.testbed_bare().flag("worker-num", 1);
    let launch = listen
        .iter()
        .fold(launch, |launch, options| launch.flag("listen", format!("tcp://127.0.0.1:0{options}")));
    let bed = launch.start()?;
    let clients = bed.ready.listen.iter().map(Client::connect).collect::<Result<Vec<_>>>()?;
    let Ok([mut close, mut retry, mut dropped]) = <[Client; 3]>::try_from(clients) else {
        bail!("the server listens on {:?}", bed.ready.listen);
    };

    let pid: i32 = close.ask_field("whoami", "pid")?;
    close.tell("crash kill")?;
    close.expect_close()?;
    let deaths = |count: usize, lost: &str| {
        let errors = bed.log.wait_count("on_worker_error", count, PATIENCE)?;
        let last = &errors[count - 1].text;
        ensure!(last.ends_with(&format!("requests={lost}")), "death {count}: {last:?}");
        anyhow::Ok(())
    };
    deaths(1, "1")?;
    bed.wait_successor(0, pid)?;

    let pid: i32 = dropped.ask_field("whoami", "pid")?;
    dropped.tell("crash kill")?;
    dropped.expect("echo still there", "still there")?;
    deaths(2, "1")?;
    bed.wait_successor(0, pid)?;

    // Killed from outside: the next one answers.
    let pid: i32 = retry.ask_field("whoami", "pid")?;
    bed.occupy(&mut retry, 300)?;
    proc::signal(pid, Signal::KILL)?;
    retry.expect_line("slept 300")?;
    deaths(3, "0")?;
    // Poison: 1 + crash_retries workers.
    retry.tell("crash kill")?;
    retry.expect_close()?;
    deaths(5, "0")?;
    deaths(6, "1")?;
    dropped.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    Ok(())
}

fn base(cx: &Cx) -> Result<()> {
    cx.testbed().flag("mode", "base").flag("on-crash", "retry").refused(&["on_crash", "Base mode"])
}
