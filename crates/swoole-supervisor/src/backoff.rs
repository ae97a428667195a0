//! How long a slot waits before it is filled again.

use std::time::Duration;

/// The wait before a successor is forked, by how many processes of the slot have died in a row: none after
/// the first death, [`first`](Self::first) after the second, then twice as long each time up to
/// [`max`](Self::max); each spread at random by [`jitter`](Self::jitter), so that slots which died together
/// do not come back together.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    /// The wait after the second death in a row. Default 50 ms.
    pub first: Duration,
    /// The longest wait. Default 5 s.
    pub max: Duration,
    /// The longest wait after a process that had been ready. Default 100 ms: who has started once will start again, and
    /// those that it served wait for its successor.
    pub served_max: Duration,
    /// By which part of itself a wait is made longer or shorter, 0.0 to 1.0. Default 0.2: 4 to 6 s for 5 s.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            max: Duration::from_secs(5),
            served_max: Duration::from_millis(100),
            jitter: 0.2,
        }
    }
}

impl Backoff {
    /// The wait after `deaths` in a row, 1 or more, where the last of the dead `served` or did not come to it. `random`
    /// is from 0.0 to 1.0.
    pub fn delay(&self, deaths: u32, served: bool, random: f64) -> Duration {
        let Some(doublings) = deaths.checked_sub(2) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let max = if served { self.max.min(self.served_max) } else { self.max };
        self.spread(self.first.saturating_mul(factor).min(max), random)
    }

    /// The wait of a slot that keeps dying.
    pub(crate) fn longest(&self, random: f64) -> Duration {
        self.spread(self.max, random)
    }

    fn spread(&self, wait: Duration, random: f64) -> Duration {
        let jitter = self.jitter.clamp(0.0, 1.0);
        Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + jitter * (2.0 * random - 1.0)))
            .unwrap_or(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest() {
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        let waits: Vec<u128> = (1..=10).map(|deaths| backoff.delay(deaths, false, 0.5).as_millis()).collect();
        assert_eq!(waits, [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.delay(u32::MAX, false, 0.5), backoff.max);
        let waits: Vec<u128> = (1..=5).map(|deaths| backoff.delay(deaths, true, 0.5).as_millis()).collect();
        assert_eq!(waits, [0, 50, 100, 100, 100], "one that had started is replaced soon");
    }

    #[test]
    fn jitter_spreads_by_its_part_and_no_more() {
        let backoff = Backoff::default();
        assert_eq!(backoff.longest(0.0), Duration::from_secs(4));
        assert_eq!(backoff.longest(1.0), Duration::from_secs(6));
        assert_eq!(backoff.delay(1, false, 1.0), Duration::ZERO, "the first is at once");
    }
}
