//! What is set on a socket that listens.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fstat, openat};
use rustix::io::Errno;
use rustix::net::sockopt;
use swoole_sys::sockopt::{set_tcp_defer_accept, set_tcp_fastopen};

/// What is set on a TCP socket that listens, and is so for each connection that is accepted from it (`tcp(7)`).
/// [`Default`] leaves everything as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Small pieces leave at once (`TCP_NODELAY`).
    pub nodelay: bool,
    /// Silent peers are asked whether they are there.
    pub keepalive: Option<Keepalive>,
    /// A connection is told of when its client has sent something, or after this many seconds (`TCP_DEFER_ACCEPT`). 0: at
    /// once.
    pub defer_accept: u32,
    /// Clients that may send their first bytes with their SYN and have not finished the handshake (`TCP_FASTOPEN`). 0:
    /// they may not. The kernel does that for servers only if `net.ipv4.tcp_fastopen` has 2 in it.
    pub fastopen: u32,
    /// Milliseconds that what was sent may be unacknowledged before the connection ends (`TCP_USER_TIMEOUT`). 0: as long as
    /// the kernel tries.
    pub user_timeout: u32,
}

/// When a silent peer is asked whether it is there (`SO_KEEPALIVE`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalive {
    /// How long it has been silent the first time, whole seconds, 1..=32767 (`TCP_KEEPIDLE`).
    pub idle: Duration,
    /// And how long after that each other time, 1..=32767 s (`TCP_KEEPINTVL`).
    pub interval: Duration,
    /// So many times without an answer, 1..=127, end the connection (`TCP_KEEPCNT`).
    pub count: u32,
}

/// Who may connect to a Unix socket: it takes the right to write to its file. [`Default`] leaves that to the umask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixOptions {
    /// The mode of the file, whatever the umask is.
    pub mode: Option<u32>,
    /// Its owner, which takes `CAP_CHOWN`.
    pub user: Option<u32>,
    /// Its group: another one than those of the process takes `CAP_CHOWN`.
    pub group: Option<u32>,
}

/// Which option the kernel does not take, and its answer.
pub(super) type Refused = (&'static str, Errno);

impl TcpOptions {
    pub(super) fn set(&self, socket: impl AsFd) -> Result<(), Refused> {
        let socket = socket.as_fd();
        let set = |what, result: Result<(), Errno>| result.map_err(|error| (what, error));
        if self.nodelay {
            set("TCP_NODELAY", sockopt::set_tcp_nodelay(socket, true))?;
        }
        if let Some(Keepalive { idle, interval, count }) = self.keepalive {
            set("SO_KEEPALIVE", sockopt::set_socket_keepalive(socket, true))?;
            set("TCP_KEEPIDLE", sockopt::set_tcp_keepidle(socket, idle))?;
            set("TCP_KEEPINTVL", sockopt::set_tcp_keepintvl(socket, interval))?;
            set("TCP_KEEPCNT", sockopt::set_tcp_keepcnt(socket, count))?;
        }
        if self.defer_accept > 0 {
            set("TCP_DEFER_ACCEPT", set_tcp_defer_accept(socket, self.defer_accept))?;
        }
        if self.fastopen > 0 {
            set("TCP_FASTOPEN", set_tcp_fastopen(socket, self.fastopen))?;
        }
        if self.user_timeout > 0 {
            set("TCP_USER_TIMEOUT", sockopt::set_tcp_user_timeout(socket, self.user_timeout))?;
        }
        Ok(())
    }
}

impl UnixOptions {
    /// Before `bind(2)`: no more rights than are wanted, from the file's first moment.
    pub(super) fn restrict(&self, socket: impl AsFd) -> Result<(), Refused> {
        let Some(mode) = self.mode else { return Ok(()) };
        fchmod(socket, Mode::from_raw_mode(mode)).map_err(|error| ("the mode of the file", error))
    }

    /// Between `bind(2)` and `listen(2)`, when nobody can connect yet. Only to a socket: in a directory that others may
    /// write to, the path may lead elsewhere by now.
    pub(super) fn set(&self, path: &Path) -> Result<(), Refused> {
        let UnixOptions { mode, user, group } = *self;
        if *self == UnixOptions::default() {
            return Ok(());
        }
        let failed = |error| ("mode and owner of the file", error);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        if FileType::from_raw_mode(fstat(&file).map_err(failed)?.st_mode) != FileType::Socket {
            return Err(failed(Errno::NOTSOCK));
        }
        if user.is_some() || group.is_some() {
            let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
            chownat(&file, "", user, group, AtFlags::EMPTY_PATH)
                .map_err(|error| ("the owner of the file (another one needs CAP_CHOWN)", error))?;
        }
        if let Some(mode) = mode {
            // By its name in /proc: fchmod(2) refuses a descriptor that is for a path only.
            let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            chmodat(CWD, name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(|error| ("the mode of the file", error))?;
        }
        Ok(())
    }
}
