//! The books of one request link: which records the worker has not finished yet.
//!
//! Records are numbered from 1 in the order in which they were sent to the present worker. The
//! worker says how many it has finished ([`Window::ack`]); when it dies, [`Window::settle`] says
//! what becomes of the rest. Pure: no I/O, no clock.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::session::Session;
use crate::wire::RequestKind;

/// A message to a worker, held until it is delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parcel {
    pub(crate) kind: RequestKind,
    pub(crate) session: Session,
    pub(crate) bytes: Vec<u8>,
}

/// One record on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) kind: RequestKind,
    pub(crate) session: Session,
    /// Whether its packet is complete with this record.
    pub(crate) last: bool,
    /// Bytes of the whole packet.
    pub(crate) size: usize,
    /// Where the record begins and ends in the ring; 0 on a link that has no positions.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The message, where it does not simply stand in the ring.
    pub(crate) kept: Option<Rc<Parcel>>,
}

/// What a dead worker leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Estate {
    /// The message that it had in its hands.
    pub(crate) in_hand: Option<Sent>,
    /// What it had not begun, oldest first; fragments of one packet share one `kept`.
    pub(crate) unread: Vec<Sent>,
}

/// An ack that cannot be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("ack {ack} is not within {acked}..={sent}")]
pub(crate) struct FalseAck {
    ack: u64,
    acked: u64,
    sent: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Window {
    entries: VecDeque<Sent>,
    acked: u64,
}

impl Window {
    pub(crate) fn push(&mut self, sent: Sent) {
        self.entries.push_back(sent);
    }

    /// Records that were sent and are not finished.
    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len()
    }

    /// Packets among them.
    pub(crate) fn packets(&self) -> usize {
        self.entries.iter().filter(|sent| sent.kind == RequestKind::Packet && sent.last).count()
    }

    /// Whether the worker can have finished the first `ack` records.
    pub(crate) fn check(&self, ack: u64) -> Result<(), FalseAck> {
        let sent = self.acked + self.entries.len() as u64;
        if ack < self.acked || ack > sent {
            return Err(FalseAck { ack, acked: self.acked, sent });
        }
        Ok(())
    }

    /// The worker has finished the first `ack` records. Yields those that are new to the books.
    pub(crate) fn ack(&mut self, ack: u64) -> Result<impl Iterator<Item = Sent> + '_, FalseAck> {
        self.check(ack)?;
        let finished = (ack - self.acked) as usize;
        self.acked = ack;
        Ok(self.entries.drain(..finished))
    }

    /// The worker is dead and said that it had begun record number `started`. Closes the books: the
    /// next worker's first record is number 1 again.
    ///
    /// A claim that cannot be true is nonsense from a process that broke; then nothing counts as begun.
    pub(crate) fn settle(&mut self, started: u64) -> Estate {
        let mut entries = std::mem::take(&mut self.entries);
        let begun = started.checked_sub(self.acked + 1).and_then(|index| usize::try_from(index).ok());
        self.acked = 0;
        // A worker acknowledges each message when it is done, so all that can lie before the one in hand are the
        // other fragments of the same packet.
        let plausible = |&index: &usize| {
            let Some(in_hand) = entries.get(index).filter(|sent| sent.last) else { return false };
            entries.range(..index).all(|sent| !sent.last && sent.session == in_hand.session)
        };
        let Some(index) = begun.filter(plausible) else {
            return Estate { in_hand: None, unread: entries.into() };
        };
        let unread = entries.split_off(index + 1).into();
        Estate { in_hand: entries.pop_back(), unread }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(number: u64, last: bool) -> Sent {
        Sent {
            kind: RequestKind::Packet,
            session: Session::from_raw(number),
            last,
            size: 1,
            start: 0,
            end: 0,
            kept: None,
        }
    }

    fn numbers<'a>(entries: impl IntoIterator<Item = &'a Sent>) -> Vec<u64> {
        entries.into_iter().map(|sent| sent.session.raw()).collect()
    }

    #[test]
    fn a_false_ack_is_refused_and_changes_nothing() {
        let mut window = Window::default();
        (1..=3).for_each(|number| window.push(sent(number, true)));
        assert_eq!(window.ack(2).unwrap().count(), 2);
        for lie in [1, 4, u64::MAX] {
            assert_eq!(window.ack(lie).err(), Some(FalseAck { ack: lie, acked: 2, sent: 3 }));
        }
        assert_eq!(window.in_flight(), 1);
    }

    #[test]
    fn what_was_in_hand_is_apart_from_what_was_unread() {
        let mut window = Window::default();
        (1..=5).for_each(|number| window.push(sent(number, true)));
        assert_eq!(window.ack(2).unwrap().count(), 2);
        let estate = window.settle(3);
        assert_eq!(estate.in_hand.map(|sent| sent.session.raw()), Some(3));
        assert_eq!(numbers(&estate.unread), [4, 5]);
        window.push(sent(9, true));
        assert_eq!(numbers(&window.ack(1).unwrap().collect::<Vec<_>>()), [9]);
    }

    #[test]
    fn copied_fragments_are_not_in_hand() {
        let mut window = Window::default();
        window.push(sent(1, false));
        window.push(sent(2, false));
        window.push(sent(3, true));
        assert_eq!(window.ack(1).unwrap().count(), 1);
        let estate = window.settle(2);
        assert!(estate.in_hand.is_none());
        assert_eq!(numbers(&estate.unread), [2, 3]);
    }

    #[test]
    fn a_packet_in_hand_takes_its_unacknowledged_fragments_along_and_no_other_packet() {
        let fragment = |last| Sent { session: Session::from_raw(7), ..sent(7, last) };
        let mut window = Window::default();
        [fragment(false), fragment(false), fragment(true), sent(8, true)]
            .into_iter()
            .for_each(|sent| window.push(sent));
        let estate = window.settle(3);
        assert_eq!(estate.in_hand.map(|sent| sent.session.raw()), Some(7));
        assert_eq!(numbers(&estate.unread), [8]);

        let mut window = Window::default();
        (1..=4).for_each(|number| window.push(sent(number, true)));
        let estate = window.settle(3);
        assert!(estate.in_hand.is_none(), "it cannot have finished two packets without saying so");
        assert_eq!(numbers(&estate.unread), [1, 2, 3, 4]);
    }

    proptest! {
        /// However a worker's life goes, each record is finished, in hand or unread: once.
        #[test]
        fn every_record_has_one_fate(
            count in 0u64..50,
            acks in proptest::collection::vec(0u64..60, 0..6),
            started in 0u64..60,
        ) {
            let mut window = Window::default();
            (1..=count).for_each(|number| window.push(sent(number, true)));
            let mut seen = Vec::new();
            for ack in acks {
                if let Ok(finished) = window.ack(ack) {
                    seen.extend(finished.map(|sent| sent.session.raw()));
                }
            }
            let estate = window.settle(started);
            seen.extend(estate.in_hand.as_ref().map(|sent| sent.session.raw()));
            seen.extend(numbers(&estate.unread));
            prop_assert_eq!(seen, (1..=count).collect::<Vec<_>>());
            prop_assert_eq!(window.in_flight(), 0);
        }
    }
}
