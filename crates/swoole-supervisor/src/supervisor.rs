//! The shell around the policy: it forks, waits, reaps and sends signals.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::rand::{GetRandomFlags, getrandom};
use swoole_sys::fds::{Readiness, wait_readable};
use swoole_sys::process::{ForkError, thread_names};
use swoole_sys::signal::{self, SignalFd, SignalSet, set_mask};
use tracing::debug;

use crate::policy::{Action, Event, Policy};
use crate::spawn::{Adopted, Spawned, spawn};
use crate::{
    Control, ExitStatus, Exited, GroupConfig, Options, OptionsError, Program, Report, Settle, SlotId, Tenure,
};

/// What the supervisor takes as a readable event instead of being interrupted or killed.
const SIGNALS: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::HUP];

/// Groups of processes and the program that they run, ready to start.
#[derive(Debug)]
pub struct Supervisor<P> {
    options: Options,
    groups: Vec<GroupConfig>,
    program: P,
    adopted: Vec<Adopted>,
}

/// How a supervisor's life went.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<P> {
    /// The program, as its callbacks left it.
    pub program: P,
    /// How many processes had to be killed because they did not end within the bound of the stop.
    pub killed: u32,
}

/// Why a supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This process has several threads, so it cannot fork.
    #[error(transparent)]
    Fork(ForkError),
    /// A system call that the supervisor cannot do without failed.
    #[error("supervisor: {operation} failed: {errno}")]
    Os {
        /// The system call.
        operation: &'static str,
        /// Its error.
        errno: Errno,
    },
}

impl Error {
    fn os(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Os { operation, errno }
    }
}

impl<P: Program> Supervisor<P> {
    /// Checks what it is given. No process exists before [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// [`OptionsError`] names the value that makes no sense.
    pub fn new(options: Options, groups: Vec<GroupConfig>, program: P) -> Result<Self, OptionsError> {
        options.validate()?;
        match u16::try_from(groups.len()) {
            Ok(_) => Ok(Self { options, groups, program, adopted: Vec::new() }),
            Err(_) => Err(OptionsError::Groups(groups.len())),
        }
    }

    /// Begins with processes that a supervisor before this one has left, instead of forking those; each counts as one
    /// that is ready. They are retired, replaced and signalled like others, but they are no children, so how they end is
    /// for the program to tell: [`Program::vanished`], [`Control::ended`].
    ///
    /// A process that is gone or [leaves](Adopted::leaving), and a slot that has none, may be so because it was its turn
    /// ([`Options::reload_parallel`]): until a successor is ready, it counts as one of those.
    #[must_use]
    pub fn adopt(mut self, adopted: Vec<Adopted>) -> Self {
        self.adopted = adopted;
        self
    }

    /// Forks all processes that are not there and keeps them alive, until [`Control::stop`] has ended them.
    ///
    /// While it runs, the calling thread has the signals of [`Program::signal`] blocked, and `SIGCHLD` has its
    /// default action. On return the mask is as it was.
    ///
    /// # Errors
    ///
    /// [`Error::Fork`] before anything is started, when this process has several threads. [`Error::Os`] when
    /// the machine fails the supervisor itself; its processes are killed then.
    pub fn run(self) -> Result<Outcome<P>, Error> {
        // An ignored SIGCHLD would have the kernel reap children, and their exit codes be lost.
        signal::default(Signal::CHILD).map_err(Error::os("signal"))?;
        let set = SignalSet::from(SIGNALS);
        let mask = signal::block(&set).map_err(Error::os("pthread_sigmask"))?;
        let result = Shell::new(self, &set).and_then(Shell::run);
        set_mask(&mask).map_err(Error::os("pthread_sigmask"))?;
        result
    }
}

/// A live process.
struct Process {
    slot: SlotId,
    generation: u32,
    pid: Pid,
    /// `None` for an adopted one that is gone, but not yet accounted for.
    pidfd: Option<OwnedFd>,
    /// It is somebody else's child.
    is_adopted: bool,
    /// Until the process has told that it is ready, or that it never will.
    ready: Option<OwnedFd>,
    was_ready: bool,
    forked: Instant,
}

impl Process {
    fn is_pidfd(&self, fd: RawFd) -> bool {
        self.pidfd.as_ref().is_some_and(|pidfd| pidfd.as_raw_fd() == fd)
    }

    fn is_ready_pipe(&self, fd: RawFd) -> bool {
        self.ready.as_ref().is_some_and(|pipe| pipe.as_raw_fd() == fd)
    }
}

struct Shell<P> {
    program: P,
    control: Control,
    policy: Policy,
    processes: Vec<Process>,
    reports: VecDeque<Report>,
    signals: SignalFd,
    origin: Instant,
    killed: u32,
}

impl<P: Program> Shell<P> {
    fn new(supervisor: Supervisor<P>, set: &SignalSet) -> Result<Self, Error> {
        let Supervisor { options, groups, program, adopted } = supervisor;
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty()).map_err(Error::os("getrandom"))?;
        let max_wait = options.max_wait;
        let slots: Vec<u16> = groups.iter().map(|group| group.slots).collect();
        let mut policy = Policy::new(options, &slots, u64::from_ne_bytes(seed));
        let permanent = (0..).zip(&groups).filter(|(_, group)| group.tenure == Tenure::Permanent);
        permanent.for_each(|(number, _)| policy.make_permanent(number));
        let mut shell = Self {
            program,
            control: Control::new(max_wait, groups),
            policy,
            processes: Vec::new(),
            reports: VecDeque::new(),
            signals: SignalFd::new(set).map_err(Error::os("signalfd"))?,
            origin: Instant::now(),
            killed: 0,
        };
        adopted.into_iter().for_each(|adopted| shell.adopt(adopted));
        Ok(shell)
    }

    fn adopt(&mut self, adopted: Adopted) {
        let Adopted { slot, generation, pid, pidfd, leaving: is_leaving } = adopted;
        let is_alive = pidfd.is_some();
        self.control.live.push((slot, generation, pid));
        self.processes.push(Process {
            slot,
            generation,
            pid,
            pidfd,
            is_adopted: true,
            ready: None,
            was_ready: true,
            forked: Instant::now(),
        });
        self.apply(Event::Adopted { slot, generation, pid, is_alive, is_leaving });
    }

    fn run(mut self) -> Result<Outcome<P>, Error> {
        if let Err(error) = self.serve() {
            for pidfd in self.processes.iter().filter_map(|process| process.pidfd.as_ref()) {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
                let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            }
            return Err(error);
        }
        Ok(Outcome { program: self.program, killed: self.killed })
    }

    fn serve(&mut self) -> Result<(), Error> {
        self.refuse_threads()?;
        self.apply(Event::Start);
        self.deliver();
        while !self.policy.is_finished() {
            let timeout = self.policy.next_deadline().map(|deadline| deadline.saturating_sub(self.now()));
            let events = wait_readable(&self.wait_list(), timeout).map_err(Error::os("ppoll"))?;
            for (fd, readiness) in events {
                self.dispatch(fd, readiness)?;
            }
            self.apply(Event::Tick);
            self.deliver();
        }
        Ok(())
    }

    /// A process with several threads can never fork, so it is told so at once instead of backing off.
    fn refuse_threads(&self) -> Result<(), Error> {
        let names = thread_names().map_err(|error| {
            Error::os("read of /proc/self/task")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        match names.len() {
            1 => Ok(()),
            count => Err(Error::Fork(ForkError::Threads { count, names })),
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// What to wait for.
    fn wait_list(&self) -> Vec<RawFd> {
        let mut list = vec![self.signals.as_fd().as_raw_fd()];
        for process in &self.processes {
            list.extend(process.ready.as_ref().map(OwnedFd::as_raw_fd));
            list.extend(process.pidfd.as_ref().map(OwnedFd::as_raw_fd));
        }
        list.extend(&self.control.watched);
        list
    }

    fn dispatch(&mut self, fd: RawFd, readiness: Readiness) -> Result<(), Error> {
        if fd == self.signals.as_fd().as_raw_fd() {
            while let Some(info) = self.signals.read().map_err(Error::os("read of a signalfd"))? {
                debug!(signal = ?info.signal, from = ?info.pid, "signal");
                self.program.signal(info, &mut self.control);
                self.deliver();
            }
        } else if let Some(at) = self.processes.iter().position(|process| process.is_ready_pipe(fd)) {
            self.read_ready(at);
        } else if let Some(at) = self.processes.iter().position(|process| process.is_pidfd(fd)) {
            self.reap(at)?;
            self.deliver();
        } else if self.control.watched.contains(&fd) {
            if readiness == Readiness::Closed {
                debug!(fd, "a watched descriptor was closed: no longer watched");
                self.control.unwatch(fd);
            }
            self.program.readable(fd, &mut self.control);
            self.deliver();
        }
        Ok(())
    }

    fn read_ready(&mut self, at: usize) {
        let process = &mut self.processes[at];
        let Some(pipe) = &process.ready else { return };
        match rustix::io::read(pipe, &mut [0; 1]) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(1) => {
                process.ready = None;
                process.was_ready = true;
                let (slot, generation) = (process.slot, process.generation);
                self.apply(Event::Ready { slot, generation });
                self.deliver();
            }
            Ok(_) | Err(_) => process.ready = None,
        }
    }

    fn reap(&mut self, at: usize) -> Result<(), Error> {
        let process = &mut self.processes[at];
        if process.is_adopted {
            process.pidfd = None;
            self.program.vanished(process.slot, process.generation, &mut self.control);
            return Ok(());
        }
        let Some(pidfd) = &process.pidfd else { return Ok(()) };
        let waited = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let status = match waited {
            Ok(Some(status)) => ExitStatus::from(&status),
            Ok(None) | Err(Errno::INTR) => return Ok(()),
            Err(Errno::CHILD) => ExitStatus::Unknown,
            Err(errno) => return Err(Error::os("waitid")(errno)),
        };
        let pid = process.pid;
        // It may have got ready and ended between two looks. What the program says to that may end others.
        self.read_ready(at);
        if let Some(at) = self.processes.iter().position(|process| process.pid == pid) {
            self.ended(at, status);
        }
        Ok(())
    }

    /// The process is gone and reaped.
    fn ended(&mut self, at: usize, status: ExitStatus) {
        let Process { slot, generation, pid, was_ready, forked, .. } = self.processes.swap_remove(at);
        self.control.live.retain(|&(_, _, live)| live != pid);
        let exit = Exited { slot, generation, pid, status, was_ready, uptime: forked.elapsed() };
        debug!(%slot, generation, pid = pid.as_raw_pid(), %status, "reaped");
        self.apply(Event::Exited { slot, generation, status });
        // The program hears of the death before it hears of what follows from it.
        if self.program.exited(&exit, &mut self.control) == Settle::Now {
            // After the requests that it has just made: a stop among them spares the successor.
            self.control.settled(slot);
        }
    }

    /// Tells the policy what has happened, and does what it says. Reports are kept for [`deliver`](Self::deliver):
    /// effects first, so that all forks of a start are done before the program hears of one.
    fn apply(&mut self, event: Event) {
        let mut actions = VecDeque::from(self.policy.handle(self.now(), event));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Spawn { slot, generation } => {
                    let event = self.spawn(slot, generation);
                    actions.extend(self.policy.handle(self.now(), event));
                }
                Action::Retire { slot } => {
                    self.program.retires(slot);
                    self.send(slot, Signal::TERM);
                }
                Action::Kill { slot } => {
                    self.killed += u32::from(self.control.stopping);
                    self.send(slot, Signal::KILL);
                }
                Action::Report(report) => self.reports.push_back(report),
            }
        }
    }

    fn spawn(&mut self, slot: SlotId, generation: u32) -> Event {
        match spawn(&mut self.program, slot, generation) {
            Ok(Spawned { pid, pidfd, ready }) => {
                debug!(%slot, generation, pid = pid.as_raw_pid(), "forked");
                self.control.live.push((slot, generation, pid));
                self.processes.push(Process {
                    slot,
                    generation,
                    pid,
                    pidfd: Some(pidfd),
                    is_adopted: false,
                    ready: Some(ready),
                    was_ready: false,
                    forked: Instant::now(),
                });
                Event::Spawned { slot, pid }
            }
            Err(error) => {
                debug!(%slot, %error, "not forked");
                self.reports.push_back(Report::SpawnFailed { slot, error });
                Event::SpawnFailed { slot }
            }
        }
    }

    fn send(&self, slot: SlotId, signal: Signal) {
        let found = self.processes.iter().find(|process| process.slot == slot);
        if let Some((process, pidfd)) = found.and_then(|process| Some((process, process.pidfd.as_ref()?))) {
            // It fails only when the process has just ended, and then its pidfd tells.
            let sent = pidfd_send_signal(pidfd, signal);
            debug!(%slot, pid = process.pid.as_raw_pid(), ?signal, ?sent, "signalled");
        }
    }

    /// Gives the program its reports and carries out its requests, until there are neither.
    fn deliver(&mut self) {
        loop {
            for (slot, signal) in std::mem::take(&mut self.control.signals) {
                match slot {
                    Some(slot) => self.send(slot, signal),
                    None => self.processes.iter().for_each(|process| self.send(process.slot, signal)),
                }
            }
            for (slot, generation, status) in std::mem::take(&mut self.control.ended) {
                let is_it = |it: &Process| it.is_adopted && (it.slot, it.generation) == (slot, generation);
                if let Some(at) = self.processes.iter().position(is_it) {
                    self.ended(at, status);
                }
            }
            for request in std::mem::take(&mut self.control.requests) {
                self.apply(request);
            }
            match self.reports.pop_front() {
                Some(report) => self.program.report(&report, &mut self.control),
                None if self.control.is_idle() => return,
                None => {}
            }
        }
    }
}
