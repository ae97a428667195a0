//! Limits against clients that are idle, slow or too many, and packets that are shed.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, backends, full};
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full("heartbeat", "a client that sends nothing is closed, one that does is not", heartbeat),
    full(
        "max_idle",
        "a client is idle if it neither sends nor gets anything, and nobody is at a packet of its",
        max_idle,
    ),
    full(
        "package_max_time",
        "a packet that takes too long costs its sender the connection",
        package_max_time,
    ),
    full("patience_of_clients", "who has to wait for the server is not idle", patience_of_clients),
    backends("max_per_ip", "an address has no more clients than it may, and others come in", max_per_ip),
    backends("max_accept_rate", "clients that come too fast wait, and all are served", max_accept_rate),
    full(
        "shed_queue",
        "packets beyond max_queue are answered as busy, in their order or at once",
        shed_queue,
    )
    .in_process(),
    full("shed_close", "without a busy_reply a packet that is shed costs its connection", shed_close)
        .in_process(),
    full("shed_late", "packets that have waited longer than max_queue_time are shed", shed_late).in_process(),
];

/// A number of the statistics.
pub(super) fn stat(client: &mut Client, name: &str) -> Result<u64> {
    let stats = client.ask("stats")?;
    let key = format!("\"{name}\":");
    let (_, rest) = stats.split_once(&key).with_context(|| format!("no {name} in {stats}"))?;
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    Ok(digits.parse()?)
}

/// Lets `talker` have answers until something comes for `other`, be it the end.
fn talk_until_news(talker: &mut Client, other: &Client) -> Result<()> {
    let start = Instant::now();
    while !other.has_reply()? {
        talker.expect("echo alive", "alive")?;
        ensure!(start.elapsed() < PATIENCE, "the other client is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn heartbeat(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("heartbeat-idle-time", 2);
    let bed = launch.flag("heartbeat-check-interval", 0.5).start()?;
    let (mut talker, mut silent, mut listener) = (bed.connect()?, bed.connect()?, bed.connect()?);
    let mut protected = bed.connect()?;
    protected.expect("protect", "ok")?;
    listener.tell("tick 100 1000 x")?;
    let begin = Instant::now();
    talk_until_news(&mut talker, &silent)?;
    ensure!(begin.elapsed() > Duration::from_millis(1500), "closed after {:?}", begin.elapsed());
    silent.expect_close()?;
    // What is sent to it does not count.
    while talker.ask("echo alive").is_ok() && listener.has_reply()? {
        if listener.line().is_err() {
            break;
        }
    }
    let idle = || stat(&mut talker, "idle_count").ok().filter(|idle| *idle == 2);
    proc::until("both that sent nothing to be closed", PATIENCE, idle)?;
    protected.expect("echo still here", "still here")?;
    bed.stop()?;
    // Alone, it is half of the other.
    let bed = cx.testbed().flag("worker-num", 1).flag("heartbeat-check-interval", 0.2).start()?;
    bed.connect()?.expect_close()?;
    bed.stop()?;
    Ok(())
}

fn max_idle(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("max-idle-time", 2).start()?;
    let mut listener = bed.connect_to_worker(1)?;
    let (mut silent, mut talker) = (bed.connect_to_worker(1)?, bed.connect_to_worker(1)?);
    let mut busy = bed.connect_to_worker(0)?;
    listener.tell("tick 100 60 x")?;
    ensure!(listener.line()?.starts_with("timer "));
    busy.tell("sleep 4000")?;
    talk_until_news(&mut talker, &silent)?;
    silent.expect_close()?;
    // One is sent to all the time, a worker is at the other one's packet.
    for _ in 0..60 {
        ensure!(listener.line()?.starts_with("timer "));
    }
    busy.expect_line("slept 4000")?;
    bed.connect_to_worker(0)?.expect("echo others", "others")?;
    bed.stop()?;
    Ok(())
}

fn package_max_time(cx: &Cx) -> Result<()> {
    let listen = ["tcp://127.0.0.1:0?package_max_time=2", "tcp://127.0.0.1:0"];
    let bed = listen.into_iter().fold(cx.testbed_bare(), |launch, listen| launch.flag("listen", listen));
    let bed = bed.flag("worker-num", 1).start()?;
    let [limited, free] = &bed.ready.listen[..] else { bail!("two addresses") };
    let (mut slow, mut talker) = (Client::connect(limited)?, Client::connect(limited)?);
    let (mut silent, mut unlimited) = (Client::connect(limited)?, Client::connect(free)?);
    unlimited.send(b"echo wh")?;
    silent.expect("echo before", "before")?;
    // The first packet comes whole, together with the beginning of another one, and that never ends.
    slow.send(b"echo whole\necho ")?;
    slow.expect_line("whole")?;
    let begin = Instant::now();
    while !slow.has_reply()? {
        // It may be closed by now.
        let _ = slow.send(b"x");
        talker.send(b"echo in ")?;
        std::thread::sleep(Duration::from_millis(100));
        talker.expect("pieces", "in pieces")?;
        ensure!(begin.elapsed() < PATIENCE, "the slow client is still there");
    }
    ensure!(begin.elapsed() > Duration::from_millis(1500), "closed after {:?}", begin.elapsed());
    slow.drain(PATIENCE)?;
    silent.expect("echo after", "after")?;
    unlimited.expect("ole", "whole")?;
    ensure!(stat(&mut talker, "slow_count")? == 1, "one was slow");
    ensure!(stat(&mut talker, "idle_count")? == 0, "nobody was idle");
    bed.stop()?;
    Ok(())
}

/// The worker is at one packet for longer than any limit: who waits meanwhile has its packet in the server, or in its
/// socket, or cannot even send all.
fn patience_of_clients(cx: &Cx) -> Result<()> {
    const PACKETS: usize = 3000;
    const TEXT: usize = 300;
    let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1).flag("ring-size", 16384);
    let launch = launch.flag("max-idle-time", 1).flag("package-max-time", 1);
    let bed = launch.flag("socket-buffer-size", 8 << 20).start()?;
    let (mut busy, mut waiting, mut pusher) = (bed.connect()?, bed.connect()?, bed.connect()?);
    bed.occupy(&mut busy, 4000)?;
    waiting.tell("echo waited")?;
    let mut writer = pusher.writer()?;
    let pushing = std::thread::spawn(move || -> Result<()> {
        (0..PACKETS).try_for_each(|index| Ok(writer.write_all(format!("echo {index:0TEXT$}\n").as_bytes())?))
    });
    busy.expect_line("slept 4000")?;
    waiting.expect_line("waited")?;
    for index in 0..PACKETS {
        pusher.expect_line(&format!("{index:0TEXT$}")).with_context(|| format!("reply {index}"))?;
    }
    let pushed = pushing.join();
    ensure!(matches!(pushed, Ok(Ok(()))), "the packets could not be sent");
    bed.stop()?;
    Ok(())
}

/// A client of the loopback with this address.
pub(super) fn connect_from(bed: &Bed, last: u8) -> Result<Client> {
    Client::connect_from(bed.address()?, Ipv4Addr::new(127, 0, 0, last))
}

fn is_served(client: &mut Client) -> bool {
    client.ask("echo served").is_ok_and(|reply| reply == "served")
}

fn max_per_ip(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-connection-per-ip", 3).start()?;
    let mut crowd = (0..3).map(|_| connect_from(&bed, 2)).collect::<Result<Vec<_>>>()?;
    ensure!(crowd.iter_mut().all(is_served), "three may come");
    let mut other = connect_from(&bed, 3)?;
    ensure!(is_served(&mut other), "another address has clients of its own");
    connect_from(&bed, 2)?.drain(PATIENCE).context("one too many")?;
    ensure!(stat(&mut other, "refuse_count")? == 1, "one was refused");
    ensure!(stat(&mut other, "accept_count")? == 4, "which is none of those accepted");
    // They stay the successor's.
    let before = bed.lives()[&0].pid;
    other.expect("stop", "ok")?;
    bed.wait_successor(0, before)?;
    ensure!(crowd.iter_mut().all(is_served), "three are still there");
    connect_from(&bed, 2)?.drain(PATIENCE).context("one too many, for the successor")?;
    drop(crowd.pop());
    let comes = || connect_from(&bed, 2).ok().and_then(|mut one| is_served(&mut one).then_some(one));
    let _next = proc::until("the place of one that has left", PATIENCE, comes)?;
    connect_from(&bed, 2)?.drain(PATIENCE).context("one too many again")?;
    bed.stop()?;
    Ok(())
}

fn max_accept_rate(cx: &Cx) -> Result<()> {
    const CLIENTS: u32 = 80;
    const RATE: u32 = 20;
    let bed = cx.testbed().flag("worker-num", 1).flag("max-accept-rate", RATE).start()?;
    let begin = Instant::now();
    let mut clients = (0..CLIENTS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for (index, client) in clients.iter_mut().enumerate() {
        client.expect("echo in time", "in time").with_context(|| format!("client {index}"))?;
    }
    // Some more than the rate were under way when the gate was shut.
    let least = Duration::from_secs((CLIENTS / RATE).into()) / 2;
    ensure!(begin.elapsed() > least, "{CLIENTS} clients came in within {:?}", begin.elapsed());
    ensure!(stat(&mut clients[0], "accept_count")? == u64::from(CLIENTS), "all were accepted");
    bed.stop()?;
    Ok(())
}

fn shed_queue(cx: &Cx) -> Result<()> {
    let listen = r"tcp://127.0.0.1:0?max_queue=5&busy_reply=busy\n";
    let bed = cx.testbed_bare().flag("listen", listen).flag("worker-num", 1).start()?;
    let (mut blocker, mut crowd, mut alone) = (bed.connect()?, bed.connect()?, bed.connect()?);
    for client in [&mut crowd, &mut alone] {
        client.expect("echo hello", "hello")?;
    }
    bed.occupy(&mut blocker, 3000)?;
    let packets: Vec<String> = (0..20).map(|index| format!("echo {index}")).collect();
    crowd.tell_all(&packets.iter().map(String::as_str).collect::<Vec<_>>())?;
    bed.wait_accepted(&crowd)?;
    // Nothing of it could be overtaken.
    alone.expect("echo alone", "busy")?;
    ensure!(!blocker.has_reply()? && !crowd.has_reply()?, "the worker was to be at work still");
    blocker.expect_line("slept 3000")?;
    for index in 0..4 {
        crowd.expect_line(&index.to_string())?;
    }
    for _ in 4..20 {
        crowd.expect_line("busy")?;
    }
    for client in [&mut blocker, &mut crowd, &mut alone] {
        client.expect("echo again", "again")?;
    }
    ensure!(stat(&mut alone, "shed_count")? == 17, "17 were shed: {}", alone.ask("stats")?);
    bed.stop()?;
    Ok(())
}

fn shed_close(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-queue", 4).start()?;
    let (mut blocker, mut crowd, mut alone) = (bed.connect()?, bed.connect()?, bed.connect()?);
    for client in [&mut crowd, &mut alone] {
        client.expect("echo hello", "hello")?;
    }
    bed.occupy(&mut blocker, 2000)?;
    crowd.tell_all(&["echo 1", "echo 2", "echo 3", "echo 4"])?;
    bed.wait_accepted(&crowd)?;
    alone.tell("echo alone")?;
    alone.expect_close()?;
    blocker.expect_line("slept 2000")?;
    // Closed after what came before is answered.
    for reply in ["1", "2", "3"] {
        crowd.expect_line(reply)?;
    }
    crowd.expect_close()?;
    let mut next = bed.connect()?;
    next.expect("echo next", "next")?;
    ensure!(stat(&mut next, "shed_count")? == 2, "two were shed");
    bed.stop()?;
    Ok(())
}

fn shed_late(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("max-queue-time", 0.5).flag("busy-reply", r"busy\n");
    let bed = launch.start()?;
    let (mut blocker, mut other) = (bed.connect()?, bed.connect()?);
    other.expect("echo hello", "hello")?;
    let large = format!("sum {}", "x".repeat(400_000));
    let ask = |other: &mut Client| other.tell_all(&["echo 1", "echo 2", &large, "echo 3"]);
    let all_busy = |other: &mut Client| (0..4).try_for_each(|_| other.expect_line("busy"));
    bed.occupy(&mut blocker, 2500)?;
    ask(&mut other)?;
    blocker.expect_line("slept 2500")?;
    all_busy(&mut other)?;
    other.expect("echo in time", "in time")?;
    // A worker's death makes nothing younger.
    bed.occupy(&mut blocker, 100_000)?;
    ask(&mut other)?;
    bed.wait_accepted(&other)?;
    std::thread::sleep(Duration::from_secs(1));
    proc::signal(bed.lives()[&0].pid, Signal::KILL)?;
    blocker.expect_close()?;
    all_busy(&mut other)?;
    other.expect("echo in time", "in time")?;
    ensure!(stat(&mut other, "shed_count")? == 8, "eight were shed");
    bed.stop()?;
    Ok(())
}
