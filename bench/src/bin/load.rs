//! The load generator by itself: puts load on an echo server and prints one line of JSON. See `--help`.

use anyhow::{Context, Result};
use lexopt::prelude::*;
use std::process::ExitCode;
use swoole_bench::Protocol;
use swoole_bench::load::{self, Options};

const HELP: &str = "\
load --address HOST:PORT [OPTIONS]

Puts load on an echo server from one thread. Prints one line of JSON; fails if any byte came back wrong.

  --connections N               connections (64)
  --size BYTES                  payload of a request (128)
  --depth N                     requests under way on each connection (1)
  --rate R                      open loop: so many requests per second, latencies from when each was due
  --seconds S                   how long to send (3)
  --framing raw|length|redis    length: 4 bytes, network order, before the payload; redis: its ECHO (raw)";

fn main() -> Result<ExitCode> {
    let Some(options) = options().context("see load --help")? else {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    let summary = load::run(&options)?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(if summary.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options() -> Result<Option<Options>> {
    let mut address = None;
    let mut options = Options {
        address: ([127, 0, 0, 1], 0).into(),
        protocol: Protocol::Raw,
        connections: 64,
        size: 128,
        depth: 1,
        rate: None,
        seconds: 3.0,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("address") => address = Some(args.value()?.parse()?),
            Long("connections") => options.connections = args.value()?.parse()?,
            Long("size") => options.size = args.value()?.parse()?,
            Long("depth") => options.depth = args.value()?.parse()?,
            Long("rate") => options.rate = Some(args.value()?.parse()?),
            Long("seconds") => options.seconds = args.value()?.parse()?,
            Long("framing") => options.protocol = args.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    options.address = address.context("--address is missing")?;
    Ok(Some(options))
}
