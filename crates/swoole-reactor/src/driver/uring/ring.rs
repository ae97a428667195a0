//! The ring itself: set-up with a reason where it fails, submission, completion.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;

use crate::fork::ForkGuard;

/// Operations queued between two calls of the kernel; more than that are submitted early.
const SUBMISSIONS: u32 = 512;

/// Completions that fit before the kernel keeps them in a list of its own.
const COMPLETIONS: u32 = 4096;

/// One completion, copied out of the ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    /// As the system call would have returned it, or the negative error number.
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// Whether further completions of the same operation follow.
    pub(super) fn is_more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer that holds the bytes.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// Whether further bytes will come into the same provided buffer.
    pub(super) fn is_buffer_more(&self) -> bool {
        cqueue::buffer_more(self.flags)
    }

    /// The result as Rust has it.
    pub(super) fn result(&self) -> Result<u32, Errno> {
        u32::try_from(self.result).map_err(|_| Errno::from_raw_os_error(-self.result))
    }
}

pub(super) struct Ring {
    ring: ManuallyDrop<IoUring>,
    /// What did not fit into the submission queue because the kernel refused to take from it.
    backlog: VecDeque<squeue::Entry>,
    /// Operations whose last completion has not been seen.
    in_flight: usize,
    fork: Rc<ForkGuard>,
}

impl Ring {
    /// A ring, and what it is made of; or why there is none, and what to do about it.
    pub(super) fn new(fork: Rc<ForkGuard>) -> Result<(Self, &'static str), String> {
        let (ring, features) = build().map_err(|error| unavailable(&error))?;
        check(&ring)?;
        let ring = ManuallyDrop::new(ring);
        Ok((Self { ring, backlog: VecDeque::new(), in_flight: 0, fork }, features))
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    pub(super) fn has_forked(&self) -> bool {
        self.fork.has_forked()
    }

    /// Operations that the kernel may still work on.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an operation.
    ///
    /// # Safety
    ///
    /// All memory that the operation points to must stay where it is and as it is, and its descriptor must
    /// stay open, until a completion with its user data says that there are no more.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        self.backlog.push_back(entry);
        self.stage();
        if !self.backlog.is_empty() {
            // A full queue: the kernel takes it now, or, short of memory, at the next `enter`.
            let _tried_again_later = self.ring.submit();
            self.stage();
        }
    }

    /// Moves the backlog into the submission queue.
    fn stage(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the caller of `push` has promised it for every entry.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Submits what is queued, and waits for nothing. What the kernel does not take now, it takes at the next `enter`.
    pub(super) fn submit(&mut self) {
        self.stage();
        let _tried_again_later = self.ring.submit();
    }

    /// Submits what is queued and waits for at least one completion, for at most `timeout` (`None`: for as
    /// long as it takes; zero: not at all).
    pub(super) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stage();
        let result = match timeout {
            Some(Duration::ZERO) => {
                let queued = self.ring.submission().len();
                let queued = u32::try_from(queued).unwrap_or(u32::MAX);
                // The crate's own `submit` runs deferred work only when a flag tells it to, which not every
                // set-up has.
                // SAFETY: no argument is passed, and the entries were vouched for in `push`.
                unsafe { self.ring.submitter().enter::<()>(queued, 0, EnterFlags::GETEVENTS.bits(), None) }
            }
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
            None => self.ring.submit_and_wait(1),
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // The wait is over; what was submitted, was submitted. BUSY and AGAIN: completions must be
                // taken out, or memory come back, before more can be submitted.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes all completions out of the ring.
    pub(super) fn completions(&mut self, into: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let flags = entry.flags();
            if !cqueue::more(flags) {
                self.in_flight -= 1;
            }
            into.push(Completion { user_data: entry.user_data(), result: entry.result(), flags });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.fork.has_forked() {
            // The ring's memory does not exist in a child, and what may by now be at its place must not be
            // unmapped. The descriptor is a copy.
            // SAFETY: the IoUring that owns the descriptor is never used or dropped after this.
            unsafe { rustix::io::close(self.ring.as_raw_fd()) };
        } else {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
    }
}

/// The best ring that this kernel makes.
fn build() -> io::Result<(IoUring, &'static str)> {
    let mut base = IoUring::builder();
    base.dontfork().setup_cqsize(COMPLETIONS).setup_clamp();
    let mut deferred = base.clone();
    deferred.setup_submit_all().setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
    match deferred.build(SUBMISSIONS) {
        // Linux 6.0 knows no deferred task work.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        other => return other.map(|ring| (ring, "single issuer, deferred task work")),
    }
    base.setup_submit_all().setup_coop_taskrun();
    base.build(SUBMISSIONS).map(|ring| (ring, "cooperative task work"))
}

/// Why `io_uring_setup(2)` failed.
fn unavailable(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => {
            "the kernel has no io_uring: it takes Linux 6.0 with CONFIG_IO_URING".to_owned()
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref().map(str::trim) {
                Ok("2") => "it is switched off: set the sysctl kernel.io_uring_disabled to 0".to_owned(),
                Ok("1") => {
                    "it is kept for privileged processes: set the sysctl kernel.io_uring_disabled to 0, \
                            or add this user to kernel.io_uring_group"
                        .to_owned()
                }
                _ => "a seccomp filter forbids it, as those of container engines do: allow io_uring_setup, \
                      io_uring_enter and io_uring_register"
                    .to_owned(),
            }
        }
        Some(Errno::NOMEM) => {
            "no memory for the ring: raise the limit of locked memory (`ulimit -l`)".to_owned()
        }
        Some(Errno::INVAL) => "the kernel is too old: it takes Linux 6.0".to_owned(),
        _ => format!("io_uring_setup: {error}"),
    }
}

/// Whether the kernel knows what the driver needs.
fn check(ring: &IoUring) -> Result<(), String> {
    let missing = |what: &str| Err(format!("the kernel is too old: {what} is missing (it takes Linux 6.0)"));
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return missing("a wait with a timeout and without loss");
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("io_uring_register(PROBE): {error}"))?;
    let needed = [
        (opcode::AcceptMulti::CODE, "IORING_OP_ACCEPT"),
        (opcode::RecvMulti::CODE, "IORING_OP_RECV"),
        (opcode::Send::CODE, "IORING_OP_SEND"),
        (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
        (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
        (opcode::AsyncCancel2::CODE, "IORING_OP_ASYNC_CANCEL"),
        // Multishot receive is a flag, which no probe tells of. It came in the same release as this one.
        (opcode::SendZc::CODE, "multishot receive"),
    ];
    match needed.into_iter().find(|&(code, _)| !probe.is_supported(code)) {
        Some((_, name)) => missing(name),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_way_is_named_with_what_to_do() {
        for (errno, part) in [
            (Errno::NOSYS, "it takes Linux 6.0 with CONFIG_IO_URING"),
            (Errno::INVAL, "it takes Linux 6.0"),
            (Errno::NOMEM, "`ulimit -l`"),
            (Errno::MFILE, "Too many open files"),
        ] {
            let reason = unavailable(&errno.into());
            assert!(reason.contains(part), "{reason}");
        }
        // By sysctl or by seccomp, as it may be here.
        let reason = unavailable(&Errno::PERM.into());
        assert!(reason.contains("io_uring_disabled to 0") || reason.contains("seccomp"), "{reason}");
    }
}
