//! What it costs to make a process, from a small and from a large one.

use super::pair::Child;
use crate::sample::{FORK_CALL, FORK_FIRST, FORK_TOUCH, Sample};
use crate::stats::Median;
use anyhow::{Context, Result, ensure};
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Instant;

/// How the process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// fork(2), as the manager does.
    Fork,
    /// `posix_spawn`: a new program.
    Spawn,
}

/// All ways, with their names.
pub const WAYS: &[(&str, Way)] = &[("fork", Way::Fork), ("spawn", Way::Spawn)];

/// What the spawned program is told to do: [`greet`].
pub const GREET: &str = "greet";
const TIMES: usize = 20;
const PAGE: usize = 4096;
/// Pages that the parent writes to while the child shares them.
const TOUCHED: usize = 1000;
const GREETING: &[u8] = b"!";

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Way, String> {
        let found = WAYS.iter().find(|(name, _)| *name == text);
        found.map(|(_, way)| *way).ok_or_else(|| format!("{text:?} is unknown"))
    }
}

/// Medians of some processes made by one that has so much memory in use.
///
/// # Errors
/// No process can be made.
pub fn measure(way: Way, mib: usize) -> Result<Sample> {
    let mut memory = vec![1_u8; mib << 20];
    ensure!(memory.len() >= TOUCHED * PAGE, "at least {} MiB", (TOUCHED * PAGE).div_ceil(1 << 20));
    let (mut calls, mut firsts, mut touches) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let made = match way {
            Way::Fork => by_fork(&mut memory)?,
            Way::Spawn => by_spawn(&mut memory)?,
        };
        calls.push(made.call);
        firsts.push(made.first);
        touches.push(made.touch);
    }
    let median = |values: &[f64]| Median::of(values).map(|median| median.value).context("there were some");
    Ok(vec![(&FORK_CALL, median(&calls)?), (&FORK_FIRST, median(&firsts)?), (&FORK_TOUCH, median(&touches)?)])
}

/// One process that was made; all in microseconds.
struct Made {
    call: f64,
    first: f64,
    touch: f64,
}

fn by_fork(memory: &mut [u8]) -> Result<Made> {
    let (hear, speak) = pipe_with(PipeFlags::CLOEXEC)?;
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let begin = Instant::now();
    let child = Child::fork(|| {
        ensure!(write(&speak, GREETING)? == GREETING.len(), "nobody listens");
        read(&told, &mut [0; 1])?;
        Ok(())
    })?;
    let call = micros(begin);
    ensure!(read(&hear, &mut [0; 1])? == 1, "the child said nothing");
    let first = micros(begin);
    let touch = touch(memory);
    ensure!(write(&tell, GREETING)? == GREETING.len(), "the child is gone");
    child.join()?;
    Ok(Made { call, first, touch })
}

fn by_spawn(memory: &mut [u8]) -> Result<Made> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(GREET).stdin(Stdio::piped()).stdout(Stdio::piped());
    let begin = Instant::now();
    let mut child = command.spawn()?;
    let call = micros(begin);
    child.stdout.take().context("a pipe")?.read_exact(&mut [0; GREETING.len()])?;
    let first = micros(begin);
    let touch = touch(memory);
    drop(child.stdin.take());
    ensure!(child.wait()?.success(), "the child failed");
    Ok(Made { call, first, touch })
}

/// What a spawned program does: says a word, and waits until nobody wants it any more.
///
/// # Errors
/// Nobody listens.
pub fn greet() -> Result<()> {
    let mut output = std::io::stdout();
    output.write_all(GREETING)?;
    output.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn touch(memory: &mut [u8]) -> f64 {
    let begin = Instant::now();
    for page in memory.chunks_mut(PAGE).take(TOUCHED) {
        page[0] = page[0].wrapping_add(1);
    }
    // Nobody reads it; it must be written all the same.
    std::hint::black_box(memory);
    micros(begin)
}

fn micros(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e6
}
