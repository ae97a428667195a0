//! The end of a server, seen from the main thread: drain, leave, finish.

use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions, WaitStatus, pidfd_send_signal, waitpid};
use swoole_reactor::{Close, Reactor, TimerId};

use super::mailbox::Command;
use super::{GRACE, MANAGER_MARGIN, Office, Stage};
use crate::board::Phase;
use crate::config::CloseListen;
use crate::control::Order;
use crate::error::Error;
use crate::handler::Handler;
use crate::stop::LastCall;

/// Listening sockets are about to be closed.
pub(super) struct Closing {
    call: LastCall,
    /// The end of the present turn.
    pub(super) timer: TimerId,
    /// Somebody has come in it.
    pub(super) heard: bool,
}

/// How often a stop says what it waits for.
const PROGRESS: Duration = Duration::from_secs(1);

impl<H: Handler> Office<H> {
    /// Ends the server in order.
    pub(super) fn stop(&mut self, reactor: &mut Reactor) {
        if self.stage > Stage::Serving {
            return;
        }
        let within = self.shared.config.max_wait_time;
        tracing::info!("Server is stopping (max_wait_time = {within:?})");
        self.say_error("on_before_shutdown", |handler, master| handler.on_before_shutdown(master));
        self.stage = Stage::Draining;
        self.deadline = Instant::now() + within;
        self.set_alarm(reactor, within - GRACE.min(within / 4));
        self.progress = Some(reactor.timer(PROGRESS));
        // Some time is for the successors of those that are leaving for another reason.
        self.shared.board.set_stop_time(within / 2);
        self.order(&Order::HoldTurns);
        let call = LastCall::new(Instant::now(), within);
        self.closing = Some(Closing { call, timer: reactor.timer(Duration::ZERO), heard: false });
        if self.accepting.is_empty() {
            self.close_listeners(reactor);
        }
    }

    /// A turn is over: closes the listening sockets, if nobody is to be accepted any more.
    pub(super) fn end_turn(&mut self, reactor: &mut Reactor) {
        let Some(closing) = &mut self.closing else { return };
        let heard = std::mem::take(&mut closing.heard);
        match closing.call.next(Instant::now(), heard) {
            Some(wait) => closing.timer = reactor.timer(wait),
            None => self.close_listeners(reactor),
        }
    }

    /// Nobody comes in any more, and reactors read nothing new.
    fn close_listeners(&mut self, reactor: &mut Reactor) {
        let Some(closing) = self.closing.take() else { return };
        reactor.cancel(closing.timer);
        self.listeners.clear();
        self.relist.end(reactor);
        match self.shared.config.close_listen {
            CloseListen::First => {
                self.accepting.drain(..).for_each(|(listener, _)| reactor.close(listener, Close::Now));
            }
            CloseListen::Last => {
                self.accepting.iter().for_each(|(listener, _)| reactor.pause_accept(*listener));
            }
        }
        self.held.clear();
        self.crew.tell(|| Command::Drain);
    }

    /// Says what a stop that takes long waits for.
    pub(super) fn say_progress(&mut self, reactor: &mut Reactor) {
        self.progress = Some(reactor.timer(PROGRESS));
        let crew = self.crew.len();
        let what = match self.stage {
            Stage::Draining => format!("answers to packets, in {} of {crew} reactors", crew - self.drained),
            // Else the manager says it.
            Stage::Leaving if self.manager.is_none() => {
                let seats = 0..self.shared.config.seats();
                let pids = seats.map(|seat| self.shared.board.worker_pid(seat)).filter(|pid| *pid != 0);
                format!("the processes {:?} to leave", pids.collect::<Vec<_>>())
            }
            Stage::Finishing => format!("{} clients to take what was sent to them", self.crew.total()),
            _ => return,
        };
        let left = self.deadline.saturating_duration_since(Instant::now());
        tracing::info!("Server is stopping: it waits for {what}, for {left:.1?} at most");
    }

    pub(super) fn leave_if_drained(&mut self, reactor: &mut Reactor) {
        if self.drained + self.ended >= self.crew.len() {
            self.leave(reactor);
        }
    }

    /// Everything is answered, or the time for it is over: the workers' turn to leave.
    pub(super) fn leave(&mut self, reactor: &mut Reactor) {
        if self.stage != Stage::Draining {
            return;
        }
        self.stage = Stage::Leaving;
        self.close_listeners(reactor);
        let within = self.time_left();
        self.shared.board.set_stop_time(within);
        // Before they are asked: so that they know why, and for those that have not begun or have no manager any more.
        self.set_phase(Phase::Stopping);
        self.order(&Order::Stop { within_ms: within.as_millis() as u64 });
        self.set_alarm(reactor, if self.manager.is_some() { within + MANAGER_MARGIN } else { within });
        // Nobody may be left, whose end would tell.
        self.finish_if_alone(reactor);
    }

    pub(super) fn on_alarm(&mut self, reactor: &mut Reactor) {
        self.alarm = None;
        if self.stage == Stage::Draining {
            return self.leave(reactor);
        }
        let alive = self.roster.kill_orphans(reactor);
        if !alive.is_empty() {
            tracing::warn!("workers {alive:?} had not finished after max_wait_time and were killed");
        }
        // It would have ended those that it has adopted, and there is no other alarm for it.
        if let Some(manager) = &self.manager {
            tracing::error!("the manager (pid {}) does not end: killed", manager.pid.as_raw_pid());
            let _ = pidfd_send_signal(&manager.process, Signal::KILL);
        }
    }

    pub(super) fn manager_ended(&mut self, reactor: &mut Reactor) {
        let Some(pid) = self.manager.as_ref().map(|manager| manager.pid) else { return };
        let status = match self.succession.take_status() {
            Some(status) => Some(status),
            None => match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => Some(status),
                Ok(None) => return,
                Err(_) => None,
            },
        };
        // What it said before it ended.
        self.read_news(reactor);
        if let Some(manager) = self.manager.take() {
            for token in [manager.control, manager.watch].into_iter().chain(self.writable.take()) {
                reactor.unwatch(token);
            }
        }
        let code = status.and_then(|status| status.exit_status());
        if self.stage != Stage::Leaving || code != Some(0) {
            let how = status.map_or("reaped by somebody else".to_owned(), describe);
            let pid = pid.as_raw_pid();
            if matches!(self.stage, Stage::Serving | Stage::Draining) {
                tracing::error!("the manager (pid {pid}) died ({how}): workers go on, and get another one");
                return self.succeed(reactor);
            }
            if code == Some(1) {
                let failed = Error::Start("the manager has failed, its log lines say why".into());
                self.failure.get_or_insert(failed);
            } else if self.stage == Stage::Starting {
                tracing::error!("the manager (pid {pid}) died ({how}): the server cannot start");
                self.failure.get_or_insert(Error::ManagerDied { pid, how });
            } else {
                tracing::error!("the manager (pid {pid}) died ({how}) in a stop: workers leave without it");
            }
            // It would have been its affair to end them.
            for worker in self.roster.watch_orphans(reactor, &self.shared.board) {
                self.settle(worker);
            }
            // Who waits to be asked sees that nobody will.
            self.shared.wake_workers();
            self.stop(reactor);
            if self.stage == Stage::Leaving {
                let within = self.time_left();
                self.set_alarm(reactor, within);
            }
        }
        self.finish_if_alone(reactor);
    }

    /// When no worker lives any more: clients take what was sent, then the reactors end.
    pub(super) fn finish_if_alone(&mut self, reactor: &mut Reactor) {
        let stopping = matches!(self.stage, Stage::Draining | Stage::Leaving);
        if !stopping || self.manager.is_some() || self.roster.has_orphans() {
            return;
        }
        self.stage = Stage::Finishing;
        self.close_listeners(reactor);
        self.alarm.take().map(|alarm| reactor.cancel(alarm));
        let within = self.time_left();
        self.crew.tell(|| Command::Finish { within });
        self.end_if_finished();
    }

    pub(super) fn end_if_finished(&mut self) {
        if self.stage == Stage::Finishing && self.ended == self.crew.len() {
            self.stage = Stage::Ended;
        }
    }

    /// For the present stage of the stop; never quite nothing, unless somebody has asked twice.
    pub(super) fn time_left(&self) -> Duration {
        if self.at_once {
            return Duration::ZERO;
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.max(GRACE.min(self.shared.config.max_wait_time / 4))
    }

    pub(super) fn set_alarm(&mut self, reactor: &mut Reactor, after: Duration) {
        self.alarm.take().map(|alarm| reactor.cancel(alarm));
        self.alarm = Some(reactor.timer(after));
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown status".into(),
    }
}
