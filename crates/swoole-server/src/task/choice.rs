//! Whom an asker asks, where it has to choose (`task_ipc_mode = msgqueue`), and whom it has to wake.

/// What a task worker is at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum State {
    /// It has nothing to do, and is awake.
    Looks,
    Sleeps,
    Works,
}

/// What one process has asked of each task worker.
#[derive(Debug)]
pub(super) struct Choice {
    /// Tasks that are not over.
    in_flight: Vec<u32>,
    last: u16,
    /// When each was relied on last, to find a task by itself.
    relied_on: Vec<u64>,
}

impl Choice {
    /// Among so many task workers. Askers with different numbers begin with different ones.
    pub(super) fn new(task_workers: u16, asker: u16) -> Choice {
        Choice {
            in_flight: vec![0; task_workers.into()],
            last: asker % task_workers.max(1),
            relied_on: vec![0; task_workers.into()],
        }
    }

    /// The task worker that has least to do, as far as one can know without asking: what this process has asked of it, or that
    /// it works for somebody else. Of those that have nothing, one that is awake, if possible the one that was chosen last; of
    /// others that are alike, the next one.
    pub(super) fn choose(&mut self, state: impl Fn(u16) -> State) -> u16 {
        let all = self.in_flight.len() as u16;
        // What it works at may be over at once; what was asked of it is not.
        let load = |id: &u16| match (self.in_flight[usize::from(*id)], state(*id)) {
            (0, state @ State::Works) => (1, 0, state),
            (0, state) => (0, 0, state),
            (own, _) => (own, own, State::Works),
        };
        let from_next = (self.last + 1..all).chain(0..=self.last);
        let next = from_next.min_by_key(load).unwrap_or(self.last);
        let of_last = load(&self.last);
        if of_last.0 > 0 || of_last != load(&next) {
            self.last = next;
        }
        self.last
    }

    /// Whether this task worker will find one more task without being woken. It `looks` for one, and each time it does has
    /// another number; it is relied on once each time, since it may stand still.
    pub(super) fn relies_on(&mut self, id: u16, looks: Option<u64>) -> bool {
        let last = &mut self.relied_on[usize::from(id)];
        looks.is_some_and(|time| std::mem::replace(last, time) != time)
    }

    /// A task begins its way; to nobody in particular with `None`.
    pub(super) fn asked(&mut self, of: Option<u16>) {
        if let Some(id) = of {
            self.in_flight[usize::from(id)] += 1;
        }
    }

    /// It is over.
    pub(super) fn ended(&mut self, of: Option<u16>) {
        if let Some(id) = of {
            self.in_flight[usize::from(id)] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREE: fn(u16) -> State = |_| State::Sleeps;

    #[test]
    fn one_that_stands_still_gets_nothing_more() {
        let mut choice = Choice::new(2, 0);
        let ask = |choice: &mut Choice| {
            let id = choice.choose(FREE);
            choice.asked(Some(id));
            id
        };
        assert_eq!([ask(&mut choice), ask(&mut choice)], [0, 1]);
        for _ in 0..10 {
            choice.ended(Some(1));
            assert_eq!(ask(&mut choice), 1);
        }
        // Both have as much.
        assert_eq!([ask(&mut choice), ask(&mut choice)], [0, 1]);
    }

    #[test]
    fn who_is_busy_for_others_is_asked_only_when_all_are() {
        let mut choice = Choice::new(3, 1);
        assert_eq!(choice.choose(|id| [State::Sleeps, State::Works][usize::from(id == 1)]), 2);
        assert_eq!(choice.choose(|_| State::Works), 0);
        assert_eq!([choice.choose(FREE), choice.choose(FREE)], [0, 0]);
        choice.asked(Some(0));
        assert_eq!(choice.choose(|_| State::Works), 1);
        choice.asked(Some(1));
        assert_eq!(choice.choose(FREE), 2);
    }

    #[test]
    fn who_is_awake_is_asked_before_who_sleeps() {
        let mut choice = Choice::new(3, 0);
        let awake = |awake: u16| move |id| if id >= awake { State::Looks } else { State::Sleeps };
        assert_eq!(choice.choose(awake(2)), 2);
        assert_eq!([choice.choose(awake(1)), choice.choose(awake(0))], [2, 2]);
        choice.asked(Some(2));
        assert_eq!(choice.choose(awake(1)), 1);
    }

    #[test]
    fn who_looks_is_relied_on_once_each_time() {
        let mut choice = Choice::new(2, 0);
        assert!(!choice.relies_on(0, None));
        assert!(choice.relies_on(0, Some(6)) && choice.relies_on(1, Some(6)));
        assert!(!choice.relies_on(0, Some(6)) && choice.relies_on(0, Some(10)));
    }

    proptest! {
        /// Whatever ends when: nobody has more than one more than who has least, as long as no one is asked for by name.
        #[test]
        fn nobody_is_asked_who_has_more_than_another(
            workers in 1u16..5,
            steps in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 1..200),
        ) {
            let (mut choice, mut under_way) = (Choice::new(workers, 7), Vec::new());
            for step in steps {
                match step {
                    Some(index) if !under_way.is_empty() => {
                        let id = under_way.swap_remove(index.index(under_way.len()));
                        choice.ended(Some(id));
                    }
                    _ => {
                        let least = *choice.in_flight.iter().min().unwrap();
                        let id = choice.choose(FREE);
                        prop_assert_eq!(choice.in_flight[usize::from(id)], least);
                        choice.asked(Some(id));
                        under_way.push(id);
                    }
                }
            }
        }
    }
}
