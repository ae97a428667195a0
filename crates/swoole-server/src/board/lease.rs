//! Whose a worker's slot is.

use std::sync::atomic::Ordering;

use super::{Board, LEASE};

/// To whom a worker's slot belongs, in Process mode: what makes sure that never two processes serve in it, whatever
/// moment a manager dies at. A worker takes the slot when it begins, if the manager that has forked it still reigns, and
/// serves if nobody has taken the slot away from it since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lease {
    /// To whom the manager of this reign puts there.
    Free { reign: u64 },
    /// To this process, which starts.
    Taken { pid: i32 },
    /// To this process.
    Serving { pid: i32 },
}

impl Lease {
    fn word(self) -> u64 {
        match self {
            Lease::Free { reign } => reign << 2,
            Lease::Taken { pid } => u64::from(pid as u32) << 2 | 1,
            Lease::Serving { pid } => u64::from(pid as u32) << 2 | 2,
        }
    }

    /// Whatever a worker has written there is something.
    fn from_word(word: u64) -> Lease {
        match word & 3 {
            1 => Lease::Taken { pid: (word >> 2) as i32 },
            2 => Lease::Serving { pid: (word >> 2) as i32 },
            _ => Lease::Free { reign: word >> 2 },
        }
    }
}

impl Board {
    pub(crate) fn lease(&self, worker: u16) -> Lease {
        Lease::from_word(self.worker(worker, LEASE).load(Ordering::Acquire))
    }

    /// The worker takes its slot, or serves in it from now on; false if it must not.
    pub(crate) fn move_lease(&self, worker: u16, from: Lease, to: Lease) -> bool {
        let lease = self.worker(worker, LEASE);
        lease.compare_exchange(from.word(), to.word(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The worker's slot is for the present manager to fill: nobody is in it any more.
    pub(crate) fn free_lease(&self, worker: u16) {
        self.worker(worker, LEASE).store(Lease::Free { reign: self.reign() }.word(), Ordering::Release);
    }

    /// Takes the slot from all but a worker that serves: who starts will not come to serve, and who has been forked by
    /// a manager of an earlier reign, and has not begun yet, will not begin. To whom it belonged.
    pub(crate) fn revoke_lease(&self, worker: u16) -> Lease {
        let lease = self.worker(worker, LEASE);
        let free = Lease::Free { reign: self.reign() }.word();
        let revoke = |word| match Lease::from_word(word) {
            Lease::Serving { .. } => None,
            _ => Some(free),
        };
        let (Ok(word) | Err(word)) = lease.fetch_update(Ordering::AcqRel, Ordering::Acquire, revoke);
        Lease::from_word(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At whatever step of a worker's start its manager dies: only one that serves already stays.
    #[test]
    fn who_does_not_serve_when_its_manager_dies_never_will() {
        let board = Board::create(1, 1, 1).unwrap();
        let (taken, serving) = (Lease::Taken { pid: 7 }, Lease::Serving { pid: 7 });
        for steps in 0..3 {
            let free = Lease::Free { reign: board.reign() };
            let begin = |step: usize| match step {
                0 => board.move_lease(0, free, taken),
                _ => board.move_lease(0, taken, serving),
            };
            board.free_lease(0);
            assert!((0..steps).all(begin));
            board.next_reign();
            assert_eq!(board.revoke_lease(0), [free, taken, serving][steps]);
            assert!(!(steps..2).any(begin), "after {steps} steps");
            // The next manager's worker has the slot, once it is empty.
            let free = Lease::Free { reign: board.reign() };
            assert_eq!(board.move_lease(0, free, Lease::Taken { pid: 8 }), steps < 2);
            board.free_lease(0);
            assert!(board.move_lease(0, free, Lease::Taken { pid: 8 }));
        }
    }
}
