//! What a reactor is to do with one connection of its own, as it travels there: among the replies, by post, or in Base mode
//! from the handler at once. It takes effect in its place among what the same process sends to the session.

use crate::chute::Ticket;

/// The first byte says which; all integers are little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Measure {
    /// Nothing more is read from the client.
    Pause,
    /// It is read from, (again) or for the first time.
    Resume,
    /// Whether limits on how long a client may be silent do not apply to it.
    Protect(bool),
    /// It is closed at once, and what waits for it is dropped.
    Reset,
    /// It is sent part of a file that has come before.
    SendFile(Ticket),
}

impl Measure {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Measure::Pause => vec![1],
            Measure::Resume => vec![2],
            Measure::Protect(on) => vec![3, u8::from(on)],
            Measure::Reset => vec![4],
            Measure::SendFile(Ticket { name, offset, length }) => {
                [&[5][..], &name.to_le_bytes(), &offset.to_le_bytes(), &length.to_le_bytes()].concat()
            }
        }
    }

    /// `None` for what nobody writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Measure> {
        Some(match bytes {
            [1] => Measure::Pause,
            [2] => Measure::Resume,
            [3, on @ (0 | 1)] => Measure::Protect(*on == 1),
            [4] => Measure::Reset,
            [5, words @ ..] if words.len() == 24 => {
                let (words, _) = words.as_chunks();
                let [name, offset, length] = [0, 1, 2].map(|index| u64::from_le_bytes(words[index]));
                // Positions in files are signed.
                let end = offset.checked_add(length).filter(|end| *end <= i64::MAX as u64);
                end.filter(|_| length > 0).map(|_| Measure::SendFile(Ticket { name, offset, length }))?
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same(bytes in prop_oneof![
            proptest::collection::vec(0..7_u8, 0..4),
            proptest::collection::vec(any::<u8>(), 24).prop_map(|words| [&[5][..], &words].concat()),
        ]) {
            if let Some(measure) = Measure::decode(&bytes) {
                prop_assert_eq!(measure.encode(), bytes);
            }
        }
    }

    #[test]
    fn all_of_them_come_back() {
        let ticket = Ticket { name: 7 << 48 | 1, offset: 1 << 40, length: 3 };
        let switches = [Measure::Protect(true), Measure::Protect(false)];
        let others = [Measure::Pause, Measure::Resume, Measure::Reset, Measure::SendFile(ticket)];
        for measure in switches.into_iter().chain(others) {
            assert_eq!(Measure::decode(&measure.encode()), Some(measure));
        }
    }
}
