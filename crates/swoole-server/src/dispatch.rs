//! Which worker gets a packet. Pure: what the rules need to know is asked for.

use crate::config::DispatchMode;

/// One reactor's dispatcher.
///
/// Connections find their home among the reactor's *own* workers: the fewer rings are busy, the more packets a pass moves
/// over each, and the fewer wake-ups that takes. Reactors get equal shares of the connections, so workers do, provided
/// that each reactor has equally many workers of its own, or each worker equally many reactors. If that cannot be, all
/// workers are everybody's.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    mode: DispatchMode,
    /// Workers that have said they are ready, by slot.
    up: Vec<bool>,
    /// Where the next walk over the workers begins.
    next: u16,
    /// The reactor's own workers, and whose turn among them it is.
    own: Vec<u16>,
    turn: usize,
}

/// What one worker has to do, as far as this reactor can tell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Load {
    /// It works on something, perhaps another reactor's.
    pub(crate) busy: bool,
    /// Messages of this reactor that it has not finished.
    pub(crate) in_flight: usize,
}

/// The reactor that this worker is an own worker of; `None` if it is of several.
pub(crate) fn reactor_of(worker: u16, workers: u16, reactors: u8) -> Option<u8> {
    let reactors = u16::from(reactors.max(1));
    workers.is_multiple_of(reactors).then(|| (worker % reactors) as u8)
}

impl Dispatcher {
    /// The dispatcher of one of `reactors`, which are numbered from 0.
    pub(crate) fn new(mode: DispatchMode, workers: u16, reactor: u8, reactors: u8) -> Dispatcher {
        let (workers, reactor, reactors) = (workers.max(1), u16::from(reactor), u16::from(reactors.max(1)));
        let own = if workers.is_multiple_of(reactors) {
            (reactor..workers).step_by(reactors.into()).collect()
        } else if reactors.is_multiple_of(workers) {
            vec![reactor % workers]
        } else {
            (0..workers).map(|step| (reactor + step) % workers).collect()
        };
        let up = vec![false; usize::from(workers)];
        // The reactors do not walk in step.
        Dispatcher { mode, up, next: reactor % workers, own, turn: 0 }
    }

    /// Whether this worker serves: it has said so, and has not died since.
    pub(crate) fn set_up(&mut self, worker: u16, up: bool) {
        if let Some(slot) = self.up.get_mut(usize::from(worker)) {
            *slot = up;
        }
    }

    /// Whether a packet may be given to this worker: it serves, or none does.
    pub(crate) fn is_eligible(&self, worker: u16) -> bool {
        self.up[usize::from(worker)] || !self.up.contains(&true)
    }

    /// The home of a new connection: its worker under `fixed`, and under every rule the one that hears
    /// of its connect and close. Each of the own workers in turn; one that does not serve gets no new ones while
    /// another does.
    pub(crate) fn home(&mut self) -> u16 {
        let turn = self.turn;
        self.turn = (turn + 1) % self.own.len();
        let mut own = self.own[turn..].iter().chain(&self.own[..turn]).copied();
        let first = self.own[turn];
        own.find(|&worker| self.up[usize::from(worker)]).unwrap_or_else(|| self.serving(first))
    }

    /// Who serves, `first` if possible, and else the next one.
    fn serving(&self, first: u16) -> u16 {
        self.walk(first).find(|&worker| self.up[usize::from(worker)]).unwrap_or(first)
    }

    /// The worker for a packet of a connection whose home is `home`.
    pub(crate) fn choose(&mut self, home: u16, load: impl Fn(u16) -> Load) -> u16 {
        match self.mode {
            DispatchMode::RoundRobin => {
                let first = self.turn();
                self.serving(first)
            }
            DispatchMode::Idle => {
                let first = self.turn();
                let up = self.walk(first).filter(|&worker| self.up[usize::from(worker)]);
                up.min_by_key(|&worker| load(worker)).unwrap_or(first)
            }
            _ => home,
        }
    }

    fn turn(&mut self) -> u16 {
        let first = self.next;
        self.next = (first + 1) % self.up.len() as u16;
        first
    }

    fn walk(&self, first: u16) -> impl Iterator<Item = u16> + use<> {
        let workers = self.up.len() as u16;
        (first..workers).chain(0..first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Load = Load { busy: false, in_flight: 0 };

    fn dispatcher(mode: DispatchMode, up: &[bool]) -> Dispatcher {
        let mut dispatcher = Dispatcher::new(mode, up.len() as u16, 0, 1);
        up.iter().enumerate().for_each(|(worker, &up)| dispatcher.set_up(worker as u16, up));
        dispatcher
    }

    #[test]
    fn fixed_stays_at_home() {
        let mut dispatcher = dispatcher(DispatchMode::Fixed, &[true; 4]);
        let homes: Vec<u16> = (0..8).map(|_| dispatcher.home()).collect();
        assert_eq!(homes, [0, 1, 2, 3, 0, 1, 2, 3]);
        assert!((0..8).all(|_| dispatcher.choose(2, |_| IDLE) == 2));
    }

    #[test]
    fn reactors_share_the_workers_out() {
        let homes = |workers, reactor, reactors| {
            let mut dispatcher = Dispatcher::new(DispatchMode::Fixed, workers, reactor, reactors);
            (0..workers).for_each(|worker| dispatcher.set_up(worker, true));
            (0..4).map(|_| dispatcher.home()).collect::<Vec<_>>()
        };
        assert_eq!((homes(4, 0, 2), homes(4, 1, 2)), (vec![0, 2, 0, 2], vec![1, 3, 1, 3]));
        assert_eq!((homes(3, 0, 2), homes(3, 1, 2)), (vec![0, 1, 2, 0], vec![1, 2, 0, 1]));
        assert_eq!((homes(1, 0, 3), homes(2, 2, 4)), (vec![0; 4], vec![0; 4]));
        assert_eq!(homes(2, 2, 3), [0, 1, 0, 1]);
    }

    #[test]
    fn without_an_own_worker_another_one_serves() {
        let mut dispatcher = Dispatcher::new(DispatchMode::Fixed, 4, 1, 2);
        [0, 2].into_iter().for_each(|worker| dispatcher.set_up(worker, true));
        assert!((0..4).all(|_| [0, 2].contains(&dispatcher.home())));
        dispatcher.set_up(3, true);
        assert!((0..4).all(|_| dispatcher.home() == 3));
    }

    #[test]
    fn round_robin_takes_turns_among_those_that_serve() {
        let mut dispatcher = dispatcher(DispatchMode::RoundRobin, &[true, false, true]);
        let chosen: Vec<u16> = (0..6).map(|_| dispatcher.choose(1, |_| IDLE)).collect();
        assert_eq!(chosen, [0, 2, 2, 0, 2, 2]);
    }

    #[test]
    fn idle_prefers_who_has_nothing_to_do() {
        let mut dispatcher = dispatcher(DispatchMode::Idle, &[true; 3]);
        let load = |worker| Load { busy: worker != 1, in_flight: usize::from(worker) };
        assert!((0..6).all(|_| dispatcher.choose(0, load) == 1));
        let all_busy = |worker| Load { busy: true, in_flight: [3, 2, 1][usize::from(worker)] };
        assert!((0..6).all(|_| dispatcher.choose(0, all_busy) == 2));
    }

    proptest! {
        #[test]
        fn a_choice_is_a_worker_and_serves_if_any_does(
            up in proptest::collection::vec(any::<bool>(), 1..9),
            mode in prop_oneof![Just(DispatchMode::RoundRobin), Just(DispatchMode::Idle)],
            loads in proptest::collection::vec((any::<bool>(), 0usize..4), 9),
            times in 1usize..40,
        ) {
            let mut dispatcher = dispatcher(mode, &up);
            for _ in 0..times {
                let load = |worker: u16| {
                    let (busy, in_flight) = loads[usize::from(worker)];
                    Load { busy, in_flight }
                };
                for worker in [dispatcher.home(), dispatcher.choose(0, load)] {
                    prop_assert!(usize::from(worker) < up.len());
                    prop_assert!(up[usize::from(worker)] || !up.contains(&true));
                }
            }
        }
    }
}
