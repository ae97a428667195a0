//! Puts load on an echo server and prints one line of JSON: see `--help`.

use anyhow::{Context, Result};
use lexopt::prelude::*;
use std::process::ExitCode;
use swoole_bench::Framing;
use swoole_bench::load::{self, Options};

const HELP: &str = "\
load --address HOST:PORT [OPTIONS]

A closed loop of requests against an echo server. Prints one line of JSON; fails if any byte came back wrong.

  --connections N         connections (64)
  --size BYTES            payload of a request (128)
  --depth N               requests under way on each connection (1)
  --seconds S             how long to send (3)
  --framing raw|length    length: 4 bytes, network order, before the payload (length)";

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
        connections: 64,
        size: 128,
        depth: 1,
        seconds: 3.0,
        framing: Framing::Length,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("address") => address = Some(args.value()?.parse()?),
            Long("connections") => options.connections = args.value()?.parse()?,
            Long("size") => options.size = args.value()?.parse()?,
            Long("depth") => options.depth = args.value()?.parse()?,
            Long("seconds") => options.seconds = args.value()?.parse()?,
            Long("framing") => options.framing = args.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    options.address = address.context("--address is missing")?;
    Ok(Some(options))
}
