//! This program's image, executed once more to be the manager of a server that runs already.
//!
//! A master has threads, so it must not fork; it executes `/proc/self/exe`, with the arguments, the environment and the
//! working directory that the program was started with. The program's `main` begins anew, and when it comes to
//! [`Server::run`](crate::Server::run), that finds what it has been executed for ([`summons`]) and becomes the manager
//! instead of starting a server. It gets all else through one descriptor, a socketpair's end, whose number it finds in the
//! environment beside the pid of its master. The socket's inode stands there, too: a variable that somebody else has
//! inherited by then means nothing to it, while who has that socket knows what it is for, also if the master is dead by
//! then, and there is nothing to manage and no server to be started.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::fstat;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, getppid};

/// The variable: the master's pid, a descriptor's number, and that socket's inode, with colons between them.
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
        let inode = fstat(channel)?.st_ino;
        command.env(SUMMONS, format!("{}:{}:{inode}", std::process::id(), channel.as_raw_fd()));
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
    let Some(Summons { master, channel, inode }) = parse(&summons.to_string_lossy()) else { return Ok(None) };
    // Whose variable it is, that has the socket.
    if !fs::read_link(format!("/proc/self/fd/{channel}"))
        .is_ok_and(|target| target.as_os_str() == &*format!("socket:[{inode}]"))
    {
        return Ok(None);
    }
    if getppid() != Some(master) {
        let gone = format!("be the manager of a server: its master (pid {}) is gone", master.as_raw_pid());
        return Err(io::Error::other(gone));
    }
    Ok(Some(swoole_sys::fds::inherited(channel)?))
}

#[derive(Debug, PartialEq)]
struct Summons {
    master: Pid,
    channel: RawFd,
    inode: u64,
}

fn parse(summons: &str) -> Option<Summons> {
    let mut parts = summons.split(':');
    let master = Pid::from_raw(parts.next()?.parse().ok()?)?;
    let (channel, inode) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(Summons { master, channel, inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summons_is_a_pid_and_a_socket() {
        let summons = Summons { master: Pid::from_raw(12).unwrap(), channel: 3, inode: 4 };
        assert_eq!(parse("12:3:4"), Some(summons));
        for nonsense in ["", "12", "12:3", "12:3:", ":3:4", "0:3:4", "a:b:c", "12:3:4:5"] {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
    }
}
