//! The project's own runner: `cargo xtask help` lists what it does.
//!
//! Everything that continuous integration calls is a subcommand here, so that what fails there can be repeated with the
//! same words on any machine.

use std::process::ExitCode;

mod bench;
mod cluster;
mod counts;
mod fuzz;
mod lint;
mod shell;
mod test;
mod twin;

const HELP: &str = "\
cargo xtask COMMAND [OPTIONS]

Commands:
  test           Everything that must hold: unit, doc and model tests, sanitizers, twin, fuzz, counts, test-cluster on all
  test-cluster   Scenarios that start the real process tree and drive it over sockets, signals and /proc
  vortex         A storm of deaths, stops, reloads and shortages, and clients that check every reply
  twin           Random schedules of a whole server in one thread, each held against every promise
  fuzz           Inputs that nobody thought of: for framers, rings, and what processes tell each other
  counts         Instructions that the hot paths take, compared with what is checked in
  bench          Requests per second, latency, CPU, system calls, memory: of the server, and of others beside it
  lint           Formatting, clippy, docs, dependencies, and the project's own rules
  help COMMAND   What a command does and which options it takes
";

/// What a command came to: it ran, and this is whether everything was in order.
type Verdict = anyhow::Result<bool>;

fn run() -> Verdict {
    let mut args = lexopt::Parser::from_env();
    let command = match args.next()? {
        Some(lexopt::Arg::Value(value)) => value.to_string_lossy().into_owned(),
        Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) | None => return help(""),
        Some(other) => return Err(other.unexpected().into()),
    };
    match command.as_str() {
        "test" => test::main(args),
        "test-cluster" => cluster::main(args),
        "vortex" => cluster::vortex(args),
        "twin" => twin::main(args),
        "fuzz" => fuzz::main(args),
        "counts" => counts::main(args),
        "bench" => bench::main(args),
        "lint" => lint::main(args),
        "help" => match args.next()? {
            Some(lexopt::Arg::Value(topic)) => help(&topic.to_string_lossy()),
            _ => help(""),
        },
        other => anyhow::bail!("no command named {other:?}; `cargo xtask help` lists them"),
    }
}

fn help(topic: &str) -> Verdict {
    print!(
        "{}",
        match topic {
            "" => HELP,
            "test" => test::HELP,
            "test-cluster" => cluster::HELP,
            "vortex" => cluster::VORTEX_HELP,
            "twin" => twin::HELP,
            "fuzz" => fuzz::HELP,
            "counts" => counts::HELP,
            "bench" => bench::HELP,
            "lint" => lint::HELP,
            other => anyhow::bail!("no command named {other:?}; `cargo xtask help` lists them"),
        }
    );
    Ok(true)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}
