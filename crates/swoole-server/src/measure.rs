//! What a reactor is to do with one connection of its own, as it travels there: among the replies, by post, or in Base mode
//! from the handler at once. It takes effect in its place among what the same process sends to the session.

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
}

impl Measure {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Measure::Pause => vec![1],
            Measure::Resume => vec![2],
            Measure::Protect(on) => vec![3, u8::from(on)],
            Measure::Reset => vec![4],
        }
    }

    /// `None` for what nobody writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Measure> {
        Some(match bytes {
            [1] => Measure::Pause,
            [2] => Measure::Resume,
            [3, on @ (0 | 1)] => Measure::Protect(*on == 1),
            [4] => Measure::Reset,
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
        fn whatever_decodes_encodes_to_the_same(bytes in proptest::collection::vec(0..6_u8, 0..4)) {
            if let Some(measure) = Measure::decode(&bytes) {
                prop_assert_eq!(measure.encode(), bytes);
            }
        }
    }

    #[test]
    fn all_of_them_come_back() {
        for measure in
            [Measure::Pause, Measure::Resume, Measure::Protect(true), Measure::Protect(false), Measure::Reset]
        {
            assert_eq!(Measure::decode(&measure.encode()), Some(measure));
        }
    }
}
