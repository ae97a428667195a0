//! What stands where in a table's memory, in words of 8 bytes.
//!
//! ```text
//! header    1 line: what this is (only read once the table is made)
//! stripes   a lock, a journal, and what goes with them: one for many buckets
//! bitmap    1 bit per row: taken, or not
//! blocks    a bucket, 1 line: version, overflow chain, 6 entries;
//!           and 4 rows: state, next in chain, key, columns
//! ```
//!
//! A bucket has 4 rows on average, and any row may be in any bucket; but as long as those of its own block are free, it takes
//! them. So most lookups touch lines that lie side by side in one page. That an entry has 31 bits of the key's hash beside the
//! row's number keeps a lookup away from other rows.

/// Words of a cache line.
pub(crate) const LINE: usize = 8;
/// Rows for each bucket, on average. Of 4, which are Poisson's, one in twenty overflows the 6 entries.
const ROWS_PER_BUCKET: usize = 4;
/// So many stripes suffice for every number of processes that a machine has cores for.
const STRIPES_MAX: usize = 1024;

/// Rows that a table can have at most.
pub const ROWS_MAX: usize = 1 << 31;
/// Bytes that the longest key of any table can have.
pub const KEY_MAX: usize = 255;
/// Words that an insert or a removal changes at most; an update changes at most all columns.
const JOURNAL_MIN: usize = 4;
/// Words of a row's columns: 64 KiB.
const VALUE_WORDS_MAX: usize = 1 << 13;

/// Words of the header.
pub(crate) mod header {
    /// Which version of which kind of table.
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const ROWS: usize = 1;
    pub(crate) const KEY_MAX: usize = 2;
    /// A hash of the columns' names and sizes.
    pub(crate) const SCHEMA: usize = 3;
    pub(crate) const SEED: usize = 4;
    /// The hash of nothing, by which two builds find out that they hash alike.
    pub(crate) const PROBE: usize = 5;
}

/// Words of a stripe.
pub(crate) mod stripe {
    /// Who holds it.
    pub(crate) const LOCK: usize = 0;
    /// How many entries of the journal are to be carried out; 0: none are.
    pub(crate) const STATE: usize = 1;
    /// The bucket, by its first word, to which the journal belongs.
    pub(crate) const BUCKET: usize = 2;
    /// The row that is being taken or given back, plus 1; 0: none is.
    pub(crate) const MOTION: usize = 3;
    /// Rows in the stripe's buckets.
    pub(crate) const COUNT: usize = 4;
    /// The word of the bitmap where the search for a free row begins.
    pub(crate) const HINT: usize = 5;
    /// Entries: a word's place, and what is to stand there.
    pub(crate) const JOURNAL: usize = super::LINE;
}

/// Words of a bucket.
pub(crate) mod bucket {
    /// Odd while somebody writes.
    pub(crate) const VERSION: usize = 0;
    /// The entry of the first row that has found no place in the bucket.
    pub(crate) const CHAIN: usize = 1;
    pub(crate) const ENTRIES: std::ops::Range<usize> = 2..super::LINE;
}

/// Words of a row.
pub(crate) mod row {
    /// See [`State`](super::super::store::State).
    pub(crate) const STATE: usize = 0;
    /// The entry of the next row in the chain.
    pub(crate) const NEXT: usize = 1;
    pub(crate) const KEY: usize = 2;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) rows: usize,
    pub(crate) key_max: usize,
    pub(crate) value_words: usize,
    pub(crate) buckets: usize,
    /// A power of two.
    pub(crate) stripes: usize,
    stripe_words: usize,
    row_words: usize,
    block_words: usize,
    bitmap_at: usize,
    blocks_at: usize,
    /// All of it.
    pub(crate) words: usize,
}

impl Layout {
    /// `None` if no table can be like that.
    pub(crate) fn new(rows: usize, key_max: usize, value_words: usize) -> Option<Layout> {
        let possible = (1..=ROWS_MAX).contains(&rows)
            && (1..=KEY_MAX).contains(&key_max)
            && (1..=VALUE_WORDS_MAX).contains(&value_words);
        if !possible {
            return None;
        }
        let buckets = rows.div_ceil(ROWS_PER_BUCKET);
        let stripes = buckets.div_ceil(ROWS_PER_BUCKET).next_power_of_two().min(STRIPES_MAX);
        let stripe_words = (LINE + 2 * value_words.max(JOURNAL_MIN)).next_multiple_of(LINE);
        let row_words = row::KEY + key_max.div_ceil(8) + value_words;
        let block_words = (LINE + ROWS_PER_BUCKET * row_words).next_multiple_of(LINE);
        let bitmap_at = LINE + stripes * stripe_words;
        let blocks_at = (bitmap_at + rows.div_ceil(64)).next_multiple_of(LINE);
        let words = blocks_at + buckets * block_words;
        let layout = Layout {
            rows,
            key_max,
            value_words,
            buckets,
            stripes,
            stripe_words,
            row_words,
            block_words,
            bitmap_at,
            blocks_at,
            words,
        };
        Some(layout)
    }

    /// The number of the bucket of keys with this hash.
    #[inline]
    pub(crate) fn bucket_of(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets as u128) >> 64) as usize
    }

    /// The first word of bucket number `index`.
    #[inline]
    pub(crate) fn bucket(&self, index: usize) -> usize {
        self.blocks_at + index * self.block_words
    }

    /// Whether a bucket begins at this word.
    pub(crate) fn is_bucket(&self, at: usize) -> bool {
        (self.blocks_at..self.words).contains(&at) && (at - self.blocks_at).is_multiple_of(self.block_words)
    }

    /// The number of the stripe that the bucket belongs to.
    #[inline]
    pub(crate) fn stripe_of(&self, bucket: usize) -> usize {
        bucket & (self.stripes - 1)
    }

    /// The number of the bucket that begins at this word.
    pub(crate) fn bucket_at(&self, at: usize) -> usize {
        (at - self.blocks_at) / self.block_words
    }

    /// The rows beside bucket number `bucket`.
    pub(crate) fn rows_beside(&self, bucket: usize) -> std::ops::Range<usize> {
        let first = bucket * ROWS_PER_BUCKET;
        first..(first + ROWS_PER_BUCKET).min(self.rows)
    }

    /// The first word of stripe number `index`.
    #[inline]
    pub(crate) fn stripe(&self, index: usize) -> usize {
        LINE + index * self.stripe_words
    }

    /// How many entries the journal holds.
    pub(crate) fn journal_max(&self) -> usize {
        self.value_words.max(JOURNAL_MIN)
    }

    /// The first word of row number `index`.
    #[inline]
    pub(crate) fn row(&self, index: usize) -> usize {
        self.bucket(index / ROWS_PER_BUCKET) + LINE + index % ROWS_PER_BUCKET * self.row_words
    }

    /// The first word of the columns of row number `index`.
    #[inline]
    pub(crate) fn value(&self, index: usize) -> usize {
        self.row(index) + self.row_words - self.value_words
    }

    /// Whether a journal may write to this word: those of blocks, and the stripes' counts.
    pub(crate) fn is_writable(&self, at: usize) -> bool {
        match at.checked_sub(LINE) {
            Some(inside) if at < self.bitmap_at => inside % self.stripe_words == stripe::COUNT,
            Some(_) => (self.blocks_at..self.words).contains(&at),
            None => false,
        }
    }

    /// The word of the bitmap for the row of this number, and its bit there.
    #[inline]
    pub(crate) fn bit(&self, row: usize) -> (usize, u64) {
        (self.bitmap_at + row / 64, 1 << (row % 64))
    }

    /// Words of the bitmap.
    pub(crate) fn bitmap_words(&self) -> usize {
        self.rows.div_ceil(64)
    }

    /// Word `index` of the bitmap.
    pub(crate) fn bitmap(&self, index: usize) -> usize {
        self.bitmap_at + index
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_end_where_the_memory_does() {
        for (rows, key_max, value_words) in [(1, 1, 1), (64, 63, 1), (1000, 8, 300), (1_000_000, 16, 6)] {
            let layout = Layout::new(rows, key_max, value_words).unwrap();
            let journal_end = layout.stripe(layout.stripes - 1) + stripe::JOURNAL + 2 * layout.journal_max();
            assert!(journal_end <= layout.bitmap_at && layout.bit(rows - 1).0 < layout.blocks_at);
            assert_eq!(layout.bucket(layout.buckets), layout.words);
            assert!((1..rows).all(|row| layout.value(row - 1) + value_words <= layout.row(row)));
            assert!(layout.value(rows - 1) + value_words <= layout.words);
            assert!(layout.row(0) + row::KEY + key_max.div_ceil(8) == layout.value(0));
            assert_eq!(layout.rows_beside(layout.buckets - 1).end, rows);
            for hash in [0, u64::MAX / 2, u64::MAX] {
                let bucket = layout.bucket_of(hash);
                let at = layout.bucket(bucket);
                assert!(layout.is_bucket(at) && layout.bucket_at(at) == bucket && bucket < layout.buckets);
                assert!(layout.row(layout.rows_beside(bucket).start) == at + LINE);
                assert!(!layout.is_bucket(at + 1) && layout.stripe_of(bucket) < layout.stripes);
            }
            let writable = |at| layout.is_writable(at);
            assert!(!writable(0) && !writable(layout.stripe(0) + stripe::LOCK) && !writable(layout.words));
            assert!(
                writable(layout.stripe(layout.stripes - 1) + stripe::COUNT) && writable(layout.words - 1)
            );
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (rows, key_max, words) in
            [(0, 8, 1), (ROWS_MAX + 1, 8, 1), (1, 0, 1), (1, KEY_MAX + 1, 1), (1, 8, 0)]
        {
            assert_eq!(Layout::new(rows, key_max, words), None);
        }
    }
}
