//! Taking free rows and giving them back.

use super::write::Change;
use super::{NoneFree, State, Store};
use crate::layout::{row, stripe};
use crate::step;
use crate::sync::Ordering;

impl Change<'_> {
    /// Takes a row for the change's bucket. Until the change is committed, nobody but this one uses it, and a death gives it
    /// back.
    pub(super) fn claim(&mut self) -> Result<usize, NoneFree> {
        let (store, layout) = (self.store, self.store.layout);
        // Beside the bucket first.
        let beside = layout.rows_beside(self.bucket);
        let is_free = |row: usize| {
            let (at, bit) = layout.bit(row);
            store.get(at) & bit == 0
        };
        for row in beside {
            if is_free(row) && self.try_claim(row) {
                return Ok(row);
            }
        }
        let count = layout.bitmap_words();
        let begin = store.get(self.stripe_at + stripe::HINT) as usize % count;
        for index in (begin..count).chain(0..begin) {
            let mut free = !store.get(layout.bitmap(index));
            while free != 0 {
                let row = index * 64 + free.trailing_zeros() as usize;
                free &= free - 1;
                // Bits behind the last row are set; but who knows who has cleared them.
                if row < layout.rows && self.try_claim(row) {
                    if index != begin {
                        store.put(self.stripe_at + stripe::HINT, index as u64);
                    }
                    return Ok(row);
                }
            }
        }
        self.abandon();
        Err(NoneFree)
    }

    fn try_claim(&mut self, row: usize) -> bool {
        let store = self.store;
        // Whoever repairs the stripe must know which row to give back, so that stands there before.
        self.set_in_motion(row);
        step::reach();
        let state = &store.words[store.layout.row(row) + row::STATE];
        let claimed = State::claimed(self.stripe);
        match state.compare_exchange(State::FREE, claimed, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                store.set_bit(row);
                true
            }
            Err(other) => {
                // Its bit should be set, then. A repair may have cleared it a moment too late.
                if State(other).is_used() {
                    store.set_bit(row);
                    if state.load(Ordering::SeqCst) == State::FREE {
                        store.clear_bit(row);
                    }
                }
                false
            }
        }
    }
}

impl Store<'_> {
    /// Makes the row free, or its bit what the row is, after its taker's death.
    pub(super) fn settle_row(self, stripe: usize, row: usize) {
        let state_at = self.layout.row(row) + row::STATE;
        let state = self.get(state_at);
        if state == State::claimed(stripe) {
            self.publish(state_at, State::FREE);
            self.clear_bit(row);
        } else if state == State::FREE {
            self.clear_bit(row);
        } else if state as u32 == State::used(stripe, 0) as u32 {
            self.set_bit(row);
        }
    }

    pub(super) fn set_bit(self, row: usize) {
        let (at, bit) = self.layout.bit(row);
        step::reach();
        self.words[at].fetch_or(bit, Ordering::SeqCst);
    }

    pub(super) fn clear_bit(self, row: usize) {
        let (at, bit) = self.layout.bit(row);
        step::reach();
        self.words[at].fetch_and(!bit, Ordering::SeqCst);
    }

    /// Makes zeros an empty table.
    pub(crate) fn lay_out(self) {
        let (count, stripes) = (self.layout.bitmap_words(), self.layout.stripes);
        if !self.layout.rows.is_multiple_of(64) {
            let last = self.layout.bitmap(count - 1);
            self.put(last, u64::MAX << (self.layout.rows % 64));
        }
        // Each stripe begins to search elsewhere.
        for index in 0..stripes {
            self.put(self.layout.stripe(index) + stripe::HINT, (index * count / stripes) as u64);
        }
    }
}
