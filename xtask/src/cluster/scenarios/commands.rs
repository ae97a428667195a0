//! Every command of the testbed does what its contract says.

use crate::cluster::log::field;
use crate::cluster::matrix::{Cx, Scenario, full};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(super) static ALL: &[Scenario] = &[
    full(
        "simple_commands",
        "echo, whoami, session, sleep, spin, big, sum, and what is no command",
        simple_commands,
    ),
    full("send_and_broadcast", "a worker sends to any session, and to all", send_and_broadcast),
    full(
        "close_commands",
        "close comes after what was sent before, also from another connection",
        close_commands,
    ),
    full("hold", "a packet without a reply blocks nobody", hold),
    full("stats", "one line of JSON", stats),
    full("shutdown_command", "a worker can stop the server", shutdown_command),
];

fn simple_commands(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut client = bed.connect()?;
    client.expect("echo two words", "two words")?;
    client.send(b"echo carriage return\r\n")?;
    client.expect_line("carriage return")?;
    let handled: u64 = client.ask_field("whoami", "handled")?;
    let again: u64 = client.ask_field("whoami", "handled")?;
    ensure!(again == handled + 1, "whoami counted {handled}, then {again}");
    let pid: i32 = client.ask_field("whoami", "pid")?;
    ensure!(bed.ready.workers.contains(&pid), "whoami names process {pid}, no worker");
    let generation: u64 = client.ask_field("whoami", "generation")?;
    let worker = client.worker()?;
    ensure!(
        bed.lives()[&worker].generation == generation,
        "whoami and on_worker_start differ in the generation"
    );

    let session = client.ask("session")?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let connected: u64 =
        field(&session, "connected").and_then(|value| value.parse().ok()).context("connected=")?;
    ensure!((now - 60_000..=now + 1000).contains(&connected), "connected={connected}, now is {now}");
    let peer = field(&session, "peer").unwrap_or_default();
    ensure!(peer.ends_with(&format!("127.0.0.1:{}", client.port()?)), "peer={peer} is not this client");
    ensure!(
        field(&session, "port") == Some(&bed.port()?.to_string()),
        "port= is not the server's in {session:?}"
    );
    let recv: u64 = field(&session, "recv").and_then(|value| value.parse().ok()).context("recv=")?;
    ensure!(recv >= "echo two words\n".len() as u64, "recv={recv} is too little");

    let start = Instant::now();
    client.expect("sleep 50", "slept 50")?;
    client.expect("spin 50", "spun 50")?;
    ensure!(start.elapsed() >= Duration::from_millis(100), "sleep and spin took {:?}", start.elapsed());
    client.expect("big 10", "xxxxxxxxxx")?;
    client.expect("big 0", "")?;
    client.expect("sum 123456789", "cbf43926")?;
    for wrong in [
        "nonsense",
        "",
        " ",
        "sleep",
        "sleep soon",
        "big -1",
        "send",
        "send x y",
        "close x",
        "stop x",
        "crash",
    ] {
        let reply = client.ask(wrong)?;
        ensure!(reply.starts_with("error: "), "{wrong:?} got {reply:?} instead of an error");
    }
    client.send(b"\xFF\xFE\x00\n")?;
    ensure!(client.line()?.starts_with("error: "), "bytes that are no text got no error");
    bed.stop()?;
    Ok(())
}

fn send_and_broadcast(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let mut sender = bed.connect()?;
    let mut others = (0..5).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    let mut sessions = Vec::new();
    for other in &mut others {
        sessions.push(other.session()?);
    }
    for (index, (other, session)) in others.iter_mut().zip(&sessions).enumerate() {
        sender.expect(&format!("send {session} for you {index}"), "ok")?;
        other.expect_line(&format!("for you {index}"))?;
    }
    sender.expect("broadcast to all of you", "sent 5")?;
    for other in &mut others {
        other.expect_line("to all of you")?;
    }
    // A session that has ended is never somebody else's.
    let gone = sessions.remove(0);
    sender.expect(&format!("close {gone}"), "ok")?;
    others.remove(0).expect_close()?;
    let mut newcomers = (0..5).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
    for newcomer in &mut newcomers {
        let session = newcomer.session()?;
        ensure!(session != gone && !sessions.contains(&session), "session {session} came twice");
    }
    sender.expect(&format!("send {gone} lost"), "error: no such session")?;
    for newcomer in &mut newcomers {
        newcomer.expect("echo nothing before this", "nothing before this")?;
    }
    sender.expect("send 18446744073709551615 lost", "error: no such session")?;
    sender.expect("send 0 lost", "error: no such session")?;
    bed.stop()?;
    Ok(())
}

fn close_commands(cx: &Cx) -> Result<()> {
    const BIG: usize = 2_000_000;
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut client = bed.connect()?;
    client.tell_all(&[&format!("big {BIG}"), "close"])?;
    let rest = client.drain(Duration::from_secs(20))?;
    ensure!(rest.len() == BIG + 1, "{} bytes came before the close instead of {}", rest.len(), BIG + 1);

    let (mut closer, mut closed) = (bed.connect()?, bed.connect()?);
    let session = closed.session()?;
    closer.expect(&format!("close {session}"), "ok")?;
    closed.expect_close()?;
    let reply = closer.ask(&format!("close {session}"))?;
    ensure!(reply.starts_with("error: "), "closing what is closed got {reply:?}");

    // A client that says it will send no more still gets its replies.
    let mut half = bed.connect()?;
    half.tell("echo last words")?;
    half.finish()?;
    let rest = half.drain(Duration::from_secs(20))?;
    ensure!(
        rest == b"last words\n",
        "after the client's half close came {:?}",
        String::from_utf8_lossy(&rest)
    );
    bed.stop()?;
    Ok(())
}

fn hold(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    // Many of them: what a held packet occupies must be given back.
    for _ in 0..2000 {
        client.tell_all(&["hold me", &format!("hold {}", "m".repeat(1000))])?;
    }
    client.expect("echo through", "through")?;
    bed.stop()?;
    Ok(())
}

fn stats(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut client = bed.connect()?;
    client.expect("echo hello", "hello")?;
    let json = client.ask("stats")?;
    ensure!(json.starts_with('{') && json.ends_with('}'), "no JSON object: {json:?}");
    ensure!(json.contains("\"worker_num\":2"), "no worker_num of 2 in {json}");
    ensure!(json.contains("\"connection_num\":1"), "no connection_num of 1 in {json}");
    bed.stop()?;
    Ok(())
}

fn shutdown_command(cx: &Cx) -> Result<()> {
    let mut bed = cx.testbed().flag("worker-num", 2).start()?;
    let mut client = bed.connect()?;
    client.expect("shutdown", "ok")?;
    client.expect_close()?;
    let status = bed.wait_gone(Duration::from_secs(20))?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}
