//! Who has the keys, and how long.

use super::super::relist::Site;
use super::{Identity, both, connect, localhost, testbed};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use rustix::process::Signal;
use rustls::ClientConfig;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;

/// The client was shown this certificate.
fn expect_shown(client: &mut Client, identity: &Identity) -> Result<()> {
    client.expect("echo shown", "shown")?;
    let shown = client.tls()?.peer_certificates().context("the server shows a certificate")?;
    ensure!(shown[0] == identity.certificate, "the server showed another certificate");
    Ok(())
}

/// Waits for so many lines in the log that have this in it.
fn wait_lines(bed: &Bed, text: &str, count: usize) -> Result<()> {
    bed.log.wait(text, PATIENCE, |lines| {
        let found = lines.iter().filter(|line| line.source == Source::Stderr && line.text.contains(text));
        (found.count() >= count).then_some(())
    })
}

/// Waits for the end of so many reloads.
fn wait_reloads(bed: &Bed, count: usize) -> Result<()> {
    wait_lines(bed, "Server has reloaded", count)
}

pub(super) fn reload(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let mut clients = both(&authority)?.map(|config| connect(&bed, &config));
    let [first, second] = &mut clients;
    let (first, second) = (first.as_mut().expect("connects"), second.as_mut().expect("connects"));
    expect_shown(first, &own)?;
    expect_shown(second, &own)?;
    // Into the same files.
    let new = authority.issue("localhost", &["localhost"])?;
    bed.signal_master(Signal::USR1)?;
    wait_reloads(&bed, 1)?;
    wait_lines(&bed, "TLS certificates are reloaded", 1)?;
    for config in both(&authority)? {
        expect_shown(&mut connect(&bed, &config)?, &new)?;
    }
    for client in [first, second] {
        if bed.is_base() {
            client.expect_close()?;
        } else {
            client.expect("echo on", "on")?;
        }
    }
    // As a worker asks for it.
    let newest = authority.issue("localhost", &["localhost"])?;
    let [config, _] = both(&authority)?;
    connect(&bed, &config)?.tell("reload")?;
    wait_reloads(&bed, 2)?;
    wait_lines(&bed, "TLS certificates are reloaded", 2)?;
    expect_shown(&mut connect(&bed, &config)?, &newest)?;
    bed.stop()?;
    Ok(())
}

pub(super) fn relist(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let plain = "tcp://127.0.0.1:0";
    let (cert, key) = (own.cert_file.display(), own.key_file.display());
    let tls = format!("tls://127.0.0.1:0?ssl_cert_file={cert}&ssl_key_file={key}");
    let mut site = Site::start(cx, &[plain], &[])?;
    site.bed.connect()?.expect("echo plain", "plain")?;
    site.list(&[plain, &tls])?;
    let Address::Tls(at) = Address::parse(&site.added(1)?)? else { bail!("no address of TLS was added") };
    let connect = |config: &Arc<ClientConfig>| Client::connect_tls(&Address::Tls(at), config, "localhost");
    for config in both(&authority)? {
        expect_shown(&mut connect(&config)?, &own)?;
    }
    // The files are gone, but not the certificate, with which those are let in who have connected.
    let [_, config] = both(&authority)?;
    let mut late = (0..6).map(|_| connect(&config)).collect::<Result<Vec<_>>>()?;
    let mut naked = Client::connect(&Address::Tcp(at))?;
    fs::remove_file(&own.key_file)?;
    site.list(&[plain])?;
    // In Base mode a reload closes clients of TLS, whenever they have come.
    if !site.bed.is_base() {
        late.iter_mut().try_for_each(|client| expect_shown(client, &own))?;
    }
    naked.tell("echo secret")?;
    ensure!(!naked.drain(PATIENCE)?.ends_with(b"secret\n"), "served without TLS");
    proc::until("the address to be closed", PATIENCE, || {
        Client::connect(&Address::Tcp(at)).is_err().then_some(())
    })?;
    site.bed.connect()?.expect("echo plain", "plain")?;
    site.bed.stop()?;
    Ok(())
}

pub(super) fn reload_bad(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let [_, config] = both(&authority)?;
    let kept = |count: usize, reason: &str| -> Result<()> {
        bed.signal_master(Signal::USR1)?;
        wait_reloads(&bed, count)?;
        bed.log.wait_line(Source::Stderr, &["TLS certificates stay as they were", reason], PATIENCE)?;
        expect_shown(&mut connect(&bed, &config)?, &own)
    };
    fs::set_permissions(&own.key_file, Permissions::from_mode(0o666))?;
    kept(1, "mode 0666")?;
    let other = authority.issue("other", &["localhost"])?;
    fs::copy(&other.cert_file, &own.cert_file)?;
    fs::set_permissions(&own.key_file, Permissions::from_mode(0o600))?;
    kept(2, "is not the key of")?;
    fs::write(&own.cert_file, "nothing")?;
    kept(3, "there is no certificate in it")?;
    let new = authority.issue("localhost", &["localhost"])?;
    bed.signal_master(Signal::USR1)?;
    wait_reloads(&bed, 4)?;
    expect_shown(&mut connect(&bed, &config)?, &new)?;
    bed.stop()?;
    Ok(())
}

/// How often one of these stands in a process's memory, and how much of that could be read.
fn search(pid: i32, needles: &[Vec<u8>]) -> Result<(usize, usize)> {
    const PIECE: usize = 1 << 16;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("maps of {pid}"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let longest = needles.iter().map(Vec::len).max().unwrap_or(1);
    let (mut found, mut seen) = (0, 0);
    let mut piece = vec![0; PIECE + longest];
    let nothing = piece.clone();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (begin, end) = range.split_once('-').context("a range")?;
        let [begin, end] = [begin, end].map(|text| u64::from_str_radix(text, 16));
        let (mut at, end) = (begin?, end?);
        while rights.starts_with('r') && at < end {
            let wanted = piece.len().min((end - at) as usize);
            // What no process can read (`[vvar]`) is no memory of its own.
            let Ok(count @ 1..) = memory.read_at(&mut piece[..wanted], at) else { break };
            seen += count;
            if piece[..count] != nothing[..count] {
                let hits = |needle: &Vec<u8>| memmem::find_iter(&piece[..count], needle).count();
                found += needles.iter().map(hits).sum::<usize>();
            }
            // Overlapping, so that nothing hides on an edge.
            at += if count > PIECE { PIECE as u64 } else { count as u64 };
        }
    }
    Ok((found, seen))
}

pub(super) fn keys(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let small = testbed(cx, &own).flag("max-connection", 200).flag("ring-size", 65_536);
    let bed = small.flag("task-worker-num", 1).start()?;
    let [_, config] = both(&authority)?;
    let mut client = connect(&bed, &config)?;
    client.expect("echo hello", "hello")?;
    // The number in either order, and a line of the file.
    let secret = own.secret()?;
    let text = fs::read_to_string(&own.key_file)?;
    let line = text.lines().nth(1).context("a line of the key")?.as_bytes().to_vec();
    let needles = [secret.clone(), secret.into_iter().rev().collect(), line];
    let check = || -> Result<()> {
        let (found, _) = search(bed.ready.master, &needles)?;
        ensure!(found > 0, "the search does not find the key where it is, in the master");
        let family = proc::descendants(bed.ready.master);
        ensure!(family.len() >= 4, "manager, workers and task worker are {family:?}");
        for pid in family {
            let title = proc::title(pid);
            let (found, seen) = search(pid, &needles)?;
            ensure!(seen > 1 << 20, "of {title} ({pid}) only {seen} bytes could be read");
            ensure!(found == 0, "{title} ({pid}) has the key in its memory, {found} times");
        }
        Ok(())
    };
    check().context("after the start")?;
    bed.signal_master(Signal::USR1)?;
    wait_reloads(&bed, 1)?;
    check().context("after a reload")?;
    bed.replace_manager()?;
    let life = bed.lives()[&0].clone();
    proc::signal(life.pid, Signal::KILL)?;
    bed.wait_successor(0, life.pid)?;
    check().context("with another manager, and a worker of its")?;
    client.expect("echo still", "still")?;
    bed.stop()?;
    Ok(())
}
