//! `test-cluster`: scenarios that start the real process tree and look at it from outside.

mod bed;
mod client;
mod datagram;
mod disk;
mod drought;
mod lanes;
mod leavings;
mod load;
mod log;
mod matrix;
mod proc;
mod runner;
mod scenarios;
mod wire;

use crate::{Verdict, shell, test};
use anyhow::{Result, ensure};
use matrix::{BACKENDS, Choice, IPCS, MODES, Scenario, Setup, Storm, TASK_IPCS, choose};
use runner::Runner;
pub(crate) use runner::Tally;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub(crate) const HELP: &str = "\
cargo xtask test-cluster [OPTIONS]

Builds the examples in release mode, then runs scenarios against them. Each is under a watchdog, and none may leave a
process, a SysV queue, shared memory or a socket file behind. Exit code 0 when all have passed.

  --list            Name the scenarios, their modes and what they show, and run none
  --scenario NAME   Only the one of this name, or all whose names contain it; may repeat
  --mode NAME       Only process or base; may repeat
  --backend NAME    Only epoll or io_uring; may repeat
  --ipc NAME        Only ring or socketpair, between the processes of Process mode; may repeat
  --task-ipc NAME   Only ring, unix, msgqueue or msgqueue_preemptive, by which tasks go; may repeat; without it, those
                    that a scenario is about
  --asan            Builds them with AddressSanitizer, and fails what that reports in any process
  --jobs N          So many side by side (1); more than one needs root. Those that would disturb others come last
  --repeat N        Everything N times, with another seed each time; stops after a round with a failure
  --seed N          The seed of what is random in them; a failure prints it
";

pub(crate) const VORTEX_HELP: &str = "\
cargo xtask vortex [OPTIONS]

A storm over a real process tree in Process mode, under on_crash = retry. A worker is killed every 50 ms on average, and
seven times a second one is armed to die at a chosen point of its way (mid-fragment, before its commit, between its commit
and what follows it); every 5 s the manager is killed; every 3 s all workers are reloaded; twice a second a process is
stopped for up to 100 ms; every few seconds the master or the manager may have no more descriptors, and the disk of the log
is full (needs root). Meanwhile clients check that each packet is answered once, on its own connection, in its order: some
as fast as they can, some through the smallest socket buffers, some a byte at a time, one of them a byte a second. Prints a
tally; exit code 0 when nothing is lost, doubled, misdelivered or closed against the policy, and no process, descriptor or
shared memory is left. A failure prints the command that repeats it. test-cluster has a short one.

  --seconds N       How long, for each backend and channel (60)
  --clients C       Connections, each with up to 16 packets under way (16); of each 8, one has small buffers, one is slow
  --seed S          What is done when; a failure prints it
  --backend NAME    Only epoll or io_uring; may repeat
  --ipc NAME        Only ring or socketpair; may repeat (ring)
";

struct Options {
    list: bool,
    scenarios: Vec<String>,
    choice: Choice,
    asan: bool,
    repeat: u64,
    seed: u64,
    storm: Storm,
    jobs: usize,
    /// A part of such: reads what to run.
    lane: bool,
}

/// A scenario on one combination.
#[derive(Clone, Copy)]
struct Run {
    scenario: &'static Scenario,
    setup: Setup,
}

impl Options {
    /// Those of `vortex`.
    fn parse_vortex(mut args: lexopt::Parser) -> Result<Option<Self>> {
        use lexopt::prelude::*;
        let mut options = Self {
            list: false,
            scenarios: vec!["vortex".into()],
            choice: Choice {
                modes: Vec::new(),
                backends: Vec::new(),
                ipcs: Vec::new(),
                task_ipcs: Vec::new(),
            },
            asan: false,
            repeat: 1,
            seed: fastrand::u64(1..1_000_000),
            storm: Storm { length: Duration::from_secs(60), ..Storm::default() },
            jobs: 1,
            lane: false,
        };
        while let Some(arg) = args.next()? {
            let choice = &mut options.choice;
            match arg {
                Long("help") | Short('h') => return Ok(None),
                Long("seconds") => options.storm.length = Duration::from_secs(args.value()?.parse()?),
                Long("clients") => options.storm.clients = args.value()?.parse()?,
                Long("seed") => options.seed = args.value()?.parse()?,
                Long("backend") => {
                    choice.backends.push(choose("--backend", &BACKENDS, &args.value()?.string()?)?)
                }
                Long("ipc") => choice.ipcs.push(choose("--ipc", &IPCS, &args.value()?.string()?)?),
                other => return Err(other.unexpected().into()),
            }
        }
        if options.choice.ipcs.is_empty() {
            options.choice.ipcs.push(IPCS[0]);
        }
        Ok(Some(options.or_all()))
    }

    fn parse(mut args: lexopt::Parser) -> Result<Option<Self>> {
        use lexopt::prelude::*;
        let seed = fastrand::u64(1..1_000_000);
        let mut options = Self {
            list: false,
            scenarios: Vec::new(),
            choice: Choice {
                modes: Vec::new(),
                backends: Vec::new(),
                ipcs: Vec::new(),
                task_ipcs: Vec::new(),
            },
            asan: false,
            repeat: 1,
            seed,
            storm: Storm::default(),
            jobs: 1,
            lane: false,
        };
        let choice = &mut options.choice;
        while let Some(arg) = args.next()? {
            match arg {
                Long("help") | Short('h') => return Ok(None),
                Long("list") => options.list = true,
                Long("scenario") => options.scenarios.push(args.value()?.string()?),
                Long("mode") => choice.modes.push(choose("--mode", &MODES, &args.value()?.string()?)?),
                Long("backend") => {
                    choice.backends.push(choose("--backend", &BACKENDS, &args.value()?.string()?)?)
                }
                Long("ipc") => choice.ipcs.push(choose("--ipc", &IPCS, &args.value()?.string()?)?),
                Long("task-ipc") => {
                    choice.task_ipcs.push(choose("--task-ipc", &TASK_IPCS, &args.value()?.string()?)?)
                }
                Long("asan") => options.asan = true,
                Long("jobs") => options.jobs = args.value()?.parse::<usize>()?.max(1),
                Long("lane") => options.lane = true,
                Long("repeat") => options.repeat = args.value()?.parse()?,
                Long("seed") => options.seed = args.value()?.parse()?,
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Some(options.or_all()))
    }

    /// A dimension that the command line does not mention is taken whole.
    fn or_all(mut self) -> Self {
        let Choice { modes, backends, ipcs, .. } = &mut self.choice;
        for (chosen, all) in [(modes, MODES), (backends, BACKENDS), (ipcs, IPCS)] {
            if chosen.is_empty() {
                chosen.extend(all);
            }
        }
        self
    }

    fn runner(&self, seed: u64) -> Result<Runner> {
        Runner::new(examples(self.asan), self.asan, seed, self.storm)
    }

    /// What a lane has to know beside the runs.
    fn words_of_lane(&self, seed: u64) -> Vec<String> {
        let asan = self.asan.then(|| "--asan".to_owned());
        ["--seed".to_owned(), seed.to_string()].into_iter().chain(asan).collect()
    }

    fn chosen(&self) -> Result<Vec<&'static Scenario>> {
        let all: Vec<&'static Scenario> = scenarios::all().collect();
        let mut chosen = vec![false; all.len()];
        for name in &self.scenarios {
            // A whole name means that one, even where it is part of others.
            let whole = all.iter().any(|scenario| scenario.name == name);
            let matches = |scenario: &Scenario| {
                scenario.name == name || !whole && !scenario.by_name && scenario.name.contains(name.as_str())
            };
            ensure!(all.iter().any(|scenario| matches(scenario)), "no scenario {name:?}; --list names them");
            all.iter().zip(&mut chosen).for_each(|(scenario, chosen)| *chosen |= matches(scenario));
        }
        let everything = self.scenarios.is_empty();
        Ok(all
            .into_iter()
            .zip(chosen)
            .filter(|(scenario, chosen)| *chosen || everything && (self.list || !scenario.by_name))
            .map(|(scenario, _)| scenario)
            .collect())
    }
}

pub(crate) fn main(args: lexopt::Parser) -> Verdict {
    let Some(options) = Options::parse(args)? else {
        print!("{HELP}");
        return Ok(true);
    };
    if options.list {
        for scenario in options.chosen()? {
            println!("{:<26} {:<12} {}", scenario.name, scenario.modes.join(" "), scenario.about);
        }
        return Ok(true);
    }
    if options.lane {
        lanes::serve(&options.runner(options.seed)?)?;
        return Ok(true);
    }
    run_and_tell(&options)
}

pub(crate) fn vortex(args: lexopt::Parser) -> Verdict {
    let Some(options) = Options::parse_vortex(args)? else {
        print!("{VORTEX_HELP}");
        return Ok(true);
    };
    run_and_tell(&options)
}

fn run_and_tell(options: &Options) -> Verdict {
    build(options.asan)?;
    let tally = run(options)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// The counts of that line.
pub(crate) fn parse_tally(line: &str) -> Option<Tally> {
    let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some(Tally { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
}

/// Scenarios in which memory goes from one process to another, with a sanitizer in each of these. For `cargo xtask test`.
pub(crate) fn run_sanitized() -> Result<Tally> {
    let names = ["crash_retry", "kill_each_worker", "reload_under_load", "manager_killed", "stop_under_load"];
    let words = names.iter().flat_map(|name| ["--scenario", name]);
    run_words(&["--asan", "--backend", "epoll"].into_iter().chain(words).collect::<Vec<_>>())
}

fn run_words(words: &[&str]) -> Result<Tally> {
    let Some(options) = Options::parse(lexopt::Parser::from_args(words))? else {
        return Ok(Tally::default());
    };
    build(options.asan)?;
    run(&options)
}

/// Builds the examples as anybody does, for a sanitizer into the directory where `cargo xtask test` has built what they
/// stand on. Beside them, under a name of its own, the testbed with breakpoints: what is measured and what is shown has
/// none.
fn build(asan: bool) -> Result<()> {
    for mut build in builds(asan) {
        ensure!(shell::succeeds(&mut build)?, "`{}` failed", shell::words(&build));
    }
    Ok(())
}

/// Those for [`run_sanitized`].
pub(crate) fn sanitized_builds() -> [Command; 2] {
    builds(true)
}

fn builds(asan: bool) -> [Command; 2] {
    const EXAMPLES: [&str; 4] = ["build", "--quiet", "--package", "swoole-examples"];
    const BREAKPOINTS: [&str; 4] = ["--example", "testbed_breakpoints", "--features", "breakpoints"];
    [&["--examples"][..], &BREAKPOINTS].map(|what| {
        let words = [&EXAMPLES, what].concat();
        if asan {
            test::sanitized(&words, test::ASAN, "asan")
        } else {
            shell::cargo(&[&words[..], &["--release"]].concat())
        }
    })
}

fn examples(asan: bool) -> PathBuf {
    let target = test::sanitizer_target();
    let built = if asan { format!("asan/{target}/debug") } else { "release".to_owned() };
    shell::target_dir().join(built).join("examples")
}

fn run(options: &Options) -> Result<Tally> {
    let chosen = options.chosen()?;
    let setups = chosen.iter().map(|scenario| (*scenario, scenario.setups(&options.choice)));
    let runs: Vec<Run> = setups
        .flat_map(|(scenario, setups)| setups.into_iter().map(move |setup| Run { scenario, setup }))
        .collect();
    let mut tally = Tally::default();
    for round in 0..options.repeat {
        let seed = options.seed + round;
        println!("test-cluster: {} scenarios, seed {seed}", chosen.len());
        let fences = if options.jobs > 1 { lanes::fences() } else { None };
        if let Some(fences) = fences {
            tally += lanes::run(&runs, options.jobs, fences, &options.words_of_lane(seed))?;
        } else {
            let runner = options.runner(seed)?;
            for run in &runs {
                runner.run(run.scenario, run.setup)?.print(&mut tally);
            }
        }
        if tally.failed > 0 {
            break;
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Options>> {
        Options::parse(lexopt::Parser::from_args(words.iter().copied()))
    }

    #[test]
    fn the_last_line_is_counted() {
        assert_eq!(parse_tally("12 passed, 3 failed"), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(parse_tally("ok      shape  process  epoll  0.03 s"), None);
    }

    #[test]
    fn names_of_scenarios_are_unique_and_checked() {
        let mut names: Vec<_> = scenarios::all().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        let options = parse(&["--scenario", "no-such"]).unwrap().unwrap();
        assert!(options.chosen().err().unwrap().to_string().contains("--list"));
    }

    #[test]
    fn the_documents_name_scenarios_that_there_are() {
        for file in ["options.md", "bounds.md"] {
            let path = shell::root().join("crates/swoole-server/src/config").join(file);
            let text = std::fs::read_to_string(path).unwrap();
            for row in text.lines().filter(|line| line.ends_with('|')) {
                let column = row.trim_end_matches('|').rsplit_once('|').map_or("", |(_, last)| last);
                // What stands between backticks, if it is no crate or module of unit tests.
                for name in column.split('`').skip(1).step_by(2).filter(|_| !column.contains("unit tests")) {
                    let known = scenarios::all().any(|scenario| scenario.name == name);
                    assert!(known, "{file} names the scenario {name}: {row}");
                }
            }
        }
    }

    #[test]
    fn options_narrow_the_matrix() {
        let options = parse(&["--backend", "epoll", "--seed", "7", "--scenario", "shape"]).unwrap().unwrap();
        assert_eq!((options.choice.backends.as_slice(), options.seed), (["epoll"].as_slice(), 7));
        assert_eq!(
            (options.choice.modes.as_slice(), options.choice.ipcs.as_slice()),
            (&MODES[..], &IPCS[..])
        );
        assert_eq!(options.chosen().unwrap().len(), 1);
        let crashes = parse(&["--scenario", "crash"]).unwrap().unwrap().chosen().unwrap();
        assert!(crashes.len() > 1 && crashes.iter().all(|scenario| scenario.name.contains("crash")));
        assert!(parse(&["--backend", "kqueue"]).is_err());
        assert!(parse(&["--help"]).unwrap().is_none());
    }
}
