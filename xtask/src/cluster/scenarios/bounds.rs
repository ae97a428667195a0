//! Bounds at their edges; those that belong to a theme have their scenarios there (`config/bounds.md` in swoole-server names
//! them all).

use crate::cluster::bed::{Launch, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, backends, full};
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full(
        "bound_output",
        "socket_buffer_size: a reply of that size comes, one byte more is an error for its handler",
        bound_output,
    ),
    backends("bound_backlog", "backlog: so many more connections wait in the kernel", bound_backlog),
    full(
        "bound_sessions",
        "a reactor has room for its share of max_connection, whoever leaves and comes",
        bound_sessions,
    ),
    backends("bound_share", "Base mode: each worker has its share of max_connection, and who waits gets a place", bound_share)
        .in_base(),
    full("bound_rings", "the smallest and the largest ring carry what is larger than they are", bound_rings)
        .in_process(),
    full(
        "bound_uncommitted",
        "32 MiB of replies to one packet leave before its handler returns, or are an error where they must not",
        bound_uncommitted,
    )
    .in_process(),
    full("bound_packet", "package_max_length: the smallest and the largest that can be set", bound_packet),
    backends(
        "bound_explained",
        "clients at all of their limits take no more memory than --explain says, shared memory included",
        explained,
    ),
];

fn bound_output(cx: &Cx) -> Result<()> {
    const LIMIT: usize = 65_536;
    let bed = cx.testbed().flag("worker-num", 1).flag("socket-buffer-size", LIMIT).start()?;
    let mut client = bed.connect()?;
    // The line end counts.
    for _ in 0..3 {
        client.tell(&format!("big {}", LIMIT - 1))?;
        ensure!(client.line()?.len() == LIMIT - 1, "a reply of the limit's size was cut");
    }
    let reply = client.ask(&format!("big {LIMIT}"))?;
    let expected = format!("{} bytes exceed socket_buffer_size = {LIMIT}", LIMIT + 1);
    ensure!(reply.starts_with("error: send to session") && reply.ends_with(&expected), "got {reply:?}");
    client.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    Ok(())
}

/// How many connections a server with this backlog takes that serves one of them only.
fn connections_taken(cx: &Cx, backlog: usize) -> Result<usize> {
    let path = cx.dir.join("backlog.sock");
    let launch = cx.testbed_bare().flag("listen", format!("unix://{}", path.display()));
    let bed = launch.flag("worker-num", 1).flag("max-connection", 1).flag("backlog", backlog).start()?;
    let mut first = bed.connect()?;
    first.expect("echo served", "served")?;
    // A full backlog refuses who does not want to wait; what the server accepts before it pauses makes room again.
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut refused = 0;
    proc::until("the backlog to stay full", PATIENCE, || {
        match connect_now(&path) {
            Ok(socket) => {
                sockets.push(socket);
                refused = 0;
            }
            Err(_) => refused += 1,
        }
        (refused > 20).then_some(())
    })?;
    first.expect("echo unharmed", "unharmed")?;
    let taken = sockets.len();
    drop((sockets, first));
    bed.connect()?.expect("echo next", "next")?;
    bed.stop()?;
    Ok(taken)
}

fn connect_now(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn bound_backlog(cx: &Cx) -> Result<()> {
    let [few, more] = [2, 42].map(|backlog| connections_taken(cx, backlog));
    let (few, more) = (few?, more?);
    ensure!(more == few + 40, "a backlog of 2 took {few} connections, one of 42 took {more}");
    // The one that listen(2) has above what it is told, and what is accepted before accepting pauses.
    ensure!(few <= 2 + 1 + 4, "a backlog of 2 took {few} connections");
    Ok(())
}

fn bound_sessions(cx: &Cx) -> Result<()> {
    const LIMIT: usize = 7;
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2);
    let bed = launch.flag("max-connection", LIMIT).start()?;
    // In Base mode each worker has half of them, rounded up, and the kernel deals.
    let limit = if bed.is_base() { 1 } else { LIMIT };
    let mut names = BTreeSet::new();
    let mut clients: Vec<Client> = Vec::new();
    for round in 0..20 {
        while clients.len() < limit {
            let mut client = bed.connect()?;
            let name = client.session()?;
            ensure!(names.insert(name.clone()), "session {name} has come twice");
            clients.push(client);
        }
        for client in &mut clients {
            client.expect("echo there", "there")?;
        }
        // All of one reactor's, so that the next ones have to go there.
        let mut staying = Vec::new();
        for mut client in clients.drain(..) {
            let reactor: usize = client.ask_field("session", "reactor")?;
            if reactor != round % 2 {
                staying.push(client);
            }
        }
        clients = staying;
    }
    bed.stop()?;
    Ok(())
}

fn bound_share(cx: &Cx) -> Result<()> {
    // Two each.
    let bed = cx.testbed().flag("worker-num", 2).flag("max-connection", 3).start()?;
    let mut served: Vec<(u32, Client)> = Vec::new();
    let mut waiting = Vec::new();
    // The kernel deals by chance: until both are full.
    while served.len() < 4 {
        ensure!(waiting.len() < 100, "of 100 connections, not two went to each worker");
        let mut client = bed.connect()?;
        client.tell("whoami")?;
        let answered = proc::until("a reply, or a worker that is full", Duration::from_millis(300), || {
            client.has_reply().is_ok_and(|has| has).then_some(())
        });
        if answered.is_ok() {
            let line = client.line()?;
            let worker = field(&line, "worker").and_then(|worker| worker.parse().ok());
            served.push((worker.with_context(|| line.clone())?, client));
        } else {
            waiting.push(client);
        }
    }
    for worker in 0..2 {
        let share = served.iter().filter(|(of, _)| *of == worker).count();
        ensure!(share == 2, "worker {worker} serves {share} of 4");
    }
    drop(served);
    for client in &mut waiting {
        client.line()?;
        client.finish()?;
        client.expect_close()?;
    }
    bed.stop()?;
    Ok(())
}

fn bound_rings(cx: &Cx) -> Result<()> {
    for size in ["16K", "64M"] {
        let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1).flag("ring-size", size);
        let launch = launch.flag("ring-memory-max", "1G").flag("package-max-length", "100M");
        let bed = launch.flag("socket-buffer-size", "200M").start()?;
        let mut client = bed.connect()?;
        // Larger than either.
        for length in [16_384, 70 << 20] {
            client.tell(&format!("big {length}"))?;
            ensure!(client.line()?.len() == length, "ring {size}: a reply of {length} bytes was cut");
            let text = "y".repeat(length);
            client.tell(&format!("echo {text}"))?;
            ensure!(client.line()? == text, "ring {size}: {length} bytes came back otherwise");
        }
        bed.stop()?;
    }
    Ok(())
}

fn bound_uncommitted(cx: &Cx) -> Result<()> {
    const TEXT: usize = 8 << 20;
    for (on_crash, others) in [("close", 5), ("retry", 5), ("retry", 2)] {
        let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1).flag("on-crash", on_crash);
        let bed = launch.flag("package-max-length", "10M").flag("socket-buffer-size", "64M").start()?;
        let mut clients = (0..others).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            client.expect("echo there", "there")?;
        }
        let mut sender = bed.connect()?;
        sender.tell(&format!("sendall {}", "y".repeat(TEXT)))?;
        if on_crash == "retry" && others * TEXT > 32 << 20 {
            sender.expect_line("error: on_crash = retry: replies go out when the callback returns, and are at most 33554432 bytes until then")?;
        } else {
            sender.expect_line(&format!("sent {others}"))?;
            for client in &mut clients {
                ensure!(client.line()?.len() == TEXT, "a line was cut");
            }
        }
        sender.expect("echo unharmed", "unharmed")?;
        bed.stop()?;
    }
    Ok(())
}

fn bound_packet(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("socket-buffer-size", "1G");
    let bed = launch.flag("package-max-length", 64).start()?;
    let mut client = bed.connect()?;
    let text = "y".repeat(64 - "echo \n".len());
    client.expect(&format!("echo {text}"), &text)?;
    client.tell(&format!("echo {text}y"))?;
    client.expect_close()?;
    bed.stop()?;

    let launch = cx.testbed().flag("worker-num", 1).flag("framing", "length");
    let bed = launch.flag("package-max-length", "1G").start()?;
    // Their headers: the largest that is accepted, of which the rest may take its time, and one byte more.
    let mut accepted = bed.connect()?;
    accepted.send(&((1_u32 << 30) - 4).to_be_bytes())?;
    let mut refused = bed.connect()?;
    refused.send(&((1_u32 << 30) - 3).to_be_bytes())?;
    refused.expect_close()?;
    match accepted.has_reply() {
        Ok(false) => {}
        other => bail!("a packet of 1 GiB was not waited for: {other:?}"),
    }
    bed.stop()?;
    Ok(())
}

fn explained(cx: &Cx) -> Result<()> {
    const CLIENTS: usize = 12;
    // Of a packet, and of replies.
    const LIMIT: usize = 3 << 20;
    let path = cx.dir.join("full.sock");
    // On a unix socket, the kernel takes little of what waits for a client.
    let launch = || {
        let launch = cx.testbed_bare().flag("listen", format!("unix://{}", path.display()));
        let launch = launch.flag("worker-num", 2).flag("reactor-num", 2).flag("ring-size", "1M");
        let launch = launch.flag("max-connection", CLIENTS).flag("max-timer", 100);
        launch.flag("package-max-length", LIMIT).flag("socket-buffer-size", LIMIT)
    };
    let text = explanation(launch())?;
    let (clients, shared) = (figure(&text, "all clients")?, figure(&text, "shared")?);
    ensure!(figure(&text, "total")? >= clients + shared, "the total is not the sum: {text:?}");

    let bed = launch().start()?;
    let mut family = proc::descendants(bed.ready.master);
    family.push(bed.ready.master);
    let taken = || -> u64 { family.iter().filter_map(|pid| proc::proportional(*pid)).sum() };
    // What the program has by itself is not among what is explained.
    let before = taken();
    let mut crowd = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = bed.connect()?;
        client.tell(&format!("big {}", LIMIT - 1))?;
        client.send(&vec![b'x'; LIMIT - 1])?;
        crowd.push(client);
    }
    let mut most = 0;
    proc::until("all clients to be at their limits", PATIENCE, || {
        most = most.max(taken().saturating_sub(before));
        // The kernel has a part of the replies.
        (most >= (CLIENTS * LIMIT) as u64 * 19 / 10).then_some(())
    })
    .with_context(|| format!("{most} bytes at most"))?;
    proc::until_calm("the server to have read it all", &family)?;
    most = most.max(taken().saturating_sub(before));
    // Nothing but clients and what is shared is in use.
    ensure!(most <= clients + shared, "{most} bytes, and {clients} + {shared} are explained");
    drop(crowd);
    bed.connect()?.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    Ok(())
}

/// What the server says of its memory instead of being started.
fn explanation(launch: Launch<'_>) -> Result<Vec<String>> {
    let mut process = launch.word("--explain").spawn()?;
    ensure!(process.wait_exit(PATIENCE)?.success(), "--explain failed");
    process.log.wait_end(PATIENCE)?;
    Ok(process.log.texts(Source::Stdout))
}

/// The last column of the line that begins so.
fn figure(lines: &[String], begin: &str) -> Result<u64> {
    let line = lines.iter().find(|line| line.starts_with(begin));
    let size = line.and_then(|line| size_of(line.split_whitespace().last()?));
    size.with_context(|| format!("no {begin:?} in {lines:?}"))
}

/// A size as `--explain` writes it.
fn size_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_uppercase());
    let power = ["", "K", "M", "G"].iter().position(|unit| *unit == &text[digits.len()..])?;
    let (whole, tenth) = digits.split_once('.').unwrap_or((digits, "0"));
    let tenths = whole.parse::<u64>().ok()? * 10 + tenth.parse::<u64>().ok()?;
    Some((tenths << (10 * power)) / 10)
}
