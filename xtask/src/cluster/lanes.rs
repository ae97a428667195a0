//! Scenarios side by side: most of a scenario is waiting. Each lane is a process of its own, because a run looks after all
//! processes below it, and has System V queues and, if possible, a network of its own (`ipc_namespaces(7)`,
//! `network_namespaces(7)`), because it looks after those, too.
//!
//! A lane reads one run per line, prints what there is to be told of it, and a closing line.

use super::matrix::{BACKENDS, IPCS, MODES, Setup, TASK_IPCS, choose};
use super::runner::{Report, Runner};
use super::{Run, Tally, scenarios};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// How the closing line of a run begins; what a server prints never starts a line, it is indented.
const CLOSING: &str = "lane:";

/// Runs all of these, up to `jobs` at once, and prints each report whole. Those that are to be alone come last, one by one.
pub(super) fn run(runs: &[Run], jobs: usize, fences: Fences, words: &[String]) -> Result<Tally> {
    let (alone, beside): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|run| run.scenario.alone);
    let mut lanes = Vec::new();
    for _ in 0..jobs {
        lanes.push(Lane::start(fences, words)?);
    }
    let tally = Mutex::new(Tally::default());
    let queue = Mutex::new(beside.into_iter());
    std::thread::scope(|scope| {
        for lane in &mut lanes {
            let (queue, tally) = (&queue, &tally);
            scope.spawn(move || {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some(run) = next() {
                    lane.take(run, words, tally);
                }
            });
        }
    });
    for run in alone {
        lanes[0].take(run, words, &tally);
    }
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// How lanes are kept apart here; `None` where they cannot be, which needs root and `unshare` (util-linux).
pub(super) fn fences() -> Option<Fences> {
    [Fences::Whole, Fences::Queues].into_iter().find(|fences| {
        let mut probe = fences.command("true");
        probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    })
}

/// What a lane has for itself.
#[derive(Clone, Copy)]
pub(super) enum Fences {
    /// Queues, and a network: its own ports, and a short table of connections, though another lane has thousands. Needs `ip`
    /// (iproute2).
    Whole,
    Queues,
}

impl Fences {
    /// This program within them, to be continued with its arguments.
    fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        match self {
            Fences::Whole => {
                let begin = r#"ip link set lo up && exec "$0" "$@""#;
                command.args(["--ipc", "--net", "--", "sh", "-c", begin])
            }
            Fences::Queues => command.args(["--ipc", "--"]),
        };
        command.arg(program);
        command
    }
}

/// A process that takes one run after the other.
struct Lane {
    child: Child,
    orders: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
    fences: Fences,
}

impl Lane {
    fn start(fences: Fences, words: &[String]) -> Result<Self> {
        let mut command = fences.command(std::env::current_exe()?);
        command.args(["test-cluster", "--lane"]).args(words);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a lane of test-cluster")?;
        let orders = child.stdin.take();
        let reports = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, orders, reports, fences })
    }

    /// Has it do this run, prints the report, and counts it.
    fn take(&mut self, run: &Run, words: &[String], tally: &Mutex<Tally>) {
        let report = self.ask(run).unwrap_or_else(|error| {
            // Another takes its place; if it cannot, the next run says so.
            if let Ok(lane) = Self::start(self.fences, words) {
                *self = lane;
            }
            Report { passed: false, text: format!("FAILED  {}\n    {error:#}\n", line_of(run)) }
        });
        report.print(&mut tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn ask(&mut self, run: &Run) -> Result<Report> {
        let orders = self.orders.as_mut().context("stdin is piped")?;
        writeln!(orders, "{}", line_of(run)).context("a lane of test-cluster has ended")?;
        let mut text = String::new();
        loop {
            let mut line = String::new();
            if self.reports.read_line(&mut line)? == 0 {
                bail!("a lane of test-cluster ended in this run\n{text}");
            }
            match line.strip_prefix(CLOSING) {
                Some(closing) => return Ok(Report { passed: closing.trim() == "passed", text }),
                None => text.push_str(&line),
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The end of its input is the end of its work.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// The life of a lane.
pub(super) fn serve(runner: &Runner) -> Result<()> {
    for line in std::io::stdin().lines() {
        let Run { scenario, setup } = parse_run(&line?)?;
        let report = runner.run(scenario, setup)?;
        let closing = if report.passed { "passed" } else { "failed" };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}{CLOSING} {closing}", report.text)?;
        stdout.flush()?;
    }
    Ok(())
}

fn line_of(run: &Run) -> String {
    let Setup { mode, backend, ipc, task_ipc } = run.setup;
    format!("{} {mode} {backend} {} {task_ipc}", run.scenario.name, ipc.unwrap_or("-"))
}

fn parse_run(line: &str) -> Result<Run> {
    let [name, mode, backend, ipc, task_ipc] = line.split(' ').collect::<Vec<_>>()[..] else {
        bail!("{line:?} names no run");
    };
    let scenario = scenarios::all().find(|scenario| scenario.name == name);
    let scenario = scenario.with_context(|| format!("no scenario {name:?}"))?;
    let setup = Setup {
        mode: choose("mode", &MODES, mode)?,
        backend: choose("backend", &BACKENDS, backend)?,
        ipc: if ipc == "-" { None } else { Some(choose("ipc", &IPCS, ipc)?) },
        task_ipc: choose("task-ipc", &TASK_IPCS, task_ipc)?,
    };
    Ok(Run { scenario, setup })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_reads_which_run_is_meant() {
        let scenario = scenarios::all().next().unwrap();
        for (mode, ipc) in [("process", Some("socketpair")), ("base", None)] {
            let setup = Setup { mode, backend: "io_uring", ipc, task_ipc: "unix" };
            let line = line_of(&Run { scenario, setup });
            let read = parse_run(&line).unwrap();
            assert_eq!((read.scenario.name, read.setup), (scenario.name, setup));
        }
        assert!(parse_run("no-such process epoll ring ring").is_err());
        assert!(parse_run("shape process").is_err());
    }
}
