//! A test harness for code that forks: cargo's own runs tests in threads, and a process with threads does not
//! fork. This one gives each test a process of its own and a deadline, so that one may close descriptors, block
//! signals, hang or crash without another noticing.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, setpgid, waitid,
};
use swoole_sys::fds::wait_readable;
use swoole_sys::process::{Fork, fork, run_child};

const DEADLINE: Duration = Duration::from_secs(30);

/// Names functions of the calling module as tests.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        fn main() -> std::process::ExitCode {
            support::run(&[$((stringify!($name), $name)),*])
        }
    };
}

/// Runs the tests whose names contain one of the arguments, or all without arguments, and reports as cargo's
/// harness does. A test fails when it panics, ends its process in another way, or outlives its deadline.
pub(crate) fn run(tests: &[(&str, fn())]) -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let (wanted, unwanted): (Vec<_>, Vec<_>) = tests.iter().partition(|(name, _)| is_wanted(name));
    println!("\nrunning {} tests", wanted.len());
    let began = Instant::now();
    let mut failed = 0;
    for (name, test) in &wanted {
        let verdict = run_one(test);
        failed += usize::from(verdict.is_err());
        println!(
            "test {name} ... {}",
            verdict.map_or_else(|reason| format!("FAILED ({reason})"), |()| "ok".into())
        );
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        wanted.len() - failed,
        unwanted.len(),
        began.elapsed().as_secs_f64(),
    );
    ExitCode::from(u8::from(failed != 0))
}

fn run_one(test: &fn()) -> Result<(), String> {
    let pid = match fork().map_err(|error| error.to_string())? {
        Fork::Child => run_child(|| {
            setpgid(None, None).unwrap();
            test();
            0
        }),
        Fork::Parent(pid) => pid,
    };
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| error.to_string())?;
    let began = Instant::now();
    while wait_readable(&[pidfd.as_raw_fd()], Some(DEADLINE.saturating_sub(began.elapsed())))
        .is_ok_and(|ready| ready.is_empty() && began.elapsed() < DEADLINE)
    {}
    let late = began.elapsed() >= DEADLINE;
    // What the test has started ends with it.
    let _ = kill_process_group(pid, Signal::KILL);
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .map_err(|error| error.to_string())?
        .ok_or("no status")?;
    match (late, status.exit_status(), status.terminating_signal()) {
        (true, ..) => Err(format!("not done after {DEADLINE:?}")),
        (_, Some(0), _) => Ok(()),
        (_, Some(code), _) => Err(format!("exit code {code}")),
        (_, None, signal) => Err(format!("signal {}", signal.unwrap_or_default())),
    }
}
