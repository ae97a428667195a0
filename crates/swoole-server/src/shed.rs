//! Shedding: which packets are not handled because too many wait, or they have waited too long.
//!
//! Who is told at once, and who later: a reply must not overtake those to packets that came before. So a reactor that sheds a
//! packet answers by itself only a client of whom no worker has anything; for another one the worker gets a record in the
//! packet's place ([`RequestKind::Shed`](crate::wire::RequestKind::Shed)), and answers in its turn. How long a packet has
//! waited, the worker finds out when it comes to it; so the record says when it came ([`stamp`]).

use crate::board::monotonic;
use crate::config::{ByListener, Config, Mode};
use crate::dispatch::Loads;

/// When a packet came, in milliseconds of the clock that all processes have, which begins anew after 49 days. 0 is nothing.
pub(crate) type Stamp = u32;

/// Now.
pub(crate) fn stamp() -> Stamp {
    (monotonic().as_millis() as Stamp).max(1)
}

/// What is shed, and how it is answered, by where the client came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shed {
    /// Packets with one worker; 0 for no limit.
    max_queue: usize,
    /// Milliseconds; 0 for ever.
    max_wait: u32,
    busy_reply: Vec<u8>,
}

impl Shed {
    fn new(config: &Config) -> Shed {
        // In Base mode nothing waits here. What is set is at least a moment; at most a day.
        let is_on = config.mode == Mode::Process;
        Shed {
            max_queue: if is_on { config.max_queue } else { 0 },
            max_wait: if is_on { config.max_queue_time.as_nanos().div_ceil(1_000_000) as u32 } else { 0 },
            busy_reply: config.busy_reply.clone(),
        }
    }

    /// For all addresses.
    pub(crate) fn of(config: &Config) -> ByListener<Shed> {
        ByListener::new(config, Shed::new)
    }

    /// What a packet that is shed is answered with; `None` if its connection is closed.
    pub(crate) fn reply(&self) -> Option<&[u8]> {
        (!self.busy_reply.is_empty()).then_some(&self.busy_reply)
    }

    /// How many more packets this worker may get.
    #[inline]
    pub(crate) fn room(&self, loads: &Loads, worker: u16) -> usize {
        if self.max_queue == 0 { usize::MAX } else { self.max_queue.saturating_sub(loads.in_flight(worker)) }
    }

    /// Whether a packet that came then has waited too long by now.
    pub(crate) fn is_late(&self, came: Stamp, now: Stamp) -> bool {
        let waited = now.wrapping_sub(came);
        // One that came later than now was written by a clock that is a moment ahead.
        self.max_wait > 0 && came != 0 && waited < 1 << 31 && waited > self.max_wait
    }
}

impl ByListener<Shed> {
    /// Whether queues have a limit anywhere, so that reactors have to know them.
    pub(crate) fn count_queues(&self) -> bool {
        self.all().iter().any(|shed| shed.max_queue > 0)
    }

    /// Whether waits have one, so that packets are stamped.
    pub(crate) fn count_waits(&self) -> bool {
        self.all().iter().any(|shed| shed.max_wait > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::dispatch::Gauge;

    #[test]
    fn a_queue_has_room_up_to_its_limit() {
        let shed = |max_queue| Shed::new(&Config { max_queue, ..Config::default() });
        let loads = Arc::new(Loads::new(2));
        let mut gauge = Gauge::new(&loads, 1);
        gauge.set(3);
        assert_eq!([2, 3, 4, 0].map(|max| shed(max).room(&loads, 1)), [0, 0, 1, usize::MAX]);
        assert_eq!(shed(2).room(&loads, 0), 2, "of each worker");
        let base = Config { max_queue: 1, mode: Mode::Base, ..Config::default() };
        assert_eq!(Shed::new(&base).room(&loads, 1), usize::MAX);
    }

    proptest::proptest! {
        #[test]
        fn who_has_waited_longer_is_late(came in 1u32.., waited in 0u32..200_000_000, max in 0u32..86_400_000) {
            let time = Duration::from_millis(max.into());
            let shed = Shed::new(&Config { max_queue_time: time, ..Config::default() });
            let now = came.wrapping_add(waited);
            proptest::prop_assert_eq!(shed.is_late(came, now), max > 0 && waited > max);
            proptest::prop_assert!(!shed.is_late(0, now), "nobody knows when it came");
            proptest::prop_assert!(!shed.is_late(came, came.wrapping_sub(1)), "a clock that is ahead");
        }
    }
}
