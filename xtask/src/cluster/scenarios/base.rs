//! Base mode: what its processes hold, what a death costs, and what a retirement does not.

use super::crash::wait_worker_count;
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Instant;

pub(super) static ALL: &[Scenario] = &[
    full("base_shape", "manager > workers, one thread each; each worker's own listener and clients", shape)
        .in_base(),
    full(
        "base_port_taken",
        "the port of a server in Base mode is taken, although its workers share it",
        port_taken,
    )
    .in_base(),
    full("base_early_clients", "whoever connects while the server starts is served", early_clients).in_base(),
    full(
        "base_kill_each_worker",
        "kill -9 of every worker in turn costs its own clients and nobody else's",
        kill_each_worker,
    )
    .in_base(),
    full(
        "base_kill_under_load",
        "kill -9 of a worker under load harms no client of the other one",
        kill_under_load,
    )
    .in_base(),
    full("base_sessions_are_unique", "no session comes twice, whoever dies or retires", sessions_are_unique)
        .in_base(),
    full(
        "base_backlog_waits",
        "connections made while there is no worker are served by the next one",
        backlog_waits,
    )
    .in_base(),
    full(
        "base_crash_on_start",
        "clients of a worker that never starts wait for it, the others are served",
        crash_on_start,
    )
    .in_base(),
    full(
        "base_stop_answers_all",
        "a stop answers all that clients have sent to a worker that was busy, be they a thousand",
        stop_answers_all,
    )
    .in_base(),
    full(
        "base_crash_in_stop",
        "a worker that dies during the stop takes its own clients along, and no others",
        crash_in_stop,
    )
    .in_base(),
];

/// Inodes of the server's end of TCP sockets: of a client's connection, or with `None` of all its listeners.
fn inodes(port: u16, client: Option<&Client>) -> Result<BTreeSet<u64>> {
    let remote = client.map_or(Ok(0), Client::port)?;
    let ours = |row: &proc::TcpRow| (row.local_port, row.remote_port) == (port, remote);
    Ok(proc::tcp_rows().into_iter().filter(ours).map(|row| row.inode).collect())
}

fn shape(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).start()?;
    let (manager, port) = (bed.ready.manager, bed.port()?);
    ensure!(bed.ready.master == bed.pid() && bed.is_base(), "not one process for both: {:?}", bed.ready);
    let workers: BTreeSet<i32> = bed.ready.workers.iter().copied().collect();
    let tree: BTreeSet<i32> = proc::descendants(manager).into_iter().collect();
    ensure!(workers.len() == 3 && tree == workers, "below the manager are {tree:?}, the workers {workers:?}");
    for pid in workers.iter().chain([&manager]) {
        let threads = proc::threads(*pid)?;
        ensure!(threads.len() == 1, "process {pid} has threads {threads:?} instead of one");
    }

    let all = inodes(port, None)?;
    ensure!(all.len() == 3, "{} listeners for 3 workers", all.len());
    let held = |pid: i32, sockets: &BTreeSet<u64>| -> Result<Vec<u64>> {
        Ok(proc::socket_inodes(pid)?.intersection(sockets).copied().collect())
    };
    ensure!(held(manager, &all)?.len() == 3, "the manager does not keep every listener");
    let mut owners = BTreeSet::new();
    for &pid in &workers {
        let own = held(pid, &all)?;
        ensure!(own.len() == 1, "worker {pid} holds {} listeners", own.len());
        owners.extend(own);
    }
    ensure!(owners == all, "two workers share a listener: {owners:?} of {all:?}");
    workers.iter().try_for_each(|worker| super::shape::uses_backend(cx, *worker))?;

    for worker in 0..3 {
        let mut client = bed.connect_to_worker(worker)?;
        let (pid, connection): (i32, _) = (client.ask_field("whoami", "pid")?, inodes(port, Some(&client))?);
        for &other in workers.iter().chain([&manager]) {
            let holds = !held(other, &connection)?.is_empty();
            ensure!(holds == (other == pid), "process {other} holds a client of worker {pid}: {holds}");
        }
    }
    bed.stop()?;
    Ok(())
}

fn port_taken(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let address = format!("tcp://127.0.0.1:{}", bed.port()?);
    for mode in ["base", "process"] {
        cx.example("testbed").flag("mode", mode).flag("listen", &address).refused(&[&address, "in use"])?;
    }
    bed.connect()?.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    Ok(())
}

fn early_clients(cx: &Cx) -> Result<()> {
    for round in 0..20 {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let launch = cx.testbed_bare().flag("listen", format!("tcp://{address}")).flag("worker-num", 4);
        let mut process = launch.spawn()?;
        let start = Instant::now();
        // As dense as can be: the moment that matters is the listener's first.
        let mut client = loop {
            match Client::connect(&Address::Tcp(address)) {
                Ok(client) => break client,
                Err(error) => ensure!(start.elapsed() < PATIENCE, "nobody listens: {error}"),
            }
        };
        client.expect("echo early", "early").with_context(|| format!("start {round}"))?;
        proc::signal(process.pid(), Signal::TERM)?;
        ensure!(process.wait_exit(PATIENCE)?.success(), "the stop failed");
    }
    Ok(())
}

fn kill_each_worker(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).start()?;
    // Two rounds: successors die as their predecessors did.
    for worker in [0, 1, 2, 0, 1, 2] {
        let mut victim = bed.connect_to_worker(worker)?;
        let mut neighbours = (0..8).map(|_| bed.connect_to_worker(worker)).collect::<Result<Vec<_>>>()?;
        let mut strangers =
            (1..3).map(|other| bed.connect_to_worker((worker + other) % 3)).collect::<Result<Vec<_>>>()?;
        let (pid, generation): (i32, u64) =
            (victim.ask_field("whoami", "pid")?, victim.ask_field("whoami", "generation")?);
        bed.occupy(&mut victim, 60_000)?;
        proc::signal(pid, Signal::KILL)?;
        victim.expect_close().context("the client whose packet the worker died on")?;
        for neighbour in &mut neighbours {
            neighbour.expect_close().context("another client of the worker that died")?;
        }
        for stranger in &mut strangers {
            stranger.expect("echo stranger", "stranger").context("a client of another worker")?;
        }
        let status = bed.wait_error(pid)?;
        ensure!(status == "signal:9", "worker {worker} was killed, and reported as {status:?}");
        let life = bed.wait_successor(worker, pid)?;
        ensure!(life.generation > generation, "generation {} after {generation}", life.generation);
        let mut newcomer = bed.connect_to_worker(worker)?;
        ensure!(newcomer.ask_field::<i32>("whoami", "pid")? == life.pid, "not the successor serves");
        wait_worker_count(&bed, 3)?;
    }
    // Whoever is gone is gone from the books, too.
    proc::until("the books to forget those who are gone", PATIENCE, || {
        let stats = bed.connect().ok()?.ask("stats").ok()?;
        stats.contains("\"connection_num\":1,").then_some(())
    })?;
    bed.stop()?;
    Ok(())
}

fn kill_under_load(cx: &Cx) -> Result<()> {
    const KILLS: u32 = 8;
    let mut rng = cx.rng();
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let load = Load::start(bed.address()?, 6)?;
    for kill in 0..KILLS {
        let worker = kill % 2;
        let mut own = bed.connect_to_worker(worker)?;
        let mut stranger = bed.connect_to_worker(1 - worker)?;
        load.wait_more(rng.u64(1..2000))?;
        let pid = bed.lives()[&worker].pid;
        proc::signal(pid, Signal::KILL)?;
        own.expect_close()?;
        bed.wait_successor(worker, pid)?;
        stranger.expect("echo unharmed", "unharmed")?;
    }
    load.wait_more(500)?;
    // Whatever was answered was answered once; how many were cut is up to the kernel, which has dealt them.
    load.finish()?;
    bed.stop()?;
    Ok(())
}

fn sessions_are_unique(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut known = BTreeSet::new();
    let mut clients: Vec<Client> = Vec::new();
    for round in 0..8 {
        for _ in 0..20 {
            let mut client = bed.connect()?;
            let session = client.session()?;
            ensure!(known.insert(session.clone()), "round {round}: session {session} came twice");
            clients.push(client);
        }
        let lives = bed.lives();
        if round % 2 == 0 {
            lives.values().try_for_each(|life| proc::signal(life.pid, Signal::KILL))?;
            clients.iter_mut().try_for_each(Client::expect_close)?;
            clients.clear();
        } else {
            // Free places among taken ones, left to a successor.
            let mut number = 0;
            clients.retain(|_| {
                number += 1;
                number % 3 == 0
            });
            bed.signal_master(Signal::USR1)?;
        }
        for (worker, life) in lives {
            bed.wait_successor(worker, life.pid)?;
        }
        if round % 2 == 1 {
            bed.log.wait_count("on_after_reload", round / 2 + 1, PATIENCE)?;
        }
    }
    bed.stop()?;
    Ok(())
}

/// Connections that no worker accepts as they come, each with a packet.
fn newcomers(bed: &Bed) -> Result<Vec<Client>> {
    let client = |number: u32| {
        let mut client = bed.connect()?;
        client.tell(&format!("echo {number}"))?;
        Ok(client)
    };
    (0..50).map(client).collect()
}

fn expect_newcomers(clients: Vec<Client>) -> Result<()> {
    let mut numbered = clients.into_iter().enumerate();
    numbered.try_for_each(|(number, mut client)| client.expect_line(&number.to_string()))
}

fn backlog_waits(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 10).start()?;
    let manager = bed.ready.manager;
    // The worker is dead, and nobody has noticed.
    let pid = bed.lives()[&0].pid;
    proc::halt(manager)?;
    proc::signal(pid, Signal::KILL)?;
    proc::until("the worker's end", PATIENCE, || (!proc::alive(pid)).then_some(()))?;
    let clients = newcomers(&bed)?;
    proc::signal(manager, Signal::CONT)?;
    expect_newcomers(clients).context("connections made after a death")?;

    // The worker is busy, and retires as soon as it is not.
    let pid = bed.wait_successor(0, pid)?.pid;
    let mut client = bed.connect()?;
    bed.occupy(&mut client, 500)?;
    proc::signal(pid, Signal::TERM)?;
    let clients = newcomers(&bed)?;
    client.expect_line("slept 500")?;
    expect_newcomers(clients).context("connections made before a retirement")?;

    // There is none for a while: it has retired, and the manager sleeps.
    let pid = bed.wait_successor(0, pid)?.pid;
    proc::halt(manager)?;
    proc::signal(pid, Signal::TERM)?;
    proc::until("the worker's end", PATIENCE, || (!proc::alive(pid)).then_some(()))?;
    let clients = newcomers(&bed)?;
    client.tell("echo left to the next")?;
    proc::signal(manager, Signal::CONT)?;
    expect_newcomers(clients).context("connections made after a retirement")?;
    client.expect_line("left to the next")?;
    bed.stop()?;
    Ok(())
}

fn crash_on_start(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 3).flag("crash-on-start", 1).start()?;
    let port = bed.port()?;
    let mut clients = (0..40).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    clients.iter_mut().try_for_each(|client| client.tell("whoami"))?;
    // A connection that nobody has accepted is no file yet.
    let waits = |client: &Client| -> Result<bool> { Ok(inodes(port, Some(client))?.contains(&0)) };
    proc::until("the others to be served", PATIENCE, || {
        let settled = |client: &Client| -> Result<bool> { Ok(client.has_reply()? || waits(client)?) };
        clients.iter().all(|client| settled(client).unwrap_or(false)).then_some(())
    })?;
    bed.log.wait_count("on_worker_error worker=1 ", 5, PATIENCE)?;
    let (mut waiting, mut served) = (Vec::new(), Vec::new());
    for client in clients {
        let group = if waits(&client)? { &mut waiting } else { &mut served };
        group.push(client);
    }
    ensure!(!waiting.is_empty() && !served.is_empty(), "{} wait, {} do not", waiting.len(), served.len());
    for client in &mut served {
        let reply = client.line()?;
        ensure!(!reply.contains("worker=1 "), "worker 1 answered, which never started: {reply:?}");
        client.expect("echo the others serve", "the others serve")?;
    }
    ensure!(waiting.iter().all(|client| matches!(client.has_reply(), Ok(false))), "who waits got something");
    bed.log.wait_line(Source::Stderr, &["worker 1", "back-off"], PATIENCE)?;
    bed.stop()?;
    Ok(())
}

fn stop_answers_all(cx: &Cx) -> Result<()> {
    const CLIENTS: usize = 1000;
    let mut bed = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 10).start()?;
    let mut sleeper = bed.connect()?;
    let mut clients = (0..CLIENTS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    clients.iter_mut().try_for_each(|client| client.tell("echo here"))?;
    clients.iter_mut().try_for_each(|client| client.expect_line("here"))?;
    bed.occupy(&mut sleeper, 500)?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.tell(&format!("echo {number}"))?;
    }
    bed.signal_master(Signal::TERM)?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.expect_line(&number.to_string()).with_context(|| format!("client {number}"))?;
        client.expect_close()?;
    }
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    Ok(())
}

fn crash_in_stop(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).flag("max-wait-time", 10).start()?;
    let (mut victim, mut neighbour) = (bed.connect_to_worker(0)?, bed.connect_to_worker(0)?);
    let mut stranger = bed.connect_to_worker(1)?;
    victim.tell_all(&["sleep 300", "crash kill"])?;
    neighbour.tell("sleep 1000")?;
    let packets: String = (0..2000).map(|number| format!("echo {number}\n")).collect();
    stranger.tell(&format!("sleep 500\n{packets}"))?;
    bed.wait_accepted(&stranger)?;
    bed.signal_master(Signal::TERM)?;
    victim.drain(PATIENCE)?;
    stranger.expect_line("slept 500")?;
    (0..2000).try_for_each(|number| stranger.expect_line(&number.to_string()))?;
    neighbour.drain(PATIENCE)?;
    ensure!(bed.wait_gone(PATIENCE)?.success(), "the stop failed");
    let errors = bed.worker_errors().len();
    ensure!(errors == 1, "{errors} worker errors for one crash");
    Ok(())
}
