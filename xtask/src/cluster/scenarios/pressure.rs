//! Nobody's slowness fills the server's memory, or slows anybody else.

use crate::cluster::client::Client;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::{bed::Bed, bed::PATIENCE, proc};
use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Signal;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full(
        "blocked_worker",
        "50 MB for a blocked worker wait in the client, and others are served",
        blocked_worker,
    ),
    full("slow_reader", "100 MB of replies nobody reads: closed at socket_buffer_size", slow_reader),
    full("slow_but_steady", "a client that reads slowly, but does, gets everything", slow_but_steady),
    full(
        "half_closed_reader",
        "a client that has ended its side gets all of a reply that it reads slowly",
        half_closed_reader,
    ),
    full(
        "connect_flood",
        "30,000 clients that leave at once leave nothing behind in the server",
        connect_flood,
    ),
];

/// What the processes that hold the connections may grow by.
const GROWTH_MAX: u64 = 32 << 20;

fn check_growth(bed: &Bed, before: u64) -> Result<()> {
    let now = bed.private_memory()?;
    ensure!(now < before + GROWTH_MAX, "private memory grew from {before} to {now} bytes");
    Ok(())
}

fn blocked_worker(cx: &Cx) -> Result<()> {
    const TEXT: usize = 1000;
    const PACKETS: usize = 50_000;
    // In the end the replies may come faster than we read them: that is not what is tested here.
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 1);
    let bed = launch.flag("socket-buffer-size", 2 * PACKETS * TEXT).start()?;
    let mut pusher = bed.connect_to_worker(0)?;
    let mut neighbour = bed.connect_to_worker(1)?;
    let before = bed.private_memory()?;
    bed.occupy(&mut pusher, 2500)?;

    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let mut writer = pusher.writer()?;
    let pushing = std::thread::spawn(move || -> Result<()> {
        for index in 0..PACKETS {
            let packet = format!("echo {index:0TEXT$}\n");
            writer.write_all(packet.as_bytes()).with_context(|| format!("push packet {index}"))?;
            count.fetch_add(packet.len(), Ordering::Relaxed);
        }
        Ok(())
    });
    // For as long as the worker is blocked, another one's clients are served at once.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        neighbour.expect("echo meanwhile", "meanwhile")?;
        ensure!(
            asked.elapsed() < Duration::from_millis(500),
            "another worker's client waited {:?}",
            asked.elapsed()
        );
        check_growth(&bed, before)?;
    }
    let written = written.load(Ordering::Relaxed);
    ensure!(written < PACKETS * TEXT / 2, "the server took {written} bytes for a worker that is blocked");
    // Then everything is answered, in order.
    pusher.expect_line("slept 2500")?;
    for index in 0..PACKETS {
        pusher.expect_line(&format!("{index:0TEXT$}")).with_context(|| format!("reply {index}"))?;
    }
    pushing.join().map_err(|_| anyhow!("the pushing thread panicked"))??;
    bed.stop()?;
    Ok(())
}

fn slow_reader(cx: &Cx) -> Result<()> {
    const LIMIT: usize = 2 << 20;
    let bed = cx
        .testbed()
        .flag("worker-num", 2)
        .flag("reactor-num", 1)
        .flag("socket-buffer-size", LIMIT)
        .start()?;
    let mut reader = bed.connect_to_worker(0)?;
    let mut same_worker = bed.connect_to_worker(0)?;
    let mut other_worker = bed.connect_to_worker(1)?;
    let before = bed.private_memory()?;
    for _ in 0..100 {
        reader.tell("big 1000000")?;
    }
    let (server_port, port) = (bed.port()?, reader.port()?);
    proc::until("the server to close the connection that is not read", PATIENCE, || {
        let open =
            |row: &proc::TcpRow| row.established && (row.local_port, row.remote_port) == (server_port, port);
        (!proc::tcp_rows().iter().any(open)).then_some(())
    })?;
    check_growth(&bed, before)?;
    let rest = reader.drain(PATIENCE)?;
    ensure!(rest.len() < 50_000_000, "{} bytes came, which the server had not to keep", rest.len());
    same_worker.expect("echo same worker", "same worker")?;
    other_worker.expect("echo other worker", "other worker")?;
    bed.log.wait_line(Source::Stderr, &["socket_buffer_size"], Duration::from_secs(2))?;
    bed.stop()?;
    Ok(())
}

fn slow_but_steady(cx: &Cx) -> Result<()> {
    const REPLY: usize = 1_000_000;
    // All of them fit below the limit: the kernel's own buffers come on top.
    let bed = cx.testbed().flag("worker-num", 1).flag("socket-buffer-size", 32 << 20).start()?;
    let mut reader = bed.connect()?;
    for _ in 0..20 {
        reader.tell(&format!("big {REPLY}"))?;
    }
    reader.wait_read(bed.port()?)?;
    let mut neighbour: Client = bed.connect()?;
    for index in 0..20 {
        neighbour.expect("echo between", "between")?;
        let reply = reader.exactly(REPLY + 1).with_context(|| format!("reply {index}"))?;
        ensure!(
            reply[REPLY] == b'\n' && reply[..REPLY].iter().all(|byte| *byte == b'x'),
            "reply {index} is damaged"
        );
    }
    bed.stop()?;
    Ok(())
}

fn half_closed_reader(cx: &Cx) -> Result<()> {
    const REPLY: usize = 8_000_000;
    const PIECE: usize = 100_000;
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let (mut reader, mut pacemaker) = (bed.connect()?, bed.connect()?);
    // So that most of it has to wait in the server.
    set_socket_recv_buffer_size(reader.writer()?, 256 << 10)?;
    reader.tell(&format!("big {REPLY}"))?;
    reader.finish()?;
    for index in 0..REPLY / PIECE {
        pacemaker.expect("sleep 5", "slept 5")?;
        let piece = reader.exactly(PIECE).with_context(|| format!("piece {index}"))?;
        ensure!(piece.iter().all(|byte| *byte == b'x'), "piece {index} is damaged");
    }
    reader.expect_line("")?;
    reader.expect_close()?;
    bed.stop()?;
    Ok(())
}

/// Clients that come and abort, one after another, until the server has seen off the last of them.
fn flood(bed: &Bed, clients: usize) -> Result<()> {
    let sockets = || -> Result<usize> {
        bed.holders().into_iter().map(|pid| Ok(proc::socket_inodes(pid)?.len())).sum()
    };
    let before = sockets()?;
    for index in 0..clients {
        Client::connect_small(bed.address()?).with_context(|| format!("client {index} of a flood"))?;
    }
    proc::until("the server to let go of all of them", PATIENCE, || {
        sockets().is_ok_and(|now| now <= before).then_some(())
    })
}

fn connect_flood(cx: &Cx) -> Result<()> {
    const GROWTH_MAX: u64 = 3 << 20;
    let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1);
    let bed = launch.flag("ring-size", 16384).start()?;
    // In Base mode a worker that is blocked accepts nobody.
    if !bed.is_base() {
        bed.occupy(&mut bed.connect()?, 100_000)?;
    }
    // What it needs once and for all is there after some.
    flood(&bed, 2000)?;
    let before = bed.private_memory()?;
    flood(&bed, 30_000)?;
    let now = bed.private_memory()?;
    ensure!(now < before + GROWTH_MAX, "private memory grew from {before} to {now} bytes");
    // What the worker accepts as it dies goes with it, in Base mode: nobody comes before it is gone.
    let worker = bed.lives()[&0].pid;
    proc::signal(worker, Signal::KILL)?;
    bed.wait_error(worker)?;
    bed.connect()?.expect("echo after the flood", "after the flood")?;
    bed.stop()?;
    Ok(())
}
