//! Packets of every size and cut, and connections in great number.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::load::Load;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

pub(super) static ALL: &[Scenario] = &[
    full("large_packets", "packets of 1.5 MB and replies of 3 MB arrive whole, side by side", large_packets),
    full("cut_packets", "a packet cut at any byte is one packet", cut_packets),
    full("framing_length", "length framing echoes each packet as it was, wherever it is cut", framing_length),
    full("framing_raw", "raw framing echoes the stream", framing_raw),
    full(
        "package_max_length",
        "a packet at the limit passes, one above it costs its connection",
        package_max_length,
    ),
    full(
        "tiny_rings",
        "packets and replies far larger than a ring pass through it, beside traffic",
        tiny_rings,
    )
    .in_process(),
    full(
        "max_connection",
        "one connection too many waits, and takes the place that another gives up",
        max_connection,
    ),
    full("connections_200", "200 connections at once, each with its own replies", connections_200),
    full("connections_10000", "10,000 connections at once, each with its own replies", connections_10000),
];

/// The CRC-32 of IEEE 802.3, as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

/// Random bytes without the line protocol's own: what ends a packet, and what is dropped before its end.
fn line_bytes(rng: &mut fastrand::Rng, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rng.fill(&mut bytes);
    for byte in &mut bytes {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b'.';
        }
    }
    bytes
}

fn large_packets(cx: &Cx) -> Result<()> {
    const PACKET: usize = 1_500_000;
    const REPLY: usize = 3_000_000;
    let mut rng = cx.rng();
    let bed = cx
        .testbed()
        .flag("worker-num", 2)
        .flag("reactor-num", 2)
        .flag("package-max-length", 4_000_000)
        .start()?;
    let mut clients = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for round in 0..3 {
        let mut sums = Vec::new();
        for client in &mut clients {
            let bytes = line_bytes(&mut rng, PACKET);
            client.send(&[b"sum ".as_slice(), &bytes, b"\n"].concat())?;
            client.tell(&format!("big {REPLY}"))?;
            sums.push(crc32(&bytes));
        }
        for (index, (client, sum)) in clients.iter_mut().zip(sums).enumerate() {
            let place = || format!("round {round}, client {index}");
            let reply = client.line().with_context(place)?;
            let got =
                u32::from_str_radix(reply.trim_start_matches("0x"), 16).with_context(|| reply.clone())?;
            ensure!(got == sum, "{}: sum {got:08x} instead of {sum:08x}", place());
            let reply = client.exactly(REPLY + 1).with_context(place)?;
            ensure!(
                reply[..REPLY].iter().all(|byte| *byte == b'x') && reply[REPLY] == b'\n',
                "{}: not all x",
                place()
            );
        }
    }
    bed.stop()?;
    Ok(())
}

fn cut_packets(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let stream = b"echo the first\r\necho\necho third of three\n";
    // The line with nothing after `echo` is legal too: it echoes nothing.
    let mut client = bed.connect()?;
    for cut in 1..stream.len() {
        client.send(&stream[..cut])?;
        client.wait_read(bed.port()?)?;
        client.send(&stream[cut..])?;
        let place = || format!("cut after {cut} bytes");
        client.expect_line("the first").with_context(place)?;
        let empty = client.line().with_context(place)?;
        ensure!(empty.is_empty() || empty.starts_with("error: "), "{}: {empty:?}", place());
        client.expect_line("third of three").with_context(place)?;
    }
    for byte in stream {
        client.send(&[*byte])?;
    }
    client.expect_line("the first")?;
    bed.stop()?;
    Ok(())
}

/// A packet as the testbed frames lengths by default: four bytes, big-endian, that count what follows.
fn with_length(body: &[u8]) -> Result<Vec<u8>> {
    Ok([&u32::try_from(body.len())?.to_be_bytes(), body].concat())
}

fn framing_length(cx: &Cx) -> Result<()> {
    let mut rng = cx.rng();
    let bed = length_bed(cx)?;
    let mut client = bed.connect()?;
    let bodies: [&[u8]; 4] = [b"one", b"", b"\n\r\0", &line_bytes(&mut rng, 300_000)];
    for body in bodies {
        let packet = with_length(body)?;
        client.send(&packet)?;
        ensure!(
            client.exactly(packet.len())? == packet,
            "a packet of {} bytes came back otherwise",
            packet.len()
        );
    }
    let stream = [with_length(b"first")?, with_length(b"second")?].concat();
    for cut in 1..stream.len() {
        client.send(&stream[..cut])?;
        client.wait_read(bed.port()?)?;
        client.send(&stream[cut..])?;
        let back = client.exactly(stream.len()).with_context(|| format!("cut after {cut} bytes"))?;
        ensure!(back == stream, "cut after {cut} bytes, it came back as {back:?}");
    }
    bed.stop()?;
    Ok(())
}

fn length_bed(cx: &Cx) -> Result<Bed> {
    cx.testbed().flag("framing", "length").flag("worker-num", 1).start()
}

fn framing_raw(cx: &Cx) -> Result<()> {
    let mut rng = cx.rng();
    let bed = cx.testbed().flag("framing", "raw").flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    for size in [1, 10, 1000, 65_536, 1_000_000] {
        let mut bytes = vec![0; size];
        rng.fill(&mut bytes);
        client.send(&bytes)?;
        ensure!(client.exactly(size)? == bytes, "{size} bytes came back otherwise");
    }
    bed.stop()?;
    Ok(())
}

fn package_max_length(cx: &Cx) -> Result<()> {
    const LIMIT: usize = 65_536;
    let bed = cx.testbed().flag("package-max-length", LIMIT).flag("worker-num", 1).start()?;
    let mut bystander = bed.connect()?;
    bystander.expect("echo before", "before")?;
    let mut client = bed.connect()?;
    let text = "y".repeat(LIMIT - "echo \n".len());
    client.expect(&format!("echo {text}"), &text)?;
    client.tell(&"z".repeat(LIMIT + 1))?;
    client.expect_close()?;
    // Nobody waits for a line end that does not come.
    let mut endless = bed.connect()?;
    endless.send("z".repeat(LIMIT + 1).as_bytes())?;
    endless.expect_close()?;
    bystander.expect("echo after", "after")?;
    bed.stop()?;

    let bed = cx.testbed().flag("package-max-length", LIMIT).flag("framing", "length").start()?;
    let mut client = bed.connect()?;
    client.send(&u32::MAX.to_be_bytes())?;
    client.expect_close()?;
    bed.stop()?;
    Ok(())
}

fn tiny_rings(cx: &Cx) -> Result<()> {
    let mut rng = cx.rng();
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("ring-size", 16_384).start()?;
    let load = Load::start(bed.address()?, 2)?;
    let mut client = bed.connect()?;
    for round in 0..20 {
        // Around the ring's size, and far above it.
        let size = if rng.bool() { rng.usize(16_000..17_000) } else { rng.usize(1..1_000_000) };
        let bytes = line_bytes(&mut rng, size);
        client.send(&[b"sum ".as_slice(), &bytes, b"\necho ", &bytes, b"\n"].concat())?;
        let place = || format!("round {round}, {size} bytes");
        client.expect_line(&format!("{:08x}", crc32(&bytes))).with_context(place)?;
        let reply = client.exactly(size + 1).with_context(place)?;
        ensure!(reply[..size] == bytes && reply[size] == b'\n', "{}: came back otherwise", place());
    }
    load.finish_unharmed()?;
    bed.stop()?;
    Ok(())
}

fn max_connection(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("reactor-num", 2).flag("max-connection", 10).start()?;
    let mut clients = (0..10).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    ask_all(&mut clients, "first")?;
    let mut waiter = bed.connect()?;
    waiter.tell("echo my turn")?;
    for _ in 0..20 {
        ask_all(&mut clients, "second")?;
    }
    ensure!(!waiter.has_reply()?, "the connection above max_connection was served");
    // New workers have no more room, and in Base mode the same clients.
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
    ask_all(&mut clients, "with the next")?;
    ensure!(!waiter.has_reply()?, "the connection above max_connection was served after a reload");
    clients.truncate(9);
    waiter.expect_line("my turn").context("the connection that waited for a place")?;
    clients.push(waiter);
    ask_all(&mut clients, "third")?;
    bed.stop()?;
    Ok(())
}

fn connections_200(cx: &Cx) -> Result<()> {
    connections(cx, 200, Client::connect)
}

fn connections_10000(cx: &Cx) -> Result<()> {
    connections(cx, 10_000, Client::connect_small)
}

fn connections(cx: &Cx, count: usize, connect: fn(&Address) -> Result<Client>) -> Result<()> {
    let bed = cx
        .testbed()
        .flag("worker-num", 2)
        .flag("reactor-num", 2)
        // In Base mode each worker has half of them, and the kernel deals clients as it likes.
        .flag("max-connection", if cx.setup.is_base() { 2 * count } else { count + 100 })
        .start()?;
    let address = bed.address()?;
    let mut clients = Vec::with_capacity(count);
    for index in 0..count {
        clients.push(connect(address).with_context(|| format!("connection {index}"))?);
    }
    ask_all(&mut clients, "first")?;
    // Half of them leave: the others notice nothing, and their places can be taken again.
    clients.truncate(count / 2);
    ask_all(&mut clients, "second")?;
    for index in clients.len()..count {
        clients.push(connect(address).with_context(|| format!("connection {index}, second time"))?);
    }
    ask_all(&mut clients, "third")?;
    drop(clients);
    bed.stop()?;
    Ok(())
}

/// Everybody asks, then everybody reads.
fn ask_all(clients: &mut [Client], round: &str) -> Result<()> {
    for (index, client) in clients.iter_mut().enumerate() {
        client
            .tell(&format!("echo {round} {index}"))
            .with_context(|| format!("{round} packet of client {index}"))?;
    }
    for (index, client) in clients.iter_mut().enumerate() {
        client.expect_line(&format!("{round} {index}")).with_context(|| format!("client {index}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn length_prefix_counts_the_body() {
        assert_eq!(with_length(b"ab").unwrap(), [0, 0, 0, 2, b'a', b'b']);
    }
}
