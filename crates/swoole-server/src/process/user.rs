//! The user process, as its function sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid};
use swoole_supervisor::Child;

use crate::board::Phase;
use crate::error::{Error, Result};
use crate::handler::{asks, common};
use crate::post::role::posts;
use crate::post::{Peer, Post, Sender};
use crate::shared::Shared;
use crate::task::Asker;
use crate::worker::{LEAVE_WAIT, Lookout};

/// A user process, as the function sees it that [`Server::add_process`](crate::Server::add_process) was given.
///
/// It is asked to leave by `SIGTERM`, which does not end it: the function sees it here, finishes what it is at, and returns.
/// The function is free to do all else: to sleep, to start threads, to run an event loop of its own. `SIGTERM`, `SIGINT`,
/// `SIGQUIT`, `SIGHUP`, `SIGUSR1` and `SIGUSR2` are blocked in it, and in programs that it executes unless it unblocks them
/// there. `SIGRTMAX` has a handler, by which it ends when nobody is left to look after it, whatever it is busy with.
///
/// ```no_run
/// use std::time::Duration;
/// use swoole_server::{Result, UserProcess};
///
/// fn report(process: &mut UserProcess) -> Result<()> {
///     while process.wait(Duration::from_secs(1))? {
///         println!("{} clients", process.stats().connection_num);
///     }
///     Ok(())
/// }
/// ```
pub struct UserProcess {
    id: u16,
    generation: u32,
    lookout: Lookout,
    /// Readable when the lookout has something to look at.
    door: OwnedFd,
    /// What it asks of task workers.
    tasks: Option<Asker>,
    post: Post,
    shared: Arc<Shared>,
}

common!(UserProcess, UserProcess);
asks!(UserProcess);
posts!(UserProcess);

impl UserProcess {
    pub(super) fn new(shared: &Arc<Shared>, child: &Child, seat: u16) -> Result<UserProcess> {
        let mut lookout = Lookout::new(shared, seat)?;
        lookout.watch(&shared.process_bells[usize::from(child.slot)])?;
        let post = Post::open(shared, seat, child.generation)?;
        lookout.watch_mail(&post)?;
        Ok(UserProcess {
            id: child.slot,
            generation: child.generation,
            door: lookout.door()?,
            lookout,
            tasks: Asker::open(shared, seat, child.generation),
            post,
            shared: Arc::clone(shared),
        })
    }

    pub(super) fn lookout(&mut self) -> &mut Lookout {
        &mut self.lookout
    }

    /// This process's slot, from 0: the place of its function among those that the program has added. A successor has the
    /// same.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// What the program calls it.
    pub fn name(&self) -> &str {
        self.shared.config.user_processes.get(usize::from(self.id)).map_or("", String::as_str)
    }

    /// This process's id.
    pub fn pid(&self) -> i32 {
        getpid().as_raw_pid()
    }

    /// Which process of its slot this is, from 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the whole server stops: who leaves now has no successor. It is asked to leave later than that, when all workers
    /// and task workers are gone.
    pub fn is_stopping(&self) -> bool {
        self.shared.board.phase() == Phase::Stopping
    }

    /// Waits for this time, or until this process is asked to leave: true if it is to go on. [`Duration::MAX`] waits for
    /// nothing else. Once it was asked, each call returns false at once.
    ///
    /// # Errors
    ///
    /// [`Error::Setup`] if the kernel cannot wait, which is for want of memory.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if self.look(rest)? {
                return Ok(false);
            }
            if rest.is_some_and(|rest| rest.is_zero()) {
                return Ok(true);
            }
        }
    }

    /// Whether this process was asked to leave, for a function that has no time to wait. It takes a system call.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn is_asked_to_leave(&mut self) -> Result<bool> {
        self.look(Some(Duration::ZERO))
    }

    /// The next message that a worker, a task worker, the manager or another user process has
    /// [sent](crate::Worker::send_message) to this one, and who it was. Waits for this time, or until this process is asked to
    /// leave: `None` if there is none by then. One that has come is returned also to a process that was asked to leave.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use swoole_server::{Result, UserProcess};
    /// fn collect(process: &mut UserProcess) -> Result<()> {
    ///     while !process.is_asked_to_leave()? {
    ///         if let Some((from, message)) = process.receive(Duration::MAX)? {
    ///             println!("{from}: {} bytes", message.len());
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<(Peer, Vec<u8>)>> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let message = self.post.next_message();
            if message.is_some() {
                return Ok(message);
            }
            let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let is_over = self.look(rest)? || rest.is_some_and(|rest| rest.is_zero());
            if is_over && !self.post.has_mail() {
                return Ok(None);
            }
        }
    }

    fn look(&mut self, timeout: Option<Duration>) -> Result<bool> {
        // Who was asked has nothing to wait for.
        let timeout = if self.lookout.is_asked() { Some(Duration::ZERO) } else { timeout };
        let is_asked = self.lookout.look(timeout)?;
        self.lookout.serve(&mut self.post);
        Ok(is_asked)
    }

    /// What it has sent leaves with it.
    pub(super) fn finish(&mut self) {
        self.post.sender.finish(LEAVE_WAIT);
    }

    fn post(&mut self) -> &mut Sender {
        &mut self.post.sender
    }

    fn asker(&mut self) -> Result<&mut Asker> {
        self.tasks.as_mut().ok_or(Error::NoTaskWorkers)
    }

    fn seat(&self) -> Option<u16> {
        Some(self.shared.config.seat_of_user_process(self.id))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// For an event loop of the function's own: readable when there may be a reason to leave, or a message, until
/// [`is_asked_to_leave`](UserProcess::is_asked_to_leave) has looked at it; then [`receive`](UserProcess::receive) with no time
/// to wait gives the messages, one after the other. It may be readable for another reason.
impl AsFd for UserProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.as_fd()
    }
}
