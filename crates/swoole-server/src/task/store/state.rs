//! Words that say several things at once, and so change them at once.

/// How far a task has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Stage {
    Free = 0,
    /// Its asker writes it down.
    Filling = 1,
    Queued = 2,
    /// A task worker has died on it, and another one may take it.
    Revived = 3,
    Running = 4,
    /// Its result waits for its asker.
    Done = 5,
}

/// What came of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Status {
    Done = 0,
    /// The handler has returned an error: the result is its text.
    Failed = 1,
    /// Its task worker has died.
    Lost = 2,
}

/// The word of a slot: `stage: 3 bits | attempt: 8 | taker: 16 | ticket: 37`, the lowest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State {
    pub(super) stage: Stage,
    /// How many task workers have begun it, this one included.
    pub(super) attempt: u8,
    /// Which task worker has begun it last.
    pub(super) taker: u16,
    /// Which use of the slot this is.
    pub(super) ticket: u64,
}

impl State {
    pub(super) const FREE: State = State { stage: Stage::Free, attempt: 0, taker: 0, ticket: 0 };
    pub(super) const TICKET_MAX: u64 = (1 << 37) - 1;

    pub(super) fn pack(self) -> u64 {
        let State { stage, attempt, taker, ticket } = self;
        stage as u64 | u64::from(attempt) << 3 | u64::from(taker) << 11 | ticket << 27
    }

    pub(super) fn unpack(word: u64) -> Option<State> {
        let stage = match word & 7 {
            0 => Stage::Free,
            1 => Stage::Filling,
            2 => Stage::Queued,
            3 => Stage::Revived,
            4 => Stage::Running,
            5 => Stage::Done,
            _ => return None,
        };
        Some(State { stage, attempt: (word >> 3) as u8, taker: (word >> 11) as u16, ticket: word >> 27 })
    }
}

/// A place in a queue: which slot, and for which use of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) slot: u16,
    pub(super) ticket: u64,
}

impl Entry {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.slot) | self.ticket << 16
    }

    pub(super) fn unpack(word: u64) -> Entry {
        Entry { slot: word as u16, ticket: word >> 16 }
    }
}

/// Bytes of a payload or a result, and whether they lie in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Length {
    pub(super) len: usize,
    pub(super) spilled: bool,
}

const SPILLED: u64 = 1 << 63;
const STATUS_SHIFT: u32 = 60;
const LEN_MAX: u64 = (1 << STATUS_SHIFT) - 1;

impl Length {
    pub(super) fn pack(self) -> u64 {
        self.len as u64 & LEN_MAX | if self.spilled { SPILLED } else { 0 }
    }

    pub(super) fn unpack(word: u64) -> Length {
        Length { len: (word & LEN_MAX) as usize, spilled: word & SPILLED != 0 }
    }
}

pub(super) fn pack_result(status: Status, length: Length) -> u64 {
    length.pack() | (status as u64) << STATUS_SHIFT
}

pub(super) fn unpack_result(word: u64) -> (Status, Length) {
    let status = match word >> STATUS_SHIFT & 7 {
        0 => Status::Done,
        1 => Status::Failed,
        _ => Status::Lost,
    };
    (status, Length::unpack(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_all_of_it() {
        let stages =
            [Stage::Free, Stage::Filling, Stage::Queued, Stage::Revived, Stage::Running, Stage::Done];
        for stage in stages {
            for (attempt, taker, ticket) in [(0, 0, 0), (255, u16::MAX, State::TICKET_MAX), (1, 7, 99)] {
                let state = State { stage, attempt, taker, ticket };
                assert_eq!(State::unpack(state.pack()), Some(state));
            }
        }
        assert_eq!(State::unpack(6), None);
        for entry in [Entry { slot: u16::MAX, ticket: State::TICKET_MAX }, Entry { slot: 3, ticket: 0 }] {
            assert_eq!(Entry::unpack(entry.pack()), entry);
        }
        for status in [Status::Done, Status::Failed, Status::Lost] {
            for (len, spilled) in [(0, false), (8192, false), (1 << 40, true)] {
                let length = Length { len, spilled };
                assert_eq!(unpack_result(pack_result(status, length)), (status, length));
            }
        }
    }
}
