//! How many may come in a second: a token bucket. Pure.

use std::time::Duration;

/// A bucket of a tenth of a second's tokens, told by the time at which it will be full again if nobody comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// A token's time, in nanoseconds.
    token: u64,
    tokens: u64,
    full_at: u64,
}

impl Rate {
    /// `per_second` is not 0.
    pub(super) fn new(per_second: u32) -> Rate {
        let per_second = u64::from(per_second.max(1));
        Rate { token: 1_000_000_000 / per_second, tokens: (per_second / 10).max(1), full_at: 0 }
    }

    /// Somebody has come at this time since the beginning, also if there was no token left: then it is owed. How long
    /// nobody else may come; if that is any time, there are several tokens afterwards, so that waits are few.
    pub(super) fn accepted(&mut self, now: Duration) -> Duration {
        let now = now.as_nanos() as u64;
        self.full_at = self.full_at.max(now) + self.token;
        let missing = self.full_at - now;
        if missing + self.token <= self.tokens * self.token {
            return Duration::ZERO;
        }
        let refill = (self.tokens / 2).max(1) * self.token;
        Duration::from_nanos((missing + refill).saturating_sub(self.tokens * self.token))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tenth_of_a_second_may_come_at_once() {
        let mut rate = Rate::new(100);
        let waits: Vec<u128> = (0..11).map(|_| rate.accepted(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 50, 60]);
        let mut rate = Rate::new(1);
        assert_eq!(rate.accepted(Duration::ZERO), Duration::from_secs(1));
        assert_eq!(rate.accepted(Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(rate.accepted(Duration::from_secs(10)), Duration::from_secs(1));
    }

    proptest! {
        /// Whoever waits as long as told, and lets up to `more` in that were under way, never lets in more than the rate and
        /// one bucket; who never rests for long gets what the rate allows.
        #[test]
        fn no_more_than_that(
            per_second in 1u32..5000,
            pauses in proptest::collection::vec((0u64..3_000_000, 0usize..4), 1..300),
        ) {
            let mut rate = Rate::new(per_second);
            let (mut now, mut came, mut waited) = (Duration::ZERO, 0u64, Duration::ZERO);
            for (pause, more) in pauses {
                now += Duration::from_nanos(pause);
                for _ in 0..=more {
                    waited = rate.accepted(now);
                    came += 1;
                }
                let most = now.as_secs_f64() * f64::from(per_second) * 1.001 + rate.tokens as f64 + 4.0;
                prop_assert!(came as f64 <= most, "{} in {:?}", came, now);
                now += waited;
            }
            prop_assert!(waited <= Duration::from_secs_f64(5.0 / f64::from(per_second) + 0.1));
        }
    }
}
