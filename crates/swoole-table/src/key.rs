//! A key on its way into the table: hashed, and cut into words.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use crate::layout::{KEY_MAX, Layout};

const WORDS_MAX: usize = KEY_MAX.div_ceil(8);

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

#[derive(Debug)]
pub(crate) struct Key {
    hash: u64,
    len: usize,
    words: [u64; WORDS_MAX],
}

impl Key {
    /// `None` if it is longer than `key_max`.
    #[inline]
    pub(crate) fn new(bytes: &[u8], key_max: usize, hashing: Hashing) -> Option<Key> {
        if bytes.len() > key_max.min(KEY_MAX) {
            return None;
        }
        let mut words = [0; WORDS_MAX];
        let (whole, rest) = bytes.as_chunks::<8>();
        for (word, bytes) in words.iter_mut().zip(whole) {
            *word = u64::from_le_bytes(*bytes);
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            words[whole.len()] = u64::from_le_bytes(last);
        }
        Some(Key { hash: hashing.hash(bytes), len: bytes.len(), words })
    }

    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Length, bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its bytes, eight a word, the last filled up with zeros.
    #[inline]
    pub(crate) fn words(&self) -> &[u64] {
        &self.words[..self.len.div_ceil(8)]
    }

    #[inline]
    pub(crate) fn bucket_at(&self, layout: &Layout) -> usize {
        layout.bucket_of(self.hash)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn keys_become_words_and_back() {
        let hashing = Hashing::new(1);
        let key = |bytes: &[u8]| Key::new(bytes, 9, hashing);
        assert_eq!(key(b"").unwrap().words(), &[0; 0]);
        assert_eq!(key(b"a").unwrap().words(), [u64::from(b'a')]);
        let nine = key(b"123456789").unwrap();
        assert_eq!(nine.words(), [u64::from_le_bytes(*b"12345678"), u64::from(b'9')]);
        assert!(key(b"1234567890").is_none());
        assert!(Key::new(&[1; KEY_MAX], 1000, hashing).is_some());
        assert!(Key::new(&[1; KEY_MAX + 1], 1000, hashing).is_none());
        assert_ne!(hashing.hash(b"a"), Hashing::new(2).hash(b"a"), "the seed decides");
    }
}
