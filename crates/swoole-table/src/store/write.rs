//! Changing rows.

use std::cell::Cell;

use super::{BadRow, Entry, Found, NoneFree, State, Store};
use crate::key::Key;
use crate::layout::{bucket, row, stripe};
use crate::lock::{self, Lock, Taken};
use crate::sync::{Ordering, fence};

thread_local! {
    /// Whether the program's closure is running that changes a row.
    static UPDATING: Cell<bool> = const { Cell::new(false) };
}

/// A change was begun from within another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nested;

/// Why rows could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    BadRow(BadRow),
    Nested,
}

impl From<BadRow> for Trouble {
    fn from(bad: BadRow) -> Trouble {
        Trouble::BadRow(bad)
    }
}

/// The right to change one bucket. Dropped before [`commit`](Change::commit), nothing has changed.
pub(crate) struct Change<'a> {
    pub(super) store: Store<'a>,
    pub(super) stripe: usize,
    pub(super) stripe_at: usize,
    pub(super) bucket: usize,
    bucket_at: usize,
    me: u64,
    /// Words that are to change so far.
    noted: usize,
    /// The last of them; the others stand in the journal.
    last: (usize, u64),
    /// The row that is being taken or given back.
    in_motion: Option<usize>,
}

impl<'a> Store<'a> {
    /// Waits for the bucket's lock. Repairs what a dead holder has left.
    #[inline]
    pub(crate) fn change(self, bucket: usize) -> Result<Change<'a>, Nested> {
        if UPDATING.get() {
            return Err(Nested);
        }
        let (stripe, bucket_at) = (self.layout.stripe_of(bucket), self.layout.bucket(bucket));
        let (stripe_at, me) = (self.layout.stripe(stripe), lock::me());
        if self.lock(stripe_at).take(me) == Taken::FromDead {
            self.repair(stripe);
        }
        // The lock is ours and the journal empty, so it is odd only if somebody has died amid a change of one word.
        let version = self.get(bucket_at + bucket::VERSION);
        if !version.is_multiple_of(2) {
            self.publish(bucket_at + bucket::VERSION, version.wrapping_add(1));
        }
        Ok(Change {
            store: self,
            stripe,
            stripe_at,
            bucket,
            bucket_at,
            me,
            noted: 0,
            last: (0, 0),
            in_motion: None,
        })
    }

    /// Repairs each stripe that a dead process holds; how many those were. Waits for nobody.
    pub(crate) fn repair_all(self) -> usize {
        let me = lock::me();
        let repair = |&stripe: &usize| {
            let lock = self.lock(self.layout.stripe(stripe));
            let dead = lock.take_from_dead(me);
            if dead {
                self.repair(stripe);
                lock.give_back(me);
            }
            dead
        };
        (0..self.layout.stripes).filter(repair).count()
    }

    fn lock(self, stripe_at: usize) -> Lock<'a> {
        Lock(&self.words[stripe_at + stripe::LOCK])
    }

    /// Ends what the stripe's last holder had begun. Can itself be cut off anywhere, and begun again.
    #[cold]
    fn repair(self, stripe: usize) {
        let at = self.layout.stripe(stripe);
        let (count, bucket_at) = (self.get(at + stripe::STATE), self.get(at + stripe::BUCKET) as usize);
        let is_ours = self.layout.is_bucket(bucket_at)
            && self.layout.stripe_of(self.layout.bucket_at(bucket_at)) == stripe;
        if (1..=self.layout.journal_max() as u64).contains(&count) && is_ours {
            self.carry_out(at, bucket_at, count as usize);
        }
        let row = self.get(at + stripe::MOTION).wrapping_sub(1);
        if row < self.layout.rows as u64 {
            self.settle_row(stripe, row as usize);
        }
        self.publish(at + stripe::STATE, 0);
        self.publish(at + stripe::MOTION, 0);
    }

    /// Does what the journal says. Doing it again changes nothing.
    fn carry_out(self, stripe_at: usize, bucket_at: usize, count: usize) {
        let version = self.get(bucket_at + bucket::VERSION) | 1;
        self.put(bucket_at + bucket::VERSION, version);
        // Neither the version nor the journal's state may come after what follows.
        fence(Ordering::Release);
        let journal = stripe_at + stripe::JOURNAL;
        for entry_at in (journal..).step_by(2).take(count) {
            let (at, word) = (self.get(entry_at) as usize, self.get(entry_at + 1));
            // What stands in a journal, anybody may have written.
            if self.layout.is_writable(at) {
                self.put(at, word);
            }
        }
        self.publish(bucket_at + bucket::VERSION, version.wrapping_add(1));
    }
}

impl<'a> Change<'a> {
    #[inline(always)]
    pub(crate) fn find(&self, key: Key<'_>) -> Result<Option<Found>, BadRow> {
        self.store.find(key)
    }

    /// Word `at` of the row's columns is to be `word`.
    #[inline]
    pub(crate) fn set(&mut self, row: usize, at: usize, word: u64) {
        if at < self.store.layout.value_words {
            self.note(self.store.layout.value(row) + at, word);
        }
    }

    /// A new row for `key`, which has none; its columns are to be what `fill` puts, and 0 where it puts nothing.
    pub(crate) fn insert(
        &mut self,
        key: &Key<'_>,
        fill: impl FnOnce(&mut dyn FnMut(usize, u64)),
    ) -> Result<(), NoneFree> {
        let row = self.claim()?;
        let (store, layout) = (self.store, self.store.layout);
        let at = layout.row(row);
        // The row is nobody else's, so it can be written as it is; only what makes it part of the bucket is journaled.
        for (at, word) in (at + row::KEY..).zip(key.words()) {
            store.put(at, word);
        }
        let value = layout.value(row);
        for at in value..value + layout.value_words {
            store.put(at, 0);
        }
        fill(&mut |word, bits| {
            if word < layout.value_words {
                store.put(value + word, bits);
            }
        });
        let entry = Entry::new(key.hash(), row);
        let empty = |&at: &usize| store.get(at) == Entry::NONE;
        let entry_at = match bucket::ENTRIES.map(|word| self.bucket_at + word).find(empty) {
            Some(entry_at) => entry_at,
            None => {
                let chain_at = self.bucket_at + bucket::CHAIN;
                store.put(at + row::NEXT, store.get(chain_at));
                chain_at
            }
        };
        self.note(entry_at, entry.0);
        self.note(at + row::STATE, State::used(self.stripe, key.len()));
        self.count(1);
        Ok(())
    }

    /// The row is to be none any more.
    pub(crate) fn remove(&mut self, found: Found) {
        let (store, layout) = (self.store, self.store.layout);
        let next_of = |row: usize| store.get(layout.row(row) + row::NEXT);
        let chain_at = self.bucket_at + bucket::CHAIN;
        let in_bucket = bucket::ENTRIES.contains(&found.entry_at.wrapping_sub(self.bucket_at));
        let first = Entry(store.get(chain_at));
        self.set_in_motion(found.row);
        match first.row(layout) {
            _ if !in_bucket => self.note(found.entry_at, next_of(found.row)),
            // The chain's first row gets the place.
            Ok(row) if !first.is_none() => {
                self.note(found.entry_at, first.0);
                self.note(chain_at, next_of(row));
            }
            _ => self.note(found.entry_at, Entry::NONE),
        }
        self.note(layout.row(found.row) + row::STATE, State::FREE);
        self.count(-1);
    }

    fn count(&mut self, change: i64) {
        let at = self.stripe_at + stripe::COUNT;
        self.note(at, self.store.get(at).wrapping_add_signed(change));
    }

    pub(super) fn set_in_motion(&mut self, row: usize) {
        self.in_motion = Some(row);
        self.store.publish(self.stripe_at + stripe::MOTION, row as u64 + 1);
    }

    /// No row is being moved any more.
    pub(super) fn abandon(&mut self) {
        if self.in_motion.take().is_some() {
            self.store.publish(self.stripe_at + stripe::MOTION, 0);
        }
    }

    /// This word is to change, unless it is like that already.
    #[inline]
    fn note(&mut self, at: usize, word: u64) {
        if self.store.get(at) == word {
            return;
        }
        if self.noted > 0 {
            self.write_down();
        }
        self.noted += 1;
        self.last = (at, word);
    }

    fn write_down(&self) {
        let entry_at = self.stripe_at + stripe::JOURNAL + 2 * (self.noted - 1);
        self.store.put(entry_at, self.last.0 as u64);
        self.store.put(entry_at + 1, self.last.1);
    }

    /// Makes everything happen that was asked for, at once.
    #[inline]
    pub(crate) fn commit(mut self) {
        match (self.noted, self.in_motion) {
            (0, _) => {}
            (1, None) => self.commit_word(),
            _ => self.commit_journal(),
        }
    }

    #[inline]
    fn commit_word(&mut self) {
        let (store, version_at) = (self.store, self.bucket_at + bucket::VERSION);
        let version = store.get(version_at);
        store.put(version_at, version | 1);
        fence(Ordering::Release);
        store.put(self.last.0, self.last.1);
        store.publish(version_at, (version | 1).wrapping_add(1));
    }

    fn commit_journal(&mut self) {
        let (store, at) = (self.store, self.stripe_at);
        self.write_down();
        store.put(at + stripe::BUCKET, self.bucket_at as u64);
        // Readers stop before it has happened: nobody may see the old row after a death that has left a new one.
        store.put(self.bucket_at + bucket::VERSION, store.get(self.bucket_at + bucket::VERSION) | 1);
        fence(Ordering::Release);
        // From here on it has happened.
        store.publish(at + stripe::STATE, self.noted as u64);
        store.carry_out(at, self.bucket_at, self.noted);
        if let Some(row) = self.in_motion
            && store.get(store.layout.row(row) + row::STATE) == State::FREE
        {
            store.clear_bit(row);
        }
        store.publish(at + stripe::STATE, 0);
        self.abandon();
    }

    /// Runs the program's own code, which must not change rows meanwhile: it could wait for itself. `None` if it has forked,
    /// and this is the child, to which the lock does not belong.
    pub(crate) fn run<T>(&self, program: impl FnOnce() -> T) -> Option<T> {
        struct Updating;
        impl Drop for Updating {
            fn drop(&mut self) {
                UPDATING.set(false);
            }
        }
        UPDATING.set(true);
        let updating = Updating;
        let value = program();
        drop(updating);
        (lock::me() == self.me).then_some(value)
    }
}

impl Drop for Change<'_> {
    #[inline]
    fn drop(&mut self) {
        // Of a child that was forked meanwhile, this is only a copy.
        if lock::me() != self.me {
            return;
        }
        if self.in_motion.is_some() {
            // Given up between taking a row and committing.
            self.store.repair(self.stripe);
        }
        self.store.lock(self.stripe_at).give_back(self.me);
    }
}
