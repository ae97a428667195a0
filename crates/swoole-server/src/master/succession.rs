//! A manager's death, and the manager after it.
//!
//! While the server serves, nothing stops when its manager dies. Its workers become children of the master, which watches
//! them; those that had not come to serve are sent away, because nobody would know of it when they do ([`Lease`]). Then
//! the master executes the program once more to have another manager, which keeps the workers that are there, and fills
//! the slots that are empty. A manager that does not get there is tried again, more and more slowly, for ever: the workers
//! go on meanwhile.
//!
//! [`Lease`]: crate::board::Lease

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, pidfd_send_signal, wait,
};
use swoole_reactor::{Interest, Reactor, TimerId, Token, Trigger};
use swoole_supervisor::{Backoff, ExitStatus};

use super::{Office, Stage};
use crate::charter::Charter;
use crate::control::{self, Orders};
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::image::Image;

/// How long a manager may take to start before it is killed, and another one is tried.
const START: Duration = Duration::from_secs(10);
/// A manager that lives for so long has nothing to do with those that died before it.
const STABLE: Duration = Duration::from_secs(1);

/// What managers are made of, and how the last ones fared.
#[derive(Debug)]
pub(super) struct Succession {
    image: Image,
    /// Managers that died in a row.
    deaths: u32,
    began_at: Instant,
    /// The present one has said that it serves.
    serves: bool,
    /// When the last one died.
    died_at: Instant,
    /// To try once more, or to give up the one that starts.
    timer: Option<TimerId>,
    /// The status of one that was reaped before its watch told of its end.
    status: Option<WaitStatus>,
}

/// The manager, as the master holds it.
pub(super) struct Present {
    pub(super) pid: Pid,
    pub(super) process: OwnedFd,
    pub(super) watch: Token,
    pub(super) orders: Orders,
    /// The watch of `orders`.
    pub(super) control: Token,
}

impl Present {
    pub(super) fn new(reactor: &mut Reactor, pid: Pid, orders: Orders) -> Result<Present> {
        let process = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| Error::setup("watch the manager (pidfd_open)", std::io::Error::from(error)))?;
        let failed = |error| Error::setup("watch the manager", error);
        let watch = reactor.watch(&process, Interest::READABLE, Trigger::Level).map_err(failed)?;
        let control = reactor.watch(&orders, Interest::READABLE, Trigger::Level).map_err(failed)?;
        Ok(Present { pid, process, watch, orders, control })
    }
}

impl Succession {
    pub(super) fn new(image: Image) -> Succession {
        let now = Instant::now();
        Succession { image, deaths: 0, began_at: now, serves: false, died_at: now, timer: None, status: None }
    }

    /// Another one has died: how long to wait before the next one.
    fn died(&mut self) -> Duration {
        self.died_at = Instant::now();
        if self.died_at - self.began_at >= STABLE {
            self.deaths = 0;
        }
        self.deaths = self.deaths.saturating_add(1);
        // There is only one, so nobody else's turn to keep away from.
        Backoff::default().delay(self.deaths, std::mem::take(&mut self.serves), 0.5)
    }

    pub(super) fn owns(&self, timer: TimerId) -> bool {
        self.timer == Some(timer)
    }

    pub(super) fn take_status(&mut self) -> Option<WaitStatus> {
        self.status.take()
    }
}

impl<H: Handler> Office<H> {
    /// The manager is gone while the server serves.
    pub(super) fn succeed(&mut self, reactor: &mut Reactor) {
        self.shared.board.next_reign();
        for worker in self.roster.take_in(reactor, &self.shared.board) {
            self.settle(worker);
        }
        for worker in self.roster.serving() {
            // Its manager may have had no time to tell.
            self.tell_up(worker);
        }
        let wait = self.succession.died();
        if wait.is_zero() {
            self.start_manager(reactor);
        } else {
            tracing::warn!(
                "managers have died {} times in a row: next try in {wait:.0?}",
                self.succession.deaths
            );
            self.set_succession_timer(reactor, Some(wait));
        }
    }

    /// It is time for another try, or the manager that starts has had its time.
    pub(super) fn on_succession_timer(&mut self, reactor: &mut Reactor) {
        self.succession.timer = None;
        match &self.manager {
            None if self.stage <= Stage::Draining => self.start_manager(reactor),
            // Workers leave without.
            None => {}
            Some(manager) => {
                tracing::error!(
                    "the manager (pid {}) had not started after {START:?} and is killed",
                    manager.pid.as_raw_pid()
                );
                // It may have ended this very moment, of which its watch tells.
                let _ = pidfd_send_signal(&manager.process, Signal::KILL);
            }
        }
    }

    /// The manager serves.
    pub(super) fn manager_serves(&mut self, reactor: &mut Reactor) {
        if std::mem::replace(&mut self.succession.serves, true) {
            return;
        }
        self.set_succession_timer(reactor, None);
        if let Some(manager) = &self.manager
            && self.stage >= Stage::Serving
        {
            tracing::info!(
                "Server has a new manager, pid {}, {:.1?} after the last one's death",
                manager.pid.as_raw_pid(),
                self.succession.died_at.elapsed()
            );
        }
    }

    /// Children end: the manager and workers without one, of which their watches tell; and whatever workers had started
    /// and left behind, which nobody else would reap.
    pub(super) fn reap(&mut self, reactor: &mut Reactor) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.manager.as_ref().is_some_and(|manager| manager.pid == pid) {
                self.succession.status = Some(status);
                continue;
            }
            match self.roster.reaped(pid.as_raw_pid(), ExitStatus::from(status)) {
                None => {
                    tracing::debug!("reaped pid {}, which a worker has left: {status:?}", pid.as_raw_pid())
                }
                Some((worker, true)) => {
                    self.settle(worker);
                    self.finish_if_alone(reactor);
                }
                // Its watch tells.
                Some((_, false)) => {}
            }
        }
    }

    fn start_manager(&mut self, reactor: &mut Reactor) {
        self.succession.began_at = Instant::now();
        match self.execute_manager(reactor) {
            Ok(manager) => {
                tracing::debug!("a new manager starts, pid {}", manager.pid.as_raw_pid());
                self.manager = Some(manager);
                for worker in 0..self.shared.config.seats() {
                    self.tell_of_end(worker);
                }
                // Of addresses that wait for one, the last manager may not have been told.
                if std::mem::take(&mut self.reload_wanted) || self.relist.waits() {
                    self.reload(reactor);
                }
                if self.stage == Stage::Draining {
                    self.order(&control::Order::HoldTurns);
                }
                self.set_succession_timer(reactor, Some(START));
            }
            Err(error) => {
                let wait = self.succession.died();
                // It was none that could have died at once.
                let wait = wait.max(Duration::from_millis(50));
                tracing::error!("start another manager: {error}; next try in {wait:.0?}");
                self.set_succession_timer(reactor, Some(wait));
            }
        }
    }

    fn execute_manager(&mut self, reactor: &mut Reactor) -> Result<Present> {
        let (ours, theirs) = control::pair()?;
        let heirs = self.roster.heirs();
        let (charter, channel) = Charter::offer(&self.shared, &self.links, &theirs, &heirs)?;
        let pid = self.succession.image.start(&channel);
        let pid =
            pid.map_err(|error| Error::setup("execute the program once more (/proc/self/exe)", error))?;
        drop((charter, channel, theirs));
        Present::new(reactor, pid, Orders::new(ours)).inspect_err(|_| {
            // Nobody would hear it, and without a master it would end the workers. It is a child that is not reaped yet.
            let _ = kill_process(pid, Signal::KILL);
        })
    }

    fn set_succession_timer(&mut self, reactor: &mut Reactor, after: Option<Duration>) {
        self.succession.timer.take().map(|timer| reactor.cancel(timer));
        self.succession.timer = after.map(|after| reactor.timer(after));
    }
}
