//! A packet of the post: `kind: u8 | flags: u8 | sender: u16 | generation: u32 | about: u64 | bytes`, little-endian.

/// Bytes before those that are sent.
pub(super) const HEADER: usize = 16;
/// Bytes that are sent in one packet.
pub(super) const PIECE: usize = 32 * 1024;

/// Flags: the first packet of its parcel, the last one.
const FIRST: u8 = 1;
const LAST: u8 = 2;

/// What a parcel is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Bytes for a client.
    Send = 1,
    /// A client's connection is to be closed.
    Close = 2,
    /// Bytes for the process.
    Message = 3,
    /// Something for many clients.
    Order = 4,
    /// A client's session is to be bound to the user that the bytes name.
    Bind = 8,
    /// Something is to be done with a client's connection: a [`Measure`](crate::measure::Measure).
    Measure = 16,
    /// A datagram that a listener is to send.
    Datagram = 32,
}

/// What stands before the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) first: bool,
    pub(super) last: bool,
    /// Whose parcel it is, by seat (the manager comes after them), ...
    pub(super) sender: u16,
    /// ... and which process of that seat.
    pub(super) generation: u32,
    /// The session, or a listener; of a message, how many bytes the whole of it has.
    pub(super) about: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let flags = if self.first { FIRST } else { 0 } | if self.last { LAST } else { 0 };
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind as u8;
        bytes[1] = flags;
        bytes[2..4].copy_from_slice(&self.sender.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..].copy_from_slice(&self.about.to_le_bytes());
        bytes
    }

    /// `None` for what nobody writes.
    pub(super) fn decode(packet: &[u8]) -> Option<(Header, &[u8])> {
        let (head, rest) = packet.split_first_chunk::<HEADER>()?;
        let [kind, flags, a, b, c, d, e, f, about @ ..] = *head;
        let kind = match kind {
            1 => Kind::Send,
            2 => Kind::Close,
            3 => Kind::Message,
            4 => Kind::Order,
            8 => Kind::Bind,
            16 => Kind::Measure,
            32 => Kind::Datagram,
            _ => return None,
        };
        let header = Header {
            kind,
            first: flags & FIRST != 0,
            last: flags & LAST != 0,
            sender: u16::from_le_bytes([a, b]),
            generation: u32::from_le_bytes([c, d, e, f]),
            about: u64::from_le_bytes(about),
        };
        (flags & !(FIRST | LAST) == 0).then_some((header, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same(packet in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((header, bytes)) = Header::decode(&packet) {
                prop_assert_eq!([&header.encode()[..], bytes].concat(), packet);
            }
        }
    }
}
