//! The master's main thread: what it learns, a manager's succession, and the stop, as `mod`, `succession` and `stop` have
//! them, with the real roster.

use std::time::Duration;

use swoole_supervisor::{Backoff, ExitStatus};

use super::super::mailbox::Command;
use super::ledger::{CLOSE, Name};
use super::manager::Manager;
use super::process::{Held, Process};
use super::tally::{Breach, Kind, breach};
use super::world::{At, World, failed};
use crate::board::Phase;
use crate::config::OnCrash;
use crate::control::{News, Order};
use crate::crash::Fate;

/// As the master has them.
const START: Duration = Duration::from_secs(10);
const MANAGER_MARGIN: Duration = Duration::from_secs(2);
const STABLE: Duration = Duration::from_secs(1);

impl World<'_> {
    pub(super) fn order(&mut self, order: Order) {
        if let Some(manager) = &mut self.manager {
            manager.orders.push_back(order);
        }
    }

    fn tell_reactors(&mut self, command: impl Fn() -> Command) {
        self.fronts.iter_mut().for_each(|front| front.mail.push_back(command()));
    }

    fn tell_of_end(&mut self, worker: u16) {
        if self.manager.is_some()
            && let Some(order) = self.roster.obituary(worker)
        {
            self.order(order);
        }
    }

    /// The master reads one of the manager's news.
    pub(super) fn learn(&mut self) -> bool {
        let Some(news) = self.manager.as_mut().and_then(|manager| manager.news.pop_front()) else {
            return false;
        };
        match news {
            News::Forked { worker, generation, pid } => {
                self.roster.forked(&mut self.kernel, worker, generation, pid);
            }
            News::Ready { worker, .. } => {
                self.roster.ready(worker);
                self.tell_reactors(|| Command::Up { worker });
            }
            News::Died { worker, generation, status } => {
                self.roster.died(worker, generation, status);
                self.tell_reactors(|| Command::Settle { worker });
            }
            News::Started => {
                self.serves = true;
                self.succession = None;
            }
            News::AllForked
            | News::StopWanted
            | News::ReloadWanted
            | News::Reloading
            | News::Reloaded { .. } => {}
        }
        true
    }

    /// The master notices something about its children: that the manager is gone, or a worker without one.
    pub(super) fn notice(&mut self, slot: usize) -> Result<bool, Breach> {
        if self.rng.bool() && self.reap() {
            return Ok(true);
        }
        if self.manager.as_ref().is_some_and(|manager| manager.ended.is_some()) {
            self.manager_ended();
            return Ok(true);
        }
        let worker = slot as u16;
        let dead = self.roster.watched(worker).filter(|pid| !self.kernel.is_alive(*pid));
        if let Some(watch) = dead
            && let Some(worker) = self.roster.orphan_ended(&mut self.kernel, watch)
        {
            self.tell_reactors(|| Command::Settle { worker });
            self.finish_if_alone();
            return Ok(true);
        }
        Ok(self.reap())
    }

    /// Whoever is dead and its child is no more.
    fn reap(&mut self) -> bool {
        let mut reaped = false;
        while let Some((pid, status)) = self.kernel.take_orphan() {
            if let Some((worker, true)) = self.roster.reaped(pid, status) {
                self.tell_reactors(|| Command::Settle { worker });
                self.finish_if_alone();
            }
            reaped = true;
        }
        reaped
    }

    fn manager_ended(&mut self) {
        // What it said before it ended.
        while self.learn() {}
        let Some(manager) = self.manager.take() else { return };
        let in_order = self.at == At::Leaving && manager.ended == Some(ExitStatus::Exited(0));
        match self.at {
            At::Serving | At::Draining => return self.succeed(),
            _ if in_order => {}
            _ => {
                for worker in self.roster.watch_orphans(&mut self.kernel, &self.shared.board) {
                    self.tell_reactors(|| Command::Settle { worker });
                }
                self.alarm = Some(self.now + self.time_left());
            }
        }
        self.finish_if_alone();
    }

    /// As the master does when the manager is gone while the server serves.
    fn succeed(&mut self) {
        self.shared.board.next_reign();
        for worker in self.roster.take_in(&mut self.kernel, &self.shared.board) {
            self.tell_reactors(|| Command::Settle { worker });
        }
        for worker in self.roster.serving() {
            self.tell_reactors(|| Command::Up { worker });
        }
        self.try_again(Duration::ZERO);
    }

    fn try_again(&mut self, least: Duration) {
        if self.now - self.began_at >= STABLE {
            self.deaths = 0;
        }
        self.deaths += 1;
        let wait = Backoff::default().delay(self.deaths, std::mem::take(&mut self.serves), 0.5).max(least);
        self.succession = Some(self.now + wait);
    }

    pub(super) fn on_succession_timer(&mut self) -> Result<(), Breach> {
        self.succession = None;
        match &mut self.manager {
            None if self.at <= At::Draining => self.start_manager(),
            None => Ok(()),
            Some(manager) => {
                manager.doomed = true;
                Ok(())
            }
        }
    }

    fn start_manager(&mut self) -> Result<(), Breach> {
        self.began_at = self.now;
        if !self.kind && self.rng.u8(..16) == 0 {
            self.try_again(Duration::from_millis(50));
            return Ok(());
        }
        let heirs = self.roster.heirs().into_iter().map(|(heir, process)| (heir, process.copied())).collect();
        let (pid, options, seed) = (self.kernel.next_pid(), self.options.clone(), self.rng.u64(..));
        self.manager = Some(Manager::executed(&self.shared, pid, options, seed, heirs).map_err(failed)?);
        self.ledger.tally.successions += 1;
        for worker in 0..self.shared.config.worker_num {
            self.tell_of_end(worker);
        }
        if std::mem::take(&mut self.reload_wanted) {
            self.order(Order::Reload);
        }
        self.succession = Some(self.now + START);
        Ok(())
    }

    /// A reactor does what the master has told it first.
    pub(super) fn obey(&mut self, reactor: usize) -> Result<bool, Breach> {
        let worker = match self.fronts[reactor].mail.pop_front() {
            Some(Command::Settle { worker }) => worker,
            Some(Command::Up { worker }) => {
                self.fronts[reactor].up(worker);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let held = self.kernel.remains(worker)?;
        let (on_crash, retries) = (self.on_crash, self.retries);
        let expected = |deaths| match on_crash {
            OnCrash::Close => Fate::Closed,
            OnCrash::Drop => Fate::Dropped,
            OnCrash::Retry if deaths <= retries => Fate::Retried,
            OnCrash::Retry => Fate::Poison,
        };
        let front = &mut self.fronts[reactor];
        let in_hand = front.settle(worker, held, expected, &mut self.ledger)?;
        let is_packet = |held: &Held| !matches!(held.name, Name { number: 0 | CLOSE, .. });
        let packets = held.filter(|held| held.reactor == reactor && is_packet(held));
        if in_hand.len() != usize::from(packets.is_some()) {
            return breach(Kind::Casualty, format!("{in_hand:?} in total, and in hand was {held:?}"));
        }
        self.kernel.settled(worker, self.fronts.len());
        self.notes.push_back((worker, in_hand));
        Ok(true)
    }

    /// The master hears that a reactor has settled something.
    pub(super) fn read_note(&mut self) -> bool {
        let Some((worker, in_hand)) = self.notes.pop_front() else { return false };
        self.untold.extend(&in_hand);
        if self.roster.settled(worker, in_hand, self.fronts.len()) {
            self.shared.board.leave(worker);
            self.shared.board.free_lease(worker);
            self.tell_of_end(worker);
        }
        true
    }

    /// Somebody asks for the end of all.
    pub(super) fn stop(&mut self, within: Duration) {
        self.at = At::Draining;
        self.stop_at = self.now + within;
        self.order(Order::HoldTurns);
    }

    fn time_left(&self) -> Duration {
        self.stop_at.saturating_sub(self.now).max(Duration::from_millis(100))
    }

    /// All is answered, or the time for that is over.
    pub(super) fn leave(&mut self) {
        if self.at != At::Draining {
            return;
        }
        self.at = At::Leaving;
        let within = self.time_left();
        self.order(Order::Stop { within_ms: within.as_millis() as u64 });
        let margin = if self.manager.is_some() { MANAGER_MARGIN } else { Duration::ZERO };
        self.alarm = Some(self.now + within + margin);
        self.shared.board.set_phase(Phase::Stopping);
        self.kernel.processes.iter_mut().for_each(|process: &mut Process| process.woken = true);
        self.finish_if_alone();
    }

    pub(super) fn on_alarm(&mut self) {
        self.alarm = None;
        self.roster.kill_orphans(&mut self.kernel);
        self.manager.iter_mut().for_each(|manager| manager.doomed = true);
    }

    fn finish_if_alone(&mut self) {
        let stopping = matches!(self.at, At::Draining | At::Leaving);
        if stopping && self.manager.is_none() && !self.roster.has_orphans() {
            self.at = At::Finished;
        }
    }
}
