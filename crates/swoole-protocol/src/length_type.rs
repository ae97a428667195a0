//! The number types of a length field, by the letters of PHP's `pack`.

use crate::{ConfigError, Malformed};
use std::fmt;
use std::str::FromStr;

/// The type of a length field (`package_length_type`): width, sign and byte order.
///
/// Parses from and prints as its letter in [PHP's `pack`](https://www.php.net/pack). *Host* is the byte order of the
/// machine that this runs on: choose a fixed order for anything that leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LengthType {
    /// `c`: 8 bits, signed.
    I8,
    /// `C`: 8 bits.
    U8,
    /// `s`: 16 bits, signed, host order.
    I16,
    /// `S`: 16 bits, host order.
    U16,
    /// `n`: 16 bits, network (big-endian) order.
    U16Be,
    /// `v`: 16 bits, little-endian order.
    U16Le,
    /// `l`: 32 bits, signed, host order.
    I32,
    /// `L`: 32 bits, host order.
    U32,
    /// `N`: 32 bits, network (big-endian) order.
    U32Be,
    /// `V`: 32 bits, little-endian order.
    U32Le,
    /// `q`: 64 bits, signed, host order.
    I64,
    /// `Q`: 64 bits, host order.
    U64,
    /// `J`: 64 bits, network (big-endian) order.
    U64Be,
    /// `P`: 64 bits, little-endian order.
    U64Le,
}

impl LengthType {
    /// Every type, in the order of the error message that lists their letters.
    pub const ALL: [LengthType; 14] = {
        use LengthType::*;
        [I8, U8, I16, U16, U16Be, U16Le, I32, U32, U32Be, U32Le, I64, U64, U64Be, U64Le]
    };

    /// The letter in PHP's `pack`.
    pub fn letter(self) -> char {
        match self {
            LengthType::I8 => 'c',
            LengthType::U8 => 'C',
            LengthType::I16 => 's',
            LengthType::U16 => 'S',
            LengthType::U16Be => 'n',
            LengthType::U16Le => 'v',
            LengthType::I32 => 'l',
            LengthType::U32 => 'L',
            LengthType::U32Be => 'N',
            LengthType::U32Le => 'V',
            LengthType::I64 => 'q',
            LengthType::U64 => 'Q',
            LengthType::U64Be => 'J',
            LengthType::U64Le => 'P',
        }
    }

    /// Bytes of the field: 1, 2, 4 or 8.
    #[inline]
    pub fn size(self) -> usize {
        match self {
            LengthType::I8 | LengthType::U8 => 1,
            LengthType::I16 | LengthType::U16 | LengthType::U16Be | LengthType::U16Le => 2,
            LengthType::I32 | LengthType::U32 | LengthType::U32Be | LengthType::U32Le => 4,
            LengthType::I64 | LengthType::U64 | LengthType::U64Be | LengthType::U64Le => 8,
        }
    }

    fn signed(self) -> bool {
        matches!(self, LengthType::I8 | LengthType::I16 | LengthType::I32 | LengthType::I64)
    }

    fn big_endian(self) -> bool {
        match self {
            LengthType::U16Be | LengthType::U32Be | LengthType::U64Be => true,
            LengthType::U16Le | LengthType::U32Le | LengthType::U64Le => false,
            _ => cfg!(target_endian = "big"),
        }
    }

    /// The largest number that the field can hold.
    pub(crate) fn max(self) -> u64 {
        u64::MAX >> (64 - 8 * self.size() + usize::from(self.signed()))
    }

    /// Reads the number in `field`, which has [`size`](Self::size) bytes.
    #[inline]
    pub(crate) fn decode(self, field: &[u8]) -> Result<u64, Malformed> {
        // Read as wide as it is: a copy into something wider, and a load from that, waits for the copy's store.
        let swaps = self.big_endian() == cfg!(target_endian = "little");
        let value = match *field {
            [byte] => byte.into(),
            [a, b] => {
                let value = u16::from_ne_bytes([a, b]);
                if swaps { value.swap_bytes() } else { value }.into()
            }
            [a, b, c, d] => {
                let value = u32::from_ne_bytes([a, b, c, d]);
                if swaps { value.swap_bytes() } else { value }.into()
            }
            [a, b, c, d, e, f, g, h] => {
                let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                if swaps { value.swap_bytes() } else { value }
            }
            _ => unreachable!("a field has 1, 2, 4 or 8 bytes"),
        };
        if self.signed() && value > self.max() {
            // The shift to the left brings the sign to the top bit, the arithmetic one back copies it down.
            let unused = 64 - 8 * field.len();
            let value = (value << unused).cast_signed() >> unused;
            return Err(Malformed::NegativeLength { value });
        }
        Ok(value)
    }

    /// Writes `value`, at most [`max`](Self::max), to `field`, which has [`size`](Self::size) bytes.
    pub(crate) fn encode(self, value: u64, field: &mut [u8]) {
        let size = field.len();
        if self.big_endian() {
            field.copy_from_slice(&value.to_be_bytes()[8 - size..]);
        } else {
            field.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}

impl fmt::Display for LengthType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

impl FromStr for LengthType {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<LengthType, ConfigError> {
        LengthType::ALL
            .into_iter()
            .find(|kind| text.strip_prefix(kind.letter()) == Some(""))
            .ok_or_else(|| ConfigError::LengthType { given: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `value` as the compiler writes it, by letter.
    fn bytes_of(letter: char, value: u64) -> Vec<u8> {
        match letter {
            'c' | 'C' => vec![value as u8],
            's' | 'S' => (value as u16).to_ne_bytes().to_vec(),
            'n' => (value as u16).to_be_bytes().to_vec(),
            'v' => (value as u16).to_le_bytes().to_vec(),
            'l' | 'L' => (value as u32).to_ne_bytes().to_vec(),
            'N' => (value as u32).to_be_bytes().to_vec(),
            'V' => (value as u32).to_le_bytes().to_vec(),
            'q' | 'Q' => value.to_ne_bytes().to_vec(),
            'J' => value.to_be_bytes().to_vec(),
            'P' => value.to_le_bytes().to_vec(),
            other => panic!("no such type: {other}"),
        }
    }

    fn assert_reads_and_writes(letter: char, values: &[u64]) {
        let kind: LengthType = letter.to_string().parse().unwrap();
        assert_eq!(kind.to_string(), letter.to_string());
        assert_eq!(values.iter().max(), Some(&kind.max()), "{letter}");
        for &value in values {
            let bytes = bytes_of(letter, value);
            assert_eq!(bytes.len(), kind.size(), "{letter}");
            assert_eq!(kind.decode(&bytes), Ok(value), "{letter}");
            let mut field = vec![0xaa; kind.size()];
            kind.encode(value, &mut field);
            assert_eq!(field, bytes, "{letter}");
        }
    }

    fn assert_refuses(letter: char, values: &[i64]) {
        let kind: LengthType = letter.to_string().parse().unwrap();
        for &value in values {
            let bytes = bytes_of(letter, value.cast_unsigned());
            assert_eq!(kind.decode(&bytes), Err(Malformed::NegativeLength { value }), "{letter}");
        }
    }

    #[test]
    fn c_is_signed_8_bit() {
        assert_reads_and_writes('c', &[0, 1, 0x7f]);
        assert_refuses('c', &[-1, -0x80]);
    }

    #[test]
    fn upper_c_is_8_bit() {
        assert_reads_and_writes('C', &[0, 0x80, 0xff]);
    }

    #[test]
    fn s_is_signed_16_bit_host_order() {
        assert_reads_and_writes('s', &[0, 0x0102, 0x7fff]);
        assert_refuses('s', &[-1, -0x8000]);
    }

    #[test]
    fn upper_s_is_16_bit_host_order() {
        assert_reads_and_writes('S', &[0, 0x0102, 0xffff]);
    }

    #[test]
    fn n_is_16_bit_network_order() {
        assert_reads_and_writes('n', &[0, 0x0102, 0xffff]);
        assert_eq!(LengthType::U16Be.decode(&[1, 2]), Ok(0x0102));
    }

    #[test]
    fn v_is_16_bit_little_endian() {
        assert_reads_and_writes('v', &[0, 0x0102, 0xffff]);
        assert_eq!(LengthType::U16Le.decode(&[2, 1]), Ok(0x0102));
    }

    #[test]
    fn l_is_signed_32_bit_host_order() {
        assert_reads_and_writes('l', &[0, 0x0102_0304, 0x7fff_ffff]);
        assert_refuses('l', &[-1, -0x8000_0000]);
    }

    #[test]
    fn upper_l_is_32_bit_host_order() {
        assert_reads_and_writes('L', &[0, 0x0102_0304, 0xffff_ffff]);
    }

    #[test]
    fn upper_n_is_32_bit_network_order() {
        assert_reads_and_writes('N', &[0, 0x0102_0304, 0xffff_ffff]);
        assert_eq!(LengthType::U32Be.decode(&[1, 2, 3, 4]), Ok(0x0102_0304));
    }

    #[test]
    fn upper_v_is_32_bit_little_endian() {
        assert_reads_and_writes('V', &[0, 0x0102_0304, 0xffff_ffff]);
        assert_eq!(LengthType::U32Le.decode(&[4, 3, 2, 1]), Ok(0x0102_0304));
    }

    #[test]
    fn q_is_signed_64_bit_host_order() {
        assert_reads_and_writes('q', &[0, 0x0102_0304_0506_0708, i64::MAX as u64]);
        assert_refuses('q', &[-1, i64::MIN]);
    }

    #[test]
    fn upper_q_is_64_bit_host_order() {
        assert_reads_and_writes('Q', &[0, 0x0102_0304_0506_0708, u64::MAX]);
    }

    #[test]
    fn upper_j_is_64_bit_network_order() {
        assert_reads_and_writes('J', &[0, 0x0102_0304_0506_0708, u64::MAX]);
    }

    #[test]
    fn upper_p_is_64_bit_little_endian() {
        assert_reads_and_writes('P', &[0, 0x0102_0304_0506_0708, u64::MAX]);
    }

    #[test]
    fn other_letters_are_refused() {
        for text in ["", "i", "I", "NN", "é"] {
            let refused = ConfigError::LengthType { given: text.to_owned() };
            assert_eq!(text.parse::<LengthType>(), Err(refused));
        }
    }
}
