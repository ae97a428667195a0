//! Wakes a sleeper in another process, and costs nothing while it is awake.
//!
//! A doorbell is one shared word and one eventfd(2). The word says whether its owner, the sleeper, is
//! (about to be) asleep. Whoever has made work for it rings, and only a sleeper costs a system call:
//!
//! ```text
//!     sleeper                               producer
//!     arm()       word = asleep; fence      publish     head = new
//!     look again at every queue             ring()      fence; word asleep? then word = awake, write
//!     found something? disarm(), work
//!     nothing? sleep on the eventfd
//! ```
//!
//! The two full fences make it impossible that the sleeper misses the new head while the producer misses
//! the word: one of them sees the other's store (Dekker). The crate's loom model checks every order.
//!
//! A producer that is killed between taking the word and writing the eventfd leaves the sleeper asleep.
//! Whoever learns of its death must wake the sleeper ([`Doorbell::force`]), or wake it by that very news.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use crate::error::Error;
use crate::flag::Flag;
use crate::wait::{Deadline, wait_any};
use crate::words::Words;

/// Wakes one sleeper; rung by any process that inherited it.
///
/// Created before the fork. Clones, also those that a fork makes, are the same doorbell. Dropping the last
/// clone in a process closes its copy of the eventfd: a child that has closed all descriptors but some must
/// have kept this one, or must not drop it.
///
/// ```
/// let bell = swoole_ipc::Doorbell::create("demo")?;
/// assert!(!bell.ring()?, "its owner is awake: no system call");
/// bell.arm();
/// // ... its owner looks at its queues once more and finds nothing ...
/// assert!(bell.ring()?);
/// assert!(bell.wait(None)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Doorbell(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    word: Words,
    event: OwnedFd,
}

impl Doorbell {
    /// A doorbell whose owner is awake; `name` (up to 249 bytes) appears in errors and in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel has no descriptor or memory left.
    pub fn create(name: &str) -> Result<Doorbell, Error> {
        let mut bells = Doorbell::several(name, 1)?;
        Ok(bells.swap_remove(0))
    }

    /// So many doorbells, whose words share a mapping, each on a page of its own; as [`create`](Doorbell::create)
    /// otherwise. [`protect_others`](Doorbell::protect_others) leaves a process its own.
    ///
    /// # Errors
    /// As [`create`](Doorbell::create).
    pub fn several(name: &str, count: usize) -> Result<Vec<Doorbell>, Error> {
        let words = Words::rows(name, count, 1)?;
        words.into_iter().map(|word| Ok(Doorbell::new(word, Doorbell::event(name)?))).collect()
    }

    /// The eventfd of a doorbell that is to be; `name` appears in errors.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel has no descriptor left.
    pub fn event(name: &str) -> Result<OwnedFd, Error> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Error::os("eventfd", name))
    }

    /// The doorbell of this shared word, of which only the first is used, and this [`event`](Doorbell::event): for one
    /// whose word lies in a [`Memory`](crate::Memory), and for a process that got both by another way than a fork.
    /// Everybody must put the same two together.
    pub fn new(word: Words, event: OwnedFd) -> Doorbell {
        Doorbell(Arc::new(Parts { word, event }))
    }

    /// Sleeper: declares itself asleep. It must then look at each of its queues once more, and only sleep
    /// when all are empty.
    #[inline]
    pub fn arm(&self) {
        self.flag().arm();
    }

    /// Sleeper: awake again, nobody need ring.
    #[inline]
    pub fn disarm(&self) {
        self.flag().disarm();
    }

    /// Whether the sleeper has armed it and nobody has rung since.
    pub fn is_armed(&self) -> bool {
        self.flag().is_armed()
    }

    /// Producer, after publishing: wakes the sleeper if it is asleep. True if this call did.
    ///
    /// # Errors
    /// write(2) on the eventfd failed, which happens only if its descriptor was closed behind our back.
    #[inline]
    pub fn ring(&self) -> io::Result<bool> {
        let asleep = self.flag().take();
        if asleep {
            self.force()?;
        }
        Ok(asleep)
    }

    /// Wakes the sleeper whatever the word says.
    ///
    /// # Errors
    /// As [`ring`](Doorbell::ring).
    pub fn force(&self) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.0.event, &1_u64.to_ne_bytes()) {
                // A full counter is as loud as one more.
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sleeper, for use without an event loop, after [`arm`](Doorbell::arm) and another look at the queues:
    /// sleeps until it is rung (true) or `timeout` has passed (false), then is awake. It may wake once
    /// without cause, from a ring that an earlier pass had no need to sleep for.
    ///
    /// # Errors
    /// poll(2) or read(2) failed: no memory, or a descriptor closed behind our back.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let [ready] = wait_any([(self.as_fd(), PollFlags::IN)], Deadline::after(timeout))?;
        self.disarm();
        if ready.is_empty() {
            return Ok(false);
        }
        self.silence()?;
        Ok(true)
    }

    /// Reads the eventfd, so that a level-triggered poll(2) sleeps again.
    pub(crate) fn silence(&self) -> io::Result<()> {
        match rustix::io::read(&self.0.event, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// For a doorbell that others own and ring: makes its word read-only in this process, as
    /// [`Words::protect`](crate::words::Words::protect) does. Afterwards [`is_armed`](Doorbell::is_armed),
    /// [`force`](Doorbell::force) and the eventfd work here; whatever else writes to the word, and kills the
    /// process.
    ///
    /// # Errors
    /// As [`Words::protect`](crate::words::Words::protect).
    pub fn protect(&self) -> Result<(), Error> {
        self.0.word.protect()
    }

    /// As [`protect`](Doorbell::protect), for all of these doorbells but number `own`. They are those that
    /// [`several`](Doorbell::several) made together, in their order.
    ///
    /// # Errors
    /// As [`protect`](Doorbell::protect).
    pub fn protect_others(bells: &[Doorbell], own: usize) -> Result<(), Error> {
        let words: Vec<Words> = bells.iter().map(|bell| bell.0.word.clone()).collect();
        Words::protect_others(&words, Some(own))
    }

    #[inline]
    fn flag(&self) -> Flag<'_> {
        Flag(&self.0.word[0])
    }
}

/// The eventfd, for an epoll set: readable once rung. Edge-triggered it need never be read.
impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
