//! The storm: workers and managers are killed, stopped and reloaded at random while clients check every reply.
//!
//! Under `on_crash = retry` the tally must be clean: every packet is answered once, on its own connection, in its order,
//! and no connection is closed.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::matrix::{Cx, Scenario, full};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use std::fmt::{self, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[full(
    "vortex",
    "a storm of kills, stops and reloads: no packet is lost, doubled or misdelivered, no connection closed",
    vortex,
)
.in_process()];

/// Between two strikes, on average.
const STRIKE: Duration = Duration::from_millis(50);
/// Between two reloads.
const RELOAD: Duration = Duration::from_secs(3);
/// Between two managers' deaths, on average.
const MANAGER: Duration = Duration::from_secs(5);
/// The longest that a process is stopped.
const STOP: Duration = Duration::from_millis(100);
const WORKERS: usize = 4;
/// Packets in one write.
const PIPELINE: usize = 16;
/// Bytes of a large one: several fragments of the small rings that the storm has.
const LARGE: usize = 100_000;

fn vortex(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", WORKERS).flag("reactor-num", 2).flag("ring-size", 65536);
    // So many retries that chance makes a poison of no packet.
    let bed = launch.flag("on-crash", "retry").flag("crash-retries", 100).start()?;
    let files = proc::files(bed.ready.master)?.len();
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let clients = (0..cx.storm.clients).map(|id| {
        let (address, counts, stop) = (bed.address()?.clone(), Arc::clone(&counts), Arc::clone(&stop));
        let seed = cx.seed.wrapping_mul(1_000).wrapping_add(u64::from(id));
        Ok(thread::spawn(move || converse(&address, id, seed, &counts, &stop)))
    });
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let struck = strike(cx, &bed);
    stop.store(true, Ordering::Relaxed);
    let mut wrongs = Vec::new();
    for client in clients {
        if let Err(error) = client.join().map_err(|_| anyhow!("a client panicked"))? {
            wrongs.push(format!("{error:#}"));
        }
    }
    let struck = struck?;
    let tally = format!("{counts}; {struck}; {} clients found something wrong", wrongs.len());
    println!("        {tally}");
    ensure!(wrongs.is_empty(), "{tally}:\n{}", wrongs.join("\n"));
    // Workers that have lost their manager are watched by the master, each by a descriptor, for as long as they live.
    bed.signal_master(Signal::USR1)?;
    proc::until("the master to close what the clients left", PATIENCE, || {
        (proc::files(bed.ready.master).ok()?.len() <= files).then_some(())
    })?;
    bed.stop()?;
    Ok(())
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
}

impl Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, answered) = (self.sent.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed));
        write!(f, "{sent} packets sent, {answered} answered, {} lost", sent - answered)
    }
}

/// One client: a conversation on one connection, of which every reply is known in advance.
fn converse(address: &Address, id: u32, seed: u64, counts: &Counts, stop: &AtomicBool) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut client = Client::connect(address)?;
    let session = client.session()?;
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let (mut packets, mut replies) = (String::new(), Vec::new());
        for _ in 0..rng.usize(1..=PIPELINE) {
            number += 1;
            let (packet, reply) = match rng.u32(0..100) {
                0 => ("sleep 2".to_owned(), "slept 2".to_owned()),
                1 => {
                    let text = format!("{id}.{number}.{}", "x".repeat(rng.usize(0..LARGE)));
                    (format!("echo {text}"), text)
                }
                _ => (format!("echo {id}.{number}"), format!("{id}.{number}")),
            };
            packets += &(packet + "\n");
            replies.push(reply);
        }
        counts.sent.fetch_add(replies.len() as u64, Ordering::Relaxed);
        client.send(packets.as_bytes()).with_context(|| format!("client {id}, packet {number}"))?;
        for (index, expected) in replies.iter().enumerate() {
            let got = client.line().with_context(|| format!("client {id}: no reply {}", short(expected)))?;
            if got != *expected {
                bail!("client {id}: {}", judge(id, &got, &replies, index));
            }
            counts.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    // What came twice would stand before this.
    client.expect("echo last", "last").with_context(|| format!("client {id}, after its last packet"))?;
    let now = client.session()?;
    ensure!(now == session, "client {id}: session {session} has become {now}");
    Ok(())
}

/// What a reply says that is not the expected one.
fn judge(id: u32, got: &str, replies: &[String], index: usize) -> String {
    let (got_short, expected) = (short(got), short(&replies[index]));
    let owner = got.split('.').next().and_then(|owner| owner.parse::<u32>().ok());
    let what = if replies[..index].iter().any(|reply| reply == got) {
        "duplicated"
    } else if replies[index..].iter().any(|reply| reply == got) {
        "lost or overtaken"
    } else if owner.is_some_and(|owner| owner != id) {
        "misdelivered"
    } else {
        "wrong"
    };
    format!("{what}: got {got_short} instead of {expected}")
}

fn short(text: &str) -> String {
    format!("{:?} ({} bytes)", text.chars().take(24).collect::<String>(), text.len())
}

#[derive(Default)]
struct Struck {
    killed: u32,
    managers: u32,
    stopped: u32,
    reloads: u32,
}

impl Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Struck { killed, managers, stopped, reloads } = self;
        write!(
            f,
            "{killed} workers and {managers} managers killed, {stopped} processes stopped for a while, \
             {reloads} reloads"
        )
    }
}

/// Does harm until the time is up. The seed decides on what and when; whom it meets depends on the machine, too.
fn strike(cx: &Cx, bed: &Bed) -> Result<Struck> {
    let mut rng = cx.rng();
    let mut struck = Struck::default();
    let begin = Instant::now();
    let mut reload = begin + RELOAD;
    while begin.elapsed() < cx.storm.length {
        // Strikes are independent of each other, so the pauses are exponential.
        let pause = STRIKE.mul_f64(-(1.0 - rng.f64()).ln());
        thread::sleep(pause.min(10 * STRIKE));
        if Instant::now() >= reload {
            bed.signal_master(Signal::USR1)?;
            struck.reloads += 1;
            reload += RELOAD;
        }
        // None, where one has died and its successor has not begun.
        let manager = bed.manager();
        if let Some(manager) = manager.filter(|_| rng.f64() < STRIKE.div_duration_f64(MANAGER)) {
            struck.managers += u32::from(proc::signal(manager, Signal::KILL).is_ok());
        }
        let Some(worker) = rng.choice(bed.workers()) else { continue };
        if rng.u32(0..10) > 0 {
            // It may have ended this very moment.
            struck.killed += u32::from(proc::signal(worker, Signal::KILL).is_ok());
        } else {
            let victims = [Some(worker), Some(bed.ready.master), manager];
            let victim = rng.choice(victims).flatten().unwrap_or(worker);
            if proc::signal(victim, Signal::STOP).is_ok() {
                thread::sleep(STOP.mul_f64(rng.f64()));
                let _ = proc::signal(victim, Signal::CONT);
                struck.stopped += 1;
            }
        }
    }
    Ok(struck)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_replies_are_told_apart() {
        let replies: Vec<String> = ["7.1", "7.2", "7.3"].map(String::from).into();
        for (got, verdict) in
            [("7.1", "duplicated"), ("7.3", "lost"), ("8.2", "misdelivered"), ("7.9", "wrong"), ("", "wrong")]
        {
            assert!(judge(7, got, &replies, 1).starts_with(verdict), "{got}");
        }
    }
}
