//! Messages in pieces, for channels that move less at once.
//!
//! Each piece says whether it is the first and whether it is the last of its message. So a sender may give up
//! in the middle (its time is over): the next first piece tells the receiver to forget what came before.

use crate::channel::MESSAGE_MAX;
use crate::error::{Corrupt, Error};

const FIRST: u32 = 1;
const LAST: u32 = 2;
const WHOLE: u32 = FIRST | LAST;

/// Refuses what no channel takes.
pub(crate) fn check_size(message: &[u8]) -> Result<(), Error> {
    match message.len() {
        0..=MESSAGE_MAX => Ok(()),
        size => Err(Error::TooLarge { operation: "send", size, limit: MESSAGE_MAX }),
    }
}

/// Cuts a message into pieces of up to `piece_max` bytes, at least one, each with its flags.
pub(crate) fn pieces(message: &[u8], piece_max: usize) -> impl Iterator<Item = (u32, &[u8])> {
    let count = message.len().div_ceil(piece_max).max(1);
    (0..count).map(move |index| {
        let first = if index == 0 { FIRST } else { 0 };
        let last = if index + 1 == count { LAST } else { 0 };
        let start = index * piece_max;
        (first | last, &message[start..message.len().min(start + piece_max)])
    })
}

/// Puts the pieces of one sender together again.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// The pieces so far; `None` outside a message.
    partial: Option<Vec<u8>>,
}

impl Assembler {
    /// Takes the next piece. True when it completes a message, which then is in `into`.
    pub(crate) fn add(&mut self, flags: u32, piece: &[u8], into: &mut Vec<u8>) -> Result<bool, Corrupt> {
        if flags == WHOLE {
            self.partial = None;
            into.clear();
            into.extend_from_slice(piece);
            return Ok(true);
        }
        let last = match flags {
            FIRST => {
                self.partial = Some(Vec::new());
                false
            }
            0 => false,
            LAST => true,
            other => {
                return Err(Corrupt { what: "piece flags", value: other.into(), range: 0..=WHOLE.into() });
            }
        };
        let Some(partial) = &mut self.partial else {
            return Err(Corrupt {
                what: "piece flags",
                value: flags.into(),
                range: FIRST.into()..=WHOLE.into(),
            });
        };
        let size = partial.len() + piece.len();
        if size > MESSAGE_MAX {
            self.partial = None;
            return Err(Corrupt { what: "message size", value: size as u64, range: 0..=MESSAGE_MAX as u64 });
        }
        partial.extend_from_slice(piece);
        if last {
            std::mem::swap(into, partial);
            self.partial = None;
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_back() {
        for (size, piece_max) in [(0, 4), (1, 4), (4, 4), (5, 4), (8, 4), (9, 4)] {
            let message: Vec<u8> = (0..size).collect();
            let (mut assembler, mut into) = (Assembler::default(), b"old".to_vec());
            let cut: Vec<_> = pieces(&message, piece_max).collect();
            assert_eq!(cut.len(), message.len().div_ceil(piece_max).max(1));
            for (index, (flags, piece)) in cut.iter().enumerate() {
                let complete = assembler.add(*flags, piece, &mut into).unwrap();
                assert_eq!(complete, index + 1 == cut.len());
            }
            assert_eq!(into, message);
        }
    }

    #[test]
    fn a_message_given_up_is_forgotten() {
        let (mut assembler, mut into) = (Assembler::default(), Vec::new());
        assert_eq!(assembler.add(FIRST, b"never", &mut into), Ok(false));
        assert_eq!(assembler.add(FIRST, b"on", &mut into), Ok(false));
        assert_eq!(assembler.add(LAST, b"ly", &mut into), Ok(true));
        assert_eq!(into, b"only");
    }

    #[test]
    fn impossible_pieces_are_named() {
        let (mut assembler, mut into) = (Assembler::default(), Vec::new());
        assert!(assembler.add(0, b"middle of nothing", &mut into).is_err());
        assert!(assembler.add(LAST, b"end of nothing", &mut into).is_err());
        assert!(assembler.add(4, b"", &mut into).is_err());
        assert_eq!(assembler.add(FIRST, &vec![0; MESSAGE_MAX], &mut into), Ok(false));
        assert!(assembler.add(LAST, &[0], &mut into).is_err());
    }
}
