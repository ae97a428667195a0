//! Packets whose length a function of the user's tells: `package_length_func`.

use crate::{Cut, FrameError, Malformed};
use std::fmt;
use std::panic::catch_unwind;

/// The most bytes of a packet that a [`LengthFunc`] is shown.
pub const LENGTH_FUNC_MAX: usize = 8192;

/// What a [`LengthFunc`] says of the packet whose first bytes it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageLength {
    /// These bytes do not tell yet: the function is asked again when there are more.
    More,
    /// The packet has so many bytes in total, its header included: at least 1.
    Bytes(usize),
    /// This is no packet, and why: completes "malformed packet: ...".
    Malformed(&'static str),
}

/// A function that finds out how long a packet is: `package_length_func`.
///
/// It is shown the bytes at the front of the stream that have come, at least 1 and at most [`LENGTH_FUNC_MAX`], and is
/// asked again with more until it tells; then not before the next packet. A packet of whose length the first
/// [`LENGTH_FUNC_MAX`] bytes do not tell is refused, so that one which comes byte by byte costs little.
///
/// It runs in an event loop, for which all connections of a reactor wait: it must not block. What it says may depend on
/// the bytes alone, and what it has said of some bytes (but for [`More`](PackageLength::More)) it must say of those with
/// more behind them, or packets depend on how the stream arrives. If it panics, the packet is malformed: the connection
/// is closed, and nobody else's.
///
/// ```
/// use swoole_protocol::{Cut, Framing, LengthFunc, PackageLength};
///
/// /// `<` ... `>`, of at most 80 bytes.
/// fn angles(begin: &[u8]) -> PackageLength {
///     match (begin[0], begin.iter().take(80).position(|byte| *byte == b'>')) {
///         (b'<', Some(end)) => PackageLength::Bytes(end + 1),
///         (b'<', None) if begin.len() < 80 => PackageLength::More,
///         (b'<', None) => PackageLength::Malformed("no `>` within 80 bytes"),
///         _ => PackageLength::Malformed("no `<` at its front"),
///     }
/// }
///
/// let mut framer = Framing::LengthFunc(LengthFunc::new(angles)).framer(64 * 1024);
/// assert_eq!(framer.cut(b"<a")?, Cut::More { at_least: 1 });
/// assert_eq!(framer.cut(b"<a><b")?, Cut::Packet { len: 3, payload: 0..3 });
/// assert!(framer.cut(b"b").is_err());
/// # Ok::<(), swoole_protocol::FrameError>(())
/// ```
#[derive(Clone, Copy)]
pub struct LengthFunc(fn(&[u8]) -> PackageLength);

impl fmt::Debug for LengthFunc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LengthFunc")
    }
}

/// The same function. (The compiler may make one of two that do the same, and two of one.)
impl PartialEq for LengthFunc {
    fn eq(&self, other: &LengthFunc) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

impl Eq for LengthFunc {}

impl LengthFunc {
    /// What `function` says.
    pub const fn new(function: fn(&[u8]) -> PackageLength) -> LengthFunc {
        LengthFunc(function)
    }

    /// `told`: what the function has said of the packet at the front; 0 if nothing yet.
    pub(crate) fn cut(&self, told: &mut usize, input: &[u8], max: usize) -> Result<Cut, FrameError> {
        if input.is_empty() {
            return Ok(Cut::More { at_least: 1 });
        }
        let len = match *told {
            0 => self.ask(&input[..input.len().min(max).min(LENGTH_FUNC_MAX)])?,
            told => Some(told),
        };
        let Some(len) = len else {
            return if input.len() >= max {
                Err(FrameError::TooLong { len: max.saturating_add(1), max })
            } else if input.len() >= LENGTH_FUNC_MAX {
                Err(FrameError::Malformed { what: Malformed::LengthUnknown })
            } else {
                Ok(Cut::More { at_least: 1 })
            };
        };
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        Ok(match len.checked_sub(input.len()) {
            None | Some(0) => {
                *told = 0;
                Cut::Packet { len, payload: 0..len }
            }
            Some(at_least) => {
                *told = len;
                Cut::More { at_least }
            }
        })
    }

    /// The packet's length, if the function can tell.
    fn ask(&self, begin: &[u8]) -> Result<Option<usize>, FrameError> {
        let what = match catch_unwind(|| (self.0)(begin)) {
            Ok(PackageLength::More) => return Ok(None),
            Ok(PackageLength::Bytes(len @ 1..)) => return Ok(Some(len)),
            Ok(PackageLength::Bytes(0)) => Malformed::NoBytes,
            Ok(PackageLength::Malformed(why)) => Malformed::LengthFunc { why },
            Err(_) => Malformed::LengthFuncPanicked,
        };
        Err(FrameError::Malformed { what })
    }

    pub(crate) fn encode(&self, packet: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self.cut(&mut 0, packet, usize::MAX)? {
            Cut::Packet { len, .. } if len == packet.len() => out.extend_from_slice(packet),
            _ => return Err(FrameError::Malformed { what: Malformed::NotOnePacket }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A digit says how many bytes there are, if a `:` is behind it.
    fn digit(begin: &[u8]) -> PackageLength {
        match begin {
            [b'!', ..] => panic!("asked about !"),
            [b'#', ..] => PackageLength::More,
            [b'^', ..] => PackageLength::Bytes(usize::MAX),
            [digit @ b'0'..=b'9', b':', ..] => PackageLength::Bytes((digit - b'0').into()),
            [b'0'..=b'9'] => PackageLength::More,
            _ => PackageLength::Malformed("no digit"),
        }
    }

    fn first(input: &[u8], max: usize) -> Result<Cut, FrameError> {
        LengthFunc::new(digit).cut(&mut 0, input, max)
    }

    fn packet(len: usize) -> Result<Cut, FrameError> {
        Ok(Cut::Packet { len, payload: 0..len })
    }

    fn more(at_least: usize) -> Result<Cut, FrameError> {
        Ok(Cut::More { at_least })
    }

    fn malformed(what: Malformed) -> Result<Cut, FrameError> {
        Err(FrameError::Malformed { what })
    }

    #[test]
    fn a_packet_is_as_long_as_it_says() {
        assert_eq!(first(b"", 99), more(1));
        assert_eq!(first(b"4", 99), more(1));
        assert_eq!(first(b"4:", 99), more(2));
        assert_eq!(first(b"4:ab5:", 99), packet(4));
        assert_eq!(first(b"1:", 99), packet(1), "shorter than what was looked at");
        assert_eq!(first(b"x", 99), malformed(Malformed::LengthFunc { why: "no digit" }));
        assert_eq!(first(b"0:", 99), malformed(Malformed::NoBytes));
    }

    #[test]
    fn the_limits_hold_whatever_it_says() {
        let too_long = |len, max| Err(FrameError::TooLong { len, max });
        assert_eq!(first(b"9:", 9), more(7));
        assert_eq!(first(b"9:", 8), too_long(9, 8));
        assert_eq!(first(b"^", 8), too_long(usize::MAX, 8));
        assert_eq!(first(b"5:", 1), too_long(2, 1), "the limit ends within the header");
        assert_eq!(first(b"########", 8), too_long(9, 8));
        assert_eq!(first(&[b'#'; LENGTH_FUNC_MAX - 1], usize::MAX), more(1));
        assert_eq!(first(&[b'#'; LENGTH_FUNC_MAX], usize::MAX), malformed(Malformed::LengthUnknown));
    }

    #[test]
    fn a_panic_is_a_malformed_packet() {
        assert_eq!(first(b"!", 99), malformed(Malformed::LengthFuncPanicked));
    }

    #[test]
    fn who_has_told_is_not_asked_again_before_the_next_packet() {
        thread_local!(static ASKED: Cell<usize> = const { Cell::new(0) });
        let function = LengthFunc::new(|begin| {
            ASKED.set(ASKED.get() + 1);
            digit(begin)
        });
        let mut told = 0;
        for (end, asked) in [(1, 1), (2, 2), (3, 2), (8, 2)] {
            assert!(matches!(function.cut(&mut told, &b"9:abcdefg"[..end], 99), Ok(Cut::More { .. })));
            assert_eq!(ASKED.get(), asked);
        }
        assert_eq!(function.cut(&mut told, b"9:abcdefg2:", 99), packet(9));
        assert_eq!(function.cut(&mut told, b"2:", 99), packet(2));
        assert_eq!(ASKED.get(), 3);
    }

    #[test]
    fn what_is_not_one_packet_is_not_encoded() {
        let function = LengthFunc::new(digit);
        let mut out = b"before".to_vec();
        assert_eq!(function.encode(b"3:a", &mut out), Ok(()));
        for wrong in [&b""[..], b"3", b"3:", b"3:ab"] {
            let refused = Err(FrameError::Malformed { what: Malformed::NotOnePacket });
            assert_eq!(function.encode(wrong, &mut out), refused, "{wrong:?}");
        }
        assert_eq!(out, b"before3:a");
    }
}
