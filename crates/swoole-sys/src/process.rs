//! Fork a process that has one thread, end a child without touching its parent.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{fs, io};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

pub use crate::orphan::outlive_parent;

/// On which side of [`fork`] the code goes on.
#[derive(Debug)]
#[must_use]
pub enum Fork {
    /// In the process that called [`fork`]; this is its new child.
    Parent(Pid),
    /// In the new process.
    Child,
}

/// Why [`fork`] made no child.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The process has more than one thread.
    #[error(
        "cannot fork: this process has {count} threads ({}), and their locks would stay locked forever in a child; \
         start threads, runtimes and log writers after the fork, in the process that uses them",
        names.join(", ")
    )]
    Threads {
        /// How many threads there are, the calling one included.
        count: usize,
        /// What they are called (`/proc/self/task/*/comm`), the main thread first.
        names: Vec<String>,
    },
    /// The kernel refused: `EAGAIN` at a limit of processes (`ulimit -u`, a cgroup's `pids.max`), `ENOMEM`
    /// without memory; or `/proc` cannot be read, so that the number of threads is unknown.
    #[error("cannot fork: {0}")]
    Os(#[from] Errno),
}

/// Makes a copy of this process: `fork(2)`.
///
/// A child has only the thread that called, while memory is copied as it stood: a lock that another thread
/// held is held forever. So this refuses to run in a process with several threads, and that is what makes
/// it a safe function. Counting reads `/proc/self/task`, once per fork.
///
/// Text waiting in [`std::io::stdout`]'s buffer is written out first; both processes would print it
/// otherwise. Go on with [`run_child`] in the child.
///
/// # Errors
///
/// [`ForkError::Threads`] names the threads in the way; [`ForkError::Os`] is the kernel's word.
pub fn fork() -> Result<Fork, ForkError> {
    let names = thread_names().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    if names.len() != 1 {
        return Err(ForkError::Threads { count: names.len(), names });
    }
    // A closed stdout is no reason not to fork.
    let _ = io::stdout().flush();
    // SAFETY: the child of a process with several threads may only call async-signal-safe functions. The
    // check above found one thread, this one, and nobody else exists who could start another meanwhile.
    match unsafe { libc::fork() } {
        -1 => Err(crate::last_error().into()),
        0 => Ok(Fork::Child),
        child => Pid::from_raw(child).map(Fork::Parent).ok_or(ForkError::Os(Errno::INVAL)),
    }
}

/// What the threads of this process are called, the main thread first.
///
/// # Errors
///
/// When `/proc` is not mounted or may not be read.
pub fn thread_names() -> io::Result<Vec<String>> {
    let mut tasks = fs::read_dir("/proc/self/task")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse::<i32>().unwrap_or(i32::MAX)))
        .collect::<io::Result<Vec<i32>>>()?;
    tasks.sort_by_key(|&task| (task != getpid().as_raw_pid(), task));
    let name = |task| match fs::read_to_string(format!("/proc/self/task/{task}/comm")) {
        Ok(comm) => comm.trim_end().to_owned(),
        // It ended while we looked.
        Err(_) => format!("thread {task}"),
    };
    Ok(tasks.into_iter().map(name).collect())
}

/// Ends this process at once: `_exit(2)`. No destructor, no `atexit` handler, no flush of a buffer runs,
/// because those of a forked child are copies of its parent's.
///
/// The parent sees the low 8 bits of `code`.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(code) }
}

/// What a panic ends a child with, as it ends any Rust program.
pub const PANIC_EXIT_CODE: i32 = 101;

/// Runs the life of a forked child, and ends the process with the code that it returns.
///
/// Never returns, and never unwinds into the frames inherited from the parent: a panic, whose message the
/// panic hook has printed, ends the process with [`PANIC_EXIT_CODE`]. Standard output is flushed.
pub fn run_child(life: impl FnOnce() -> i32) -> ! {
    // Unwind safety is about who looks at broken state afterwards. Nobody does: the process ends.
    let code = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(code) => code,
        Err(payload) => {
            // Dropping it runs code of the program, which may panic again.
            std::mem::forget(payload);
            PANIC_EXIT_CODE
        }
    };
    let _ = catch_unwind(|| (io::stdout().flush(), io::stderr().flush()));
    exit_now(code)
}

/// Asks the kernel to send `signal` to this process when its parent dies: `PR_SET_PDEATHSIG`, `prctl(2)`.
///
/// Call it in a fresh child, with the pid that the parent took before it forked. If the parent has died
/// meanwhile, this raises `signal` itself, so that no order of events leaves an orphan.
///
/// "Parent" means the *thread* that forked: the signal comes as well when only that thread ends. A parent
/// with one thread, as [`fork`] demands, knows no difference. The setting is lost when the child executes
/// a set-user-ID program or changes its user: call this again after [`crate::user::set_uid`].
///
/// # Errors
///
/// `EINVAL` for a signal that does not exist. Otherwise it does not fail.
pub fn die_with_parent(signal: Signal, parent: Pid) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(signal))?;
    if getppid() != Some(parent) {
        kill_process(getpid(), signal)?;
    }
    Ok(())
}

/// Makes this process the one that orphaned descendants are handed to, instead of process 1:
/// `PR_SET_CHILD_SUBREAPER`, `prctl(2)`. Children do not inherit it.
///
/// # Errors
///
/// None on any kernel since 3.4.
pub fn become_subreaper() -> rustix::io::Result<()> {
    rustix::process::set_child_subreaper(Some(getpid()))
}
