//! Waking a reactor from another thread.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};

/// Ends a reactor's wait with [`Event::Woken`](crate::Event::Woken), from any thread.
///
/// However many calls happen before the reactor looks, they are one event and one system call: only the
/// first writes to the eventfd behind it. Everything that a thread wrote before [`wake`](Self::wake) is
/// visible to the reactor when it handles the event.
///
/// ```
/// use swoole_reactor::{Event, Options, Reactor};
///
/// let mut reactor = Reactor::new(Options::default())?;
/// let waker = reactor.waker();
/// let thread = std::thread::spawn(move || waker.wake());
///
/// let mut woken = false;
/// while !woken {
///     reactor.turn(None, |_, event| woken = matches!(event, Event::Woken))?;
/// }
/// # thread.join().unwrap();
/// # Ok::<(), swoole_reactor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Waker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    eventfd: OwnedFd,
    /// A wake-up was written that the reactor has not seen yet.
    pending: AtomicBool,
}

impl Waker {
    pub(crate) fn new() -> Result<Self, Errno> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { eventfd, pending: AtomicBool::new(false) })))
    }

    /// Wakes the reactor, or does nothing when a wake-up is on its way already.
    pub fn wake(&self) {
        // Release: what the caller did before is seen by `take`. Acquire is not needed to wake.
        if !self.0.pending.swap(true, Ordering::Release) {
            // The counter is never read (the drivers watch for its edges), so after 2⁶⁴ - 2 wake-ups a
            // write would fail; before that it cannot.
            let written = write(&self.0.eventfd, &1u64.to_ne_bytes());
            debug_assert_eq!(written, Ok(8));
        }
    }

    /// Whether a wake-up came since the last call.
    pub(crate) fn take(&self) -> bool {
        self.0.pending.swap(false, Ordering::Acquire)
    }

    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }
}
