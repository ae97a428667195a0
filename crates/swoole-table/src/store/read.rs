//! Reading without a lock.

use super::write::{Nested, Trouble};
use super::{BadRow, Entry, State, Store};
use crate::layout::{bucket, row};
use crate::sync::{AtomicU64, Ordering, fence};

/// How often a reader tries. A write takes tens of nanoseconds, so this is only ever used up when a writer has died or does
/// not run, or when so many write that a place in their queue is better.
const ATTEMPTS: usize = if cfg!(loom) { 1 } else { 128 };

/// A look at a bucket, which has begun.
pub(crate) struct Look<'a> {
    version: &'a AtomicU64,
    before: u64,
}

impl Look<'_> {
    /// Whether all that was read of the bucket since stood there at one moment.
    #[inline]
    pub(crate) fn is_true(&self) -> bool {
        // No read from above moves below it, nor the load below above it.
        fence(Ordering::Acquire);
        self.version.load(Ordering::Relaxed) == self.before
    }
}

impl<'a> Store<'a> {
    /// Begins to look at a bucket; `None` while somebody writes to it.
    #[inline]
    pub(crate) fn look(self, bucket: usize) -> Option<Look<'a>> {
        let version = &self.words[self.layout.bucket(bucket) + bucket::VERSION];
        let before = version.load(Ordering::Acquire);
        before.is_multiple_of(2).then_some(Look { version, before })
    }

    /// What `read` makes of a bucket's rows as they stand at one moment. It may be called several times, and then with rows
    /// that are half written: only what it has made at the end is used.
    pub(crate) fn read<T>(
        self,
        bucket: usize,
        mut read: impl FnMut() -> Result<T, BadRow>,
    ) -> Result<T, Trouble> {
        for _ in 0..ATTEMPTS {
            if let Some(look) = self.look(bucket) {
                let value = read();
                if look.is_true() {
                    return Ok(value?);
                }
            }
            std::hint::spin_loop();
        }
        self.read_locked(bucket, read)
    }

    #[cold]
    fn read_locked<T>(
        self,
        bucket: usize,
        mut read: impl FnMut() -> Result<T, BadRow>,
    ) -> Result<T, Trouble> {
        // Repairs what a dead writer has left, as each change does before it begins.
        let change = self.change(bucket).map_err(|Nested| Trouble::Nested)?;
        let value = read();
        drop(change);
        Ok(value?)
    }

    /// The words of a row's columns.
    #[inline]
    pub(crate) fn value(self, row: usize) -> &'a [AtomicU64] {
        let at = self.layout.value(row);
        &self.words[at..at + self.layout.value_words]
    }

    /// Calls `each` with every row of the bucket.
    pub(crate) fn rows(self, bucket: usize, mut each: impl FnMut(usize)) -> Result<(), BadRow> {
        let bucket_at = self.layout.bucket(bucket);
        for entry_at in bucket::ENTRIES.map(|word| bucket_at + word) {
            let entry = Entry(self.get(entry_at));
            if !entry.is_none() {
                each(entry.row(self.layout)?);
            }
        }
        self.find_in_chain(bucket_at, |_, row| {
            each(row);
            false
        })?;
        Ok(())
    }

    /// The key of a row.
    pub(crate) fn key(self, row: usize) -> Vec<u8> {
        let at = self.layout.row(row);
        // Whoever has written the length, the words of a key are not more than these.
        let len = State(self.get(at + row::STATE)).key_len().min(self.layout.key_max);
        let words = (at + row::KEY..).take(len.div_ceil(8));
        let mut key: Vec<u8> = words.flat_map(|at| self.get(at).to_le_bytes()).collect();
        key.truncate(len);
        key
    }
}
