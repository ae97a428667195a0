//! No framing: what one read gave is one packet.

use crate::Cut;

#[inline]
pub(crate) fn cut(input: &[u8], max: usize) -> Cut {
    match input.len().min(max) {
        0 => Cut::More { at_least: 1 },
        len => Cut::Packet { len, payload: 0..len },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_there_is_one_packet() {
        assert_eq!(cut(b"", 8), Cut::More { at_least: 1 });
        assert_eq!(cut(b"a\nb", 8), Cut::Packet { len: 3, payload: 0..3 });
    }

    #[test]
    fn more_than_the_limit_is_several_packets() {
        assert_eq!(cut(b"123456789", 8), Cut::Packet { len: 8, payload: 0..8 });
    }
}
