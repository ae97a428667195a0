//! Sans-I/O packet framing: where does one packet end and the next begin in a stream of bytes?
//!
//! TCP carries bytes, not packets: what was sent at once may arrive in pieces, and what was sent in pieces at once.
//! This crate finds the packets again. It reads no socket and keeps no buffer: you show a [`Framer`] the bytes that
//! you have, it answers with a [`Cut`], and it remembers how far it has looked. So it serves a reactor, a blocking
//! loop, an async task and a test alike.
//!
//! | [`Framing`] | a packet is |
//! | --- | --- |
//! | [`Raw`](Framing::Raw) | what one read gave |
//! | [`Eof`](Framing::Eof) | what ends with a delimiter of 1 to 8 bytes ([`EofOptions`]) |
//! | [`Length`](Framing::Length) | as long as a number in its header says ([`LengthOptions`]) |
//! | [`LengthFunc`](Framing::LengthFunc) | as long as a function of yours says ([`LengthFunc`]) |
//! | [`Varint`](Framing::Varint) | what stands behind its length as a varint, as in a stream of Protocol Buffers |
//! | [`Line`](Framing::Line) | a line, ended by `\n` or `\r\n` |
//!
//! Before the first packet there may be a header that a proxy has put there: [`proxy`].
//!
//! What the user sees of a packet ([`Cut::Packet`]) is what the framing alone does not say: no delimiter, no line end,
//! no varint; but the header of length framing, which may say more than the length.
//!
//! ```
//! use swoole_protocol::{Cut, EofOptions, Framer, Framing};
//!
//! let lines = Framing::Eof(EofOptions::new(b"\r\n", true)?);
//! let mut framer = lines.framer(64 * 1024); // one per connection
//! let mut buffer = Vec::new();
//! let mut packets = Vec::new();
//! for read in ["GET /a", "\r", "\nGET /b\r\nGET", " /c\r\n"] {
//!     buffer.extend_from_slice(read.as_bytes()); // one read of a socket
//!     while let Cut::Packet { len, payload } = framer.cut(&buffer)? {
//!         packets.push(String::from_utf8_lossy(&buffer[payload]).into_owned());
//!         buffer.drain(..len);
//!     }
//! }
//! assert_eq!(packets, ["GET /a", "GET /b", "GET /c"]);
//! assert!(buffer.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What holds, whatever the bytes and however they arrive:
//! - No packet is longer than `package_max_length`, and no more than that many bytes need ever be buffered: a stream
//!   that asks for more is refused as soon as that can be known, with length framing from the header alone.
//! - All but two find the same packets and the same error in every way a stream may be cut into reads. (Raw framing and
//!   eof check depend on the reads by definition; and a [`LengthFunc`] has to keep its word.)
//! - Each byte is looked at once, but for a few around a read's end: a peer that sends byte by byte costs no more. (A
//!   [`LengthFunc`] looks at a header again with each read until it knows, at [`LENGTH_FUNC_MAX`] bytes at most.)
//! - Nothing panics.
//!
//! Names and meanings are those of Swoole's port options; [`EofOptions`] and [`LengthOptions`] say where this crate
//! differs.

#![forbid(unsafe_code)]

mod eof;
mod error;
mod length;
mod length_func;
mod length_type;
mod line;
pub mod proxy;
mod raw;
mod varint;

pub use eof::{EOF_MAX, EofOptions};
pub use error::{ConfigError, FrameError, Malformed};
pub use length::{LengthOptions, OFFSET_MAX};
pub use length_func::{LENGTH_FUNC_MAX, LengthFunc, PackageLength};
pub use length_type::LengthType;
use std::ops::Range;

/// How a stream is cut into packets: one per port, copied into each connection's [`Framer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// All that is there is one packet (in pieces of `package_max_length` if it is more).
    #[default]
    Raw,
    /// Packets end with a delimiter.
    Eof(EofOptions),
    /// Packets say their length.
    Length(LengthOptions),
    /// A function tells the length.
    LengthFunc(LengthFunc),
    /// The length comes first, as a base-128 varint of at most 10 bytes, the lowest 7 bits first: what Protocol Buffers
    /// call a delimited stream. It counts what follows it. The user sees the packet without it.
    Varint,
    /// Packets end with `\n`; a `\r` right before it belongs to the end. The user sees neither. (Split eof framing with
    /// `\n` leaves the `\r` to the user, that with `\r\n` takes no bare `\n` for an end: this is for peers of which some
    /// send the one and some the other.)
    Line,
}

impl Framing {
    /// The state for one connection. `package_max_length`: the most bytes that a packet may have in total, with its
    /// delimiter or header; 0 counts as 1.
    pub fn framer(&self, package_max_length: usize) -> Framer {
        Framer { framing: *self, max: package_max_length.max(1), memo: 0 }
    }

    /// Appends to `out` a packet that carries `payload`: the other side of [`Framer::cut`], for clients and tests.
    ///
    /// Eof framing appends the delimiter, line framing a `\n`. Length framing puts a header before it: the length field,
    /// and zeros for all else up to `body_offset`. (Cutting gives that header back with the payload, see
    /// [`LengthOptions`].) Varint framing puts the length before it. With a [`LengthFunc`] the payload is the whole packet.
    ///
    /// # Errors
    /// `out` is left as it was if
    /// - [`Malformed::EofInPayload`]: split eof or line framing would cut the packet inside its payload;
    /// - [`Malformed::NotOnePacket`], or what else a [`LengthFunc`] has against it: it says another length;
    /// - [`FrameError::TooLong`]: the length field cannot hold the length.
    pub fn encode(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Framing::Raw => out.extend_from_slice(payload),
            Framing::Eof(options) => options.encode(payload, out)?,
            Framing::Length(options) => options.encode(payload, out)?,
            Framing::LengthFunc(function) => function.encode(payload, out)?,
            Framing::Varint => varint::encode(payload, out),
            Framing::Line => line::encode(payload, out)?,
        }
        Ok(())
    }
}

/// What is at the front of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A whole packet. Take it, and show the framer what comes after it.
    Packet {
        /// Bytes of the packet in total, delimiter or header included: at least 1.
        len: usize,
        /// Where in the input stands what the user sees: without the delimiter of eof framing, the end of a line or a
        /// varint, with the header of length framing. Empty for an empty line.
        payload: Range<usize>,
    },
    /// Not a whole packet yet. Read, and show the framer the same bytes and the new ones.
    More {
        /// How many bytes are missing at the least, at least 1: a reader that waits for as many loses nothing. Exact
        /// once the length is known, where packets say one.
        at_least: usize,
    },
}

/// Cuts one stream: the state of one connection, a few words, no buffer.
#[derive(Clone, Debug)]
pub struct Framer {
    framing: Framing,
    max: usize,
    /// Bytes that are known to hold no end, or the length that a function has told.
    memo: usize,
}

impl Framer {
    /// Looks at the front of the bytes of one stream that no packet has taken yet.
    ///
    /// After [`Cut::Packet`] call it again with what follows the packet, after [`Cut::More`] with the same bytes and
    /// at least one more. (A caller that breaks this gets wrong packets, and no panic.)
    ///
    /// # Errors
    /// [`FrameError`]: the stream cannot be cut from here on. Close the connection.
    pub fn cut(&mut self, input: &[u8]) -> Result<Cut, FrameError> {
        match &self.framing {
            Framing::Raw => Ok(raw::cut(input, self.max)),
            Framing::Eof(options) => options.cut(&mut self.memo, input, self.max),
            Framing::Length(options) => options.cut(input, self.max),
            Framing::LengthFunc(function) => function.cut(&mut self.memo, input, self.max),
            Framing::Varint => varint::cut(input, self.max),
            Framing::Line => line::cut(&mut self.memo, input, self.max),
        }
    }
}
