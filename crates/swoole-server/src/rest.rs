//! Listeners that rest, because accepting failed for want of descriptors or memory.

use std::io;
use std::time::Duration;

use swoole_reactor::{Reactor, TimerId, Token};

/// How long accepting pauses when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Which listeners rest. What they want for may last, and is told of once.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// Until their timers run out.
    listeners: Vec<(TimerId, Token)>,
    told: bool,
}

impl Rest {
    pub(crate) fn begin(&mut self, reactor: &mut Reactor, listener: Token, error: &io::Error) {
        self.listeners.push((reactor.timer(PAUSE), listener));
        if std::mem::replace(&mut self.told, true) {
            tracing::debug!("accept: {error}; next try in {PAUSE:?}");
        } else {
            tracing::warn!("accept: {error}; new clients wait, next try every {PAUSE:?}");
        }
    }

    /// Somebody could be accepted.
    pub(crate) fn accepted(&mut self) {
        if std::mem::take(&mut self.told) {
            tracing::info!("new clients are accepted again");
        }
    }

    /// The listener that has rested until this timer ran out.
    pub(crate) fn end(&mut self, timer: TimerId) -> Option<Token> {
        let index = self.listeners.iter().position(|(resting, _)| *resting == timer)?;
        Some(self.listeners.swap_remove(index).1)
    }
}
