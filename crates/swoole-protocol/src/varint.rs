//! Packets behind their length as a base-128 varint: the delimited streams of Protocol Buffers.

use crate::{Cut, FrameError, Malformed};

/// Bytes of the longest varint: what 64 bits take, 7 in each.
const VARINT_MAX: usize = 10;

/// The bit that says that the varint goes on.
const GOES_ON: u8 = 0x80;

#[inline]
pub(crate) fn cut(input: &[u8], max: usize) -> Result<Cut, FrameError> {
    // Of a varint that the limit cuts off nothing is known, wherever a read has ended.
    let window = &input[..input.len().min(max)];
    let Some((value, prefix)) = decode(window).map_err(|what| FrameError::Malformed { what })? else {
        return if input.len() >= max {
            Err(FrameError::TooLong { len: max.saturating_add(1), max })
        } else {
            Ok(Cut::More { at_least: 1 })
        };
    };
    let len = usize::try_from(value).unwrap_or(usize::MAX).saturating_add(prefix);
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    Ok(match len.checked_sub(input.len()) {
        None | Some(0) => Cut::Packet { len, payload: prefix..len },
        Some(at_least) => Cut::More { at_least },
    })
}

/// The number at the front of `input` and how many bytes it takes, if it is whole.
#[inline]
fn decode(input: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let mut value = 0;
    for (index, byte) in input.iter().take(VARINT_MAX).enumerate() {
        // The tenth has room for one bit, and has none behind it.
        if index == VARINT_MAX - 1 && *byte > 1 {
            return Err(Malformed::VarintTooLong);
        }
        value |= u64::from(byte & !GOES_ON) << (7 * index);
        if byte & GOES_ON == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    Ok(None)
}

pub(crate) fn encode(payload: &[u8], out: &mut Vec<u8>) {
    let mut value = payload.len() as u64;
    while value >= GOES_ON.into() {
        out.push(value as u8 | GOES_ON);
        value >>= 7;
    }
    out.push(value as u8);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(len: usize, prefix: usize) -> Result<Cut, FrameError> {
        Ok(Cut::Packet { len, payload: prefix..len })
    }

    fn more(at_least: usize) -> Result<Cut, FrameError> {
        Ok(Cut::More { at_least })
    }

    #[test]
    fn the_payload_is_what_stands_behind_the_length() {
        assert_eq!(cut(b"", 99), more(1));
        assert_eq!(cut(b"\x03", 99), more(3));
        assert_eq!(cut(b"\x03ab", 99), more(1));
        assert_eq!(cut(b"\x03abc\x01", 99), packet(4, 1));
        assert_eq!(cut(b"\0\0", 99), packet(1, 1));
    }

    #[test]
    fn seven_bits_a_byte_the_lowest_first() {
        assert_eq!(cut(b"\xac", 999), more(1));
        assert_eq!(cut(b"\xac\x02", 999), more(300));
        assert_eq!(decode(b"\x80\x80\x01"), Ok(Some((1 << 14, 3))));
        assert_eq!(decode(b"\x83\x80\x00"), Ok(Some((3, 3))), "longer than need be, as protobuf reads it");
        let greatest = [[0xff; 9].as_slice(), &[1]].concat();
        assert_eq!(decode(&greatest), Ok(Some((u64::MAX, 10))));
    }

    #[test]
    fn more_than_64_bits_are_malformed() {
        let too_long = Err(FrameError::Malformed { what: Malformed::VarintTooLong });
        assert_eq!(cut(&[0x80; 9], 99), more(1));
        assert_eq!(cut(&[0x80; 10], 99), too_long);
        assert_eq!(cut(&[[0xff; 9].as_slice(), &[2]].concat(), 99), too_long);
    }

    #[test]
    fn a_packet_that_is_too_long_is_refused_from_its_length_alone() {
        let too_long = |len, max| Err(FrameError::TooLong { len, max });
        assert_eq!(cut(b"\x09", 10), more(9));
        assert_eq!(cut(b"\x0a", 10), too_long(11, 10));
        assert_eq!(cut(&[[0xff; 9].as_slice(), &[1]].concat(), 10), too_long(usize::MAX, 10));
        assert_eq!(cut(b"\x80\x80", 3), more(1));
        assert_eq!(cut(b"\x80\x80\x80", 3), too_long(4, 3));
        assert_eq!(cut(b"\x80\x80\x80\x01", 3), too_long(4, 3), "in one read as in several");
    }

    #[test]
    fn lengths_are_encoded_as_short_as_can_be() {
        for len in [0, 1, 127, 128, 16_383, 16_384, 2_097_152] {
            let mut out = b"before".to_vec();
            encode(&vec![7; len], &mut out);
            let (value, prefix) = decode(&out[6..]).unwrap().unwrap();
            assert_eq!((value, out.len()), (len as u64, 6 + prefix + len));
            assert!(prefix == 1 || out[6 + prefix - 1] != 0, "{len}");
        }
    }
}
