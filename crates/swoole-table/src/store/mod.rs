//! The table as words: finding rows, reading them, changing them so that a death at any point costs nothing.
//!
//! # Writers
//!
//! hold the lock of the bucket's stripe. A change of one word of a row is that one store. Every other change is first
//! written into the stripe's journal, as words and what is to stand there; readers are stopped by the bucket's version; then
//! the journal's state is set, **which is the moment at which the change has happened**; then it is carried out. Whoever takes the lock from a dead process carries
//! out again what the journal says, which harms nothing however far it had come, or drops what was not complete.
//!
//! # Readers
//!
//! take no lock: a bucket has a version, which is odd while its rows are being written and another one afterwards. A reader
//! for whom it was even and the same before and after has seen all words as they were at one moment. If it stays odd, the
//! writer may be dead: then the reader takes the lock, for once, and so finds out.
//!
//! # Rows
//!
//! are taken by a compare-and-swap of their state, from a bitmap that says where free ones are. The row in question stands
//! in the stripe before, so that it can be given back if its new owner dies.

mod read;
mod rows;
mod write;

pub(crate) use write::{Change, Nested, Trouble};

use crate::key::Key;
use crate::layout::{LINE, Layout, bucket, row};
use crate::step;
use crate::sync::{AtomicU64, Ordering};

/// The words of a table, and what stands where.
#[derive(Clone, Copy)]
pub(crate) struct Store<'a> {
    words: &'a [AtomicU64],
    layout: &'a Layout,
}

/// A row's number that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRow(pub(crate) u64);

/// No row is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoneFree;

/// Where a row is, and the word that holds the entry which leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) row: usize,
    entry_at: usize,
}

/// What becomes of a row. Free is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(u64);

impl State {
    const FREE: u64 = 0;
    const USED: u64 = 1 << 31;

    /// Taken for a bucket of the stripe, but no part of it yet.
    fn claimed(stripe: usize) -> u64 {
        stripe as u64 + 1
    }

    /// A row with a key of this length.
    fn used(stripe: usize, key_len: usize) -> u64 {
        (key_len as u64) << 32 | State::USED | State::claimed(stripe)
    }

    fn is_used(self) -> bool {
        self.0 & State::USED != 0
    }

    /// The key's length, bytes.
    fn key_len(self) -> usize {
        (self.0 >> 32) as usize
    }
}

/// What leads to a row: 31 bits of its key's hash and one that is set, and its number plus 1. Nothing is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const NONE: u64 = 0;

    fn new(hash: u64, row: usize) -> Entry {
        Entry((hash | 1) << 32 | (row as u64 + 1))
    }

    fn is_none(self) -> bool {
        self.0 == Entry::NONE
    }

    /// Whether the row may be that of a key with this hash.
    fn may_be(self, hash: u64) -> bool {
        (self.0 >> 32) as u32 == hash as u32 | 1
    }

    fn row(self, layout: &Layout) -> Result<usize, BadRow> {
        let row = (self.0 & u64::from(u32::MAX)).wrapping_sub(1);
        if row < layout.rows as u64 { Ok(row as usize) } else { Err(BadRow(row)) }
    }
}

impl<'a> Store<'a> {
    /// `words` must be as many as the layout says, or accesses panic.
    pub(crate) fn new(words: &'a [AtomicU64], layout: &'a Layout) -> Store<'a> {
        Store { words, layout }
    }

    #[inline]
    fn get(self, at: usize) -> u64 {
        self.words[at].load(Ordering::Relaxed)
    }

    #[inline]
    fn put(self, at: usize, word: u64) {
        step::reach();
        self.words[at].store(word, Ordering::Relaxed);
    }

    /// As [`put`](Store::put); whoever sees it sees all that was put before.
    #[inline]
    fn publish(self, at: usize, word: u64) {
        step::reach();
        self.words[at].store(word, Ordering::Release);
    }

    /// The row of this key in its bucket. The key comes by value: what is pointed to has to be in memory.
    #[inline(always)]
    pub(crate) fn find(self, key: Key<'_>) -> Result<Option<Found>, BadRow> {
        let bucket_at = self.layout.bucket(key.bucket(self.layout));
        let line = self.line(bucket_at);
        // Which of the entries it is, nobody can predict; so there is no branch for each of them: the processor goes on to
        // what follows, maybe to the next lookup, before it has their line. The fewer instructions there are, the more
        // lookups it has under way at a time: fetches from memory are nearly all of their cost.
        let mut likely = bucket::ENTRIES.fold(0_u32, |likely, word| {
            likely | u32::from(Entry(line[word].load(Ordering::Relaxed)).may_be(key.hash())) << word
        });
        while likely != 0 {
            let word = likely.trailing_zeros() as usize % LINE;
            let row = Entry(line[word].load(Ordering::Relaxed)).row(self.layout)?;
            if self.has_key(row, &key) {
                return Ok(Some(Found { row, entry_at: bucket_at + word }));
            }
            likely &= likely - 1;
        }
        if line[bucket::CHAIN].load(Ordering::Relaxed) == Entry::NONE {
            return Ok(None);
        }
        self.find_behind(bucket_at, key)
    }

    #[cold]
    fn find_behind(self, bucket_at: usize, key: Key<'_>) -> Result<Option<Found>, BadRow> {
        self.find_in_chain(bucket_at, |entry, row| entry.may_be(key.hash()) && self.has_key(row, &key))
    }

    /// The first row of the bucket's chain that is the one. No chain is longer than the table, whoever has written it, and
    /// none goes on that is being changed.
    fn find_in_chain(
        self,
        bucket_at: usize,
        mut is_it: impl FnMut(Entry, usize) -> bool,
    ) -> Result<Option<Found>, BadRow> {
        let version = self.get(bucket_at + bucket::VERSION);
        let mut entry_at = bucket_at + bucket::CHAIN;
        for _ in 0..self.layout.rows {
            let entry = Entry(self.get(entry_at));
            if entry.is_none() || self.get(bucket_at + bucket::VERSION) != version {
                return Ok(None);
            }
            let row = entry.row(self.layout)?;
            if is_it(entry, row) {
                return Ok(Some(Found { row, entry_at }));
            }
            entry_at = self.layout.row(row) + row::NEXT;
        }
        Ok(None)
    }

    /// The cache line that begins at this word, checked once for all of its words.
    #[inline]
    fn line(self, at: usize) -> &'a [AtomicU64; LINE] {
        let words = &self.words[at..at + LINE];
        words.first_chunk().unwrap_or_else(|| unreachable!("it has so many words"))
    }

    #[inline(always)]
    fn has_key(self, row: usize, key: &Key<'_>) -> bool {
        let at = self.layout.row(row);
        let words = &self.words[at..at + row::KEY + key.len().div_ceil(8)];
        let length = State(words[row::STATE].load(Ordering::Relaxed)).key_len() ^ key.len();
        // One branch for all of them.
        length as u64 | key.differs(&words[row::KEY..]) == 0
    }

    /// Rows that are taken. While others write, one of the numbers that it was in the meantime, or close to it.
    pub(crate) fn len(self) -> usize {
        let count = |stripe| self.get(self.layout.stripe(stripe) + crate::layout::stripe::COUNT) as usize;
        (0..self.layout.stripes).map(count).fold(0, usize::wrapping_add).min(self.layout.rows)
    }
}

#[cfg(all(test, not(loom)))]
impl Store<'_> {
    /// Whether the key's row is in a chain, and whether its bucket has one.
    pub(crate) fn place(self, key: &Key<'_>) -> (bool, bool) {
        let bucket_at = self.layout.bucket(key.bucket(self.layout));
        let found = self.find(*key).expect("an honest table").expect("a row");
        let in_bucket = bucket::ENTRIES.contains(&found.entry_at.wrapping_sub(bucket_at));
        (!in_bucket, self.get(bucket_at + bucket::CHAIN) != Entry::NONE)
    }
}
