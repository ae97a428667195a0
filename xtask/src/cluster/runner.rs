//! Runs one scenario: under a watchdog, and followed by a look at what it left behind.

use super::leavings::Leavings;
use super::log::{Log, Source};
use super::matrix::{Cx, Scenario, Setup, Storm};
use super::proc;
use anyhow::{Result, anyhow};
use rustix::process::{Signal, getpid};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many lines of a failed server's output are shown.
const SHOWN_LINES: usize = 120;

/// How many scenario runs passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// What is to be told of a run.
pub(super) struct Report {
    pub(super) passed: bool,
    /// Whole lines: one that says how it went, and everything about it when it failed.
    pub(super) text: String,
}

impl Report {
    pub(super) fn print(&self, tally: &mut Tally) {
        tally.passed += usize::from(self.passed);
        tally.failed += usize::from(!self.passed);
        print!("{}", self.text);
    }
}

pub(super) struct Runner {
    /// Holds one directory per run.
    dir: PathBuf,
    examples: PathBuf,
    asan: bool,
    seed: u64,
    storm: Storm,
}

impl Runner {
    /// Makes this process the one that inherits what servers leave behind, and lifts its descriptor limit.
    pub(super) fn new(examples: PathBuf, asan: bool, seed: u64, storm: Storm) -> Result<Self> {
        rustix::process::set_child_subreaper(Some(getpid()))?;
        let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        files.current = files.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
        // Short, because a unix socket's path has at most 107 bytes.
        let dir = std::env::temp_dir().join(format!("swoole-{}", getpid().as_raw_nonzero()));
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, examples, asan, seed, storm })
    }

    /// Runs one scenario on one combination.
    pub(super) fn run(&self, scenario: &'static Scenario, setup: Setup) -> Result<Report> {
        let dir = self.dir.join("run");
        fs::create_dir_all(&dir)?;
        let before = Leavings::look();
        let (examples, asan) = (self.examples.clone(), self.asan);
        let (seed, storm, logs) = (self.seed, self.storm, Mutex::default());
        let cx = Arc::new(Cx { setup, seed, storm, dir: dir.clone(), examples, asan, logs });
        let start = Instant::now();
        let outcome = watch(scenario, &cx);
        let took = start.elapsed();
        // First of all: whatever else went wrong may have come of it.
        let outcome = cx.check_asan().and(outcome).and_then(|()| before.compare(&dir));
        sweep();
        fs::remove_dir_all(&dir)?;
        let ipc = match (setup.ipc, setup.task_ipc) {
            (ipc, "ring") => ipc.unwrap_or("-"),
            (_, task_ipc) => task_ipc,
        };
        let row = format!("{:<26} {:<8} {:<9} {ipc:<11}", scenario.name, setup.mode, setup.backend);
        let seconds = took.as_secs_f64();
        let Err(error) = outcome else {
            return Ok(Report { passed: true, text: format!("ok      {row} {seconds:>7.2} s\n") });
        };
        let error = format!("{error:#}").replace('\n', "\n    ");
        let mut text = format!("FAILED  {row} {seconds:>7.2} s\n    {error}\n");
        text.push_str(&format!("    repeat: cargo xtask {}\n", self.words(scenario, setup)));
        for log in cx.logs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            show(log, start, &mut text)?;
        }
        Ok(Report { passed: false, text })
    }

    fn words(&self, scenario: &Scenario, setup: Setup) -> String {
        let Setup { mode, backend, ipc, task_ipc } = setup;
        let (ipc, seed) = (ipc.map(|ipc| format!("--ipc {ipc} ")).unwrap_or_default(), self.seed);
        if scenario.name == "vortex" {
            let (seconds, clients) = (self.storm.length.as_secs(), self.storm.clients);
            return format!(
                "vortex --seconds {seconds} --clients {clients} --backend {backend} {ipc}--seed {seed}"
            );
        }
        format!(
            "test-cluster {}--scenario {} --mode {mode} --backend {backend} {ipc}--task-ipc {task_ipc} --seed {seed}",
            if self.asan { "--asan " } else { "" },
            scenario.name
        )
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // What remains is empty, or its owner has been reported.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs the scenario on its own thread. When its time is up, its processes are killed, which ends whatever it waits for.
fn watch(scenario: &'static Scenario, cx: &Arc<Cx>) -> Result<()> {
    let (done, finished) = channel();
    let inner = Arc::clone(cx);
    let thread = std::thread::spawn(move || {
        let outcome = (scenario.run)(&inner);
        // The watchdog may have given up on this thread.
        let _ = done.send(());
        outcome
    });
    // A storm is as long as it is.
    match finished.recv_timeout(scenario.limit + cx.storm.length) {
        // A panic drops the sender.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread
            .join()
            .unwrap_or_else(|panic| Err(anyhow!("the scenario panicked: {}", panic_text(&*panic)))),
        Err(RecvTimeoutError::Timeout) => {
            // The thread notices soon; until then it may still start something.
            for _ in 0..30 {
                sweep();
                if !matches!(finished.recv_timeout(Duration::from_secs(1)), Err(RecvTimeoutError::Timeout)) {
                    break;
                }
            }
            Err(anyhow!("the watchdog ended it after {:?}", scenario.limit))
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Kills and reaps everything below this process.
fn sweep() {
    for pid in proc::descendants(proc::own_pid()) {
        // Fails when it has just ended.
        let _ = proc::signal(pid, Signal::KILL);
    }
    let _ = proc::until("killed processes to end", Duration::from_secs(5), || {
        proc::reap_orphans();
        proc::descendants(proc::own_pid()).is_empty().then_some(())
    });
}

/// Writes the end of a server's output, with the time since the scenario's start.
fn show(log: &Log, start: Instant, report: &mut String) -> std::fmt::Result {
    let lines = log.all();
    writeln!(report, "    --- {}", log.title)?;
    if lines.len() > SHOWN_LINES {
        writeln!(report, "    ... {} earlier lines", lines.len() - SHOWN_LINES)?;
    }
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        let mark = if line.source == Source::Stdout { "out" } else { "err" };
        let text: String = line.text.chars().take(400).collect();
        writeln!(
            report,
            "    {:>8.3} {mark} {text}",
            line.at.saturating_duration_since(start).as_secs_f64()
        )?;
    }
    Ok(())
}
