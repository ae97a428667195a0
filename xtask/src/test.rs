//! `test`: everything that must hold, with one closing line.

use crate::cluster::{self, Tally};
use crate::shell::{cargo, words};
use crate::{Verdict, counts, fuzz, shell, twin};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) const HELP: &str = "\
cargo xtask test [--fuzz SECONDS]

Unit, integration and doc tests of the workspace, model checks of the shared-memory ring and table, AddressSanitizer over all that
has system calls or shared memory, ThreadSanitizer over all that has threads, the deterministic twin, the fuzz targets
(needs a C++ compiler), the counts of the hot paths (needs valgrind), some scenarios with AddressSanitizer in every
process, and test-cluster on its full matrix. What has failed is named once more at the end, where the last line is
`N passed, M failed`; exit code 0 when none has failed.

  --fuzz SECONDS   Runs each fuzz target for so long (2); 0 leaves them out
";

/// Scenarios side by side. They mostly wait, but what they then do should not take much longer than alone, so that a
/// deadline means the same.
const CLUSTER_JOBS: &str = "3";

/// A command that runs tests and reports as cargo's own harness does.
struct Step {
    name: String,
    command: Command,
}

pub(crate) fn main(mut args: lexopt::Parser) -> Verdict {
    use lexopt::prelude::*;
    // Most of it is the build: this is for what has become wrong at once, and `cargo xtask fuzz` for the rest.
    let mut fuzz_seconds = 2;
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(true);
            }
            Long("fuzz") => fuzz_seconds = args.value()?.parse()?,
            other => bail!(other.unexpected()),
        }
    }
    let mut rows = Vec::new();
    let mut failures = Failures::default();
    let mut take = |Step { name, command }, failures: &mut Failures| -> Result<()> {
        let start = Instant::now();
        println!("=== {name}: {}", words(&command));
        rows.push((name, run_by(command, parse_result, failures)?, start.elapsed()));
        Ok(())
    };
    let mut steps = steps();
    take(steps.remove(0), &mut failures)?;
    let mut builds: Vec<Command> = steps.iter().map(|step| build_of(&step.command)).collect();
    builds.extend(cluster::sanitized_builds().iter().map(at_leisure));
    if fuzz_seconds > 0 {
        builds.push(at_leisure(&fuzz::build_command()));
    }
    let builds = build_ahead(builds);
    // By itself, because it looks after all processes below it, and the builds are none of its own.
    let mut scenarios = Command::new(std::env::current_exe()?);
    scenarios.args(["test-cluster", "--jobs", CLUSTER_JOBS]);
    println!("=== {}", words(&scenarios));
    let start = Instant::now();
    let tally = run_by(scenarios, cluster::parse_tally, &mut failures)?;
    let cluster = ("test-cluster".to_owned(), tally, start.elapsed());
    // What has become of it, the steps will tell.
    let _ = builds.join();
    steps.into_iter().try_for_each(|step| take(step, &mut failures))?;
    if fuzz_seconds > 0 {
        rows.push(part("fuzz", || fuzz::run_everything(fuzz_seconds)));
    }
    rows.push(part("counts", counts::run_everything));
    rows.push(part("asan cluster", cluster::run_sanitized));
    rows.push(cluster);

    failures.print();
    println!("\n{:<16} {:>7} {:>7} {:>9}", "", "passed", "failed", "seconds");
    let mut total = Tally::default();
    for (name, tally, took) in &rows {
        println!("{name:<16} {:>7} {:>7} {:>9.1}", tally.passed, tally.failed, took.as_secs_f64());
        total.passed += tally.passed;
        total.failed += tally.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

/// What this program does by itself. If that cannot be done, it is one failure, and the rest is run all the same.
fn part(name: &str, run: impl FnOnce() -> Result<Tally>) -> (String, Tally, Duration) {
    let start = Instant::now();
    println!("=== {name}");
    let tally = run().unwrap_or_else(|error| {
        println!("FAILED: {error:#}");
        Tally { passed: 0, failed: 1 }
    });
    (name.to_owned(), tally, start.elapsed())
}

/// Builds what will be run later, while scenarios do, which mostly wait: with what the machine has left.
fn build_ahead(builds: Vec<Command>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for mut build in builds {
            let _ = build.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    })
}

/// The same command of cargo's, at leisure, and only as far as the build.
fn build_of(test: &Command) -> Command {
    let words: Vec<&OsStr> = test.get_args().collect();
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let mut build = slowed(test, &words[..end]);
    build.args(["--no-run", "--quiet"]);
    build
}

/// The same command, at leisure.
fn at_leisure(command: &Command) -> Command {
    slowed(command, &command.get_args().collect::<Vec<_>>())
}

/// That command with these arguments, but not before anybody else: SCHED_IDLE, sched(7).
fn slowed(command: &Command, words: &[&OsStr]) -> Command {
    let mut slow = Command::new("chrt");
    slow.args(["--idle", "0"]).arg(command.get_program()).args(words);
    // Also what it is not to have: build scripts look at that, and what they see otherwise is built once more.
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => slow.env(name, value),
            None => slow.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        slow.current_dir(dir);
    }
    slow
}

/// The first of them alone, since it is also about what the others stand on.
fn steps() -> Vec<Step> {
    // Without `typed`, the sanitizers build it.
    let workspace = cargo(&["test", "--workspace", "--features", "swoole-server/typed", "--no-fail-fast"]);
    let mut steps = vec![Step { name: "workspace".into(), command: workspace }];

    // What these look for, and why they are called like this, stands in the front pages of swoole-ipc and swoole-table.
    let mut loom = cargo(&["test", "--package", "swoole-ipc", "--release", "--lib", "model"]);
    loom.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", shell::target_dir().join("loom"));
    steps.push(Step { name: "loom".into(), command: loom });
    let mut loom = cargo(&["test", "--package", "swoole-table", "--release", "--lib", "model"]);
    loom.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", shell::target_dir().join("loom"));
    steps.push(Step { name: "loom table".into(), command: loom });
    steps.push(Step { name: "asan".into(), command: address() });
    steps.extend(thread());
    steps.push(Step { name: "twin".into(), command: twin::everything() });
    steps
}

/// The compiler's flags for AddressSanitizer.
pub(crate) const ASAN: &str = "-Zsanitizer=address";

/// Which has to be named for sanitizers, or build scripts would be looked at, too.
pub(crate) fn sanitizer_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Cargo, with a build that a sanitizer looks at. Sanitizers are not stable features of the compiler yet: the variable lets
/// the stable one have them.
pub(crate) fn sanitized(words: &[&str], flags: &str, dir: &str) -> Command {
    let target = sanitizer_target();
    let (subcommand, rest) = words.split_first().expect("a subcommand of cargo's");
    let mut command = cargo(&[subcommand, "--target", &target]);
    // Where something was is enough for its reports, and quicker to build than all that a debugger could ask.
    command.args(rest).env("RUSTC_BOOTSTRAP", "1").env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    command.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", shell::target_dir().join(dir));
    command
}

fn suppressions(path: &str) -> String {
    format!("suppressions={}", shell::root().join(path).display())
}

/// Whatever touches memory that is not its own, or loses some: in everything that has system calls or shared memory. One
/// command, so that what all stand on is built once: a minute of two cores, and half a minute to run.
fn address() -> Command {
    let packages = ["swoole-sys", "swoole-ipc", "swoole-reactor", "swoole-table", "swoole-server"];
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    let words: Vec<&str> =
        ["test", "--no-fail-fast", "--lib", "--tests"].into_iter().chain(packages).collect();
    let mut command = sanitized(&words, ASAN, "asan");
    command.env("LSAN_OPTIONS", suppressions("xtask/sanitizers/lsan.supp"));
    // What memory it touches does not depend on so many of them.
    command.env("SWOOLE_TWIN_SCHEDULES", "200");
    command
}

/// Races, where there are threads. What the kernel writes for io_uring is invisible to the sanitizer, and what it takes for
/// the writes of a test before is the kernel's: only epoll. A process that it looks at has a thread of its own, so it may
/// not fork: nothing that does. Of the server's tests, those of what its threads share, and one after the other, because it
/// does not see that memory is unmapped in between.
fn thread() -> Vec<Step> {
    let parts: [(&str, &[&str]); 3] = [
        ("tsan", &["test", "--package", "swoole-ipc", "--test", "stress"]),
        ("tsan reactor", &["test", "--package", "swoole-reactor", "--test", "suite", "--", "epoll::"]),
        (
            "tsan master",
            &[
                "test",
                "--package",
                "swoole-server",
                "--lib",
                "--",
                "--test-threads=1",
                "session::",
                "master::mailbox",
            ],
        ),
    ];
    let step = |(name, words): (&str, &[&str])| {
        let flags = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";
        let mut command = sanitized(words, flags, "tsan");
        command.env("TSAN_OPTIONS", suppressions("crates/swoole-ipc/tests/tsan.supp"));
        Step { name: name.into(), command }
    };
    parts.map(step).into()
}

/// What the output said of failures, which is long gone from the reader's eyes at the end.
#[derive(Debug, Default)]
struct Failures {
    lines: Vec<String>,
    /// How many more lines belong to the last one.
    more: usize,
}

impl Failures {
    /// Lines after that of a failed scenario, which say why.
    const REASON: usize = 3;

    fn read(&mut self, line: &str) {
        let line = line.trim_end();
        if line.starts_with("FAILED") {
            self.lines.push(line.to_owned());
            self.more = Self::REASON;
        } else if line.starts_with("test ") && line.ends_with(" FAILED") {
            self.lines.push(line.to_owned());
        } else if self.more > 0 && line.starts_with("    ") && !line.starts_with("    ---") {
            self.lines.push(line.to_owned());
            self.more -= 1;
        } else {
            self.more = 0;
        }
    }

    fn print(&self) {
        if !self.lines.is_empty() {
            println!("\n=== failed\n{}", self.lines.join("\n"));
        }
    }
}

/// Runs one step, shows its output, counts by its closing lines, and keeps what it says of failures.
fn run_by(
    mut command: Command,
    parse: impl Fn(&str) -> Option<Tally>,
    failures: &mut Failures,
) -> Result<Tally> {
    let shown = words(&command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{shown}`"))?;
    let output = child.stdout.take().context("stdout is piped")?;
    let read = |line: &str| {
        failures.read(line);
        parse(line)
    };
    let counted = count(output, std::io::stdout(), read)?;
    let status = child.wait()?;
    if !status.success() {
        let line = format!("FAILED: `{shown}`: {status}");
        println!("{line}");
        failures.read(&line);
    }
    Ok(judge(status.success(), counted))
}

/// Copies a harness's output and sums up its closing lines.
fn count(
    output: impl Read,
    mut shown: impl Write,
    mut parse: impl FnMut(&str) -> Option<Tally>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        shown.write_all(&[&line, b"\n".as_slice()].concat())?;
        if let Some(result) = parse(&String::from_utf8_lossy(&line)) {
            tally.passed += result.passed;
            tally.failed += result.failed;
        }
    }
    Ok(tally)
}

/// A step that fails without a failed test is one failure: it did not even build. One that succeeds without a count
/// counts as one.
fn judge(success: bool, counted: Tally) -> Tally {
    match (success, counted) {
        (false, Tally { failed: 0, .. }) => Tally { failed: 1, ..counted },
        (true, Tally { passed: 0, failed: 0 }) => Tally { passed: 1, failed: 0 },
        _ => counted,
    }
}

/// The counts of a harness's closing line.
fn parse_result(line: &str) -> Option<Tally> {
    let counts = line.trim().strip_prefix("test result: ")?.split_once(". ")?.1;
    let count =
        |what: &str| counts.split(';').find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok());
    Some(Tally { passed: count("passed")?, failed: count("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_line_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(parse_result(line), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(
            parse_result("test result: ok. 1 passed; 0 failed;"),
            Some(Tally { passed: 1, failed: 0 })
        );
        assert_eq!(parse_result("test a_test ... ok"), None);
    }

    #[test]
    fn every_harness_is_counted_and_shown() {
        let output =
            "test result: ok. 2 passed; 0 failed;\nnoise\ntest result: FAILED. 1 passed; 3 failed;\n";
        let mut shown = Vec::new();
        assert_eq!(
            count(output.as_bytes(), &mut shown, parse_result).unwrap(),
            Tally { passed: 3, failed: 3 }
        );
        assert_eq!(shown, output.as_bytes());
    }

    #[test]
    fn failures_are_named_with_their_reason() {
        let output = "ok      shape   0.03 s\nFAILED  drain  1.00 s\n    waited 5s\n    repeat: it\n    --- testbed\n    0.1 out\n\
            test a::b ... FAILED\ntest c ... ok\n    not of it\n";
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.read(line));
        let expected = ["FAILED  drain  1.00 s", "    waited 5s", "    repeat: it", "test a::b ... FAILED"];
        assert_eq!(failures.lines, expected);
    }

    #[test]
    fn a_build_leaves_the_running_out() {
        let mut test = Command::new("cargo");
        test.args(["test", "--lib", "--", "epoll::"])
            .env("RUSTFLAGS", "--cfg loom")
            .env_remove("CARGO_PKG_NAME");
        let build = build_of(&test);
        assert_eq!(
            words(&build).rsplit_once("chrt").unwrap().1,
            " --idle 0 cargo test --lib --no-run --quiet"
        );
        assert!(build.get_envs().eq(test.get_envs()));
    }

    #[test]
    fn a_step_that_does_not_build_is_a_failure() {
        let tally = |passed, failed| Tally { passed, failed };
        assert_eq!(judge(false, tally(0, 0)), tally(0, 1));
        assert_eq!(judge(false, tally(2, 0)), tally(2, 1));
        assert_eq!(judge(false, tally(2, 3)), tally(2, 3));
        assert_eq!(judge(true, tally(2, 0)), tally(2, 0));
        assert_eq!(judge(true, tally(0, 0)), tally(1, 0));
    }
}
