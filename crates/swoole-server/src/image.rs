//! This program's image, executed once more to be the manager of a server that runs already.
//!
//! A master has threads, so it must not fork; it executes `/proc/self/exe`, with the arguments, the environment and the
//! working directory that the program was started with. The program's `main` begins anew, and when it comes to
//! [`Server::run`](crate::Server::run), that finds what it has been executed for ([`summons`]) and becomes the manager
//! instead of starting a server. It gets all else through one descriptor, a socketpair's end, whose number it finds in the
//! environment beside the pid of its master: a variable that somebody else has inherited by then means nothing to it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, getppid};

/// The variable: the master's pid, a colon, and a descriptor's number.
const SUMMONS: &str = "SWOOLE_MANAGER_OF";

/// The image that every process keeps a name for, also when another file has its path by now.
const SELF: &str = "/proc/self/exe";

#[derive(Debug)]
pub(crate) struct Image {
    args: Vec<OsString>,
    /// Where the program was started; `None` if that cannot be told.
    dir: Option<PathBuf>,
}

impl Image {
    /// The program as it was started, before it changes its working directory.
    pub(crate) fn capture() -> Image {
        Image { args: std::env::args_os().collect(), dir: std::env::current_dir().ok() }
    }

    /// Executes it as a child of this process, which summons it to be the manager, and gives it this end of a channel.
    pub(crate) fn start(&self, channel: &OwnedFd) -> io::Result<Pid> {
        let mut command = Command::new(SELF);
        if let [name, args @ ..] = &self.args[..] {
            command.arg0(name).args(args);
        }
        if let Some(dir) = self.dir.as_ref().filter(|dir| dir.is_dir()) {
            command.current_dir(dir);
        }
        command.env(SUMMONS, format!("{}:{}", std::process::id(), channel.as_raw_fd()));
        // Of all this process has open, it inherits this one. No other thread of a master executes anything.
        fcntl_setfd(channel, FdFlags::empty())?;
        let child = command.spawn();
        fcntl_setfd(channel, FdFlags::CLOEXEC)?;
        // Whoever asks for it waits for it by its pid: dropping the child does not.
        let pid = child?.id();
        Pid::from_raw(pid.cast_signed()).ok_or_else(|| io::Error::other("a child without a pid"))
    }
}

/// The channel to the master that has executed this process to be its manager; `None` in any other process.
pub(crate) fn summons() -> io::Result<Option<OwnedFd>> {
    let Some(summons) = std::env::var_os(SUMMONS) else { return Ok(None) };
    let Some((master, channel)) = parse(&summons.to_string_lossy()) else { return Ok(None) };
    if getppid() != Some(master) {
        return Ok(None);
    }
    Ok(Some(swoole_sys::fds::inherited(channel)?))
}

fn parse(summons: &str) -> Option<(Pid, i32)> {
    let (master, channel) = summons.split_once(':')?;
    Some((Pid::from_raw(master.parse().ok()?)?, channel.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summons_is_a_pid_and_a_descriptor() {
        assert_eq!(parse("12:3"), Some((Pid::from_raw(12).unwrap(), 3)));
        for nonsense in ["", "12", "12:", ":3", "0:3", "a:b"] {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
    }
}
