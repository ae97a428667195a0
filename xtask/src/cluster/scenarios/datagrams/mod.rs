//! Datagrams: they come whole and are answered by the socket that they came to, and what cannot be kept is counted.

mod rules;
mod storm;

use crate::cluster::bed::{Launch, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::datagram::{Sender, address_of};
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, full, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full("datagrams_echo", "datagrams of any size, also empty ones, come whole and are answered", echo),
    full(
        "datagrams_senders",
        "a thousand senders get what is theirs, and nothing of them is kept",
        storm::senders,
    ),
    full(
        "datagrams_kills",
        "kill -9 under load: what is lost is counted, and nobody gets another's",
        storm::kills,
    ),
    full(
        "datagrams_retry",
        "on_crash = retry: kill -9 under load loses nothing, and doubles nothing",
        storm::retry,
    )
    .in_process(),
    full("datagrams_reloads", "reloads under load lose nothing", storm::reloads),
    full(
        "datagrams_full_ring",
        "what a ring has no room for is dropped and counted, and TCP clients go on",
        full_ring,
    )
    .in_process(),
    backends("datagrams_base_death", "datagrams that wait for a dead worker are its successor's", base_death)
        .in_base(),
    backends("datagrams_rules", "every dispatch rule holds for datagrams", rules::rules).in_process(),
    backends(
        "datagrams_unix",
        "unix datagrams: who has no name is not answered, who does not read costs nobody",
        unix,
    ),
    backends("datagrams_send_to", "any process sends datagrams to any address", send_to),
    full("datagrams_stop", "a stop answers what came before it", stop),
    once("datagrams_refused", "addresses that cannot be had are refused at the start", refused),
];

/// The testbed on a TCP and a UDP port.
fn launch(cx: &Cx) -> Launch<'_> {
    cx.testbed().flag("listen", "udp://127.0.0.1:0")
}

/// One of the server's counters.
fn stat(client: &mut Client, key: &str) -> Result<u64> {
    let json = client.ask("stats")?;
    let value = json.split(&format!("\"{key}\":")).nth(1).and_then(|rest| rest.split(',').next());
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {key} in {json}"))
}

/// Waits until it is at least so much.
fn wait_stat(client: &mut Client, key: &str, least: u64) -> Result<u64> {
    proc::until(&format!("{key} to be {least}"), PATIENCE, || {
        stat(client, key).ok().filter(|value| *value >= least)
    })
}

fn echo(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("socket");
    let launch = launch(cx).flag("listen", format!("unixgram://{}", path.display()));
    let launch = launch.flag("listen", "udp://[::1]:0").flag("worker-num", 2).flag("reactor-num", 2);
    // Most of these sizes need several records of such rings.
    let bed = launch.flag("ring-size", "16K").flag("framing", "raw").start()?;
    let six = bed.ready.listen.last().context("it listens nowhere")?;
    let six = format!("{six:?}").split("udp://").nth(1).map(|rest| rest.trim_end_matches("\")").to_owned());
    let own = cx.dir.join("client");
    let senders = [
        Sender::connect(&bed)?,
        Sender::udp(&six.context("no UDP over IPv6")?)?,
        Sender::unix(&path, Some(&own))?,
    ];
    let mut rng = cx.rng();
    let sizes = [0, 1, 28, 1000, 1472, 1473, 4064, 4080, 4096, 16_384, 32_768, 65_507];
    for (sender, number) in senders.iter().zip(0..) {
        let random: Vec<usize> = (0..20).map(|_| rng.usize(0..=65_507)).collect();
        for size in sizes.into_iter().chain(random) {
            let bytes: Vec<u8> = (0..size).map(|_| rng.u8(..)).collect();
            sender.send(&bytes)?;
            let answer = sender.receive().with_context(|| format!("{size} bytes of sender {number}"))?;
            ensure!(answer == bytes, "{size} bytes of sender {number} came back as {}", answer.len());
        }
    }
    let mut client = bed.connect()?;
    client.send(b"a stream beside")?;
    ensure!(client.exactly(15)? == b"a stream beside", "a TCP client gets something else");
    drop(client);
    bed.stop()?;
    ensure!(!path.exists(), "{} is left", path.display());
    Ok(())
}

fn full_ring(cx: &Cx) -> Result<()> {
    let launch = launch(cx).flag("worker-num", 2).flag("reactor-num", 1).flag("ring-size", "16K");
    let bed = launch.start()?;
    let (mut sleeper, mut neighbour) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    let (of_sleeper, of_neighbour) = (Sender::of_worker(&bed, 0)?, Sender::of_worker(&bed, 1)?);
    let before = (stat(&mut neighbour, "datagram_count")?, bed.private_memory()?);
    bed.occupy(&mut sleeper, 3000)?;
    // On a socketpair more has room; what does not fit into a ring of 16 KiB is dropped after a few.
    let packet = format!("hold {}", "x".repeat(4000));
    let started = Instant::now();
    while stat(&mut neighbour, "datagram_dropped_count")? < 100 {
        ensure!(started.elapsed() < PATIENCE, "datagrams for a worker that sleeps are not dropped");
        for _ in 0..20 {
            of_sleeper.send(packet.as_bytes())?;
        }
        let asked = Instant::now();
        neighbour.expect("echo meanwhile", "meanwhile")?;
        of_neighbour.expect("echo meanwhile", "meanwhile")?;
        ensure!(asked.elapsed() < Duration::from_secs(2), "others waited {:?}", asked.elapsed());
    }
    let grown = bed.private_memory()?.saturating_sub(before.1);
    ensure!(grown < 16 << 20, "memory has grown by {grown} bytes");
    sleeper.expect_line("slept 3000")?;
    // Behind all that waits for the worker.
    sleeper.expect("echo room", "room")?;
    of_sleeper.expect("echo awake", "awake")?;
    let received = stat(&mut neighbour, "datagram_count")? - before.0;
    let dropped = stat(&mut neighbour, "datagram_dropped_count")?;
    ensure!(dropped < received, "{dropped} of {received} were dropped");
    bed.stop()?;
    Ok(())
}

fn base_death(cx: &Cx) -> Result<()> {
    let bed = launch(cx).flag("worker-num", 2).start()?;
    let (mut sleeper, sender) = (bed.connect_to_worker(0)?, Sender::of_worker(&bed, 0)?);
    let before = bed.lives().get(&0).context("no worker 0")?.pid;
    bed.occupy(&mut sleeper, 60_000)?;
    for number in 0..20 {
        sender.send(format!("echo {number}").as_bytes())?;
    }
    proc::signal(before, Signal::KILL)?;
    bed.wait_successor(0, before)?;
    for number in 0..20 {
        sender.expect_answer(&number.to_string())?;
    }
    ensure!(sender.worker()? == 0, "another worker has the socket");
    bed.stop()?;
    Ok(())
}

fn unix(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("socket");
    // Left behind by a server that was killed.
    drop(UnixDatagram::bind(&path)?);
    let bed = cx.testbed().flag("listen", format!("unixgram://{}", path.display())).start()?;
    let mut client = bed.connect()?;
    let own = cx.dir.join("client");
    let sender = Sender::unix(&path, Some(&own))?;
    sender.expect("session", &format!("listener=1 peer={}", own.display()))?;
    sender.expect("echo with a line end\n", "with a line end\n")?;

    let name = format!("swoole-test-{}-{}", proc::own_pid(), cx.seed);
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    Sender::of_unix(socket, &path)?.expect("session", &format!("listener=1 peer=@{name}"))?;

    let nameless = Sender::unix(&path, None)?;
    nameless.send(b"echo who am I")?;
    bed.log.wait_line(Source::Stderr, &["a datagram of an unnamed socket", "bound to no name"], PATIENCE)?;

    // It fills its own queue, and no more.
    let deaf_path = cx.dir.join("deaf");
    let deaf = UnixDatagram::bind(&deaf_path)?;
    deaf.set_read_timeout(Some(PATIENCE))?;
    let started = Instant::now();
    while stat(&mut client, "datagram_unsent_count")? == 0 {
        ensure!(started.elapsed() < PATIENCE, "answers to who does not read are all taken");
        for _ in 0..20 {
            deaf.send_to(b"echo to nobody", &path)?;
        }
        sender.expect("echo meanwhile", "meanwhile")?;
    }
    let mut buffer = [0; 100];
    for _ in 0..10 {
        let count = deaf.recv(&mut buffer)?;
        ensure!(buffer[..count] == *b"to nobody", "it got {:?}", &buffer[..count]);
    }
    std::fs::remove_file(deaf_path)?;

    // One that is connected has no limit of its own, and takes the buffer that answers to all wait in, until it reads.
    let deaf_path = cx.dir.join("deaf-and-connected");
    let deaf = Sender::unix(&path, Some(&deaf_path))?;
    let before = stat(&mut client, "datagram_unsent_count")?;
    let packet = format!("echo {}", "x".repeat(30_000));
    let started = Instant::now();
    while stat(&mut client, "datagram_unsent_count")? == before {
        ensure!(started.elapsed() < PATIENCE, "answers to who does not read are all taken");
        deaf.send(packet.as_bytes())?;
    }
    client.expect("echo a stream goes on", "a stream goes on")?;
    while deaf.receive_within(Duration::from_millis(100))?.is_some() {}
    sender.expect("echo everybody again", "everybody again")?;

    sender.send(&[b'x'; 70_000])?;
    wait_stat(&mut client, "datagram_truncated_count", 1)?;
    let long = sender.ask("big 65508")?;
    ensure!(
        long.starts_with("error: send a datagram to /")
            && long.ends_with("at most 65507 can be sent at once"),
        "{long}"
    );
    bed.stop()?;
    ensure!(!path.exists(), "{} is left", path.display());
    Ok(())
}

fn send_to(cx: &Cx) -> Result<()> {
    let launch = launch(cx).flag("worker-num", 2).flag("task-worker-num", 1);
    let bed = launch.flag("processes", "helper:mail").start()?;
    let address = address_of(&bed, "udp")?;
    let sender = Sender::udp(&address)?;
    let name = sender.name()?;
    sender.expect("session", &format!("listener=1 peer={name}"))?;
    for worker in 0..2 {
        let mut client = bed.connect_to_worker(worker)?;
        client.expect(&format!("sendto 1 {name} from a worker"), "ok")?;
        sender.expect_answer("from a worker")?;
        client.expect(&format!("message p0 sendto 1 {name} from a user process"), "ok")?;
        sender.expect_answer("from a user process")?;
        let task = format!("taskwait 10000 sendto 1 {name} from a task worker");
        let reply = client.ask(&task)?;
        ensure!(reply.starts_with("result "), "{reply}");
        sender.expect_answer("from a task worker")?;
        for (packet, complaint) in [
            (format!("sendto 0 {name} x"), "send a datagram: listener 0 takes no datagrams".to_owned()),
            (format!("sendto 7 {name} x"), "send a datagram: listener 7 takes no datagrams".to_owned()),
            (
                "sendto 1 [::1]:5 x".to_owned(),
                format!("send a datagram: [::1]:5 cannot be reached from udp://{address}"),
            ),
        ] {
            client.expect(&packet, &format!("error: {complaint}"))?;
        }
        // A datagram has no session.
        sender.expect("close", "error: no such session: 0")?;
    }
    bed.stop()?;
    Ok(())
}

fn stop(cx: &Cx) -> Result<()> {
    const COUNT: usize = 50;
    for close_listen in ["first", "last"] {
        let launch = launch(cx).flag("worker-num", 1).flag("reactor-num", 1).flag("max-wait-time", 20);
        let mut bed = launch.flag("close-listen", close_listen).start()?;
        let (mut sleeper, sender) = (bed.connect()?, Sender::connect(&bed)?);
        bed.occupy(&mut sleeper, 500)?;
        for number in 0..COUNT {
            sender.send(format!("echo {number}").as_bytes())?;
        }
        bed.signal_master(Signal::TERM)?;
        for number in 0..COUNT {
            sender.expect_answer(&number.to_string())?;
        }
        let status = bed.wait_gone(PATIENCE)?;
        ensure!(status.success(), "stopped with {status}");
    }
    Ok(())
}

fn refused(cx: &Cx) -> Result<()> {
    let bed = launch(cx).start()?;
    let address = address_of(&bed, "udp")?;
    let taken = format!("udp://{address}");
    let launch = |listen: &str| cx.testbed_bare().flag("listen", listen.to_owned());
    launch(&taken).refused(&["listen on", &taken, "address in use", "ss -lunp"])?;
    launch("udp://127.0.0.1:1?framing=eof").refused(&["framing=eof", "a datagram is a packet"])?;
    launch("unixgram:///nowhere/at/all").refused(&["unixgram:///nowhere/at/all", "no such directory"])?;
    Sender::connect(&bed)?.expect("echo still there", "still there")?;
    bed.stop()?;
    Ok(())
}
