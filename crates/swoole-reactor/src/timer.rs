//! Timers: a binary heap that knows where each timer stands, so that a cancelled one leaves at once.
//!
//! Pure: time is a number that the caller passes in. Starting, cancelling and firing cost O(log n); a server
//! that starts an idle timer for each request and cancels it keeps no corpses in the heap, which a heap with
//! lazy deletion would until their deadlines.

use slab::Slab;

/// Names one timer. Never reused within a reactor's life, so to cancel one that has fired is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: usize,
    number: u64,
}

/// What orders timers: the deadline, and for equal deadlines the order in which they were started.
type Key = (u64, u64);

struct Timer {
    key: Key,
    /// Where `heap` holds it.
    position: usize,
}

/// All timers of a reactor.
#[derive(Default)]
pub(crate) struct Timers {
    timers: Slab<Timer>,
    /// Indexes into `timers`, the earliest first, each before its children at 2i + 1 and 2i + 2.
    heap: Vec<usize>,
    started: u64,
}

impl Timers {
    /// Starts a timer that [`expire`](Self::expire) reports once `now` has reached `deadline`.
    pub(crate) fn start(&mut self, deadline: u64) -> TimerId {
        let number = self.started;
        self.started += 1;
        let position = self.heap.len();
        let index = self.timers.insert(Timer { key: (deadline, number), position });
        self.heap.push(index);
        self.sift_up(position);
        TimerId { index, number }
    }

    /// Forgets a timer; `false` when it has fired or was cancelled before.
    pub(crate) fn cancel(&mut self, id: TimerId) -> bool {
        match self.timers.get(id.index) {
            Some(timer) if timer.key.1 == id.number => {
                self.remove(timer.position);
                true
            }
            _ => false,
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<u64> {
        self.heap.first().map(|&index| self.timers[index].key.0)
    }

    /// Takes out the earliest timer whose deadline is not after `now`.
    pub(crate) fn expire(&mut self, now: u64) -> Option<TimerId> {
        self.next().filter(|&deadline| deadline <= now).map(|_| self.remove(0))
    }

    fn remove(&mut self, position: usize) -> TimerId {
        let index = self.heap.swap_remove(position);
        if let Some(&moved) = self.heap.get(position) {
            self.timers[moved].position = position;
            // The last one may belong above or below the gap that it fills.
            self.sift_up(position);
            self.sift_down(self.timers[moved].position);
        }
        TimerId { index, number: self.timers.remove(index).key.1 }
    }

    fn key(&self, position: usize) -> Key {
        self.timers[self.heap[position]].key
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.timers[self.heap[a]].position = a;
        self.timers[self.heap[b]].position = b;
    }

    fn sift_up(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.key(parent) <= self.key(position) {
                break;
            }
            self.swap(parent, position);
            position = parent;
        }
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let children = 2 * position + 1..(2 * position + 3).min(self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.key(child)) else { break };
            if self.key(position) <= self.key(least) {
                break;
            }
            self.swap(position, least);
            position = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Start { after: u64 },
        Cancel { nth: usize },
        Advance { by: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..50u64).prop_map(|after| Step::Start { after }),
            1 => any::<usize>().prop_map(|nth| Step::Cancel { nth }),
            1 => (0..30u64).prop_map(|by| Step::Advance { by }),
        ]
    }

    proptest! {
        /// The model is a list that is sorted anew each time.
        #[test]
        fn timers_fire_as_a_sorted_list_would(steps in prop::collection::vec(step(), 0..300)) {
            let mut timers = Timers::default();
            let mut model: Vec<(u64, u64, TimerId)> = Vec::new();
            let mut all: Vec<TimerId> = Vec::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Start { after } => {
                        let id = timers.start(now + after);
                        model.push((now + after, all.len() as u64, id));
                        all.push(id);
                    }
                    Step::Cancel { nth } if !all.is_empty() => {
                        let id = all[nth % all.len()];
                        let before = model.len();
                        model.retain(|&(_, _, other)| other != id);
                        prop_assert_eq!(timers.cancel(id), model.len() < before);
                    }
                    Step::Cancel { .. } => {}
                    Step::Advance { by } => {
                        now += by;
                        model.sort_by_key(|&(deadline, number, _)| (deadline, number));
                        let due = model.partition_point(|&(deadline, _, _)| deadline <= now);
                        for (_, _, id) in model.drain(..due) {
                            prop_assert_eq!(timers.expire(now), Some(id));
                        }
                        prop_assert_eq!(timers.expire(now), None);
                    }
                }
                prop_assert_eq!(timers.next(), model.iter().map(|&(deadline, _, _)| deadline).min());
            }
        }
    }

    #[test]
    fn a_fired_timer_cannot_be_cancelled_and_its_place_is_not_mistaken_for_it() {
        let mut timers = Timers::default();
        let first = timers.start(1);
        assert_eq!(timers.expire(1), Some(first));
        let second = timers.start(2);
        assert!(!timers.cancel(first));
        assert!(timers.cancel(second));
    }
}
