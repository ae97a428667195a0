//! Base mode: a worker that retires leaves its clients to the next, whatever they are in the middle of.

use crate::cluster::bed::PATIENCE;
use crate::cluster::client::Client;
use crate::cluster::load::Load;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full(
        "base_reload_keeps_clients",
        "2,000 idle ones, busy ones, half packets and unread replies: a reload harms none, sessions stay",
        reload_keeps_clients,
    )
    .in_base(),
    full(
        "base_retire_half_closed",
        "who has ended its side gets what it asked for, although the worker retires in the middle",
        half_closed,
    )
    .in_base(),
    full(
        "base_retire_slow_close",
        "a client that is being closed and reads slowly keeps nobody from the next worker",
        slow_close,
    )
    .in_base(),
    full(
        "base_retire_failed_start",
        "a successor that fails to start costs no client: they wait for the one that does not",
        failed_start,
    )
    .in_base(),
    full(
        "base_retire_late_stop",
        "a stop between a retirement and the successor's start answers what was left",
        late_stop,
    )
    .in_base(),
];

/// All that a reply to `session` tells of each connection but its traffic.
fn identities(clients: &mut [Client]) -> Result<Vec<String>> {
    clients.iter_mut().try_for_each(|client| client.tell("session"))?;
    let identity = |(index, client): (usize, &mut Client)| {
        let reply = client.line().with_context(|| format!("idle client {index}"))?;
        Ok(reply.split(" recv=").next().unwrap_or_default().to_owned())
    };
    clients.iter_mut().enumerate().map(identity).collect()
}

fn reload_keeps_clients(cx: &Cx) -> Result<()> {
    const BIG: usize = 7_000_000;
    for mode in ["rolling", "all"] {
        let bed = cx.testbed().flag("worker-num", 2).flag("reload-mode", mode).start()?;
        let address = bed.address()?;
        let mut idle = (0..2000).map(|_| Client::connect_small(address)).collect::<Result<Vec<_>>>()?;
        let before = identities(&mut idle)?;
        let load = Load::start(address, 4)?;
        for round in 1..=3 {
            let mut halves = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
            let mut readers = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
            for client in &mut halves {
                client.send(b"echo first\necho hal")?;
                client.expect_line("first")?;
            }
            for client in &mut readers {
                set_socket_recv_buffer_size(client.writer()?, 256 << 10)?;
                client.tell_all(&[&format!("big {BIG}"), "echo behind it"])?;
                client.wait_read(bed.port()?)?;
            }
            load.wait_more(200)?;
            bed.signal_master(Signal::USR1)?;
            bed.log.wait_count("on_after_reload", round, PATIENCE)?;
            for client in &mut halves {
                client.send(b"f\n")?;
                client.expect_line("half")?;
            }
            for (index, client) in readers.iter_mut().enumerate() {
                let reply = client.exactly(BIG + 1).with_context(|| format!("reader {index}"))?;
                ensure!(reply[..BIG].iter().all(|byte| *byte == b'x'), "reader {index} got other bytes");
                client.expect_line("behind it")?;
            }
            let now = identities(&mut idle)?;
            let changed = before.iter().zip(&now).find(|(before, now)| before != now);
            ensure!(changed.is_none(), "round {round}: an idle client's identity changed: {changed:?}");
            let stats = bed.connect()?.ask("stats")?;
            ensure!(stats.contains("\"connection_num\":2013,"), "2000 + 4 + 4 + 4 + 1 clients, but {stats}");
        }
        load.finish_unharmed()?;
        ensure!(bed.worker_errors().is_empty(), "a worker did not retire but die");
        drop(idle);
        bed.stop()?;
    }
    Ok(())
}

fn half_closed(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    for round in 0..5 {
        let mut client = bed.connect()?;
        client.tell_all(&["echo before", "sleep 50", "stop", "echo one", "stop", "echo two"])?;
        client.finish()?;
        let rest = client.drain(PATIENCE)?;
        let rest = String::from_utf8_lossy(&rest);
        ensure!(rest == "before\nslept 50\nok\none\nok\ntwo\n", "round {round} got {rest:?}");
    }
    ensure!(bed.worker_errors().is_empty(), "a worker did not retire but die");
    bed.stop()?;
    Ok(())
}

fn failed_start(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("crash-on-start", "0:2").start()?;
    let mut clients = (0..10).map(|_| bed.connect_to_worker(0)).collect::<Result<Vec<_>>>()?;
    let before = identities(&mut clients)?;
    for client in &mut clients {
        client.send(b"echo hal")?;
        client.wait_read(bed.port()?)?;
    }
    clients[0].tell("f\nstop")?;
    clients[0].expect_line("half")?;
    clients[0].expect_line("ok")?;
    for client in &mut clients[1..] {
        client.send(b"f\n")?;
        client.expect_line("half")?;
    }
    ensure!(identities(&mut clients)? == before, "somebody has got another identity");
    ensure!(bed.lives()[&0].generation == 3, "generation {} took over", bed.lives()[&0].generation);
    ensure!(bed.worker_errors().len() == 1, "one start failed, not {}", bed.worker_errors().len());
    bed.stop()?;
    Ok(())
}

fn late_stop(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 10).start()?;
    let (mut client, mut other) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    let (manager, pid) = (bed.ready.manager, bed.lives()[&0].pid);
    // The worker has retired, and the manager, which knows nothing of that yet, finds the stop first.
    proc::halt(manager)?;
    client.tell_all(&["sleep 100", "stop", "echo left behind"])?;
    proc::until("the worker's end", PATIENCE, || (!proc::alive(pid)).then_some(()))?;
    other.tell("echo to the other")?;
    bed.signal_master(Signal::TERM)?;
    proc::signal(manager, Signal::CONT)?;
    for line in ["slept 100", "ok", "left behind"] {
        client.expect_line(line)?;
    }
    client.expect_close()?;
    other.expect_line("to the other")?;
    other.expect_close()?;
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

fn slow_close(cx: &Cx) -> Result<()> {
    const BIG: usize = 7_000_000;
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 15).start()?;
    let mut slow = bed.connect()?;
    set_socket_recv_buffer_size(slow.writer()?, 256 << 10)?;
    slow.tell_all(&[&format!("big {BIG}"), "close"])?;
    slow.wait_read(bed.port()?)?;
    let mut other = bed.connect()?;
    other.expect("echo behind it", "behind it")?;
    for round in 1..=2 {
        let start = Instant::now();
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", round, PATIENCE)?;
        other.expect("echo with the next", "with the next")?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(3), "the client of another waited {took:?}");
    }
    let rest = slow.drain(PATIENCE)?;
    ensure!(rest.len() == BIG + 1, "{} bytes came before the close instead of {}", rest.len(), BIG + 1);
    proc::until("only one client in the books", PATIENCE, || {
        other.ask("stats").ok()?.contains("\"connection_num\":1,").then_some(())
    })?;
    bed.stop()?;
    Ok(())
}
