//! Packets that end with a delimiter, the *eof* (`package_eof`).

use crate::{ConfigError, Cut, FrameError, Malformed};
use memchr::{memchr_iter, memrchr_iter};

/// The longest eof, in bytes.
pub const EOF_MAX: usize = 8;

/// How packets are told apart by a delimiter: `package_eof`, `open_eof_check` and `open_eof_split`.
///
/// **Split** (`split` is true): a packet ends at the first eof. Exact for every way in which the stream may arrive,
/// and what you want, unless a payload may hold the eof itself.
///
/// **Check** (`split` is false): a packet ends where the *received data* ends with the eof, so one packet may hold
/// several eofs, and where a packet ends depends on how the stream arrives. It costs no scan. It suits a client that
/// waits for the reply before it sends again; one that does not may find its requests joined. Only when
/// `package_max_length` bytes have come and do not end with an eof is the packet cut at the last eof among them.
///
/// Both differ from Swoole in this: the user does not see the eof that ends the packet, and a packet of exactly
/// `package_max_length` bytes, its eof included, is still allowed. Swoole's check closes a connection whose reads do
/// not end with an eof before the limit is reached, although every packet was short enough; this one cuts there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EofOptions {
    // Inline rather than a `Vec`: every connection holds a copy.
    bytes: [u8; EOF_MAX],
    len: u8,
    split: bool,
}

impl EofOptions {
    /// Packets that end with `eof`, which has 1 to [`EOF_MAX`] bytes.
    ///
    /// # Errors
    /// [`ConfigError::EofLength`] if it has not.
    pub fn new(eof: &[u8], split: bool) -> Result<EofOptions, ConfigError> {
        if eof.is_empty() || eof.len() > EOF_MAX {
            return Err(ConfigError::EofLength { len: eof.len() });
        }
        let mut bytes = [0; EOF_MAX];
        bytes[..eof.len()].copy_from_slice(eof);
        Ok(EofOptions { bytes, len: eof.len() as u8, split })
    }

    /// The delimiter.
    pub fn eof(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether a packet ends at every eof, or only at one that ends the received data.
    pub fn split(&self) -> bool {
        self.split
    }

    /// `scanned`: how many bytes at the front of `input` are known not to begin an eof.
    pub(crate) fn cut(&self, scanned: &mut usize, input: &[u8], max: usize) -> Result<Cut, FrameError> {
        let window = &input[..input.len().min(max)];
        let end = if self.split {
            self.first_end(window, *scanned)
        } else if input.len() <= max && input.ends_with(self.eof()) {
            Some(input.len())
        } else if input.len() >= max {
            self.last_end(window)
        } else {
            None
        };
        if let Some(end) = end {
            *scanned = 0;
            return Ok(Cut::Packet { len: end, payload: 0..end - self.eof().len() });
        }
        if input.len() >= max {
            return Err(FrameError::TooLong { len: max.saturating_add(1), max });
        }
        *scanned = input.len().saturating_sub(self.eof().len() - 1);
        Ok(Cut::More { at_least: 1 })
    }

    /// Where the first eof that begins at or after `from` ends.
    fn first_end(&self, window: &[u8], from: usize) -> Option<usize> {
        let rest = window.get(from..)?;
        memchr_iter(self.bytes[0], rest)
            .find(|&at| rest[at..].starts_with(self.eof()))
            .map(|at| from + at + self.eof().len())
    }

    /// Where the last eof ends.
    fn last_end(&self, window: &[u8]) -> Option<usize> {
        memrchr_iter(self.bytes[0], window)
            .find(|&at| window[at..].starts_with(self.eof()))
            .map(|at| at + self.eof().len())
    }

    pub(crate) fn encode(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = out.len();
        out.extend_from_slice(payload);
        out.extend_from_slice(self.eof());
        if self.split
            && let Some(end) = self.first_end(&out[start..], 0)
            && end < out.len() - start
        {
            out.truncate(start);
            return Err(FrameError::Malformed {
                what: Malformed::EofInPayload { at: end - self.eof().len() },
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(eof: &[u8], split: bool, input: &[u8], max: usize) -> Result<Cut, FrameError> {
        EofOptions::new(eof, split).unwrap().cut(&mut 0, input, max)
    }

    fn packet(len: usize, payload: usize) -> Result<Cut, FrameError> {
        Ok(Cut::Packet { len, payload: 0..payload })
    }

    const MORE: Result<Cut, FrameError> = Ok(Cut::More { at_least: 1 });

    fn too_long(max: usize) -> Result<Cut, FrameError> {
        Err(FrameError::TooLong { len: max + 1, max })
    }

    #[test]
    fn an_eof_has_1_to_8_bytes() {
        assert_eq!(EofOptions::new(b"", true), Err(ConfigError::EofLength { len: 0 }));
        assert_eq!(EofOptions::new(b"123456789", true), Err(ConfigError::EofLength { len: 9 }));
        assert_eq!(EofOptions::new(b"12345678", false).unwrap().eof(), b"12345678");
    }

    #[test]
    fn split_ends_at_the_first_eof() {
        assert_eq!(cut(b"\r\n", true, b"", 9), MORE);
        assert_eq!(cut(b"\r\n", true, b"ab\r", 9), MORE);
        assert_eq!(cut(b"\r\n", true, b"ab\r\nc\r\n", 9), packet(4, 2));
        assert_eq!(cut(b"\r\n", true, b"\r\r\n", 9), packet(3, 1));
        assert_eq!(cut(b"\r\n", true, b"\r\n", 9), packet(2, 0));
    }

    #[test]
    fn check_ends_where_the_data_ends_with_an_eof() {
        assert_eq!(cut(b"\n", false, b"", 9), MORE);
        assert_eq!(cut(b"\n", false, b"a\nb\n", 9), packet(4, 3));
        assert_eq!(cut(b"\n", false, b"a\nb", 9), MORE);
    }

    #[test]
    fn check_cuts_at_the_last_eof_when_the_limit_is_reached() {
        assert_eq!(cut(b"\n", false, b"a\nb\ncccc", 9), MORE);
        assert_eq!(cut(b"\n", false, b"a\nb\nccccc", 9), packet(4, 3));
        assert_eq!(cut(b"\n", false, b"a\nb\nccccccccccccc\n", 9), packet(4, 3));
        assert_eq!(cut(b"\n", false, b"aaaaaaaa\n", 9), packet(9, 8));
    }

    #[test]
    fn the_limit_counts_the_eof() {
        for split in [true, false] {
            assert_eq!(cut(b"\r\n", split, b"1234567\r\n", 9), packet(9, 7), "split: {split}");
            assert_eq!(cut(b"\r\n", split, b"12345678\r\n", 9), too_long(9), "split: {split}");
            assert_eq!(cut(b"\r\n", split, b"123456789", 9), too_long(9), "split: {split}");
            assert_eq!(cut(b"\r\n", split, b"12345678", 9), MORE, "split: {split}");
            assert_eq!(cut(b"\r\n", split, b"\r\n", 1), too_long(1), "split: {split}");
        }
    }

    #[test]
    fn a_stream_that_comes_byte_by_byte_is_scanned_once() {
        let options = EofOptions::new(b"aaab", true).unwrap();
        let stream = [vec![b'a'; 10_000], b"b".to_vec()].concat();
        let (mut scanned, mut looked_at) = (0, 0);
        for end in 1..stream.len() {
            looked_at += end - scanned;
            assert_eq!(options.cut(&mut scanned, &stream[..end], usize::MAX), MORE);
        }
        assert!(looked_at <= stream.len() * options.eof().len(), "looked at {looked_at} bytes");
        assert_eq!(options.cut(&mut scanned, &stream, usize::MAX), packet(10_001, 9_997));
        assert_eq!(scanned, 0, "the next packet is scanned from its first byte");
    }

    #[test]
    fn split_refuses_to_encode_what_it_would_cut_in_two() {
        let refused = |at| Err(FrameError::Malformed { what: Malformed::EofInPayload { at } });
        let options = EofOptions::new(b"\n\n", true).unwrap();
        let mut out = b"before".to_vec();
        assert_eq!(options.encode(b"a\n\nb", &mut out), refused(1));
        assert_eq!(options.encode(b"a\n", &mut out), refused(1), "the eof would begin a byte early");
        assert_eq!(out, b"before");
        assert_eq!(EofOptions::new(b"\n\n", false).unwrap().encode(b"a\n\nb", &mut out), Ok(()));
        assert_eq!(out, b"beforea\n\nb\n\n");
    }
}
