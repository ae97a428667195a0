//! Messages between processes, and what task workers and the manager send to clients.

use super::base_forward::{keep_pace, read_numbered};
use super::tasks::{task_workers_of, wait_task_worker};
use crate::cluster::bed::PATIENCE;
use crate::cluster::client::Client;
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, backends, full};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use std::sync::atomic::AtomicUsize;

pub(super) static ALL: &[Scenario] = &[
    backends(
        "messages_talk",
        "workers, task workers and the manager write to each other, and each is told who it was",
        talk,
    ),
    backends("messages_sizes", "messages of any size arrive whole, 20 MB, too", sizes),
    backends(
        "messages_to_sleeper",
        "messages for a process that is blocked wait, up to a limit, in their order, and block nobody",
        to_sleeper,
    ),
    backends(
        "messages_amid_reloads",
        "messages come whole, once and in order while both ends are being replaced",
        amid_reloads,
    ),
    backends(
        "messages_amid_deaths",
        "whoever is killed, no message comes twice, in part, or out of its order",
        amid_deaths,
    ),
    backends("messages_crash", "who dies of a message is replaced, and loses that one alone", crash),
    full(
        "task_worker_sends",
        "a task worker sends to any client, closes it, and learns that it has gone",
        task_worker_sends,
    ),
    full(
        "task_worker_sends_to_slow_client",
        "a client that does not read what a task worker sends is closed, and costs nobody else anything",
        task_worker_sends_to_slow_client,
    ),
    backends(
        "messages_user_process",
        "a user process gets messages, answers them, and sends to clients, also its successor",
        user_process,
    ),
    full("manager_sends", "the manager sends to clients and workers, also the next manager", manager_sends),
];

/// What this process has counted of numbered messages: how many of each, and how many were wrong.
fn tally(client: &mut Client, to: &str) -> Result<(Vec<(String, u64)>, u64)> {
    let session = client.session()?;
    client.tell(&format!("message {to} tally {session}"))?;
    let mut line = client.line()?;
    if line == "ok" {
        line = client.line()?;
    } else {
        client.expect_line("ok")?;
    }
    let parse = || {
        let (counts, wrong) = line.strip_prefix("tally ")?.split_once(" wrong=")?;
        let count =
            |count: &str| Some((count.split_once('=')?.0.to_owned(), count.split_once('=')?.1.parse().ok()?));
        let counts = counts.split(',').filter(|count| !count.is_empty()).map(count);
        Some((counts.collect::<Option<_>>()?, wrong.parse().ok()?))
    };
    parse().with_context(|| format!("{line:?}"))
}

/// Waits until it has so many of each, and none of them was wrong.
fn wait_tally(client: &mut Client, to: &str, expected: &[(&str, u64)]) -> Result<()> {
    let mut last = String::new();
    let came = proc::until(&format!("{to} to have {expected:?}"), PATIENCE, || {
        let (counts, wrong) = tally(client, to).inspect_err(|error| last = format!("{error:#}")).ok()?;
        last = format!("{counts:?}, {wrong} wrong");
        let counts: Vec<_> = counts.iter().map(|(peer, count)| (&**peer, *count)).collect();
        (counts == expected && wrong == 0).then_some(())
    });
    came.with_context(|| last)
}

fn talk(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 2).word("--tell-reloads").start()?;
    let mut client = bed.connect_to_worker(0)?;
    let said = |name: &str, from: &str, text: &str| {
        bed.log.wait_line(Source::Stdout, &[&format!("on_pipe_message {name} from={from} {text}")], PATIENCE)
    };
    client.expect("message 1 hello", "ok")?;
    said("worker=1", "worker 0", "hello")?;
    client.expect("message 0 to itself", "ok")?;
    said("worker=0", "worker 0", "to itself")?;
    client.expect("message t1 hello", "ok")?;
    said("task=1", "worker 0", "hello")?;
    client.expect("taskwait 5000 message 1 hello", "result MESSAGE 1 HELLO")?;
    client.expect("taskall 5000 message t0 one|message t1 two", "results MESSAGE T0 ONE|MESSAGE T1 TWO")?;
    for (name, text) in [("worker=1", "hello"), ("task=0", "one"), ("task=1", "two")] {
        let from = format!("on_pipe_message {name} from=task worker");
        bed.log.wait_line(Source::Stdout, &[&from, text], PATIENCE)?;
    }
    // What a message makes a worker send, comes: a worker that sleeps wakes for it.
    let session = client.session()?;
    client.expect_both(&format!("message 1 send {session} as you wished"), ["ok", "as you wished"])?;
    client.expect_both(&format!("message t0 send {session} from there, too"), ["ok", "from there, too"])?;
    for nobody in ["2", "t2"] {
        let reply = client.ask(&format!("message {nobody} x"))?;
        ensure!(reply.starts_with("error: send a message: there is no "), "{reply:?}");
    }
    bed.signal_master(Signal::USR1)?;
    said("worker=0", "the manager", "reloaded")?;
    client.expect_line("reloaded")?;
    bed.stop()?;
    Ok(())
}

fn sizes(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1).start()?;
    let (mut client, mut other) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    // Whatever does not fit into what may wait goes by itself, when the last one is taken.
    let sizes = [0, 1, 32_750, 32_768, 65_536, 1_000_000, 20_000_000];
    for (size, sent) in sizes.into_iter().zip(1..) {
        for (from, to) in [("", "1"), ("", "t0"), ("taskwait 5000 ", "1")] {
            let reply = client.ask(&format!("{from}messages {to} 1 {size}"))?;
            ensure!(reply.ends_with("sent 1"), "{size} bytes to {to}: {reply:?}");
        }
        wait_tally(&mut other, "1", &[("worker 0", sent), ("task worker 0", sent)])?;
        wait_tally(&mut other, "t0", &[("worker 0", sent)])?;
    }
    bed.stop()?;
    Ok(())
}

fn to_sleeper(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1).start()?;
    let (mut sleeper, mut sender) = (bed.connect_to_worker(1)?, bed.connect_to_worker(0)?);
    let mut task_client = bed.connect_to_worker(0)?;
    bed.occupy(&mut sleeper, 1500)?;
    sender.expect("task sleep 1500", "task 0.1.1")?;
    let mut taken = [0, 0];
    for (to, taken) in ["1", "t0"].into_iter().zip(&mut taken) {
        for round in 0.. {
            ensure!(round < 1000, "{to} sleeps, and {taken} messages of 10,000 bytes were taken for it");
            let reply = sender.ask(&format!("messages {to} 10 10000"))?;
            let sent: u64 = reply.strip_prefix("sent ").context(reply.clone())?.parse()?;
            *taken += sent;
            if sent < 10 {
                break;
            }
        }
        sender.expect("echo not blocked", "not blocked")?;
    }
    ensure!(!sleeper.has_reply()?, "it has woken too early for this to tell anything");
    sleeper.expect_line("slept 1500")?;
    wait_tally(&mut task_client, "1", &[("worker 0", taken[0])])?;
    wait_tally(&mut task_client, "t0", &[("worker 0", taken[1])])?;
    bed.stop()?;
    Ok(())
}

fn amid_reloads(cx: &Cx) -> Result<()> {
    const ROUNDS: usize = 10;
    let bed = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1).start()?;
    let (mut sender, mut receiver) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    let session = receiver.session()?;
    let (text, so_far) = ("t".repeat(100_000), AtomicUsize::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let reading = scope.spawn(|| read_numbered(&mut receiver, &text, &so_far));
        let (mut sent, mut asked) = (0, 0);
        loop {
            let ended = bed.count("on_after_reload");
            if ended == ROUNDS {
                break;
            }
            if asked == ended {
                bed.signal_master(Signal::USR1)?;
                asked += 1;
            }
            keep_pace(sent, &so_far)?;
            let reply = sender.ask(&format!("message 1 send {session} {sent} {text}"))?;
            // While nobody reads them there may be too many.
            ensure!(reply == "ok" || reply.contains("does not take what is sent to it"), "{reply:?}");
            sent += usize::from(reply == "ok");
        }
        proc::until("room for the last one", PATIENCE, || {
            let reply = sender.ask(&format!("message 1 send {session} end")).ok()?;
            (reply == "ok").then_some(())
        })?;
        let came = reading.join().map_err(|_| anyhow!("the reader panicked"))??;
        ensure!(came == sent, "of {sent} came {came}");
        Ok(())
    })?;
    bed.stop()?;
    Ok(())
}

fn amid_deaths(cx: &Cx) -> Result<()> {
    const KILLS: usize = 15;
    const PEERS: [&str; 5] = ["0", "1", "2", "t0", "t1"];
    let mut rng = cx.rng();
    let bed = cx.testbed().flag("worker-num", 3).flag("task-worker-num", 2).start()?;
    let mut client = bed.connect_to_worker(0)?;
    let session = client.session()?;
    for kill in 0..KILLS {
        // From all to all; what is refused, or cut by a death, is so.
        let mut other = bed.connect_to_worker(1)?;
        for to in PEERS {
            let size = rng.usize(0..150_000);
            for line in [format!("messages {to} 5 {size}"), format!("task messages {to} 5 {size}")] {
                client.tell(&line)?;
                other.tell(&line)?;
            }
        }
        // The worker of the client that looks in the end is spared: in Base mode that would be lost.
        let (workers, task_workers) = (bed.lives(), task_workers_of(&bed));
        match rng.u32(1..5) {
            worker @ 1..=2 => {
                let pid = workers[&worker].pid;
                proc::signal(pid, Signal::KILL)?;
                bed.wait_successor(worker, pid).with_context(|| format!("kill {kill}"))?;
            }
            victim => {
                let pid = task_workers[&(victim - 3)];
                proc::signal(pid, Signal::KILL)?;
                wait_task_worker(&bed, victim - 3, pid).with_context(|| format!("kill {kill}"))?;
            }
        }
    }
    let mut tallied = 0;
    for to in PEERS {
        client.tell(&format!("message {to} tally {session}"))?;
    }
    while tallied < PEERS.len() {
        let line = client.line()?;
        if line.starts_with("tally ") {
            ensure!(line.ends_with(" wrong=0"), "{line:?}");
            tallied += 1;
        }
    }
    bed.stop()?;
    Ok(())
}

fn crash(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1).start()?;
    let (mut client, mut other) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    let session = client.session()?;
    for (to, how) in [("1", "panic"), ("1", "kill"), ("t0", "segv")] {
        let pid = if to == "1" { bed.lives()[&1].pid } else { task_workers_of(&bed)[&0] };
        if to == "1" {
            // So that all of them lie in its box when it dies.
            bed.occupy(&mut other, 200)?;
        }
        let texts =
            [format!("send {session} before"), format!("crash {how}"), format!("send {session} after")];
        let packets = texts.map(|text| format!("message {to} {text}"));
        client.tell_all(&packets.each_ref().map(String::as_str))?;
        let mut lines = (0..5).map(|_| client.line()).collect::<Result<Vec<_>>>()?;
        lines.retain(|line| line != "ok");
        ensure!(lines == ["before", "after"], "{lines:?}");
        bed.wait_error(pid)?;
        if to == "1" {
            if bed.is_base() {
                other = bed.connect_to_worker(1)?;
            } else {
                other.expect_line("slept 200")?;
            }
        }
    }
    bed.stop()?;
    Ok(())
}

fn task_worker_sends(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("task-worker-num", 1).start()?;
    let mut clients = (0..8).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let sessions = clients.iter_mut().map(Client::session).collect::<Result<Vec<_>>>()?;
    let mut asker = bed.connect()?;
    for (client, session) in clients.iter_mut().zip(&sessions) {
        let text = format!("for {session} {}", "x".repeat(100_000));
        for number in 0..20 {
            asker.tell(&format!("taskto 0 send {session} {number} {text}"))?;
        }
        for number in 0..20 {
            client.expect_line(&format!("{number} {text}"))?;
        }
        for _ in 0..40 {
            let line = asker.line()?;
            ensure!(!line.contains("error"), "{line:.80}");
        }
    }
    let session = &sessions[0];
    asker.expect(&format!("taskwait 5000 exists {session}"), "result true")?;
    asker.expect(
        &format!("taskall 5000 send {session} bye|close {session}"),
        &format!("results SEND {session} BYE|CLOSE {session}"),
    )?;
    clients[0].expect_line("bye")?;
    clients[0].expect_close()?;
    asker.expect(&format!("taskwait 5000 exists {session}"), "result false")?;
    let reply = asker.ask(&format!("taskwait 5000 send {session} too late"))?;
    ensure!(reply.contains("no such session"), "{reply:?}");
    bed.stop()?;
    Ok(())
}

fn task_worker_sends_to_slow_client(cx: &Cx) -> Result<()> {
    let bed = cx
        .testbed()
        .flag("worker-num", 1)
        .flag("task-worker-num", 1)
        .flag("socket-buffer-size", "256K")
        .start()?;
    let (mut slow, mut asker) = (bed.connect()?, bed.connect()?);
    let session = slow.session()?;
    let text = "x".repeat(200_000);
    let refused = (0..200).find_map(|_| {
        let reply = asker.ask(&format!("taskwait 5000 send {session} {text}"));
        reply.map(|reply| reply.contains("no such session").then_some(())).transpose()
    });
    refused.context("a client that does not read was sent 40 MB")??;
    asker.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    Ok(())
}

fn manager_sends(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).word("--tell-reloads").start()?;
    let mut clients = (0..20).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    clients.iter_mut().try_for_each(|client| client.expect("echo here", "here"))?;
    for round in 1..=3 {
        bed.signal_master(Signal::USR1)?;
        clients.iter_mut().try_for_each(|client| client.expect_line("reloaded"))?;
        bed.log.wait_count("on_pipe_message worker=0 from=the manager reloaded", round, PATIENCE)?;
        bed.log.wait_count("on_after_reload", round, PATIENCE)?;
        if !bed.is_base() {
            bed.replace_manager()?;
        }
    }
    bed.stop()?;
    Ok(())
}

fn user_process(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1);
    let bed = launch.flag("processes", "deaf:hang,post:mail").start()?;
    let mut client = bed.connect_to_worker(0)?;
    let session = client.session()?;
    for round in 0..3 {
        client.expect_both(&format!("message p1 send {session} from a process"), ["ok", "from a process"])?;
        client.expect_both(
            &format!("taskwait 5000 message p1 pass 1 pass t0 send {session} all the way"),
            ["all the way", &format!("result MESSAGE P1 PASS 1 PASS T0 SEND {session} ALL THE WAY")],
        )?;
        for size in [0, 100_000, 20_000_000] {
            client.expect(&format!("messages p1 1 {size}"), "sent 1")?;
            let got = format!("got {size}");
            let first = proc::until("room behind it", PATIENCE, || {
                let reply = client.ask(&format!("message p1 send {session} {got}"));
                (!reply.as_ref().is_ok_and(|reply| reply.starts_with("error"))).then_some(reply)
            })??;
            // The other one of the two.
            client.expect_line(if first == "ok" { &got } else { "ok" })?;
        }
        // One that does not read its mail costs its senders no more than that.
        if round == 0 {
            let full = (0..1000).find_map(|_| {
                let reply = client.ask("messages p0 10 100000");
                reply.map(|reply| (reply != "sent 10").then_some(())).transpose()
            });
            full.context("100 GB were taken for one that does not read")??;
        }
        let start = "on_process_start process=post pid=";
        let lines = bed.log.wait_count(start, round + 1, PATIENCE)?;
        let pid = field(&lines[round].text, "pid").and_then(|pid| pid.parse().ok());
        proc::signal(pid.context("no pid")?, Signal::KILL)?;
        bed.log.wait_count(start, round + 2, PATIENCE)?;
    }
    let reply = client.ask("message p2 x")?;
    ensure!(reply.contains("there is no user process 2"), "{reply:?}");
    Ok(())
}
