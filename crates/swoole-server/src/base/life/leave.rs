//! How a worker leaves in Base mode: with a successor for its clients, or without.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use swoole_reactor::{Close, Event, Reactor, Token};

use super::{Life, Own, Voice};
use crate::board::{Clients, Phase};
use crate::config::CloseListen;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::shared::Shared;
use crate::stop::LastCall;
use crate::worker::drain::{finish_work, time_for_work};
use crate::worker::{Timers, callbacks};

/// How long connections may take to go when they are reset.
const RESET_WAIT: Duration = Duration::from_millis(100);
/// How long the kernel may take to give up all connections of a worker that retires; it takes microseconds.
const DETACH_WAIT: Duration = Duration::from_secs(1);

/// What a worker may take for a stop.
pub(super) fn stop_time(shared: &Shared) -> Duration {
    let within = shared.config.max_wait_time;
    time_for_work(shared.board.stop_time().map_or(within, |left| left.min(within)))
}

impl<H: Handler> Life<'_, H> {
    /// Leaves the clients to the successor.
    pub(super) fn retire(&mut self, reactor: &mut Reactor) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        let is_open = shared.board.clients(self.duty.id) == Clients::Own;
        if is_open {
            shared.board.set_clients(self.duty.id, Clients::Leaving);
            // Either the manager has seen that, or the stop is seen here: nobody comes for them, then.
            fence(Ordering::SeqCst);
            if shared.board.phase() == Phase::Stopping {
                shared.board.set_clients(self.duty.id, Clients::Own);
                return self.stop(reactor, stop_time(&shared));
            }
        }
        self.packing = true;
        self.leavers.end(reactor);
        self.desk.pause_all(reactor);
        // Connections that were accepted, and nobody has been told of yet, come along.
        self.desk.pause_datagrams(reactor);
        let listeners: Vec<Token> = self.listeners.iter().map(|(token, _)| *token).collect();
        let expected = listeners.iter().filter(|listener| reactor.detach(**listener).is_ok()).count();
        let mut closed = 0;
        let deadline = Instant::now() + DETACH_WAIT;
        while closed < expected && Instant::now() < deadline {
            let turn = reactor.turn(Some(DETACH_WAIT), |reactor, event| match event {
                Event::Detached { token, .. } if listeners.contains(&token) => closed += 1,
                event => self.on_event(reactor, event),
            });
            turn.map_err(|error| Error::setup("wait for the listeners", error))?;
        }
        self.tell_departed(reactor);
        finish_work(&mut Own { life: self, reactor }, stop_time(&shared))?;
        let result = self.say_stop(reactor);
        if let Some(mailbox) = self.mailbox.take() {
            reactor.unwatch(mailbox);
        }
        let count = self.desk.detach_all(reactor);
        self.turn_until(reactor, DETACH_WAIT, |life| life.heirlooms.len() >= count)?;
        // One that retires before it has taken anything over leaves what there is.
        if is_open {
            let heirlooms = std::mem::take(&mut self.heirlooms);
            let estate = &self.premises.estates[usize::from(self.duty.id)];
            for heirloom in estate.leave(heirlooms, &self.duty.post.leave())? {
                self.desk.disown(&heirloom);
            }
            shared.board.set_clients(self.duty.id, Clients::Left);
        }
        // Those that are closed already, and have not been told of.
        self.end_connections(reactor, DETACH_WAIT)?;
        result
    }

    /// Answers what has come, and ends.
    pub(super) fn stop(&mut self, reactor: &mut Reactor, within: Duration) -> Result<()> {
        let begun = Instant::now();
        self.leavers.end(reactor);
        // What waits for a successor, and what clients have sent already.
        self.duty.has_heir = false;
        let (mut hands, desk) = self.hands();
        desk.unpark(reactor, &mut hands, 0);
        self.desk.bound_datagrams(reactor);
        let (mut call, mut wait) = (LastCall::new(begun, within / 4), Some(Duration::ZERO));
        while let Some(longest) = wait {
            let heard = self.turn(reactor, Some(longest))? > 0;
            wait = call.next(Instant::now(), heard);
        }
        let is_first = self.duty.shared.config.close_listen == CloseListen::First;
        for (listener, _) in self.listeners.drain(..) {
            if is_first {
                reactor.close(listener, Close::Now);
            } else {
                reactor.pause_accept(listener);
            }
        }
        let mut unread = self.desk.unread(reactor);
        let mut left = Duration::ZERO;
        loop {
            self.turn(reactor, Some(left))?;
            unread.retain(|(session, bytes)| !self.desk.has_read(*session, *bytes));
            left = (within / 2).saturating_sub(begun.elapsed());
            if unread.is_empty() && !self.desk.has_datagrams(reactor) || left.is_zero() {
                break;
            }
        }
        self.desk.pause_datagrams(reactor);
        self.packing = true;
        self.desk.pause_all(reactor);
        // Clients have yet to take what comes of it.
        let left = within.saturating_sub(begun.elapsed());
        finish_work(&mut Own { life: self, reactor }, time_for_work(left))?;
        let result = self.say_stop(reactor);
        self.voice = Voice::Silent;
        self.desk.close_all(reactor, Close::AfterSend);
        let is_out = |life: &Self| !life.duty.post.sender.is_blocked();
        self.turn_until(reactor, within.saturating_sub(begun.elapsed()), is_out)?;
        self.end_connections(reactor, within.saturating_sub(begun.elapsed()))?;
        result
    }

    /// The last callback: no timer comes after it.
    fn say_stop(&mut self, reactor: &mut Reactor) -> Result<()> {
        let result = self.callback(reactor, callbacks::stop);
        self.voice = Voice::Farewells;
        self.duty.timers = Timers::default();
        result
    }

    /// Waits until all connections that are left have taken what was sent to them, or their time is over.
    fn end_connections(&mut self, reactor: &mut Reactor, within: Duration) -> Result<()> {
        if !self.turn_until(reactor, within, |life| life.desk.is_empty())? {
            self.desk.close_all(reactor, Close::Reset);
            self.turn_until(reactor, RESET_WAIT, |life| life.desk.is_empty())?;
        }
        Ok(())
    }
}
