//! What a process of the manager's looks out for beside its work: signals, doorbells, and whether the manager and the
//! server are still there.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getppid};
use swoole_reactor::{Backend, Event, Interest, Options, Reactor, Token, Trigger};
use swoole_sys::signal::SignalSet;

use super::SIGNALS;
use crate::board::{Lease, Phase};
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::post::Post;
use crate::shared::Shared;
use crate::stats::WorkerState;

/// One process's.
pub(crate) struct Lookout {
    shared: Arc<Shared>,
    seat: u16,
    reactor: Reactor,
    /// Who has forked it.
    manager: Option<Pid>,
    /// The manager that has forked it is gone, and the parent is the master. Another manager says by the board when it is
    /// time to go.
    orphan: bool,
    /// It was asked to leave.
    asked: bool,
    /// The process's post: what has come, and room for what is to go; and whether there is some.
    mail: Option<Token>,
    room: Option<Token>,
    has_mail: bool,
    has_room: bool,
    looked: Instant,
}

impl Lookout {
    /// Of the process in this seat. From here on its signals wait to be seen.
    pub(crate) fn new(shared: &Arc<Shared>, seat: u16) -> Result<Lookout> {
        let reactor = Reactor::new(Options { backend: Backend::Epoll, ..Options::default() })
            .map_err(|error| Error::setup("make the process's event loop", error))?;
        let mut lookout = Lookout {
            shared: Arc::clone(shared),
            seat,
            reactor,
            // Not whoever is the parent now: the manager may be dead already.
            manager: Pid::from_raw(shared.board.manager_pid()),
            orphan: false,
            asked: false,
            mail: None,
            room: None,
            has_mail: false,
            has_room: false,
            looked: Instant::now(),
        };
        let watch = |error| Error::setup("watch the process's signals", error);
        lookout.reactor.signals(&SignalSet::from(SIGNALS)).map_err(watch)?;
        lookout.watch(&shared.lifeline)?;
        Ok(lookout)
    }

    /// Wakes when this becomes readable.
    pub(crate) fn watch(&mut self, descriptor: &impl AsFd) -> Result<()> {
        self.reactor
            .watch(descriptor, Interest::READABLE, Trigger::Edge)
            .map(drop)
            .map_err(|error| Error::setup("watch the process's bells and links", error))
    }

    /// From here on there is somebody to read it.
    pub(crate) fn watch_mail(&mut self, post: &Post) -> Result<()> {
        let watch = |error| Error::setup("watch the process's post", error);
        // Who does not read its mail is not told of it again and again.
        let mail = self.reactor.watch(post.mailbox(), Interest::READABLE, Trigger::Edge);
        self.mail = Some(mail.map_err(watch)?);
        let room = self.reactor.watch(post.sender.room(), Interest::READABLE, Trigger::Level);
        self.room = Some(room.map_err(watch)?);
        Ok(())
    }

    /// Goes on with what has come to be since the last look.
    pub(crate) fn serve(&mut self, post: &mut Post) {
        if std::mem::take(&mut self.has_mail) {
            post.mail_came();
        }
        if std::mem::take(&mut self.has_room) {
            post.sender.pump();
        }
    }

    /// A descriptor for another event loop: readable when there is something to look at.
    pub(crate) fn door(&self) -> Result<OwnedFd> {
        let failed = |error: std::io::Error| Error::setup("share the process's event loop", error);
        let epoll = self.reactor.descriptor().ok_or_else(|| failed(Errno::NOTSUP.into()))?;
        epoll.try_clone_to_owned().map_err(failed)
    }

    /// Has the kernel end this process so long after its manager, if it is too busy to notice that it is an orphan; in Process
    /// mode, where that is no reason to go, so long after manager and master.
    pub(crate) fn outlive_manager(&self, within: Duration) -> Result<()> {
        let Some(manager) = self.manager else { return Ok(()) };
        let heir = match self.shared.config.mode {
            Mode::Process => Pid::from_raw(self.shared.board.master_pid()),
            Mode::Base => None,
        };
        swoole_sys::process::outlive_parent(within, manager, heir).map_err(|error| {
            Error::setup("limit the life without a manager (a timer)", std::io::Error::from(error))
        })
    }

    /// Whether there is something to look at: who polls busily asks between other things.
    pub(crate) fn has_something(&self) -> bool {
        let Some(epoll) = self.reactor.descriptor() else { return true };
        let mut files = [PollFd::from_borrowed_fd(epoll, PollFlags::IN)];
        // A failure is for the look to report.
        poll(&mut files, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// When it was last looked.
    pub(crate) fn looked(&self) -> Instant {
        self.looked
    }

    /// Whether this process was asked to leave, as far as it has looked.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Waits until the callbacks of master and manager have returned, which come first. False if the server stops, or this
    /// process is to leave, before that; one that `is_wanted_in_stop` serves all the same.
    pub(crate) fn wait_for_start(&mut self, is_wanted_in_stop: bool) -> Result<bool> {
        loop {
            match self.shared.board.phase() {
                Phase::Running | Phase::Serving => return Ok(true),
                Phase::Stopping => return Ok(is_wanted_in_stop),
                Phase::Booting if self.asked => return Ok(false),
                Phase::Booting => _ = self.look(None)?,
            }
        }
    }

    /// Waits for something to happen, for ever with `None`. Whether this process was asked to leave by now.
    pub(crate) fn look(&mut self, timeout: Option<Duration>) -> Result<bool> {
        // Nobody rings for that once more.
        let timeout = if self.orphan && self.is_over() { Some(Duration::ZERO) } else { timeout };
        let manager = self.manager;
        let (mut asked, mut asked_by_manager) = (false, false);
        let Lookout { shared, seat, reactor, mail, room, has_mail, has_room, .. } = self;
        let turn = reactor.turn(timeout, |_, event| match event {
            Event::Signal { info } => match info.signal {
                Signal::TERM if info.pid.is_some() && info.pid == manager => asked_by_manager = true,
                Signal::TERM => asked = true,
                Signal::HUP => crate::confine::reopen_log(shared, *seat),
                _ => {}
            },
            Event::Ready { token, .. } => {
                *has_mail |= Some(token) == *mail;
                *has_room |= Some(token) == *room;
            }
            _ => {}
        });
        turn.map_err(|error| Error::setup("wait for work", error))?;
        self.looked = Instant::now();
        self.orphan |= getppid() != manager;
        // The kernel asks the same in the manager's name when that dies, be it after the parent is another one; and two
        // requests may have become one. What it had asked for stands on the board.
        self.asked |= asked || asked_by_manager && !self.orphan;
        self.asked |= self.orphan && self.is_over();
        Ok(self.asked)
    }

    /// Whether an orphan has to leave. Task workers do after the workers, which may have something for them, and user
    /// processes after both.
    fn is_over(&self) -> bool {
        let Shared { board, lifeline, config, .. } = &*self.shared;
        let is_asked = board.worker_state(self.seat) == WorkerState::Retiring;
        let is_free = |worker| matches!(board.lease(worker), Lease::Free { .. });
        let is_its_turn = || (0..first_of_group(self.seat, config)).all(is_free);
        is_asked || lifeline.is_cut() || board.phase() == Phase::Stopping && is_its_turn()
    }
}

/// The first seat of those that stop together with this one.
fn first_of_group(seat: u16, config: &Config) -> u16 {
    let firsts = [config.seat_of_user_process(0), config.seat_of_task_worker(0)];
    firsts.into_iter().find(|first| seat >= *first).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stop_one_after_the_other() {
        let config = Config { worker_num: 2, task_worker_num: 1, ..Config::default() };
        let config = Config { user_processes: vec!["a".into(), "b".into()], ..config };
        let firsts: Vec<u16> = (0..5).map(|seat| first_of_group(seat, &config)).collect();
        assert_eq!(firsts, [0, 0, 2, 3, 3]);
        let config = Config { task_worker_num: 0, ..config };
        let firsts: Vec<u16> = (0..4).map(|seat| first_of_group(seat, &config)).collect();
        assert_eq!(firsts, [0, 0, 2, 2]);
    }
}
