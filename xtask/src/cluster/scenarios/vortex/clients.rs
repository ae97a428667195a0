//! The clients of a storm: each knows every reply in advance, and looks at each byte that comes.

use super::tally::{Counts, Fault};
use crate::cluster::bed::PATIENCE;
use crate::cluster::client::{Address, Client, Closed};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Packets in one write.
const PIPELINE: usize = 16;
/// Bytes of a large one: more fragments than a small ring holds, and more than a socketpair's worker keeps to itself.
const LARGE: usize = 200_000;
/// The same for a client with small buffers, through which much takes long.
const NARROW_LARGE: usize = 5_000;
/// Bytes of such a buffer, of which the kernel takes what is the least.
const NARROW: usize = 4096;

/// How a client goes about it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Up to 16 packets in a write, as fast as replies come.
    Brisk,
    /// The same, through the smallest of buffers.
    Narrow,
    /// A byte, and then a pause, to write and to read.
    Slow(Duration),
}

impl Manner {
    fn of(id: u32) -> Self {
        match id % 8 {
            3 => Self::Narrow,
            // One is as slow as can be, and gets through few packets; the others are slow enough to meet every harm.
            7 if id == 7 => Self::Slow(Duration::from_secs(1)),
            7 => Self::Slow(Duration::from_millis(20)),
            _ => Self::Brisk,
        }
    }

    fn connect(self, address: &Address) -> Result<Client> {
        match self {
            Self::Brisk => Client::connect(address),
            Self::Narrow | Self::Slow(_) => Client::connect_narrow(address, NARROW),
        }
    }
}

/// What clients share with who started them.
#[derive(Default)]
pub(in crate::cluster::scenarios) struct Common {
    pub(in crate::cluster::scenarios) counts: Counts,
    /// Breakpoints that the next ones to write have to arm.
    points: Mutex<VecDeque<&'static str>>,
    stop: AtomicBool,
}

impl Common {
    /// Has a client arm this point amid its packets, in the worker that happens to be its own.
    pub(in crate::cluster::scenarios) fn arm(&self, point: &'static str) {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).push_back(point);
    }

    fn to_arm(&self) -> Option<&'static str> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Clients at work, each on a thread and a connection of its own.
pub(in crate::cluster::scenarios) struct Crowd {
    pub(in crate::cluster::scenarios) common: Arc<Common>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Crowd {
    pub(in crate::cluster::scenarios) fn start(address: &Address, count: u32, seed: u64) -> Result<Self> {
        let common = Arc::new(Common::default());
        let clients = (0..count).map(|id| {
            let connection = Manner::of(id).connect(address)?;
            let rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(u64::from(id)));
            let mut talk = Talk { id, number: 0, connection, rng, common: Arc::clone(&common) };
            Ok(thread::spawn(move || {
                let outcome = talk.hold(Manner::of(id)).with_context(|| format!("client {id}"));
                outcome.inspect_err(|error| talk.common.counts.add(error))
            }))
        });
        let clients = clients.collect::<Result<Vec<_>>>()?;
        Ok(Self { common, clients })
    }

    /// Waits until so many more packets are answered, or until a client has failed.
    pub(in crate::cluster::scenarios) fn wait_more(&self, count: u64) -> Result<()> {
        let answered = || self.common.counts.answered.load(Ordering::Relaxed);
        let goal = answered() + count;
        proc::until(&format!("{count} more replies"), PATIENCE, || {
            let failed = self.clients.iter().any(JoinHandle::is_finished);
            (failed || answered() >= goal).then_some(())
        })
    }

    /// Lets them come to an end: what they found wrong.
    pub(in crate::cluster::scenarios) fn finish(mut self) -> Result<Vec<String>> {
        self.common.stop.store(true, Ordering::Relaxed);
        let mut wrongs = Vec::new();
        for client in self.clients.drain(..) {
            if let Err(error) = client.join().map_err(|_| anyhow!("a client panicked"))? {
                wrongs.push(format!("{error:#}"));
            }
        }
        Ok(wrongs)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.common.stop.store(true, Ordering::Relaxed);
    }
}

/// A packet, and the reply to it.
type Exchange = (String, String);

/// A conversation on one connection.
struct Talk {
    id: u32,
    /// Of the last packet.
    number: u64,
    connection: Client,
    rng: fastrand::Rng,
    common: Arc<Common>,
}

impl Talk {
    fn hold(&mut self, manner: Manner) -> Result<()> {
        let session = self.connection.session()?;
        while !self.common.is_over() {
            let large = if manner == Manner::Brisk { LARGE } else { NARROW_LARGE };
            let exchanges = match manner {
                Manner::Slow(_) => vec![self.small()],
                _ => (0..self.rng.usize(1..=PIPELINE)).map(|_| self.exchange(large)).collect(),
            };
            self.common.counts.sent.fetch_add(exchanges.len() as u64, Ordering::Relaxed);
            let replies: Vec<String> = exchanges.iter().map(|(_, reply)| reply.clone()).collect();
            let answered = match manner {
                Manner::Slow(pause) => self.slowly(&exchanges[0], pause),
                _ => self.briskly(exchanges),
            };
            let left = replies.len() - answered.as_ref().map_or_else(|(count, _)| *count, |()| replies.len());
            answered.map_err(|(_, error)| match error.downcast::<Closed>() {
                Ok(closed) => anyhow!(Fault::Dropped { lost: left }).context(closed),
                Err(error) => error,
            })?;
        }
        // What came twice would stand before this.
        self.connection.expect("echo last", "last").context("after the last packet")?;
        let now = self.connection.session()?;
        anyhow::ensure!(now == session, "session {session} has become {now}");
        Ok(())
    }

    fn small(&mut self) -> Exchange {
        self.number += 1;
        let text = format!("{}.{}", self.id, self.number);
        (format!("echo {text}"), text)
    }

    fn exchange(&mut self, large: usize) -> Exchange {
        if let Some(point) = self.common.to_arm() {
            return (format!("die_at {point}"), "ok".to_owned());
        }
        match self.rng.u32(0..100) {
            0 => ("sleep 2".to_owned(), "slept 2".to_owned()),
            1 => {
                let (packet, reply) = self.small();
                let more = format!(".{}", "x".repeat(self.rng.usize(0..large)));
                (packet + &more, reply + &more)
            }
            _ => self.small(),
        }
    }

    /// Everything in one write, and then all replies. An error comes with how many of them had come.
    fn briskly(&mut self, exchanges: Vec<Exchange>) -> Result<(), (usize, anyhow::Error)> {
        let packets: String = exchanges.iter().map(|(packet, _)| format!("{packet}\n")).collect();
        self.connection.send(packets.as_bytes()).map_err(|error| (0, error))?;
        let replies: Vec<String> = exchanges.into_iter().map(|(_, reply)| reply).collect();
        for (index, expected) in replies.iter().enumerate() {
            let got = self.connection.line();
            let got = got.with_context(|| format!("no reply {}", short(expected)));
            self.look(got, &replies, index).map_err(|error| (index, error))?;
        }
        Ok(())
    }

    /// Byte for byte, until it is over: then the rest at once.
    fn slowly(
        &mut self,
        (packet, expected): &Exchange,
        pause: Duration,
    ) -> Result<(), (usize, anyhow::Error)> {
        let common = Arc::clone(&self.common);
        let rest = || {
            if !common.is_over() {
                thread::sleep(pause);
            }
        };
        for byte in format!("{packet}\n").bytes() {
            self.connection.send(&[byte]).map_err(|error| (0, error))?;
            rest();
        }
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.extend(self.connection.exactly(1).map_err(|error| (0, error))?);
            rest();
        }
        let got = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
        self.look(Ok(got), std::slice::from_ref(expected), 0).map_err(|error| (0, error))
    }

    fn look(&self, got: Result<String>, replies: &[String], index: usize) -> Result<()> {
        let (got, expected) = (got?, &replies[index]);
        if got != *expected {
            let fault = judge(self.id, &got, replies, index);
            return Err(anyhow!(fault).context(format!(
                "got {} instead of {}",
                short(&got),
                short(expected)
            )));
        }
        self.common.counts.answered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What a reply says that is not the expected one.
fn judge(id: u32, got: &str, replies: &[String], index: usize) -> Fault {
    let owner = got.split('.').next().and_then(|owner| owner.parse::<u32>().ok());
    if replies[..index].iter().any(|reply| reply == got) {
        Fault::Duplicated
    } else if let Some(ahead) = replies[index..].iter().position(|reply| reply == got) {
        Fault::Lost { count: ahead }
    } else if owner.is_some_and(|owner| owner != id) {
        Fault::Misdelivered
    } else {
        Fault::Wrong
    }
}

fn short(text: &str) -> String {
    format!("{:?} ({} bytes)", text.chars().take(24).collect::<String>(), text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_replies_are_told_apart() {
        let replies: Vec<String> = ["7.1", "7.2", "7.3"].map(String::from).into();
        for (got, fault) in [
            ("7.1", Fault::Duplicated),
            ("7.3", Fault::Lost { count: 1 }),
            ("8.2", Fault::Misdelivered),
            ("7.9", Fault::Wrong),
            ("", Fault::Wrong),
        ] {
            assert_eq!(judge(7, got, &replies, 1), fault, "{got}");
        }
    }

    #[test]
    fn a_crowd_has_all_manners() {
        let manners: Vec<Manner> = (0..16).map(Manner::of).collect();
        let count = |wanted: fn(&Manner) -> bool| manners.iter().filter(|manner| wanted(manner)).count();
        assert_eq!(count(|manner| *manner == Manner::Narrow), 2);
        assert_eq!(count(|manner| matches!(manner, Manner::Slow(_))), 2);
        assert_eq!(manners[0], Manner::Brisk, "a crowd of one makes a storm");
    }
}
