//! Files that a worker opens and a reactor sends.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) static ALL: &[Scenario] = &[
    full(
        "sendfile",
        "files come in their place among replies, whole and in part, to oneself and to others",
        order,
    ),
    full("sendfile_refused", "what cannot be sent is an error at once, and nothing else happens", refused),
    full(
        "sendfile_slow_reader",
        "a file for a client that reads slowly takes no memory, holds nobody up, and outlives a reload",
        slow_reader,
    ),
    full(
        "sendfile_shortened",
        "a file that becomes shorter amid it costs its client the connection",
        shortened,
    ),
    full(
        "sendfile_deaths",
        "of a worker that dies before its commit no file is sent, and none is left open; after it, it is",
        deaths,
    )
    .in_process(),
];

/// A file of so many bytes, no two stretches of which are alike.
fn make(cx: &Cx, name: &str, bytes: usize) -> Result<(PathBuf, Vec<u8>)> {
    let mut rng = cx.rng();
    let content: Vec<u8> = std::iter::repeat_with(|| rng.alphanumeric() as u8).take(bytes).collect();
    let path = cx.dir.join(name);
    File::create(&path)?.write_all(&content)?;
    Ok((path, content))
}

/// Nobody has the file open.
fn expect_closed(bed: &Bed, path: &Path) -> Result<()> {
    let pids = [bed.holders(), bed.workers(), vec![bed.ready.master]].concat();
    proc::until("the file to be closed everywhere", PATIENCE, || {
        let is_open = |pid: &i32| proc::files(*pid).is_ok_and(|files| files.iter().any(|file| file == path));
        (!pids.iter().any(is_open)).then_some(())
    })
}

fn order(cx: &Cx) -> Result<()> {
    let (path, content) = make(cx, "file", 3_000_000)?;
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let (mut client, shown) = (bed.connect()?, path.display());
    for round in 0..20 {
        client.tell_all(&[
            &format!("echo {round}"),
            &format!("sendfile {shown}"),
            &format!("sendfile {shown} {round} 100"),
            "echo between",
            "big 300000",
            &format!("sendfile {shown} 2999990 0"),
            "echo end",
        ])?;
        client.expect_line(&round.to_string())?;
        ensure!(client.exactly(content.len())? == content, "the whole file, in round {round}");
        ensure!(client.exactly(100)? == content[round..round + 100], "100 bytes, in round {round}");
        client.expect_line("between")?;
        ensure!(client.exactly(300_001)?[..300_000] == [b'x'; 300_000], "large reply, in round {round}");
        ensure!(client.exactly(10)? == content[2_999_990..], "the end, in round {round}");
        client.expect_line("end")?;
    }
    // More at once than may be under way.
    let packets = vec![format!("sendfile {shown} 7 3"); 2000];
    client.tell_all(&packets.iter().map(String::as_str).collect::<Vec<_>>())?;
    for index in 0..packets.len() {
        ensure!(client.exactly(3)? == content[7..10], "small part {index}");
    }
    // To clients of every reactor, and of other workers. In Base mode those of other workers get none.
    for _ in 0..8 {
        let mut other = bed.connect()?;
        let (session, is_same) = (other.session()?, other.worker()? == client.worker()?);
        let reply = client.ask(&format!("sendfileto {session} {shown}"))?;
        if reply == "ok" {
            ensure!(other.exactly(content.len())? == content, "to another client");
        } else {
            ensure!(bed.is_base() && !is_same && reply.contains("in Base mode"), "{reply}");
        }
        other.expect("echo after", "after")?;
    }
    expect_closed(&bed, &path)?;
    client.tell_all(&[&format!("sendfile {shown}"), "close"])?;
    ensure!(client.drain(PATIENCE)? == content, "a close comes after a file");
    bed.stop()?;
    Ok(())
}

fn refused(cx: &Cx) -> Result<()> {
    let (path, _) = make(cx, "file", 100)?;
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let (mut client, shown) = (bed.connect()?, path.display());
    for (packet, parts) in [
        ("sendfile /nonexistent/file".to_owned(), ["send /nonexistent/file to session", "No such file"]),
        ("sendfile /dev/null".to_owned(), ["/dev/null", "no regular file"]),
        ("sendfile /".to_owned(), ["send / to", "no regular file"]),
        (format!("sendfile {shown} 101 0"), ["offset 101", "behind its end (100 bytes)"]),
        (format!("sendfile {shown} 1 100"), ["100 bytes from 1 on", "more than it has"]),
        (format!("sendfileto 335544320 {shown}"), ["error:", "no such session"]),
    ] {
        let reply = client.ask(&packet)?;
        ensure!(parts.iter().all(|part| reply.contains(part)), "{packet}: {reply}");
    }
    client.tell_all(&[&format!("sendfile {shown} 100 0"), "echo nothing before"])?;
    client.expect_line("nothing before")?;
    expect_closed(&bed, &path)?;
    bed.stop()?;
    Ok(())
}

fn slow_reader(cx: &Cx) -> Result<()> {
    let (path, content) = make(cx, "file", 40_000_000)?;
    let launch = cx.testbed().flag("worker-num", 1).flag("reactor-num", 1);
    let bed = launch.flag("socket-buffer-size", "64K").start()?;
    let mut slow = Client::connect_narrow(bed.address()?, 64 << 10)?;
    let session = slow.session()?;
    let mut neighbour = bed.connect()?;
    let before = bed.private_memory()?;
    slow.tell_all(&[&format!("sendfile {}", path.display()), "echo done"])?;
    // Replies behind a file count as those before it: there is room for one.
    let mut came = 0;
    for round in 0..20 {
        neighbour.expect("echo meanwhile", "meanwhile")?;
        let piece = slow.exactly(100_000)?;
        ensure!(piece == content[came..came + piece.len()], "in round {round}");
        came += piece.len();
        if round == 5 {
            bed.signal_master(Signal::USR1)?;
            bed.log.wait_line(Source::Stdout, &["on_after_reload"], PATIENCE)?;
        }
    }
    let now = bed.private_memory()?;
    ensure!(now < before + (16 << 20), "private memory grew from {before} to {now} bytes");
    let mut reader = slow;
    let rest = reader.exactly(content.len() - came)?;
    ensure!(rest == content[came..], "the rest of the file");
    reader.expect_line("done")?;
    ensure!(reader.session()? == session, "the session is another one");
    expect_closed(&bed, &path)?;
    bed.stop()?;
    Ok(())
}

fn shortened(cx: &Cx) -> Result<()> {
    let (path, content) = make(cx, "file", 50_000_000)?;
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = Client::connect_narrow(bed.address()?, 64 << 10)?;
    let mut neighbour = bed.connect()?;
    client.tell_all(&[&format!("sendfile {}", path.display()), "echo never"])?;
    let begin = client.exactly(1000)?;
    File::options().write(true).open(&path)?.set_len(30_000_000)?;
    let rest = client.drain(PATIENCE)?;
    ensure!(
        begin == content[..1000] && rest == content[1000..30_000_000],
        "{} bytes came",
        1000 + rest.len()
    );
    bed.log.wait_line(Source::Stderr, &["a file that is sent to it has become shorter"], PATIENCE)?;
    neighbour.expect("echo fine", "fine")?;
    expect_closed(&bed, &path)?;
    bed.stop()?;
    Ok(())
}

fn deaths(cx: &Cx) -> Result<()> {
    let (path, content) = make(cx, "file", 1_000_000)?;
    for (policy, point, comes) in [
        ("drop", "before_commit", false),
        ("close", "before_commit", false),
        ("retry", "before_commit", true),
        ("drop", "after_commit", true),
        ("retry", "after_commit", true),
    ] {
        let launch = cx.testbed_breakpoints().flag("worker-num", 1).flag("reactor-num", 2);
        let bed = launch.flag("on-crash", policy).start()?;
        let (mut killer, mut client) = (bed.connect()?, bed.connect()?);
        client.expect("echo here", "here")?;
        killer.expect(&format!("die_at {point}"), "ok")?;
        let packet = format!("sendfile {}", path.display());
        client.tell(&packet)?;
        let context = || format!("on_crash = {policy}, died {point}");
        bed.log.wait_count("on_worker_error", 1, PATIENCE)?;
        bed.log.wait_count("on_worker_start", 2, PATIENCE)?;
        if comes {
            ensure!(client.exactly(content.len()).with_context(context)? == content, "{}", context());
        }
        if policy == "close" {
            client.expect_close().with_context(context)?;
        } else {
            client.expect("echo next", "next").with_context(context)?;
        }
        expect_closed(&bed, &path).with_context(context)?;
        bed.stop()?;
    }
    Ok(())
}
