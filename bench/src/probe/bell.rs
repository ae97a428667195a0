//! Ways to wake a process that sleeps: two of them wake each other in turn.
//!
//! `poll` sleeps in poll(2) and then reads, as one does who has more than one thing to wait for; `read` sleeps in read(2)
//! itself. Whether the waker's kernel path tells the scheduler that it is about to sleep (a *synchronous* wake-up, as
//! pipes and sockets have) may decide where the sleeper goes on.

use super::pair::{Child, bind_to_core};
use crate::sample::{ROUND_TRIP, ROUND_TRIP_CPU, Sample};
use anyhow::{Context, Result, anyhow, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::futex;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use swoole_ipc::Ring;
use zerocopy::FromBytes;

/// What wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An eventfd, as `swoole_ipc::Doorbell` has it.
    Eventfd(Sleep),
    /// One byte through a pipe.
    Pipe(Sleep),
    /// One byte through a Unix stream socket.
    Socket(Sleep),
    /// A word in shared memory.
    Futex,
}

/// In which call the sleeper sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// poll(2), then read(2).
    Poll,
    /// read(2).
    Read,
}

/// Where the two processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where the scheduler has them.
    Free,
    /// Both on one core.
    OneCore,
    /// Each on its own.
    TwoCores,
}

/// All kinds, with their names.
pub const KINDS: &[(&str, Kind)] = &[
    ("eventfd-poll", Kind::Eventfd(Sleep::Poll)),
    ("pipe-poll", Kind::Pipe(Sleep::Poll)),
    ("socket-poll", Kind::Socket(Sleep::Poll)),
    ("eventfd-read", Kind::Eventfd(Sleep::Read)),
    ("pipe-read", Kind::Pipe(Sleep::Read)),
    ("socket-read", Kind::Socket(Sleep::Read)),
    ("futex", Kind::Futex),
];

/// All places, with their names.
pub const PLACES: &[(&str, Place)] =
    &[("free", Place::Free), ("one-core", Place::OneCore), ("two-cores", Place::TwoCores)];

const WARM_UP: Duration = Duration::from_millis(100);
/// Rounds between two looks at the clock, and at whether the child is still wanted.
const ROUNDS: u32 = 64;
/// Memory for words that lie in different lines of the cache.
const WORDS: usize = 256;
const LINE: usize = 128;

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let found = KINDS.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| format!("{text:?} is unknown"))
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let found = PLACES.iter().find(|(name, _)| *name == text);
        found.map(|(_, place)| *place).ok_or_else(|| format!("{text:?} is unknown"))
    }
}

/// Measures a wake-up there and one back.
///
/// # Errors
/// The kernel refused something.
pub fn measure(kind: Kind, place: Place, seconds: f64) -> Result<Sample> {
    let words = shared_words()?;
    let (there, back) = (Bell::new(kind, words[0])?, Bell::new(kind, words[1])?);
    // The other processor is the child's, if there is one.
    let child = Child::fork(|| {
        match place {
            Place::Free => {}
            Place::OneCore => bind_to_core(0)?,
            Place::TwoCores => bind_to_core(1)?,
        }
        let mut rung = 0;
        // Killed when the parent has had enough.
        loop {
            there.wait(&mut rung)?;
            back.ring()?;
        }
    })?;
    if place != Place::Free {
        bind_to_core(0)?;
    }
    let mut rung = 0;
    let mut rounds = |time: Duration| {
        let (deadline, mut count) = (Instant::now() + time, 0_u64);
        while Instant::now() < deadline {
            for _ in 0..ROUNDS {
                there.ring()?;
                back.wait(&mut rung)?;
            }
            count += u64::from(ROUNDS);
        }
        Ok(count)
    };
    rounds(WARM_UP)?;
    let (count, took, cpu) = child.measure(|| rounds(Duration::from_secs_f64(seconds)))?;
    let per_trip = |duration: Duration| duration.as_secs_f64() * 1e6 / count as f64;
    Ok(vec![(&ROUND_TRIP, per_trip(took)), (&ROUND_TRIP_CPU, per_trip(cpu))])
}

/// Two words that this process and its children share.
fn shared_words() -> Result<[&'static AtomicU32; 2]> {
    // `swoole_ipc::Words` are of 64 bits, and a futex has 32; what a ring reserves is plain shared memory.
    let ring = Box::leak(Box::new(Ring::create("bells", 16 << 10)?));
    let producer = Box::leak(Box::new(ring.producer()?));
    let memory = producer.reserve(WORDS).context("an empty ring has room")?;
    let (one, other) = memory.split_at_mut(LINE);
    let word = |bytes| match AtomicU32::mut_from_prefix(bytes) {
        Ok((word, _)) => {
            word.store(0, Ordering::Relaxed);
            Ok(&*word)
        }
        Err(error) => Err(anyhow!("records of a ring are not aligned: {error:?}")),
    };
    Ok([word(one)?, word(other)?])
}

/// One direction.
enum Bell {
    Descriptors { sleep: Sleep, read: OwnedFd, write: OwnedFd, value: u64, bytes: usize },
    Word(&'static AtomicU32),
}

impl Bell {
    fn new(kind: Kind, word: &'static AtomicU32) -> Result<Bell> {
        let (sleep, (read, write), bytes) = match kind {
            Kind::Futex => return Ok(Bell::Word(word)),
            Kind::Eventfd(sleep) => {
                let event = eventfd(0, EventfdFlags::CLOEXEC)?;
                (sleep, (event.try_clone()?, event), size_of::<u64>())
            }
            Kind::Pipe(sleep) => (sleep, pipe_with(PipeFlags::CLOEXEC)?, 1),
            Kind::Socket(sleep) => {
                let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
                (sleep, pair, 1)
            }
        };
        Ok(Bell::Descriptors { sleep, read, write, value: 1, bytes })
    }

    fn ring(&self) -> Result<()> {
        match self {
            Bell::Descriptors { write: descriptor, value, bytes, .. } => {
                let written = write(descriptor, &value.to_ne_bytes()[..*bytes])?;
                ensure!(written == *bytes, "a bell took {written} bytes");
            }
            Bell::Word(word) => {
                word.fetch_add(1, Ordering::Release);
                futex::wake(word, futex::Flags::empty(), 1)?;
            }
        }
        Ok(())
    }

    /// Sleeps until it is rung once more than `rung` times.
    fn wait(&self, rung: &mut u32) -> Result<()> {
        match self {
            Bell::Descriptors { sleep, read: descriptor, bytes, .. } => {
                if *sleep == Sleep::Poll {
                    poll(&mut [PollFd::new(descriptor, PollFlags::IN)], None)?;
                }
                let mut buffer = [0; size_of::<u64>()];
                ensure!(read(descriptor, &mut buffer[..*bytes])? == *bytes, "a bell gave nothing");
            }
            Bell::Word(word) => {
                while word.load(Ordering::Acquire) == *rung {
                    match futex::wait(word, futex::Flags::empty(), *rung, None) {
                        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        *rung = rung.wrapping_add(1);
        Ok(())
    }
}
