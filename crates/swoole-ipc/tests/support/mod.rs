//! Tests that fork: one process each, one thread, a time limit.
#![allow(dead_code, reason = "each test program uses a part")]

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid};
use swoole_sys::process::{Fork, fork, run_child};

/// A test: its name, and a function that panics when something does not hold.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn()>,
}

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Runs the tests whose names contain one of the arguments, each in a process of its own.
pub(crate) fn run(tests: Vec<Test>) {
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |test: &Test| filters.is_empty() || filters.iter().any(|filter| test.name.contains(filter));
    let (chosen, filtered): (Vec<_>, Vec<_>) = tests.into_iter().partition(wanted);
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for test in &chosen {
        let mut process = Process::spawn(|| (test.run)());
        let verdict = match process.wait(TIME_LIMIT) {
            Some(status) if status.exit_status() == Some(0) => "ok".to_owned(),
            Some(status) => format!("FAILED ({status:?})"),
            None => {
                process.kill();
                format!("FAILED (no end after {TIME_LIMIT:?})")
            }
        };
        failed += usize::from(verdict != "ok");
        println!("test {} ... {verdict}", test.name);
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, filtered) = (chosen.len() - failed, filtered.len());
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out\n"
    );
    assert_eq!(failed, 0);
}

/// A forked child; killed when dropped before its end.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    reaped: bool,
}

impl Process {
    /// Runs `life` in a child; a panic in it is its exit code 101.
    pub(crate) fn spawn(life: impl FnOnce()) -> Process {
        match fork().unwrap() {
            Fork::Parent(pid) => Process { pid, reaped: false },
            Fork::Child => run_child(|| {
                life();
                0
            }),
        }
    }

    /// How it ended, if it does within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<WaitStatus> {
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap();
        let status = waitpid(Some(self.pid), WaitOptions::NOHANG).unwrap().map(|(_, status)| status);
        self.reaped = status.is_some();
        status
    }

    /// It must end by itself, without a panic.
    pub(crate) fn join(mut self) {
        let status = self.wait(TIME_LIMIT / 2).expect("the child ends in time");
        assert_eq!(status.exit_status(), Some(0), "the child found something wrong");
    }

    /// SIGKILL, and wait: its stores are final afterwards.
    pub(crate) fn kill(&mut self) {
        if !self.reaped {
            kill_process(self.pid, Signal::KILL).unwrap();
            waitpid(Some(self.pid), WaitOptions::empty()).unwrap();
            self.reaped = true;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
