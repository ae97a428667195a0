//! The books of one request link: which messages the worker has not finished yet.
//!
//! Messages are numbered from 1 in the order in which they were sent to the present worker; a record holds one, or in
//! a batch several packets, and a fragment counts as one. The worker says how many it has finished ([`Window::ack`]);
//! when it dies, [`Window::settle`] says what becomes of the rest. Pure: no I/O, no clock.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use crate::session::Session;
use crate::wire::RequestKind;

/// A message to a worker, held until it is delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parcel {
    pub(crate) kind: RequestKind,
    pub(crate) session: Session,
    pub(crate) bytes: Vec<u8>,
    /// Which worker in a row gets it, from 1; and when the first one got it, if it is not that one.
    pub(crate) attempt: u32,
    pub(crate) since: Option<Instant>,
}

impl Parcel {
    pub(crate) fn new(kind: RequestKind, session: Session, bytes: Vec<u8>) -> Parcel {
        Parcel { kind, session, bytes, attempt: 1, since: None }
    }
}

/// One record on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) kind: RequestKind,
    pub(crate) session: Session,
    /// Whether its packet is complete with this record.
    pub(crate) last: bool,
    /// Bytes of the whole packet, or of all packets of a batch.
    pub(crate) size: usize,
    /// Messages in it: 1, or the packets of a batch; and how many of them are finished.
    pub(crate) items: u32,
    pub(crate) done: u32,
    /// Where the record begins and ends in the ring; 0 on a link that has no positions.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The message, where it does not simply stand in the ring.
    pub(crate) kept: Option<Rc<Parcel>>,
}

impl Sent {
    /// Packets that are complete with it and not finished.
    #[inline]
    fn packets(&self) -> usize {
        match self.kind {
            RequestKind::Packet | RequestKind::Batch | RequestKind::Datagram if self.last => {
                (self.items - self.done) as usize
            }
            _ => 0,
        }
    }
}

/// What a dead worker leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Estate {
    /// The message that it had in its hands; of a batch, the packet that follows those that are `done`.
    pub(crate) in_hand: Option<Sent>,
    /// When that was handed to it.
    pub(crate) since: Option<Instant>,
    /// What it had not begun, oldest first; fragments of one packet share one `kept`, and of a batch those that are
    /// `done` do not count.
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
    /// Messages finished, and sent, since the present worker began.
    acked: u64,
    sent: u64,
    /// Packets that are not finished.
    packets: usize,
    /// When messages were handed over, up to which number: those with unfinished ones.
    handed: VecDeque<(u64, Instant)>,
}

impl Window {
    #[inline]
    pub(crate) fn push(&mut self, sent: Sent) {
        self.sent += u64::from(sent.items);
        self.packets += sent.packets();
        self.entries.push_back(sent);
    }

    /// All that was sent is handed over now.
    pub(crate) fn hand_over(&mut self, now: Instant) {
        if self.handed.back().is_none_or(|(upto, _)| *upto < self.sent) {
            self.handed.push_back((self.sent, now));
        }
    }

    /// Messages that were sent and are not finished.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        (self.sent - self.acked) as usize
    }

    /// What will be in flight when the worker has finished the first `ack` messages.
    pub(crate) fn in_flight_after(&self, ack: u64) -> usize {
        self.sent.saturating_sub(ack) as usize
    }

    /// The number of the last message.
    #[cfg(feature = "internals")]
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Packets among them.
    #[inline]
    pub(crate) fn packets(&self) -> usize {
        self.packets
    }

    /// Whether the worker can have finished the first `ack` messages.
    #[inline]
    pub(crate) fn check(&self, ack: u64) -> Result<(), FalseAck> {
        if ack < self.acked || ack > self.sent {
            return Err(FalseAck { ack, acked: self.acked, sent: self.sent });
        }
        Ok(())
    }

    /// The worker has finished the first `ack` messages. Tells of those that are new to the books, as records and how
    /// many in each, and yields the end of the last record that is finished whole.
    #[inline]
    pub(crate) fn ack(
        &mut self,
        ack: u64,
        mut finished: impl FnMut(&Sent, u32),
    ) -> Result<Option<u64>, FalseAck> {
        self.check(ack)?;
        let mut freed = None;
        while self.handed.front().is_some_and(|(upto, _)| *upto <= ack) {
            self.handed.pop_front();
        }
        while self.acked < ack
            && let Some(sent) = self.entries.front_mut()
        {
            let now = u64::from(sent.items - sent.done).min(ack - self.acked) as u32;
            self.packets -= sent.packets();
            sent.done += now;
            self.packets += sent.packets();
            self.acked += u64::from(now);
            finished(sent, now);
            if sent.done == sent.items {
                freed = Some(sent.end);
                self.entries.pop_front();
            }
        }
        Ok(freed)
    }

    /// The worker is dead and said that it had begun message number `started`. Closes the books: the
    /// next worker's first message is number 1 again.
    ///
    /// A claim that cannot be true is nonsense from a process that broke; then nothing counts as begun.
    pub(crate) fn settle(&mut self, started: u64) -> Estate {
        let Window { entries, acked, handed, .. } = std::mem::take(self);
        let mut unread: Vec<Sent> = entries.into();
        let Some(before) = started.checked_sub(acked + 1) else {
            return Estate { unread, ..Estate::default() };
        };
        // A worker acknowledges each message when it is done, so all that can lie before the one in hand are the
        // other fragments of the same packet.
        let fragments = unread.iter().take_while(|sent| !sent.last).count();
        let plausible = unread.get(fragments).is_some_and(|in_hand| {
            fragments as u64 == before
                && unread.iter().take(fragments).all(|sent| sent.session == in_hand.session)
        });
        if !plausible {
            return Estate { unread, ..Estate::default() };
        }
        let rest = unread.split_off(fragments + 1);
        let in_hand = unread.pop();
        let others = in_hand.clone().map(|sent| Sent { done: sent.done + 1, ..sent });
        let others = others.filter(|sent| sent.done < sent.items);
        let since = handed.iter().find(|(upto, _)| *upto >= started).map(|(_, since)| *since);
        Estate { in_hand, since, unread: others.into_iter().chain(rest).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn sent(number: u64, last: bool) -> Sent {
        Sent {
            kind: RequestKind::Packet,
            session: Session::from_raw(number),
            last,
            size: 1,
            items: 1,
            done: 0,
            start: 0,
            end: 0,
            kept: None,
        }
    }

    /// A batch of so many packets.
    fn batch(number: u64, items: u32) -> Sent {
        Sent { kind: RequestKind::Batch, items, ..sent(number, true) }
    }

    /// The messages that an ack finishes, by the number of their record.
    fn finish(window: &mut Window, ack: u64) -> Result<Vec<u64>, FalseAck> {
        let mut finished = Vec::new();
        window.ack(ack, |sent, count| finished.extend((0..count).map(|_| sent.session.raw())))?;
        Ok(finished)
    }

    fn numbers<'a>(entries: impl IntoIterator<Item = &'a Sent>) -> Vec<u64> {
        entries.into_iter().map(|sent| sent.session.raw()).collect()
    }

    #[test]
    fn it_knows_since_when_a_message_is_in_hand() {
        let (mut window, first) = (Window::default(), Instant::now());
        let second = first + Duration::from_millis(5);
        (1..=2).for_each(|number| window.push(sent(number, true)));
        window.hand_over(first);
        window.push(sent(3, true));
        window.hand_over(second);
        window.hand_over(second + Duration::from_secs(1));
        finish(&mut window, 1).unwrap();
        assert_eq!(window.handed.len(), 2);
        finish(&mut window, 2).unwrap();
        assert_eq!(window.settle(3).since, Some(second));
    }

    #[test]
    fn a_false_ack_is_refused_and_changes_nothing() {
        let mut window = Window::default();
        (1..=3).for_each(|number| window.push(sent(number, true)));
        assert_eq!(finish(&mut window, 2).unwrap(), [1, 2]);
        for lie in [1, 4, u64::MAX] {
            assert_eq!(finish(&mut window, lie).err(), Some(FalseAck { ack: lie, acked: 2, sent: 3 }));
        }
        assert_eq!(window.in_flight(), 1);
    }

    #[test]
    fn what_was_in_hand_is_apart_from_what_was_unread() {
        let mut window = Window::default();
        (1..=5).for_each(|number| window.push(sent(number, true)));
        assert_eq!(finish(&mut window, 2).unwrap(), [1, 2]);
        let estate = window.settle(3);
        assert_eq!(estate.in_hand.map(|sent| sent.session.raw()), Some(3));
        assert_eq!(numbers(&estate.unread), [4, 5]);
        window.push(sent(9, true));
        assert_eq!(finish(&mut window, 1).unwrap(), [9]);
    }

    #[test]
    fn copied_fragments_are_not_in_hand() {
        let mut window = Window::default();
        window.push(sent(1, false));
        window.push(sent(2, false));
        window.push(sent(3, true));
        assert_eq!(finish(&mut window, 1).unwrap().len(), 1);
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

    #[test]
    fn a_batch_is_finished_packet_by_packet() {
        let mut window = Window::default();
        window.push(Sent { end: 80, ..sent(1, true) });
        window.push(Sent { end: 200, ..batch(2, 3) });
        assert_eq!((window.in_flight(), window.packets()), (4, 4));
        assert_eq!(window.ack(3, |_, _| {}), Ok(Some(80)), "the batch stays until all of it is finished");
        assert_eq!((window.in_flight(), window.packets()), (1, 1));
        assert_eq!(window.ack(4, |_, _| {}), Ok(Some(200)));

        window.push(batch(3, 4));
        assert_eq!(finish(&mut window, 5).unwrap(), [3]);
        let estate = window.settle(6);
        assert_eq!(estate.in_hand.map(|sent| sent.done), Some(1));
        assert_eq!(estate.unread.iter().map(|sent| (sent.done, sent.items)).collect::<Vec<_>>(), [(2, 4)]);
        assert_eq!((window.in_flight(), window.packets()), (0, 0));
    }

    proptest! {
        /// However a worker's life goes, each message is finished, in hand or unread: once.
        #[test]
        fn every_message_has_one_fate(
            batches in proptest::collection::vec(1u32..5, 0..30),
            acks in proptest::collection::vec(0u64..60, 0..6),
            started in 0u64..60,
        ) {
            let mut window = Window::default();
            batches.iter().zip(1..).for_each(|(&items, number)| window.push(batch(number, items)));
            let mut seen = Vec::new();
            for ack in acks {
                seen.extend(finish(&mut window, ack).unwrap_or_default());
                prop_assert_eq!(window.packets(), window.in_flight());
            }
            let estate = window.settle(started);
            seen.extend(estate.in_hand.as_ref().map(|sent| sent.session.raw()));
            let unread = |sent: &Sent| (sent.done..sent.items).map(|_| sent.session.raw()).collect::<Vec<_>>();
            seen.extend(estate.unread.iter().flat_map(unread));
            let all = batches.iter().zip(1..).flat_map(|(&items, number)| (0..items).map(move |_| number));
            prop_assert_eq!(seen, all.collect::<Vec<_>>());
            prop_assert_eq!(window.in_flight(), 0);
        }
    }
}
