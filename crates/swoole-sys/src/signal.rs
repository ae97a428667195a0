//! Signal sets and masks, dispositions, and signals as a readable descriptor.
//!
//! Of a signal's three faces, a server wants the third: not a handler, which interrupts anything at any
//! instruction, nor the default, which kills, but a [`SignalFd`] in its event loop.

use std::fmt;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::process::{Pid, Signal, getpid, kill_process};

/// The highest signal number on Linux (`SIGRTMAX`).
const SIGNAL_MAX: i32 = 64;

/// A set of signals: `sigsetops(3)`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// The set with no signal in it.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Puts `signal` into the set.
    pub const fn add(&mut self, signal: Signal) {
        self.0 |= Self::bit(signal.as_raw());
    }

    /// Whether `signal` is in the set.
    pub const fn contains(&self, signal: Signal) -> bool {
        self.0 & Self::bit(signal.as_raw()) != 0
    }

    /// The signals in the set, by number. Real-time signals, which have no name, are left out.
    pub fn iter(&self) -> impl Iterator<Item = Signal> {
        let set = *self;
        (1..=SIGNAL_MAX).filter_map(Signal::from_named_raw).filter(move |&signal| set.contains(signal))
    }

    const fn bit(number: i32) -> u64 {
        1 << (number - 1)
    }

    fn to_libc(self) -> libc::sigset_t {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises all of the set that it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for number in (1..=SIGNAL_MAX).filter(|&number| self.0 & Self::bit(number) != 0) {
            // SAFETY: the set is initialised. A number that libc keeps for itself is refused, which is right.
            unsafe { libc::sigaddset(&mut set, number) };
        }
        set
    }

    fn from_libc(set: &libc::sigset_t) -> Self {
        // SAFETY: the reference says that the set is initialised; an unknown number yields -1.
        let is_member = |&number: &i32| unsafe { libc::sigismember(set, number) } == 1;
        Self((1..=SIGNAL_MAX).filter(is_member).map(Self::bit).sum())
    }
}

impl FromIterator<Signal> for SignalSet {
    fn from_iter<I: IntoIterator<Item = Signal>>(signals: I) -> Self {
        let mut set = Self::empty();
        signals.into_iter().for_each(|signal| set.add(signal));
        set
    }
}

impl<const N: usize> From<[Signal; N]> for SignalSet {
    fn from(signals: [Signal; N]) -> Self {
        signals.into_iter().collect()
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Blocks the signals in `set` for the calling thread, besides those that are blocked already, and returns
/// the mask that was in force before: `pthread_sigmask(3)`.
///
/// # Errors
///
/// None in practice. `SIGKILL` and `SIGSTOP` cannot be blocked; they are ignored silently.
pub fn block(set: &SignalSet) -> Result<SignalSet> {
    change_mask(libc::SIG_BLOCK, set)
}

/// Makes `set` the mask of the calling thread, and returns the mask that was in force before.
///
/// # Errors
///
/// As [`block`].
pub fn set_mask(set: &SignalSet) -> Result<SignalSet> {
    change_mask(libc::SIG_SETMASK, set)
}

/// The signals that have come and are blocked: `sigpending(2)`.
///
/// # Errors
///
/// None in practice.
pub fn pending() -> Result<SignalSet> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigpending fills in the set that it is given.
    crate::check(unsafe { libc::sigpending(set.as_mut_ptr()) })?;
    // SAFETY: initialised by the success above.
    Ok(SignalSet::from_libc(&unsafe { set.assume_init() }))
}

fn change_mask(how: libc::c_int, set: &SignalSet) -> Result<SignalSet> {
    let set = set.to_libc();
    let mut old = MaybeUninit::uninit();
    // SAFETY: both pointers are to live sets; a success initialises the old one.
    match unsafe { libc::pthread_sigmask(how, &set, old.as_mut_ptr()) } {
        // SAFETY: as above.
        0 => Ok(SignalSet::from_libc(&unsafe { old.assume_init() })),
        error => Err(Errno::from_raw_os_error(error)),
    }
}

/// Gives every signal that has a handler its default action back; what is ignored stays ignored. So
/// `execve(2)` does it, and so a forked child should, because a handler is the parent's code on the
/// parent's state.
///
/// Two consequences to know: `SIGPIPE` stays ignored, as the Rust runtime sets it at start, so that a write
/// to a closed socket is an error and not a death; and Rust's own handler, which tells of a stack overflow,
/// is gone, so that one ends the process by `SIGSEGV`.
pub fn reset_handlers() {
    for number in 1..=SIGNAL_MAX {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with no new action, sigaction only fills in the current one, or fails for a number that
        // libc keeps for itself.
        if unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) } == -1 {
            continue;
        }
        // SAFETY: initialised by the success above.
        let handler = unsafe { action.assume_init() }.sa_sigaction;
        if handler != libc::SIG_DFL && handler != libc::SIG_IGN {
            // SAFETY: the default action runs no code of this process.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
    }
}

/// Has `signal` thrown away when it comes, in this process and in what it forks or executes: `SIG_IGN`.
///
/// # Errors
///
/// `EINVAL` for `SIGKILL` and `SIGSTOP`.
pub fn ignore(signal: Signal) -> Result<()> {
    set_disposition(signal, libc::SIG_IGN)
}

/// Gives `signal` its default action: `SIG_DFL`, see `signal(7)`.
///
/// # Errors
///
/// `EINVAL` for `SIGKILL` and `SIGSTOP`.
pub fn default(signal: Signal) -> Result<()> {
    set_disposition(signal, libc::SIG_DFL)
}

fn set_disposition(signal: Signal, disposition: libc::sighandler_t) -> Result<()> {
    // SAFETY: the callers pass SIG_IGN or SIG_DFL, neither of which runs code of this process.
    match unsafe { libc::signal(signal.as_raw(), disposition) } {
        libc::SIG_ERR => Err(crate::last_error()),
        _ => Ok(()),
    }
}

/// Sends `signal` to this process.
///
/// # Errors
///
/// None in practice.
pub fn raise(signal: Signal) -> Result<()> {
    kill_process(getpid(), signal)
}

/// What came with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalInfo {
    /// Which signal.
    pub signal: Signal,
    /// Who sent it. `None` when the kernel did, or a process of another pid namespace.
    pub pid: Option<Pid>,
    /// The real user id of the sender.
    pub uid: u32,
    /// For `SIGCHLD`, the exit code or the signal of the child; 0 otherwise.
    pub status: i32,
}

/// Signals as something to read: `signalfd(2)`. It polls readable while a signal is pending.
///
/// **Make it after the fork, in the process that reads it.** An epoll instance remembers for which process a
/// signalfd was added to it: the child of that process, which inherits both, is never told of its own
/// signals.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// A nonblocking, close-on-exec descriptor for the signals in `set`.
    ///
    /// Blocks these signals for the calling thread, without which their default action would happen
    /// instead; threads that it starts later inherit that. Dropping the descriptor does not unblock them.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENFILE` at a limit of descriptors, `ENOMEM`.
    pub fn new(set: &SignalSet) -> Result<Self> {
        block(set)?;
        // SAFETY: the set is initialised, and -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set.to_libc(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        // SAFETY: a success is a new descriptor that nobody else owns.
        crate::check(fd).map(|fd| Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal, or `None` when there is none.
    ///
    /// Several of one kind that came before the first was read are one: signals do not queue.
    ///
    /// # Errors
    ///
    /// None in practice.
    pub fn read(&self) -> Result<Option<SignalInfo>> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.0, &mut record) {
                // The kernel hands out whole records only.
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            let field = |at: usize| {
                let bytes = record[at..].first_chunk().copied().unwrap_or_default();
                i32::from_ne_bytes(bytes)
            };
            // A set holds only signals with a name, so another one cannot come.
            let Some(signal) = Signal::from_named_raw(field(offset_of!(libc::signalfd_siginfo, ssi_signo)))
            else {
                continue;
            };
            return Ok(Some(SignalInfo {
                signal,
                pid: Pid::from_raw(field(offset_of!(libc::signalfd_siginfo, ssi_pid))),
                uid: field(offset_of!(libc::signalfd_siginfo, ssi_uid)).cast_unsigned(),
                status: field(offset_of!(libc::signalfd_siginfo, ssi_status)),
            }));
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
