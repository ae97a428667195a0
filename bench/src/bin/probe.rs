//! Measurements that fork, for the driver: one line of JSON. See `swoole_bench::probe`.

use anyhow::{Context, Result, bail};
use std::env;
use swoole_bench::probe::{bell, channel, fork, rows, to_json};

const USAGE: &str = "\
probe channel CARRIER PATTERN SIZE SECONDS
probe bell KIND PLACE SECONDS
probe fork WAY MIB
probe rows SUBJECT OPERATION PROCESSES SECONDS";

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let sample = match args[..] {
        ["channel", carrier, pattern, size, seconds] => {
            channel::measure(parse(carrier)?, parse(pattern)?, parse(size)?, parse(seconds)?)?
        }
        ["bell", kind, place, seconds] => bell::measure(parse(kind)?, parse(place)?, parse(seconds)?)?,
        ["fork", way, mib] => fork::measure(parse(way)?, parse(mib)?)?,
        ["rows", subject, operation, workers, seconds] => {
            rows::measure(parse(subject)?, parse(operation)?, parse(workers)?, parse(seconds)?)?
        }
        [fork::GREET] => return fork::greet(),
        _ => bail!("usage:\n{USAGE}"),
    };
    println!("{}", to_json(&sample));
    Ok(())
}

fn parse<T>(text: &str) -> Result<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse()
        .map_err(|error: T::Err| anyhow::anyhow!("{error}"))
        .with_context(|| format!("argument {text:?}"))
}
