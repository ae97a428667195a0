//! How single values are written: sizes, durations, bytes with escapes.
//!
//! Each module is a pair of functions for serde's `with`.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Bytes: a number, or text such as `512K`, `2M`, `1G`.
pub(super) mod size {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        size: &usize,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format(*size))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<usize, D::Error> {
        struct Size;

        impl Visitor<'_> for Size {
            type Value = usize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, as 65536, 512K, 2M or 1G")
            }

            fn visit_i64<E: de::Error>(self, size: i64) -> Result<usize, E> {
                usize::try_from(size).map_err(|_| E::invalid_value(de::Unexpected::Signed(size), &self))
            }

            fn visit_u64<E: de::Error>(self, size: u64) -> Result<usize, E> {
                usize::try_from(size).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(size), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<usize, E> {
                parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Size)
    }

    const SUFFIXES: [(char, u32); 3] = [('G', 30), ('M', 20), ('K', 10)];

    pub(in crate::config) fn parse(text: &str) -> Option<usize> {
        let (digits, shift) = SUFFIXES
            .into_iter()
            .find_map(|(suffix, shift)| {
                Some((text.strip_suffix([suffix, suffix.to_ascii_lowercase()])?, shift))
            })
            .unwrap_or((text, 0));
        // `parse` would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        digits.parse::<usize>().ok()?.checked_mul(1 << shift)
    }

    /// The shortest text that [`parse`] reads back.
    pub(in crate::config) fn format(size: usize) -> String {
        SUFFIXES
            .into_iter()
            .find(|(_, shift)| size != 0 && size.is_multiple_of(1 << shift))
            .map_or_else(|| size.to_string(), |(suffix, shift)| format!("{}{suffix}", size >> shift))
    }
}

/// Seconds, whole or with a fraction.
pub(super) mod seconds {
    use super::*;
    use std::time::Duration;

    pub(in crate::config) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.as_secs_f64().serialize(serializer)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(de::Error::custom)
    }
}

/// Bytes as text, with escapes for those that a shell or a file makes hard to write.
pub(super) mod escaped {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        bytes: &[u8],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&bytes.escape_ascii())
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }

    /// Reads `\n`, `\r`, `\t`, `\0`, `\xNN`, `\\`, and the quotes that printing escapes; all else is itself.
    pub(in crate::config) fn parse(text: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'\\' => match rest.next() {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(b'0') => 0,
                    Some(quoted @ (b'\\' | b'\'' | b'"')) => quoted,
                    Some(b'x') => hex(&mut rest).ok_or("\\x needs two hexadecimal digits, as \\x1f")?,
                    _ => return Err("a backslash may begin \\n \\r \\t \\0 \\xNN or \\\\".into()),
                },
                plain => plain,
            });
        }
        Ok(bytes)
    }

    fn hex(digits: &mut impl Iterator<Item = u8>) -> Option<u8> {
        let mut digit = || char::from(digits.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        u8::try_from(high << 4 | low).ok()
    }
}

/// A value that prints and parses as text.
pub(super) mod text {
    use super::*;
    use std::str::FromStr;

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &impl fmt::Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::config) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: fmt::Display>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// One path, or a list of them.
pub(super) mod paths {
    use super::*;
    use std::path::PathBuf;

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        struct Paths;

        impl<'de> Visitor<'de> for Paths {
            type Value = Vec<PathBuf>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }

            fn visit_str<E: de::Error>(self, one: &str) -> Result<Vec<PathBuf>, E> {
                Ok(vec![one.into()])
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, many: A) -> Result<Vec<PathBuf>, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(many))
            }
        }

        deserializer.deserialize_any(Paths)
    }
}

/// The mode of a file: octal digits, as text, so that nobody takes it for a decimal number.
pub(super) mod octal {
    use super::*;

    /// All that may be asked for: reading, writing and executing.
    pub(in crate::config) const MAX: u32 = 0o777;

    pub(in crate::config) fn serialize<S: Serializer>(
        mode: &Option<u32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match mode {
            Some(mode) => serializer.collect_str(&format(*mode)),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u32>, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Some).ok_or_else(|| de::Error::custom("no octal digits, as \"660\""))
    }

    pub(in crate::config) fn parse(text: &str) -> Option<u32> {
        // `from_str_radix` would take a sign.
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let is_octal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten()
    }

    pub(in crate::config) fn format(mode: u32) -> String {
        format!("{mode:o}")
    }
}

/// Networks in one text with `,` or `+` between them, or a list of such.
pub(super) mod networks {
    use super::*;
    use crate::config::Network;

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Network>, D::Error> {
        struct Networks;

        impl<'de> Visitor<'de> for Networks {
            type Value = Vec<Network>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a network or a list of networks, as \"10.0.0.0/8\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<Network>, E> {
                parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut many: A) -> Result<Vec<Network>, A::Error> {
                let mut networks = Vec::new();
                while let Some(text) = many.next_element::<String>()? {
                    networks.extend(Networks.visit_str::<A::Error>(&text)?);
                }
                Ok(networks)
            }
        }

        deserializer.deserialize_any(Networks)
    }

    pub(in crate::config) fn parse(text: &str) -> Option<Vec<Network>> {
        text.split([',', '+']).map(|network| network.trim().parse().ok()).collect()
    }

    /// As an option of an address, of which several may stand in one variable with commas between them.
    pub(in crate::config) fn format(networks: &[Network]) -> String {
        networks.iter().map(Network::to_string).collect::<Vec<_>>().join("+")
    }
}

/// Words: a list of them, or text with `:`, `,` or blanks between them.
pub(super) mod words {
    use super::*;

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<String>, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = Vec<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of words, or text with `:` between them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
                Ok(parse(text))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, many: A) -> Result<Vec<String>, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(many))
            }
        }

        deserializer.deserialize_any(Words)
    }

    pub(in crate::config) fn parse(text: &str) -> Vec<String> {
        let words = text.split([':', ',', ' ']).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }

    /// As text that [`parse`] reads back, if no word has one of those between words in it.
    pub(in crate::config) fn format(words: &[String]) -> String {
        words.join(":")
    }
}
