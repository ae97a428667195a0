//! Broadcasts and topics.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;

pub(super) static ALL: &[Scenario] = &[
    full(
        "broadcast",
        "what a worker or a task worker broadcasts comes to all once, in its order among all else, 1 MB at once, too",
        broadcast,
    ),
    full(
        "broadcast_slow_reader",
        "a client that does not read what is broadcast is closed, and the others get all of it",
        slow_reader,
    ),
    full(
        "broadcast_amid_deaths",
        "what is broadcast by workers that are killed comes whole, in order, and not twice",
        amid_deaths,
    ),
    full("broadcast_retried", "a broadcast of a packet that is handled again comes once", retried)
        .in_process(),
    full(
        "topics",
        "who is subscribed gets what is published, until it is not, or is gone; not more than max_subscription",
        topics,
    ),
    full("topics_stay", "subscriptions outlive workers: reloads, and in Process mode deaths", topics_stay),
];

fn crowd(bed: &Bed, count: usize) -> Result<Vec<Client>> {
    (0..count)
        .map(|_| {
            let mut client = bed.connect()?;
            // It is in the books when it has its answer.
            client.expect("echo here", "here")?;
            Ok(client)
        })
        .collect()
}

fn broadcast(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 3).flag("reactor-num", 2).flag("task-worker-num", 1);
    let bed = launch.flag("package-max-length", "10M").start()?;
    let (mut sender, mut clients) = (bed.connect()?, crowd(&bed, 12)?);
    let sessions = clients.iter_mut().map(Client::session).collect::<Result<Vec<_>>>()?;
    for round in 0..20 {
        let size = if round == 10 { 1_000_000 } else { round };
        let text = "b".repeat(size);
        let packets = [
            format!("broadcast {round} {text}"),
            format!("send {} {round} for you", sessions[round % 12]),
            format!("broadcast {round} again"),
        ];
        sender.tell_all(&packets.each_ref().map(String::as_str))?;
        for reply in ["sent 12", "ok", "sent 12"] {
            sender.expect_line(reply)?;
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect_line(&format!("{round} {text}"))?;
            if number == round % 12 {
                client.expect_line(&format!("{round} for you"))?;
            }
            client.expect_line(&format!("{round} again"))?;
        }
    }
    sender.expect("taskall 5000 broadcast from afar", "results BROADCAST FROM AFAR").or_else(|_| {
        // It may come before the result of the task that has sent it.
        sender.expect_line("results BROADCAST FROM AFAR")
    })?;
    clients.iter_mut().try_for_each(|client| client.expect_line("from afar"))?;
    let reply = clients[0].ask(&format!("broadcast {}", "x".repeat(9_000_000)))?;
    ensure!(reply.contains("9000001 bytes exceed socket_buffer_size"), "{reply:?}");
    clients[1].expect("broadcast fin", "sent 12")?;
    clients.remove(1);
    clients.iter_mut().try_for_each(|client| client.expect_line("fin"))?;
    bed.stop()?;
    Ok(())
}

fn slow_reader(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).flag("socket-buffer-size", "256K").start()?;
    let (mut sender, mut clients) = (bed.connect()?, crowd(&bed, 6)?);
    let _slow = crowd(&bed, 1)?;
    let text = "s".repeat(100_000);
    let mut left = None;
    for number in 0..400 {
        // A worker of Base mode that has the slow client alone may not have come to what was broadcast last.
        let reply = proc::until("room for it", PATIENCE, || {
            let reply = sender.ask(&format!("broadcast {number} {text}")).ok()?;
            (!reply.contains("does not take what is sent to it")).then_some(reply)
        })?;
        ensure!(reply.starts_with("sent "), "{reply:?}");
        for client in &mut clients {
            client.expect_line(&format!("{number} {text}")).with_context(|| format!("broadcast {number}"))?;
        }
        if reply == "sent 6" {
            left = Some(number);
            break;
        }
    }
    ensure!(left.is_some(), "40 MB were broadcast to a client that does not read");
    bed.stop()?;
    Ok(())
}

/// Reads numbers until this last one: each is greater than the one before. How many there were.
fn read_numbers(client: &mut Client, text: &str, last: usize) -> Result<usize> {
    let (mut before, mut count) = (None, 0);
    loop {
        let line = client.line()?;
        let (number, rest) = line.split_once(' ').with_context(|| format!("{line:.40}"))?;
        let number: usize = number.parse()?;
        ensure!(rest == text, "{number} came in part: {} bytes", rest.len());
        ensure!(before.is_none_or(|before| before < number), "{number} came after {before:?}");
        (before, count) = (Some(number), count + 1);
        if number == last {
            return Ok(count);
        }
    }
}

fn amid_deaths(cx: &Cx) -> Result<()> {
    const KILLS: usize = 6;
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    // In Base mode those of the worker that dies would go with it.
    let mut listeners = (0..4).map(|_| bed.connect_to_worker(1)).collect::<Result<Vec<_>>>()?;
    listeners.iter_mut().try_for_each(|listener| listener.expect("subscribe all", "ok"))?;
    let text = "d".repeat(10_000);
    let mut number = 0;
    for _ in 0..KILLS {
        let (mut sender, pid) = (bed.connect_to_worker(0)?, bed.lives()[&0].pid);
        let packets: String =
            (number..number + 100).map(|number| format!("publish all {number} {text}\n")).collect();
        number += 100;
        // It dies amid that; who has sent it is closed.
        sender.tell(packets.trim_end())?;
        sender.line()?;
        proc::signal(pid, Signal::KILL)?;
        bed.wait_successor(0, pid)?;
    }
    let mut sender = bed.connect_to_worker(0)?;
    sender.tell(&format!("publish all {number} {text}"))?;
    for listener in &mut listeners {
        let count = read_numbers(listener, &text, number)?;
        ensure!(count > KILLS, "only {count} of {number} came");
    }
    bed.stop()?;
    Ok(())
}

fn retried(cx: &Cx) -> Result<()> {
    const KILLS: usize = 6;
    // With several reactors, a worker may be killed between what it lets out to one and to the next.
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 1);
    let bed = launch.flag("on-crash", "retry").flag("crash-retries", 100).start()?;
    let mut listeners = (0..4).map(|_| bed.connect_to_worker(1)).collect::<Result<Vec<_>>>()?;
    let mut sender = bed.connect_to_worker(0)?;
    let text = "r".repeat(10_000);
    for kill in 0..KILLS {
        let pid = bed.lives()[&0].pid;
        let numbers = kill * 100..(kill + 1) * 100;
        let packets: String = numbers.clone().map(|number| format!("broadcast {number} {text}\n")).collect();
        sender.tell(packets.trim_end())?;
        sender.line()?;
        proc::signal(pid, Signal::KILL)?;
        bed.wait_successor(0, pid)?;
        numbers.skip(1).try_for_each(|_| sender.line().map(drop))?;
    }
    for listener in &mut listeners {
        let count = read_numbers(listener, &text, KILLS * 100 - 1)?;
        ensure!(count == KILLS * 100, "{count} of {} came", KILLS * 100);
    }
    bed.stop()?;
    Ok(())
}

fn topics(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("reactor-num", 2).flag("task-worker-num", 1);
    let bed = launch.flag("max-subscription", 3).start()?;
    let (mut author, mut clients) = (bed.connect()?, crowd(&bed, 8)?);
    for (number, client) in clients.iter_mut().enumerate() {
        client.expect(&format!("subscribe {}", number % 2), "ok")?;
        client.expect(&format!("subscribe {}", number % 2), "ok")?;
    }
    author.expect("publish 0 to the even", "ok")?;
    author.expect("publish 1 to the odd", "ok")?;
    author.expect("publish 2 to nobody", "ok")?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.expect_line(["to the even", "to the odd"][number % 2])?;
    }
    // Who is subscribed and publishes does not hear itself; who is not any more hears nothing.
    clients[2].expect("unsubscribe 0", "ok")?;
    clients[2].expect("unsubscribe never", "ok")?;
    clients[0].expect("publish 0 from one of us", "ok")?;
    author.expect("taskwait 5000 publish 1 from a task", "result PUBLISH 1 FROM A TASK")?;
    for (number, client) in clients.iter_mut().enumerate().skip(1).filter(|(number, _)| *number != 2) {
        client.expect_line(["from one of us", "from a task"][number % 2])?;
    }
    for number in [0, 2] {
        clients[number].expect("echo nothing else", "nothing else")?;
    }
    // Who is gone is not among them, and its place is another one's.
    clients[4].tell("close")?;
    clients[4].expect_close()?;
    clients[4] = bed.connect()?;
    clients[4].expect("echo another one", "another one")?;
    author.expect("publish 0 once more", "ok")?;
    for number in [0, 6] {
        clients[number].expect_line("once more")?;
    }
    clients[4].expect("echo nothing else", "nothing else")?;

    for topic in ["a", "b", "c", "d"] {
        clients[2].expect(&format!("subscribe {topic}"), "ok")?;
    }
    bed.log.wait_line(Source::Stderr, &["subscribed to 3 topics (max_subscription)"], PATIENCE)?;
    author.expect("publish d too many", "ok")?;
    author.expect("publish c the last", "ok")?;
    clients[2].expect_line("the last")?;
    for name in [String::new(), "t".repeat(256)] {
        let reply = author.ask(&format!("subscribe {name}"))?;
        ensure!(reply.contains("the name of a topic"), "{reply:?}");
    }
    bed.stop()?;
    Ok(())
}

fn topics_stay(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 2).start()?;
    let (mut author, mut clients) = (bed.connect()?, crowd(&bed, 8)?);
    clients.iter_mut().try_for_each(|client| client.expect("subscribe news", "ok"))?;
    for round in 1..=5 {
        if round % 2 == 1 || bed.is_base() {
            bed.signal_master(Signal::USR1)?;
            bed.log.wait(&format!("reload {round}"), PATIENCE, |lines| {
                let ended = lines.iter().filter(|line| line.text.starts_with("on_after_reload")).count();
                (ended >= if bed.is_base() { round } else { round.div_ceil(2) }).then_some(())
            })?;
        } else {
            for (worker, life) in bed.lives() {
                proc::signal(life.pid, Signal::KILL)?;
                bed.wait_successor(worker, life.pid)?;
            }
        }
        author.expect(&format!("publish news {round}"), "ok")?;
        clients
            .iter_mut()
            .try_for_each(|client| client.expect_line(&round.to_string()))
            .map_err(|error| anyhow!("round {round}: {error:#}"))?;
    }
    bed.stop()?;
    Ok(())
}
