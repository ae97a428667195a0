//! Packets that say their length in a header.

use crate::{ConfigError, Cut, FrameError, LengthType, Malformed};

/// The largest `package_length_offset` and `package_body_offset`, in bytes.
pub const OFFSET_MAX: usize = u16::MAX as usize;

/// Where a packet says how long it is: `package_length_type`, `package_length_offset` and `package_body_offset`.
///
/// A packet has `value + body_offset` bytes in total, where `value` is the number in its length field. So with a
/// 4-byte field at offset 0, `body_offset` is 4 if the field counts what follows it, and 0 if it counts itself too.
///
/// The user sees the whole packet, header included, as with Swoole: the header may say more than the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthOptions {
    kind: LengthType,
    length_offset: u16,
    body_offset: u16,
}

/// Swoole's defaults: type `N` (32 bits, network order) at offset 0, body at 4.
impl Default for LengthOptions {
    fn default() -> LengthOptions {
        LengthOptions { kind: LengthType::U32Be, length_offset: 0, body_offset: 4 }
    }
}

impl LengthOptions {
    /// A length field of type `kind`, `length_offset` bytes into the packet, that does not count the packet's first
    /// `body_offset` bytes. Both offsets go from 0 to [`OFFSET_MAX`].
    ///
    /// # Errors
    /// [`ConfigError::Offset`] names the one that is larger.
    pub fn new(
        kind: LengthType,
        length_offset: usize,
        body_offset: usize,
    ) -> Result<LengthOptions, ConfigError> {
        let checked = |option, value| u16::try_from(value).map_err(|_| ConfigError::Offset { option, value });
        Ok(LengthOptions {
            kind,
            length_offset: checked("package_length_offset", length_offset)?,
            body_offset: checked("package_body_offset", body_offset)?,
        })
    }

    /// The type of the length field.
    pub fn kind(&self) -> LengthType {
        self.kind
    }

    /// Bytes before the length field.
    #[inline]
    pub fn length_offset(&self) -> usize {
        self.length_offset.into()
    }

    /// Bytes of a packet that its length field does not count.
    #[inline]
    pub fn body_offset(&self) -> usize {
        self.body_offset.into()
    }

    /// Bytes up to the end of the length field: what must be there before a packet's length is known, and the least
    /// that a packet can have.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.length_offset() + self.kind.size()
    }

    #[inline]
    pub(crate) fn cut(&self, input: &[u8], max: usize) -> Result<Cut, FrameError> {
        let header = self.header_len();
        if header > max {
            return Err(FrameError::TooLong { len: header, max });
        }
        let Some(field) = input.get(self.length_offset()..header) else {
            return Ok(Cut::More { at_least: header - input.len() });
        };
        let value = self.kind.decode(field).map_err(|what| FrameError::Malformed { what })?;
        let len = usize::try_from(value).unwrap_or(usize::MAX).saturating_add(self.body_offset());
        if len < header {
            return Err(FrameError::Malformed { what: Malformed::ShorterThanHeader { total: len, header } });
        }
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        Ok(match len.checked_sub(input.len()) {
            None | Some(0) => Cut::Packet { len, payload: 0..len },
            Some(at_least) => Cut::More { at_least },
        })
    }

    pub(crate) fn encode(&self, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = out.len();
        let front = self.header_len().max(self.body_offset());
        let value = (front - self.body_offset() + body.len()) as u64;
        if value > self.kind.max() {
            let max =
                usize::try_from(self.kind.max()).unwrap_or(usize::MAX).saturating_add(self.body_offset());
            return Err(FrameError::TooLong { len: front + body.len(), max });
        }
        out.resize(start + front, 0);
        self.kind.encode(value, &mut out[start + self.length_offset()..start + self.header_len()]);
        out.extend_from_slice(body);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(letter: &str, length_offset: usize, body_offset: usize) -> LengthOptions {
        LengthOptions::new(letter.parse().unwrap(), length_offset, body_offset).unwrap()
    }

    fn packet(len: usize) -> Result<Cut, FrameError> {
        Ok(Cut::Packet { len, payload: 0..len })
    }

    fn more(at_least: usize) -> Result<Cut, FrameError> {
        Ok(Cut::More { at_least })
    }

    #[test]
    fn an_offset_that_is_too_large_is_named() {
        let wrong = |option| Err(ConfigError::Offset { option, value: 65_536 });
        assert_eq!(LengthOptions::new(LengthType::U8, 65_536, 0), wrong("package_length_offset"));
        assert_eq!(LengthOptions::new(LengthType::U8, 0, 65_536), wrong("package_body_offset"));
        assert_eq!(options("P", OFFSET_MAX, OFFSET_MAX).header_len(), OFFSET_MAX + 8);
    }

    #[test]
    fn what_is_missing_is_exact() {
        let options = options("n", 2, 4);
        assert_eq!(options.cut(b"", 99), more(4));
        assert_eq!(options.cut(b"##\0", 99), more(1));
        assert_eq!(options.cut(b"##\0\x03", 99), more(3));
        assert_eq!(options.cut(b"##\0\x03ab", 99), more(1));
        assert_eq!(options.cut(b"##\0\x03abc", 99), packet(7));
        assert_eq!(options.cut(b"##\0\x03abc##", 99), packet(7));
    }

    #[test]
    fn the_length_may_count_its_own_header() {
        assert_eq!(options("C", 0, 0).cut(b"\x03ab", 99), packet(3));
        assert_eq!(options("C", 1, 1).cut(b"#\x02ab", 99), packet(3));
    }

    #[test]
    fn a_body_may_begin_behind_the_header() {
        assert_eq!(options("C", 0, 4).cut(b"\0", 99), more(3));
        assert_eq!(options("C", 0, 4).cut(b"\x01---a", 99), packet(5));
    }

    #[test]
    fn a_packet_shorter_than_its_header_is_malformed() {
        let short = |total, header| {
            Err(FrameError::Malformed { what: Malformed::ShorterThanHeader { total, header } })
        };
        assert_eq!(options("N", 0, 0).cut(&[0; 4], 99), short(0, 4));
        assert_eq!(options("N", 2, 4).cut(&[0, 0, 0, 0, 0, 1], 99), short(5, 6));
        assert_eq!(options("N", 2, 4).cut(&[0, 0, 0, 0, 0, 2], 99), packet(6));
    }

    #[test]
    fn a_packet_that_is_too_long_is_refused_from_its_header_alone() {
        let too_long = |len| Err(FrameError::TooLong { len, max: 10 });
        assert_eq!(options("n", 0, 2).cut(&[0, 8], 10), more(8));
        assert_eq!(options("n", 0, 2).cut(&[0, 9], 10), too_long(11));
        assert_eq!(options("Q", 0, 8).cut(&[0xff; 8], 10), too_long(usize::MAX));
        assert_eq!(options("Q", 3, 0).cut(&[0], 10), too_long(11), "no header fits");
    }

    #[test]
    fn a_negative_length_is_malformed() {
        let minus = |value| Err(FrameError::Malformed { what: Malformed::NegativeLength { value } });
        assert_eq!(options("c", 0, 9).cut(&[0x80], 99), minus(-128));
        assert_eq!(options("s", 0, 9).cut(&(-2_i16).to_ne_bytes(), 99), minus(-2));
        assert_eq!(options("l", 0, 9).cut(&i32::MIN.to_ne_bytes(), 99), minus(i32::MIN.into()));
        assert_eq!(options("q", 0, 9).cut(&i64::MIN.to_ne_bytes(), 99), minus(i64::MIN));
    }

    #[test]
    fn encoding_fills_the_gap_before_the_body_with_zeros() {
        let mut out = b"before".to_vec();
        options("n", 1, 5).encode(b"ab", &mut out).unwrap();
        assert_eq!(out, b"before\0\0\x02\0\0ab");
        out.clear();
        options("C", 0, 0).encode(b"ab", &mut out).unwrap();
        assert_eq!(out, b"\x03ab", "the length counts its own byte");
    }

    #[test]
    fn a_length_that_its_field_cannot_hold_is_not_encoded() {
        let mut out = b"before".to_vec();
        let refused = options("c", 0, 1).encode(&[0; 128], &mut out);
        assert_eq!(refused, Err(FrameError::TooLong { len: 129, max: 128 }));
        assert_eq!(out, b"before");
        assert_eq!(options("c", 0, 1).encode(&[0; 127], &mut out), Ok(()));
    }
}
