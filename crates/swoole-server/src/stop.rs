//! How a stop takes in who had connected before it, in either mode: the kernel has done its part of that already. And a reload
//! that removes an address.

use std::time::{Duration, Instant};

use swoole_reactor::{Reactor, TimerId, Token};

/// For how long at most: who comes later than that has not connected before.
const LAST_CALL: Duration = Duration::from_millis(100);
/// So many turns in a row without anything new are enough. The first may end early, because of a signal.
const QUIET_TURNS: u32 = 2;
/// How long the second one may take.
const QUIET: Duration = Duration::from_millis(1);

/// The last turns that somebody is accepted in.
#[derive(Debug)]
pub(crate) struct LastCall {
    until: Instant,
    /// Turns in a row in which nothing has come.
    quiet: u32,
}

impl LastCall {
    /// It begins now. The first turn does not wait.
    pub(crate) fn new(now: Instant, at_most: Duration) -> LastCall {
        LastCall { until: now + LAST_CALL.min(at_most), quiet: 0 }
    }

    /// A turn is over, in which something has come or not: how long the next one may take. `None`: there is none.
    pub(crate) fn next(&mut self, now: Instant, heard: bool) -> Option<Duration> {
        self.quiet = if heard { 0 } else { self.quiet + 1 };
        (self.quiet < QUIET_TURNS && now < self.until).then(|| self.quiet * QUIET)
    }
}

/// Listeners that somebody is accepted by for the last time, while the server goes on.
#[derive(Debug, Default)]
pub(crate) struct Leavers(Vec<Leaver>);

#[derive(Debug)]
struct Leaver {
    listener: Token,
    call: LastCall,
    /// The end of the present turn.
    timer: TimerId,
    /// Somebody has come in it.
    heard: bool,
}

impl Leavers {
    pub(crate) fn begin(&mut self, reactor: &mut Reactor, listener: Token, at_most: Duration) {
        let call = LastCall::new(Instant::now(), at_most);
        self.0.push(Leaver { listener, call, timer: reactor.timer(Duration::ZERO), heard: false });
    }

    /// Somebody has come by this listener.
    pub(crate) fn heard(&mut self, listener: Token) {
        self.0.iter_mut().filter(|leaver| leaver.listener == listener).for_each(|leaver| leaver.heard = true);
    }

    pub(crate) fn owns(&self, timer: TimerId) -> bool {
        self.0.iter().any(|leaver| leaver.timer == timer)
    }

    /// The end of a turn: the listener, if it is to be closed now.
    pub(crate) fn end_turn(&mut self, reactor: &mut Reactor, timer: TimerId) -> Option<Token> {
        let index = self.0.iter().position(|leaver| leaver.timer == timer)?;
        let leaver = &mut self.0[index];
        let heard = std::mem::take(&mut leaver.heard);
        match leaver.call.next(Instant::now(), heard) {
            Some(wait) => {
                leaver.timer = reactor.timer(wait);
                None
            }
            None => Some(self.0.swap_remove(index).listener),
        }
    }

    /// They are closed otherwise.
    pub(crate) fn end(&mut self, reactor: &mut Reactor) {
        for leaver in self.0.drain(..) {
            reactor.cancel(leaver.timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_nobody_comes_any_more() {
        let begin = Instant::now();
        let mut call = LastCall::new(begin, Duration::MAX);
        assert_eq!(call.next(begin, true), Some(Duration::ZERO));
        assert_eq!(call.next(begin, false), Some(QUIET));
        assert_eq!(call.next(begin, true), Some(Duration::ZERO), "somebody has come after all");
        assert_eq!(call.next(begin, false), Some(QUIET));
        assert_eq!(call.next(begin, false), None);
    }

    #[test]
    fn it_ends_though_they_go_on_coming() {
        let begin = Instant::now();
        for (at_most, until) in [(Duration::MAX, LAST_CALL), (LAST_CALL / 4, LAST_CALL / 4)] {
            let mut call = LastCall::new(begin, at_most);
            assert!(call.next(begin + until - Duration::from_millis(1), true).is_some());
            assert_eq!(call.next(begin + until, true), None);
        }
    }
}
