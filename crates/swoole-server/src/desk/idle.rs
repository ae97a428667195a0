//! Clients that do nothing, or take too long over a packet: how they are found, and leave.

use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use swoole_reactor::{Close, Reactor, TimerId};

use super::patience::{Agenda, Overdue, Patience, Pulse};
use super::{Connection, Desk};
use crate::board::Counter;
use crate::config::{ByListener, Config};
use crate::session::Flag;

/// Connections that are looked at in one go: others wait, too.
const LOOKS: usize = 256;

/// What a desk knows of its clients' times.
pub(super) struct Watch {
    limits: ByListener<Patience>,
    /// Whether there is any limit.
    is_on: bool,
    agenda: Agenda,
    /// The next look, and for when it is set.
    timer: Option<(TimerId, u64)>,
    begin: Instant,
    /// What the clock said last, if no time has passed since that counts.
    now: Option<u64>,
    step: u64,
}

/// What a connection is about with its time.
#[derive(Debug)]
pub(super) struct Times {
    patience: Patience,
    /// When it has done what.
    pub(super) pulse: Pulse,
    /// Bytes that waited for it when it was looked at last.
    queued: u64,
}

impl Watch {
    pub(super) fn new(config: &Config) -> Watch {
        let limits = ByListener::new(config, Patience::new);
        let step = limits.all().iter().map(Patience::step).min().unwrap_or(1);
        Watch {
            is_on: limits.all().iter().any(|limits| !limits.is_endless()),
            limits,
            agenda: Agenda::new(step),
            timer: None,
            begin: Instant::now(),
            now: None,
            step,
        }
    }

    fn now(&mut self) -> u64 {
        *self.now.get_or_insert_with(|| self.begin.elapsed().as_millis() as u64)
    }
}

impl Desk {
    /// A wait begins, or a handler had its time: the clock is read again when it is asked next.
    #[inline]
    pub(crate) fn time_passes(&mut self) {
        self.watch.now = None;
    }

    /// Other limits hold, for clients who come by addresses that there have not been before.
    pub(super) fn watch_anew(&mut self, reactor: &mut Reactor) {
        let before = std::mem::replace(&mut self.watch, Watch::new(self.listening.config()));
        if let Some((timer, _)) = before.timer {
            reactor.cancel(timer);
        }
        // Of the same moments as before.
        self.watch.begin = before.begin;
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.plan_look(reactor, slot));
    }

    /// A new connection, or one that was taken over, is watched.
    pub(super) fn watch(&mut self, reactor: &mut Reactor, slot: usize) {
        if !self.watch.is_on {
            return;
        }
        let now = self.watch.now();
        let connection = &mut self.connections[slot];
        let listener = || self.shared.sessions.listener(connection.session);
        let patience = *self.watch.limits.of(listener);
        let pulse = Pulse { received: now, sent: now, begun: None };
        connection.times = Some(Box::new(Times { patience, pulse, queued: 0 }));
        self.plan_look(reactor, slot);
    }

    /// Bytes have come from it.
    #[inline]
    pub(super) fn has_received(&mut self, slot: usize) {
        if let Some(times) = &mut self.connections[slot].times {
            times.pulse.received = self.watch.now();
        }
    }

    /// It was sent something.
    #[inline]
    pub(super) fn has_sent(&mut self, slot: usize) {
        if let Some(times) = &mut self.connections[slot].times {
            times.pulse.sent = self.watch.now();
        }
    }

    /// Its packets were cut: whether there is the beginning of another one.
    #[inline]
    pub(super) fn has_cut(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &mut self.connections[slot];
        let Some(times) = &mut connection.times else { return };
        if connection.input.is_empty() || connection.parked {
            times.pulse.begun = None;
        } else if times.pulse.begun.is_none() {
            times.pulse.begun = Some(self.watch.now());
            self.plan_look(reactor, slot);
        }
    }

    pub(super) fn unwatch(&mut self, slot: usize) {
        self.watch.agenda.forget(slot);
    }

    fn plan_look(&mut self, reactor: &mut Reactor, slot: usize) {
        let times = self.connections[slot].times.as_ref();
        if let Some((at, _)) = times.and_then(|times| times.patience.due(&times.pulse)) {
            self.watch.agenda.put(slot, at);
            self.set_look(reactor);
        }
    }

    /// The timer runs for the next look. One that comes too early does no harm.
    fn set_look(&mut self, reactor: &mut Reactor) {
        let Some(next) = self.watch.agenda.next() else { return };
        if self.watch.timer.is_some_and(|(_, at)| at <= next) {
            return;
        }
        let wait = Duration::from_millis(next.saturating_sub(self.watch.now()));
        if let Some((before, _)) = self.watch.timer.replace((reactor.timer(wait), next)) {
            reactor.cancel(before);
        }
    }

    /// Whether this is the timer of the looks; then they are made.
    pub(super) fn look(&mut self, reactor: &mut Reactor, timer: TimerId) -> bool {
        if self.watch.timer.is_none_or(|(its, _)| its != timer) {
            return false;
        }
        self.watch.timer = None;
        let now = self.watch.now();
        for _ in 0..LOOKS {
            let Some(slot) = self.watch.agenda.take(now) else { break };
            self.look_at(reactor, slot, now);
        }
        self.set_look(reactor);
        true
    }

    fn look_at(&mut self, reactor: &mut Reactor, slot: usize, now: u64) {
        self.excuse(reactor, slot, now);
        let Connection { times, token, .. } = &self.connections[slot];
        match times.as_ref().and_then(|times| times.patience.due(&times.pulse)) {
            None => {}
            Some((at, _)) if at > now => self.watch.agenda.put(slot, at),
            // What it has sent was not read yet.
            Some(_) if reactor.socket(*token).is_some_and(|socket| ioctl_fionread(socket) != Ok(0)) => {
                self.watch.agenda.put(slot, now + self.watch.step);
            }
            Some((_, overdue)) => self.close_overdue(reactor, slot, overdue),
        }
    }

    /// What is not the client's doing does not count.
    fn excuse(&mut self, reactor: &Reactor, slot: usize, now: u64) {
        let is_exempt = self.is_exempt(slot);
        let connection = &mut self.connections[slot];
        let Some(times) = &mut connection.times else { return };
        let queued = reactor.unsent(connection.token);
        let takes = queued < std::mem::replace(&mut times.queued, queued);
        if is_exempt {
            times.pulse = Pulse { received: now, sent: now, begun: None };
        } else if takes || connection.in_flight > 0 {
            times.pulse.sent = now;
        }
    }

    /// Whether its silence has other reasons: it has to wait, it has ended its side, or nobody is read from. Or nobody is to
    /// mind it.
    fn is_exempt(&self, slot: usize) -> bool {
        let Connection { session, parked, paused, ended, .. } = self.connections[slot];
        let is_protected = || self.shared.sessions.has_flag(session, Flag::Protected);
        parked || paused || ended || self.draining || is_protected()
    }

    fn close_overdue(&mut self, reactor: &mut Reactor, slot: usize, overdue: Overdue) {
        let (counter, why) = match overdue {
            Overdue::Heartbeat => (Counter::Idle, "it has sent nothing for heartbeat_idle_time"),
            Overdue::Idle => (Counter::Idle, "nothing was sent or received for max_idle_time"),
            Overdue::Packet => (Counter::Slow, "its packet takes longer than package_max_time"),
        };
        tracing::debug!(session = %self.connections[slot].session, "closed, {why}");
        self.count(counter, 1);
        self.close(reactor, slot, Close::Now);
    }
}
