//! Memory for payloads and results that are too large for a slot, so that they need no files (`task_buffer_size`).
//!
//! A memory file (memfd_create(2)) of every process that asks or works. Each slot has two stretches of it, for a payload and
//! for a result, with more addresses than anybody has memory for: what nobody has written costs nothing, and memory can be
//! given back (fallocate(2), `FALLOC_FL_PUNCH_HOLE`). So nothing is left behind, whoever dies; and how much of it is in use
//! the kernel knows, exactly, at any time.
//!
//! Fresh memory costs more than to write to it: with payloads and results of 16 KiB, 16 tasks at a time over a unix socket,
//! 24,000 tasks a second if all of it is given back at the end of each, 30,000 to 55,000 if not (5,000 to 15,000 in files; with
//! 1 MiB 440, 750 to 910 and 850 to 950). So a slot keeps what it had for its next task, as long as not more than half of
//! `task_buffer_size` is in use; and an asker whose last task is over gives all of it back, if more than an eighth is.
//!
//! In front of the bytes stand the use of the slot that they belong to, and how many they are. They are read when the slot's
//! word says so, and were all written before that.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fstat};
use rustix::io::{Errno, pwritev};
use rustix::process::{Resource, getrlimit};
use swoole_ipc::Memory;

use super::spill::Part;
use super::store::Shape;

/// Addresses of a stretch: a power of two, so that those of each slot are its own pages.
const STRETCH: u64 = 1 << 30;
/// Bytes before those that are kept: the ticket, then how many they are.
const HEADER: usize = 16;
/// Bytes of a block of `st_blocks` (stat(3type)).
const BLOCK: u64 = 512;

/// Large payloads and results in memory.
#[derive(Clone, Debug)]
pub(crate) struct Attic {
    file: Arc<std::fs::File>,
    slots: u64,
    /// Bytes of memory that it takes in all.
    max: u64,
}

impl Attic {
    /// `None` if there is to be none, or if files may not be so large here (`ulimit -f`), also those in memory.
    pub(crate) fn create(shape: Shape, max: usize) -> Result<Option<OwnedFd>, swoole_ipc::Error> {
        let is_limited = getrlimit(Resource::Fsize).current.is_some();
        if shape.is_empty() || max == 0 || is_limited {
            return Ok(None);
        }
        // Sealed: what somebody has written is there until it is given back.
        let size = usize::from(shape.askers) * shape.slots * 2 * STRETCH as usize;
        Memory::create("swoole-tasks", size).map(|memory| Some(memory.into()))
    }

    pub(crate) fn open(file: OwnedFd, shape: Shape, max: usize) -> Attic {
        Attic { file: Arc::new(file.into()), slots: shape.slots as u64, max: max as u64 }
    }

    fn stretch(&self, asker: u16, slot: u16, part: Part) -> u64 {
        let slot = u64::from(asker) * self.slots + u64::from(slot);
        (2 * slot + u64::from(part == Part::Result)) * STRETCH
    }

    /// Keeps these bytes for the use `ticket` of a slot. False if there is no room for them.
    pub(crate) fn write(&self, (asker, slot): (u16, u16), ticket: u64, part: Part, bytes: &[u8]) -> bool {
        let needed = (HEADER + bytes.len()) as u64;
        // Others may take some between the look and the step: as much as they are at once.
        if needed > STRETCH || self.in_use().saturating_add(needed) > self.max {
            return false;
        }
        let (ticket, len) = (ticket.to_le_bytes(), (bytes.len() as u64).to_le_bytes());
        let header = [ticket, len].concat();
        let begin = self.stretch(asker, slot, part);
        let mut done = 0;
        while done < needed {
            let from = (done as usize).min(HEADER);
            let parts = [IoSlice::new(&header[from..]), IoSlice::new(&bytes[done as usize - from..])];
            match pwritev(&self.file, &parts, begin + done) {
                Ok(0) => break,
                Ok(written) => done += written as u64,
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!("no more memory for large tasks: {error}");
                    break;
                }
            }
        }
        if done < needed {
            self.punch(begin, STRETCH);
        }
        done == needed
    }

    /// What this use of the slot has here, into `bytes`; false if nothing.
    pub(crate) fn read(
        &self,
        (asker, slot): (u16, u16),
        ticket: u64,
        part: Part,
        len: usize,
        bytes: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let begin = self.stretch(asker, slot, part);
        let Some((_, found)) = self.header(begin).filter(|(own, _)| *own == ticket) else { return Ok(false) };
        if found != len as u64 || found > STRETCH {
            return Err(io::Error::other(format!("{found} bytes instead of {len}")));
        }
        bytes.resize(len, 0);
        self.file.read_exact_at(bytes, begin + HEADER as u64)?;
        Ok(true)
    }

    /// Forgets what this use of a slot has here, also if whoever wrote it has died over it; false if it has nothing. To be
    /// called while the slot is still that use's. The slot may keep the memory, if its asker sees to it that it
    /// [rests](Attic::rest).
    pub(crate) fn remove(&self, (asker, slot): (u16, u16), ticket: u64, part: Part, keeps: bool) -> bool {
        let begin = self.stretch(asker, slot, part);
        let is_there = self.header(begin).is_some_and(|(own, _)| own == ticket);
        if is_there {
            let may_keep = keeps && self.in_use() <= self.max / 2;
            let forgotten = may_keep && self.file.write_all_at(&[0; HEADER], begin).is_ok();
            if !forgotten {
                self.punch(begin, STRETCH);
            }
        }
        is_there
    }

    /// An asker has no task under way: gives back what its slots have kept, if that is much.
    pub(crate) fn rest(&self, asker: u16) {
        if self.in_use() > self.max / 8 {
            self.punch(self.stretch(asker, 0, Part::Payload), 2 * self.slots * STRETCH);
        }
    }

    /// Bytes of memory that all of it takes now.
    fn in_use(&self) -> u64 {
        fstat(&self.file).map_or(u64::MAX, |stat| stat.st_blocks as u64 * BLOCK)
    }

    fn punch(&self, begin: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, begin, len) {
            tracing::warn!("give the memory of large tasks back: {error}");
        }
    }

    /// Whose bytes those there are, and how many.
    fn header(&self, begin: u64) -> Option<(u64, u64)> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, begin).ok()?;
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| header[at + index]));
        Some((long(0), long(8)))
    }
}

/// For a process that was not forked, and to keep it open.
impl AsFd for Attic {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { askers: 3, task_workers: 1, slots: 100 };
    const SLOT: (u16, u16) = (2, 99);

    fn attic(max: usize) -> Attic {
        let file = Attic::create(SHAPE, max).unwrap().expect("no limit for the size of files");
        Attic::open(file, SHAPE, max)
    }

    #[test]
    fn what_is_kept_is_there_until_it_is_removed() {
        let attic = attic(1 << 20);
        let mut bytes = vec![b'o'; 200_000];
        for (part, fill, len) in [(Part::Payload, b'p', 0), (Part::Result, b'r', 100_000)] {
            let written = vec![fill; len];
            assert!(!attic.read(SLOT, 5, part, len, &mut bytes).unwrap());
            assert!(attic.write(SLOT, 5, part, &written));
            assert!(attic.read(SLOT, 5, part, len, &mut bytes).unwrap());
            assert_eq!(bytes, written);
        }
        assert!(!attic.read(SLOT, 6, Part::Result, 100_000, &mut bytes).unwrap(), "another use of the slot");
        let error = attic.read(SLOT, 5, Part::Result, 99, &mut bytes).unwrap_err().to_string();
        assert_eq!(error, "100000 bytes instead of 99");
        assert!(!attic.remove(SLOT, 6, Part::Result, true) && attic.remove(SLOT, 5, Part::Result, true));
        assert!(!attic.read(SLOT, 5, Part::Result, 100_000, &mut bytes).unwrap());
        assert!(attic.read(SLOT, 5, Part::Payload, 0, &mut bytes).unwrap());
        assert!(attic.remove(SLOT, 5, Part::Payload, true) && !attic.remove(SLOT, 5, Part::Payload, true));
    }

    #[test]
    fn what_it_has_no_room_for_leaves_nothing() {
        let attic = attic(256 << 10);
        assert!(attic.write((0, 0), 1, Part::Payload, &[1; 200 << 10]));
        let before = attic.in_use();
        assert!(!attic.write((0, 1), 1, Part::Payload, &[1; 60 << 10]));
        assert_eq!(attic.in_use(), before);
        // More than half is not kept.
        assert!(attic.remove((0, 0), 1, Part::Payload, true));
        assert_eq!(attic.in_use(), 0);
        assert!(attic.write((0, 1), 1, Part::Payload, &[1; 60 << 10]));
    }

    #[test]
    fn memory_is_kept_for_the_next_task_and_given_back_behind_the_last() {
        let attic = attic(1 << 20);
        let mut bytes = Vec::new();
        let large = vec![1; 200 << 10];
        for ticket in 1..4 {
            assert!(attic.write(SLOT, ticket, Part::Payload, &large));
            assert!(attic.write((1, 0), ticket, Part::Result, b"another's"));
            let full = attic.in_use();
            assert!(attic.remove(SLOT, ticket, Part::Payload, true));
            assert_eq!(attic.in_use(), full);
            assert!(!attic.read(SLOT, ticket, Part::Payload, large.len(), &mut bytes).unwrap());
        }
        attic.rest(SLOT.0);
        assert!(attic.in_use() < 16 << 10, "{}", attic.in_use());
        assert!(attic.read((1, 0), 3, Part::Result, 9, &mut bytes).unwrap());
        // Little is not worth it, except to who does not rest.
        attic.rest(1);
        assert!(attic.in_use() > 0);
        assert!(attic.remove((1, 0), 3, Part::Result, false));
        assert_eq!(attic.in_use(), 0);
    }

    #[test]
    fn there_is_none_where_it_is_of_no_use() {
        assert!(Attic::create(SHAPE, 0).unwrap().is_none());
        assert!(Attic::create(Shape { askers: 3, task_workers: 0, slots: 0 }, 1 << 20).unwrap().is_none());
    }
}
