//! Division by a number that stays the same.
//!
//! Each packet asks several times where its session stands, and the instruction that divides would be most of each answer.

/// A number that places of sessions are divided by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Divisor {
    number: u32,
    /// 2^36 divided by it, rounded up, or one more.
    reciprocal: u64,
}

impl Divisor {
    const SHIFT: u32 = 36;
    /// The largest that there is, and the first place that there is not: with both, the product below is off by less than
    /// what makes a difference (their product is 2^36), and holds in 64 bits.
    const MAX: usize = 1 << 10;
    const PLACES: u32 = 1 << super::PLACE_BITS;

    /// # Panics
    /// If there are none, or more than there can be reactors or workers.
    pub(super) fn new(number: usize) -> Divisor {
        assert!((1..=Self::MAX).contains(&number), "{number} session tables");
        Divisor { number: number as u32, reciprocal: (1 << Self::SHIFT) / number as u64 + 1 }
    }

    /// Quotient and remainder.
    #[inline]
    pub(super) fn divide(self, place: u32) -> (u32, u32) {
        debug_assert!(place < Self::PLACES);
        let quotient = ((u64::from(place) * self.reciprocal) >> Self::SHIFT) as u32;
        (quotient, place - quotient * self.number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_divides(number in 1..=Divisor::MAX, place in 0..Divisor::PLACES) {
            // Where it would go wrong first: at multiples, and at the end.
            let at_a_multiple = place - place % number as u32;
            for place in [place, at_a_multiple, at_a_multiple.saturating_sub(1), Divisor::PLACES - 1] {
                let number = number as u32;
                let expected = (place / number, place % number);
                prop_assert_eq!(Divisor::new(number as usize).divide(place), expected);
            }
        }
    }

    #[test]
    fn it_divides_the_last_places_by_every_number() {
        for number in 1..=Divisor::MAX {
            let divisor = Divisor::new(number);
            for place in (Divisor::PLACES - 2100)..Divisor::PLACES {
                assert_eq!(divisor.divide(place), (place / number as u32, place % number as u32), "{number}");
            }
        }
    }
}
