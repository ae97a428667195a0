//! The floor of it all, `swoole-sys`: a child that waits for a signal as for any other input.
//! `cargo run --release --example signals`

use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
use swoole_sys::fds::wait_readable;
use swoole_sys::process::{Fork, exit_now, fork};
use swoole_sys::signal::{SignalFd, SignalSet};
use swoole_sys::title;

use std::os::fd::{AsFd, AsRawFd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Blocked before the fork, so that it cannot come too early.
    let signals = SignalSet::from([Signal::TERM]);
    swoole_sys::signal::block(&signals)?;
    match fork()? {
        Fork::Child => {
            let code = wait_for(&signals).map_or(1, |()| 0);
            exit_now(code)
        }
        Fork::Parent(child) => {
            println!("parent: sends SIGTERM to {}", child.as_raw_pid());
            kill_process(child, Signal::TERM)?;
            let status =
                waitpid(Some(child), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
            println!("parent: the child ended with code {status:?}");
            Ok(())
        }
    }
}

fn wait_for(signals: &SignalSet) -> Result<(), Box<dyn std::error::Error>> {
    title::set("signals: waits for SIGTERM")?;
    // Made in the process that reads it: an inherited one would tell of the parent's signals.
    let signals = SignalFd::new(signals)?;
    wait_readable(&[signals.as_fd().as_raw_fd()], None)?;
    if let Some(info) = signals.read()? {
        println!("child: {:?} from {:?}", info.signal, info.pid);
    }
    Ok(())
}
