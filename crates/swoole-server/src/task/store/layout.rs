//! What stands where in an asker's row.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use swoole_ipc::words::Words;

/// Bytes of a payload, or of a result, that a slot has room for; what is longer goes into a file.
pub(crate) const CAN_BE_INLINE: usize = 8 * 1024;

/// Words of a cache line.
const LINE: usize = 8;

// The first words of a row: how often something was revived in it, by the manager; then the counts.
pub(super) const REVIVALS: usize = 0;
const COUNTERS: usize = LINE;

// The head of a slot's body: who has asked, as which process of its slot, which of its tasks it is, ...
pub(super) const ASKER: usize = 0;
/// Beside that process: it was somebody who is none of the server's.
pub(super) const FOREIGN: u64 = 1 << 32;
pub(super) const NUMBER: usize = 1;
/// ... how long the payload is, when it was asked, where it is queued, ...
pub(super) const PAYLOAD: usize = 2;
pub(super) const QUEUED_AT: usize = 3;
pub(super) const POSITION: usize = 4;
/// ... what came of it, when it was begun, and for whom. Behind it the payload, and the result by itself: whoever dies amid writing
/// it leaves the payload to the next one.
pub(super) const OUTCOME: usize = 5;
pub(super) const STARTED_AT: usize = 6;
/// 1 if nobody waits for its end.
pub(super) const ONE_WAY: usize = 7;
pub(super) const BODY: usize = LINE;
pub(super) const RESULT: usize = BODY + CAN_BE_INLINE / size_of::<u64>();
pub(super) const SLOT_WORDS: usize = RESULT + CAN_BE_INLINE / size_of::<u64>();

/// How many there are of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Processes that may ask.
    pub(crate) askers: u16,
    pub(crate) task_workers: u16,
    /// Tasks of one asker at one time, at most 65,536.
    pub(crate) slots: usize,
}

impl Shape {
    pub(crate) fn is_empty(&self) -> bool {
        self.task_workers == 0
    }

    /// Bytes of all rows.
    pub(crate) fn size(&self) -> usize {
        if self.is_empty() { 0 } else { Words::size(self.askers.into(), self.row_words()) }
    }

    /// That for anybody, and one for each task worker.
    pub(super) fn queues(&self) -> usize {
        usize::from(self.task_workers) + 1
    }

    /// Entries of a queue: tasks that were withdrawn keep theirs until their turn comes.
    pub(super) fn places(&self) -> usize {
        (2 * self.slots).next_power_of_two()
    }

    /// Where the next entry of each queue goes; and behind these, how many of its tasks went by post.
    pub(super) fn heads(&self) -> usize {
        COUNTERS
    }

    /// A queue's other name, for what went by post.
    pub(super) fn by_post(&self, queue: usize) -> usize {
        queue + self.queues()
    }

    pub(super) fn nexts(&self) -> usize {
        self.heads() + (2 * self.queues()).next_multiple_of(LINE)
    }

    /// Which task workers may have a letter that they have not opened; in the last row only.
    pub(super) fn letters(&self) -> usize {
        self.nexts() + self.queues().next_multiple_of(LINE)
    }

    pub(super) fn marks(&self) -> usize {
        self.letters() + usize::from(self.task_workers).next_multiple_of(LINE)
    }

    pub(super) fn mark_words(&self) -> usize {
        self.slots.div_ceil(64)
    }

    pub(super) fn states(&self) -> usize {
        self.marks() + self.mark_words().next_multiple_of(LINE)
    }

    fn entries(&self) -> usize {
        self.states() + self.slots.next_multiple_of(LINE)
    }

    pub(super) fn entry(&self, queue: usize, position: u64) -> usize {
        self.entries() + queue * self.places() + (position as usize & (self.places() - 1))
    }

    pub(super) fn bodies(&self) -> usize {
        self.entries() + self.queues() * self.places()
    }

    pub(super) fn row_words(&self) -> usize {
        self.bodies() + self.slots * SLOT_WORDS
    }
}

const QUEUE_SHIFT: u32 = 48;

pub(super) fn pack_position(queue: usize, position: u64) -> u64 {
    (queue as u64) << QUEUE_SHIFT | position & ((1 << QUEUE_SHIFT) - 1)
}

pub(super) fn unpack_position(word: u64) -> (usize, u64) {
    ((word >> QUEUE_SHIFT) as usize, word & ((1 << QUEUE_SHIFT) - 1))
}

/// Bytes into words that are only read after another word has said so.
pub(super) fn write(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, chunk) in words.iter().zip(whole) {
        word.store(u64::from_ne_bytes(*chunk), Relaxed);
    }
    if let (false, Some(word)) = (rest.is_empty(), words.get(whole.len())) {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        word.store(u64::from_ne_bytes(last), Relaxed);
    }
}

/// The first `len` bytes of words, in place of what `bytes` holds.
pub(super) fn read(words: &[AtomicU64], len: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.resize(len.next_multiple_of(8), 0);
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.load(Relaxed).to_ne_bytes();
    }
    bytes.truncate(len);
}
