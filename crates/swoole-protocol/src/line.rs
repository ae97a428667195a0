//! Packets that are lines: they end with `\n`, and a `\r` right before that belongs to the end.

use crate::{Cut, FrameError, Malformed};
use memchr::memchr;
use std::ops::Range;

/// `scanned`: how many bytes at the front of `input` are known not to be a line end.
pub(crate) fn cut(scanned: &mut usize, input: &[u8], max: usize) -> Result<Cut, FrameError> {
    let window = &input[..input.len().min(max)];
    let found = window.get(*scanned..).and_then(|rest| memchr(b'\n', rest));
    if let Some(at) = found {
        let at = std::mem::take(scanned) + at;
        return Ok(Cut::Packet { len: at + 1, payload: text(&input[..at]) });
    }
    if input.len() >= max {
        return Err(FrameError::TooLong { len: max.saturating_add(1), max });
    }
    *scanned = input.len();
    Ok(Cut::More { at_least: 1 })
}

/// The line without the `\r` that may end it.
fn text(line: &[u8]) -> Range<usize> {
    0..line.strip_suffix(b"\r").unwrap_or(line).len()
}

pub(crate) fn encode(payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let carriage_return = payload.len().checked_sub(1).filter(|last| payload[*last] == b'\r');
    if let Some(at) = memchr(b'\n', payload).or(carriage_return) {
        return Err(FrameError::Malformed { what: Malformed::EofInPayload { at } });
    }
    out.extend_from_slice(payload);
    out.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(input: &[u8], max: usize) -> Result<Cut, FrameError> {
        cut(&mut 0, input, max)
    }

    fn packet(len: usize, payload: usize) -> Result<Cut, FrameError> {
        Ok(Cut::Packet { len, payload: 0..payload })
    }

    const MORE: Result<Cut, FrameError> = Ok(Cut::More { at_least: 1 });

    #[test]
    fn either_line_end_ends_a_line() {
        assert_eq!(first(b"", 9), MORE);
        assert_eq!(first(b"ab\r", 9), MORE);
        assert_eq!(first(b"ab\ncd\n", 9), packet(3, 2));
        assert_eq!(first(b"ab\r\ncd\n", 9), packet(4, 2));
        assert_eq!(first(b"\n", 9), packet(1, 0));
        assert_eq!(first(b"\r\n", 9), packet(2, 0));
    }

    #[test]
    fn a_carriage_return_elsewhere_is_text() {
        assert_eq!(first(b"a\rb\n", 9), packet(4, 3));
        assert_eq!(first(b"a\r\r\n", 9), packet(4, 2));
        assert_eq!(first(b"\ra\n", 9), packet(3, 2));
    }

    #[test]
    fn the_limit_counts_the_line_end() {
        let too_long = Err(FrameError::TooLong { len: 6, max: 5 });
        assert_eq!(first(b"abcd\n", 5), packet(5, 4));
        assert_eq!(first(b"abc\r\n", 5), packet(5, 3));
        assert_eq!(first(b"abcd\r\n", 5), too_long);
        assert_eq!(first(b"abcde", 5), too_long);
        assert_eq!(first(b"abcd", 5), MORE);
    }

    #[test]
    fn a_line_that_comes_byte_by_byte_is_scanned_once() {
        let stream = [vec![b'a'; 10_000], b"\r\n".to_vec()].concat();
        let mut scanned = 0;
        for end in 1..stream.len() {
            assert_eq!(cut(&mut scanned, &stream[..end], usize::MAX), MORE);
            assert_eq!(scanned, end);
        }
        assert_eq!(cut(&mut scanned, &stream, usize::MAX), packet(10_002, 10_000));
        assert_eq!(scanned, 0, "the next line is scanned from its first byte");
    }

    #[test]
    fn what_would_come_out_otherwise_is_not_encoded() {
        let refused = |at| Err(FrameError::Malformed { what: Malformed::EofInPayload { at } });
        let mut out = b"before".to_vec();
        assert_eq!(encode(b"a\nb", &mut out), refused(1));
        assert_eq!(encode(b"ab\r", &mut out), refused(2));
        assert_eq!(out, b"before");
        assert_eq!(encode(b"a\rb", &mut out), Ok(()));
        assert_eq!(out, b"beforea\rb\n");
    }
}
