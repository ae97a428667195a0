//! Handshakes: of who cannot, of who will not, and of who comes again.

use super::{both, connect, localhost, testbed};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use anyhow::{Result, bail, ensure};
use rustls::HandshakeKind;
use std::time::{Duration, Instant};

/// A client of the same port that speaks no TLS.
fn plain(address: &Address) -> Result<Client> {
    let Address::Tls(address) = address else { bail!("{address:?} is not tls://") };
    Client::connect(&Address::Tcp(*address))
}

pub(super) fn garbage(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let workers = bed.lives();
    let [_, config] = both(&authority)?;
    let mut bystander = connect(&bed, &config)?;
    let mut rng = cx.rng();
    for round in 0..120 {
        let mut client = plain(bed.address()?)?;
        let mut bytes = vec![0; rng.usize(1..60_000)];
        rng.fill(&mut bytes);
        match rng.u8(..4) {
            0 => {}
            1 => bytes.splice(..0, *b"GET / HTTP/1.1\r\n\r\n").for_each(drop),
            // A record of the handshake, as long as it can be, and one of data.
            2 => bytes.splice(..0, [22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3]).for_each(drop),
            _ => bytes.splice(..0, [23, 3, 3, 0, 100]).for_each(drop),
        }
        // It may be closed amid that; some leave at once.
        let _ = client.send(&bytes);
        if rng.bool() {
            // A client that goes on for ever is told, too, if what it began with is not clear already.
            let _ = client.finish();
            client.drain(Duration::from_secs(20))?;
        }
        if round % 10 == 0 {
            bystander.expect("echo still", "still")?;
        }
    }
    // After the handshake: a record that nobody has sealed.
    let mut forger = connect(&bed, &config)?;
    forger.expect("echo real", "real")?;
    let mut socket = std::fs::File::from(rustix::io::dup(forger.socket())?);
    std::io::Write::write_all(&mut socket, &[23, 3, 3, 0, 40])?;
    std::io::Write::write_all(&mut socket, &[0x5a; 40])?;
    ensure!(forger.line().is_err(), "a forged record was answered");
    bystander.expect("echo still", "still")?;
    ensure!(bed.lives() == workers, "a worker was replaced");
    ensure!(bed.count("on_worker_error") == 0, "a worker died");
    bed.stop()?;
    Ok(())
}

pub(super) fn too_slow(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).flag("ssl-handshake-timeout", 2).start()?;
    let [config, _] = both(&authority)?;
    let begun = Instant::now();
    let mut silent = plain(bed.address()?)?;
    let mut slow = plain(bed.address()?)?;
    // The head of a record that does not come.
    slow.send(&[22, 3, 1, 2, 0, 1])?;
    let mut quick = connect(&bed, &config)?;
    for client in [&mut silent, &mut slow] {
        client.expect_close()?;
    }
    ensure!(begun.elapsed() >= Duration::from_secs(2), "closed after {:?}", begun.elapsed());
    bed.log.wait_line(Source::Stderr, &["ssl_handshake_timeout"], Duration::from_secs(10))?;
    // Who has shaken hands may be silent as long as it likes.
    quick.expect("echo on", "on")?;
    bed.stop()?;
    Ok(())
}

pub(super) fn resumption(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    for config in both(&authority)? {
        let mut others = Vec::new();
        for round in 0..8 {
            let mut client = connect(&bed, &config)?;
            // The tickets of TLS 1.3 come along with that.
            client.expect("echo hello", "hello")?;
            let kind = client.tls()?.handshake_kind();
            let expected = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            ensure!(kind == Some(expected), "handshake {round} was {kind:?}");
            others.push(client);
        }
    }
    bed.stop()?;
    Ok(())
}
