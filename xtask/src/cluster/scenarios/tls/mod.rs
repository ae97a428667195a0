//! TLS: what clients get, who they are, and what becomes of their connections.

mod authority;
mod facts;
mod hands;
mod keys;
mod policy;
mod testssl;

use crate::cluster::bed::{Bed, Launch, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, backends, full, once};
use crate::cluster::proc;
use anyhow::{Result, ensure};
use authority::{Authority, Identity, Trust};
use rustix::process::Signal;
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use std::sync::Arc;
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full("tls_echo", "lines, large packets and ends come over TLS 1.2 and 1.3 as over TCP", echo),
    full("tls_framing", "packets of a length framing come over TLS, wherever records are cut", framing),
    backends(
        "tls_slow_reader",
        "a client of TLS that does not read is closed, others are served",
        slow_reader,
    ),
    full("tls_worker_dies", "a worker's death costs no TLS connection", worker_dies).in_process(),
    backends(
        "tls_base_worker_dies",
        "a worker's death in Base mode cuts its TLS clients off, and no others",
        base_dies,
    )
    .in_base(),
    backends("tls_stop", "a stop answers clients of TLS, and tells them of the end", stop),
    backends("tls_half_close", "who has said its last word is answered first", half_close),
    backends("tls_garbage", "what is no TLS costs its sender the connection only", hands::garbage),
    backends("tls_handshake_timeout", "who does not shake hands in time is closed", hands::too_slow),
    backends("tls_resumption", "who comes again is known to every reactor", hands::resumption),
    backends("tls_sni", "each client gets the certificate of the name that it asks for", policy::names),
    full(
        "tls_facts",
        "workers and task workers know what a client of TLS has agreed on, and who it is",
        facts::facts,
    ),
    full("tls_facts_last", "what is known of TLS outlives the worker, and not the client", facts::last)
        .in_process(),
    once("tls_facts_openssl", "it is what openssl says of the same connection", facts::openssl),
    once("tls_protocols", "versions, ciphers and ALPN are what the address says", policy::protocols),
    backends("tls_client_certs", "clients show certificates where they have to", policy::client_certificates),
    once("tls_refused", "certificates that cannot be used are refused at the start", policy::refused),
    once(
        "tls_openssl",
        "openssl s_client is served, with each version, and gets the OCSP response",
        policy::openssl,
    ),
    backends(
        "tls_reload",
        "a reload brings new certificates; connections go on, or in Base mode end in order",
        keys::reload,
    ),
    backends(
        "tls_reload_bad",
        "certificates that cannot be used leave the last ones in place",
        keys::reload_bad,
    ),
    backends(
        "tls_relist",
        "a reload brings the first address of TLS, and ends it; nobody is served there without",
        keys::relist,
    ),
    once(
        "tls_testssl",
        "testssl finds nothing above a low severity, by name only: minutes",
        testssl::testssl,
    )
    .by_name(Duration::from_secs(900)),
    once("tls_keys", "no memory of a manager or worker has a key in it", keys::keys).in_process(),
];

/// The testbed with this certificate for everybody.
pub(super) fn testbed<'a>(cx: &'a Cx, own: &Identity) -> Launch<'a> {
    cx.testbed_bare()
        .flag("listen", "tls://127.0.0.1:0")
        .flag("ssl-cert-file", own.cert_file.display())
        .flag("ssl-key-file", own.key_file.display())
        .flag("worker-num", 2)
        .flag("reactor-num", 2)
}

/// An authority, and its certificate for `localhost`.
pub(super) fn localhost(cx: &Cx) -> Result<(Authority, Identity)> {
    let authority = Authority::new(&cx.dir, "authority")?;
    let own = authority.issue("localhost", &["localhost"])?;
    Ok((authority, own))
}

fn connect(bed: &Bed, config: &Arc<ClientConfig>) -> Result<Client> {
    Client::connect_tls(bed.address()?, config, "localhost")
}

/// Such clients of each version.
fn both(authority: &Authority) -> Result<[Arc<ClientConfig>; 2]> {
    let of = |versions| Trust { versions, ..authority.client() }.config();
    Ok([of(&[&TLS12])?, of(&[&TLS13])?])
}

fn echo(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).flag("package-max-length", "8M").start()?;
    let mut clients = Vec::new();
    for (number, config) in both(&authority)?.iter().cycle().take(12).enumerate() {
        let mut client = connect(&bed, config)?;
        client.expect(&format!("echo {number}"), &number.to_string())?;
        clients.push(client);
    }
    // The kernel would send it as it is.
    let reply = clients[0].ask(&format!("sendfile {}", own.cert_file.display()))?;
    ensure!(reply.contains("speaks TLS"), "a file for a client of TLS: {reply:?}");
    for client in &mut clients {
        client.tell("big 3000000")?;
        let reply = client.exactly(3_000_001)?;
        ensure!(reply.iter().filter(|byte| **byte == b'x').count() == 3_000_000, "a large reply is damaged");
        let large = "y".repeat(4_000_000);
        let reply = client.ask(&format!("echo {large}"))?;
        ensure!(reply == large, "a large packet came back as {} bytes", reply.len());
        // Many at once, and their replies in order.
        let packets: Vec<String> = (0..500).map(|number| format!("echo {number}")).collect();
        client.tell_all(&packets.iter().map(String::as_str).collect::<Vec<_>>())?;
        for number in 0..500 {
            client.expect_line(&number.to_string())?;
        }
    }
    let [first, second, ..] = &mut clients[..] else { unreachable!("there are twelve") };
    // To somebody else's client, perhaps on another reactor.
    let session = second.session()?;
    first.expect(&format!("send {session} hello"), "ok")?;
    second.expect_line("hello")?;
    // The end is told, which a cut would not be.
    first.tell("close")?;
    first.expect_close()?;
    bed.stop()?;
    second.expect_close()
}

fn framing(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let launch = testbed(cx, &own).flag("framing", "length").flag("ring-size", 16_384);
    let bed = launch.start()?;
    let mut rng = cx.rng();
    for config in both(&authority)? {
        let mut client = connect(&bed, &config)?;
        for len in [0, 1, 20_000, 100_000, 7] {
            let packet = [&(len as u32).to_be_bytes()[..], &vec![b'z'; len]].concat();
            let mut rest = &packet[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
                client.send(now)?;
                rest = later;
            }
            ensure!(client.exactly(packet.len())? == packet, "a packet of {len} bytes came back otherwise");
        }
    }
    bed.stop()?;
    Ok(())
}

fn slow_reader(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).flag("socket-buffer-size", "1M").start()?;
    let [config, _] = both(&authority)?;
    let (mut slow, mut other) = (connect(&bed, &config)?, connect(&bed, &config)?);
    for _ in 0..64 {
        // Closed meanwhile, it cannot be written to.
        if slow.tell("big 900000").is_err() {
            break;
        }
    }
    bed.log.wait_line(crate::cluster::log::Source::Stderr, &["it does not read"], PATIENCE)?;
    other.expect("echo on", "on")?;
    bed.stop()?;
    Ok(())
}

fn worker_dies(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let [_, config] = both(&authority)?;
    let mut clients = (0..8).map(|_| connect(&bed, &config)).collect::<Result<Vec<_>>>()?;
    clients.iter_mut().try_for_each(|client| client.expect("echo before", "before"))?;
    for (worker, life) in bed.lives() {
        proc::signal(life.pid, Signal::KILL)?;
        bed.wait_successor(worker, life.pid)?;
        clients.iter_mut().try_for_each(|client| client.expect("echo after", "after"))?;
    }
    bed.stop()?;
    Ok(())
}

fn base_dies(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let [_, config] = both(&authority)?;
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = connect(&bed, &config)?;
        let worker = client.worker()?;
        clients.push((client, worker));
    }
    let pid = bed.lives()[&0].pid;
    proc::signal(pid, Signal::KILL)?;
    bed.wait_successor(0, pid)?;
    for (client, worker) in &mut clients {
        match client.ask("echo still") {
            Ok(reply) => ensure!(*worker == 1 && reply == "still", "served by {worker}: {reply:?}"),
            // Without a last word, or a reset.
            Err(error) => ensure!(*worker == 0, "a client of worker {worker} was cut off: {error:#}"),
        }
    }
    connect(&bed, &config)?.expect("echo new", "new")?;
    bed.stop()?;
    Ok(())
}

fn stop(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let [config, _] = both(&authority)?;
    let mut clients = (0..4).map(|_| connect(&bed, &config)).collect::<Result<Vec<_>>>()?;
    // One whose answer takes its time, and one who has not said anything yet.
    let silent = std::net::TcpStream::connect(("127.0.0.1", bed.port()?))?;
    clients[0].tell("sleep 300")?;
    bed.wait_accepted(&clients[0])?;
    bed.stop()?;
    clients[0].expect_line("slept 300")?;
    clients.iter_mut().try_for_each(Client::expect_close)?;
    drop(silent);
    Ok(())
}

fn half_close(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    for config in both(&authority)? {
        let mut client = connect(&bed, &config)?;
        client.tell_all(&["sleep 200", "echo last"])?;
        client.say_goodbye()?;
        client.expect_line("slept 200")?;
        client.expect_line("last")?;
        client.expect_close()?;
        // The same with the socket's end and no last word.
        let mut client = connect(&bed, &config)?;
        client.tell_all(&["sleep 200", "echo last"])?;
        client.finish()?;
        client.expect_line("slept 200")?;
        client.expect_line("last")?;
        client.expect_close()?;
    }
    bed.stop()?;
    Ok(())
}
