//! How long a client may take, and when to look at it. Pure: times are milliseconds of the desk's clock.
//!
//! What a client does costs no more than to write down when. It is looked at when a limit would be over if it had done
//! nothing since: then it has, and there is a later time to look; or it has not.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::Config;

/// What looks are put off to, so that many are made at once: not more than this.
const STEP_MAX: u64 = 1000;

/// How long a client may take, by where it came in. 0 is for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Patience {
    /// Without a byte from it; and how often that is looked for, 0 for at any time.
    heartbeat: u64,
    every: u64,
    /// With nothing in either direction.
    idle: u64,
    /// For a packet, from its first byte.
    packet: u64,
}

/// When something has happened on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pulse {
    pub(super) received: u64,
    pub(super) sent: u64,
    /// When the packet began that is not complete.
    pub(super) begun: Option<u64>,
}

/// Which of a client's limits is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Overdue {
    Heartbeat,
    Idle,
    Packet,
}

impl Patience {
    /// The configuration is valid.
    pub(crate) fn new(config: &Config) -> Patience {
        // What is set is at least a moment.
        let ms = |time: Duration| time.as_nanos().div_ceil(1_000_000) as u64;
        let every = ms(config.heartbeat_check_interval);
        let heartbeat = match ms(config.heartbeat_idle_time) {
            0 => 2 * every,
            idle => idle,
        };
        Patience { heartbeat, every, idle: ms(config.max_idle_time), packet: ms(config.package_max_time) }
    }

    pub(super) fn is_endless(&self) -> bool {
        self.shortest().is_none()
    }

    fn shortest(&self) -> Option<u64> {
        [self.heartbeat, self.idle, self.packet].into_iter().filter(|limit| *limit > 0).min()
    }

    /// How much later than need be a client may be looked at.
    pub(super) fn step(&self) -> u64 {
        self.shortest().map_or(STEP_MAX, |limit| (limit / 8).clamp(1, STEP_MAX))
    }

    /// The first of the limits to be over if nothing happens, and when.
    pub(super) fn due(&self, pulse: &Pulse) -> Option<(u64, Overdue)> {
        let after = |since: u64, limit: u64| (limit > 0).then(|| since.saturating_add(limit));
        let heartbeat = after(pulse.received, self.heartbeat).map(|at| round_up(at, self.every.max(1)));
        let idle = after(pulse.received.max(pulse.sent), self.idle);
        let packet = pulse.begun.and_then(|begun| after(begun, self.packet));
        let limits =
            [(heartbeat, Overdue::Heartbeat), (idle, Overdue::Idle), (packet, Overdue::Packet)].into_iter();
        limits.filter_map(|(at, what)| Some((at?, what))).min()
    }
}

/// When to look at which connection, by its slot: each at one time at most, so that it grows with their number alone.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    looks: BTreeSet<(u64, usize)>,
    by_slot: Vec<Option<u64>>,
    step: u64,
}

impl Agenda {
    pub(super) fn new(step: u64) -> Agenda {
        Agenda { step, ..Agenda::default() }
    }

    /// The connection in `slot` is looked at when `at` is over, if not before.
    pub(super) fn put(&mut self, slot: usize, at: u64) {
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, None);
        }
        let at = round_up(at, self.step.max(1));
        if self.by_slot[slot].is_some_and(|before| before <= at) {
            return;
        }
        self.forget(slot);
        self.by_slot[slot] = Some(at);
        self.looks.insert((at, slot));
    }

    pub(super) fn forget(&mut self, slot: usize) {
        if let Some(at) = self.by_slot.get_mut(slot).and_then(Option::take) {
            self.looks.remove(&(at, slot));
        }
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.looks.first().map(|(at, _)| *at)
    }

    /// One that is to be looked at now.
    pub(super) fn take(&mut self, now: u64) -> Option<usize> {
        let (_, slot) = self.looks.first().copied().filter(|(at, _)| *at <= now)?;
        self.forget(slot);
        Some(slot)
    }
}

fn round_up(time: u64, step: u64) -> u64 {
    time.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patience(heartbeat: u64, every: u64, idle: u64, packet: u64) -> Patience {
        Patience { heartbeat, every, idle, packet }
    }

    #[test]
    fn the_configuration_says_how_long() {
        let seconds = Duration::from_secs_f64;
        let read = |every: f64, heartbeat: f64, idle: f64, packet: f64| {
            Patience::new(&Config {
                heartbeat_check_interval: seconds(every),
                heartbeat_idle_time: seconds(heartbeat),
                max_idle_time: seconds(idle),
                package_max_time: seconds(packet),
                ..Config::default()
            })
        };
        assert!(read(0.0, 0.0, 0.0, 0.0).is_endless());
        assert_eq!(read(5.0, 0.0, 0.0, 0.0), patience(10_000, 5000, 0, 0), "twice as often as need be");
        assert_eq!(read(5.0, 7.0, 0.000_1, 2.0), patience(7000, 5000, 1, 2000));
        assert_eq!([read(0.0, 60.0, 0.0, 0.0), read(0.0, 60.0, 0.0, 0.08)].map(|one| one.step()), [1000, 10]);
    }

    #[test]
    fn the_first_limit_counts() {
        let pulse = Pulse { received: 100, sent: 180, begun: Some(90) };
        assert_eq!(patience(0, 0, 0, 0).due(&pulse), None);
        assert_eq!(patience(50, 0, 0, 0).due(&pulse), Some((150, Overdue::Heartbeat)));
        assert_eq!(
            patience(50, 40, 0, 0).due(&pulse),
            Some((160, Overdue::Heartbeat)),
            "when it is looked for"
        );
        assert_eq!(patience(500, 0, 50, 0).due(&pulse), Some((230, Overdue::Idle)), "it was sent something");
        assert_eq!(patience(500, 0, 50, 50).due(&pulse), Some((140, Overdue::Packet)));
        assert_eq!(patience(0, 0, 0, 50).due(&Pulse { begun: None, ..pulse }), None);
    }

    proptest! {
        /// However clients behave: one that keeps its limits is never found overdue, one that does not is at the next step,
        /// and nobody stands on the agenda twice.
        #[test]
        fn who_is_late_is_found(
            step in 1u64..9,
            limit in 1u64..40,
            beats in proptest::collection::vec((0usize..6, 0u64..12), 1..120),
        ) {
            let mut agenda = Agenda::new(step);
            let patience = patience(limit, 0, 0, 0);
            let (mut now, mut last) = (0, [Some(0u64); 6]);
            let due = |last: u64| patience.due(&Pulse { received: last, ..Pulse::default() }).unwrap().0;
            (0..6).for_each(|slot| agenda.put(slot, due(0)));
            for (slot, later) in beats {
                now += later;
                while let Some(slot) = agenda.take(now) {
                    let Some(before) = last[slot] else { panic!("{slot} has left") };
                    if due(before) <= now {
                        last[slot] = None;
                    } else {
                        agenda.put(slot, due(before));
                    }
                }
                for last in last.iter().flatten() {
                    prop_assert!(now < last + limit + step, "{last} is not found at {now}");
                }
                match &mut last[slot] {
                    Some(last) => *last = now,
                    // Another one takes its place.
                    gone => {
                        *gone = Some(now);
                        agenda.put(slot, due(now));
                    }
                }
                prop_assert!(agenda.looks.len() <= 6 && agenda.next().is_none_or(|at| at > now));
            }
        }

        #[test]
        fn one_is_looked_at_when_the_earliest_says(times in proptest::collection::vec(0u64..1000, 1..20)) {
            let mut agenda = Agenda::new(1);
            times.iter().for_each(|at| agenda.put(3, *at));
            prop_assert_eq!(agenda.next(), times.iter().min().copied());
            prop_assert_eq!((agenda.take(1000), agenda.take(1000)), (Some(3), None));
            agenda.put(3, 5);
            agenda.forget(3);
            prop_assert_eq!(agenda.next(), None);
        }
    }
}
