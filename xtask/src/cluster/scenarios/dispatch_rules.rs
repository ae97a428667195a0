//! The rules that look at a packet, at its client, or at what workers have to do, and the order that all rules keep.

use crate::cluster::bed::{Bed, Launch, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub(super) static ALL: &[Scenario] = &[
    backends("dispatch_ip_hash", "clients of one address have one worker, also after its death", ip_hash)
        .in_process(),
    backends(
        "dispatch_uid",
        "packets of a user's connections go to one worker, in order when it is bound",
        uid,
    )
    .in_process(),
    backends("bind", "a session is bound, whosever it is, and shows it until it is bound otherwise", bind),
    backends(
        "dispatch_least_in_flight",
        "no packet waits for a worker that is busy for another reactor",
        least,
    )
    .in_process()
    .alone(),
    backends(
        "dispatch_consistent_hash",
        "a key keeps its worker while others die, and after its own",
        consistent,
    )
    .in_process(),
    backends("dispatch_custom", "the program's function chooses, drops, closes, and may panic", custom)
        .in_process()
        .alone(),
    backends("dispatch_order", "connect, packets, close, in this order under every rule", order).in_process(),
];

fn launch<'a>(cx: &'a Cx, rule: &str) -> Launch<'a> {
    cx.testbed().flag("worker-num", 3).flag("dispatch-mode", rule)
}

/// 127.0.0.1 modulo 3, as Swoole has it.
const LOCALHOST: u32 = 0x7f00_0001 % 3;

fn ip_hash(cx: &Cx) -> Result<()> {
    let unix = cx.dir.join("socket");
    let launch = launch(cx, "ip_hash").flag("reactor-num", 2);
    let bed = launch.flag("listen", format!("unix://{}", unix.display())).start()?;
    let mut clients = (0..10).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let all_there = |clients: &mut [Client]| -> Result<()> {
        for client in clients {
            let worker = client.worker()?;
            ensure!(worker == LOCALHOST, "worker {worker} has a client of 127.0.0.1");
        }
        Ok(())
    };
    all_there(&mut clients)?;
    let before = bed.lives().get(&LOCALHOST).context("no such worker")?.pid;
    proc::signal(before, Signal::KILL)?;
    bed.wait_successor(LOCALHOST, before)?;
    all_there(&mut clients)?;
    let address = bed.ready.listen.last().context("the server listens nowhere")?;
    // One after another, so that the reactors, which deal to workers of their own, are dealt to in turn.
    let (mut local, mut workers) = (Vec::new(), BTreeSet::new());
    for _ in 0..6 {
        let mut client = Client::connect(address)?;
        workers.insert(client.worker()?);
        local.push(client);
    }
    ensure!(workers.len() == 3, "clients without an address went to these workers only: {workers:?}");
    bed.stop()?;
    Ok(())
}

fn uid(cx: &Cx) -> Result<()> {
    let bed = launch(cx, "uid").flag("reactor-num", 2).start()?;
    let mut clients = (0..6).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let homes = clients.iter_mut().map(Client::worker).collect::<Result<Vec<_>>>()?;
    for user in [1_u64, 5, 600, u64::MAX] {
        for client in &mut clients {
            client.expect(&format!("bind {user}"), "ok")?;
            for _ in 0..3 {
                let worker = u64::from(client.worker()?);
                ensure!(worker == user % 3, "worker {worker} has a packet of user {user}");
            }
        }
    }
    for (client, home) in clients.iter_mut().zip(&homes) {
        for user in 1..4 {
            // The next packet has another worker, and would overtake the last one if it could.
            client.tell_all(&[&format!("bind {user}"), "sleep 20"])?;
            client.expect_line("ok")?;
            client.tell_all(&["echo a", "echo b"])?;
            for line in ["slept 20", "a", "b"] {
                client.expect_line(line)?;
            }
        }
        client.expect("unbind", "ok")?;
        let worker = client.worker()?;
        ensure!(worker == *home, "worker {worker} has a packet of nobody's; at first it was {home}");
    }
    bed.stop()?;
    Ok(())
}

/// Waits until the session says this of its user.
fn expect_uid(client: &mut Client, uid: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = client.ask("session")?;
        let shown = reply.split_whitespace().find_map(|word| word.strip_prefix("uid=")).unwrap_or_default();
        if shown == uid {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "uid is {shown:?} instead of {uid:?} in {reply:?}");
    }
}

fn bind(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let (mut one, mut other) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    expect_uid(&mut one, "")?;
    one.expect("bind 18446744073709551615", "ok")?;
    expect_uid(&mut one, "18446744073709551615")?;
    let session = other.session()?;
    one.expect(&format!("bind 42 {session}"), "ok")?;
    expect_uid(&mut other, "42")?;
    other.expect("reload", "ok")?;
    bed.log.wait_line(Source::Stdout, &["on_after_reload"], PATIENCE)?;
    expect_uid(&mut other, "42")?;
    expect_uid(&mut one, "18446744073709551615")?;
    one.expect("unbind", "ok")?;
    expect_uid(&mut one, "")?;
    drop(other);
    proc::until("the session to be gone", PATIENCE, || {
        (one.ask(&format!("bind 1 {session}")).ok()? == "error: no such session").then_some(())
    })?;
    bed.stop()?;
    Ok(())
}

fn least(cx: &Cx) -> Result<()> {
    for rule in ["least_in_flight", "idle"] {
        let bed = launch(cx, rule).flag("reactor-num", 2).start()?;
        // Of both reactors, and all connected before anybody is busy.
        let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            client.expect("echo known", "known")?;
        }
        let mut sleeper = bed.connect()?;
        bed.occupy(&mut sleeper, 2000)?;
        // Neither they nor those who come now have a worker that is asleep. Those come one after another: where all have one
        // message in flight, as connects are, counts do not tell who is at it for long.
        for _ in 0..4 {
            let mut client = bed.connect()?;
            client.expect("echo known", "known")?;
            clients.push(client);
        }
        for round in 0..50 {
            for client in &mut clients {
                client.expect(&format!("echo {round}"), &round.to_string())?;
            }
        }
        ensure!(!sleeper.has_reply()?, "{rule}: some have waited for the worker that sleeps");
        sleeper.expect_line("slept 2000")?;
        bed.stop()?;
    }
    Ok(())
}

const KEYS: u32 = 60;

/// Which worker has each key.
fn owners(client: &mut Client) -> Result<BTreeMap<u32, u32>> {
    (0..KEYS).map(|key| Ok((key, client.ask_field(&format!("at {key:04} whoami"), "worker")?))).collect()
}

fn consistent(cx: &Cx) -> Result<()> {
    let launch = launch(cx, "consistent_hash").flag("reactor-num", 2).flag("start-time", 1000);
    let bed = launch.flag("dispatch-key-offset", 3).flag("dispatch-key-length", 4).start()?;
    let (mut one, mut other) = (bed.connect()?, bed.connect()?);
    let before = owners(&mut one)?;
    ensure!(owners(&mut other)? == before, "it depends on the connection");
    let workers: BTreeSet<_> = before.values().collect();
    ensure!(workers.len() == 3, "{KEYS} keys went to these workers only: {workers:?}");
    let dead = 1;
    let pid = bed.lives().get(&dead).context("no such worker")?.pid;
    proc::signal(pid, Signal::KILL)?;
    bed.wait_error(pid)?;
    let without = owners(&mut other)?;
    let is_back = bed.lives().get(&dead).is_some_and(|life| life.pid != pid);
    ensure!(!is_back, "the successor was too fast to find out anything");
    for (key, before) in &before {
        let now = without[key];
        ensure!(now != dead && (*before == dead || *before == now), "key {key} went from {before} to {now}");
    }
    bed.wait_successor(dead, pid)?;
    proc::until("the keys to return", PATIENCE, || (owners(&mut one).ok()? == before).then_some(()))?;
    bed.stop()?;
    Ok(())
}

fn custom(cx: &Cx) -> Result<()> {
    let bed = launch(cx, "custom").flag("reactor-num", 2).start()?;
    let mut client = bed.connect()?;
    let home = client.worker()?;
    for wish in [0, 1, 2, 3, 4, 100, 2] {
        let worker: u32 = client.ask_field(&format!("at {wish} whoami"), "worker")?;
        ensure!(worker == wish % 3, "worker {worker} instead of {wish}");
    }
    ensure!(client.worker()? == home, "home moves");
    // What is dropped is answered by nobody, and what comes behind it in the same bytes is.
    client.tell_all(&["at drop echo a", "at 1 echo b", "at drop echo c", "at drop echo d", "at 1 echo e"])?;
    client.expect_line("b")?;
    client.expect_line("e")?;
    for wish in ["close", "panic"] {
        let mut other = bed.connect()?;
        other.tell_all(&["at 1 echo before", &format!("at {wish} echo it"), "at 1 echo after"])?;
        let rest = other.drain(PATIENCE)?;
        // It is closed at once: what is with a worker may be answered still.
        let rest = String::from_utf8_lossy(&rest);
        ensure!(["", "before\n"].contains(&&*rest), "{wish}: {rest:?}");
        client.expect(&format!("at 0 echo not {wish}"), &format!("not {wish}"))?;
    }
    let stderr = bed.log.texts(Source::Stderr).join("\n");
    ensure!(stderr.contains("the function that dispatches has panicked"), "the log: {stderr}");
    // One that looks at what they have to do.
    let mut sleeper = bed.connect()?;
    bed.occupy(&mut sleeper, 1500)?;
    for _ in 0..50 {
        client.expect("at idle echo x", "x")?;
    }
    ensure!(!sleeper.has_reply()?, "some have waited for the worker that sleeps");
    sleeper.expect_line("slept 1500")?;
    bed.stop()?;
    Ok(())
}

/// Packets of each connection, each long enough for others to overtake it.
const PACKETS: usize = 6;
const CLIENTS: usize = 4;

fn order(cx: &Cx) -> Result<()> {
    let rules =
        ["fixed", "ip_hash", "round_robin", "idle", "least_in_flight", "uid", "consistent_hash", "custom"];
    for rule in rules {
        let bed = launch(cx, rule).flag("reactor-num", 2).flag("connect-time", 30).start()?;
        for client in 0..CLIENTS {
            // A connect that takes its time, packets that wish to be everywhere, and a close right behind.
            let packets = (0..PACKETS).map(|number| format!("at {} sleep 10\n", number + client));
            let mut it = bed.connect()?;
            it.send(packets.collect::<String>().as_bytes())?;
            it.finish()?;
            let replies = it.drain(PATIENCE)?;
            ensure!(replies == "slept 10\n".repeat(PACKETS).as_bytes(), "{rule}: {replies:?}");
        }
        check_order(&bed, rule)?;
        bed.stop()?;
    }
    Ok(())
}

fn check_order(bed: &Bed, rule: &str) -> Result<()> {
    let lines = bed.log.wait("all closes", PATIENCE, |lines| {
        let lines = lines.iter().filter(|line| line.source == Source::Stdout).map(|line| line.text.clone());
        let lines: Vec<String> = lines.collect();
        let closes = lines.iter().filter(|line| line.starts_with("on_close")).count();
        (closes == CLIENTS).then_some(lines)
    })?;
    let mut by_session: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for line in &lines {
        let words: Vec<&str> = line.split(' ').collect();
        if let [what, worker, session] = words[..]
            && session.starts_with("session=")
        {
            by_session.entry(session).or_default().push((what, worker));
        }
    }
    ensure!(by_session.len() == CLIENTS, "{rule}: {lines:?}");
    for events in by_session.values() {
        let [(first, home), packets @ .., (last, end)] = &events[..] else {
            anyhow::bail!("{rule}: {events:?}");
        };
        let is_packet = |(what, _): &&(&str, &str)| ["on_receive", "received"].contains(what);
        let whole = packets.iter().filter(is_packet).count() == 2 * PACKETS && packets.len() == 2 * PACKETS;
        ensure!(*first == "on_connect" && *last == "on_close" && home == end && whole, "{rule}: {events:?}");
        let workers: BTreeSet<_> = packets.iter().map(|(_, worker)| worker).collect();
        let scatters = ["round_robin", "idle", "custom"].contains(&rule);
        ensure!(!scatters || workers.len() > 1, "{rule}: nobody could be overtaken: {events:?}");
    }
    Ok(())
}
