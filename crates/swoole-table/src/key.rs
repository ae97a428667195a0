//! A key on its way into the table: hashed, and cut into words.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use crate::layout::Layout;
use crate::sync::{AtomicU64, Ordering};

/// How a table hashes: by a random seed of its own, so that nobody who chooses keys can make them all meet in one bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashing {
    seed: u64,
}

impl Hashing {
    pub(crate) fn new(seed: u64) -> Hashing {
        Hashing { seed }
    }

    #[inline]
    pub(crate) fn hash(self, bytes: &[u8]) -> u64 {
        let state = SeedableRandomState::with_seed(self.seed, SharedSeed::global_fixed());
        let mut hasher = state.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    hash: u64,
    bytes: &'a [u8],
    /// The bytes behind the last whole word.
    tail: u64,
}

impl<'a> Key<'a> {
    /// `None` if it is longer than `key_max`.
    #[inline]
    pub(crate) fn new(bytes: &'a [u8], key_max: usize, hashing: Hashing) -> Option<Key<'a>> {
        if bytes.len() > key_max {
            return None;
        }
        let rest = bytes.len() % 8;
        let tail = match bytes.last_chunk::<8>() {
            _ if rest == 0 => 0,
            Some(last) => u64::from_le_bytes(*last) >> (64 - 8 * rest),
            None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        Some(Key { hash: hashing.hash(bytes), bytes, tail })
    }

    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Length, bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Its bytes, eight a word, the last filled up with zeros.
    #[inline]
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let (whole, rest) = self.bytes.as_chunks::<8>();
        let tail = (!rest.is_empty()).then_some(self.tail);
        whole.iter().map(|word| u64::from_le_bytes(*word)).chain(tail)
    }

    /// 0 if these words, at least as many as it has, begin with its own.
    #[inline(always)]
    pub(crate) fn differs(&self, words: &[AtomicU64]) -> u64 {
        let (whole, rest) = self.bytes.as_chunks::<8>();
        let mut differs = 0;
        for (word, other) in whole.iter().zip(words) {
            differs |= u64::from_le_bytes(*word) ^ other.load(Ordering::Relaxed);
        }
        if !rest.is_empty() {
            differs |= self.tail ^ words[whole.len()].load(Ordering::Relaxed);
        }
        differs
    }

    /// The number of its bucket.
    #[inline]
    pub(crate) fn bucket(&self, layout: &Layout) -> usize {
        layout.bucket_of(self.hash)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn keys_become_words_and_back() {
        let hashing = Hashing::new(1);
        for len in 0..=17 {
            let bytes: Vec<u8> = (1..=len).collect();
            let key = Key::new(&bytes, 17, hashing).unwrap();
            let words: Vec<u8> = key.words().flat_map(u64::to_le_bytes).collect();
            assert_eq!((words.len(), key.len()), (bytes.len().next_multiple_of(8), bytes.len()));
            assert!(words.starts_with(&bytes) && words[bytes.len()..].iter().all(|&byte| byte == 0));
        }
        assert!(Key::new(&[0; 18], 17, hashing).is_none());
        assert_ne!(hashing.hash(b"a"), Hashing::new(2).hash(b"a"), "the seed decides");
    }
}
