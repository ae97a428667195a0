//! Whether a client is read from, and whether it keeps up with what is sent to it.

use swoole_reactor::{Reactor, Token};

use super::Desk;
use crate::config::Config;
use crate::session::{Flag, Session};
use crate::wire::RequestKind;

/// Whether more waits for a client than is good. Pure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Level {
    is_high: bool,
}

impl Level {
    /// That of a client whose last reactor has told that it was high.
    pub(super) fn inherited(is_high: bool) -> Level {
        Level { is_high }
    }

    pub(super) fn is_high(self) -> bool {
        self.is_high
    }

    /// So many bytes wait: whether that is news.
    #[inline]
    pub(super) fn rises(&mut self, waiting: usize, high: usize) -> bool {
        let is_news = waiting >= high && !self.is_high;
        self.is_high |= is_news;
        is_news
    }

    /// Only so many are left: whether that is news.
    pub(super) fn sinks(&mut self, waiting: usize, low: usize) -> bool {
        let is_news = waiting <= low && self.is_high;
        self.is_high &= !is_news;
        is_news
    }
}

/// A client that has come to have too much waiting for it, or has got rid of that: its home worker is told.
pub(crate) type Crossing = (u16, Session, RequestKind);

impl Desk {
    /// Nothing more is read from a client, whether or not there is room.
    pub(super) fn pause(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.paused = true;
        reactor.pause(connection.token);
        self.shared.sessions.set_flag(connection.session, Flag::Paused, true);
    }

    /// It is read from, as soon as there is room.
    pub(super) fn unpause(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &mut self.connections[slot];
        if !std::mem::take(&mut connection.paused) {
            return;
        }
        let token = connection.token;
        self.shared.sessions.set_flag(connection.session, Flag::Paused, false);
        if connection.is_read(self.draining)
            && let Err(error) = self.listen(reactor, token)
        {
            self.failed(reactor, token, &error);
        }
    }

    /// So much waits for a client that was sent something.
    #[inline]
    pub(super) fn rise(&mut self, reactor: &mut Reactor, slot: usize, waiting: usize) {
        let Config { buffer_low_watermark, .. } = self.shared.config;
        let connection = &mut self.connections[slot];
        if connection.announced && connection.level.rises(waiting, self.high) {
            let (token, home, session) = (connection.token, connection.home, connection.session);
            self.shared.sessions.set_flag(session, Flag::High, true);
            self.crossings.push((home, session, RequestKind::BufferFull));
            reactor.tell_low(token, buffer_low_watermark);
        }
    }

    /// A client has taken enough of what waited for it.
    pub(crate) fn sunk(&mut self, reactor: &mut Reactor, token: Token) {
        let Config { buffer_low_watermark, .. } = self.shared.config;
        let Some(slot) = self.slot_of(token).filter(|slot| !self.connections[*slot].closing) else { return };
        let waiting = reactor.queued(token);
        let connection = &mut self.connections[slot];
        self.shared.sessions.set_pending(connection.session, waiting);
        if connection.level.sinks(waiting, buffer_low_watermark) {
            let (home, session) = (connection.home, connection.session);
            self.shared.sessions.set_flag(session, Flag::High, false);
            self.crossings.push((home, session, RequestKind::BufferEmpty));
        } else if connection.level.is_high() {
            // More was sent to it meanwhile.
            reactor.tell_low(token, buffer_low_watermark);
        }
    }

    /// The kernel has taken all that waited for a client.
    #[inline]
    pub(crate) fn sent(&mut self, token: Token) {
        if let Some(slot) = self.slot_of(token) {
            self.shared.sessions.set_pending(self.connections[slot].session, 0);
        }
    }

    /// What home workers have not been told yet.
    #[inline]
    pub(crate) fn take_crossings(&mut self) -> Vec<Crossing> {
        std::mem::take(&mut self.crossings)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Full, empty, full, ...: each once for each crossing, and never while neither mark is passed.
        #[test]
        fn each_crossing_is_told_once(
            steps in proptest::collection::vec((any::<bool>(), 0..100_usize), 0..200),
            low in 0..50_usize,
            gap in 1..50_usize,
        ) {
            let (high, mut level, mut is_high) = (low + gap, Level::default(), false);
            for (sends, waiting) in steps {
                let news = if sends { level.rises(waiting, high) } else { level.sinks(waiting, low) };
                let expected = if sends { waiting >= high && !is_high } else { waiting <= low && is_high };
                prop_assert_eq!(news, expected);
                is_high ^= news;
                prop_assert_eq!(level.is_high(), is_high);
                prop_assert_eq!(Level::inherited(is_high), level);
            }
        }
    }
}
