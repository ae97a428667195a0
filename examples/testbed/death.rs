//! How a process of the testbed dies.

use rustix::process::{Signal, getpid, kill_process};
use swoole_server::Result;

use super::command::Crash;

#[expect(clippy::exit, reason = "to end the process under the server's feet is what is wanted")]
pub(crate) fn crash<T>(how: Crash) -> Result<T> {
    match how {
        Crash::Panic => panic!("a client wants it"),
        Crash::Abort => std::process::abort(),
        Crash::Exit(code) => std::process::exit(code.into()),
        Crash::Segv => raise(Signal::SEGV),
        Crash::Kill => raise(Signal::KILL),
    }
}

#[cfg(feature = "breakpoints")]
pub(crate) fn die_at(point: &str) -> Result<()> {
    swoole_server::breakpoint::arm(point.parse().map_err(swoole_server::Error::other)?);
    Ok(())
}

#[cfg(not(feature = "breakpoints"))]
pub(crate) fn die_at(_: &str) -> Result<()> {
    Err("this build has no breakpoints: --example testbed_breakpoints --features breakpoints has".into())
}

/// Dies of a signal. Twice, because the standard library's handler of SIGSEGV takes the first for a fault, restores
/// the default action and leaves it to the faulting instruction, of which there is none, to raise the second.
fn raise<T>(signal: Signal) -> Result<T> {
    for _ in 0..2 {
        kill_process(getpid(), signal).map_err(std::io::Error::from)?;
    }
    Err(format!("{signal:?} did not end the process").into())
}
