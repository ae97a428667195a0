//! Clients that send anything, cut anywhere, and leave as they like.

use crate::cluster::bed::Bed;
use crate::cluster::client::Client;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Context, Result, ensure};

pub(super) static ALL: &[Scenario] = &[
    full("hostile_lines", "random bytes where lines are expected harm nobody else", hostile_lines),
    full("hostile_lengths", "random bytes where lengths are expected harm nobody else", hostile_lengths),
    full("hostile_varints", "random bytes where varints are expected harm nobody else", hostile_varints),
    full(
        "hostile_texts",
        "random bytes where lines of either end are expected harm nobody else",
        hostile_texts,
    ),
    full("hostile_stream", "random bytes in a raw stream harm nobody else", hostile_stream),
];

const CLIENTS: usize = 150;
const PACKAGE_MAX: usize = 65_536;
/// 150 clients that each leave a packet one byte short of the limit, and as much again for what they do besides.
const GROWTH_MAX: u64 = 2 * (CLIENTS * PACKAGE_MAX) as u64;

fn hostile_lines(cx: &Cx) -> Result<()> {
    hostile(cx, "eof", &|client| client.expect("echo bystander", "bystander"))
}

fn hostile_lengths(cx: &Cx) -> Result<()> {
    hostile(cx, "length", &|client| echoes(client, b"\0\0\0\x09bystander"))
}

fn hostile_varints(cx: &Cx) -> Result<()> {
    hostile(cx, "varint", &|client| echoes(client, b"\x09bystander"))
}

fn hostile_texts(cx: &Cx) -> Result<()> {
    hostile(cx, "line", &|client| client.expect("echo bystander", "bystander"))
}

fn hostile_stream(cx: &Cx) -> Result<()> {
    hostile(cx, "raw", &|client| echoes(client, b"bystander"))
}

fn echoes(client: &mut Client, packet: &[u8]) -> Result<()> {
    client.send(packet)?;
    ensure!(client.exactly(packet.len())? == packet, "the bystander got other bytes than it sent");
    Ok(())
}

fn hostile(cx: &Cx, framing: &str, bystand: &dyn Fn(&mut Client) -> Result<()>) -> Result<()> {
    let mut rng = cx.rng();
    let launch = cx.testbed().flag("framing", framing).flag("package-max-length", PACKAGE_MAX);
    let bed = launch.flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let mut bystanders = (0..4).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let before = bed.private_memory()?;
    let workers = bed.lives();
    let mut open = Vec::new();
    for index in 0..CLIENTS {
        let mut client = bed.connect().with_context(|| format!("hostile client {index}"))?;
        // The server may close at any time, which fails our next write: as it should be.
        let _ = attack(&mut client, &mut rng);
        // Some leave at once with replies unread, which aborts the connection; some stay.
        if rng.bool() {
            open.push(client);
        }
        let bystander = rng.usize(..bystanders.len());
        bystand(&mut bystanders[bystander])
            .with_context(|| format!("bystander beside hostile client {index}"))?;
        let now = bed.private_memory()?;
        ensure!(now < before + GROWTH_MAX, "private memory grew from {before} to {now} bytes");
    }
    drop(open);
    for bystander in &mut bystanders {
        bystand(bystander)?;
    }
    ensure!(bed.lives() == workers, "a worker was replaced: {:?}, before {workers:?}", bed.lives());
    refuses_too_long(&bed, framing)?;
    bed.stop()?;
    Ok(())
}

/// A few writes of random length, of bytes that are likely to be taken for something.
fn attack(client: &mut Client, rng: &mut fastrand::Rng) -> Result<()> {
    for _ in 0..rng.usize(1..12) {
        let mut bytes = vec![0; rng.usize(1..40_000)];
        match rng.u8(..5) {
            0 => rng.fill(&mut bytes),
            // Many tiny packets, or lengths of zero.
            1 => bytes.fill(if rng.bool() { b'\n' } else { 0 }),
            // One endless packet, or the greatest length.
            2 => bytes.fill(if rng.bool() { b'a' } else { 0xFF }),
            // Lengths and lines that almost make sense.
            3 => bytes.iter_mut().for_each(|byte| *byte = *rng.choice(b"\0\0\0\x01\n\r e").unwrap_or(&0)),
            _ => bytes = [b"echo ".as_slice(), &bytes, b"\necho"].concat(),
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
            client.send(now)?;
            rest = later;
        }
    }
    Ok(())
}

/// A packet above the limit costs its sender the connection, where the framing knows packets.
fn refuses_too_long(bed: &Bed, framing: &str) -> Result<()> {
    let mut offender = bed.connect()?;
    match framing {
        "eof" | "line" => offender.send(&vec![b'a'; PACKAGE_MAX + 1])?,
        "length" => offender.send(&u32::try_from(PACKAGE_MAX + 1)?.to_be_bytes())?,
        "varint" => offender.send(b"\xfe\xff\x03")?,
        _ => return Ok(()),
    }
    offender.expect_close().context("the sender of a packet above package_max_length")
}
