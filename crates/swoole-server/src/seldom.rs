//! What the log tells now and then, because there may be much of it.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// At most once in such a time.
    pub(crate) fn new(every: Duration) -> Seldom {
        Seldom { every, told: None, untold: 0 }
    }

    /// It has happened once more. If that is to be told: how often it was not told since the last time.
    pub(crate) fn happens(&mut self) -> Option<u64> {
        if self.told.is_some_and(|told| told.elapsed() < self.every) {
            self.untold += 1;
            return None;
        }
        self.told = Some(Instant::now());
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_others_are_counted() {
        let mut hour = Seldom::new(Duration::from_secs(3600));
        assert_eq!([hour.happens(), hour.happens(), hour.happens()], [Some(0), None, None]);
        hour.every = Duration::ZERO;
        assert_eq!([hour.happens(), hour.happens()], [Some(2), Some(0)]);
    }
}
