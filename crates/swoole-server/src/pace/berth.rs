//! When a thread goes to another core. Pure: times are passed in.

use std::time::{Duration, Instant};

/// Somebody else was on the core for a while. (10 us would also be a lone client between two requests: beside it, a
/// worker serves it 1.7 times as fast as beside its reactor.)
const SHARED: Duration = Duration::from_micros(100);
/// It was taken by somebody who does not give it back by himself.
const TAKEN: Duration = Duration::from_micros(1000);
/// To go costs some ten microseconds, and what is found may not be better.
const STAY: Duration = Duration::from_millis(3);

/// Where to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Move {
    /// Anywhere else.
    Away,
    /// To this core.
    To(usize),
    /// To one that no other leader is on.
    Apart,
}

#[derive(Debug, Default)]
pub(super) struct Berth {
    moved: Option<Instant>,
}

impl Berth {
    /// The core was given away at a time, and was back after `gap`. `elsewhere`: where this thread is to be with somebody, or
    /// without, if it is not.
    pub(super) fn after(
        &mut self,
        gap: Duration,
        now: Instant,
        elsewhere: impl FnOnce() -> Option<Move>,
    ) -> Option<Move> {
        if gap < SHARED || self.moved.is_some_and(|moved| now - moved < STAY) {
            return None;
        }
        let away = (gap >= TAKEN).then_some(Move::Away);
        let decided = elsewhere().or(away);
        if decided.is_some() {
            self.moved = Some(now);
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nowhere() -> Option<Move> {
        None
    }

    #[test]
    fn it_leaves_a_core_that_was_taken() {
        let (mut berth, now) = (Berth::default(), Instant::now());
        assert_eq!(berth.after(SHARED, now, nowhere), None);
        assert_eq!(berth.after(TAKEN, now, nowhere), Some(Move::Away));
    }

    #[test]
    fn it_goes_to_its_leader_when_it_is_not_alone_anyway() {
        let (mut berth, now) = (Berth::default(), Instant::now());
        assert_eq!(berth.after(Duration::ZERO, now, || unreachable!("alone")), None);
        assert_eq!(berth.after(SHARED, now, || Some(Move::To(3))), Some(Move::To(3)));
        assert_eq!(Berth::default().after(TAKEN, now, || Some(Move::Apart)), Some(Move::Apart));
    }

    proptest! {
        #[test]
        fn it_stays_for_a_while(gaps in prop::collection::vec((0u64..2000, 0u64..5000, prop::option::of(0usize..4)), 1..50)) {
            let (mut berth, mut now) = (Berth::default(), Instant::now());
            let mut moved: Option<Instant> = None;
            for (gap, later, leader) in gaps {
                now += Duration::from_micros(later);
                if berth.after(Duration::from_micros(gap), now, || leader.map(Move::To)).is_some() {
                    prop_assert!(moved.is_none_or(|moved| now - moved >= STAY));
                    moved = Some(now);
                }
            }
        }
    }
}
