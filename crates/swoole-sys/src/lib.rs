//! The system calls a process-model server needs and rustix lacks.
//!
//! One thin, safe function per system call, with its precondition written down and, where that is possible
//! at run time, checked. What rustix already has is not repeated here: its `Pid`, `Signal`, `Errno`, `Uid`
//! and `Gid` are the vocabulary of this crate too.
//!
//! | Module      | What it is for                                                             |
//! |-------------|----------------------------------------------------------------------------|
//! | [`process`] | fork a process that has one thread, end a child without touching its parent |
//! | [`signal`]  | signal sets and masks, dispositions, signals as a readable descriptor       |
//! | [`identity`] | who owns a lock in shared memory, and whether that process lives            |
//! | [`futex`]   | sleep until a word in shared memory changes                                 |
//! | [`fds`]     | wait for descriptors, close those that a child has no business with         |
//! | [`msg`]     | System V message queues                                                     |
//! | [`sockopt`] | options of TCP sockets                                                       |
//! | [`activation`] | descriptors that whoever has executed the program gives it           |
//! | [`user`]    | look up accounts and drop privileges                                        |
//! | [`title`]   | what `ps` shows                                                             |
//! | [`stack`]   | the call stack of a process that is busy, told to another one               |
//!
//! # Example
//!
//! ```standalone_crate
//! use rustix::process::{WaitOptions, waitpid};
//! use swoole_sys::process::{self, Fork};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! match process::fork()? {
//!     Fork::Child => process::run_child(|| 3),
//!     Fork::Parent(child) => {
//!         let (_, status) = waitpid(Some(child), WaitOptions::empty())?.expect("it ends, so there is a status");
//!         assert_eq!(status.exit_status(), Some(3));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Unsafe code
//!
//! The crates above this one forbid `unsafe` or confine it to one module that says why. Every block here
//! carries a `SAFETY` comment that names the invariant and who upholds it.

#[cfg(not(target_os = "linux"))]
compile_error!("swoole-sys speaks to Linux: signalfd, pidfd, close_range and PDEATHSIG exist nowhere else");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("swoole-sys takes C's long for 64 bits, as it is on every 64-bit Linux");

pub mod activation;
pub mod fds;
pub mod futex;
pub mod identity;
pub mod msg;
mod orphan;
pub mod process;
pub mod signal;
pub mod sockopt;
pub mod stack;
pub mod title;
pub mod user;

use rustix::io::{Errno, Result};

/// The error of the libc call that has just failed on this thread.
fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// libc's convention: -1 and `errno`, or a result.
fn check(returned: libc::c_int) -> Result<libc::c_int> {
    if returned == -1 { Err(last_error()) } else { Ok(returned) }
}
