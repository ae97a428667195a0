//! The channels of `swoole-ipc` between two processes: a message there and back, or a stream of messages one way.
//! Every byte is compared.

use super::pair::Child;
use crate::sample::{MESSAGE_CPU, MESSAGES, ROUND_TRIP, ROUND_TRIP_CPU, Sample};
use anyhow::{Result, ensure};
use std::str::FromStr;
use std::time::{Duration, Instant};
use swoole_ipc::socketpair::{self, Kind};
use swoole_ipc::{Receive, Transmit, msgqueue, ring};

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Shared memory.
    Ring,
    /// A socketpair that keeps boundaries.
    SeqPacket,
    /// A socketpair that does not.
    Stream,
    /// A System V message queue.
    MsgQueue,
}

/// Who talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Each answers the other.
    RoundTrip,
    /// One talks, as fast as the other listens.
    OneWay,
}

/// All carriers, with their names.
pub const CARRIERS: &[(&str, Carrier)] = &[
    ("ring", Carrier::Ring),
    ("seqpacket", Carrier::SeqPacket),
    ("stream", Carrier::Stream),
    ("msgqueue", Carrier::MsgQueue),
];

/// All patterns, with their names.
pub const PATTERNS: &[(&str, Pattern)] = &[("round-trip", Pattern::RoundTrip), ("one-way", Pattern::OneWay)];

/// As large as the server's own.
const RING: usize = 512 << 10;
const LIMIT: Option<Duration> = Some(Duration::from_secs(30));
const WARM_UP: Duration = Duration::from_millis(100);
/// Messages begin at different places of the table.
const SLACK: usize = 4093;

impl FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Carrier, String> {
        find(CARRIERS, text)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        find(PATTERNS, text)
    }
}

fn find<T: Copy>(known: &[(&str, T)], text: &str) -> Result<T, String> {
    let found = known.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("{text:?} is unknown"))
}

/// Measures one pattern over one carrier.
///
/// # Errors
/// A message was lost or spoilt, or the channel failed.
pub fn measure(carrier: Carrier, pattern: Pattern, size: usize, seconds: f64) -> Result<Sample> {
    let talk = Talk::new(size);
    let time = Duration::from_secs_f64(seconds);
    match carrier {
        Carrier::Ring => {
            talk.over(pattern, time, ring::channel("there", RING)?, ring::channel("back", RING)?)
        }
        Carrier::SeqPacket => {
            talk.over(pattern, time, socketpair::pair(Kind::SeqPacket)?, socketpair::pair(Kind::SeqPacket)?)
        }
        Carrier::Stream => {
            talk.over(pattern, time, socketpair::pair(Kind::Stream)?, socketpair::pair(Kind::Stream)?)
        }
        Carrier::MsgQueue => {
            talk.over(pattern, time, msgqueue::channel("there")?, msgqueue::channel("back")?)
        }
    }
}

/// What is said.
struct Talk {
    table: Vec<u8>,
    size: usize,
}

impl Talk {
    fn new(size: usize) -> Talk {
        let mut random = fastrand::Rng::with_seed(1);
        Talk { table: (0..size + SLACK).map(|_| random.u8(..)).collect(), size }
    }

    fn message(&self, number: u64) -> &[u8] {
        let begin = (number * 31 % SLACK as u64) as usize;
        &self.table[begin..begin + self.size]
    }

    fn over<S: Transmit, R: Receive>(
        &self,
        pattern: Pattern,
        time: Duration,
        (mut to_child, requests): (S, R),
        (replies, mut from_child): (S, R),
    ) -> Result<Sample> {
        // The child goes before the halves here do: only then is a message queue nobody's.
        let child = Child::fork(|| match pattern {
            Pattern::RoundTrip => answer(requests, replies),
            Pattern::OneWay => self.listen(requests, replies),
        })?;
        match pattern {
            Pattern::RoundTrip => {
                self.round_trips(&mut to_child, &mut from_child, WARM_UP)?;
                let (count, took, cpu) =
                    child.measure(|| self.round_trips(&mut to_child, &mut from_child, time))?;
                drop(child);
                let per_trip = |duration: Duration| duration.as_secs_f64() * 1e6 / count as f64;
                Ok(vec![(&ROUND_TRIP, per_trip(took)), (&ROUND_TRIP_CPU, per_trip(cpu))])
            }
            Pattern::OneWay => {
                let warm = self.talk(&mut to_child, &mut from_child, 0, WARM_UP)?;
                let (count, took, cpu) =
                    child.measure(|| self.talk(&mut to_child, &mut from_child, warm, time))?;
                drop(child);
                let messages = (count - warm) as f64;
                Ok(vec![
                    (&MESSAGES, messages / took.as_secs_f64()),
                    (&MESSAGE_CPU, cpu.as_secs_f64() * 1e6 / messages),
                ])
            }
        }
    }

    fn round_trips(&self, to: &mut impl Transmit, from: &mut impl Receive, time: Duration) -> Result<u64> {
        let deadline = Instant::now() + time;
        let (mut count, mut reply) = (0, Vec::new());
        while Instant::now() < deadline {
            to.send(self.message(count), LIMIT)?;
            from.recv(&mut reply, LIMIT)?;
            ensure!(reply == self.message(count), "message {count} came back changed");
            count += 1;
        }
        Ok(count)
    }

    /// Sends messages from `number` on, then an empty one, and waits until they were all heard; the next number.
    fn talk(
        &self,
        to: &mut impl Transmit,
        from: &mut impl Receive,
        mut number: u64,
        time: Duration,
    ) -> Result<u64> {
        let deadline = Instant::now() + time;
        // The clock is not what is to be measured.
        while !number.is_multiple_of(16) || Instant::now() < deadline {
            to.send(self.message(number), LIMIT)?;
            number += 1;
        }
        to.send(b"", LIMIT)?;
        let mut heard = Vec::new();
        from.recv(&mut heard, LIMIT)?;
        ensure!(heard == number.to_ne_bytes(), "not all of {number} messages were heard");
        Ok(number)
    }

    /// The child's part of a stream: compares, and says at each pause how many it has heard, until it is killed.
    fn listen(&self, mut from: impl Receive, mut to: impl Transmit) -> Result<()> {
        let (mut number, mut message) = (0_u64, Vec::new());
        loop {
            from.recv(&mut message, LIMIT)?;
            if message.is_empty() {
                to.send(&number.to_ne_bytes(), LIMIT)?;
            } else {
                ensure!(message == self.message(number), "message {number} was changed");
                number += 1;
            }
        }
    }
}

/// The child's part of round trips: sends back what it gets, until it is killed.
fn answer(mut from: impl Receive, mut to: impl Transmit) -> Result<()> {
    let mut message = Vec::new();
    loop {
        from.recv(&mut message, LIMIT)?;
        to.send(&message, LIMIT)?;
    }
}
