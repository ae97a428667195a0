//! What stands in a letter.
//!
#![doc = "```text"]
#![doc = include_str!("letter.txt")]
#![doc = "```"]

use crate::task::TaskId;

/// Bytes before the payload.
pub(crate) const HEADER: usize = 48;

const MAGIC: &[u8; 4] = b"SWTK";
const VERSION: u16 = 1;
const IN_FILE: u16 = 1;

/// A task on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Letter {
    /// Which server has written it; 0 for another program.
    pub(crate) server: u64,
    pub(crate) id: TaskId,
    pub(crate) slot: u16,
    pub(crate) ticket: u64,
    /// Bytes of the payload.
    pub(crate) len: usize,
    /// Its file's name follows, not the payload itself.
    pub(crate) in_file: bool,
}

impl Letter {
    /// That of another program.
    pub(crate) fn foreign(len: usize, in_file: bool) -> Letter {
        let id = TaskId { asker: 0, generation: 0, number: 0 };
        Letter { server: 0, id, slot: 0, ticket: 0, len, in_file }
    }

    pub(crate) fn header(&self) -> [u8; HEADER] {
        let Letter { server, id: TaskId { asker, generation, number }, slot, ticket, len, in_file } = *self;
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(4, &VERSION.to_le_bytes());
        put(6, &if in_file { IN_FILE } else { 0 }.to_le_bytes());
        put(8, &server.to_le_bytes());
        put(16, &number.to_le_bytes());
        put(24, &ticket.to_le_bytes());
        put(32, &generation.to_le_bytes());
        put(36, &asker.to_le_bytes());
        put(38, &slot.to_le_bytes());
        put(40, &(len as u64).to_le_bytes());
        bytes
    }

    /// The letter, and what follows its header; or what is wrong with it.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Letter, &[u8]), String> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(format!("{} bytes are no task: its header has {HEADER}", bytes.len()));
        };
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| header[at + index]));
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if !header.starts_with(MAGIC) {
            return Err("it does not begin with SWTK".into());
        }
        if half(4) != VERSION {
            return Err(format!("it has version {}, this program knows {VERSION} only", half(4)));
        }
        let len = usize::try_from(long(40)).map_err(|error| error.to_string())?;
        let generation = long(32) as u32;
        let id = TaskId { asker: half(36), generation, number: long(16) };
        let in_file = half(6) & IN_FILE != 0;
        Ok((Letter { server: long(8), id, slot: half(38), ticket: long(24), len, in_file }, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            (server, number, ticket, len) in any::<(u64, u64, u64, usize)>(),
            (asker, slot, generation, in_file) in any::<(u16, u16, u32, bool)>(),
            payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let id = TaskId { asker, generation, number };
            let letter = Letter { server, id, slot, ticket, len, in_file };
            let bytes = [&letter.header()[..], &payload].concat();
            prop_assert_eq!(Letter::read(&bytes), Ok((letter, &payload[..])));
        }

        #[test]
        fn nothing_that_somebody_writes_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Letter::read(&bytes);
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let good = Letter::foreign(3, false).header();
        assert!(Letter::read(&good[..47]).unwrap_err().contains("47 bytes"));
        let (mut magic, mut version) = (good, good);
        magic[0] = b'x';
        version[4] = 9;
        assert!(Letter::read(&magic).unwrap_err().contains("SWTK"));
        assert!(Letter::read(&version).unwrap_err().contains("version 9"));
    }
}
