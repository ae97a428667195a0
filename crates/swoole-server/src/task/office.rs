//! The manager's part in tasks: what a dead task worker was at, and what is left at the end.

use std::time::Duration;

use swoole_ipc::Doorbell;

use super::courier::Courier;
use super::hand::Lost;
use super::spill::Spill;
use super::store::{Count, Depth, Store};
use super::{TaskInHand, TaskStats};

/// All tasks of a server.
#[derive(Debug)]
pub(crate) struct Tasks {
    store: Store,
    spill: Spill,
    /// How task workers learn of tasks, if not by the store alone.
    courier: Option<Courier>,
    retries: u32,
}

impl Tasks {
    /// `spill`: the files of this server.
    pub(crate) fn new(store: Store, spill: Spill, courier: Option<Courier>, retries: u32) -> Tasks {
        Tasks { store, spill, courier, retries }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn spill(&self) -> &Spill {
        &self.spill
    }

    pub(crate) fn courier(&self) -> Option<&Courier> {
        self.courier.as_ref()
    }

    /// A task worker is dead and reaped, and there is no successor yet: what it had in hand.
    pub(crate) fn bury(
        &self,
        task_worker: u16,
        bells: &[Doorbell],
        task_bells: &[Doorbell],
    ) -> Vec<TaskInHand> {
        let in_hand = self.store.settle(task_worker, self.retries, super::now());
        // It may have taken somebody's word, and not rung.
        wake(bells);
        // It may have been woken for a task that it has not taken; and asleep, it is not to be woken for the next one.
        if let Some(bell) = task_bells.get(usize::from(task_worker)) {
            bell.disarm();
        }
        wake(task_bells);
        in_hand
    }

    /// A worker is dead: it may have asked for something, and had no time to ring.
    pub(crate) fn asker_died(&self, task_bells: &[Doorbell]) {
        wake(task_bells);
    }

    /// For a server that starts: tells what an earlier one of the same key has lost when all of it was killed.
    pub(crate) fn tell_lost(&self) {
        let master = self.store.shape().askers.saturating_sub(1);
        for lost in self.spill.take_hands().iter().filter_map(|hand| Lost::read(hand)) {
            tracing::error!("{lost}");
            if matches!(lost, Lost::Task(..)) {
                self.store.count(master, Count::Lost);
            }
        }
    }

    pub(crate) fn stats(&self) -> TaskStats {
        let Depth { queued, running, oldest } = self.store.depth();
        let age = oldest.map_or(0, |since| super::now().saturating_sub(since));
        let count = |count| self.store.counted(count);
        TaskStats {
            queued,
            running,
            oldest: Duration::from_nanos(age),
            done: count(Count::Done),
            failed: count(Count::Failed),
            lost: count(Count::Lost),
            retried: count(Count::Retried),
            orphaned: count(Count::Orphaned),
            expired: count(Count::Expired),
            refused: count(Count::Refused),
        }
    }

    /// Every process that could ask or work is gone.
    pub(crate) fn end(&self) {
        let Depth { queued, running, .. } = self.store.depth();
        let left = queued + running;
        if left > 0 && self.courier.as_ref().is_some_and(Courier::is_kept) {
            tracing::warn!(
                "the server stops with {left} tasks that are not done; the next one does those not begun"
            );
        } else if left > 0 {
            tracing::warn!("the server stops with {left} tasks that are not done");
        }
        self.put_away();
    }

    /// Removes what is left of this server's files, and its message queue, but for what is to outlive it.
    pub(crate) fn put_away(&self) {
        self.spill.sweep();
        self.spill.sweep_kept(|asker, slot, ticket| self.store.is_unfinished(asker, slot, ticket));
    }
}

fn wake(bells: &[Doorbell]) {
    for bell in bells {
        if let Err(error) = bell.force() {
            tracing::error!("wake whom a dead process may have left asleep: {error}");
        }
    }
}
