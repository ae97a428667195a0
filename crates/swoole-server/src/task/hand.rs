//! What a task worker has in hand, where the next server is to say that it was lost.
//!
//! With a `message_queue_key` and `task_retries = 0`, a task that somebody has begun when every process is killed is lost, and
//! nobody is left to tell. So each task worker keeps that in a file in `task_tmpdir`, mapped, which costs a few stores for a
//! task. A server in order removes them when it ends; what one that was killed has left, the next one reads.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, Release};

use swoole_ipc::Memory;
use swoole_ipc::words::Words;

use super::{TaskId, spill};

// What stands in the file, 64 bits each. Nobody believes more of it than that it may be told.
const STATE: usize = 0;
const ASKER: usize = 1;
const GENERATION: usize = 2;
const NUMBER: usize = 3;
const SIZE: usize = 4;
const WORDS: usize = 5;

// States.
const NOTHING: u64 = 0;
/// The kernel was asked for a task, and may have given it.
const RECEIVES: u64 = 1;
const WORKS: u64 = 2;

/// A task worker's note of what it is at; none where nobody would read it.
#[derive(Clone, Debug, Default)]
pub(super) struct Hand(Option<Words>);

impl Hand {
    /// A new note, in this file. Without it, the task worker does as well.
    pub(super) fn open(path: &Path) -> Hand {
        let words = || -> io::Result<Words> {
            let file = spill::create_anew(path)?;
            file.set_len(Words::size(1, WORDS) as u64)?;
            let memory = Memory::from_file("hand", file.into()).map_err(io::Error::other)?;
            let mut rows = Words::open(&memory, 0, 1, WORDS).map_err(io::Error::other)?;
            Ok(rows.swap_remove(0))
        };
        let words = words().inspect_err(|error| {
            tracing::warn!(
                "{}: {error}; what is lost with this task worker will not be told",
                path.display()
            );
        });
        Hand(words.ok())
    }

    fn set(&self, state: u64) {
        if let Some(words) = &self.0 {
            words[STATE].store(state, Release);
        }
    }

    /// From here on it may have something that nobody else has.
    pub(super) fn receives(&self) {
        self.set(RECEIVES);
    }

    /// It begins a task of so many bytes.
    pub(super) fn begins(&self, id: TaskId, size: usize) {
        let Some(words) = &self.0 else { return };
        let values = [id.asker.into(), id.generation.into(), id.number, size as u64];
        for (word, value) in [ASKER, GENERATION, NUMBER, SIZE].into_iter().zip(values) {
            words[word].store(value, Relaxed);
        }
        self.set(WORKS);
    }

    /// It has nothing.
    pub(super) fn ends(&self) {
        self.set(NOTHING);
    }
}

/// Bytes that are read of such a file.
pub(super) const LEN: u64 = 8 * WORDS as u64;

/// A task that a server of the same key has begun, and has not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// There may have been one.
    Perhaps,
    Task(TaskId, u64),
}

impl Lost {
    /// What such a file says.
    pub(super) fn read(bytes: &[u8]) -> Option<Lost> {
        let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(std::array::from_fn(|at| word[at])));
        let words: Vec<u64> = words.take(WORDS).collect();
        match *words.get(..WORDS)? {
            [RECEIVES, ..] => Some(Lost::Perhaps),
            [WORKS, asker, generation, number, size] => {
                let id = TaskId { asker: asker as u16, generation: generation as u32, number };
                Some(Lost::Task(id, size))
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::Perhaps => {
                f.write_str("a task may be lost: one was on its way to a task worker of an earlier server")
            }
            Lost::Task(id, size) => {
                write!(
                    f,
                    "task {id} of an earlier server ({size} bytes) is lost: it had been begun (task_retries = 0)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_noted_is_told() {
        let path = std::env::temp_dir().join(format!("swoole-hand-{}", std::process::id()));
        let hand = Hand::open(&path);
        let told = || Lost::read(&fs::read(&path).unwrap());
        assert_eq!(told(), None);
        hand.receives();
        assert_eq!(told(), Some(Lost::Perhaps));
        let id = TaskId { asker: 3, generation: 2, number: 71 };
        hand.begins(id, 1 << 40);
        assert_eq!(told(), Some(Lost::Task(id, 1 << 40)));
        assert!(
            told().unwrap().to_string().starts_with("task 3.2.71 of an earlier server (1099511627776 bytes)")
        );
        hand.ends();
        assert_eq!(told(), None);
        hand.begins(id, 5);
        // Its successor begins with nothing.
        Hand::open(&path);
        assert_eq!(told(), None);
        fs::remove_file(&path).unwrap();
        // Whoever has none does without.
        Hand::open(Path::new("/nowhere/at/all")).begins(id, 5);
        assert_eq!([Lost::read(b""), Lost::read(&[7; 40])], [None, None]);
    }
}
