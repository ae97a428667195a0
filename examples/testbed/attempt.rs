//! What somebody who has taken over a worker would try: `try` packets.
//!
//! | packet | what is tried |
//! | --- | --- |
//! | `try read PATH`, `try write PATH` | to open a file, `write` appending or making it, and read or write a byte |
//! | `try exec PATH` | to start this program |
//! | `try kill PID` | whether a signal could be sent |
//! | `try socket FAMILY` | `unix`, `inet`, `inet6`, `netlink`, `pair` or `datagrams` (a pair) |
//! | `try connect ADDRESS`, `try bind ADDRESS` | TCP; `bind` also listens |
//! | `try descriptor PID` | to take descriptor 3 of a process |
//! | `try call NAME [PID]` | a system call ([`CALLS`]), with arguments that do no harm where it is allowed |
//!
//! The reply is `ok`, or the name of the error.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket, socketpair};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open, test_kill_process};

/// The system calls of `try call`, and their arguments; `None` is the process that the packet names.
pub(crate) const CALLS: [(&str, i64, [Option<i64>; 4]); 14] = [
    ("ptrace", libc::SYS_ptrace, [Some(libc::PTRACE_SEIZE as i64), None, Some(0), Some(0)]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [None, Some(0), Some(0), Some(0)]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [None, Some(0), Some(0), Some(0)]),
    ("kcmp", libc::SYS_kcmp, [None, None, Some(0), Some(0)]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [Some(-1), Some(0), Some(0), Some(0)]),
    ("bpf", libc::SYS_bpf, [Some(-1), Some(0), Some(0), Some(0)]),
    ("perf_event_open", libc::SYS_perf_event_open, [Some(0), Some(0), Some(0), Some(0)]),
    ("userfaultfd", libc::SYS_userfaultfd, [Some(-1), Some(0), Some(0), Some(0)]),
    ("keyctl", libc::SYS_keyctl, [Some(-1), Some(0), Some(0), Some(0)]),
    ("mount", libc::SYS_mount, [Some(0), Some(0), Some(0), Some(0)]),
    ("init_module", libc::SYS_init_module, [Some(0), Some(0), Some(0), Some(0)]),
    ("unshare", libc::SYS_unshare, [Some(0), Some(0), Some(0), Some(0)]),
    ("clone3", libc::SYS_clone3, [Some(0), Some(0), Some(0), Some(0)]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [Some(0), Some(0), Some(0), Some(0)]),
];

/// Tries this, and says how it went.
pub(crate) fn attempt(what: &str) -> std::result::Result<String, String> {
    let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
    let number = |text: &str| text.parse::<i32>().map_err(|_| format!("{text:?} is no process"));
    let outcome = match verb {
        "read" => File::open(rest).and_then(|mut file| file.read(&mut [0]).map(drop)),
        "write" => {
            OpenOptions::new().append(true).create(true).open(rest).and_then(|mut file| file.write_all(b"x"))
        }
        "exec" => execute(rest),
        "kill" => process(number(rest)?).and_then(|pid| Ok(test_kill_process(pid)?)),
        "socket" => open_socket(rest)?,
        "connect" => TcpStream::connect(rest).map(drop),
        "bind" => TcpListener::bind(rest).map(drop),
        "descriptor" => take_descriptor(number(rest)?),
        "call" => {
            let (name, pid) = rest.split_once(' ').unwrap_or((rest, "0"));
            let call = CALLS.iter().find(|call| call.0 == name);
            let (_, call, arguments) = call.ok_or_else(|| format!("no call {name:?} is known"))?;
            let pid = i64::from(number(pid)?);
            system_call(*call, arguments.map(|argument| argument.unwrap_or(pid)))
        }
        _ => return Err(format!("nobody tries {verb:?}")),
    };
    Ok(outcome.map_or_else(|error| name(&error), |()| "ok".to_owned()))
}

fn name(error: &Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => "EPERM".into(),
        Some(Errno::ACCESS) => "EACCES".into(),
        Some(Errno::NOENT) => "ENOENT".into(),
        Some(Errno::NOSYS) => "ENOSYS".into(),
        _ => format!("error: {error}"),
    }
}

fn process(pid: i32) -> Result<Pid> {
    Pid::from_raw(pid).ok_or_else(|| ErrorKind::InvalidInput.into())
}

fn execute(path: &str) -> Result<()> {
    let mut child =
        Command::new(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    child.wait().map(drop)
}

fn open_socket(family: &str) -> std::result::Result<Result<()>, String> {
    let open = |family, kind| Ok(socket(family, kind, None).map(drop)?);
    let pair = |kind| Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::empty(), None).map(drop)?);
    Ok(match family {
        "unix" => open(AddressFamily::UNIX, SocketType::STREAM),
        "inet" => open(AddressFamily::INET, SocketType::DGRAM),
        "inet6" => open(AddressFamily::INET6, SocketType::DGRAM),
        "netlink" => open(AddressFamily::NETLINK, SocketType::RAW),
        "pair" => pair(SocketType::STREAM),
        "datagrams" => pair(SocketType::DGRAM),
        _ => return Err(format!("no family {family:?} is known")),
    })
}

fn take_descriptor(pid: i32) -> Result<()> {
    let process = pidfd_open(process(pid)?, PidfdFlags::empty())?;
    Ok(pidfd_getfd(&process, 3, PidfdGetfdFlags::empty()).map(drop)?)
}

fn system_call(number: i64, [a, b, c, d]: [i64; 4]) -> Result<()> {
    // SAFETY: those of `CALLS` have null for every pointer, and ask for nothing that changes this process.
    match unsafe { libc::syscall(number, a, b, c, d, 0_i64, 0_i64) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}
