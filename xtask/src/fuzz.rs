//! `fuzz`: inputs that nobody thought of, until something gives way or the time is over.
//!
//! The targets are built as cargo-fuzz would build them, which any toolchain can: so nothing has to be installed but a
//! C++ compiler, for libFuzzer.

use crate::Verdict;
use crate::cluster::Tally;
use crate::shell::{cargo, root, succeeds, target_dir, words};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) const HELP: &str = "\
cargo xtask fuzz [OPTIONS] [NAME]...

Runs the fuzz targets in fuzz/src/bin one after the other (needs a C++ compiler). Each starts from its seeds, which are
fuzz/corpus/NAME, and from what earlier runs have found, which is target/fuzz/NAME/corpus. Exit code 0 when none has
failed. The input that one fails on is left in target/fuzz/NAME, and the command that repeats it is printed.

  NAME           Only these; all if none is named
  --seconds N    So long for each (5)
  --input FILE   Give this input to the one that is named, and no other
  --list         Name the targets and what each is for, and run none
";

/// So long for each, if nothing else is said.
const SECONDS: u32 = 5;

/// What cargo-fuzz would have the compiler do: tell the fuzzer which branches are taken, and what is compared.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

pub(crate) fn main(mut args: lexopt::Parser) -> Verdict {
    use lexopt::prelude::*;
    let (mut names, mut seconds, mut input, mut list) = (Vec::new(), SECONDS, None, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(true);
            }
            Long("seconds") => seconds = args.value()?.parse()?,
            Long("input") => input = Some(PathBuf::from(args.value()?)),
            Long("list") => list = true,
            Value(name) => names.push(name.string()?),
            other => bail!(other.unexpected()),
        }
    }
    let targets = choose(targets()?, &names)?;
    if list {
        targets.iter().for_each(|(name, purpose)| println!("{name:<10}{purpose}"));
        return Ok(true);
    }
    if let Some(input) = input {
        let [(name, _)] = &targets[..] else { bail!("--input is for one target: name it") };
        let input = std::fs::canonicalize(&input).with_context(|| format!("find {}", input.display()))?;
        return succeeds(Command::new(build()?.join(name)).arg(input).current_dir(root()));
    }
    Ok(run(&targets, seconds)?.failed == 0)
}

/// Runs every target, each for so long. For `cargo xtask test`.
pub(crate) fn run_everything(seconds: u32) -> Result<Tally> {
    run(&targets()?, seconds)
}

/// Cargo, with what makes a build for the fuzzer of it. For `cargo xtask lint`, which need not build anew then.
pub(crate) fn instrumented(args: &[&str]) -> Command {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let (subcommand, rest) = args.split_first().expect("a subcommand of cargo's");
    let mut command =
        cargo(&[subcommand, "--release", "--target", &host, "--manifest-path", "fuzz/Cargo.toml"]);
    command.args(rest).env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("CARGO_TARGET_DIR", target_dir().join("fuzz"));
    command
}

/// What builds all targets.
pub(crate) fn build_command() -> Command {
    instrumented(&["build", "--quiet", "--bins"])
}

/// Builds all targets; the directory that they are in.
fn build() -> Result<PathBuf> {
    let mut build = build_command();
    ensure!(succeeds(&mut build)?, "`{}` failed", words(&build));
    Ok(target_dir().join(format!("fuzz/{}-unknown-linux-gnu/release", std::env::consts::ARCH)))
}

/// A name, and what the target is for.
type Target = (String, String);

/// All targets, in the order of their names: each file is one.
fn targets() -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(root().join("fuzz/src/bin")).context("find the fuzz targets")? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        targets.push((name, purpose(&std::fs::read_to_string(&path)?)));
    }
    targets.sort();
    Ok(targets)
}

/// The first paragraph of a source's front page.
fn purpose(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//! "));
    lines.collect::<Vec<_>>().join(" ")
}

fn choose(all: Vec<Target>, names: &[String]) -> Result<Vec<Target>> {
    for name in names {
        ensure!(all.iter().any(|(known, _)| known == name), "no fuzz target {name:?}; --list names them");
    }
    Ok(all.into_iter().filter(|(name, _)| names.is_empty() || names.contains(name)).collect())
}

fn run(targets: &[Target], seconds: u32) -> Result<Tally> {
    ensure!(seconds > 0, "a target needs a second at the least");
    let (programs, mut tally) = (build()?, Tally::default());
    for (name, _) in targets {
        if fuzz(&programs, name, seconds)? {
            tally.passed += 1;
        } else {
            tally.failed += 1;
        }
    }
    Ok(tally)
}

/// One target. What libFuzzer says goes to a file: of a run that fails, what matters is shown.
fn fuzz(programs: &Path, name: &str, seconds: u32) -> Verdict {
    let dir = target_dir().join("fuzz").join(name);
    let found = dir.join("corpus");
    std::fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let log = dir.join("log");
    let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut command = Command::new(programs.join(name));
    command.current_dir(root()).stdin(Stdio::null());
    // What is found goes to the first directory; the others are only read.
    command.arg(&found).arg(root().join("fuzz/corpus").join(name));
    // One input is a matter of microseconds: one that takes seconds goes on for ever.
    command.arg(format!("-max_total_time={seconds}")).args(["-timeout=10", "-rss_limit_mb=1024"]);
    command.arg(format!("-artifact_prefix={}/", dir.display())).arg("-print_final_stats=1");
    let status = command.stdout(output.try_clone()?).stderr(output).status();
    let status = status.with_context(|| format!("start `{}`", words(&command)))?;
    let log_text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    if status.success() {
        println!("ok      {name:<10}{:>9} inputs in {seconds} s", executed(&log_text).unwrap_or(0));
        return Ok(true);
    }
    println!("FAILED  {name}: {status}");
    reason(&log_text).iter().for_each(|line| println!("    {line}"));
    let shown = |path: &Path| path.strip_prefix(root()).unwrap_or(path).display().to_string();
    println!("    all that was said: {}", shown(&log));
    if let Some(input) = failing_input(&log_text) {
        println!("    again: cargo xtask fuzz {name} --input {}", shown(Path::new(input)));
    }
    Ok(false)
}

/// How many inputs were tried.
fn executed(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?.trim().parse().ok()
}

/// Where the input lies that failed.
fn failing_input(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.trim())
}

/// The lines that say what went wrong: a panic's, or the fuzzer's own where nothing panicked.
fn reason(log: &str) -> Vec<&str> {
    let from = |mark: &str| log.lines().position(|line| line.contains(mark));
    let panic = from("panicked at").map(|at| (at, 6));
    let (start, count) = panic.or_else(|| from("ERROR: libFuzzer").map(|at| (at, 20))).unwrap_or((0, 20));
    log.lines().skip(start).take(count).take_while(|line| !line.starts_with("stack backtrace")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
INFO: Seed: 2365388695
#16\tNEW    cov: 177 ft: 278 corp: 8/17b
thread '<unnamed>' (14644) panicked at src/bin/ring.rs:276:5:
assertion `left == right` failed
stack backtrace:
   0: __rustc::rust_begin_unwind
==14644== ERROR: libFuzzer: deadly signal
artifact_prefix='target/fuzz/ring/'; Test unit written to target/fuzz/ring/crash-66fc
stat::number_of_executed_units: 3955
";

    #[test]
    fn the_log_says_what_failed_and_on_what() {
        assert_eq!(executed(LOG), Some(3955));
        assert_eq!(failing_input(LOG), Some("target/fuzz/ring/crash-66fc"));
        let lines: Vec<_> = LOG.lines().collect();
        assert_eq!(reason(LOG), lines[2..4]);
        let hung = LOG.replace("panicked at", "").replace("deadly signal", "timeout after 10 seconds");
        assert!(reason(&hung)[0].contains("timeout"));
        assert_eq!(reason("cannot be executed\n"), ["cannot be executed"]);
    }

    #[test]
    fn each_target_is_named_and_has_seeds() {
        let targets = targets().unwrap();
        assert!(targets.iter().any(|(name, _)| name == "ring"));
        for (name, purpose) in &targets {
            assert!(!purpose.is_empty(), "{name} does not say what it is for");
            let seeds = std::fs::read_dir(root().join("fuzz/corpus").join(name));
            assert!(seeds.is_ok_and(|mut seeds| seeds.next().is_some()), "{name} has no seeds");
        }
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(choose(targets.clone(), &names(&["wire"])).unwrap().len(), 1);
        assert_eq!(choose(targets.clone(), &[]).unwrap(), targets);
        assert!(choose(targets, &names(&["wires"])).is_err());
    }
}
