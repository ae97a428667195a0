//! What can be wrong with a framing's options, and with a stream.

/// An option of a framing that is outside its range. Found when the options are built, never while cutting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `package_eof` has no byte, or more than [`EOF_MAX`](crate::EOF_MAX).
    #[error("package_eof has {len} bytes: give 1 to {}", crate::EOF_MAX)]
    EofLength {
        /// Bytes given.
        len: usize,
    },
    /// `package_length_type` is none of the known letters.
    #[error("package_length_type {given:?} is unknown: give one of c C s S n v l L N V q Q J P")]
    LengthType {
        /// What was given instead of a letter.
        given: String,
    },
    /// `package_length_offset` or `package_body_offset` is over [`OFFSET_MAX`](crate::OFFSET_MAX).
    #[error("{option} is {value}: give 0 to {}", crate::OFFSET_MAX)]
    Offset {
        /// The option's name.
        option: &'static str,
        /// Bytes given.
        value: usize,
    },
}

/// Why a stream cannot be cut any further, or why a payload cannot be encoded.
///
/// A byte stream has no second place to start from: after an error of [`Framer::cut`](crate::Framer::cut)
/// close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The packet at the front is longer than allowed.
    #[error(
        "packet of at least {len} bytes, {max} are allowed: raise package_max_length or close the connection"
    )]
    TooLong {
        /// Total bytes of the packet: what its header says (saturating at `usize::MAX`), or the least that it can be,
        /// `max + 1`, with eof and line framing and where the header itself is cut off by the limit.
        len: usize,
        /// The limit in total bytes: `package_max_length`, or for an encoder what the length field can say.
        max: usize,
    },
    /// The bytes are no packet of this framing.
    #[error("malformed packet: {what}; does the peer use the same framing options?")]
    Malformed {
        /// What is wrong with them.
        what: Malformed,
    },
}

/// What is wrong with a malformed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A length field of a signed type holds a negative number.
    #[error("its length field says {value}")]
    NegativeLength {
        /// The number as read.
        value: i64,
    },
    /// The packet would end before its own length field does.
    #[error("its length field makes it {total} bytes in total, but the field itself ends at byte {header}")]
    ShorterThanHeader {
        /// Total bytes as the length field and `package_body_offset` make it.
        total: usize,
        /// Bytes up to the end of the length field.
        header: usize,
    },
    /// Its length is a varint of more than 64 bits.
    #[error("its length has more than 64 bits")]
    VarintTooLong,
    /// A [`LengthFunc`](crate::LengthFunc) says that it has no bytes at all.
    #[error("package_length_func says that it has 0 bytes")]
    NoBytes,
    /// A [`LengthFunc`](crate::LengthFunc) cannot tell its length from as many bytes as it may look at.
    #[error("package_length_func cannot tell its length from {} bytes", crate::LENGTH_FUNC_MAX)]
    LengthUnknown,
    /// A [`LengthFunc`](crate::LengthFunc) says that it is none.
    #[error("{why}")]
    LengthFunc {
        /// What the function says.
        why: &'static str,
    },
    /// A [`LengthFunc`](crate::LengthFunc) panicked.
    #[error("package_length_func panicked")]
    LengthFuncPanicked,
    /// What is to be encoded is not one whole packet, as a [`LengthFunc`](crate::LengthFunc) sees it.
    #[error("package_length_func does not take it for one packet")]
    NotOnePacket,
    /// A payload that is to be encoded would be cut in two by its own bytes.
    #[error("the payload makes an eof at its byte {at}")]
    EofInPayload {
        /// Where in the payload the eof begins, in bytes.
        at: usize,
    },
}
