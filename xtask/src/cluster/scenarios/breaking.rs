//! Workers that die at chosen points of their way, amid pipelined traffic.

use super::vortex::clients::Crowd;
use super::vortex::harms::points;
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Client, Closed};
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, full, once};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) static ALL: &[Scenario] = &[
    full(
        "break_points",
        "under retry, whatever the point at which a worker dies, each packet is answered once",
        under_retry,
    )
    .in_process(),
    full(
        "break_points_drop",
        "under drop, a worker that dies at a point costs the packet in hand, if there was one, and nothing else",
        |cx| at_each_point(cx, "drop"),
    )
    .in_process(),
    full(
        "break_points_close",
        "under close, it costs the connection of that packet, and no other one anything",
        |cx| at_each_point(cx, "close"),
    )
    .in_process(),
    once("break_points_absent", "the testbed that people build and measure has no breakpoints", absent),
];

/// Points at which the worker has a packet in hand, of which nothing counts yet.
const IN_HAND: [&str; 4] = ["begun", "reply_fragment", "reply_staged", "before_commit"];

fn start(cx: &Cx, policy: &str, workers: usize) -> Result<Bed> {
    let launch = cx.testbed_breakpoints().flag("worker-num", workers).flag("reactor-num", 2);
    // Large packets do not fit into it, nor their replies.
    let launch = launch.flag("ring-size", 65536).flag("on-crash", policy);
    launch.flag("crash-retries", 10).start()
}

/// Waits until the worker that was armed last has died there, and has a successor.
fn wait_death(bed: &Bed, point: &str, deaths: usize) -> Result<String> {
    bed.log.wait_line(Source::Stderr, &[&format!("breakpoint {point}:")], PATIENCE)?;
    let error = bed.log.wait_count("on_worker_error", deaths, PATIENCE)?.swap_remove(deaths - 1).text;
    ensure!(field(&error, "status") == Some("signal:9"), "{point}: {error:?}");
    Ok(error)
}

fn under_retry(cx: &Cx) -> Result<()> {
    /// Clients, of all manners; and packets between two deaths.
    const CLIENTS: u32 = 8;
    const PACKETS: u64 = 2_000;
    let bed = start(cx, "retry", 2)?;
    let crowd = Crowd::start(bed.address()?, CLIENTS, cx.seed)?;
    let common = Arc::clone(&crowd.common);
    // Twice, so that successors die there as well.
    for (point, deaths) in [points(cx), points(cx)].concat().into_iter().zip(1..) {
        crowd.wait_more(PACKETS)?;
        common.arm(point);
        wait_death(&bed, point, deaths).with_context(|| format!("at {point}"))?;
    }
    crowd.wait_more(PACKETS)?;
    let wrongs = crowd.finish()?;
    ensure!(wrongs.is_empty(), "{}", wrongs.join("\n"));
    let (sent, answered) = (&common.counts.sent, &common.counts.answered);
    let (sent, answered) = (sent.load(Ordering::Relaxed), answered.load(Ordering::Relaxed));
    ensure!(sent == answered, "of {sent} packets {answered} are answered");
    let errors = bed.worker_errors();
    ensure!(errors.iter().all(|line| line.ends_with("requests=0")), "lost: {errors:?}");
    bed.stop()?;
    Ok(())
}

/// What became of one client's packets: how many of its replies are missing, and whether it was closed.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    missing: usize,
    closed: bool,
}

/// Reads the replies in their order, of which any may be missing, up to the last one.
fn read(client: &mut Client, replies: &[String]) -> Result<Outcome> {
    let (mut outcome, mut expected) = (Outcome::default(), replies.iter());
    loop {
        let got = match client.line() {
            Ok(got) => got,
            Err(error) if error.downcast_ref::<Closed>().is_some_and(Closed::is_clean) => {
                return Ok(Outcome { missing: outcome.missing + expected.len(), closed: true });
            }
            Err(error) => return Err(error),
        };
        let left = expected.len();
        let found = expected.any(|reply| *reply == got);
        ensure!(
            found,
            "{:?} of {} bytes is none of the replies to come",
            &got[..got.len().min(20)],
            got.len()
        );
        outcome.missing += left - expected.len() - 1;
        if expected.len() == 0 {
            return Ok(outcome);
        }
    }
}

fn at_each_point(cx: &Cx, policy: &str) -> Result<()> {
    /// Clients of one worker, and packets of each.
    const CLIENTS: usize = 4;
    const PACKETS: usize = 24;
    /// Bytes of one of them: more than a worker of either link keeps to itself.
    const LARGE: usize = 200_000;
    let bed = start(cx, policy, 1)?;
    for (point, deaths) in points(cx).into_iter().zip(1..) {
        let mut sleeper = bed.connect()?;
        let mut clients = (0..CLIENTS).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
        // So that all of them are there when the first one is begun.
        bed.occupy(&mut sleeper, 50)?;
        let mut replies = Vec::new();
        for (client, id) in clients.iter_mut().zip(0..) {
            let text = |number: usize| {
                let more = if number == PACKETS / 2 { LARGE } else { 0 };
                format!("{point}.{id}.{number}.{}", "x".repeat(more))
            };
            let texts: Vec<String> = (0..PACKETS).map(text).collect();
            let packets: String = texts.iter().map(|text| format!("echo {text}\n")).collect();
            let arm = if id == 0 { format!("die_at {point}\n") } else { String::new() };
            client.send((arm + &packets).as_bytes())?;
            replies.push(texts);
        }
        sleeper.expect_line("slept 50")?;
        // Finished before it counts: under no policy is it lost.
        clients[0].expect_line("ok")?;
        // The last reply may be the one that is lost: this one comes after the death.
        let error = wait_death(&bed, point, deaths).with_context(|| format!("at {point}"))?;
        let mut outcomes = Vec::new();
        for (client, replies) in clients.iter_mut().zip(&mut replies) {
            // A client that was closed may not be able to say so.
            let _ = client.tell("echo last");
            replies.push("last".to_owned());
            outcomes.push(read(client, replies).with_context(|| format!("at {point}"))?);
        }
        let lost = usize::from(IN_HAND.contains(&point));
        ensure!(error.ends_with(&format!("requests={lost}")), "at {point}: {error:?}");
        let hit: Vec<&Outcome> = outcomes.iter().filter(|outcome| **outcome != Outcome::default()).collect();
        ensure!(hit.len() == lost, "at {point}, {lost} of the clients may be hit: {outcomes:?}");
        let as_policy = |outcome: &&Outcome| match policy {
            "drop" => !outcome.closed && outcome.missing == 1,
            _ => outcome.closed,
        };
        ensure!(hit.iter().all(as_policy), "at {point}, under {policy}: {outcomes:?}");
        sleeper.expect("echo unharmed", "unharmed")?;
    }
    bed.stop()?;
    Ok(())
}

fn absent(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().start()?;
    let reply = bed.connect()?.ask("die_at after_commit")?;
    ensure!(reply.starts_with("error: this build has no breakpoints"), "{reply:?}");
    bed.stop()?;
    Ok(())
}
