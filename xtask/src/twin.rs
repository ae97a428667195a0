//! `twin`: random schedules of a whole server in one thread, each held against every promise.

use crate::Verdict;
use crate::shell::{cargo, succeeds};
use anyhow::bail;
use std::process::Command;

pub(crate) const HELP: &str = "\
cargo xtask twin [OPTIONS]

Plays random schedules of a server that consists of the real dispatcher, session table, links, roster, leases and
supervisor's policy, in one thread, without event loops, processes and clocks: clients come, send and leave, handlers
reply, flush and tell other clients something, reactors and workers take one small step each, workers and managers die
between any two of them, workers retire, and are reloaded, under every crash policy, over rings and sockets. Each
schedule follows from its seed alone. Prints a tally; exit code 0 when nothing is lost against policy, doubled,
misdelivered, torn or leaked, no slot has two workers that serve or none, and every stop ends. A schedule that fails is
shown, with the command that repeats it.

  --schedules N     How many, of seeds that follow each other (100000; with --seed alone 1)
  --seed S          The first seed (1)
";

/// Schedules of a run that is not told how many.
const SCHEDULES: u64 = 100_000;

pub(crate) fn main(mut args: lexopt::Parser) -> Verdict {
    use lexopt::prelude::*;
    let (mut schedules, mut seed) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(true);
            }
            Long("schedules") => schedules = Some(args.value()?.parse()?),
            Long("seed") => seed = Some(args.value()?.parse()?),
            other => bail!(other.unexpected()),
        }
    }
    let schedules = schedules.unwrap_or(if seed.is_some() { 1 } else { SCHEDULES });
    succeeds(&mut command(schedules, seed.unwrap_or(1)))
}

/// What `cargo xtask test` runs.
pub(crate) fn everything() -> Command {
    command(SCHEDULES, 1)
}

fn command(schedules: u64, seed: u64) -> Command {
    let mut command = cargo(&[
        "test",
        "--release",
        "--package",
        "swoole-server",
        "--lib",
        "master::twin",
        "--",
        "--nocapture",
    ]);
    command
        .env("RUST_BACKTRACE", "0")
        .env("SWOOLE_TWIN_SCHEDULES", schedules.to_string())
        .env("SWOOLE_TWIN_SEED", seed.to_string());
    command
}
