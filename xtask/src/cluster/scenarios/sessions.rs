//! What is known of one client, and what a handler does with its connection.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::io::Read;

pub(super) static ALL: &[Scenario] = &[
    full("session_info", "bytes, times and what waits for a client, asked by itself and by others", info),
    full("session_pages", "all sessions in pages, whatever comes and goes between two of them", pages),
    full(
        "session_pause",
        "a paused client is not read from, through reloads and deaths, and is sent to and closed",
        pause,
    ),
    full("session_pause_stop", "a stop does not wait for what paused clients have sent", pause_stop),
    full(
        "session_confirm",
        "nothing is read before the confirmation, on the addresses that want it",
        confirm,
    ),
    full("session_reset", "a reset drops what waits, and the client sees it", reset),
    full(
        "session_watermarks",
        "a slow client's worker hears of it once each way, round by round",
        watermarks,
    ),
];

/// Two clients of which one asks about the other: that one's session.
fn pair(bed: &Bed) -> Result<(Client, Client, String)> {
    let (asker, mut other) = (bed.connect()?, bed.connect()?);
    let session = other.session()?;
    Ok((asker, other, session))
}

/// A field of what is known of a session, once it is such.
fn wait_field(asker: &mut Client, session: &str, key: &str, value: &str) -> Result<()> {
    proc::until(&format!("{key}={value}"), PATIENCE, || {
        let reply = asker.ask(&format!("session {session}")).ok()?;
        (field(&reply, key) == Some(value)).then_some(())
    })
}

fn info(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let (mut asker, mut other, session) = pair(&bed)?;
    other.expect("echo 1234567890", "1234567890")?;
    let reply = asker.ask(&format!("session {session}"))?;
    let number = |key: &str| -> Result<u64> {
        field(&reply, key).and_then(|value| value.parse().ok()).with_context(|| format!("{key}= in {reply}"))
    };
    ensure!(number("recv")? == "session\necho 1234567890\n".len() as u64, "{reply}");
    ensure!(number("sent")? > "1234567890\n".len() as u64, "{reply}");
    let (connected, received, sent) = (number("connected")?, number("received_at")?, number("sent_at")?);
    // The coarse clock may be a tick behind.
    ensure!(connected <= received + 20 && received <= sent + 20, "{reply}");
    ensure!(field(&reply, "peer") == Some(&format!("127.0.0.1:{}", other.port()?)), "{reply}");
    ensure!(field(&reply, "listener") == Some("0"), "{reply}");
    wait_field(&mut asker, &session, "pending", "0")?;
    asker.expect(&format!("protect {session}"), "ok")?;
    wait_field(&mut asker, &session, "protected", "true")?;
    other.expect("unprotect", "ok")?;
    wait_field(&mut asker, &session, "protected", "false")?;
    drop(other);
    proc::until("the session to be gone", PATIENCE, || {
        let reply = asker.ask(&format!("session {session}")).ok()?;
        (reply == "error: no such session").then_some(())
    })?;
    bed.stop()?;
    Ok(())
}

fn pages(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).flag("reactor-num", 2).start()?;
    let mut asker = bed.connect()?;
    let mut clients: Vec<Client> = (0..40).map(|_| bed.connect()).collect::<Result<_>>()?;
    let sessions = clients.iter_mut().map(Client::session).collect::<Result<Vec<_>>>()?;
    let (mut found, mut page) = (Vec::new(), asker.ask("sessions 7")?);
    while !page.is_empty() {
        found.extend(page.split(',').map(str::to_owned));
        // The last of the page leaves, and somebody else may come to its place.
        let last = found.last().context("a page")?.clone();
        if let Some(index) =
            sessions.iter().position(|session| *session == last).filter(|index| index % 2 == 0)
        {
            asker.expect(&format!("close {last}"), "ok")?;
            clients[index].expect_close()?;
            clients[index] = bed.connect()?;
            clients[index].expect("echo new", "new")?;
        }
        page = asker.ask(&format!("sessions 7 {last}"))?;
    }
    let different: BTreeSet<&String> = found.iter().collect();
    ensure!(different.len() == found.len(), "somebody is in two pages: {found:?}");
    // Who has left was in a page before.
    let missing: Vec<&String> = sessions.iter().filter(|session| !different.contains(session)).collect();
    ensure!(missing.is_empty(), "not in any page: {missing:?}");
    bed.stop()?;
    Ok(())
}

/// What a client sends is in its kernel or the server's, and stays there.
fn expect_unread(asker: &mut Client, client: &Client, bed: &Bed, session: &str) -> Result<()> {
    let received = |asker: &mut Client| asker.ask(&format!("session {session}"));
    client.wait_arrived(bed.port()?)?;
    let before = received(asker)?;
    // Others are served meanwhile, by all processes.
    for _ in 0..50 {
        asker.expect("sleep 5", "slept 5")?;
    }
    let after = received(asker)?;
    ensure!(field(&before, "recv") == field(&after, "recv"), "it was read from: {before}, then {after}");
    ensure!(!client.has_reply()?, "a paused client has an answer");
    Ok(())
}

fn pause(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 1).start()?;
    let (mut asker, mut other, session) = pair(&bed)?;
    asker.expect(&format!("pause {session}"), "ok")?;
    wait_field(&mut asker, &session, "paused", "true")?;
    other.tell("echo later")?;
    expect_unread(&mut asker, &other, &bed, &session)?;
    // It is sent to all the same.
    asker.expect(&format!("send {session} meanwhile"), "ok")?;
    other.expect_line("meanwhile")?;
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_line(Source::Stdout, &["on_after_reload"], PATIENCE)?;
    expect_unread(&mut asker, &other, &bed, &session)?;
    if !bed.is_base() {
        for worker in bed.workers() {
            proc::signal(worker, Signal::KILL)?;
            bed.wait_error(worker)?;
        }
        expect_unread(&mut asker, &other, &bed, &session)?;
    }
    asker.expect(&format!("resume {session}"), "ok")?;
    other.expect_line("later")?;
    // By itself, several times: what was read together with it may still come.
    for round in 0..20 {
        other.expect("pause", "ok")?;
        other.tell(&format!("echo {round}"))?;
        asker.expect(&format!("resume {session}"), "ok")?;
        other.expect_line(&round.to_string())?;
    }
    // Paused, it can be closed; and that it has left is noticed when it is resumed.
    asker.expect(&format!("pause {session}"), "ok")?;
    asker.expect(&format!("close {session}"), "ok")?;
    other.expect_close()?;
    let mut other = bed.connect()?;
    let session = other.session()?;
    other.expect("pause", "ok")?;
    drop(other);
    asker.expect(&format!("resume {session}"), "ok")?;
    proc::until("the session to be gone", PATIENCE, || {
        (asker.ask(&format!("session {session}")).ok()? == "error: no such session").then_some(())
    })?;
    bed.stop()?;
    Ok(())
}

fn pause_stop(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 20).start()?;
    let (mut asker, mut other, session) = pair(&bed)?;
    asker.expect(&format!("pause {session}"), "ok")?;
    wait_field(&mut asker, &session, "paused", "true")?;
    other.tell("echo never")?;
    other.wait_arrived(bed.port()?)?;
    let took = bed.stop()?;
    ensure!(took.as_secs() < 5, "the stop took {took:?}");
    ensure!(other.drain(PATIENCE)?.is_empty(), "what a paused client had sent was answered in the stop");
    Ok(())
}

fn confirm(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("listen", "tcp://127.0.0.1:0?enable_delay_receive=true");
    let bed = launch.flag("worker-num", 2).flag("connect-time", 0).start()?;
    let mut asker = bed.connect()?;
    asker.expect("echo at once", "at once")?;
    let (Some(delayed), own) = (bed.ready.listen.get(1), asker.session()?) else {
        anyhow::bail!("two addresses: {:?}", bed.ready.listen)
    };
    let Address::Tcp(address) = delayed else { anyhow::bail!("{delayed:?}") };
    let mut client = Client::connect(delayed)?;
    client.tell_all(&["echo one", "echo two"])?;
    client.wait_arrived(address.port())?;
    let connected = bed.log.wait("its connect", PATIENCE, |lines| {
        let connects = lines.iter().filter(|line| line.text.starts_with("on_connect"));
        connects
            .filter_map(|line| field(&line.text, "session"))
            .find(|session| *session != own)
            .map(str::to_owned)
    })?;
    for _ in 0..50 {
        asker.expect("sleep 5", "slept 5")?;
    }
    let reply = asker.ask(&format!("session {connected}"))?;
    ensure!(field(&reply, "recv") == Some("0") && field(&reply, "paused") == Some("true"), "{reply}");
    asker.expect(&format!("confirm {connected}"), "ok")?;
    client.expect_line("one")?;
    client.expect_line("two")?;
    client.expect("echo three", "three")?;
    bed.stop()?;
    Ok(())
}

fn reset(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let (mut asker, mut other, session) = pair(&bed)?;
    // More than the kernel takes.
    other.tell("big 7000000")?;
    proc::until("something to wait for the client", PATIENCE, || {
        let reply = asker.ask(&format!("session {session}")).ok()?;
        field(&reply, "pending").and_then(|bytes| bytes.parse().ok()).filter(|bytes: &u64| *bytes > 100_000)
    })?;
    asker.expect(&format!("reset {session}"), "ok")?;
    let mut stream = other.writer()?;
    let mut buffer = vec![0; 1 << 20];
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => anyhow::bail!("closed in order"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    ensure!(asker.ask(&format!("session {session}"))? == "error: no such session");
    // Of itself, and twice.
    let mut other = bed.connect()?;
    other.tell_all(&["reset", "reset", "echo never"])?;
    ensure!(other.drain(PATIENCE)?.is_empty(), "an answer after the reset");
    asker.expect("echo fine", "fine")?;
    bed.stop()?;
    Ok(())
}

fn watermarks(cx: &Cx) -> Result<()> {
    const REPLY: usize = 16 << 20;
    let launch = cx.testbed().flag("worker-num", 2).flag("socket-buffer-size", "64M");
    let bed = launch.flag("buffer-high-watermark", "4M").flag("buffer-low-watermark", "1M").start()?;
    let mut asker = bed.connect()?;
    let mut slow = Client::connect_narrow(bed.address()?, 64 << 10)?;
    let session = slow.session()?;
    let worker = slow.worker()?;
    for round in 1..=3 {
        // The kernel has room for some 5 MiB of it. One reply, because several count as waiting until the end of their
        // turn, when the kernel may take all but a few of them.
        slow.tell(&format!("big {REPLY}"))?;
        let (full, empty) = ("on_buffer_full", "on_buffer_empty");
        let named = |name: &str| format!("{name} worker={worker} session={session}");
        bed.log.wait_count(&named(full), round, PATIENCE)?;
        asker.expect("echo between", "between")?;
        ensure!(bed.count(empty) == round - 1, "told of {empty} before anything was read");
        slow.exactly(REPLY + 1)?;
        bed.log.wait_count(&named(empty), round, PATIENCE)?;
        asker.expect("echo between", "between")?;
        ensure!((bed.count(full), bed.count(empty)) == (round, round), "told too often in round {round}");
    }
    bed.stop()?;
    Ok(())
}
