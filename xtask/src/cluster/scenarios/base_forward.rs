//! Base mode: what workers send to each other's clients.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) static ALL: &[Scenario] = &[
    full(
        "base_forward",
        "send, close and broadcast reach clients of other workers, 3 MB at once, too",
        forward,
    )
    .in_base(),
    full(
        "base_forward_to_sleeper",
        "what is sent to clients of a worker that is blocked comes afterwards, in order, up to a limit",
        to_sleeper,
    )
    .in_base(),
    full(
        "base_forward_amid_reloads",
        "what is sent across workers comes whole, once and in order while they are being replaced",
        amid_reloads,
    )
    .in_base(),
];

fn forward(cx: &Cx) -> Result<()> {
    const LARGE: usize = 3_000_000;
    let bed = cx.testbed().flag("worker-num", 3).flag("package-max-length", 4_000_000).start()?;
    let mut clients = (0..3).map(|worker| bed.connect_to_worker(worker)).collect::<Result<Vec<_>>>()?;
    let sessions = clients.iter_mut().map(Client::session).collect::<Result<Vec<_>>>()?;
    for from in 0..3 {
        for to in (0..3).filter(|to| *to != from) {
            clients[from].expect(&format!("send {} from {from}", sessions[to]), "ok")?;
            clients[to].expect_line(&format!("from {from}"))?;
        }
        clients[from].expect(&format!("broadcast {from} to all"), "sent 2")?;
        for to in (0..3).filter(|to| *to != from) {
            clients[to].expect_line(&format!("{from} to all"))?;
        }
    }
    // Two large ones to the same worker's client at the same time, a third one the other way.
    let large = |letter: char| letter.to_string().repeat(LARGE);
    clients[0].tell(&format!("send {} {}", sessions[2], large('a')))?;
    clients[1].tell(&format!("send {} {}", sessions[2], large('b')))?;
    clients[2].tell(&format!("send {} {}", sessions[0], large('c')))?;
    let mut came = Vec::new();
    for _ in 0..3 {
        came.push(clients[2].line()?);
    }
    came.sort_unstable_by_key(|line| (line.len(), line.as_bytes()[0]));
    ensure!(came == ["ok".to_owned(), large('a'), large('b')], "the third got other lines");
    clients[1].expect_line("ok")?;
    let mut came = [clients[0].line()?, clients[0].line()?];
    came.sort_unstable_by_key(String::len);
    ensure!(came == ["ok".to_owned(), large('c')], "the first got other lines");

    clients[0].tell_all(&[&format!("send {} last words", sessions[1]), &format!("close {}", sessions[1])])?;
    clients[0].expect_line("ok")?;
    clients[0].expect_line("ok")?;
    clients[1].expect_line("last words")?;
    clients[1].expect_close()?;
    clients[0].expect(&format!("send {} too late", sessions[1]), "error: no such session")?;
    bed.stop()?;
    Ok(())
}

fn to_sleeper(cx: &Cx) -> Result<()> {
    const MESSAGES: usize = 300;
    let text = |number: usize| format!("{number} {}", "m".repeat(20_000));
    let bed = cx.testbed().flag("worker-num", 2).flag("socket-buffer-size", "8M").start()?;
    let (mut sleeper, mut other) = (bed.connect_to_worker(1)?, bed.connect_to_worker(1)?);
    let mut sender = bed.connect_to_worker(0)?;
    let (own, session) = (sleeper.session()?, other.session()?);
    bed.occupy(&mut sleeper, 1500)?;
    for number in 0..MESSAGES {
        sender.expect(&format!("send {session} {}", text(number)), "ok")?;
    }
    ensure!(!other.has_reply()?, "a worker that sleeps has sent something");
    // Nobody waits for the one that sleeps, and it is said when enough waits for it.
    let complaint = (0..MESSAGES).find_map(|number| {
        let reply = sender.ask(&format!("send {own} {}", text(number)));
        reply.map(|reply| (reply != "ok").then_some((number, reply))).transpose()
    });
    let (taken, complaint) =
        complaint.ok_or_else(|| anyhow!("12 MB were taken for a worker that sleeps"))??;
    ensure!(complaint.contains("socket_buffer_size") || complaint.contains("worker 1"), "{complaint:?}");
    sleeper.expect_line("slept 1500")?;
    for number in 0..MESSAGES {
        other.expect_line(&text(number)).with_context(|| format!("message {number}"))?;
    }
    for number in 0..taken {
        sleeper.expect_line(&text(number)).with_context(|| format!("message {number} to the sleeper"))?;
    }
    sender.expect(&format!("send {own} again"), "ok")?;
    sleeper.expect_line("again")?;
    bed.stop()?;
    Ok(())
}

/// Reads numbered lines, each with this text, until one says that it is the end: how many. They are counted as they come.
pub(super) fn read_numbered(receiver: &mut Client, text: &str, came: &AtomicUsize) -> Result<usize> {
    let mut number = 0;
    loop {
        let line = receiver.line()?;
        if line == "end" {
            return Ok(number);
        }
        ensure!(line == format!("{number} {text}"), "{number} came as {line:.20}");
        number += 1;
        came.store(number, Ordering::Relaxed);
    }
}

/// Waits until so few of the lines are on their way that their reader is not taken for one that does not read.
pub(super) fn keep_pace(sent: usize, came: &AtomicUsize) -> Result<()> {
    const LEAD: usize = 40;
    proc::until("the reader to keep up", PATIENCE, || {
        (sent <= came.load(Ordering::Relaxed) + LEAD).then_some(())
    })
}

/// Sends numbered lines to a session until `rounds` reloads are over; how many.
fn send_amid(
    bed: &Bed,
    sender: &mut Client,
    (session, came): (&str, &AtomicUsize),
    rounds: usize,
    text: &str,
) -> Result<usize> {
    let (mut sent, mut asked) = (0, 0);
    loop {
        keep_pace(sent, came)?;
        let ended = bed.count("on_after_reload");
        if ended == rounds {
            return Ok(sent);
        }
        if asked == ended {
            bed.signal_master(Signal::USR1)?;
            asked += 1;
        }
        // Who is away for a while takes up to socket_buffer_size, and then nothing until it is back.
        proc::until("room in the other worker's box", PATIENCE, || {
            let reply = sender.ask(&format!("send {session} {sent} {text}"));
            let is_full = reply.as_ref().is_ok_and(|reply| reply.contains("does not take what is sent"));
            (!is_full).then_some(reply)
        })?
        .and_then(|reply| {
            ensure!(reply == "ok", "line {sent} got {reply:?}");
            Ok(())
        })?;
        sent += 1;
    }
}

fn amid_reloads(cx: &Cx) -> Result<()> {
    for mode in ["rolling", "all"] {
        let bed = cx.testbed().flag("worker-num", 2).flag("reload-mode", mode).start()?;
        let (mut sender, mut receiver) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
        let session = receiver.session()?;
        let (text, so_far) = ("t".repeat(100_000), AtomicUsize::new(0));
        std::thread::scope(|scope| -> Result<()> {
            let reading = scope.spawn(|| read_numbered(&mut receiver, &text, &so_far));
            let sent = send_amid(&bed, &mut sender, (&session, &so_far), 12, &text)?;
            sender.expect(&format!("send {session} end"), "ok")?;
            let came = reading.join().map_err(|_| anyhow!("the reader panicked"))?.context(mode)?;
            ensure!(came == sent, "{mode}: of {sent} came {came}");
            Ok(())
        })?;
        bed.log.wait_count("on_after_reload", 12, PATIENCE)?;
        bed.stop()?;
    }
    Ok(())
}
