//! Sleeping on descriptors until a point in time.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// When to give up; never, if the time asked for is endless.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `None`, and times beyond what the clock can express, mean never.
    pub(crate) fn after(timeout: Option<Duration>) -> Deadline {
        Deadline(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// What is left of the time; `None` when it is over. Endless is as long as it gets.
    pub(crate) fn left(self) -> Option<Duration> {
        let Some(at) = self.0 else { return Some(Duration::MAX) };
        at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    fn for_poll(self) -> Option<Timespec> {
        let left = self.0?.saturating_duration_since(Instant::now());
        // A duration too large for the kernel is as good as endless.
        Timespec::try_from(left).ok()
    }
}

/// Waits until one of `descriptors` has an event asked for, an error or a hang-up. Tells what each has;
/// all are empty when the deadline has passed. Interrupted by a signal it waits on.
pub(crate) fn wait_any<const N: usize>(
    descriptors: [(BorrowedFd<'_>, PollFlags); N],
    deadline: Deadline,
) -> io::Result<[PollFlags; N]> {
    let mut set = descriptors.map(|(fd, events)| PollFd::from_borrowed_fd(fd, events));
    loop {
        match poll(&mut set, deadline.for_poll().as_ref()) {
            Ok(_) => return Ok(set.map(|entry| entry.revents())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
