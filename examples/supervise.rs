//! Plain functions, kept alive: three `counter` processes, and a `moody` one that crashes every few seconds.
//!
//!     cargo run --example supervise
//!
//! Then, from another terminal, see `ps -ef | grep supervise:` for the process ids, and try:
//!
//!     kill -9 PID          of a counter: its successor is there at once, the others have not noticed
//!     kill -USR1 PID       of the supervisor: all are replaced, one after the other
//!     kill -USR2 PID       of the supervisor: the last group only
//!     kill -TERM PID       of the supervisor: all finish what they do, and it ends (so does Ctrl-C)
//!     kill -9 PID          of the supervisor: its processes end, too

use std::error::Error;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use rustix::process::{Signal, getpid};
use swoole_supervisor::{
    Child, Control, Exited, GroupConfig, Options, Program, Report, Settle, SlotId, Supervisor, Tenure,
};
use swoole_sys::fds::wait_readable;
use swoole_sys::signal::{SignalFd, SignalSet};
use swoole_sys::title;

/// The life of a process, which ends with an exit code. `SIGTERM` arrives in the second argument.
type Life = fn(Child, SignalFd) -> rustix::io::Result<i32>;

/// The groups: what they are called, how many processes they have, and what each of these does.
const GROUPS: [(&str, u16, Life); 2] = [("counter", 3, counter), ("moody", 1, moody)];

/// Counts seconds until it is asked to retire.
fn counter(mut child: Child, signals: SignalFd) -> rustix::io::Result<i32> {
    let me = child.id();
    child.ready();
    let mut seconds = 0;
    while wait_readable(&[signals.as_fd().as_raw_fd()], Some(Duration::from_secs(1)))?.is_empty() {
        seconds += 1;
        if seconds % 10 == 0 {
            println!("counter {me}: {seconds} seconds");
        }
    }
    println!("counter {me}: retires after {seconds} seconds");
    Ok(0)
}

/// Panics unless it is asked to retire before. The more often it does, the longer its next life has to wait.
fn moody(mut child: Child, signals: SignalFd) -> rustix::io::Result<i32> {
    child.ready();
    if wait_readable(&[signals.as_fd().as_raw_fd()], Some(Duration::from_secs(3)))?.is_empty() {
        panic!("I have had enough");
    }
    Ok(0)
}

struct Demo;

impl Program for Demo {
    fn run(&mut self, child: Child) -> i32 {
        let (name, _, life) = GROUPS[usize::from(child.group)];
        let set = SignalSet::from([Signal::TERM, Signal::INT]);
        let result = title::set(&format!("supervise: {name} {}", child.slot))
            .and_then(|()| SignalFd::new(&set))
            .and_then(|signals| life(child, signals));
        result.unwrap_or_else(|error| {
            eprintln!("{name}: {error}");
            1
        })
    }

    fn keep(&self, _slot: SlotId) -> Vec<RawFd> {
        vec![]
    }

    fn exited(&mut self, exit: &Exited, control: &mut Control) -> Settle {
        let name = &control.groups()[usize::from(exit.slot.group)].name;
        println!("supervisor: {name} {} (pid {}) ended: {}", exit.slot, exit.pid.as_raw_pid(), exit.status);
        Settle::Now
    }

    fn report(&mut self, report: &Report, _control: &mut Control) {
        println!("supervisor: {report}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    title::set("supervise: supervisor")?;
    println!("supervisor: pid {}", getpid().as_raw_pid());
    let groups = GROUPS
        .iter()
        .map(|&(name, slots, _)| GroupConfig { name: name.into(), slots, tenure: Tenure::Term })
        .collect();
    let outcome = Supervisor::new(Options::default(), groups, Demo)?.run()?;
    println!("supervisor: all have ended, {} of them killed", outcome.killed);
    Ok(())
}
